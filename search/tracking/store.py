"""Reaching MLflow's store: whether it is there and lets us in, a client of it, and what its errors mean."""

import fcntl
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from search.paths import writable
from search.tracking.credentials import LOG_IN, PASSWORD, TOKEN, USERNAME, masked, shown, with_password
from trainables.errors import InputError

DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
REACH_S = 3.0  # how long a server may take to answer before a study starts
TAKE_A_TIMEOUT = ("psycopg2", "psycopg", "pymysql", "mysqldb")  # as `connect_timeout`, in whole seconds
DRIVERS = {  # the package of each module
    "psycopg2": "psycopg2-binary", "psycopg": "psycopg[binary]", "MySQLdb": "mysqlclient", "pymysql": "PyMySQL",
}  # fmt: skip
HALVES = ((PASSWORD, USERNAME), (USERNAME, PASSWORD))
DATABASE_FIXES = (  # what PostgreSQL, its driver or MLflow says, and what to do
    (r"no password", "set PGPASSWORD, have it in ~/.pgpass, or give --tracking-uri with it; no study keeps it"),
    (r'password authentication failed for user "[^"]*"', "correct it in --tracking-uri, PGPASSWORD or ~/.pgpass"),
    (r'database "[^"]*" does not exist', "make it on its server: createdb --owner {user} {database}"),
    (r'role "[^"]*" does not exist', "make it on its server: createuser --pwprompt {user}"),
    (r'(Peer|Ident) authentication failed for user "[^"]*"', "give a host, as postgresql://{user}@localhost/{database}"),
    (r"permission denied for schema \w+", "make it the user's: ALTER DATABASE {database} OWNER TO {user}"),
    (r"Can't load plugin: .*", "leave the +DRIVER out"),
    (r"out-of-date database schema", "back it up, then: mlflow db upgrade {uri}"),
)  # fmt: skip

# MLflow's own defaults hold a caller for minutes; the retries are ours. Set before its import, a user's values win.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",  # a model goes in one request; whether a server is there is asked apart
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_tracking(uri: str) -> None:
    """Refuses a place where nothing could be written, within seconds and without creating anything.

    Raises:
        InputError: naming the URI and the fix; a missing or wrong log-in is found too.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        fix = "write to a database instead: sqlite:///PATH/mlflow.db"
        raise InputError(f"tracking_uri: {shown(uri)!r} is a folder, which MLflow no longer develops; {fix}")
    dialect = parts.scheme.split("+")[0]
    if dialect not in ("http", "https", "sqlite", *DATABASE_PORTS):
        known = "http(s)://…, sqlite:///… or postgresql://…"
        raise InputError(f"tracking_uri: {shown(uri)!r} has an unknown scheme; give {known}")
    try:
        if dialect in ("http", "https"):
            _check_server(uri)
        elif dialect in DATABASE_PORTS:
            if parts.hostname:  # else a socket, which the driver knows where to look for
                socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[dialect]), REACH_S).close()
            _check_database(uri, dialect)
        else:
            _check_file(uri)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise unreachable(uri, first_line(str(getattr(error, "reason", error)))) from error


def _check_file(uri: str) -> None:
    path = _sqlite_path(uri)
    if uri.rstrip("/") in ("sqlite:", "sqlite:///:memory:"):
        raise InputError(f"tracking_uri: {uri} keeps nothing; give a file: sqlite:///PATH/mlflow.db")
    if path.is_dir():
        raise InputError(f"tracking_uri: {uri} unreachable (it is a folder); give a file in it: …/mlflow.db")
    if not writable(path.parent):
        raise InputError(f"tracking_uri: {path.parent} cannot be written; give a file in a folder that can")


def _check_server(uri: str) -> None:
    """Whether an MLflow server answers and lets us in, asked by MLflow's own client with the user's credentials."""
    import ssl

    for name in (PASSWORD, TOKEN):
        if (value := os.environ.get(name, "")) != value.strip():
            raise InputError(f"{name}: it begins or ends with white space; leave that out")
    certificates = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        certificates.check_hostname, certificates.verify_mode = False, ssl.CERT_NONE
    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=REACH_S, context=certificates).close()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # one that asks for a log-in is there
            raise unreachable(uri, f"{error} at /health, is this an MLflow server?") from error
    try:
        connect(uri).search_experiments(max_results=1)
    except Exception as error:  # the client has more than MLflow's own
        raise refused(uri, error) from error


def _check_database(uri: str, dialect: str) -> None:
    """Whether the driver is there and the database lets us in; MLflow's own try would take minutes to give up."""
    import sqlalchemy

    driver = ""
    try:
        url = sqlalchemy.make_url(with_password(uri))
        driver = url.get_dialect().driver
        options = {"connect_timeout": int(REACH_S)} if driver in TAKE_A_TIMEOUT else {}
        engine = sqlalchemy.create_engine(url, connect_args=options, poolclass=sqlalchemy.pool.NullPool)
        engine.connect().close()
    except ModuleNotFoundError as error:
        package = DRIVERS.get(error.name, error.name)
        fix = f"python -m pip install '{package}'"
        raise InputError(
            f"tracking_uri: {dialect} needs the driver {error.name}, which is not installed; {fix}"
        ) from error
    except Exception as error:  # each driver has its own
        raise refused(uri, error) from error


def refused(uri: str, error: Exception) -> InputError:
    """What a store's own error means, to be raised: one line with the fix, without secrets.

    Args:
        error: MLflow's, SQLAlchemy's or a driver's.
    """
    status = getattr(error, "get_http_status_code", lambda: None)()
    if uri.startswith("http"):
        asked = status in (401, 403)
        return InputError(_log_in(uri, error, status)) if asked else unreachable(uri, first_line(error))
    for pattern, fix in DATABASE_FIXES:
        if found := re.search(pattern, str(error)):
            parts = urlsplit(uri)
            names = {"user": parts.username or "USER", "database": parts.path[1:] or "DATABASE", "uri": shown(uri)}
            said = " ".join(found[0].split())
            return InputError(masked(f"tracking_uri: {shown(uri)}: {said}; {fix.format(**names)}"))
    if "FATAL:" in str(error):
        what = first_line(str(error).partition("FATAL:")[2])
        fix = "give a user and a database that it lets in"
        return InputError(f"tracking_uri: {shown(uri)} refuses ({what}); {fix}")
    return unreachable(uri, first_line(error))


def _log_in(uri: str, error: Exception, status: int) -> str:
    from mlflow.utils.credentials import read_mlflow_creds

    who = read_mlflow_creds()  # of the environment, or of ~/.mlflow/credentials
    if status == 403:
        return f"tracking_uri: {shown(uri)} forbids it ({first_line(error)}); have its admin permit it to the user"
    if who.username and who.password:
        fix = f"correct {USERNAME} and {PASSWORD}, or set {TOKEN} alone"
        return f"tracking_uri: {shown(uri)} refuses this user or password; {fix}"
    if os.environ.get(TOKEN):
        return f"tracking_uri: {shown(uri)} refuses the token; correct {TOKEN}, or set {USERNAME} and {PASSWORD}"
    half = next((f", and {name} is not set" for name, other in HALVES if os.environ.get(other)), "")
    return f"tracking_uri: {shown(uri)} asks for a log-in{half}; set {LOG_IN}"


class Unreachable(InputError):
    """The store does not answer, which may pass."""


def unreachable(uri: str, problem: str) -> Unreachable:
    """The one wording for a store that cannot be used, to be raised."""
    fix = "start the server or leave --tracking-uri out"
    return Unreachable(f"tracking_uri: {shown(uri)} unreachable ({problem}); {fix}")


def experiment_exists(uri: str, study: str) -> bool:
    """Whether MLflow has an experiment of this name, deleted ones included (their names stay taken).

    Raises:
        InputError: what is there is no MLflow store, or it refuses.
    """
    if not store_exists(uri):
        return False
    try:
        return connect(uri).get_experiment_by_name(study) is not None
    except Exception as error:  # each store and driver has its own
        raise refused(uri, error) from error


def store_exists(uri: str) -> bool:
    """False where the store is an SQLite file that nobody has made yet."""
    return not uri.startswith("sqlite:") or _sqlite_path(uri).exists()


def _sqlite_path(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").split("?")[0])


def connect(uri: str):
    """An `MlflowClient` that gives up soon and says little."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import logging

    from mlflow import MlflowClient

    # A database's first use tells of each migration; the import has just set its own levels.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if uri.startswith("sqlite:"):
        _make_database(_sqlite_path(uri))
    return MlflowClient(with_password(uri))


def _make_database(path: Path) -> None:
    """A new database, whole or not at all: two that make its tables at once, or one that is killed, tear it."""
    if path.exists():
        return
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():  # nobody else was faster
            partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
            partial.unlink(missing_ok=True)
            MlflowClient(f"sqlite:///{partial}").search_experiments(max_results=1)
            os.replace(partial, path)


def first_line(error: Exception | str) -> str:
    """An error as part of a one-line message, without secrets."""
    return masked((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
