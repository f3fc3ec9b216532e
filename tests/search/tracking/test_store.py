"""Reaching MLflow's store, and what a configuration is called there."""

import functools
import socket
import subprocess
import sys

import pytest

from search.tracking.credentials import shown
from search.tracking.facts import flat_params, provenance
from search.tracking.store import check_tracking, experiment_exists
from tests.search.studies import LIMIT_S, ROOT, wait_for
from tests.search.tracking.tracked import make_record
from trainables.errors import InputError


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        ("http://127.0.0.1:9", "start the server or leave --tracking-uri out"),
        ("postgresql://user@127.0.0.1:9/db", "start the server or leave --tracking-uri out"),
        ("http://", "unreachable"),
        ("./mlruns", "sqlite:///"),
        ("file:///tmp/mlruns", "sqlite:///"),
        ("redis://host", "unknown scheme"),
    ],
)
def test_a_bad_place_is_refused_at_once(uri, text):
    with pytest.raises(InputError, match=text) as error:
        check_tracking(uri)
    assert uri in str(error.value)


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(uri):
    with pytest.raises(InputError, match="keeps nothing"):
        check_tracking(uri)


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        check_tracking(f"sqlite:///{tmp_path}/file/mlflow.db")


def test_a_new_database_is_whole_whoever_is_first_and_whoever_is_killed(tmp_path):
    uri = f"sqlite:///{tmp_path}/runs/mlflow.db"
    code = f"from search.tracking.store import connect; connect({uri!r}).search_experiments(max_results=1)"
    start = functools.partial(subprocess.Popen, [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
    killed = start()
    wait_for(lambda: list((tmp_path / "runs").glob("*partial*")), "its beginning")
    killed.kill()
    killed.communicate()
    for process in [start() for _ in range(3)]:
        _, said = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, said
    assert (tmp_path / "runs" / "mlflow.db").exists()


def test_every_configuration_has_one_number_for_eps_and_for_stages():
    """A list is text to MLflow's plots, which leave its run out or make a word of it."""
    one, many = flat_params(make_record(eps=[1.2]).config), make_record(stages=[1, 3], eps=[1.5, 0.5, 2.0])
    assert (one["eps_logits"], one["stage_count"]) == (1.2, 4) and not {"eps_stage1", "eps_stage4"} & set(one)
    many = flat_params(many.config)
    assert (many["eps_stage1"], many["eps_stage3"], many["eps_logits"], many["stage_count"]) == (1.5, 0.5, 2.0, 2)
    assert flat_params(make_record(distiller="none", stages=[]).config)["stage_count"] == 0


def test_a_password_is_never_shown():
    assert shown("postgresql://me:s3cret@host/db") == "postgresql://me:***@host/db"
    assert shown("http://host:5000") == "http://host:5000"
    with pytest.raises(InputError) as error:
        check_tracking("postgresql://me:s3cret@127.0.0.1:9/db")
    assert "s3cret" not in str(error.value)


def test_what_is_no_mlflow_store_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(InputError, match="unreachable"):
        experiment_exists(f"sqlite:///{tmp_path}/text.db", "study")
    with pytest.raises(InputError, match="it is a folder"):
        check_tracking(f"sqlite:///{tmp_path}")


def test_provenance_is_flat_text():
    facts = provenance()
    assert {"version/torch", "version/python", "version/mlflow", "platform"} <= set(facts)
    assert all(isinstance(value, str) for value in facts.values())
    assert socket.gethostname() not in facts.values()
