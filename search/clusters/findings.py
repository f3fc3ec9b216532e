"""What a check finds, and the checks that all kinds of cluster descriptions share."""

import importlib.metadata
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
RAY_IMAGE = re.compile(r"(?:^|/)rayproject/ray(?:-ml|-llm)?:(?P<tag>[\w.-]+)")
BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss")
MODE = r"\bRAY_AUTH_MODE=['\"]?(\w*)"
TOKEN_GIVEN = re.compile(r"\bRAY_AUTH_TOKEN=['\"]?[^\s'\"$;]")  # the secret itself, not a variable's name


@dataclass
class Findings:
    """Problems and warnings, one line each, and what is said of a sound file."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    summary: str = ""

    def problem(self, place: str, what: str) -> None:
        """Keeps a problem of a field."""
        self.problems.append(f"{place}: {what}")

    def warn(self, place: str, what: str) -> None:
        """Keeps what one may want, but should know."""
        self.warnings.append(f"{place}: {what}")


@dataclass(frozen=True)
class Trial:
    """What a trial asks for; `gpus` None is one where the cluster has GPUs."""

    workers: int = 1
    cpus: int = 1  # of each worker
    gpus: float | None = None  # of all workers together

    def on(self, kinds: list["NodeKind"]) -> "Trial":
        """The trial as it is on such nodes."""
        gpus = float(any(kind.gpus for kind in kinds)) if self.gpus is None else self.gpus
        return Trial(self.workers, self.cpus, gpus)

    def workers_on(self, kind: "NodeKind") -> int:
        """How many of its workers a node holds; each is on one node, together they may be on several."""
        share = self.gpus / self.workers
        by_cpu = int(kind.cpus // self.cpus)
        return min(by_cpu, int(kind.gpus / share + 1e-9)) if share else by_cpu


@dataclass(frozen=True)
class NodeKind:
    """A type of workers: where it stands in the file, what a node has (None: not stated), how many there may be."""

    place: str
    cpus: float | None
    gpus: float
    least: int
    most: int


def check_kinds(findings: Findings, kinds: list[NodeKind], place: str, most: int | None, trial: Trial) -> None:
    """Whether a trial fits the workers.

    Args:
        place: the field that lists the types.
        most: nodes of all types together; None: no such limit.
    """
    if not kinds:
        findings.problem(place, "no type of workers, so nothing would ever train; add one")
        return
    trial = trial.on(kinds)
    for kind in kinds:
        if kind.most < 1:
            findings.problem(kind.place, "at most 0 nodes, so it never starts; allow 1 or more, or remove it")
        elif kind.least > kind.most:
            findings.problem(kind.place, f"at least {kind.least} nodes, but at most {kind.most}; make them agree")
        if kind.cpus is None:
            findings.warn(kind.place, "states no resources; whether a trial fits cannot be told")
        elif not trial.workers_on(kind):
            share = trial.gpus / trial.workers
            findings.problem(
                kind.place,
                f"a node has {kind.cpus:g} CPU and {kind.gpus:g} GPU, a trial's worker asks for {trial.cpus} CPU and "
                f"{share:g} GPU, so nothing ever runs there; take larger nodes or smaller workers",
            )
    if findings.problems or any(kind.cpus is None for kind in kinds):
        return
    # As many nodes as may be, those that hold most first.
    held = sorted((number for kind in kinds for number in [trial.workers_on(kind)] * kind.most), reverse=True)[:most]
    if sum(held) < trial.workers:
        findings.problem(
            place,
            f"all nodes together hold {sum(held)} of a trial's {trial.workers} workers; allow more nodes, or give "
            "fewer --workers-per-trial",
        )


def check_storage(findings: Findings, place: str, storage: Any, example: str) -> None:
    """Studies must outlive the nodes they ran on, and all nodes must see them."""
    if not storage:
        findings.problem(place, f"does not say where studies are kept; give a bucket: {example}")
        return
    url = urlsplit(str(storage))
    if url.scheme in ("", "file", "local", "memory") or not url.netloc:
        findings.problem(place, f"'{storage}' is local to one node and goes with it; give a bucket: {example}")
    elif url.scheme not in BUCKETS or not re.fullmatch(r"[\w.@-]+", url.netloc):
        findings.problem(place, f"'{storage}' is no bucket's URL; give a bucket: {example}")


def check_installs(findings: Findings, place: str, command: str) -> None:
    """Packages come as pinned: a name on an index is whoever holds it on that day."""
    for part in re.split(r"&&|\|\||[;|&\n(){}]", command):
        words = [word.rsplit("/", 1)[-1] for word in part.split()]
        pip = next((number for number, word in enumerate(words) if re.fullmatch(r"pip[\d.]*", word)), None)
        if pip is None or not {"install", "sync"} & set(words[pip + 1 :]) or "--require-hashes" in words:
            continue
        shown = " ".join(part.split())[:60]
        findings.problem(place, f"'{shown}' installs what no hash pins; add --require-hashes -r requirements.txt")


def check_secret(findings: Findings, place: str, command: str) -> None:
    """Descriptions are committed and shown; the secret is not."""
    if TOKEN_GIVEN.search(command):
        findings.problem(place, "has Ray's token in it; keep it in a file that file_mounts brings, ~/.ray/auth_token")


def check_image(findings: Findings, place: str, image: str) -> None:
    """An image of Ray's own has the version that everything else is pinned to."""
    found = RAY_IMAGE.search(image)
    if found and not re.match(rf"{re.escape(ray_version())}(?![\d.])", found["tag"]):
        findings.problem(place, f"'{image}' is another Ray than requirements.txt's; take {ray_version()}")


def ray_version() -> str:
    """Ray's version as pinned; where the code lies without requirements.txt, the installed one."""
    pinned = re.search(r"^ray(?:\[.*?\])?==(\S+)", REQUIREMENTS.read_text(), re.M) if REQUIREMENTS.exists() else None
    return pinned[1] if pinned else importlib.metadata.version("ray")


class Start(NamedTuple):
    """One `ray start` of a shell command: its options, flags with the value '', and the RAY_AUTH_MODE that it has."""

    options: dict[str, str]
    auth_mode: str | None


def ray_starts(command: str) -> list[Start]:
    """All of a shell command, also of one in a shell's quotes."""
    found = []
    for start in re.finditer(r"\bray start\b([^;&|\n]*)", command):
        before = command[: start.start()]
        before = re.split(r"\bunset\s+RAY_AUTH_MODE\b", before)[-1]
        ahead = re.split(r"[;&|\n]", before)[-1]  # what is set there is set for this one
        modes = re.findall(MODE, ahead) or re.findall(rf"\bexport\b[^;&|\n]*{MODE}", before)
        found.append(Start(_options(start[1]), modes[-1] if modes else None))
    return found


def _options(text: str) -> dict[str, str]:
    options = {}
    try:
        words = shlex.split(text)
    except ValueError:  # the end of a quotation that began before
        words = re.sub(r"['\"]", " ", text).split()
    for number, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[number + 1] if number + 1 < len(words) else ""
            options[name] = value if equals else ("" if following.startswith("--") else following)
    return options
