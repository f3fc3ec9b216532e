"""Writes to MLflow what it still lacks of a study, from the study's folder.

    python search/sync.py --study STUDY

Exit codes: 0 done, 1 failed while running, 2 bad input (one line a problem), 130 interrupted.
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
        prog="search/sync.py",
        description="Write to MLflow what it lacks of a study: what was logged while its server was away.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", required=True, help="the study's name")
    add("--storage", default="runs", metavar="DIR_OR_URI", help="where the study lies (default: runs)")
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: the study's)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Writes what is missing; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.sync_command import run_sync

        return run_sync(arguments)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-sync`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
