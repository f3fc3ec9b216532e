"""The command that compares two models' features, run in this process on the digits with tiny models."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import yaml
from mlflow import MlflowClient
from PIL import Image
from torch import nn

from search import features
from search.ledger import TrialRecord
from search.results import write_best_yaml
from tests.ports import free_port
from tests.search.studies import ROOT
from tests.trainables.test_similarity import direct
from trainables.build import build_model, normalization
from trainables.checkpoint import save_weights, seed_everything
from trainables.config import DataFields
from trainables.data import load_splits
from trainables.similarity import layer_outputs
from trainables.stream import eval_loader
from trainables.teacher import weights_hash

TEACHER, STUDENT, SIDE = "test_vit", "test_resnet", 32
PAIR = ["--teacher", TEACHER, "--student", STUDENT]
SMALL = ["--set", f"img_size={SIDE}", "max_images=40"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(place, capfd):
    """Runs the command and returns its error lines; nothing may be left."""

    def call(*arguments: str) -> list[str]:
        before = sorted(place.rglob("*"))
        capfd.readouterr()
        assert features.main([*arguments]) == 2
        captured = capfd.readouterr()
        lines = captured.err.splitlines()
        assert lines and all(line.startswith("error: ") for line in lines), lines
        assert captured.out == "" or captured.out.startswith("comparing"), captured.out
        assert sorted(place.rglob("*")) == before
        return lines

    return call


def model(name, seed, **kwargs):
    """A model with some random weights, in evaluation mode."""
    seed_everything(seed)
    return build_model(name, num_classes=10, img_size=SIDE, kwargs=kwargs).eval()


def numbers(folder):
    return json.loads((folder / "cka.json").read_text())


def is_picture(path, least=600):
    picture = Image.open(path).convert("RGB")
    colours = picture.getcolors(maxcolors=2**24)
    return min(picture.size) >= least and len(colours) > 100


def test_the_numbers_are_those_of_a_direct_computation(place, capfd):
    models = [model(TEACHER, 5), model(STUDENT, 6)]
    for role, made in zip(("teacher", "student"), models, strict=True):
        save_weights(made, place / f"{role}.safetensors")
    weights = ["--teacher-weights", "teacher.safetensors", "--student-weights", "student.safetensors"]
    assert features.main([*PAIR, *weights, *SMALL]) == 0
    captured = capfd.readouterr()
    out = place / "runs" / "features" / f"{TEACHER}-{STUDENT}"
    assert captured.err == "" and "files:      runs/features/test_vit-test_resnet/ (cka.png, cka.json)" in captured.out
    assert sorted(path.name for path in out.iterdir()) == ["cka.json", "cka.png"]
    assert is_picture(out / "cka.png")

    holdout = load_splits(DataFields(data="digits", img_size=SIDE, max_images=40)).holdout
    found, outputs = numbers(out), []
    with torch.no_grad():
        for made in models:
            mean, std = normalization(made)
            ((images, target),) = eval_loader(holdout, SIDE, mean=mean, std=std, batch_size=40)
            outputs.append(layer_outputs(made, images))
    assert found["images"] == 40 == len(target)
    for of, pairs in {"teacher_student": outputs, "student_student": outputs[1:] * 2}.items():
        expected = torch.tensor([[direct([(x, y)]) for y in pairs[1]] for x in pairs[0]])
        torch.testing.assert_close(torch.tensor(found["cka"][of]), expected, rtol=0, atol=1e-4)
    classes = [layers[-1].argmax(1) for layers in outputs]
    right = [100 * (chosen == target).double().mean().item() for chosen in classes]
    assert found["metrics"]["teacher/top1"] == pytest.approx(right[0])
    assert found["metrics"]["student/top1"] == pytest.approx(right[1])
    agreement = 100 * (classes[0] == classes[1]).double().mean().item()
    assert found["metrics"]["agreement"] == pytest.approx(agreement)
    assert f"agreement:  {agreement:.2f} % of 40 images" in captured.out and "RANDOM" not in captured.out
    assert found["teacher_layers"][-1] == found["student_layers"][-1] == "logits"


def test_random_weights_are_named_and_repeat(place, capfd):
    for out in ("one", "two"):
        assert features.main([*PAIR, *SMALL, "--out", out, "--batch-size", "16"]) == 0
        assert capfd.readouterr().out.count("RANDOM (scratch)") == 2
    assert numbers(place / "one") == numbers(place / "two")
    assert features.main([*PAIR, *SMALL, "seed=3", "--out", "three", "--batch-size", "16"]) == 0
    assert numbers(place / "one")["cka"] != numbers(place / "three")["cka"]
    same = ["--teacher", STUDENT, "--student", STUDENT]
    assert features.main([*same, *SMALL, "--out", "four"]) == 0
    assert numbers(place / "four")["cka"]["teacher_student"][1][1] < 0.999, "two draws, not one model twice"


def test_batches_are_samples_of_all_classes(place):
    """Images of a class lie together in many data sets; batches of one class would compare something else."""
    for name, colour in {"red": (230, 20, 20), "blue": (20, 20, 230)}.items():
        (place / "data" / name).mkdir(parents=True)
        for number in range(60):
            shade = tuple(channel + number % 20 for channel in colour)
            Image.new("RGB", (16, 16), shade).save(place / "data" / name / f"{number:02}.png")
    data = ["--data", "data", "--set", f"img_size={SIDE}", "holdout=0.5"]
    assert features.main([*PAIR, *data, "--batch-size", "12", "--out", "small"]) == 0
    assert features.main([*PAIR, *data, "--batch-size", "99", "--out", "whole"]) == 0
    small, whole = (torch.tensor(numbers(place / name)["cka"]["teacher_student"]) for name in ("small", "whole"))
    torch.testing.assert_close(small, whole, rtol=0, atol=0.05)


def test_fewer_images_and_each_model_with_itself(place):
    assert features.main([*PAIR, *SMALL, "--images", "12", "--batch-size", "5", "--out", "a", "--self"]) == 0
    assert features.main([*PAIR, *SMALL, "--images", "12", "--batch-size", "5", "--out", "b"]) == 0
    assert numbers(place / "a")["images"] == 12
    wide, narrow = (Image.open(place / name / "cka.png").size for name in ("a", "b"))
    assert wide[0] > 2 * narrow[0], "three panels beside one another"
    assert features.main([*PAIR, *SMALL, "--images", "999", "--out", "c"]) == 0
    assert numbers(place / "c")["images"] == 40


def test_layers_without_a_similarity_are_null_and_named(place, capfd):
    """An MLP-Mixer's head starts at zero, so all images get the same logits."""
    student = ["--student", "mixer_nano", "--set", "student_kwargs.num_blocks=64"]
    assert features.main(["--teacher", TEACHER, *student, *SMALL, "--out", "out"]) == 0
    assert "no CKA:     student logits: equal for all images" in capfd.readouterr().out
    text = (place / "out" / "cka.json").read_text()
    assert "NaN" not in text
    found = json.loads(text)
    assert found["cka"]["teacher_student"][0][-1] is None and found["metrics"]["cka/logits"] is None
    assert len(found["student_layers"]) == 65 and is_picture(place / "out" / "cka.png")


def test_it_logs_to_mlflow_when_asked(place):
    uri = f"sqlite:///{place}/mlflow.db"
    for _ in range(2):
        assert features.main([*PAIR, *SMALL, "--tracking-uri", uri]) == 0
    client = MlflowClient(uri)
    runs = client.search_runs([client.get_experiment_by_name("features").experiment_id])
    assert len(runs) == 2 and {run.info.status for run in runs} == {"FINISHED"}
    out = place / "runs" / "features" / f"{TEACHER}-{STUDENT}"
    expected = {key: value for key, value in numbers(out)["metrics"].items() if value is not None}
    assert runs[0].data.metrics == expected
    assert {"agreement", "teacher/top1", "student/top1", "cka/mean", "cka/same_depth", "cka/closest"} <= set(expected)
    assert runs[0].data.params["teacher"] == TEACHER and runs[0].data.params["student_weights"] == "scratch"
    assert runs[0].data.tags["role"] == "features" and "digits" in runs[0].data.tags["data"]
    assert {item.path for item in client.list_artifacts(runs[0].info.run_id)} == {"cka.png", "cka.json"}
    kept = client.download_artifacts(runs[0].info.run_id, "cka.json", str(place))
    assert json.loads(Path(kept).read_text()) == numbers(out)
    assert not (place / "mlruns").exists() and (place / "runs" / "artifacts" / "features").is_dir()


@pytest.fixture
def study(place):
    """What a finished study leaves, as far as this command reads it."""
    config = {
        "teacher": TEACHER, "teacher_kwargs": {}, "student": STUDENT, "student_kwargs": {}, "data": "digits",
        "img_size": SIDE, "holdout": 0.1, "max_images": 40, "batch_size": 20, "seed": 0, "eps": 1.5,
    }  # fmt: skip
    folder = place / "runs" / "mine"
    save_weights(model(STUDENT, 8), folder / "best_student.safetensors")
    for seed, name in ((7, "right"), (9, "other")):
        weights = place / "runs" / "teachers" / name / "teacher.safetensors"
        save_weights(model(TEACHER, seed), weights)
        weights.with_name("teacher.json").write_text(json.dumps({"sha256": weights_hash(weights)}))
    record = TrialRecord("0", "trial", config | {"epochs": 1}, {}, history=[{"epoch": 1, "val/top1": 50.0}])
    data = load_splits(DataFields(data="digits", img_size=SIDE, max_images=40)).fingerprint
    content = {"config": config, "data_fingerprint": data}
    content["teacher_sha256"] = weights_hash(place / "runs" / "teachers" / "right" / "teacher.safetensors")
    write_best_yaml(record, content, folder / "best.yaml", study="mine")
    return folder


def test_a_study_brings_both_models_and_its_data(study, place, capfd):
    assert features.main(["--study", "mine"]) == 0
    said = capfd.readouterr().out
    assert "note:" not in said and "RANDOM" not in said
    found = numbers(place / "runs" / "features" / "mine")
    assert found["settings"]["teacher_weights"] == "runs/teachers/right/teacher.safetensors"
    assert found["settings"]["student_weights"] == "runs/mine/best_student.safetensors"
    assert (found["study"], found["images"], found["settings"]["img_size"]) == ("mine", 40, SIDE)
    assert found["settings"]["batch_size"] == 64, "the recipe's is another one"

    assert features.main(["--study", "mine", "--student-weights", "scratch", "--out", "before"]) == 0
    before = numbers(place / "before")
    assert before["cka"]["teacher_teacher"] == found["cka"]["teacher_teacher"]
    assert before["cka"]["student_student"] != found["cka"]["student_student"]

    arguments = ["--study", "mine", "--student", "mixer_nano", "--set", "data_seed=1", "--out", "other"]
    capfd.readouterr()
    assert features.main(arguments) == 0
    said = capfd.readouterr().out
    assert "note: these are not the images by which the study ranked its trials" in said
    assert numbers(place / "other")["settings"]["student_weights"] == "scratch", "the weights were the other model's"


@pytest.fixture
def own(place, monkeypatch):
    """A student's module in the current folder, which Python does not search by itself."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(place))])
    name = f"own_{place.name.replace('-', '_')}"
    (place / f"{name}.py").write_text(
        "import torch.nn as nn\n\n"
        "def make(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(32, num_classes))\n"
    )
    yield f"{name}:make"
    sys.modules.pop(name, None)


def test_a_module_in_the_current_folder_is_found(own, place):
    assert features.main(["--teacher", TEACHER, "--student", own, *SMALL, "--out", "out"]) == 0
    assert numbers(place / "out")["student_layers"] == ["0", "logits"]


def test_a_study_of_a_module_in_the_current_folder(own, study, place):
    kept = yaml.safe_load((study / "best.yaml").read_text())
    kept["config"]["student"] = own
    (study / "best.yaml").write_text(yaml.safe_dump(kept))
    weights = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.Flatten(), nn.Linear(32, 10))
    save_weights(weights, study / "best_student.safetensors")
    assert features.main(["--study", "mine"]) == 0
    assert numbers(place / "runs" / "features" / "mine")["settings"]["student"] == own


def test_a_study_that_cannot_be_used(study, place, refused):
    assert refused("--study", "mine", "--teacher", "resnet19")[0].startswith("error: teacher=resnet19")
    assert "there is no study 'gone' in runs" in refused("--study", "gone")[0]
    (place / "runs" / "teachers" / "right" / "teacher.json").unlink()
    assert "--teacher-weights FILE" in refused("--study", "mine")[0]
    (study / "best.yaml").unlink()
    assert "'mine' has no finished best trial yet" in refused("--study", "mine")[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--teacher", "resnet19", "--student", STUDENT], "did you mean resnet18"),
        (["--teacher", TEACHER, "--student", "mixer_nan"], "did you mean mixer_nano"),
        (["--student", STUDENT], "teacher: it is missing"),
        ([*PAIR, "--batch-size", "3"], "batch_size: 3 is too few: unbiased HSIC needs 4 or more images a batch"),
        ([*PAIR, "--images", "2"], "images: 2 is too few: unbiased HSIC needs 4"),
        ([*PAIR, "--set", "max_images=3"], "holdout=0.1 has 3 images and unbiased HSIC needs 4 or more"),
        ([*PAIR, "--set", "img_sise=32"], "did you mean img_size"),
        ([*PAIR, "--set", "img_size"], "'img_size' is not FIELD=VALUE"),
        ([*PAIR, "--set", "student_kwargs.depht=3"], "student_kwargs"),
        ([*PAIR, "--data", "nowhere/at/all"], "nowhere/at/all"),
        ([*PAIR, "--teacher-weights", "gone.pt"], "teacher_weights=gone.pt: no such file"),
        (
            ["--teacher", "mixer_nano", "--student", STUDENT, "--teacher-weights", "pretrained"],
            "--teacher-weights FILE",
        ),
        ([*PAIR, "--storage", "s3://bucket/runs"], "storage"),
        ([*PAIR, "--tracking-uri", "runs/mlruns"], "tracking_uri"),
    ],
)
def test_bad_input_is_one_line(refused, arguments, said):
    lines = refused(*arguments)
    assert len(lines) == 1 and said in lines[0], lines


def test_several_problems_are_several_lines(refused):
    assert len(refused("--batch-size", "1", "--set", "holdout=2", "x")) == 5


def test_weights_of_another_model(place, refused):
    save_weights(model(STUDENT, 0), place / "resnet.safetensors")
    (line,) = refused(*PAIR, *SMALL, "--teacher-weights", "resnet.safetensors")
    assert "teacher_weights=resnet.safetensors: does not fit teacher test_vit" in line


def test_a_folder_that_cannot_be_written(place, refused):
    (place / "file").write_text("")
    (line,) = refused(*PAIR, *SMALL, "--out", "file/below")
    assert "--out: file/below cannot be written" in line


def test_a_server_that_is_down_is_told_before_anything_is_computed(refused):
    server = f"http://127.0.0.1:{free_port()}"
    (line,) = refused(*PAIR, "--teacher-weights", "gone.pt", "--tracking-uri", server)
    assert "unreachable" in line and "gone.pt" not in line


def test_a_deleted_experiment_is_told_before_anything_is_computed(place, refused):
    uri = f"sqlite:///{place}/mlflow.db"
    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment("features", artifact_location=(place / "artifacts").as_uri()))
    (line,) = refused(*PAIR, *SMALL, "--tracking-uri", uri)
    assert "the experiment 'features'" in line and "was deleted" in line


class Failing(BaseHTTPRequestHandler):
    """An MLflow server that is there, knows no experiment, and breaks on every write."""

    def do_GET(self):
        healthy = self.path == "/health"
        self._answer(200 if healthy else 404, {} if healthy else {"error_code": "RESOURCE_DOES_NOT_EXIST"})

    def do_POST(self):
        searched = self.path.endswith("/experiments/search")
        self._answer(200 if searched else 500, {} if searched else {"error_code": "INTERNAL_ERROR", "message": "full"})

    def _answer(self, code, content):
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_server_that_breaks_afterwards_does_not_cost_the_files(place, capfd):
    server = HTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        uri = f"http://127.0.0.1:{server.server_port}"
        assert features.main([*PAIR, *SMALL, "--out", "out", "--tracking-uri", uri]) == 1
    finally:
        server.shutdown()
        server.server_close()
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: tracking_uri: {uri} fails (") and "the files are in out all the same" in line
    assert is_picture(place / "out" / "cka.png") and numbers(place / "out")["images"] == 40


def test_what_cannot_be_drawn_leaves_nothing(place, capfd, monkeypatch):
    """The picture is written last; without it there are no numbers either."""
    monkeypatch.setattr("search.feature_report.draw_heatmaps", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    monkeypatch.setattr("tempfile.tempdir", str(place))
    assert features.main([*PAIR, *SMALL, "--out", "out"]) == 1
    assert re.match(r"error: OSError: disk full; see \S+\n$", capfd.readouterr().err)
    assert list((place / "out").iterdir()) == []


def test_help_is_there_at_once():
    code = """
import runpy, sys
sys.argv = ["search/features.py", "--help"]
try:
    runpy.run_path("search/features.py", run_name="__main__")
except SystemExit as ended:
    assert ended.code == 0, ended.code
heavy = {"torch", "ray", "timm", "optuna", "mlflow", "pandas", "pydantic", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "--teacher" in ran.stdout and "--study" in ran.stdout


def test_the_script_itself_runs(tmp_path):
    command = [sys.executable, str(ROOT / "search" / "features.py"), *PAIR, *SMALL]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0 and ran.stderr == "", ran.stderr
    assert ran.stdout.startswith("comparing test_vit and test_resnet on 40 images of the holdout\n")
