"""Exports a study's best configuration for other trainers.

python search/export.py --study STUDY --to TARGET --out DIR
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

TARGETS = {"json": "the canonical record: every field of the configuration, its provenance, and the weights"}


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    from search.exits import Parser

    parser = Parser(prog="search/export.py", description="Export a study's best configuration.")
    parser.add_argument("--study", required=True, help="the study's name")
    parser.add_argument("--to", required=True, metavar="TARGET", help=f"one of: {', '.join(TARGETS)}")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="a folder that is new or empty")
    parser.add_argument("--storage", default="runs", metavar="DIR", help="where the study lies (default: runs)")
    parser.add_argument("--tracking-uri", metavar="URI", help="accepted by every command; an export reads the storage")
    return parser


def export_json(folder: Path, out: Path) -> list[str]:
    """Writes `best.json` (the content of `best.yaml`, floats as JSON numbers) and the student's weights.

    Args:
        folder: the study's folder.
        out: where to write.

    Returns:
        The names of what was written.
    """
    import json
    import shutil

    import yaml

    out.mkdir(parents=True, exist_ok=True)
    (out / "best.json").write_text(json.dumps(yaml.safe_load((folder / "best.yaml").read_text()), indent=2) + "\n")
    shutil.copyfile(folder / "best_student.safetensors", out / "student.safetensors")
    return ["best.json", "student.safetensors"]


def main(argv: list[str] | None = None) -> int:
    """Exports; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    folder, out = Path(arguments.storage.removeprefix("file://")) / arguments.study, arguments.out
    problems = []
    if arguments.to not in TARGETS:
        problems.append(f"--to: '{arguments.to}' is no target; there are {', '.join(TARGETS)}")
    if not folder.is_dir():
        problems.append(f"--study: there is no study '{arguments.study}' in {folder.parent}")
    elif not (folder / "best.yaml").exists():
        problems.append(f"--study: '{arguments.study}' has no finished best trial yet")
    elif not (folder / "best_student.safetensors").exists():
        problems.append(f"--study: '{arguments.study}' has no weights; a simulated study trains none")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        problems.append(f"--out: {out} is not empty; give a new folder")
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return 2
    for name in export_json(folder, out):
        print(out / name)
    return 0


def console() -> None:
    """The console command `ofakd-export`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
