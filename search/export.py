"""Exports a study's best configuration for other trainers.

python search/export.py --study STUDY --to TARGET --out DIR
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    from search.exits import Parser

    parser = Parser(
        prog="search/export.py",
        description="Export a study's best configuration for another trainer.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", help="the study's name")
    add("--trial", metavar="N", help="which trial or baseline (default: the study's best)")
    add("--to", metavar="TARGET", help="which trainer; --list names them")
    add("--out", metavar="DIR", type=Path, help="a folder that is new or empty")
    add("--list", action="store_true", help="name the targets")
    add("--full-length", action="store_true", help="the recipe's full length, where the search had a shorter one")
    add("--with-data", action="store_true", help="write the trial's images too, as a folder of class folders")
    add("--onnx", action="store_true", help="with --to weights: the student as ONNX too, compared with PyTorch")
    add("--torch-export", action="store_true", help="with --to weights: by torch.export too, compared with PyTorch")
    add("--storage", default="runs", metavar="DIR_OR_URI", help="where the study lies (default: runs)")
    add("--tracking-uri", metavar="URI", help="accepted by every command; an export reads the storage")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Exports; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.export_command import run_export

        return run_export(arguments)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-export`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
