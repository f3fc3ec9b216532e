"""Where MLflow lives and what it is told of a configuration: reaching the store, flat params, provenance."""

import math
import os
import platform
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainables.config import Distillation, Recipe
from trainables.distillers import DISTILLERS, hyperparameters
from trainables.errors import InputError

OWN_FIELDS = {field for name, one in DISTILLERS.items() if name != "ofa" for field in one.Fields.model_fields}
LOGGED = ("student", "teacher", *Distillation.model_fields, *Recipe.model_fields)  # the params of every trial's run
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
LONGEST_TAG = 5000  # characters; MLflow's stores take 5000 or 8000
REACH_S = 3.0  # how long a server may take to answer before a study starts

# MLflow's own defaults hold a caller for minutes; the retries are ours. Set before its import, a user's values win.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def as_text(value: Any) -> str:
    """A value as MLflow and tables show it: lists as `1,2,4`, an empty one as `none`."""
    return (",".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def flat_params(config: dict[str, Any], names: Iterable[str] = LOGGED) -> dict[str, Any]:
    """Some fields of a whole `TrialConfig`, `eps` also one by one where it is a list.

    Of the distillers' own fields those that this trial's reads, and OFA's, which all trials show. Beside `eps`
    and `stages`, which may be lists, are `eps_logits` and `stage_count`, numbers: a plot takes `1.2,1.1` for a word.
    """
    unread = OWN_FIELDS - hyperparameters(config["distiller"])
    params = {name: config[name] for name in names if name in config and name not in unread}
    if "eps" in params:
        eps = params["eps"] if isinstance(params["eps"], list) else [params["eps"]]
        stages = config["stages"] if len(eps) > 1 else []
        params.update(zip([f"eps_stage{stage}" for stage in stages] + ["eps_logits"], eps, strict=True))
    if "stages" in params:
        params["stage_count"] = len(params["stages"])
    return params


def split_tag(name: str, text: str) -> dict[str, str]:
    """A text as one tag, or as several (`NAME`, `NAME/1`, …) where it is longer than MLflow takes."""
    pieces = range(0, max(1, len(text)), LONGEST_TAG)
    return {f"{name}/{number}" if number else name: text[at : at + LONGEST_TAG] for number, at in enumerate(pieces)}


def joined_tag(tags: dict[str, str], name: str) -> str:
    """The text that `split_tag` made tags of; empty where there is none."""
    pieces = [tags.get(name, "")]
    while (piece := tags.get(f"{name}/{len(pieces)}")) is not None:
        pieces.append(piece)
    return "".join(pieces)


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Without NaN and infinities, which MLflow's stores mangle."""
    return {key: value for key, value in metrics.items() if not isinstance(value, float) or math.isfinite(value)}


def best_first(metrics: dict[str, Any]) -> dict[str, Any]:
    """In the order to log them in: MLflow's page that compares runs opens on the metric that came first."""
    return dict(sorted(metrics.items(), key=lambda item: not item[0].startswith("best/")))


def check_tracking(uri: str) -> None:
    """Refuses a place where nothing could be written, within seconds and without creating anything.

    Raises:
        InputError: naming the URI and the fix.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        fix = "write to a database instead: sqlite:///PATH/mlflow.db"
        raise InputError(f"tracking_uri: {uri!r} is a folder, which MLflow no longer develops; {fix}")
    dialect = parts.scheme.split("+")[0]
    if dialect not in ("http", "https", "sqlite", *DATABASE_PORTS):
        known = "http(s)://…, sqlite:///… or postgresql://…"
        raise InputError(f"tracking_uri: {uri!r} has an unknown scheme; give {known}")
    try:
        if dialect in ("http", "https"):
            urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=REACH_S).close()
        elif dialect in DATABASE_PORTS:
            socket.create_connection((parts.hostname, parts.port or DATABASE_PORTS[dialect]), REACH_S).close()
        elif dialect == "sqlite" and _sqlite_path(uri).is_dir():
            raise InputError(unreachable(uri, "it is a folder"))
    except urllib.error.HTTPError as error:
        # A server that asks for a log-in is there; MLflow's client brings the user's credentials later.
        if error.code not in (401, 403):
            raise InputError(unreachable(uri, f"{error} at /health, is this an MLflow server?")) from error
    except (OSError, ValueError) as error:
        raise InputError(unreachable(uri, str(getattr(error, "reason", error)))) from error


def unreachable(uri: str, problem: str) -> str:
    """The one wording for a store that cannot be used."""
    return f"tracking_uri: {shown(uri)} unreachable ({problem}); start the server or leave --tracking-uri out"


def shown(uri: str) -> str:
    """A URI as it may be shown and kept: without the user's password."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def first_line(error: Exception | str) -> str:
    """An error as part of a one-line message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


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
        raise InputError(unreachable(uri, first_line(error))) from error


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
        _sqlite_path(uri).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri)


def provenance() -> dict[str, str]:
    """What a result depends on besides its settings: versions of all packages, commit, platform."""
    facts = {"platform": platform.platform(), "version/python": platform.python_version()}
    facts |= {f"version/{found.name.lower()}": found.version for found in metadata.distributions() if found.name}
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in somebody else's repository
        facts["git/commit"] = git("rev-parse", "HEAD")
        facts["git/dirty"] = str(bool(git("status", "--porcelain"))).lower()
    except (OSError, subprocess.SubprocessError):
        pass
    return facts
