import os
import random
import signal

import numpy as np
import pytest
import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainables.build import build_model
from trainables.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    save_weights,
    seed_everything,
    set_random_state,
)
from trainables.files import CHECKPOINT, drop_checkpoint


def draws():
    """One of each kind; the normal ones come in pairs, of which the generators keep the second."""
    return (
        random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(),
        torch.rand(2).tolist(), torch.randn(3).tolist(),
    )  # fmt: skip


def test_random_states_come_back_exactly_from_a_file(tmp_path):
    seed_everything(5)
    draws()  # an odd number of normal draws: half a pair is kept
    save_checkpoint(tmp_path, {"random": [random_state()]})
    expected = [draws() for _ in range(3)]
    seed_everything(99)
    set_random_state(load_checkpoint(tmp_path)["random"][0])
    assert [draws() for _ in range(3)] == expected


def test_a_seed_decides_all_three_generators():
    def drawn(seed):
        seed_everything(seed)
        return draws()

    assert drawn(3) == drawn(3)
    assert all(a != b for a, b in zip(drawn(3), drawn(4), strict=True))
    assert drawn(2**40 + 1) == drawn(2**40 + 1), "NumPy takes 32 bits only"


class Code:
    """Something that only unsafe loading takes."""


def test_a_checkpoint_loads_without_running_code(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {
        "student": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": [random_state()],
        "ema": None,
    }
    save_checkpoint(tmp_path, {**state, "epoch": 2, "history": [{"epoch": 1, "val/top1": 12.5}]})
    loaded = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert loaded["epoch"] == 2 and loaded["history"] == [{"epoch": 1, "val/top1": 12.5}] and loaded["ema"] is None
    assert torch.equal(loaded["student"]["weight"], model.weight)
    assert loaded["optimizer"]["state"][0]["exp_avg"].equal(optimizer.state_dict()["state"][0]["exp_avg"])
    torch.save({"epoch": Code()}, tmp_path / CHECKPOINT)
    with pytest.raises(Exception, match="weights_only"):
        load_checkpoint(tmp_path)


class Kills:
    """Ends the process with SIGKILL in the middle of its pickling."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_previous_checkpoint(tmp_path):
    save_checkpoint(tmp_path, {"epoch": 1, "weights": torch.arange(4)})
    child = os.fork()
    if child == 0:
        try:
            save_checkpoint(tmp_path, {"epoch": 2, "weights": torch.arange(5), "then": Kills()})
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    left = load_checkpoint(tmp_path)
    assert left["epoch"] == 1 and left["weights"].tolist() == [0, 1, 2, 3]
    save_checkpoint(tmp_path, {"epoch": 2})
    assert load_checkpoint(tmp_path) == {"epoch": 2}
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT], "what the killed writer left is used up"


def test_no_checkpoint_is_none_and_dropping_it_twice_is_fine(tmp_path):
    assert load_checkpoint(tmp_path / "nothing") is None
    save_checkpoint(tmp_path / "new" / "folder", {"epoch": 1})
    for _ in range(2):
        drop_checkpoint(tmp_path / "new" / "folder")
    assert load_checkpoint(tmp_path / "new" / "folder") is None


def test_saved_weights_load_in_plain_timm(tmp_path):
    model = build_model("test_resnet", num_classes=5, img_size=32)
    model.to(memory_format=torch.channels_last)  # safetensors takes contiguous tensors only
    for _ in range(2):
        model(torch.randn(4, 3, 32, 32))  # batch norm's statistics move
    path = tmp_path / "new" / "student.safetensors"
    save_weights(model, path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    images = torch.randn(2, 3, 32, 32)
    plain = timm.create_model("test_resnet", num_classes=5)
    plain.load_state_dict(load_file(path))
    torch.testing.assert_close(plain.eval()(images), model.eval()(images))
    by_path = timm.create_model("test_resnet", num_classes=5, checkpoint_path=str(path)).eval()
    assert torch.equal(by_path(images), plain(images))


def test_weights_that_cannot_be_written_leave_the_previous_ones(tmp_path):
    path = tmp_path / "student.safetensors"
    model = torch.nn.Linear(2, 2)
    save_weights(model, path)
    (tmp_path / "student.partial").mkdir()  # where the writing begins
    with pytest.raises(SafetensorError):
        save_weights(torch.nn.Linear(2, 2), path)
    assert torch.equal(load_file(path)["weight"], model.weight)


def test_a_tensor_under_two_names_is_saved_under_both(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.register_parameter("again", model.weight)  # as CoaT has it
    save_weights(model, tmp_path / "student.safetensors")
    saved = load_file(tmp_path / "student.safetensors")
    assert torch.equal(saved["weight"], model.weight) and torch.equal(saved["again"], model.weight)
