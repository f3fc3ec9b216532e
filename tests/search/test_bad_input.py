"""Bad input: one line a problem on stderr, exit code 2, nothing trained and nothing left."""

import socket
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

from search import run
from tests.ports import free_port
from tests.search.studies import MAIN_SPACE, ROOT, write_space


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs the command in an empty folder and returns its error lines."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, space: str = MAIN_SPACE) -> list[str]:
        before = sorted(tmp_path.rglob("*"))
        capfd.readouterr()
        assert run.main(["--space", space, *arguments]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert lines and all(line.startswith("error: ") for line in lines), lines
        left = [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name != "runs"]
        assert left == []
        return lines

    return call


def images(folder, **classes):
    """Class folders with so many images each."""
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 16), (number, 50, 90)).save(folder / name / f"{number}.png")
    return folder


def test_a_space_file_that_is_missing_or_broken(refused, tmp_path):
    assert "no file 'nowhere.py'" in refused(space="nowhere.py")[0]
    broken = tmp_path / "broken.py"
    broken.write_text("def space(trial)\n    pass\n")
    assert "line 1" in refused(space=str(broken))[0]
    partial = tmp_path / "partial.py"
    partial.write_text(
        "from search.study import Scale, Study\n"
        "STUDY = Study(space=lambda trial: {}, scales={'embedded': Scale(teacher='resnet18')})\n"
    )
    assert refused(space=str(partial)) == [
        "error: student: it is missing; give it in the space or by --set student=VALUE"
    ]


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("student=resnet19", "resnet18"),
        ("teacher=vit_tny_patch16_224", "vit_tiny_patch16_224"),
        ("teacher=mobilenetv5_300m_enc", "mobilenetv5_300m"),
        ("student_kwargs.patch_drop_rate=0.5", "patch_drop_rate"),
        ("student=nowhere.models:net", "nowhere.models cannot be imported"),
        ("teacher=torchvision.models:resnet19", "did you mean resnet18"),
        ("taps=blocks.0,blocks.9", "has no feature 'blocks.9'"),
        ("kd_loss_weight=-1", "kd_loss_weight: -1 must be greater than or equal to 0"),
        ("eps=[1.0,1.2]", "eps has 2 values"),
        ("opt=adamwho", "opt: 'adamwho'"),
        ("search.epz=1..2", "did you mean eps"),
        ("sampler=bayes", "'tpe'"),
        ("scheduler=hyper", "'hyperband'"),
        ("objectives=top7", "objectives: "),
        ("metrics=math:nothing", "math has no callable 'nothing'"),
        ("gpu_hours=1", "gpu_hours: trials hold no GPU"),
        ("total_epochs=3", "total_epochs: 3 are fewer than"),
        ("target=101", "target: 101 cannot be reached"),
    ],
)
def test_a_setting_that_cannot_be(refused, setting, said):
    lines = refused("--set", setting)
    assert len(lines) == 1 and said in lines[0]


def test_a_stage_that_the_student_does_not_have(refused):
    lines = refused(
        "--set", "student=levit_128s", "stages=1,2,4", "img_size=224", "search.eps_per_stage=false", "student_kwargs={}"
    )
    assert len(lines) == 1
    assert "stages: 1, 2, 4 names stage 4, but levit_128s has 1, 2, 3" in lines[0]


def test_every_error_at_once(refused):
    assert len(refused("--trials", "0", "--set", "temperature=0", "sampler=x", "recipe.lr=-1")) == 4


def test_data_that_cannot_be_used(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no images" in refused("--data", "empty")[0].lower()
    assert "nowhere" in refused("--data", "nowhere/at/all")[0]
    images(tmp_path / "single", cat=5, dog=1)
    assert "dog" in refused("--data", "single")[0]
    images(tmp_path / "broken", cat=9, dog=9)
    (tmp_path / "broken" / "cat" / "3.png").write_bytes(b"no image")
    assert "3.png" in refused("--data", "broken")[0]


def test_weights_of_another_architecture(refused, tmp_path):
    torch.save(timm.create_model("test_resnet", num_classes=10).state_dict(), tmp_path / "resnet.pt")
    lines = refused("--set", "teacher_source=checkpoint", "teacher_weights=resnet.pt")
    assert len(lines) == 1 and "resnet.pt" in lines[0] and "does not fit" in lines[0]
    assert "nothing.pt" in refused("--set", "teacher_source=checkpoint", "teacher_weights=nothing.pt")[0]


def test_surroundings_that_do_not_fit(refused, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"dashboard_port: {port} is in use" in refused("--set", f"dashboard_port={port}")[0]
        free = f"http://127.0.0.1:{free_port()}"
        assert "unreachable" in refused("--tracking-uri", free)[0]
    (tmp_path / "runs" / "taken").mkdir(parents=True)
    (tmp_path / "runs" / "taken" / "notes.txt").write_text("mine")
    assert "study 'taken' exists" in refused("--name", "taken")[0]
    assert "--resume" in refused("--resume")[0]
    assert "there is no study 'gone'" in refused("--resume", "--name", "gone")[0]
    assert "there is no study 'gone'" in refused("--warm-start", "gone")[0]
    assert "name" in refused("--name", "a/b")[0]
    assert "storage" in refused("--storage", "s3://bucket/runs")[0]


def test_an_address_where_no_cluster_answers(refused):
    assert "--address" in refused("--address", f"127.0.0.1:{free_port()}")[0]


def test_a_first_guess_outside_its_range(refused, tmp_path):
    space = write_space(tmp_path, "return {'eps': trial.suggest_float('eps', 1.0, 2.0)}", [{"eps": 3.0}])
    assert "first_guesses: eps=3.0" in refused(space=space)[0]


def test_unknown_flags_exit_with_two_as_well():
    ran = subprocess.run(
        [sys.executable, "search/run.py", "--nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "Traceback" not in ran.stderr
