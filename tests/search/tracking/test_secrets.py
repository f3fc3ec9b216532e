"""Nothing that a study writes, says or sends has a secret in it, whether it ends well or its store fails."""

import base64
import os
import shutil
import signal
import tempfile
from pathlib import Path
from urllib.parse import quote, quote_plus

import psycopg
import pytest

from search.tracking.credentials import NOTIFY_URL, SECRETS, TYPED, USERNAME
from tests.search import studies
from tests.search.object_store import object_store
from tests.search.tracking import servers
from tests.search.tracking.conftest import USER, Stores

pytestmark = pytest.mark.long

STUDY = ("--space", studies.MAIN_SPACE, "--concurrency", "1", "--epochs", "6", "--trials", "4")
SETS = ("finalists=1", "seeds=1", "simulate=synthetic")
PLANTED = {
    "MLFLOW_TRACKING_TOKEN": "planted-t0ken/1",
    "AWS_SECRET_ACCESS_KEY": "planted+s3cret/2",
    "AWS_SESSION_TOKEN": "planted-s3ssion=3",
}


class Watch:
    """Knows all secrets in all their forms, and looks for them."""

    def __init__(self, *secrets):
        plain = {*PLANTED.values(), *secrets}
        forms = {form for one in plain for form in (one, quote(one, safe=""), quote(one), quote_plus(one))}
        self.forms = {form.encode() for form in forms} | {base64.b64encode(one.encode()) for one in plain}
        self.forms |= {base64.b64encode(f"{USER}:{one}".encode()) for one in plain}

    def assert_none_in(self, what, content):
        found = [form for form in self.forms if form in (content.encode() if isinstance(content, str) else content)]
        assert not found, f"{what} has {found}"

    def assert_none_under(self, folder, least):
        files = [path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()]
        assert len(files) >= least, files
        for path in files:
            self.assert_none_in(path, path.read_bytes())

    def assert_none_said(self, *ran):
        for one in ran:
            self.assert_none_in("the output", one.out + one.err)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own with Ray's files in it, and an environment of planted secrets."""
    for name in (*SECRETS, USERNAME, TYPED):
        monkeypatch.delenv(name, raising=False)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OFAKD_TEST", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of the logs of unexpected errors
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    ray = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: Ray's sockets lie in it
    monkeypatch.setenv("RAY_TMPDIR", ray)
    yield tmp_path
    shutil.rmtree(ray)


def rows(database, name, password):
    """All that a database keeps, as text."""
    with psycopg.connect(database.uri("mlflow", name, password)) as connection:
        query = "select table_name from information_schema.tables where table_schema = 'public'"
        tables = [table for (table,) in connection.execute(query)]
        return "\n".join(str(row) for table in tables for row in connection.execute(f'select * from "{table}"'))


def begun(folder, process):
    return len(list(folder.glob("trials/*/record.json"))) > 4 or process.poll() is not None


def test_a_study_to_its_end_on_a_server(stores, place):
    watch = Watch(stores.password)
    uri = stores.uri.replace("://", f"://{USER}:{quote(stores.password, safe='')}@")
    sets = ("--set", *SETS, f"tracking_uri={uri}")
    dry = studies.run(*STUDY, "--name", "hushed", "--dry-run", *sets, cwd=place)
    ran = studies.run(*STUDY, "--name", "hushed", *sets, cwd=place)
    report = studies.run("--study", "hushed", "--tracking-uri", uri, cwd=place, script="report")
    mistyped = studies.run(*STUDY, f"--trackinguri={uri}", "--set", f"tracking_url={uri}", cwd=place)
    unknown = studies.run(*STUDY, "--set", f"tracking_url={uri}", cwd=place)
    assert (dry.code, ran.code, report.code, mistyped.code, unknown.code) == (0, 0, 0, 2, 2), ran.err
    watch.assert_none_said(dry, ran, report, mistyped, unknown)
    watch.assert_none_under(place, least=20)
    watch.assert_none_under(os.environ["RAY_TMPDIR"], least=10)
    watch.assert_none_in("the server's database", rows(stores.database, "tracking", Stores.database_password))
    watch.assert_none_under(stores.folder / "artifacts", least=5)
    assert stores.uri in (place / "runs" / "hushed" / "report.md").read_text()


def test_a_study_on_an_object_store(place, monkeypatch):
    watch = Watch()
    with object_store(place, secret=PLANTED["AWS_SECRET_ACCESS_KEY"]) as store:
        for name, value in {**store.environment, "XDG_CACHE_HOME": str(place / "cache")}.items():
            monkeypatch.setenv(name, value)
        sets = ("--storage", store.url, "--set", *SETS)
        ran = studies.run(*STUDY, "--name", "hushed", *sets, cwd=place)
        report = studies.run("--study", "hushed", "--storage", store.url, cwd=place, script="report")
        secret = quote(PLANTED["AWS_SECRET_ACCESS_KEY"], safe="")
        typed = studies.run(*STUDY, "--storage", store.url.replace("://", f"://key:{secret}@"), cwd=place)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        away = studies.run(*STUDY, "--name", "hushed", "--resume", *sets[:2], cwd=place)
        assert (ran.code, report.code, typed.code, away.code) == (0, 0, 2, 2), ran.err
        watch.assert_none_said(ran, report, typed, away)
        watch.assert_none_under(place, least=20)
        watch.assert_none_under(os.environ["RAY_TMPDIR"], least=10)
        kept = store.names()
        assert len(kept) >= 20
        for name in kept:
            watch.assert_none_in(name, store.content(name))


def test_a_study_whose_database_goes_away(place, tmp_path):
    password = "plant3d: p@ss/w%25rd"
    watch = Watch(password)
    with servers.postgres("superuser's") as database:
        database.make("mlflow", password, "tracking")
        uri = database.uri("mlflow", "tracking", password)
        sets = ("--tracking-uri", uri, "--set", *SETS[2:], "finalists=0")
        many = ("--trials", "400")
        process = studies.start(*STUDY, "--name", "hushed", *sets, *many, cwd=place)
        study = studies.Followed(process)
        kept = place / "runs" / "hushed"
        studies.wait_for(
            lambda: len(list(kept.glob("trials/*/record.json"))) > 4 or process.poll() is not None, "trials"
        )
        database.stop()
        studies.wait_for(lambda: "waits in" in study.out, "the outage's note")
        process.send_signal(signal.SIGINT)
        ran = study.end()
        assert ran.code == 130, ran.err
        assert "the log-in that --tracking-uri had is kept nowhere: give it again, or set PGPASSWORD" in ran.out
        refused = studies.run(*STUDY, "--name", "other", *sets, cwd=place)
        database.start()
        wrong = studies.run(*STUDY, "--name", "hushed", "--resume", cwd=place)
        assert (refused.code, wrong.code) == (2, 2), refused.err + wrong.err
        watch.assert_none_said(ran, refused, wrong)
        watch.assert_none_under(place, least=20)
        watch.assert_none_under(os.environ["RAY_TMPDIR"], least=10)
        watch.assert_none_in("the database", rows(database, "tracking", password))


def test_a_study_whose_server_goes_away(place):
    password = "plant3d: p@ss/w%25rd"
    hook = "planted-h00k/4"
    watch = Watch(password, hook)
    log = place / "server.log"
    kept = place / "runs" / "hushed"
    with servers.mlflow_server(f"sqlite:///{place}/server.db", str(place / "artifacts"), log) as uri:
        typed = uri.replace("://", f"://{USER}:{quote(password, safe='')}@")
        process = studies.start(
            *STUDY, "--name", "hushed", "--tracking-uri", typed, "--set", *SETS[2:],
            f"notify=http://127.0.0.1:1/{hook}", "--trials", "400", cwd=place,
        )  # fmt: skip
        study = studies.Followed(process)
        studies.wait_for(
            lambda: len(list(kept.glob("trials/*/record.json"))) > 4 or process.poll() is not None, "trials"
        )
    studies.wait_for(lambda: "waits in" in study.out, "the outage's note")
    process.send_signal(signal.SIGINT)
    ran = study.end()
    assert ran.code == 130 and "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in ran.out, ran.err
    assert "notify: it was not told 'interrupted'" in ran.out and f"set {NOTIFY_URL}" in ran.out
    refused = studies.run(*STUDY, "--tracking-uri", typed, cwd=place)
    assert refused.code == 2 and "unreachable" in refused.err
    watch.assert_none_said(ran, refused)
    watch.assert_none_under(place, least=20)
    watch.assert_none_under(os.environ["RAY_TMPDIR"], least=10)
