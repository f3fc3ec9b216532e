"""The sections of a study's report, in the order in which a reader acts on them."""

import warnings
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas

from search import agreement, comparisons, plots, report_account, report_figures, results
from search import rungs as scheduling
from search.final import best_record, final_frame, winner
from search.final import comparisons as tested
from search.finalists import FINALIST
from search.ledger import COMPLETE, Ledger, TrialRecord
from search.objective import format_value
from search.report_facts import Facts
from search.report_page import Block, Charts, Section, Table, Text
from search.tracking.facts import as_text

if TYPE_CHECKING:
    import optuna

WEAKEST, BEST_TRIALS = 100, 10  # rows of these tables
NO_JOURNAL = "Optuna's journal of this study is gone, so this cannot be drawn."
BARE = "No trial completed, so there is nothing to draw."


def lead(facts: Facts, ledger: Ledger) -> str:
    """As `search.results.lead`."""
    images = facts.test_images, facts.holdout_images
    return results.lead(ledger, facts.settings.simulate, *images, facts.searched)


def subtitle(facts: Facts, ledger: Ledger) -> str:
    """What the study is about, in a line."""
    settings, counts = facts.settings, Counter(record.state for record in ledger.of_role("trial"))
    states = ", ".join(f"{count} {state}" for state, count in sorted(counts.items())) or "none"
    about = (
        f"Simulated by {settings.simulate}: no data, teacher or student"
        if settings.simulate
        else f"{settings.teacher} teaches {settings.student} on {settings.data}, scale {settings.scale}"
    )
    return f"{about}. Trials: {states}."


def sections(facts: Facts, ledger: Ledger, study: "optuna.Study | None") -> list[Section]:
    """All of them; one that has nothing to show says why."""
    return [
        Section("Result", _result(facts, ledger)),
        Section("Teacher", _teacher(facts)),
        Section("Optimisation history", _history(facts, study, ledger)),
        *([Section("Pareto front", _pareto(facts, study, ledger))] if len(facts.settings.objectives) > 1 else []),
        Section("Parallel coordinates", _parallel(study, ledger)),
        Section("Each parameter", _slices(study, ledger)),
        Section("Importance", _importance(facts, study, ledger)),
        Section("Could early stopping have misled?", _rungs(facts, ledger)),
        Section("Learning curves", _curves(ledger)),
        Section("Timeline", _drawn(study, lambda: report_figures.timeline(study, ledger), "Nothing ran.")),
        Section("Cost", report_account.cost(facts, ledger)),
        Section("How it ended", report_account.end(facts, ledger)),
        Section("To repeat it", report_account.repeat(facts)),
    ]


def _result(facts: Facts, ledger: Ledger) -> list[Block]:
    blocks: list[Block] = []
    if winner(ledger):
        anew = scheduling.restarts(facts.settings)
        like = "as in the search" if not anew else "as many as in the search but on one schedule of the learning rate"
        like += " (the search's begins anew at its rungs)" if anew else ""
        table = final_frame(ledger, ledger.folder)
        blocks += [
            Text(
                f"The final: the best trials and the baselines, each trained again for {facts.settings.epochs} epochs, "
                f"{like}, with other seeds. The best was chosen on the holdout (val/); the test split (test/) "
                "chose nothing."
            ),
            Table(table),
            *_intervals(ledger, list(table.columns)),
            *_charts(lambda: report_figures.final(ledger), "No run of the final has figures of the test split."),
            Text(
                "± is the standard deviation over the seeds. Dots are means with their 95% intervals (Student's t), "
                "which of two or three seeds are wide and may leave the picture; ticks are the single runs. p is "
                "corrected (Holm) for all pairs of a finalist and a baseline, intervals are not. Two or three seeds "
                "find large differences only: no difference shown does not mean that there is none.",
                note=True,
            ),
            Text("In the search itself, with one seed and on the images that chose:"),
        ]
    else:
        blocks.append(Text(_no_final(facts, ledger), note=True))
    table = results.final_table(ledger)
    blocks.append(Table(table) if len(table) else Text("Neither a trial nor a baseline has figures.", note=True))
    if comparisons.several_distillers(ledger):
        blocks.append(Table(comparisons.distillers_frame(ledger)))
    if best := best_record(ledger):
        blocks.append(Text(f"The best, trial {best.trial_id}: {', '.join(results.in_words(best.params).split('  '))}"))
    if cost := comparisons.branches(ledger):
        blocks.append(Text(cost[0].upper() + cost[1:] + "."))
    return blocks


def _no_final(facts: Facts, ledger: Ledger) -> str:
    """Why there are no figures of a final."""
    if not facts.settings.finalists:
        why, fix = "There was no final", " (--set finalists=3 seeds=3 makes one)"
    elif not ledger.complete():
        why, fix = "There was no final, as no trial completed", ""
    elif not ledger.of_role(FINALIST):
        why, fix = "There was no final, as the study ended before it", " (--resume goes on)"
    else:
        why, fix = "No trial's run of the final completed", " (--resume tries again)"
    return f"{why}, so nothing here is from the test split or from more than one seed{fix}."


def _intervals(ledger: Ledger, columns: list[str]) -> list[Block]:
    """Why the final's intervals and its comparison need not agree, where they do not count the same."""
    if "95% CI" not in columns or not any("images" in one.method for one in tested(ledger, ledger.folder)):
        return []
    return [
        Text(
            "The column 95% CI is over the seeds alone: where the mean of more seeds would lie on these same images. "
            "The comparison (best is, p, and the interval in the sentence above) pairs both models by seed and by "
            "image, and counts that the test images too are a random draw. So the two differ, and neither follows from "
            "the other.",
            note=True,
        )
    ]


def _teacher(facts: Facts) -> list[Block]:
    teacher, name = facts.teacher, facts.settings.teacher
    if facts.settings.simulate:
        return [Text("There was none: the study was simulated.", note=True)]
    if not teacher:
        return [Text(f"The figures of {name} are not known: its folder is gone, or no trial completed.", note=True)]
    blocks: list[Block] = [
        Text(f"{name} reaches {teacher['top1']:.2f}% top-1 on the holdout of {teacher['images']} images.")
    ]
    if not teacher.get("by_class"):
        return [*blocks, Text("It was judged before the recall of each class was kept.", note=True)]
    counts, names = teacher.get("class_counts", {}), teacher.get("class_names")
    known = [(place, recall) for place, recall in enumerate(teacher["by_class"]) if recall is not None]  # has images
    rows = [
        {
            "class": names[place] if names else str(place),
            "recall on the holdout in %": f"{recall:.1f}",
            **{f"images: {part}": of[place] for part, of in counts.items() if of},
        }
        for place, recall in sorted(known, key=lambda item: item[1])[:WEAKEST]
    ]
    words = (
        "Its classes, those that it knows least first"
        if len(rows) == len(known)
        else (f"The {len(rows)} of {len(known)} classes that it knows least")
    )
    words += "" if names else ", by their place in the order of the classes"
    return [*blocks, Text(f"{words}; no student learns from it what it does not know:"), Table(pandas.DataFrame(rows))]


def _history(facts: Facts, study: "optuna.Study | None", ledger: Ledger) -> list[Block]:
    blocks = _drawn(study, lambda: report_figures.history(study, ledger), BARE, _picture(facts, "history.png"))
    drawn = isinstance(blocks[0], Charts)
    if drawn and (count := len(report_figures.off_scale(ledger))):
        whom, them = ("1 stopped trial", "it is") if count == 1 else (f"{count} stopped trials", "they are")
        text = f"{whom} ended so far off that {them} left out of the figure in report.html"
        text += f"; in history.png {them} on the axis" if blocks[0].picture else ""
        blocks.append(Text(f"{text}.", note=True))
    complete = [record for record in ledger.of_role("trial") if record.state == COMPLETE]
    if complete:
        ranked = sorted(complete, key=lambda record: record.score, reverse=True)[:BEST_TRIALS]
        title = f"The best {len(ranked)} of {len(complete)} complete trials (trials.csv has all):"
        blocks += [Text(title), Table(_trials_frame(ranked))]
    return blocks


def _trials_frame(records: list[TrialRecord]) -> pandas.DataFrame:
    rows = [
        {
            "trial": record.trial_id,
            **{name: format_value(name, record.metric(name)) for name in record.objectives},
            **{name: _short(value) for name, value in record.params.items()},
        }
        for record in records
    ]
    return pandas.DataFrame(rows).astype(object).where(lambda frame: frame.notna(), None)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else as_text(value)


def _pareto(facts: Facts, study: "optuna.Study | None", ledger: Ledger) -> list[Block]:
    blocks = _drawn(study, lambda: report_figures.pareto(study, ledger), BARE, _picture(facts, "pareto.png"))
    complete = [record for record in ledger.of_role("trial") if record.state == COMPLETE]
    if complete:
        best = ledger.front()
        verb = "is" if len(best) == 1 else "are"
        text = f"{len(best)} of {len(complete)} complete trials {verb} beaten by no other in all objectives:"
        blocks += [Text(text), Table(_trials_frame(best))]
    return blocks


def _parallel(study: "optuna.Study | None", ledger: Ledger) -> list[Block]:
    empty = "It takes two or more complete trials and a parameter that all of them have."
    blocks = _drawn(study, lambda: report_figures.parallel(study, ledger), empty)
    trials = [record for record in ledger.of_role("trial") if record.state == COMPLETE]
    common = report_figures.common_parameters(study) if study else []
    some = [name for name in dict.fromkeys(name for one in trials for name in one.params) if name not in common]
    if common and some:
        blocks.append(Text(f"Left out, since only some trials have them: {', '.join(some)}.", note=True))
    return blocks


def _slices(study: "optuna.Study | None", ledger: Ledger) -> list[Block]:
    blocks = _drawn(study, lambda: report_figures.slices(study, ledger), "It takes two or more complete trials.")
    if isinstance(blocks[0], Charts):
        blocks.append(Text("Complete trials, later ones darker; dashed lines are the baselines.", note=True))
    return blocks


def _importance(facts: Facts, study: "optuna.Study | None", ledger: Ledger) -> list[Block]:
    few = f"It takes {plots.FEWEST_TRIALS} or more complete trials and a parameter that varies among them."
    blocks: list[Block] = []
    for evaluator, words, picture in (
        ("PED-ANOVA", "what sets the best trials apart from all", _picture(facts, "importance.png")),
        ("fANOVA", "what the result varies with over the whole space", None),
    ):
        blocks.append(Text(f"{evaluator}, {words}:"))
        blocks += _drawn(study, lambda name=evaluator: report_figures.importance(study, ledger, name), few, picture)
    complete, judged = sum(record.state == COMPLETE for record in ledger.of_role("trial")), report_figures.JUDGED
    fewer = f" (fANOVA, whose time grows with their square, over {judged} of them, evenly chosen)"
    fewer = fewer if complete > judged else ""
    blocks.append(
        Text(
            f"Both are over the {complete} complete trials{fewer} and are rough for few. fANOVA judges only parameters "
            "that every complete trial has; PED-ANOVA judges a conditional one among the trials that have it.",
            note=True,
        )
    )
    return blocks


def _rungs(facts: Facts, ledger: Ledger) -> list[Block]:
    rungs, found = scheduling.rungs(facts.settings), agreement.agreements(ledger)
    blocks: list[Block] = [Text(agreement.sentence(ledger, rungs))]
    blocks += _charts(
        lambda: report_figures.rung_agreement(found, rungs),
        f"The correlation by epoch needs {agreement.FEWEST_TRIALS} complete trials with different results.",
    )
    rows = [
        {
            "epoch": one.epoch,
            "complete trials": one.trials,
            "ρ with the end": None if one.correlation is None else f"{one.correlation:.2f}",
            "stopped here": one.stopped,
            "ahead of one let through": one.ahead,
            "ahead of the later best": one.ahead_of_best,
        }
        for one in found
        if one.epoch in rungs or one.stopped
    ]
    if rows:
        blocks.append(Table(pandas.DataFrame(rows).astype(object).where(lambda frame: frame.notna(), None)))
    if any(one.stopped for one in found):
        blocks.append(
            Text(
                "Read ρ with care: the stopped trials are not in it. Those let through are alike, which lowers it; "
                "those that would have caught up late are missing, which raises it.",
                note=True,
            )
        )
    return blocks


def _curves(ledger: Ledger) -> list[Block]:
    blocks = _charts(lambda: report_figures.curves(ledger), "No trial reported an epoch.")
    if isinstance(blocks[0], Charts):
        note = "Blue: ran to the end. Orange: stopped early. Red: failed. Dashed: the baselines."
        if (count := len(report_figures.with_curves(ledger))) > report_figures.DRAWN_CURVES:
            note += f" Of {count} trials {report_figures.DRAWN_CURVES} are drawn, evenly chosen, and the best."
        blocks.append(Text(note, note=True))
    return blocks


def _picture(facts: Facts, name: str) -> str | None:
    """A picture's name if the study has it: one that was interrupted has none yet."""
    return name if (facts.folder / name).exists() else None


def _drawn(study: "optuna.Study | None", make: Callable, empty: str, picture: str | None = None) -> list[Block]:
    return [Text(NO_JOURNAL, note=True)] if study is None else _charts(make, empty, picture)


def _charts(make: Callable, empty: str, picture: str | None = None) -> list[Block]:
    """What a function of `report_figures` draws, or why it is not there."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Optuna's experimental functions, and of what it leaves out
            made = make()
    except Exception as error:  # plots and evaluators fail in many ways on odd studies; the report goes on without
        return [Text(f"This could not be drawn: {type(error).__name__}: {error}", note=True)]
    figures = made if isinstance(made, list) else [made] if made is not None else []
    return [Charts(figures, picture)] if figures else [Text(empty, note=True)]
