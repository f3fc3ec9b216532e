import json
import shlex

import pytest

from search.report_facts import read_facts, read_study
from search.resume import STARTED, typed
from search.run import make_parser
from tests.search.report_studies import NAME, Made, rising
from trainables.errors import InputError


@pytest.fixture
def made(tmp_path):
    made = Made(tmp_path)
    made.trial(rising(70.0))
    return made


def command(made, flags, sets):
    (made.folder / STARTED).write_text(json.dumps({"space": "my space.py", "flags": flags, "set": sets}))
    return read_facts(made.folder, made.ledger).command


def test_the_command_is_the_one_that_was_typed(made):
    flags = {"name": NAME, "trials": 3, "time_budget": 1.5, "smoke": True, "warm_start": ["a", "b"]}
    words = shlex.split(command(made, flags, ["eps=1.0", "search.lr=1e-4..1e-2"]))
    assert words[:2] == ["python", "search/run.py"]
    given = make_parser().parse_args(words[2:])
    assert (given.space, given.name, given.trials, given.time_budget) == ("my space.py", NAME, 3, 1.5)
    assert given.smoke and given.warm_start == ["a", "b"] and given.set == ["eps=1.0", "search.lr=1e-4..1e-2"]


def test_passwords_are_left_out(made):
    uri = "postgresql://me:secret@host/db"
    assert "me:***@host" in command(made, {"tracking_uri": uri}, [])
    assert "me:***@host" in command(made, {}, [f"tracking_uri={uri}"])
    assert "secret" not in command(made, {"tracking_uri": uri}, [f"tracking_uri={uri}"])


def test_a_sessions_own_command_says_that_it_goes_on():
    line = typed("s.py", {"tracking_uri": "http://me:secret@host"}, ["seeds=2"], resume=True)
    assert line == "python search/run.py --space s.py --tracking-uri 'http://me:***@host' --resume --set seeds=2"


def test_the_splits_sizes(made):
    facts = read_facts(made.folder, made.ledger)
    assert (facts.holdout_images, facts.test_images, facts.teacher) == (None, None, {})
    made.final("0", [70.0])
    assert read_facts(made.folder, made.ledger).test_images == 100, "from the predictions"
    made.teacher(class_counts={"test": [40, 20, 40, 3]})
    facts = read_facts(made.folder, made.ledger)
    assert (facts.holdout_images, facts.test_images, facts.teacher["top1"]) == (404, 103, 97.5)


def test_a_study_is_read_without_touching_it(made):
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    facts, ledger, study = read_study(made.storage, NAME)
    assert facts.settings == made.settings and list(ledger.records) == ["0"] and len(study.trials) == 1
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before


@pytest.mark.parametrize("name", ["started.json", "account.json", "best.yaml"])
@pytest.mark.parametrize("content", ["{", "[1]"])
def test_a_broken_file_is_named(made, name, content):
    (made.folder / name).write_text(content)
    with pytest.raises(InputError, match=f"--study: .*{name} is broken"):
        read_facts(made.folder, made.ledger)
