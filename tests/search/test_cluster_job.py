"""The command of clusters/kuberay_job.yaml: a study that is begun, and gone on with where it is tried again."""

import os
import subprocess
import sys
from pathlib import Path

import pandas
import pytest

from tests.search.studies import LIMIT_S, MAIN_SPACE, ROOT, left_behind

pytestmark = pytest.mark.long


JOB = ROOT / "clusters" / "study.sh"


def tried(*arguments: str) -> subprocess.CompletedProcess:
    """One try of the job."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(JOB), "--space", MAIN_SPACE, "--smoke", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=LIMIT_S)


def finished(folder: Path) -> pandas.DataFrame:
    """How the study's trials came out, and when."""
    table = pandas.read_csv(folder / "trials.csv", dtype={"trial_id": str}).set_index("trial_id")
    return table.loc[table.index.str.isdigit(), ["state", "val/top1", "seconds"]]


def test_a_job_that_is_tried_again_goes_on_with_its_study(tmp_path, monkeypatch):
    monkeypatch.setenv("OFAKD_TEST", str(tmp_path))
    named = ("--name", "s", "--storage", str(tmp_path))
    ran = tried(*named, "--trials", "2")
    assert ran.returncode == 0, ran.stderr
    first = finished(tmp_path / "s")
    ran = tried(*named, "--trials", "3")
    assert ran.returncode == 0, ran.stderr
    second = finished(tmp_path / "s")
    assert list(first.index) == ["0", "1"] and list(second.index) == ["0", "1", "2"]
    pandas.testing.assert_frame_equal(second.loc[first.index], first)  # they were not trained again
    assert left_behind(tmp_path) == []


def test_bad_input_stays_bad_when_it_is_tried_again(tmp_path):
    ran = tried("--name", "s", "--storage", str(tmp_path), "--set", "epochs=none")
    assert ran.returncode == 2 and "epochs" in ran.stderr


STANDS_IN = """#!/usr/bin/env bash
echo "$@" >>"$0.calls"
case $(wc -l <"$0.calls") in
1) echo "error: --name: study 's' exists in s3://b/c; add --resume or take another name" >&2; exit 2 ;;
2 | 3) echo "error: --name: study 's' is being run (process 7 on head-1); its lease ends in 40 s" >&2; exit 2 ;;
esac
"""


def test_a_try_whose_predecessor_was_lost_waits_until_the_study_is_free(tmp_path, monkeypatch):
    for name, text in (("python", STANDS_IN), ("sleep", "#!/bin/sh\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ran = subprocess.run(["bash", str(JOB), "--name", "s"], capture_output=True, text=True, timeout=LIMIT_S)
    assert ran.returncode == 0, ran.stderr
    calls = (tmp_path / "python.calls").read_text().splitlines()
    assert [call.endswith("--name s --resume") for call in calls] == [False, True, True, True]
    assert ran.stderr.count("is being run") == 2
