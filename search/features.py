"""Compares the features of two models, layer by layer: CKA similarity, agreement, a heatmap.

    python search/features.py --teacher resnet18 --student vit_tiny_patch16_224
    python search/features.py --study STUDY

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
        prog="search/features.py",
        description="Compare the features of two models on the holdout, layer by layer (linear CKA).",
        allow_abbrev=False,
        epilog="Any field of the data and the models is set by --set, e.g. --set img_size=64 student_kwargs.depth=3",
    )
    add = parser.add_argument
    add("--teacher", metavar="MODEL", help="a model's name, as in a study")
    add("--student", metavar="MODEL", help="a model's name, as in a study")
    add("--study", metavar="STUDY", help="take both models, their weights and the data from a finished study")
    weights = "a checkpoint, 'pretrained' or 'scratch' (default: scratch, or the study's)"
    add("--teacher-weights", metavar="FILE", help=weights)
    add("--student-weights", metavar="FILE", help=weights)
    add("--data", metavar="NAME_OR_DIR", help="as in a study (default: digits, or the study's)")
    add("--data-dir", metavar="DIR", help="where a named data set lies")
    add("--images", type=int, metavar="N", help="so many of the holdout, drawn at random (default: all)")
    add("--batch-size", type=int, metavar="N", help="images a batch, 4 or more (default: 64)")
    add("--self", action="store_true", help="draw each model's similarity with itself too")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="set any field")
    add("--out", metavar="DIR", type=Path, help="where to write (default: features/TEACHER-STUDENT in the storage)")
    add("--storage", default="runs", metavar="DIR_OR_URI", help="where studies lie (default: runs)")
    add("--tracking-uri", metavar="URI", help="log to this MLflow server or store too (default: do not)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Compares; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.feature_command import run_features

        return run_features(arguments)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-features`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
