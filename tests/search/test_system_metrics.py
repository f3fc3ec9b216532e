"""A real study whose trials, two in a lane's process, tell how busy the machine is."""

import json

import pandas

from tests.search import studies
from tests.search.tracking.tracked import Seen
from trainables.files import LOG

BODY = """\
eps = trial.suggest_float("eps", 1.0, 2.0)
return {"stages": [4], "eps": eps}"""
NAME = "busy"


def test_they_reach_the_run_and_no_table(tmp_path):
    space = studies.write_space(tmp_path, BODY, [], "trials=2, epochs=2, grace_epochs=2, baselines=[]")
    pack = ("--concurrency", "2", "--set", "pack=2", "system_metrics=true")
    ran = studies.run("--space", space, "--name", NAME, *pack, cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    assert "system/" not in ran.out and "system/" not in (tmp_path / "runs" / NAME / "trials.csv").read_text()
    assert len(pandas.read_csv(tmp_path / "runs" / NAME / "trials.csv")) == 2
    seen = Seen(f"sqlite:///{tmp_path}/runs/mlflow.db", NAME)
    for path in (tmp_path / "runs" / NAME / "trials").glob("*/record.json"):
        record = json.loads(path.read_text())
        run = seen.children[record["trial_id"]]
        for name in ("system/system_memory_usage_percentage", "system/system_memory_usage_megabytes"):
            told = {entry["epoch"]: entry[name] for entry in record["history"]}
            assert len(told) == 2 and min(told.values()) > 0
            logged = seen.client.get_metric_history(run.info.run_id, name)
            assert {metric.step: metric.value for metric in logged} == told
        assert not any(name.startswith("system/") for name in run.data.params)
        lines = (path.parent / LOG).read_text().splitlines()
        assert f'"eps": {record["params"]["eps"]}' in lines[1] and lines[-1].endswith(" ended after epoch 2")
