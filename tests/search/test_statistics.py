"""The final's figures against hand-made oracles; the records are what a study writes."""

import math

import numpy as np
import pytest
from scipy import stats

from search.final import (
    BETTER,
    NONE,
    WORSE,
    best_record,
    comparisons,
    entrants,
    final_frame,
    winner,
)
from search.final_sentence import sentence
from search.ledger import Ledger, TrialRecord
from search.statistics import holm, paired, pooled, summary

TOP1 = {"val/top1": True}


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path)


def add(ledger, trial_id, role, value, test=None, *, of="", seed=0, state="complete", objectives=TOP1, right=None):
    """A record whose one epoch has these values; `right`: which of the test images it classifies right."""
    record = TrialRecord(trial_id, role, {"epochs": 1, "seed": seed}, {}, dict(objectives), of=of)
    metric = next(iter(objectives))
    record.add({"epoch": 1, metric: value, **({metric.replace("val/", "test/"): test} if test is not None else {})})
    record.finish("it broke" if state == "failed" else None)
    ledger.save(record)
    if right is not None:
        target = np.zeros(len(right), dtype=np.int64)
        np.savez(ledger.trial_folder(trial_id) / "test.npz", target=target, predicted=1 - np.asarray(right, dtype=int))
    return record


def final(ledger, of, role, holdout, test, **options):
    """A trial or baseline and its runs of the final, one a seed."""
    add(ledger, of, role, 50.0, **options)
    for seed, (value, tested) in enumerate(zip(holdout, test, strict=True), 1):
        add(ledger, f"{of}-seed{seed}", "finalist", value, tested, of=of, seed=seed, **options)


def test_a_summary_is_students():
    values = [91.0, 92.5, 93.0, 90.5]
    found = summary(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (found.count, found.mean) == (4, pytest.approx(91.75))
    assert found.deviation == pytest.approx(np.std(values, ddof=1))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert summary([3.0]).deviation is None and summary([3.0]).low is None


def test_holms_correction_is_the_papers():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([None, 0.02]) == [None, 0.02], "what was not tested is not counted"
    assert holm([]) == []


def test_the_winner_is_chosen_on_the_holdout(ledger):
    final(ledger, "0", "trial", [90, 91, 92], [95, 95, 95])
    final(ledger, "1", "trial", [93, 92, 94], [80, 80, 80])
    assert winner(ledger).of == "1" and best_record(ledger).trial_id == "1"


def test_without_a_final_the_searchs_best_is_recommended(ledger):
    add(ledger, "0", "trial", 90.0)
    add(ledger, "1", "trial", 91.0)
    assert winner(ledger) is None and best_record(ledger).trial_id == "1"
    assert sentence(ledger, ledger.folder, 100) is None and final_frame(ledger, ledger.folder).empty


def test_a_difference_that_is_shown(ledger):
    final(ledger, "0", "trial", [95, 95, 95], [94.0, 95.0, 94.5])
    final(ledger, "kd", "baseline", [90, 90, 90], [90.0, 91.1, 90.4])
    final(ledger, "scratch", "baseline", [80, 80, 80], [94.1, 94.8, 94.6])
    kd, scratch = comparisons(ledger, ledger.folder)
    # Between the seeds the differences to kd vary by 0.01, to scratch by 0.03, and of those two by 0.07.
    half = math.sqrt((0.01 + 0.03 + 0.07) / 3 / 3)
    assert kd.p == pytest.approx(2 * 2 * stats.t.sf(4.0 / half, 4)) and scratch.p == pytest.approx(1.0)
    assert kd.high - kd.difference == pytest.approx(stats.t.ppf(0.975, 4) * half)
    assert (kd.verdict, scratch.verdict) == (BETTER, NONE)
    assert kd.difference == pytest.approx(4.0) and kd.low < 4.0 < kd.high
    text = sentence(ledger, ledger.folder, 359)
    assert text.startswith("On the test split (359 images), over 3 seeds, trial 0 reaches test/top1 94.50 ± 0.50: ")
    assert "it is better than kd by 4.00 points (95% CI +3.69 to +4.31, p 7e-06" in text
    assert "no difference from scratch is shown (+0.00 points" in text


def test_a_winner_that_loses_says_so(ledger):
    final(ledger, "0", "trial", [95, 95], [80.0, 80.1])
    final(ledger, "kd", "baseline", [90, 90], [90.0, 90.2])
    (found,) = comparisons(ledger, ledger.folder)
    assert found.verdict == WORSE and found.p == pytest.approx(stats.ttest_rel([80.0, 80.1], [90.0, 90.2]).pvalue)
    assert "it is worse than kd by 10.05 points" in sentence(ledger, ledger.folder, None)


def test_seeds_that_agree_by_chance_prove_nothing(ledger):
    final(ledger, "0", "trial", [95, 95], [80.0, 81.0])
    final(ledger, "kd", "baseline", [90, 90], [70.0, 71.0])
    (found,) = comparisons(ledger, ledger.folder)
    assert (found.p, found.verdict) == (None, NONE)


def test_the_error_has_the_seeds_and_the_images(ledger):
    """Beside the sum of both variances by hand, with Satterthwaite's degrees of freedom."""
    random = np.random.default_rng(0)
    right = {name: random.random((3, 50)) < share for name, share in (("0", 0.9), ("kd", 0.8))}
    for name, role in (("0", "trial"), ("kd", "baseline")):
        add(ledger, name, role, 50.0)
        for seed, mine in enumerate(right[name], 1):
            add(ledger, f"{name}-seed{seed}", "finalist", 90.0, 100 * mine.mean(), of=name, seed=seed, right=mine)
    (found,) = comparisons(ledger, ledger.folder)
    gaps = 100 * (right["0"].astype(float) - right["kd"])
    parts = [(gaps.mean(1).var(ddof=1) / 3, 2), (gaps.mean(0).var(ddof=1) / 50, 49)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    t = stats.t(freedom)
    assert found.difference == pytest.approx(gaps.mean())
    assert found.p == pytest.approx(2 * t.sf(gaps.mean() / np.sqrt(variance)))
    assert found.high - found.difference == pytest.approx(t.ppf(0.975) * np.sqrt(variance))


@pytest.mark.parametrize(("seeds", "images", "spread"), [(2, 2000, 2.0), (2, 300, 0.3), (3, 300, 0.3), (3, 2000, 2.0)])
def test_equal_models_differ_in_one_study_of_twenty(seeds, images, spread):
    """The test's level, whichever of seeds and images moves the figures more; 5% and what 400 draws leave open."""
    random, shown = np.random.default_rng(seeds * images), 0
    for _ in range(400):
        common = random.normal(0, 20, images)  # what the images favour, in every seed
        by_image = [common + random.normal(0, 25, images) + random.normal(0, spread) for _ in range(seeds)]
        shown += paired([one.mean() for one in by_image], by_image).p < 0.05
    assert shown / 400 <= 0.085


def test_more_models_tell_how_much_seeds_matter():
    models = [[90.0, 92.0, 91.0], [85.0, 86.0, 88.0], [80.0, 84.0, 79.0]]
    variance, freedom = pooled(models)
    pairs = ((0, 1), (0, 2), (1, 2))
    by_hand = np.mean([np.var(np.subtract(models[one], models[other]), ddof=1) for one, other in pairs])
    assert (variance, freedom) == (pytest.approx(by_hand), 4)
    assert pooled(models[:2]) is None and pooled([[1.0]] * 3) is None
    agreeing = [4.0, 4.01, 4.02]
    assert paired(agreeing).p < 1e-4 < paired(agreeing, spread=(variance, freedom)).p


def test_seeds_that_agree_by_chance_are_no_proof_for_many_images():
    random = np.random.default_rng(0)
    by_image = [random.normal(2.0, 30.0, 10_000) for _ in range(2)]
    by_image[1] += by_image[0].mean() - by_image[1].mean() + 0.3  # the seeds' means are that close to one another
    found = paired([one.mean() for one in by_image], by_image)
    assert found.p > 0.01, "two seeds have one degree of freedom, however many images there are"


def test_two_seeds_that_agree_by_chance_have_no_short_interval():
    images = [np.array([100.0] * 60 + [-100.0] * 20 + [0.0] * 20)] * 2
    found = paired([40.0, 40.01], images, (4.0, 5))
    alone = stats.ttest_1samp([40.0, 40.01], 0.0)
    assert found.p == pytest.approx(alone.pvalue)
    assert found.high - found.low > 10 > alone.confidence_interval().high - alone.confidence_interval().low


def test_what_is_equal_has_no_difference(ledger):
    final(ledger, "0", "trial", [95, 95], [80.0, 81.0])
    final(ledger, "kd", "baseline", [90, 90], [80.0, 81.0])
    (found,) = comparisons(ledger, ledger.folder)
    assert (found.p, found.verdict, found.difference) == (1.0, NONE, 0.0)


def test_one_seed_tests_nothing(ledger):
    """Two networks of one configuration differ by more than their images tell."""
    add(ledger, "0", "trial", 50.0)
    add(ledger, "0-seed1", "finalist", 95.0, 90.0, of="0", seed=1, right=[True] * 90 + [False] * 10)
    add(ledger, "kd", "baseline", 50.0)
    add(ledger, "kd-seed1", "finalist", 90.0, 77.0, of="kd", seed=1, right=[True] * 77 + [False] * 23)
    (found,) = comparisons(ledger, ledger.folder)
    assert (found.p, found.low, found.verdict, found.difference) == (None, None, NONE, 13.0)
    text = sentence(ledger, ledger.folder, 100)
    assert "no difference from kd is shown (+13.00 points, nothing could be tested)" in text
    assert text.endswith("--set seeds=3 does.")


def test_smaller_may_be_better(ledger):
    nll = {"val/loss": False}
    final(ledger, "0", "trial", [0.3, 0.3, 0.3], [0.31, 0.30, 0.32], objectives=nll)
    final(ledger, "1", "trial", [0.5, 0.5, 0.5], [0.1, 0.1, 0.1], objectives=nll)
    final(ledger, "kd", "baseline", [0.4, 0.4, 0.4], [0.51, 0.49, 0.52], objectives=nll)
    assert winner(ledger).of == "0"
    (found,) = comparisons(ledger, ledger.folder)
    assert found.verdict == BETTER and found.difference < 0
    assert "it is better than kd by 0.197 (95% CI -" in sentence(ledger, ledger.folder, 10)


def test_any_finalist_might_have_won_so_all_pairs_are_corrected_for(ledger):
    final(ledger, "0", "trial", [95, 95, 95], [94.0, 95.0, 94.5])
    final(ledger, "1", "trial", [94, 94, 94], [90.0, 91.2, 90.5])
    final(ledger, "kd", "baseline", [90, 90, 90], [90.0, 91.1, 90.4])
    (found,) = comparisons(ledger, ledger.folder)
    assert found.pairs == 2 and found.p == pytest.approx(
        2 * stats.ttest_rel([94.0, 95.0, 94.5], [90.0, 91.1, 90.4]).pvalue
    )


def test_one_lucky_seed_does_not_win_over_three(ledger):
    final(ledger, "0", "trial", [90, 91, 92], [90.0, 90.5, 91.0])
    final(ledger, "1", "trial", [99], [99.0])
    for seed in (2, 3):
        add(ledger, f"1-seed{seed}", "finalist", math.nan, of="1", seed=seed, state="failed")
    assert winner(ledger).of == "0"
    assert final_frame(ledger, ledger.folder).name.tolist() == ["trial 0 (best)", "trial 1, 2 failed"]


def test_a_better_trial_with_fewer_seeds_wins_where_it_has_half_as_many(ledger):
    """An extended study may ask for fewer seeds, and a budget may leave a finalist one short."""
    final(ledger, "8", "trial", [63, 64, 64], [63, 63, 63])
    final(ledger, "15", "trial", [73, 74], [73, 74])
    final(ledger, "16", "trial", [99], [99])
    assert winner(ledger).of == "15"
    text = sentence(ledger, ledger.folder, None)
    assert "over 2 seeds, trial 15 reaches" in text and "no baseline was asked for" in text
    assert text.endswith("Better on the holdout, but of too few runs to be taken: trial 16's 99.00 over 1 seed.")


def test_a_finalist_that_failed_once_does_not_win_and_is_told(ledger):
    final(ledger, "0", "trial", [90, 91, 92], [90, 90, 90])
    final(ledger, "1", "trial", [95, 95], [95, 95])
    add(ledger, "1-seed3", "finalist", 0.0, of="1", seed=3, state="failed")
    final(ledger, "kd", "baseline", [80, 81, 82], [80, 80, 80])
    assert winner(ledger).of == "0"
    assert "to be taken: trial 1's 95.00 over 2 seeds. Runs that" in sentence(ledger, ledger.folder, None)


def test_a_run_under_way_did_not_fail(ledger):
    final(ledger, "0", "trial", [90, 91], [90.0, 90.5])
    record = TrialRecord("0-seed3", "finalist", {"epochs": 9, "seed": 3}, {}, TOP1, of="0")
    ledger.save(record)
    (one,) = entrants(ledger)
    assert (one.failed, one.unfinished) == (0, 1)
    assert "not complete" in final_frame(ledger, ledger.folder).name[0]


def test_a_searched_student_is_compared_with_its_own_baselines(ledger):
    """Trial 4's student is not the study's; the baseline was trained with both."""
    for of, role, student, tested in (
        ("4", "trial", "small", [80.0, 81.0]),
        ("5", "trial", "large", [85.0, 85.5]),
        ("kd", "baseline", "large", [84.0, 84.2]),
    ):
        final(ledger, of, role, [80 + (of == "4"), 80 + (of == "4")], tested)
        for name in (of, f"{of}-seed1", f"{of}-seed2"):
            ledger.records[name].config |= {"student": student, "student_kwargs": {}}
    for seed, value in ((1, 70.0), (2, 70.5)):
        add(ledger, f"kd-as-4-seed{seed}", "finalist", 70.0, value, of="kd", seed=seed)
        ledger.records[f"kd-as-4-seed{seed}"].config |= {"student": "small", "student_kwargs": {}}
    (found,) = comparisons(ledger, ledger.folder)
    assert winner(ledger).of == "4" and found.baseline.name == "kd (student of trial 4)"
    assert found.difference == pytest.approx(10.25) and found.pairs == 2
    table = final_frame(ledger, ledger.folder).set_index("name")
    assert table.loc["kd (student of trial 4)", "best is"].startswith("+10.25") and table.loc["kd", "best is"] is None


def test_a_rival_that_was_not_tuned_is_named_so(ledger):
    final(ledger, "0", "trial", [95, 95], [90.0, 90.0])
    final(ledger, "kd", "baseline", [90, 90], [80.0, 80.0])
    for number in "12":
        add(ledger, number, "trial", 40.0)
    assert "kd ran as given (--set tune_baselines=N searches)" in sentence(ledger, ledger.folder, 9)
    add(ledger, "kd-1", "baseline", 92.0, of="kd")
    assert sentence(ledger, ledger.folder, 9).endswith("The search tried 3 configurations of it, 2 of kd.")
    add(ledger, "kd-2", "baseline", 92.0, of="kd")
    assert sentence(ledger, ledger.folder, 9).endswith("nothing could be tested).")


def test_what_earlier_studies_gave_the_search_is_told_where_the_counts_are_equal_too(ledger):
    final(ledger, "0", "trial", [95, 95], [90.0, 90.0])
    final(ledger, "kd", "baseline", [90, 90], [80.0, 80.0])
    said = " The search for it began with what 12 trials of pat and trials of old had found."
    assert sentence(ledger, ledger.folder, 9, {"pat": 12, "old": None}).endswith(f"nothing could be tested).{said}")
    assert "began with what 1 trial of pat had" in sentence(ledger, ledger.folder, 9, {"pat": 1})


def test_failed_runs_are_left_out_in_pairs_and_told(ledger):
    final(ledger, "0", "trial", [95, 96, 97], [90.0, 91.0, 92.0])
    final(ledger, "kd", "baseline", [90, 91], [80.0, 83.0])
    add(ledger, "kd-seed3", "finalist", math.nan, of="kd", seed=3, state="failed")
    (found,) = comparisons(ledger, ledger.folder)
    assert found.seeds == 2 and found.difference == pytest.approx(9.0)
    assert sentence(ledger, ledger.folder, 9).endswith("Runs that did not complete are left out: 1 of kd.")
    assert "kd, 1 failed" in list(final_frame(ledger, ledger.folder).name)


def test_a_difference_over_some_of_the_seeds_says_so(ledger):
    """A budget that cuts the final may leave a baseline fewer seeds: the means' difference is another one then."""
    final(ledger, "0", "trial", [95, 96, 97], [50.0, 55.0, 60.0])
    final(ledger, "kd", "baseline", [90, 91], [49.0, 53.0])
    final(ledger, "scratch", "baseline", [90, 91, 92], [40.0, 40.0, 40.0])
    text = sentence(ledger, ledger.folder, 9)
    assert "no difference from kd is shown (+1.50 points over the 2 seeds that both have, " in text
    assert "no difference from scratch is shown (+15.00 points, " in text
    table = final_frame(ledger, ledger.folder).set_index("name")["best is"]
    assert table["kd"].startswith("+1.50 over 2 seeds, ") and table["scratch"].startswith("+15.00, ")


def test_a_tuned_baseline_stands_for_itself_with_its_best_configuration(ledger):
    final(ledger, "0", "trial", [95, 95], [90.0, 90.0])
    final(ledger, "kd", "baseline", [90, 90], [80.0, 80.0])
    add(ledger, "kd-2", "baseline", 92.0, of="kd")
    for seed in (1, 2):
        add(ledger, f"kd-2-seed{seed}", "finalist", 93.0, 85.0 + seed, of="kd-2", seed=seed)
    assert [one.name for one in entrants(ledger)] == ["trial 0", "kd (tuned: kd-2)"]
    table = final_frame(ledger, ledger.folder).set_index("name")
    assert table.loc["trial 0 (best)", "test/top1"] == "90.00 ± 0.00"
    assert table.loc["kd (tuned: kd-2)", "test/top1"] == "86.50 ± 0.71"
