"""A study over synthetic curves that a budget ends: all that tell of it agree; its dry run."""

import json
import os

import optuna
import pandas
import pytest
from mlflow import MlflowClient

from search import run
from search.ledger import Ledger
from tests.search import studies

BODY = "return {'stages': [4], 'eps': trial.suggest_float('eps', 1.0, 2.0)}"
FIELDS = "student='mixer_nano', student_kwargs={}, scheduler='none', epochs=2, trials=20, finalists=1, seeds=1"
BUDGET = ("--concurrency", "1", "--set", "total_epochs=11")
REASON = "stopped by the total of 11 epochs: no other run fits beside the final"


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    folder = tmp_path_factory.mktemp("budget")
    return studies.write_space(folder, BODY, [], FIELDS), folder


@pytest.fixture(scope="module")
def study(space):
    path, folder = space
    os.environ["OFAKD_TEST"] = str(folder)
    ran = studies.run("--space", path, "--name", "s", *BUDGET, "simulate=synthetic", cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    assert studies.left_behind(folder) == []
    return folder / "runs" / "s", ran


def test_the_budget_leaves_the_final_its_epochs_and_is_not_overrun(study):
    folder, _ = study
    # Of 11 epochs the final has 4 and the baseline 2: there is room for two trials of 2, and not for a third.
    records = Ledger(folder / "trials").records.values()
    assert sorted((one.role, one.trial_id, one.state, one.epoch) for one in records) == [
        ("baseline", "scratch", "complete", 2),
        *[("finalist", name, "complete", 2) for name in sorted(one.trial_id for one in records if one.of)],
        ("trial", "0", "complete", 2),
        ("trial", "1", "complete", 2),
    ]
    assert sum(one.epoch for one in records) == 10


def test_all_tell_what_ended_it(study):
    folder, ran = study
    assert f"ended by: {REASON}" in ran.out and "10 epochs in all" in ran.out
    account = json.loads((folder / "account.json").read_text())
    assert (account["ended_by"], account["ended_by_field"], account["ended_by_limit"]) == (REASON, "total_epochs", 11)
    (session,) = account["sessions"]
    assert set(session["wall_s"]) == {"start-up", "teacher", "search", "finalists", "results"}
    assert 0 < session["held_s"]["search"] <= session["wall_s"]["search"], "there is one lane"
    client = MlflowClient(f"sqlite:///{folder.parent}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("s").experiment_id])
    (parent,) = [one for one in runs if one.data.tags["role"] == "study"]
    assert parent.data.tags["ended_by"] == REASON and parent.info.status == "FINISHED"
    assert sum(one.data.tags["role"] == "trial" for one in runs) == 2
    table = pandas.read_csv(folder / "trials.csv")
    assert {"0", "1"} <= set(table.trial_id.astype(str)) and set(table.state) == {"complete"}
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "optuna.log"))
    told = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend)).trials
    assert [trial.state.name for trial in told] == ["COMPLETE"] * 2, "Optuna was asked for no trial in vain"


def test_the_report_has_the_command_and_what_it_said(study, space):
    (session,) = json.loads((study[0] / "account.json").read_text())["sessions"]
    command = f"python search/run.py --space {space[0]} --name s {' '.join(BUDGET)} simulate=synthetic"
    assert session["command"] == command and session["notes"][0].startswith("simulated (simulate=synthetic): ")
    told = (study[0] / "report.md").read_text()
    assert f"```sh\n{command}\n```\n\n*{session['notes'][0]}*" in told


def test_it_goes_on_only_with_a_larger_budget(study, space, monkeypatch, capfd):
    monkeypatch.chdir(space[1])
    before = (study[0] / "account.json").read_text()
    assert run.main(["--space", space[0], "--name", "s", "--resume"]) == 2
    assert capfd.readouterr().err == (
        f"error: total_epochs: it ended this study ({REASON}); raise it: --set total_epochs=N\n"
    )
    assert (study[0] / "account.json").read_text() == before


def test_a_dry_run_says_what_will_end_it(space, monkeypatch, capfd):
    monkeypatch.chdir(space[1])
    assert run.main(["--space", space[0], "--dry-run", *BUDGET, "patience=30", "time_budget=100000"]) == 0
    said = capfd.readouterr().out
    # 20 trials, a baseline, and two runs of the final, of 2 epochs each.
    assert "in all     46 epochs; the final is 9% of a study without stops" in said
    assert "ended by   total_epochs\n" in said
    assert (
        "warning    total_epochs (11 epochs) ends the search after about 2 of 20 trials (the whole study: 46 epochs)"
        in said
    )
    assert "note       patience 30 never acts" in said
    assert "warning    time_budget" not in said
