"""Learning curves in place of training."""

import math
import random

import numpy as np
import pytest

from search.curves import Recorded, check_curve, check_curves, make_curves
from search.landscape import AXES, CEILING, Synthetic
from search.ledger import Ledger, TrialRecord
from search.objective import KNOWN, Objective, parse_objectives
from search.study import Scale, Study
from search.virtual import study_parts
from spaces import parts
from tests.search.test_schedulers import settings
from trainables.errors import InputError

TOP1 = [Objective("val/top1", True)]


@pytest.fixture(scope="module")
def drawn():
    """Random trials of the spaces' own search function, as (configuration, parameters)."""
    space, compose = study_parts(settings(), Study(space=parts.search_ofa, scales={"embedded": Scale()}))
    return [(compose(fields), params) for params, fields in space.samples(60, 0)]


def test_a_curve_repeats_and_depends_on_configuration_seed_and_variant(drawn):
    (config, params), (other, other_params) = drawn[:2]
    curve = Synthetic()(config, params, 9, 0)
    assert curve == Synthetic()(config, params, 9, 0)
    assert curve != Synthetic()(config, params, 9, 1)
    assert curve != Synthetic()(other, other_params, 9, 0)
    assert curve != Synthetic(variant=1)(config, params, 9, 0)


def test_a_curve_is_whole_and_within_bounds(drawn):
    for variant in range(3):
        for config, params in drawn:
            curve = Synthetic(variant=variant)(config, params, 9, 0)
            assert [entry["epoch"] for entry in curve] == list(range(1, 10))
            check_curve(curve, 9, [Objective(metric, maximize) for metric, (_, maximize) in KNOWN.items()])
            shares = [value for entry in curve for key, value in entry.items() if key.startswith(("val/", "best/"))]
            assert all(0 <= value <= 100 for value in shares)


def test_nothing_is_above_the_optimum_and_the_optimum_is_reached(drawn):
    for variant in range(5):
        landscape = Synthetic(variant=variant)
        assert max(landscape.final(config, params) for config, params in drawn) < CEILING
        place = dict(zip(AXES, landscape.best_place, strict=True))
        stages = landscape.best_stages
        place["ofa_loss_weight"] -= 0.08 * (len(stages) - 2.5)

        def value(name, share):
            axis = AXES[name]
            return axis.low * (axis.high / axis.low) ** share if axis.log else axis.low + share * (axis.high - axis.low)

        best = {name: value(name, place[name]) for name in AXES if name not in ("lr", "weight_decay")}
        eps = [value("eps", place["eps"] + landscape._eps_offsets[stage - 1]) for stage in stages] + [best["eps"]]
        config = {**drawn[0][0], **best, "stages": stages, "eps": eps}
        assert landscape.final(config, {}) == pytest.approx(CEILING, abs=1e-9)


def test_early_ranks_partly_mislead(drawn):
    correlations = []
    for variant in range(10):
        curves = [Synthetic(variant=variant)(config, params, 36, 0) for config, params in drawn]
        third, last = ([curve[at]["val/top1"] for curve in curves] for at in (11, 35))
        correlations.append(np.corrcoef(np.argsort(np.argsort(third)), np.argsort(np.argsort(last)))[0, 1])
    assert 0.4 < np.mean(correlations) < 0.8


def test_a_related_pair_is_alike_but_not_equal(drawn):
    here, there, elsewhere = (
        [landscape.final(config, params) for config, params in drawn]
        for landscape in (Synthetic(), Synthetic(shift=0.1), Synthetic(variant=1))
    )
    assert here != there
    assert np.corrcoef(here, there)[0, 1] > max(0.5, np.corrcoef(here, elsewhere)[0, 1])


def test_an_unknown_parameter_has_a_mild_effect(drawn):
    config, params = drawn[0]
    finals = [Synthetic().final(config, {**params, "of_my_own": value}) for value in (0.1, 1, 10, "a", "b", True)]
    assert len(set(finals)) > 3 and max(finals) - min(finals) <= 1.0


def recorded(folder, *trials, role="trial", epochs=3, distiller="ofa", of=""):
    """A ledger with complete runs of these parameters, whose curves end at 10, 20, …"""
    ledger = Ledger(folder)
    for number, params in enumerate(trials):
        config = {"epochs": epochs, "distiller": distiller, "temperature": 1.0 + number}
        record = TrialRecord(f"{role}{distiller}{of}{number}", role, config, params, of=of)
        for epoch in range(1, epochs + 1):
            record.add({"epoch": epoch, "val/top1": 10.0 * (number + 1) * epoch / epochs, "test/top1": 1.0})
        record.finish()
        ledger.save(record)
    return ledger


def test_the_nearest_recorded_trial_gives_its_curve(tmp_path):
    ledger = recorded(tmp_path, {"a": 0.0, "t": 0.01}, {"a": 1.0, "t": 1.0}, {"a": 0.0, "t": 1.0, "b": True})
    curves = Recorded(ledger, "s")
    curve = curves({}, {"a": 0.1, "t": 0.02}, 3, 0)
    assert [entry["val/top1"] for entry in curve] == pytest.approx([10 / 3, 20 / 3, 10])
    assert curves.nearest({}, {"a": 0.9, "t": 0.7}).trial_id == "trialofa1"
    assert curves.nearest({}, {"a": 0.9, "t": 0.9, "b": True}).trial_id == "trialofa2"  # a missing choice counts 1
    assert curves.distance({"t": 0.01}, {"t": 0.1}) == pytest.approx(0.5)  # over the logarithm
    assert "test/top1" not in curve[-1]


def test_a_run_gets_a_curve_of_its_own_distiller(tmp_path):
    """A baseline that is tuned has parameters as a trial has, and is still no trial of OFA-KD."""
    recorded(tmp_path, {"lr": 1.0})
    recorded(tmp_path, {}, {}, role="baseline", distiller="kd")
    curves = Recorded(recorded(tmp_path, {}, role="baseline"), "s")

    def taken(distiller, params, **config):
        return curves.nearest({"distiller": distiller, **config}, params).trial_id

    assert taken("kd", {"lr": 1.0}) == taken("kd", {}) == taken("kd", {}, temperature=1.0) == "baselinekd0"
    assert taken("kd", {}, temperature=2.0) == "baselinekd1", "of two baselines the one with this configuration"
    assert taken("ofa", {}) == "baselineofa0" and taken("ofa", {"lr": 9.0, "a": 1, "b": 2}) == "trialofa0"
    with pytest.raises(LookupError, match="study 's' has no complete run of distiller dkd"):
        curves({"distiller": "dkd"}, {"lr": 1.0}, 3, 0)

    recorded(tmp_path, {"lr": 0.1}, {"lr": 2.0}, role="baseline", distiller="kd", of="kd")
    curves = Recorded(Ledger(tmp_path), "s")
    assert taken("kd", {"lr": 1.5}) == "baselinekdkd1" and taken("kd", {}) == "baselinekd0"


def test_a_replay_says_what_it_is_and_refuses_baselines_that_were_not_recorded(tmp_path):
    recorded(tmp_path, {"a": 1.0})
    curves = Recorded(recorded(tmp_path, {}, role="baseline", distiller="kd"), "s")
    assert "study s is replayed" in curves.replayed({"kd": "kd", "mine": "ofa"}) and "0" in curves.replayed({})
    with pytest.raises(InputError) as refused:
        curves.replayed({"scratch": "none", "kd": "kd"})
    assert refused.value.problems == [
        "baselines: study 's', which is replayed, has no complete run of 'scratch''s distiller, none; "
        "leave it out: --set baselines=[kd]"
    ]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "simulate: 'nowhere' is no study in"),
        ("empty", "study 'empty' has no complete trial"),
        ("no.such.module:f", "cannot be imported: ModuleNotFoundError"),
        ("math:nothing", "cannot be imported: AttributeError"),
        ("math:pi", "'math:pi' is a float; give a function"),
    ],
)
def test_a_source_that_is_none_is_refused(tmp_path, name, said):
    (tmp_path / "empty" / "trials").mkdir(parents=True)
    with pytest.raises(InputError, match="simulate") as refused:
        make_curves(name, tmp_path)
    assert said in str(refused.value)


def test_a_longer_trial_than_was_recorded_is_refused(tmp_path):
    with pytest.raises(InputError, match="give --epochs 3 or less"):
        Recorded(recorded(tmp_path, {"a": 1.0}), "s")({}, {"a": 1.0}, 4, 0)


def test_curves_that_cannot_serve_are_refused():
    trials = [({"epochs": 2, "seed": 0}, {})]
    good = [{"val/top1": 1.0}] * 2
    check_curves(lambda *_: good, trials, TOP1)
    for curve, said in ((good[:1], "has 1 epochs"), (1.0, "must be a list"), ([{}, {}], "has no 'val/top1'")):
        with pytest.raises(InputError, match=said):
            check_curves(lambda *_, curve=curve: curve, trials, TOP1)
    for value, said in ((None, "is None in epoch 2"), ("77", "is '77' in epoch 2"), (True, "is True in epoch 2")):
        with pytest.raises(InputError, match=f"'val/top1' {said}; give a number"):
            check_curves(lambda *_, value=value: [good[0], {"val/top1": value}], trials, TOP1)
        with pytest.raises(InputError, match=f"'val/loss' {said}; give a number"):
            check_curve([good[0], {"val/top1": 1.0, "val/loss": value}], 2, TOP1)
    with pytest.raises(InputError, match="no 'val/top1' in epoch 1, which objectives name; add it at every epoch"):
        check_curve([{}, good[0]], 2, TOP1)
    with pytest.raises(InputError, match="3 in epoch 1 is no metric's name"):
        check_curve([{**good[0], 3: 1.0}, good[0]], 2, TOP1)
    with pytest.raises(InputError, match="no 'val/mine'"):
        check_curves(lambda *_: good, trials, parse_objectives(["val/top1", "mine"], ["m:mine"]))
    with pytest.raises(InputError, match="no curve for any of 1 drawn trials: ZeroDivisionError"):
        check_curves(lambda *_: 1 / 0, trials, TOP1)


def test_numbers_of_all_kinds_are_numbers_and_costs_are_told_once():
    cost = Objective("cost/student_params", False)
    first = {"val/top1": np.float32(1.0), "cost/student_params": 3, "note": "of my own"}
    check_curve([first, {"val/top1": math.nan}, {"val/top1": np.int64(2)}], 3, [*TOP1, cost])
    with pytest.raises(InputError, match=r"no 'cost/student_params' in epoch 1, which objectives name; add it$"):
        check_curve([{"val/top1": 1.0}, first], 2, [*TOP1, cost])


def test_some_trials_may_fail():
    def curves(config, params, epochs, seed):
        return [{"val/top1": 1.0}] * epochs if params["fine"] else 1 / 0

    trials = [({"epochs": 1, "seed": 0}, {"fine": fine}) for fine in (False, True)]
    check_curves(curves, trials, TOP1)


def test_the_global_generators_are_left_alone(drawn):
    random.seed(0), np.random.seed(0)
    before = random.getstate(), np.random.get_state()[2]
    Synthetic()(*drawn[0], 5, 0)
    assert (random.getstate(), np.random.get_state()[2]) == before
