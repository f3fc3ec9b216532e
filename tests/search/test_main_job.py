"""The whole main job at smoke size, once, through the real Ray, Optuna and MLflow; every test looks at what it left."""

import json
import math
import os

import jsonschema
import optuna
import pandas
import pytest
import timm
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image
from safetensors.torch import load_file

import trainables.models  # noqa: F401 - the student's name
from search import export, features, train
from search.run import main as search_main
from tests.search import studies
from trainables.files import LOG

NAME = "smoke"


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    os.environ["OFAKD_TEST"] = str(folder)  # every process of the study inherits it
    ran = studies.run("--space", studies.MAIN_SPACE, "--smoke", "--name", NAME, cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    return folder, ran, studies.left_behind(folder)


@pytest.fixture(scope="module")
def runs(job):
    folder, *_ = job
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name(NAME)
    return client, client.search_runs([experiment.experiment_id])


def test_it_trains_three_trials_and_the_baselines(job):
    folder, _, _ = job
    table = pandas.read_csv(folder / "runs" / NAME / "trials.csv")
    assert sorted(table[table.role == "baseline"].trial_id) == ["kd", "scratch"]
    assert len(table[table.role == "trial"]) == 3
    assert set(table.state) == {"complete"}
    assert (table.epochs == 2).all()


def test_the_terminal_tells_the_end(job):
    _, ran, _ = job
    for said in (
        "scratch",
        "On the test split (",
        "ended by: all 3 trials have run",
        "train.py",
        "branches: in training, trial",
        "mlflow ui",
        "export.py",
        f"runs/{NAME}/",
        "run.log",
        "teacher",
    ):
        assert said in ran.out
    assert ran.err == ""
    assert "Traceback" not in ran.out


def test_each_trial_has_a_log_of_its_own(job):
    folder, *_ = job
    records = [json.loads(path.read_text()) for path in trials(folder).glob("*/record.json")]
    assert len(records) == 8
    for record in records:
        lines = (trials(folder) / record["trial_id"] / LOG).read_text().splitlines()
        assert " begins on " in lines[0] and f'"seed": {record["config"]["seed"]}' in lines[1]
        assert [line.split(":")[-2].split()[-1] for line in lines if " epoch " in line and "/2: " in line] == [
            "1/2",
            "2/2",
        ]
        assert lines[-1].endswith(" ended after epoch 2") and not any("WARNING" in line for line in lines), lines
    (log,) = (folder / "runs" / "teachers").glob(f"*/{LOG}")
    assert log.read_text().rstrip().endswith(" ended after epoch 2")


def test_no_process_outlives_the_study(job):
    assert job[2] == []


def test_optuna_holds_the_same_trials(job):
    folder, *_ = job
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "runs" / NAME / "optuna.log"))
    study = optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(backend))
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert all(sorted(trial.intermediate_values) == [1, 2] for trial in study.trials)
    assert study.trials[0].params["eps"] == 1.0  # the first guess


def test_mlflow_holds_a_parent_and_its_children(runs):
    client, found = runs
    by_role = {}
    for run in found:
        by_role.setdefault(run.data.tags["role"], []).append(run)
    counts = {role: len(members) for role, members in by_role.items()}
    assert counts == {"study": 1, "trial": 3, "baseline": 2, "finalist": 3}
    parent = by_role["study"][0]
    assert parent.info.status == "FINISHED"
    for name in ("pair", "scale", "git_commit", "data_fingerprint", "teacher_sha256"):
        assert parent.data.tags[name]
    assert "teacher/top1" in parent.data.metrics and parent.data.params["seed"] == "0"
    children = by_role["trial"] + by_role["baseline"] + by_role["finalist"]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert len({frozenset(run.data.params) for run in children}) == 1  # equal in name, so that Compare works
    for run in children:
        assert run.data.tags["state"] == "complete" and run.info.status == "FINISHED"
        assert {"student", "teacher", "distiller", "eps", "temperature", "stages", "lr"} <= set(run.data.params)
        assert run.data.metrics["cost/student_params"] > 0 and run.data.metrics["cost/student_flops"] > 0
        taps = run.data.params["distiller"] == "ofa" and run.data.params["stages"] != "none"
        assert (run.data.metrics["cost/branch_params"] > 0) == (run.data.metrics["cost/branch_flops"] > 0) == taps
    artifacts = {item.path for item in client.list_artifacts(parent.info.run_id)}
    assert {
        "vit_to_mlp.py", "spaces", "settings.yaml", "versions.yaml", "trials.csv", "best.yaml", "history.png",
        "importance.png",
    } <= artifacts  # fmt: skip


def test_the_finalists_alone_have_seen_the_test_split(job, runs):
    folder, *_ = job
    _, found = runs
    for run in found:
        tested = any(name.startswith("test/") for name in run.data.metrics)
        assert tested == (run.data.tags["role"] == "finalist"), run.data.tags
    records = {path.parent.name: json.loads(path.read_text()) for path in trials(folder).glob("*/record.json")}
    finalists = {name: record for name, record in records.items() if record["role"] == "finalist"}
    best = yaml.safe_load((folder / "runs" / NAME / "best.yaml").read_text())["trial"]
    assert set(finalists) == {f"{best}-seed1", "scratch-seed1", "kd-seed1"}
    told = yaml.safe_load((folder / "runs" / NAME / "best.yaml").read_text())["final"]
    last = finalists[f"{best}-seed1"]["history"][-1]
    assert told == {"seeds": [1], "val/top1": [last["val/top1"]], "test/top1": [last["test/top1"]]}
    for record in finalists.values():
        own = records[record["of"]]["config"]
        assert record["config"] == {**own, "seed": 1, "sched_restarts": []}, "equal epochs and data, another seed"
        assert (trials(folder) / record["trial_id"] / "test.npz").exists()


def trials(folder):
    return folder / "runs" / NAME / "trials"


def test_every_epoch_is_in_mlflow_once_and_equals_the_record(job, runs):
    folder, *_ = job
    client, found = runs
    for run in found:
        if run.data.tags["role"] == "study":
            continue
        record = json.loads((folder / "runs" / NAME / "trials" / run.data.tags["trial_id"] / "record.json").read_text())
        for name in set(record["history"][0]) - {"epoch"}:
            logged = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, name)]
            told = [(entry["epoch"], entry[name]) for entry in record["history"] if name in entry]
            assert sorted(logged) == told and len(told) == (1 if name.startswith("cost/") else 2), name


def test_the_best_is_the_student_alone(job):
    folder, *_ = job
    study = folder / "runs" / NAME
    best = yaml.safe_load((study / "best.yaml").read_text())
    config = best.get("config", best)
    weights = load_file(study / "best_student.safetensors")
    model = timm.create_model(
        config["student"], num_classes=10, img_size=config["img_size"], **config["student_kwargs"]
    )
    model.load_state_dict(weights)
    assert torch.isfinite(model(torch.zeros(1, 3, config["img_size"], config["img_size"]))).all()
    assert all(isinstance(config[name], float) and math.isfinite(config[name]) for name in ("eps", "lr", "min_lr"))


def test_the_plots_show_something(job):
    folder, *_ = job
    for name in ("history.png", "importance.png"):
        image = Image.open(folder / "runs" / NAME / name).convert("L")
        assert image.size[0] > 600 and sum(count > 0 for count in image.histogram()) > 10


def test_the_export_command_of_the_last_lines_works(job, tmp_path, capsys):
    folder, *_ = job
    study = ["--study", NAME, "--storage", str(folder / "runs")]
    arguments = [*study, "--to", "json", "--out", str(tmp_path / "out")]
    assert export.main(arguments) == 0
    record = json.loads((tmp_path / "out" / "best.json").read_text())
    best = yaml.safe_load((folder / "runs" / NAME / "best.yaml").read_text())
    assert {name: record[name] for name in best} == json.loads(json.dumps(best)) and len(record["classes"]) == 10
    schema = json.loads((tmp_path / "out" / "record.schema.json").read_text())
    jsonschema.validate(record, schema)
    assert (tmp_path / "out" / "student.safetensors").exists()
    capsys.readouterr()
    assert export.main(arguments) == 2
    assert "is not empty" in capsys.readouterr().err
    assert export.main(["--study", "nosuch", "--to", "xml", "--out", str(tmp_path / "new")]) == 2
    assert capsys.readouterr().err.count("error:") == 2
    assert export.main([*study, "--trial", "99", "--to", "json", "--out", str(tmp_path / "new")]) == 2
    assert f"--trial: '{NAME}' has no trial '99'; there are scratch, kd, 0" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["python", "lightning", "hf", "hydra", "torchdistill"])
def test_the_best_goes_to_each_trainer(job, tmp_path, target):
    folder, *_ = job
    study = ["--study", NAME, "--storage", str(folder / "runs")]
    assert export.main([*study, "--to", target, "--out", str(tmp_path / "out"), "--full-length"]) == 0
    text = (tmp_path / "out" / "EXPORT.md").read_text()
    assert "## Carried over exactly" in text and f"study {NAME}" in text


def test_what_a_trainer_cannot_run_is_refused(job, tmp_path, capsys):
    folder, *_ = job
    arguments = ["--study", NAME, "--storage", str(folder / "runs"), "--to", "ofakd", "--out", str(tmp_path / "out")]
    assert export.main(arguments) == 2
    errors = capsys.readouterr().err.splitlines()
    assert any("img_size: the script is for 224 pixels" in line for line in errors)
    assert all(line.startswith("error: --to ofakd: ") for line in errors) and not (tmp_path / "out").exists()
    arguments[arguments.index("ofakd")] = "timm"
    assert export.main(arguments) == 2
    assert "student: mixer_nano is no model of timm's own" in capsys.readouterr().err
    for more, reason in (
        (["--to", "weights", "--full-length"], "--full-length: weights is of a student that is trained"),
        (["--to", "hf", "--onnx"], "--onnx: it is the weights' other form; give --to weights"),
        (["--to", "hf", "--study", ""], "--study: give it"),
    ):
        assert export.main([*arguments[:4], "--out", str(tmp_path / "out"), *more]) == 2
        assert reason in capsys.readouterr().err


def test_a_record_is_another_study_s_first_guess(job, tmp_path, capfd):
    folder, *_ = job
    study = ["--study", NAME, "--storage", str(folder / "runs")]
    assert export.main([*study, "--to", "json", "--out", str(tmp_path / "out")]) == 0
    again = ["--space", str(studies.MAIN_SPACE), "--dry-run", "--storage", str(tmp_path / "runs")]
    assert search_main([*again, "--warm-start", str(tmp_path / "out" / "best.json")]) == 0
    assert f"warm start from {NAME}: 1 first guess" in " ".join(capfd.readouterr().out.split())
    assert search_main([*again, "--warm-start", str(tmp_path / "nosuch.json")]) == 2
    assert "nosuch.json cannot be read (No such file or directory)" in capfd.readouterr().err


def test_the_study_s_features_are_compared_on_the_images_that_ranked_it(job, tmp_path, capfd):
    folder, *_ = job
    arguments = ["--study", NAME, "--storage", str(folder / "runs"), "--out", str(tmp_path / "out")]
    assert features.main(arguments) == 0
    assert "note:" not in capfd.readouterr().out
    found = json.loads((tmp_path / "out" / "cka.json").read_text())["metrics"]
    trial = yaml.safe_load((folder / "runs" / NAME / "best.yaml").read_text())["trial"]
    record = json.loads((folder / "runs" / NAME / "trials" / trial / "record.json").read_text())
    assert found["student/top1"] == pytest.approx(record["history"][-1]["val/top1"])
    assert found["agreement"] == pytest.approx(record["history"][-1]["val/agreement"])


def test_a_taken_name_is_refused(job, monkeypatch, capfd):
    monkeypatch.chdir(job[0])
    assert search_main(["--space", studies.MAIN_SPACE, "--smoke", "--name", NAME]) == 2
    told = capfd.readouterr().err
    assert told.startswith(f"error: --name: study '{NAME}' exists") and told.count("\n") == 1


def test_an_ended_study_is_extended_by_a_larger_total(job):
    folder, *_ = job
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs" / NAME / "trials").glob("*/record.json")}
    more = ("--resume", "--trials", "4", "--concurrency", "1")  # a lane less to bring up
    ran = studies.run("--space", studies.MAIN_SPACE, "--name", NAME, *more, cwd=folder)
    assert ran.code == 0, ran.err + ran.out
    table = pandas.read_csv(folder / "runs" / NAME / "trials.csv")
    assert len(table[table.role == "trial"]) == 4 and table.trial_id.is_unique
    assert all(path.stat().st_mtime_ns == at for path, at in before.items())  # no earlier trial was touched
    client = MlflowClient(f"sqlite:///{folder}/runs/mlflow.db")
    experiment = client.get_experiment_by_name(NAME)
    records = len(list(trials(folder).glob("*/record.json")))
    assert records in (2 + 4 + 3, 2 + 4 + 3 + 1), "the new trial is in the final where it is the best"
    assert len(client.search_runs([experiment.experiment_id])) == 1 + records


def test_the_best_is_trained_for_use(job, monkeypatch, capfd):
    folder, *_ = job
    arguments = ("--study", NAME, "--epochs", "2")
    ran = studies.run(*arguments, cwd=folder, script="train")
    assert ran.code == 0, ran.err + ran.out
    best = yaml.safe_load((folder / "runs" / NAME / "best.yaml").read_text())["trial"]
    out = folder / "runs" / NAME / "delivered" / f"trial-{best}-2-epochs"
    about = yaml.safe_load((out / "config.yaml").read_text())
    assert about["config"]["train_with_holdout"] and about["config"]["epochs"] == 2
    assert about["test"]["test/top1"] == pytest.approx(float(ran.out.split("top-1 ")[1].split()[0]), abs=0.01)
    card = (out / "MODEL_CARD.md").read_text()
    code = card.split("```python\n")[1].split("```")[0].replace("student.safetensors", str(out / "student.safetensors"))
    loaded = {}
    exec(code, loaded)  # what the card tells its reader to run
    assert loaded["model"](torch.zeros(1, 3, 16, 16)).shape == (1, 10)
    written = (out / "student.safetensors").stat().st_mtime_ns
    monkeypatch.chdir(folder)
    assert train.main(list(arguments)) == 0 and "top-1" in capfd.readouterr().out
    assert (out / "student.safetensors").stat().st_mtime_ns == written, "what is complete is not trained again"
    assert studies.left_behind(folder) == []


def test_what_cannot_be_trained_for_use_is_told_in_one_line(job, monkeypatch, capfd):
    monkeypatch.chdir(job[0])
    for arguments, told in {
        ("--study", "nosuch"): "there is no study 'nosuch'",
        ("--study", NAME, "--trial", "99"): f"'{NAME}' has no trial '99'; there are",
        ("--study", NAME, "--epochs", "0"): "--epochs: 0 must be at least 1",
    }.items():
        assert train.main(list(arguments)) == 2
        said = capfd.readouterr().err
        assert said.startswith("error:") and said.count("\n") == 1 and told in said, said
