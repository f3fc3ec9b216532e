"""What a job of a cluster runs: this code, the space file and the user's own modules, in one folder to upload."""

import json
import os
import shutil
from pathlib import Path

from search.tracking.facts import COMMIT, commit

ROOT = Path(__file__).resolve().parents[1]
OURS = ("search", "trainables", "spaces")
UPLOADED = Path("spaces", "uploaded")  # of the package: for a space file from elsewhere
NOT_MODULES = {*OURS, "tests", "runs"}  # folders of the current one that hold no models of the user's
MOST_FILES, MOST_MB = 1000, 20  # of the user's modules: more is no folder of a study's
MOST_FOLDERS = 2000  # that are looked into for them


def package(space: Path, folder: Path, place: Path) -> tuple[str, str | None]:
    """Copies what a study needs into an empty folder.

    Args:
        space: the space file.
        folder: the current one, whose modules (`student=mymodel:make`) come along.
        place: where to copy to.

    Returns:
        The space file's path in the package; and why there are no modules of the user's, None where all came along.
    """
    copy_ours(place)
    modules, problem = own_modules(folder)
    for path in modules:
        _copy(folder / path, place / path)
    space, folder = space.resolve(), folder.resolve()
    if space.is_relative_to(ROOT / "spaces"):
        return str(space.relative_to(ROOT)), problem
    inside = space.relative_to(folder) if space.is_relative_to(folder) else UPLOADED / space.name
    if inside.parts[0] in OURS:  # it must hide nothing of ours
        inside = UPLOADED / space.name
    _copy(space, place / inside)
    return str(inside), problem


def copy_ours(place: Path) -> None:
    """Copies this code into an empty folder, and which commit it is."""
    for name in OURS:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    (place / COMMIT.relative_to(ROOT)).write_text(json.dumps(commit()))


def own_modules(folder: Path) -> tuple[list[Path], str | None]:
    """The Python files under a folder, relative to it, without virtual environments, hidden folders and ours.

    Returns:
        The files; and instead of them, where there are too many, a sentence that says so.
    """
    found, size = [], 0
    for folders, (at, inner, files) in enumerate(os.walk(folder), start=1):
        top = Path(at) == folder
        inner[:] = sorted(name for name in inner if _may_hold_modules(Path(at, name), top))
        for name in sorted(files):
            # Not the lock that an editor has beside a file: a link to nowhere.
            if name.endswith(".py") and not name.startswith(".") and Path(at, name).is_file():
                found.append(Path(at, name).relative_to(folder))
                size += Path(at, name).stat().st_size
        if len(found) > MOST_FILES or size > MOST_MB * 1e6 or folders > MOST_FOLDERS:
            return [], (
                f"no module of {folder} goes along: it holds more than {MOST_FILES} Python files, {MOST_MB} MB of them "
                f"or {MOST_FOLDERS} folders; where the study has models of your own, start it in a folder of theirs"
            )
    return found, None


def _may_hold_modules(path: Path, top: bool) -> bool:
    if path.name.startswith(".") or path.name in ("__pycache__", "node_modules", "site-packages"):
        return False
    return not (top and path.name in NOT_MODULES) and not (path / "pyvenv.cfg").exists()


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
