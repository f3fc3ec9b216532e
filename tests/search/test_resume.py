import json
import os
import signal
import subprocess
import sys

import pytest

from search.resume import STARTED, as_before, began_with, check_same, comparable, remember, sole_session, what_stays
from search.settings import resolve
from search.study import Scale, Study
from tests.conftest import TINY
from tests.search.studies import ROOT
from trainables.errors import InputError

FIELDS = {key: value for key, value in TINY.items() if key not in ("stages", "eps")}
DATA = "0123456789abcdef"

HOLDER = """
import sys, time
from pathlib import Path
from search.resume import sole_session
with sole_session(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def settings(flags=None, sets=(), **fields):
    study = Study(space=lambda trial: {}, scales={"embedded": Scale(**{**FIELDS, **fields})})
    return resolve(study, {"name": "mine", "space": "s.py", **(flags or {})}, list(sets))


@pytest.fixture
def started(tmp_path):
    """Starts the study `mine` with flags and sets; returns its folder."""

    def start(flags=None, sets=(), **fields):
        folder = tmp_path / "mine"
        folder.mkdir(exist_ok=True)
        remember(folder, settings(flags, sets, **fields), DATA, {"name": "mine", **(flags or {})}, list(sets))
        return folder

    return start


def again(folder, sets=(), **flags):
    return as_before({"name": "mine", "storage": str(folder.parent), **flags}, list(sets))


def test_a_resumed_study_has_the_flags_it_was_started_with(started):
    folder = started({"trials": 5, "seed": 3, "smoke": True}, ["sampler=random", "recipe.lr=1e-3"])
    flags, sets = again(folder)
    assert flags == {"name": "mine", "storage": str(folder.parent), "trials": 5, "seed": 3, "smoke": True}
    assert sets == ["sampler=random", "recipe.lr=1e-3"]


def test_what_a_study_began_with_is_kept(started):
    def known(folder):
        return began_with(json.loads((folder / STARTED).read_text()))

    folder = started()
    assert known(folder) == {}
    asked = settings({"warm_start": ["pat"]})
    remember(folder, asked, DATA, {"name": "mine"}, [], {"pat": 8})
    remember(folder, asked, DATA, {"name": "mine", "trials": 9}, [])  # it goes on
    assert known(folder) == {"pat": 8}
    content = json.loads((folder / STARTED).read_text())
    del content["searched"]  # written before it was kept
    assert began_with(content) == {"pat": None}


def test_what_is_given_now_is_above_what_was_given_before(started):
    folder = started({"trials": 5, "seed": 3}, ["sampler=random", "grace_epochs=2", "search.eps=1..2"])
    flags, sets = again(folder, ["grace_epochs=3"], trials=9)
    assert (flags["trials"], flags["seed"]) == (9, 3)
    assert sets == ["sampler=random", "search.eps=1..2", "grace_epochs=3"]


def test_a_field_that_was_set_yields_to_its_flag_and_the_other_way_round(started):
    folder = started({"concurrency": 1}, ["trials=5", "sampler=random"])
    flags, sets = again(folder, ["concurrency=2"], trials=9)
    assert flags["trials"] == 9 and "concurrency" not in flags
    assert sets == ["sampler=random", "concurrency=2"]
    now = settings(flags, sets)
    assert (now.trials, now.concurrency, now.sampler) == (9, 2, "random")


def test_part_of_a_dict_given_now_is_above_the_dict_given_before(started):
    folder = started(sets=["student_kwargs.depth=4", "student_kwargs.num_heads=2"])
    _, sets = again(folder, ["student_kwargs.depth=6"])
    kwargs = settings(sets=sets).student_kwargs
    assert (kwargs["depth"], kwargs["num_heads"]) == (6, 2)


def test_a_resumed_study_remembers_the_newer_flags(started):
    folder = started({"trials": 5})
    flags, sets = again(folder, trials=9)
    started(flags, sets)
    assert again(folder)[0]["trials"] == 9
    assert [path.name for path in folder.iterdir()] == [STARTED]


def test_a_resume_needs_a_study_that_is_there(started):
    folder = started()
    with pytest.raises(InputError, match="--resume: give the study's --name"):
        as_before({}, [])
    with pytest.raises(InputError, match=r"there is no study 'gone' in .*; there are mine$"):
        as_before({"name": "gone", "storage": str(folder.parent)}, [])
    with pytest.raises(InputError, match="there is no study 'gone'"):
        as_before({"name": "gone", "storage": f"file://{folder.parent}"}, [])


@pytest.mark.parametrize("content", ["", '{"flags": {', "no json"])
def test_a_broken_record_of_the_start_is_bad_input(started, content):
    folder = started()
    (folder / STARTED).write_text(content)
    with pytest.raises(InputError, match=rf"^--resume: .*{STARTED} is broken .*; start a new study$"):
        again(folder)
    with pytest.raises(InputError, match="is broken"):
        check_same(folder, settings(), DATA)


CHANGES = {
    "student": ({"student": "vit_tiny_patch16_224"}, DATA),
    "student_kwargs": ({"student_kwargs": {**TINY["student_kwargs"], "depth": 5}}, DATA),
    "teacher": ({"teacher": "vit_small_patch16_224"}, DATA),
    "holdout": ({"holdout": 0.25}, DATA),
    "labels_per_class": ({"labels_per_class": 9}, DATA),
    "epochs": ({"epochs": 5}, DATA),
    "seed": ({"seed": 1}, DATA),
    "recipe": ({"lr": 1e-2}, DATA),
    "teacher_recipe": ({"teacher_recipe": {"lr": 1e-2}}, DATA),
    "baselines": ({"baselines": ["scratch"]}, DATA),
    "data_fingerprint": ({}, "another"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_would_make_trials_incomparable_is_refused(started, name):
    folder, (fields, data) = started(), CHANGES[name]
    with pytest.raises(InputError) as caught:
        check_same(folder, settings(**fields), data)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(f"{name}: the study was started with ")
    assert caught.value.problems[0].endswith("; leave it, or start a new study")


def test_everything_that_changed_is_told_at_once_with_both_values(started):
    folder = started()
    changed = settings(student="vit_tiny_patch16_224", holdout=0.25, epochs=5, seed=1, lr=1e-2)
    with pytest.raises(InputError) as caught:
        check_same(folder, changed, "another")
    problems = caught.value.problems
    assert sorted(line.split(":")[0] for line in problems) == [
        "data_fingerprint", "epochs", "holdout", "recipe", "seed", "student"
    ]  # fmt: skip
    assert "holdout: the study was started with 0.2, not 0.25; leave it, or start a new study" in problems


def test_a_resumed_study_keeps_its_pair(tmp_path):
    def resolved(sets):
        pairs = {"a-b": {"seed": 1}, "a-c": {"seed": 2}}
        study = Study(space=lambda trial: {}, scales={"embedded": Scale(pairs=pairs, **FIELDS)})
        return resolve(study, {"name": "mine", "space": "s.py"}, sets)

    folder = tmp_path / "mine"
    folder.mkdir()
    remember(folder, resolved(["pair=a-c"]), DATA, {"name": "mine"}, ["pair=a-c"])
    _, sets = again(folder)
    assert (resolved(sets).pair, resolved(sets).seed) == ("a-c", 2)
    check_same(folder, resolved(sets), DATA)
    with pytest.raises(InputError, match="pair: the study was started with 'a-c', not 'a-b'"):
        check_same(folder, resolved(again(folder, ["pair=a-b"])[1]), DATA)


def test_what_leaves_trials_comparable_may_change(started):
    folder = started({"trials": 5, "concurrency": 1})
    flags = {"trials": 50, "time_budget": 60.0, "concurrency": 4, "workers_per_trial": 2, "tracking_uri": "sqlite:///x"}
    sets = [
        "sampler=gp",
        "scheduler=none",
        "search.eps=1..2",
        "loader_workers=2",
        "grace_epochs=2",
        "reduction_factor=4",
    ]
    check_same(folder, settings(flags, sets), DATA)


def test_the_same_study_is_the_same_whatever_python_types_its_space_used(started):
    fields = {
        "student_kwargs": {"depths": (2, 2), "scales": [1, 2.0]},
        "taps": [0, 1],
        "crop_scale": [0.6, 1.0],
        "baselines": ["scratch", {"name": "soft", "distiller": "kd", "stages": [], "temperature": 4.0}],
    }
    folder = started(**fields)
    json.loads((folder / STARTED).read_text())
    check_same(folder, settings(**fields), DATA)


def hold(folder):
    """A session of the study in another process."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_session_is_refused_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    holder = hold(folder)
    try:
        for _ in range(2):  # a refused session does not take the holder's name away
            with pytest.raises(InputError) as caught, sole_session(folder):
                pytest.fail("two sessions at once")
            (problem,) = caught.value.problems
            assert (
                "study 'mine' is being run" in problem and f"process {holder.pid} on {os.uname().nodename}" in problem
            )
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    with sole_session(folder):
        pass


def test_a_session_that_fails_frees_the_study(tmp_path):
    with pytest.raises(RuntimeError), sole_session(tmp_path):
        raise RuntimeError
    with sole_session(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()} on"), sole_session(tmp_path):
        pass


RUNGS = {"stopping_schedule": "rung", "epochs": 12, "scheduler": "hyperband", "grace_epochs": 1}


def test_restarts_of_the_learning_rate_must_stay(started):
    folder = started(**RUNGS)
    check_same(folder, settings(sets=["scheduler=asha", "brackets=2"], **RUNGS), DATA)
    with pytest.raises(InputError) as caught:
        check_same(folder, settings(**RUNGS, reduction_factor=4), DATA)
    assert caught.value.problems == [
        "grace_epochs, reduction_factor, scheduler, brackets: the learning rate's restarts (stopping_schedule=rung): "
        "the study was started with [1, 3, 9], not [1, 4]; leave it, or start a new study"
    ]


def test_a_store_may_be_left_but_other_answers_may_not_be_taken(started):
    folder = started()
    check_same(folder, settings(teacher_store="off"), DATA)
    with pytest.raises(InputError, match=r"^teacher_store: the study was started with 'full', not 'topk:3'; leave"):
        check_same(folder, settings(teacher_store="topk:3"), DATA)


def test_a_study_takes_earlier_ones_in_at_its_start_only(started):
    folder = started({"warm_start": ["a"]})
    check_same(folder, settings({"warm_start": ["a"]}), DATA)
    with pytest.raises(InputError, match=r"^warm_start: the study was started with \['a'\], not"):
        check_same(folder, settings({"warm_start": ["a", "b"]}), DATA)


def test_studies_are_comparable_whatever_their_seed_budget_and_ranges():
    def of(data=DATA, sets=(), **fields):
        return comparable(what_stays(settings(sets=sets, **fields), data))

    same = of()
    assert of(seed=1, trials=99, baselines=["kd"], name="other") == same
    assert of(sets=["search.eps=1..2", "sampler=gp", "scheduler=none", "objectives=top1", "warm_start=x"]) == same
    others = [of("another"), of(sets=["objectives=nll"]), of(sets=["objectives=min:top1"]), of(lr=1e-2), of(epochs=5)]
    others += [of(holdout=0.25), of(student="vit_tiny_patch16_224"), of(**RUNGS), of(**(RUNGS | {"grace_epochs": 2}))]
    assert len({same, *others}) == 1 + len(others)
