"""Follows the studies of a Ray cluster, or with --storage those of a folder.

    python search/jobs.py list|status|logs|stop|resume|rm [STUDY] [--address http://HEAD:8265] [--storage DIR_OR_URL]

Exit codes: 0 done, 1 failed while running, 2 bad input (one line a problem), 130 interrupted.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

ACTIONS = {
    "list": "all studies: state, start, time taken",
    "status": "one study: its state, its trials so far, its last lines",
    "logs": "what a study printed",
    "stop": "end a study cleanly, and wait until it has ended; it can go on later",
    "resume": "have a study that ended or was stopped go on",
    "rm": "remove a study: what its storage has of it, its MLflow runs and models, its jobs; asks first",
}


def make_parser() -> argparse.ArgumentParser:
    """The command's actions and their flags."""
    from search.exits import Parser

    parser = Parser(prog="search/jobs.py", description="Follow studies that run on a cluster.", allow_abbrev=False)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, purpose in ACTIONS.items():
        action = actions.add_parser(name, help=purpose, description=purpose, allow_abbrev=False)
        add = action.add_argument
        if name != "list":
            add("study", metavar="STUDY", help="the study's name")
        address = "the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or http://127.0.0.1:8265)"
        storage = (
            "alone: the studies of this folder or s3://…; with --address: which of the cluster's studies of a name"
        )
        add("--address", metavar="URL", help=address)
        add("--storage", metavar="DIR", help=storage)
        if name == "logs":
            add("--follow", action="store_true", help="go on printing until the study ends")
        if name == "rm":
            add("--tracking-uri", metavar="URI", help="MLflow server or store (default: the study's)")
            add("--yes", action="store_true", help="do not ask")
            add("--missing-ok", action="store_true", help="a study that is gone already is no error")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Does one action; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.jobs_command import run_jobs

        return run_jobs(arguments)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-jobs`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
