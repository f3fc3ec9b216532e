"""Reaching MLflow's store, and what a configuration is called there."""

import socket

import pytest

from search.tracking.store import check_tracking, experiment_exists, flat_params, provenance, shown
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


def test_one_eps_in_a_list_is_one_eps():
    assert "eps_logits" not in flat_params(make_record(eps=[1.2]).config)


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
