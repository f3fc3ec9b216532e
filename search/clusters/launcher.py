"""Checks of a file for `ray up`: Ray's own schema, and what it misses."""

import copy
import difflib
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from search.clusters.clouds import CLOUDS
from search.clusters.findings import (
    Findings,
    NodeKind,
    Trial,
    check_image,
    check_installs,
    check_kinds,
    check_secret,
    check_storage,
    ray_starts,
)

COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
BY_RAY = " (Ray's default: the file has none)"
LOCAL = ("127.0.0.1", "localhost", "::1")


def check_launcher(config: dict[str, Any], trial: Trial) -> Findings:
    """What is to be said of a file for `ray up`, as read from YAML."""
    findings = Findings()
    if not config.get("cluster_name"):  # Ray fills in the same name for everybody
        findings.problem("cluster_name", "missing; give one that no other cluster of the account has")
    full = _by_ray(findings, config)
    if full is None:
        return findings
    cloud = CLOUDS.get(full["provider"]["type"])
    example = f"{cloud.scheme if cloud else 's3'}://BUCKET/FOLDER"
    storage = (full.get("metadata") or {}).get("storage")
    check_storage(findings, "metadata.storage", storage, example)
    for field in COMMANDS:
        for place, command in _places(config, full, field):
            check_installs(findings, place, command)
            check_secret(findings, place, command)
    for place, image in _images(full):
        check_image(findings, place, image)
    _check_starts(findings, config, full)
    types = full["available_node_types"]
    if cloud:
        for name, node in types.items():
            cloud.check_node(findings, f"available_node_types.{name}.node_config", node["node_config"])
            cloud.check_resources(findings, f"available_node_types.{name}", node)
        cloud.check_provider(findings, full["provider"])
    kinds = _check_types(findings, full, trial)
    findings.summary = _summary(full, kinds, storage)
    return findings


def _by_ray(findings: Findings, config: dict[str, Any]) -> dict[str, Any] | None:
    """The file as Ray completes it, None where Ray would refuse it.

    Ray's functions are private; its version is pinned.
    """
    import jsonschema
    from ray import autoscaler

    schema = json.loads((Path(autoscaler.__file__).parent / "ray-schema.json").read_text())
    before = len(findings.problems)
    for error in jsonschema.Draft7Validator(schema).iter_errors(config):
        _schema_problems(findings, error)
    if len(findings.problems) > before:
        return None
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it warns of what matters for Docker
            full = prepare_config({"cluster_name": "unnamed", **copy.deepcopy(config)})
            validate_config(full)
    except Exception as error:  # Ray has no type of its own for it
        text = " ".join(str(error).split())
        findings.problem(_field_in(text), f"Ray refuses it ({type(error).__name__}: {text[:200]}); correct it")
        return None
    return full


def _schema_problems(findings: Findings, error) -> None:
    place = ".".join(map(str, error.absolute_path))
    if error.validator == "additionalProperties":
        known = [*error.schema.get("properties", ())]
        for name in sorted(map(str, set(error.instance) - set(known))):
            near = difflib.get_close_matches(name, known, n=1)
            findings.problem(
                f"{place}.{name}".lstrip("."),
                f"Ray knows no such field; {f'did you mean {near[0]}?' if near else 'remove it'}",
            )
    elif error.validator == "required":
        name = re.match(r"'(.*?)'", error.message)[1]
        if name != "cluster_name":
            findings.problem(f"{place}.{name}".lstrip("."), "missing; add it")
    elif place != "cluster_name" or error.instance:
        wanted = f"; give a {error.validator_value}" if error.validator == "type" else "; correct it"
        findings.problem(place, " ".join(error.message.split())[:200] + wanted)


def _field_in(text: str) -> str:
    """The field that one of Ray's messages is about."""
    for name in ("head_node_type", "max_workers", "available_node_types", "docker", "cluster_synced_files"):
        if name in text:
            return name
    return "provider"


def _places(config: dict[str, Any], full: dict[str, Any], field: str) -> list[tuple[str, str]]:
    """The commands of a field, each with its place in the file."""
    of_a_kind = field in ("head_setup_commands", "worker_setup_commands")
    ahead = len(full["setup_commands"]) if of_a_kind else 0  # Ray puts them before
    default = "" if field in config else BY_RAY
    found = [(f"{field}[{number}]{default}", command) for number, command in enumerate(full[field][ahead:])]
    for name, node in full["available_node_types"].items():
        for number, command in enumerate(node.get(field) or ()):
            found.append((f"available_node_types.{name}.{field}[{number}]", command))
    return found


def _images(full: dict[str, Any]) -> list[tuple[str, str]]:
    """The container images that a file names, each with its place."""
    holders = [("docker", full.get("docker") or {})]
    holders += [(f"available_node_types.{n}.docker", t.get("docker") or {}) for n, t in _types(full)]
    names = ("image", "head_image", "worker_image")
    return [(f"{place}.{name}", holder[name]) for place, holder in holders for name in names if holder.get(name)]


def _types(full: dict[str, Any]):
    return full["available_node_types"].items()


def _check_starts(findings: Findings, config: dict[str, Any], full: dict[str, Any]) -> None:
    """Every node asks for the token and has it, and the dashboard is not everybody's."""
    mounts = ["/".join(Path(path).parts[-2:]) for path in full.get("file_mounts") or {}]
    if ".ray/auth_token" not in mounts:
        findings.problem(
            "file_mounts",
            "brings no token to the nodes; add ~/.ray/auth_token: ~/.ray/auth_token",
        )
    for field in ("head_start_ray_commands", "worker_start_ray_commands"):
        starts = [(place, start) for place, command in _places(config, full, field) for start in ray_starts(command)]
        if not starts:
            findings.problem(field, "has no `ray start`, so Ray would not run there; add it")
        for place, (options, auth_mode) in starts:
            if auth_mode != "token":
                findings.problem(
                    place, "starts Ray without asking for the token; begin it with export RAY_AUTH_MODE=token;"
                )
            host = options.get("--dashboard-host", LOCAL[0])
            if host not in LOCAL:
                findings.problem(
                    place,
                    f"--dashboard-host={host} opens the dashboard, which runs anybody's code, to the network; give "
                    "--dashboard-host=127.0.0.1 and reach it through `ray dashboard`",
                )
            if "--head" in options and "--autoscaling-config" not in options:
                findings.problem(
                    place,
                    "no autoscaler, so no worker ever comes; add --autoscaling-config=~/ray_bootstrap_config.yaml",
                )


def _check_types(findings: Findings, full: dict[str, Any], trial: Trial) -> list[NodeKind]:
    head = full["available_node_types"][full["head_node_type"]]
    if head["resources"].get("CPU", 1):
        findings.warn(
            f"available_node_types.{full['head_node_type']}.resources",
            "trials may run on the head and take its driver's CPUs; give CPU: 0",
        )
    kinds = []
    for name, node in _types(full):
        if name != full["head_node_type"]:
            resources = node["resources"]
            kinds.append(
                NodeKind(
                    f"available_node_types.{name}",
                    resources.get("CPU"),
                    resources.get("GPU", 0),
                    node.get("min_workers", 0),
                    node["max_workers"],
                )
            )
    if full["max_workers"] < 1:
        findings.problem("max_workers", "0, so no worker ever starts; allow 1 or more")
    else:
        check_kinds(findings, kinds, "available_node_types", full["max_workers"], trial)
    return kinds


def _summary(full: dict[str, Any], kinds: list[NodeKind], storage: str | None) -> str:
    provider = full["provider"]
    places = " ".join(str(provider[key]) for key in ("type", "region") if provider.get(key))
    workers = ", ".join(f"{kind.place.rpartition('.')[2]} up to {kind.most}" for kind in kinds)
    return f"{places}; {workers}, at most {full['max_workers']} together; --storage {storage}"
