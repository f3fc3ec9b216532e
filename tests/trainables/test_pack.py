"""Trials packed into one process: each is to the bit what it is alone, whoever keeps it company."""

import threading

import pytest
import timm
import torch
from safetensors.torch import load_file

from tests.conftest import TINY
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.errors import InputError
from trainables.feed import Feed
from trainables.loop import STUDENT, run_trial
from trainables.pack import Pack, Packed
from trainables.teacher import WEIGHTS
from trainables.teacher_job import prepare_teacher

CLOCK = ("time/", "cost/latency", "teacher/stored")  # and who came first to the teacher's answers
DROPPING = {"epochs": 2, "drop": 0.2, "drop_path": 0.2}
COMPANY = {
    "ofa": {},
    "lr": {"lr": 5e-3, "clip_grad": 1.0, "model_ema": True, "model_ema_decay": 0.9},
    "kd": {"distiller": "kd", "stages": [], "eps": 1.0, "temperature": 4.0},
    "none": {"distiller": "none", "stages": [], "eps": 1.0},
    "crd": {"distiller": "crd", "stages": [], "eps": 1.0},
    "mixed": {"mixup": 0.8, "opt": "sgd"},
}


@pytest.fixture(scope="module")
def teacher_weights(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("teacher")
    context = RunContext(folder / "work", lambda _: True)
    recipe = {"epochs": 2, "batch_size": 64, "hflip": 0.0}
    prepare_teacher(TrialConfig(**TINY), recipe, Assets(), context, folder / "kept")
    return folder / "kept" / WEIGHTS


@pytest.fixture
def assets(teacher_weights, tmp_path):
    return Assets(teacher_weights=teacher_weights, teacher_store=str(tmp_path / "store"))


def told(metrics):
    return {name: value for name, value in metrics.items() if not name.startswith(CLOCK)}


def alone(config, assets, folder, until=None, device="cpu"):
    """A trial's reports."""
    reports = []

    def report(metrics):
        reports.append(told(metrics))
        return metrics["epoch"] != until

    run_trial(config, assets, RunContext(folder, report, device=device))
    return reports


class Company:
    """A pack whose trials' reports and ends are kept by name."""

    def __init__(self, assets, folder, device="cpu"):
        self.pack, self._folder, self._device = Pack(assets, size=8), folder, device
        self.reports, self.errors, self._waiting = {}, {}, []

    def add(self, name, config, answer=lambda metrics: True, known_epoch=0):
        def report(metrics):
            self.reports.setdefault(name, []).append(told(metrics))
            return answer(metrics)

        ended = lambda error: self.errors.update({name: error})  # noqa: E731
        context = RunContext(self._folder / name, report, device=self._device)
        self._waiting.append(Packed(config, context, known_epoch, False, ended))

    def begin(self):
        self.pack.begin(self._waiting)
        self._waiting = []

    def train(self, until=lambda: False):
        self.begin()
        while len(self.pack) and not until():
            self.pack.advance()


@pytest.fixture
def company(assets, tmp_path):
    return Company(assets, tmp_path / "packed")


def weights(folder):
    return load_file(folder / STUDENT)


def assert_alike(first, second):
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_trial_is_to_the_bit_what_it_is_alone(tiny, assets, company, tmp_path):
    configs = {name: tiny(**DROPPING | fields) for name, fields in COMPANY.items()}
    for name, config in configs.items():
        company.add(name, config)
    company.train()
    assert company.errors == dict.fromkeys(configs)
    for name, config in configs.items():
        assert company.reports[name] == alone(config, assets, tmp_path / "alone" / name), name
        assert_alike(tmp_path / "packed" / name, tmp_path / "alone" / name)
    assert not list((tmp_path / "packed").glob("*/checkpoint*")), "what only served to go on is removed"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_too_where_training_is_deterministic(tiny, teacher_weights, tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    assets = Assets("cuda", teacher_weights, str(tmp_path / "store"))
    steady = DROPPING | {"epochs": 3, "deterministic": True, "torchcompile": False}
    configs = {name: tiny(**steady | fields) for name, fields in COMPANY.items()}
    company = Company(assets, tmp_path / "packed", "cuda")
    for name, config in configs.items():
        company.add(name, config)
    company.train()
    assert company.errors == dict.fromkeys(configs)
    for name, config in configs.items():
        assert company.reports[name] == alone(config, assets, tmp_path / "alone" / name, device="cuda"), name


def test_what_reads_the_same_is_read_once(tiny, company, monkeypatch):
    read, epoch = [], Feed.epoch
    monkeypatch.setattr(Feed, "epoch", lambda feed, number, first: read.append(number) or epoch(feed, number, first))
    for name in ("ofa", "lr", "kd"):
        company.add(name, tiny(**DROPPING | COMPANY[name]))
    company.train()
    assert read == [0, 1] and {len(reports) for reports in company.reports.values()} == {2}


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 8}, {"hflip": 0.5}, {"teacher_store": "off"}])
def test_what_reads_otherwise_reads_for_itself(tiny, company, other, monkeypatch):
    read, epoch = [], Feed.epoch
    monkeypatch.setattr(Feed, "epoch", lambda feed, number, first: read.append(number) or epoch(feed, number, first))
    for name, fields in (("one", {}), ("other", other)):
        company.add(name, tiny(epochs=1, **fields))
    company.train()
    assert read == [0, 0]


def test_one_that_fails_ends_alone(tiny, assets, company, tmp_path):
    company.add("good", tiny(**DROPPING))
    company.add("bad", tiny(**DROPPING | {"lr": 1e30, "min_lr": 1e30}))
    company.add("unfit", tiny(student="nosuch_model"))
    company.train()
    assert company.errors["good"] is None and isinstance(company.errors["bad"], TrialFailure)
    assert isinstance(company.errors["unfit"], InputError)
    assert company.reports["good"] == alone(tiny(**DROPPING), assets, tmp_path / "alone")


def test_an_error_in_reading_ends_all_that_read_the_same(tiny, company, monkeypatch):
    def broken(feed, number):
        raise InputError("image a.png is broken")
        yield

    company.add("one", tiny())
    company.add("two", tiny(lr=1e-3))
    company.begin()
    monkeypatch.setattr(company.pack._cohorts[0], "_batches", broken(None, 0))
    company.train()
    assert [str(error) for error in company.errors.values()] == ["image a.png is broken"] * 2


def test_trials_come_and_go_without_changing_others(tiny, assets, company, tmp_path):
    """As early stopping has it: one is stopped, and another one begins while the rest goes on."""
    company.add("long", tiny(**DROPPING | {"epochs": 3}))
    company.add("stopped", tiny(**DROPPING | {"epochs": 3, "lr": 1e-3}), lambda metrics: metrics["epoch"] < 2)
    company.train(until=lambda: "stopped" in company.errors)
    assert len(company.pack) == 1
    company.add("late", tiny(**DROPPING | {"epochs": 3, "lr": 4e-3}))
    company.train()
    for name, lr, until in (("long", 2e-3, None), ("stopped", 1e-3, 2), ("late", 4e-3, None)):
        config = tiny(**DROPPING | {"epochs": 3, "lr": lr})
        assert company.reports[name] == alone(config, assets, tmp_path / "alone" / name, until), name


def test_one_that_was_cut_off_goes_on(tiny, assets, company, tmp_path):
    config = tiny(**DROPPING | {"epochs": 3})
    whole = alone(config, assets, tmp_path / "alone")
    alone(config, assets, tmp_path / "packed" / "cut", until=2)
    company.add("cut", config, known_epoch=1)
    company.add("fresh", config)
    company.train()
    assert company.reports == {"cut": whole[1:], "fresh": whole}
    assert_alike(tmp_path / "packed" / "cut", tmp_path / "alone")


def test_a_verdict_that_is_long_in_coming_keeps_no_other_waiting(tiny, company):
    told = threading.Event()
    company.add("waits", tiny(epochs=2), lambda metrics: told.wait(60))
    company.add("goes on", tiny(epochs=2, seed=1), lambda metrics: metrics["epoch"] < 2 or told.set() or True)
    company.train()
    assert company.errors == {"waits": None, "goes on": None}
    assert len(company.reports["waits"]) == 2, "its first verdict came"


class InPlace(torch.nn.Module):
    """A student that takes its images apart where they lie."""

    def __init__(self, **kwargs):
        super().__init__()
        self.model = timm.create_model(TINY["student"], **kwargs)
        self.pretrained_cfg = self.model.pretrained_cfg  # the same normalisation, so that it reads the same

    def forward(self, images):
        return self.model(images.mul_(0.5))


def in_place(num_classes, img_size, **_):
    return InPlace(num_classes=num_classes, img_size=img_size, **TINY["student_kwargs"])


def test_a_student_that_changes_its_images_leaves_the_others_theirs(tiny, assets, company, tmp_path):
    company.add("in place", tiny(epochs=2, distiller="kd", stages=[], eps=1.0, student=f"{__name__}:in_place"))
    company.add("other", tiny(epochs=2, lr=1e-3))
    company.begin()
    assert len(company.pack._cohorts) == 1
    company.train()
    assert company.errors == {"in place": None, "other": None}
    assert company.reports["other"] == alone(tiny(epochs=2, lr=1e-3), assets, tmp_path / "alone")
