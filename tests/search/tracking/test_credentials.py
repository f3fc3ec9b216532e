"""Secrets of a tracking URI: where they go, and that no text has them; no server is asked."""

import os
import subprocess
import sys

import pytest

from search.exits import Parser, exit_code
from search.resume import as_before
from search.tracking.credentials import (
    PASSWORD,
    SECRETS,
    TYPED,
    USERNAME,
    masked,
    reminder,
    set_aside,
    shown,
    with_password,
    without_secrets,
    words_without,
)
from search.tracking.store import check_tracking, first_line
from tests.search.studies import ROOT
from trainables.errors import InputError

ODD = "p@ss/w:rd%25 #?x"  # what a password may be
QUOTED = "p%40ss%2Fw%3Ard%2525%20%23%3Fx"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """One without secrets, that a test may fill."""
    for name in (*SECRETS, USERNAME, TYPED):
        monkeypatch.setenv(name, "")  # so that it is as it was afterwards, whatever the test sets
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("uri", "clean", "found"),
    [
        (f"postgresql://me:{QUOTED}@host/db", "postgresql://me@host/db", {"PGPASSWORD": ODD}),
        ("postgresql+psycopg2://me:p@ss@host:5/db", "postgresql+psycopg2://me@host:5/db", {"PGPASSWORD": "p@ss"}),
        (
            "postgresql://host/db?user=me&password=s%263cret&sslmode=require&host=/var/run",
            "postgresql://host/db?user=me&sslmode=require&host=/var/run",
            {"PGPASSWORD": "s&3cret"},
        ),
        ("postgresql://me@/db?host=/a&passfile=/b", "postgresql://me@/db?host=/a&passfile=/b", {}),
        ("mysql+pymysql://me:s3cret@host/db", "mysql+pymysql://me@host/db", {"MYSQL_PWD": "s3cret"}),
        (f"http://me:{QUOTED}@host:5000/p", "http://host:5000/p", {USERNAME: "me", PASSWORD: ODD}),
        ("https://me@host", "https://host", {USERNAME: "me"}),
        ("http://host:5000", "http://host:5000", {}),
        ("sqlite:////a/b@c:d@e.db", "sqlite:////a/b@c:d@e.db", {}),
    ],
)
def test_a_secret_goes_to_where_the_driver_looks_for_it(uri, clean, found):
    assert set_aside(uri) == clean
    assert {name: os.environ[name] for name in (*SECRETS, USERNAME) if name in os.environ} == found
    assert set_aside(clean) == clean


def test_what_is_typed_goes_above_what_is_there(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "older")
    set_aside("postgresql://me@host/db")
    assert os.environ["PGPASSWORD"] == "older" and not reminder()
    set_aside("postgresql://me:newer@host/db")
    assert os.environ["PGPASSWORD"] == "newer" and "set PGPASSWORD" in reminder()


@pytest.mark.parametrize(
    ("uri", "fix"),
    [
        ("postgresql://me:s3/cret@host/db", "write / ? # and @"),
        ("postgresql://me:s3?cret@host/db", "write / ? # and @"),
        ("postgresql://me:x@s3/cret@host/db", "write / ? # and @"),
        ("http://host:5000/?token=s3cret", "MLFLOW_TRACKING_TOKEN"),
        ("http://:s3cret@host", "MLFLOW_TRACKING_TOKEN"),
        ("postgresql://me@host/db?sslpassword=s3cret", "pg_service.conf"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Ds3cret", "pg_service.conf"),
    ],
)
def test_a_secret_that_could_not_be_used_is_refused_and_not_shown(uri, fix):
    with pytest.raises(InputError) as error:
        set_aside(uri)
    assert fix in str(error.value) and "\n" not in str(error.value)
    assert "s3" not in str(error.value) and "cret" not in str(error.value).replace("secret", "")


@pytest.mark.parametrize(
    "text",
    [
        "API request to http://me:s3cret@host:5000/api failed",
        "two: http://me:s3cret@a/x and mysql://you:s3cret@b",
        "postgresql://me:s3/c@s3cret@host/db",
        "https://host/x?a=b&access_token=s3cret&c=d",
        "driver: postgresql://host/db?password=s3cret",
        "Invalid header value: 'Bearer t0ken-x'",
        r"Invalid header value: b'Bearer t0ken-x\n'",
        f"plain {ODD}, quoted {QUOTED}",
    ],
)
def test_no_text_of_a_library_shows_a_secret(text, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken-x\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", ODD)
    for found in (masked(text), shown(text), first_line(text), masked(masked(text))):
        assert "***" in found
        assert not any(secret in found for secret in ("s3", "cret", "t0ken", ODD, QUOTED))


def test_ordinary_words_stay_though_a_short_password_is_part_of_them(monkeypatch):
    monkeypatch.setenv("PGPASSWORD", "post")
    assert masked("postgresql://me@host: the post came late") == "postgresql://me@host: the *** came late"
    assert masked("eps=1.2 at sqlite:////a/b.db") == "eps=1.2 at sqlite:////a/b.db"


def test_flags_and_sets_and_an_older_studys_file_lose_their_secrets(tmp_path):
    flags, sets = without_secrets({"tracking_uri": "http://me:s3cret@h", "trials": 3}, ["tracking_uri='http://a:b@h'"])
    assert flags == {"tracking_uri": "http://h", "trials": 3} and sets == ["tracking_uri=http://h"]
    assert os.environ[PASSWORD] == "b"
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "started.json").write_text('{"flags": {"tracking_uri": "postgresql://me:old@h/d"}, "set": []}')
    flags, _ = as_before({"name": "s", "storage": str(tmp_path)}, [])
    assert flags["tracking_uri"] == "postgresql://me@h/d" and os.environ["PGPASSWORD"] == "old"
    del os.environ["PGPASSWORD"]
    flags, _ = as_before({"name": "s", "storage": str(tmp_path), "tracking_uri": "sqlite:///x"}, [])
    assert "PGPASSWORD" not in os.environ


def test_a_command_lines_words_lose_theirs_and_the_rest_stays():
    words = ["run.py", "--tracking-uri", "http://a:b@h", "--set", "x=1", "tracking_uri=http://a:c@h", "y=s3://k:l@m"]
    assert words_without(words) == [
        "run.py", "--tracking-uri", "http://h", "--set", "x=1", "tracking_uri=http://h", "y=s3://k:l@m",
    ]  # fmt: skip
    assert words_without(["--tracking-uri=http://a:b@h"]) == ["--tracking-uri=http://h"]


def test_a_command_begins_anew_without_the_secrets_that_were_typed(tmp_path):
    """`ps` shows a command's words to everybody, and Ray keeps them with its job."""
    (tmp_path / "command.py").write_text(
        "import os, sys\nfrom search.exits import Parser\nparser = Parser()\nparser.add_argument('--tracking-uri')\n"
        "print(parser.parse_args().tracking_uri, os.environ['PGPASSWORD'], os.getpid())\n"
        "print(open('/proc/self/cmdline').read().split(chr(0)))"
    )
    command = [sys.executable, tmp_path / "command.py", "--tracking-uri", "postgresql://me:s3cret@host/db"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    first, second = process.communicate()[0].splitlines()
    assert first == f"postgresql://me@host/db s3cret {process.pid}"
    assert "postgresql://me@host/db" in second and "s3cret" not in second


def test_a_driver_that_reads_no_environment_gets_the_password(monkeypatch):
    assert with_password("mysql+pymysql://me@host/db") == "mysql+pymysql://me@host/db"
    monkeypatch.setenv("MYSQL_PWD", ODD)
    monkeypatch.setenv("PGPASSWORD", ODD)
    assert with_password("mysql+pymysql://me@host/db") == f"mysql+pymysql://me:{QUOTED}@host/db"
    assert with_password("postgresql+pg8000://me@host/db") == f"postgresql+pg8000://me:{QUOTED}@host/db"
    assert with_password("postgresql://me@host/db") == "postgresql://me@host/db"
    assert with_password("http://host") == "http://host"


def test_mistyped_flags_and_unexpected_errors_show_none(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args(["--trackinguri=http://me:s3cret@h"])

    def breaks():
        raise RuntimeError("at http://me:s3cret@h")

    assert exit_code(breaks) == 1
    (log,) = tmp_path.glob("ofakd-search-*.log")
    for text in (*capsys.readouterr(), log.read_text()):
        assert "s3cret" not in text
    assert "RuntimeError: at http://me:***@h" in log.read_text()


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD"])
def test_white_space_around_a_secret_is_told(name, monkeypatch):
    monkeypatch.setenv(name, "s3cret\n")
    with pytest.raises(InputError, match=f"^{name}: it begins or ends with white space") as error:
        check_tracking("http://127.0.0.1:9")
    assert "s3cret" not in str(error.value)
