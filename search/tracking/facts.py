"""What MLflow is told of a configuration: flat params, tags that fit, provenance."""

import json
import math
import platform
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from trainables.config import Distillation, Recipe
from trainables.distillers import DISTILLERS, hyperparameters

OWN_FIELDS = {field for name, one in DISTILLERS.items() if name != "ofa" for field in one.Fields.model_fields}
LOGGED = ("student", "teacher", *Distillation.model_fields, *Recipe.model_fields)  # the params of every trial's run
COMMIT = Path(__file__).resolve().with_name("commit.json")  # of a copy without git, as a job of a cluster runs it
LONGEST_TAG = 5000  # characters; MLflow's stores take 5000 or 8000


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


def provenance() -> dict[str, str]:
    """What a result depends on besides its settings: versions of all packages, commit, platform."""
    facts = {"platform": platform.platform(), "version/python": platform.python_version()}
    facts |= {f"version/{found.name.lower()}": found.version for found in metadata.distributions() if found.name}
    return facts | commit()


def commit() -> dict[str, str]:
    """The commit of this code, and whether there are changes beside it; {} where that is not known."""
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # an installed copy may lie in somebody else's repository
        return {"git/commit": git("rev-parse", "HEAD"), "git/dirty": str(bool(git("status", "--porcelain"))).lower()}
    except (OSError, subprocess.SubprocessError):
        return json.loads(COMMIT.read_text()) if COMMIT.exists() else {}
