"""Whole studies on real stores: PostgreSQL itself, a server over it that asks who we are, and artifacts on S3."""

import math
import os
from pathlib import Path
from urllib.parse import quote

import boto3
import pandas
import psycopg
import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType

from search.ledger import Ledger
from search.tracking.credentials import SECRETS, TYPED, USERNAME
from tests.search import studies
from tests.search.tracking.conftest import BUCKET, Stores

pytestmark = pytest.mark.long

SMALL = (
    "--concurrency",
    "1",
    "--epochs",
    "6",
    "--trials",
    "4",
    "--set",
    "finalists=1",
    "seeds=1",
    "simulate=synthetic",
)
LOG_IN = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own, an environment without secrets, and whatever else a test sets in it."""
    for name in (*SECRETS, USERNAME, TYPED):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # whose ~/.pgpass and ~/.mlflow are not there
    monkeypatch.setenv("OFAKD_TEST", str(tmp_path))
    return tmp_path


def study(place, uri, *more, name="s"):
    ran = studies.run("--space", studies.MAIN_SPACE, "--name", name, "--tracking-uri", uri, *SMALL, *more, cwd=place)
    assert ran.code == 0, ran.err + ran.out
    return ran


def refused(place, uri, name="s"):
    """The one line with which a study ends before anything is begun."""
    ran = studies.run("--space", studies.MAIN_SPACE, "--name", name, "--tracking-uri", uri, *SMALL, cwd=place)
    assert ran.code == 2 and ran.out == "" and not (place / "runs" / name).exists(), ran.err + ran.out
    (line,) = ran.err.splitlines()
    return line


def assert_the_same(place, uri, name="s"):
    """MLflow, the records and trials.csv tell the same of every trial; gives MLflow's runs."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(name)
    every = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
    runs = {run.data.tags["trial_id"]: run for run in every if "trial_id" in run.data.tags}
    ledger = Ledger(place / "runs" / name / "trials")
    table = pandas.read_csv(place / "runs" / name / "trials.csv", dtype={"trial_id": str}).set_index("trial_id")
    assert runs.keys() == ledger.records.keys() == set(table.index) and len(every) == len(runs) + 1
    compared = 0
    for trial_id, record in ledger.records.items():
        run, row = runs[trial_id], table.loc[trial_id]
        assert run.data.tags["state"] == record.state == row.state
        assert run.data.tags["role"] == record.role == row.role
        for key in {key for entry in record.history for key in entry} - {"epoch"}:
            told = {one.step: one.value for one in client.get_metric_history(run.info.run_id, key)}
            kept = {int(entry["epoch"]): entry[key] for entry in record.history if key in entry}
            assert told == {step: value for step, value in kept.items() if math.isfinite(value)}
            compared += len(told)
        for key in run.data.metrics.keys() & set(table.columns):
            assert row[key] == pytest.approx(run.data.metrics[key], abs=0, rel=1e-15)
    assert compared > 100
    parent = next(run for run in every if run.data.tags["role"] == "study")
    assert parent.info.status == "FINISHED"
    files = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert {"trials.csv", "best.yaml", "report.html", "settings.yaml"} <= files
    fetched = client.download_artifacts(parent.info.run_id, "trials.csv", str(place))
    assert Path(fetched).read_text() == (place / "runs" / name / "trials.csv").read_text()
    return every


def test_a_study_on_a_server_over_postgresql_with_a_log_in(stores, place, monkeypatch):
    line = refused(place, stores.uri)
    assert line == f"error: tracking_uri: {stores.uri} asks for a log-in; set {LOG_IN}"
    for name, value in stores.log_in().items():
        monkeypatch.setenv(name, value)
    study(place, stores.uri)
    every = assert_the_same(place, stores.uri)
    experiment = every[0].info.experiment_id
    with psycopg.connect(stores.database.uri("mlflow", "tracking", stores.database_password)) as connection:
        kept = connection.execute("select count(*) from runs where experiment_id = %s", [int(experiment)])
        assert kept.fetchone() == (len(every),)
    on_disk = [path.name for path in (stores.folder / "artifacts" / experiment).rglob("*.csv")]
    assert on_disk == ["trials.csv"] and not (place / "runs" / "artifacts").exists()
    ran = studies.run("--study", "s", cwd=place, script="report")
    assert (ran.code, ran.err) == (0, "")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    ran = studies.run("--study", "s", cwd=place, script="report")
    assert ran.code == 0 and "the report is not in MLflow" in ran.err and "refuses this user or password" in ran.err


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        (
            {"MLFLOW_TRACKING_USERNAME": "anna"},
            f"asks for a log-in, and MLFLOW_TRACKING_PASSWORD is not set; set {LOG_IN}",
        ),
        (
            {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "wr0ng"},
            "refuses this user or password; correct MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        ),
    ],
)
def test_a_wrong_log_in_is_told_before_anything_is_begun(stores, place, monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    line = refused(place, stores.uri)
    assert line.startswith(f"error: tracking_uri: {stores.uri} ") and said in line and "wr0ng" not in line


def test_a_study_that_goes_on_asks_for_the_log_in_again(stores, place, monkeypatch):
    typed = stores.uri.replace("://", f"://anna:{quote(stores.password, safe='')}@")
    study(place, typed, name="again")
    for path in (place / "runs" / "again").rglob("*"):
        assert not path.is_file() or b"anna:" not in path.read_bytes()
    going_on = ("--space", studies.MAIN_SPACE, "--name", "again", "--resume", "--trials", "5")
    ran = studies.run(*going_on, cwd=place)
    assert (ran.code, ran.err) == (2, f"error: tracking_uri: {stores.uri} asks for a log-in; set {LOG_IN}\n")
    for name, value in stores.log_in().items():
        monkeypatch.setenv(name, value)
    ran = studies.run(*going_on, cwd=place)
    assert ran.code == 0, ran.err
    assert_the_same(place, stores.uri, "again")


def test_a_study_with_a_token_and_artifacts_on_s3(stores, place, monkeypatch):
    line = refused(place, stores.front)
    assert line == f"error: tracking_uri: {stores.front} asks for a log-in; set {LOG_IN}"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wr0ng")
    line = refused(place, stores.front)
    assert line.startswith(f"error: tracking_uri: {stores.front} refuses the token; correct MLFLOW_TRACKING_TOKEN, or ")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", stores.token)
    before = len(stores.refused)
    study(place, stores.front)
    assert_the_same(place, stores.front)
    # MLflow's client alone asks for more than whether the server is there, and it brought the token each time
    assert set(stores.refused[before:]) <= {"/health"}
    client = boto3.client(
        "s3",
        endpoint_url=stores.s3["MLFLOW_S3_ENDPOINT_URL"],
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key=stores.s3_secret,
    )
    kept = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert [key.rpartition("/")[2] for key in kept].count("trials.csv") == 1


def test_a_study_on_postgresql_itself(stores, place, monkeypatch):
    database = stores.database
    database.make("direct", Stores.database_password, "direct")
    uri, whole = (database.uri("direct", "direct", password) for password in (None, Stores.database_password))
    line = refused(place, uri)
    assert line.startswith(f"error: tracking_uri: {uri}: no password") and "set PGPASSWORD" in line
    line = refused(place, database.uri("direct", "direct", "wr0ng"))
    assert line.startswith(f'error: tracking_uri: {uri}: password authentication failed for user "direct"; correct')
    line = refused(place, database.uri("direct", "nowhere", Stores.database_password))
    assert line.endswith('database "nowhere" does not exist; make it on its server: createdb --owner direct nowhere')
    study(place, whole)
    assert "direct@" in (place / "runs" / "s" / "settings.yaml").read_text()
    going_on = ("--space", studies.MAIN_SPACE, "--name", "s", "--resume", "--trials", "5")
    ran = studies.run(*going_on, cwd=place)
    assert (
        ran.code == 2 and ran.err.startswith(f"error: tracking_uri: {uri}: no password") and "--tracking-uri" in ran.err
    )
    (place / ".pgpass").write_text(f"*:*:direct:direct:{Stores.database_password.replace(':', chr(92) + ':')}\n")
    (place / ".pgpass").chmod(0o600)
    ran = studies.run(*going_on, cwd=place)
    assert ran.code == 0, ran.err
    assert_the_same(place, uri)
    assert list((place / "runs" / "artifacts" / "s").rglob("trials.csv"))


def test_a_user_who_may_make_no_tables_is_told_how_to(stores, place, monkeypatch):
    stores.database.make("guest", "guest's")
    monkeypatch.setenv("PGPASSWORD", "guest's")
    stores.database.make("owner", "x", "owned")
    line = refused(place, stores.database.uri("guest", "owned"))
    assert line.endswith("permission denied for schema public; make it the user's: ALTER DATABASE owned OWNER TO guest")


def test_a_driver_that_is_not_there_is_named(stores, place, monkeypatch):
    (place / "psycopg.py").write_text("raise ModuleNotFoundError(\"No module named 'psycopg'\", name='psycopg')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(place), os.environ.get("PYTHONPATH")])))
    line = refused(place, stores.database.uri("mlflow", "tracking", "s3cret"))
    fix = "python -m pip install 'psycopg[binary]'"
    assert line == f"error: tracking_uri: postgresql needs the driver psycopg, which is not installed; {fix}"
