"""Trains a study's best configuration at full length, on the training split and the holdout together, for use.

python search/train.py --study STUDY [--trial N]
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    from search.exits import Parser

    parser = Parser(
        prog="search/train.py",
        description="Train a study's best configuration in full, on training split and holdout, with a model card.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--study", required=True, help="the study's name")
    add("--trial", metavar="N", help="which trial or baseline (default: the study's best)")
    add("--epochs", type=int, metavar="N", help="how long (default: the recipe's full length)")
    add("--storage", metavar="DIR_OR_URI", help="where the study lies (default: runs)")
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: the study's)")
    add("--address", metavar="RAY_ADDRESS", help="of a running Ray cluster (default: start one here)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Trains; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.delivery import deliver

        return deliver(arguments)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-train`."""
    sys.exit(main())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code) if code == 130 else sys.exit(code)
