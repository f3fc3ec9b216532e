"""How far from the optimum does a search end, by sampler and scheduler, at an equal budget of epochs?

Regret is the noise-free distance, in points, of the best complete trial (as the search sees it, with noise) from the
optimum of the landscape. Each repeat has a landscape of its own (`search.landscape`) and a seed of its own; all pairs
see the same thirty. The searches begin from nothing: no first guesses. `regret_ratio` is the mean regret of the
default, tpe with asha that judges after a third of the epochs, over that of random search without early stopping.
"""

import statistics
import time

from tests.benchmarks.landscapes import EPOCHS, FULL_TRIALS, SLOTS, Search, regret

REPEATS = 30
SAMPLERS = ("random", "qmc", "nsga2", "cmaes", "tpe")  # gp takes 0.7 s a trial on this space: minutes a repeat
SCHEDULERS = ("none", "median", "hyperband", "asha")
AT = (1 / 4, 1 / 2, 1.0)  # of the budget


def measure() -> dict[str, float]:
    """Runs all pairs over all landscapes."""
    search, figures = Search(), {}
    print(f"budget {FULL_TRIALS} trials of {EPOCHS} epochs, {SLOTS} slots, {REPEATS} landscapes")
    print("sampler  scheduler   regret at 1/4     1/2       1  ± s.e.  trials     s")
    for sampler in SAMPLERS:
        for scheduler in SCHEDULERS:
            begun, regrets, trials = time.perf_counter(), [], []
            for repeat in range(REPEATS):
                state = search.run(repeat, sampler=sampler, scheduler=scheduler)
                regrets.append(_along(state, repeat))
                trials.append(len(state.ended))
            quarter, half, end = (statistics.mean(column) for column in zip(*regrets, strict=True))
            error = statistics.stdev(one[-1] for one in regrets) / REPEATS**0.5
            print(
                f"{sampler:<8} {scheduler:<10} {quarter:14.2f} {half:7.2f} {end:7.2f} {error:7.2f} "
                f"{statistics.mean(trials):7.0f} {time.perf_counter() - begun:5.0f}",
                flush=True,
            )
            figures[f"{sampler}_{scheduler}"] = end
    return {"regret_ratio": figures["tpe_asha"] / figures["random_none"], **figures}


def _along(state, repeat: int) -> list[float]:
    """The incumbent's regret at each share of the budget; before any trial is complete, the first one's."""
    incumbents = list(state.incumbents())
    found = []
    for share in AT:
        known = [record for epochs, record in incumbents if epochs <= share * EPOCHS * FULL_TRIALS]
        found.append(regret(known[-1] if known else incumbents[0][1], repeat))
    return found
