"""The command behind `search/cluster_check.py`: one line a file that is sound, one line a problem of the others."""

import os
from pathlib import Path
from typing import Any

import yaml

from search.clusters.findings import Findings, Trial
from search.clusters.kuberay import check_manifests
from search.clusters.launcher import check_launcher
from search.terminal import person_console
from trainables.errors import InputError

PLACEHOLDER = "CHANGE-ME"


def run_check(files: list[str], workers: int, cpus: int, gpus: float | None) -> int:
    """Checks each file, prints a line for each sound one, and warnings.

    Raises:
        InputError: a flag makes no sense, or a file has problems: one line each, of all files together.
    """
    wrong = [
        f"{flag}: {value} is too few; give {least} or more"
        for flag, value, least in (
            ("--workers-per-trial", workers, 1),
            ("--cpus-per-worker", cpus, 1),
            ("--gpus-per-trial", gpus, 0),
        )
        if value is not None and not value >= least
    ]
    if wrong:
        raise InputError(wrong)
    console, problems = person_console(), []
    for name in files:
        shown = os.path.relpath(name)
        try:
            findings = check_file(Path(name), Trial(workers, cpus, gpus))
        except InputError as error:
            problems += [f"{shown}: {problem}" for problem in error.problems]
            continue
        for warning in findings.warnings:
            console.print(f"{shown}: warning: {warning}", soft_wrap=True, markup=False)
        console.print(f"{shown}: ok ({findings.summary})", soft_wrap=True, markup=False)
    if problems:
        raise InputError(problems)
    return 0


def check_file(path: Path, trial: Trial) -> Findings:
    """What is to be said of one file that can be used.

    Raises:
        InputError: it cannot; one line a problem, beginning with the field.
    """
    documents = _read(path)
    manifests = any("apiVersion" in document or "kind" in document for document in documents)
    if not manifests and len(documents) > 1:
        raise InputError(f"document 2: `ray up` takes a file with one document, this has {len(documents)}; split it")
    findings = check_manifests(documents, trial) if manifests else check_launcher(documents[0], trial)
    if findings.problems:
        raise InputError(findings.problems)
    if left := sum(_placeholders(document) for document in documents):
        findings.summary += f"; {left} {PLACEHOLDER} to fill in"
    return findings


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        documents = [document for document in yaml.safe_load_all(path.read_text()) if document is not None]
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); give the path of a cluster description") from error
    except UnicodeDecodeError as error:
        raise InputError("is no text; give a YAML file") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f"line {place.line + 1}: " if place else ""
        raise InputError(f"{where}is no YAML ({getattr(error, 'problem', None) or error}); correct it") from error
    if not documents:
        raise InputError("is empty; start from a copy of ray_cluster.yaml")
    for number, document in enumerate(documents, 1):
        if not isinstance(document, dict):
            raise InputError(f"document {number}: is a {type(document).__name__}, not fields with values; correct it")
        if (name := _odd_name(document)) is not None:
            raise InputError(
                f"document {number}: '{name}' is a {type(name).__name__} where a field's name is; quote it"
            )
    return documents


def _odd_name(value: Any) -> Any:
    """A field's name that is no text, None where all are."""
    parts = value if isinstance(value, list) else []
    if isinstance(value, dict):
        odd = [name for name in value if not isinstance(name, str)]
        if odd:
            return odd[0]
        parts = value.values()
    return next((name for name in map(_odd_name, parts) if name is not None), None)


def _placeholders(value: Any) -> int:
    """How many values are still to be filled in."""
    if isinstance(value, dict):
        return sum(_placeholders(part) for part in value.values())
    if isinstance(value, list):
        return sum(_placeholders(part) for part in value)
    return int(isinstance(value, str) and PLACEHOLDER in value)
