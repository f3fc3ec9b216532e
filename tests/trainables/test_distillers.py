import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from pydantic import ValidationError

from trainables.config import TrialConfig
from trainables.distillers import DISTILLERS, distillers_of, hyperparameters, suggest
from trainables.distillers.base import Distiller, register
from trainables.distillers.conformance import check

NAMES = ["none", "kd", "dkd", "dist", "fitnet", "cc", "rkd", "crd", "ofa", "rsd", "rsd_logits"]


def make(**fields):
    return TrialConfig(**({"teacher": "t", "student": "s", "epochs": 1} | fields))


def test_the_papers_baselines_and_more_are_there():
    assert set(NAMES) == set(DISTILLERS)


@pytest.mark.parametrize("name", NAMES)
def test_it_conforms(name):
    check(DISTILLERS[name])


class Broken(Distiller):
    name, title = "broken", "a distiller that misses a check"
    weights = {"kd": "kd_loss_weight"}
    ranges = DISTILLERS["kd"].ranges
    common = DISTILLERS["kd"].common

    def terms(self, config, step, module):
        gap = torch.softmax(step.student.logits, 1) - torch.softmax(step.teacher.logits, 1)
        return {"kd": gap.log().square().mean()}  # no logarithm of a difference


def test_a_broken_distiller_does_not_conform(monkeypatch):
    monkeypatch.setitem(DISTILLERS, "broken", Broken())
    with pytest.raises(AssertionError, match="kd is nan"):
        check(Broken())
    with pytest.raises(ValueError, match="there is a distiller 'broken' already"):
        register(Broken)


@pytest.mark.parametrize("name", [*NAMES, "ofa+rsd", "ofa+fitnet", "kd+rkd"])
def test_its_ranges_make_valid_trials(name):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(20):
        trial = study.ask()
        config = make(**suggest(trial, name))
        assert config.distiller == name
        assert set(trial.params) == {f"{field}@{name}" for one in distillers_of(name) for field in one.ranges}


def test_declarations_load_no_torch():
    code = "import sys, trainables.distillers, trainables.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("offa", "there is no distiller 'offa'; did you mean ofa"),
        ("zzz", "there are cc, crd"),
        ("ofa+rsdd", "did you mean rsd"),
        ("ofa+ofa", "names a distiller twice"),
        ("none+kd", "goes with no other"),
        ("ofa+kd", "ofa and kd all compare the final logits; give one of them"),
    ],
)
def test_names_that_make_no_sense(name, text):
    with pytest.raises(ValidationError, match=text):
        make(distiller=name)


@pytest.mark.parametrize("option", ["logit_standardization", "curriculum_temperature"])
def test_options_that_a_distiller_lacks_are_refused(option):
    assert getattr(make(distiller="ofa+rsd", **{option: True}), option)
    with pytest.raises(ValidationError, match=f"{option}: distiller dist has no such option; .*kd.* have"):
        make(distiller="dist", **{option: True})


def test_what_a_trial_reads():
    assert hyperparameters("none") == set()
    assert hyperparameters("ofa+rsd") >= {"eps", "ofa_loss_weight", "rsd_kappa", "temperature"}
    assert "dkd_alpha" not in hyperparameters("ofa+rsd")


def test_a_trial_must_learn_from_something():
    weights = {"gt_loss_weight": 0.0, "rsd_loss_weight": 0.0}
    assert make(distiller="ofa+rsd", **weights)
    with pytest.raises(ValidationError, match="gt_loss_weight, rsd_loss_weight must not all be 0"):
        make(distiller="rsd", **weights)
