"""Trials with the teacher store and without it, in a plain loop."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from tests.conftest import TINY
from tests.trainables.stored import train
from trainables.assets import Assets
from trainables.config import TrialConfig
from trainables.context import RunContext
from trainables.errors import InputError
from trainables.loop import run_trial
from trainables.teacher import HOLDOUT, WEIGHTS
from trainables.teacher_store import parts as files
from trainables.teacher_store.parts import Parts


def test_in_float32_the_losses_are_those_without_a_store_to_the_bit(tiny, lane, tmp_path):
    config = tiny(epochs=2, mixup=0.8, cutmix=1.0, teacher_store_dtype="float32")
    plain, none, _ = train(tiny(epochs=2, mixup=0.8, cutmix=1.0, teacher_store="off"), lane(), tmp_path / "off")
    first, written, _ = train(config, lane(), tmp_path / "first")
    second, read, _ = train(config, lane(), tmp_path / "second")
    assert plain == first == second
    assert (none, written, read) == ([None, None], [0.0, 0.0], [1.0, 1.0])


def test_by_default_who_writes_and_who_reads_train_alike_and_within_float16_of_none(tiny, lane, tmp_path):
    plain, *_ = train(tiny(epochs=2, teacher_store="off"), lane(), tmp_path / "off")
    first, *_ = train(tiny(epochs=2), lane(), tmp_path / "first")
    second, read, _ = train(tiny(epochs=2), lane(), tmp_path / "second")
    assert first == second != plain and read == [1.0, 1.0]
    for name in ("train/loss", "train/loss_kd", "train/loss_ofa"):
        assert [one[name] for one in first] == pytest.approx([one[name] for one in plain], rel=1e-3)


def test_the_teacher_is_not_even_built_where_all_is_stored(tiny, lane, tmp_path, monkeypatch):
    config = tiny(epochs=1)
    train(config, lane(), tmp_path / "first")
    assets = lane()
    monkeypatch.setattr(assets, "_bare_teacher", lambda *_: pytest.fail("the teacher is built"))
    assert train(config, assets, tmp_path / "second")[1] == [1.0]


def test_what_the_teacher_says_of_the_holdout_is_kept_with_it(tiny, lane, teacher_folder, tmp_path):
    """It decides the agreement; a teacher of an earlier version has no such file and is asked."""
    shutil.copytree(teacher_folder, tmp_path / "teacher")
    (tmp_path / "teacher" / HOLDOUT).unlink()
    asked = lane()
    asked.teacher_weights = tmp_path / "teacher" / WEIGHTS
    context = RunContext(tmp_path, lambda _: True)
    assert torch.equal(asked.teacher_classes(tiny(), context), lane().teacher_classes(tiny(), context))
    second = RunContext(tmp_path, lambda _: True, rank=1, world_size=2)
    assert torch.equal(asked.teacher_classes(tiny(), second), lane().teacher_classes(tiny(), second))


@pytest.mark.parametrize(
    "fields",
    [{"seed": 1}, {"batch_size": 8}, {"mixup": 0.2}, {"reprob": 0.5}, {"data_seed": 1}, {"labels_per_class": 7},
     {"amp": True}, {"teacher_store": "topk:4"}, {"teacher_store_dtype": "float32"}, {"crop_scale": [0.5, 1.0]}],
)  # fmt: skip
def test_what_changes_the_answers_keys_them_apart(tiny, lane, tmp_path, fields):
    train(tiny(epochs=1), lane(), tmp_path / "first")
    assert train(tiny(epochs=1, **fields), lane(), tmp_path / "second")[1] == [0.0]


def test_other_images_are_told_apart_within_a_lane(tiny, lane, tmp_path):
    assets = lane()
    read = [train(tiny(epochs=1, data_seed=seed), assets, tmp_path / f"{n}")[1] for n, seed in enumerate((0, 1, 0, 1))]
    assert read == [[0.0], [0.0], [1.0], [1.0]]


@pytest.mark.parametrize(
    "fields", [{"eps": 1.7}, {"temperature": 4.0}, {"stages": [1, 2], "eps": 1.0}, {"lr": 0.01}, {"smoothing": 0.1}]
)
def test_what_does_not_change_the_answers_shares_them(tiny, lane, tmp_path, fields):
    train(tiny(epochs=1), lane(), tmp_path / "first")
    assert train(tiny(epochs=1, **fields), lane(), tmp_path / "second")[1] == [1.0]


def test_a_longer_trial_goes_on_where_the_store_ends(tiny, lane, tmp_path):
    train(tiny(epochs=1), lane(), tmp_path / "first")
    assert train(tiny(epochs=3), lane(), tmp_path / "second")[1] == [1.0, 0.0, 0.0]


def test_views_begin_anew_and_are_those_of_a_full_store(tiny, lane, tmp_path):
    train(tiny(epochs=1), lane(), tmp_path / "first")
    assert train(tiny(epochs=4, teacher_store="views:2"), lane(), tmp_path / "second")[1] == [1.0, 0.0, 1.0, 1.0]


def test_the_embedding_is_kept_where_a_distiller_asks_for_it(tiny, lane, tmp_path):
    config = tiny(epochs=1, distiller="rsd", teacher_store_dtype="float32")
    plain, *_ = train(config.model_copy(update={"teacher_store": "off"}), lane(), tmp_path / "off")
    train(tiny(epochs=1, teacher_store_dtype="float32"), lane(), tmp_path / "logits")  # it lacks the embedding
    first, written, _ = train(config, lane(), tmp_path / "first")
    second, read, _ = train(config, lane(), tmp_path / "second")
    assert (written, read) == ([0.0], [1.0]) and plain == first == second


def test_feature_maps_bypass_the_store(tiny, lane, tmp_path):
    assert train(tiny(epochs=1, distiller="fitnet"), lane(), tmp_path / "first")[1] == [None]
    assert not (tmp_path / "store").exists()


def stored_files(folder):
    return sorted(path for path in folder.glob("store/*/*") if path.name != files.ABOUT)


def test_a_torn_file_is_found_and_written_anew(tiny, lane, tmp_path):
    config = tiny(epochs=1)
    first, *_ = train(config, lane(), tmp_path / "first")
    torn, flipped, *others = stored_files(tmp_path)
    whole = [torn.read_bytes(), flipped.read_bytes()]
    torn.write_bytes(whole[0][:-5])
    flipped.write_bytes(whole[1][:-1] + bytes([whole[1][-1] ^ 1]))
    assets = lane()
    again, read, _ = train(config, assets, tmp_path / "second")
    assert again == first and read == [pytest.approx(len(others) / (2 + len(others)), abs=0.2)]
    assert [torn.read_bytes(), flipped.read_bytes()] == whole and assets.warnings == []


def test_a_file_of_another_shape_is_not_read(tiny, lane, tmp_path):
    config = tiny(epochs=1)
    first, *_ = train(config, lane(), tmp_path / "first")
    path, *_ = stored_files(tmp_path)
    whole = path.read_bytes()
    store = Parts(str(tmp_path), "other", {})
    store.write("x", np.zeros((1, 3), dtype="<f4"), (0.0,) * 4)
    path.write_bytes((tmp_path / "other" / "x").read_bytes())
    assert train(config, lane(), tmp_path / "second")[0] == first
    assert path.read_bytes() == whole


def test_another_versions_store_is_left_alone_and_told(tiny, lane, tmp_path):
    config = tiny(epochs=1)
    first, *_ = train(config, lane(), tmp_path / "first")
    for path in stored_files(tmp_path):
        content = bytearray(path.read_bytes())
        content[8] += 1
        path.write_bytes(content)
    before = [path.read_bytes() for path in stored_files(tmp_path)]
    assets = lane()
    again, read, _ = train(config, assets, tmp_path / "second")
    assert again == first and read == [0.0]
    assert [path.read_bytes() for path in stored_files(tmp_path)] == before
    assert len(assets.warnings) == 1 and "format 2 is not this version's, 1" in assets.warnings[0]


def test_the_largest_logits_stay_close_and_their_error_is_told(tiny, lane, tmp_path):
    plain, *_ = train(tiny(epochs=1, teacher_store="off"), lane(), tmp_path / "off")
    far = []
    for count in (2, 6):
        config = tiny(epochs=1, teacher_store=f"topk:{count}")
        first, _, said = train(config, lane(), tmp_path / f"first{count}")
        second, read, told = train(config, lane(), tmp_path / f"second{count}")
        assert first == second and read == [1.0]
        errors = {key: value for key, value in said[0].items() if "kl" in key}
        assert list(errors) == [f"teacher/topk_kl_{t}" for t in (1, 2, 4, 8)]
        assert errors == pytest.approx({key: value for key, value in told[0].items() if "kl" in key})
        far.append((errors["teacher/topk_kl_2"], abs(first[0]["train/loss_kd"] - plain[0]["train/loss_kd"])))
    assert far[0] > far[1] and far[1][1] < 0.05


def test_more_logits_than_classes_are_bad_input(tiny, lane, tmp_path):
    with pytest.raises(InputError, match="teacher_store: topk:10 keeps all of 10 classes; give fewer, or full"):
        train(tiny(teacher_store="topk:10"), lane(), tmp_path / "first")


def _ranks(rank, address, folder, weights, fields):
    """Two workers of one trial, each with what its own process keeps."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    assets = Assets(teacher_weights=weights, teacher_store=str(folder.parent / "store"))
    reports = []
    context = RunContext(folder, lambda metrics: reports.append(metrics) or True, rank=rank, world_size=2)
    run_trial(TrialConfig(**(TINY | fields)), assets, context)
    if rank == 0:
        (folder / "reports.json").write_text(json.dumps(reports))
    dist.destroy_process_group()


def test_workers_write_together_what_one_reads_and_the_other_way_round(tiny, lane, teacher_folder, tmp_path):
    fields = {"epochs": 2, "mixup": 0.4, "teacher_store_dtype": "float32"}

    def two(name, **more):
        folder = tmp_path / name
        address = f"file://{tmp_path / name}.rendezvous"
        multiprocessing.spawn(_ranks, (address, folder, teacher_folder / WEIGHTS, fields | more), nprocs=2)
        return json.loads((folder / "reports.json").read_text())

    written = two("two")
    alone, read, _ = train(tiny(**fields), lane(), tmp_path / "alone")
    assert [one["teacher/stored"] for one in written] == [0.0, 0.0] and read == [1.0, 1.0]
    for name in ("train/loss", "train/loss_kd", "train/loss_ofa"):
        assert [one[name] for one in alone] == pytest.approx([one[name] for one in written], rel=2e-4)
    train(tiny(**fields, seed=1), lane(), tmp_path / "other")
    assert [one["teacher/stored"] for one in two("again", seed=1)] == [1.0, 1.0]


def _writer(_, folder, weights, fields):
    torch.set_num_threads(1)
    assets = Assets(teacher_weights=weights, teacher_store=str(folder / "store"))
    for number in range(2):
        reports, _, _ = train(TrialConfig(**(TINY | fields)), assets, folder / f"{os.getpid()}-{number}")
    (folder / f"{os.getpid()}.json").write_text(json.dumps(reports))


def test_processes_that_write_the_same_files_leave_them_whole(tiny, lane, teacher_folder, tmp_path):
    fields = {"epochs": 2}
    multiprocessing.spawn(_writer, (tmp_path, teacher_folder / WEIGHTS, fields), nprocs=2)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    last, read, _ = train(tiny(**fields), lane(), tmp_path / "last")
    assert len(found) == 2 and all(one == last for one in found) and read == [1.0, 1.0]
    assert not list(tmp_path.glob("store/*/*.partial"))
