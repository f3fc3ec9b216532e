"""How many trials does an earlier study of a related pair save?

Each repeat has a landscape (`search.landscape`) and a related one, its optimum moved by `SHIFT` of every range. A cold
study of the related one, without first guesses, reaches its best after so many trials; a warm one, with the first
guesses that `--warm-start` takes from the earlier one, reaches that level after fewer. `trials_saved` is the mean over
the repeats of 1 less the ratio of the two, `epochs_saved` the same in epochs trained by then: a good first guess raises
the scheduler's bar, so that a warm study has more trials, and shorter ones. A warm study that never gets there counts
with all that it ran.

Levels are what the study sees, noise included; a trial counts once it ended, stopped or not. All with the default
sampler and scheduler.
"""

import statistics

from search.ledger import COMPLETE
from tests.benchmarks.landscapes import Search

REPEATS, SHIFT, FULL_TRIALS = 30, 0.1, 16


def measure() -> dict[str, float]:
    """Runs the earlier, the cold and the warm study of each repeat."""
    search, saved, epochs, ahead = Search(), [], [], []
    for repeat in range(REPEATS):
        earlier = search.run(repeat, full_trials=FULL_TRIALS)
        cold = search.run(repeat, SHIFT, FULL_TRIALS, seed=1000 + repeat)
        guesses = search.warm_guesses(earlier)
        warm = search.run(repeat, SHIFT, FULL_TRIALS, seed=1000 + repeat, first_guesses=guesses)
        level = cold.best().score
        (needed, needed_epochs), (reached, reached_epochs) = _needed(cold, level), _needed(warm, level)
        saved.append(1 - reached / needed)
        epochs.append(1 - reached_epochs / needed_epochs)
        ahead.append(warm.best().score - level)
        print(f"  {repeat:>2}  cold {needed:>3}  warm {reached:>3}  at the end {ahead[-1]:+6.2f} points", flush=True)
    return {
        "trials_saved": statistics.mean(saved),
        "trials_saved_median": statistics.median(saved),
        "epochs_saved": statistics.mean(epochs),
        "epochs_saved_median": statistics.median(epochs),
        "points_ahead_at_end": statistics.mean(ahead),
    }


def _needed(state, level: float) -> tuple[int, int]:
    """How many trials had ended, and epochs were trained, when a complete one reached the level; all where none did."""
    for count, (_, epochs, record) in enumerate(state.ended, 1):
        if record.state == COMPLETE and record.score >= level:
            return count, epochs
    return len(state.ended), state.epochs
