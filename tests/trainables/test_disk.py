"""Which errors are taken for the disk's: those that it raises, by torch and safetensors too."""

import errno
import resource

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.checkpoint import save_checkpoint, save_weights
from trainables.disk import UNWRITABLE, DiskError, names_another_place, of_disk
from trainables.persist import persist
from trainables.remote import Remote

WRITERS = {
    "checkpoint": lambda folder: save_checkpoint(folder, {"a": torch.zeros(100_000)}),
    "small checkpoint": lambda folder: save_checkpoint(folder, {"a": 1}),
    "weights": lambda folder: save_weights(torch.nn.Linear(300, 300), folder / "a.safetensors"),
    "predictions": lambda folder: np.savez(folder / "a.npz", a=np.zeros(100_000)),
    "from the store": lambda folder: persist(lambda: Remote(f"memory://{folder.name}").pull("a", folder / "a"), 5),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_disk_that_is_full(tmp_path, writer):
    Remote(f"memory://{tmp_path.name}").write("a", b"x" * 10_000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))  # no file of this process may be longer
    try:
        with pytest.raises(Exception) as caught:
            WRITERS[writer](tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert of_disk(caught.value), caught.value
    assert isinstance(caught.value, DiskError) == (writer == "from the store")


@pytest.mark.parametrize("number", [*UNWRITABLE, errno.EIO])
def test_by_its_number(number):
    assert of_disk(OSError(number, "what it says"))
    assert not of_disk(OSError(errno.ENOENT, "No space left on device is the name of a file"))


def test_what_is_wrong_with_a_file_or_a_model_is_not_the_disks(tmp_path):
    (tmp_path / "cut").write_bytes(b"x" * 100)
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + b"x" * 1000)
    wrong = [
        lambda: torch.load(tmp_path / "cut", weights_only=True),
        lambda: torch.load(tmp_path / "zip", weights_only=True),
        lambda: load_file(tmp_path / "cut"),
        lambda: save_file({"a": torch.zeros(2)}, tmp_path / "no folder" / "a"),
        lambda: torch.zeros(2) @ torch.zeros(3),
    ]
    for work in wrong:
        with pytest.raises(Exception) as caught:
            work()
        assert not of_disk(caught.value), caught.value


def test_a_store_that_is_full_is_waited_for():
    tries = []

    def work():
        tries.append(1)
        if len(tries) < 2:
            raise OSError(errno.ENOSPC, "no room in the store")
        return "done"

    assert persist(work) == "done"


@pytest.mark.parametrize(
    ("error", "elsewhere"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/shared/s/7/checkpoint.pt"), False),
        (OSError(errno.ENOSPC, "No space left on device", "/shared/s/70/checkpoint.pt"), True),
        (RuntimeError("unable to write to file </torch_12_0>: No space left on device (28)"), True),
        (RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 1044864 vs 1044752"), False),
    ],
)
def test_whether_it_was_the_jobs_own_folder(error, elsewhere):
    assert of_disk(error) and names_another_place(error, "/shared/s/7") == elsewhere
