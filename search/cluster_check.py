"""Checks cluster descriptions without asking any cloud: files for `ray up`, and KubeRay's manifests.

    python -m search.cluster_check [FILE ...] [--workers-per-trial K] [--cpus-per-worker C] [--gpus-per-trial G]

Exit codes: 0 all are sound, 2 one line a problem.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # run as a script: the repository's root is what holds the packages, not this folder
    sys.path[0] = str(ROOT)

OURS = ("ray_cluster.yaml", "clusters/gcp.yaml", "clusters/kuberay_cluster.yaml", "clusters/kuberay_job.yaml")


def make_parser() -> argparse.ArgumentParser:
    """The command's flags."""
    from search.exits import Parser

    parser = Parser(
        prog="search/cluster_check.py",
        description="Check cluster descriptions: Ray's own schema, and what it misses. Nothing is started or asked.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("files", nargs="*", metavar="FILE", help="for `ray up`, or KubeRay's manifests (default: this repository's)")
    add("--workers-per-trial", type=int, default=1, metavar="K", help="as a study has it (default: 1)")
    add("--cpus-per-worker", type=int, default=1, metavar="C", help="as a study has it (default: 1)")
    add("--gpus-per-trial", type=float, metavar="G", help="as a study has it (default: 1 where a file has GPUs)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Checks the files; returns the exit code."""
    arguments = make_parser().parse_args(argv)
    from search.exits import exit_code

    def command() -> int:
        from search.clusters.check import run_check

        files = arguments.files or [str(ROOT / name) for name in OURS]
        return run_check(files, arguments.workers_per_trial, arguments.cpus_per_worker, arguments.gpus_per_trial)

    return exit_code(command)


def console() -> None:
    """The console command `ofakd-cluster-check`."""
    sys.exit(main())


if __name__ == "__main__":
    console()
