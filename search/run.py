"""Searches the hyperparameters of OFA-KD for one teacher and one student.

    python search/run.py --space spaces/vit_to_mlp.py

Exit codes: 0 done, 1 failed while running, 2 bad input (one line a problem), 130 interrupted and resumable.
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])


def make_parser() -> argparse.ArgumentParser:
    """The flags that people type daily; everything else is a field, reached by --set."""
    from search.exits import Parser

    parser = Parser(
        prog="search/run.py",
        description="Search the hyperparameters of OFA-KD for one teacher and one student.",
        allow_abbrev=False,
        epilog="Any field of the study is set by --set, e.g. --set student=resnet18 sampler=gp search.eps=1.0..2.0",
    )
    add = parser.add_argument
    add("--space", required=True, metavar="FILE", help="the space file, e.g. spaces/vit_to_mlp.py")
    add("--name", metavar="STUDY", help="the study's name (default: space, scale and time)")
    add("--scale", choices=("embedded", "cifar100", "imagenet"), help="default: embedded, or what --data implies")
    add("--smoke", action="store_true", default=None, help="shrink the scale to seconds: 3 trials of 2 epochs")
    add("--dry-run", action="store_true", help="check everything, sample the space, estimate the cost; train nothing")
    add("--resume", action="store_true", help="go on with the study of that --name")
    add(
        "--warm-start",
        nargs="+",
        action="extend",
        metavar="STUDY",
        help="try the best parameters of earlier studies first; also a best.json that was exported",
    )
    add("--trials", type=int, metavar="N", help="trials in all, baselines not counted")
    add("--epochs", type=int, metavar="N", help="epochs of a full-length trial")
    add("--time-budget", type=float, metavar="SECONDS", help="of the whole study, its final and all sessions included")
    add("--seed", type=int, metavar="N", help="of sampler, models and the stream of images")
    add("--set", action="extend", nargs="+", default=[], metavar="KEY=VALUE", help="set any field of the study")
    add("--data", metavar="NAME_OR_DIR", help="torch/NAME, hfds/NAME, or a folder of class folders or idx files")
    add("--data-dir", metavar="DIR", help="where a named data set lies")
    add("--workers-per-trial", type=int, metavar="K", help="Ray Train workers a trial (data-parallel)")
    add("--gpus-per-trial", type=float, metavar="G", help="GPUs a trial, shared by its workers")
    add("--concurrency", type=int, metavar="C", help="trials side by side (default: as many as fit)")
    add("--tracking-uri", metavar="URI", help="MLflow server or store (default: SQLite in the storage)")
    add("--storage", metavar="DIR_OR_URI", help="where everything is written (default: runs)")
    add("--address", metavar="RAY_ADDRESS", help="a Ray cluster: HOST:PORT joins it, http://HEAD:8265 submits to it")
    add("--detach", action="store_true", help="run in the background and print how to follow it")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs one study; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.command import run_command

        return run_command(arguments, sys.argv[1:] if argv is None else argv)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-search`."""
    sys.exit(main())


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code) if code == 130 else sys.exit(code)
