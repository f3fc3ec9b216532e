"""How many trials does an earlier study of a related pair save?

Each repeat has a landscape (`search.landscape`) and a related one, its optimum moved by `SHIFT` of every range. The
earlier study is a whole one, of the space's own number of trials for CIFAR-100; that of the related pair has a quarter
of them, as one who starts warm hopes to need. A cold one, without first guesses, reaches its best after so many trials;
a warm one, with the first guesses that `--warm-start` takes from the earlier one, reaches that level after fewer, or
counts with all that it ran. `trials_saved` is 1 less the ratio of the two sums over the repeats: what one saves who
does this often. A mean of ratios would be decided by the few cold studies whose very first trials were lucky.

No trial is stopped early, so that all cost the same. With ASHA, the default, a good first guess raises the bar, and the
warm study has more trials, and shorter ones: `asha_epochs_saved` is the same in epochs.

Levels are what the study sees, noise included.
"""

import statistics

from search.ledger import COMPLETE
from tests.benchmarks.landscapes import FULL_TRIALS, Search

REPEATS, SHIFT, TRIALS = 30, 0.1, FULL_TRIALS // 4


def measure() -> dict[str, float]:
    """Runs the earlier, the cold and the warm study of each repeat, without early stopping and with ASHA."""
    search, figures = Search(), {}
    for scheduler in ("none", "asha"):
        pairs = []
        for repeat in range(REPEATS):
            pairs.append(_pair(search, repeat, scheduler))
            needed, reached, ahead = pairs[-1]
            needs = f"cold {needed[0]:>3}  warm {reached[0]:>3}"
            print(f"  {scheduler:<4} {repeat:>2}  {needs}  at the end {ahead:+6.2f} points", flush=True)
        cold, warm, ahead = zip(*pairs, strict=True)
        if scheduler == "none":
            figures["trials_saved"] = 1 - sum(one[0] for one in warm) / sum(one[0] for one in cold)
            figures["saved_in_the_middle_study"] = statistics.median(
                1 - reached[0] / needed[0] for needed, reached in zip(cold, warm, strict=True)
            )
            figures["points_ahead_at_end"] = statistics.mean(ahead)
        else:
            figures["asha_epochs_saved"] = 1 - sum(one[1] for one in warm) / sum(one[1] for one in cold)
    return figures


def _pair(search: Search, repeat: int, scheduler: str) -> tuple[tuple[int, int], tuple[int, int], float]:
    """What the cold study needed for its best, what the warm one needed for that, and its lead at the end."""
    earlier = search.run(repeat, scheduler=scheduler)
    fields = {"seed": 1000 + repeat, "scheduler": scheduler}
    cold = search.run(repeat, SHIFT, TRIALS, **fields)
    warm = search.run(repeat, SHIFT, TRIALS, first_guesses=search.warm_guesses(earlier), **fields)
    level = cold.best().score
    return _needed(cold, level), _needed(warm, level), warm.best().score - level


def _needed(state, level: float) -> tuple[int, int]:
    """How many trials had ended, and epochs were trained, when a complete one reached the level; all where none did."""
    for count, (_, epochs, record) in enumerate(state.ended, 1):
        if record.state == COMPLETE and record.score >= level:
            return count, epochs
    return len(state.ended), state.epochs
