"""How answers are kept, apart from any training."""

import numpy as np
import pytest
import torch

from trainables.errors import InputError
from trainables.store_mode import StoreMode, parse_store
from trainables.teacher_store.answers import steps_per_part
from trainables.teacher_store.records import TopK, Whole, pack, unpack


@pytest.fixture
def rows():
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * 4


def kept(form, rows):
    """What is read of rows that were written."""
    records = pack(form, form.encode(rows))
    brought = unpack(records[None], np.arange(len(rows)))
    return form.decode({name: values[0] for name, values in brought.items()})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_whole_answers_come_back_as_they_were_rounded(rows, dtype):
    form = Whole(20, dtype)
    assert torch.equal(kept(form, rows), rows.to(getattr(torch, dtype)).float())
    assert torch.equal(kept(form, rows), form.decode(form.encode(rows))), "the writer sees what a reader sees"
    assert torch.equal(kept(form, rows.bfloat16()), form.decode(form.encode(rows.bfloat16())))


def test_a_logit_beyond_float16_stays_finite():
    assert kept(Whole(2, "float16"), torch.tensor([[1e6, -1e6]])).tolist() == [[65504.0, -65504.0]]


def test_the_largest_logits_keep_their_probabilities_and_the_rest_its_mass(rows):
    form = TopK(20, 5, "float32")
    told, true = kept(form, rows).softmax(1), rows.softmax(1)
    values, indices = true.topk(5, dim=1)
    assert torch.allclose(told.gather(1, indices), values, atol=1e-6)
    rest = told.scatter(1, indices, -1.0)
    for row, mass in zip(rest, 1 - values.sum(1), strict=True):
        assert torch.allclose(row[row >= 0], mass / 15, atol=1e-6)
    assert torch.equal(kept(form, rows), form.decode(form.encode(rows)))


def test_the_error_is_a_divergence_and_falls_with_what_is_kept(rows):
    errors = [form.error(rows, kept(form, rows)) for form in (TopK(20, count, "float16") for count in (1, 5, 19))]
    assert (errors[0] > errors[1]).all() and (errors[1] > errors[2]).all() and (errors[2] < 1e-4).all()
    assert (Whole(20, "float16").error(rows, rows) == 0).all()


def test_many_classes_need_wider_indices():
    assert TopK(2**16, 4, "float16").record.itemsize == 4 * 2 + 4 * 2 + 4
    form = TopK(2**16 + 1, 4, "float16")
    assert form.record.itemsize == 4 * 2 + 4 * 4 + 4
    rows = torch.zeros(1, 2**16 + 1)
    rows[0, -1] = 9.0
    assert kept(form, rows).argmax() == 2**16


def test_fewer_logits_than_classes_must_be_left():
    with pytest.raises(InputError, match="teacher_store: topk:3 keeps all of 3 classes; give fewer, or full"):
        TopK(3, 3, "float16")


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("off", StoreMode(on=False)),
        ("full", StoreMode()),
        ("topk:16", StoreMode(topk=16)),
        ("views:4", StoreMode(views=4)),
        ("topk:16+views:4", StoreMode(topk=16, views=4)),
    ],
)
def test_the_field_says_what_is_kept(text, mode):
    assert parse_store(text) == mode


@pytest.mark.parametrize(
    "text", ["", "on", "topk", "topk:", "topk:-1", "topk:1.5", "views:0", "full+views:2", "topk:1+topk:2"]
)
def test_another_word_is_refused(text):
    with pytest.raises(ValueError, match="must be off, full, topk:N, views:V or"):
        parse_store(text)


def test_a_file_is_a_fourth_of_an_epoch_and_never_large():
    assert steps_per_part(390, 128, Whole(100, "float16")) == 98
    assert steps_per_part(3, 16, Whole(10, "float16")) == 1
    assert steps_per_part(5000, 256, Whole(1000, "float16")) * 256 * 2000 <= 64 * 2**20
    assert steps_per_part(2, 4096, Whole(2**16, "float32")) == 1, "one step, however large"


def test_records_are_packed_by_field():
    form = TopK(10, 2, "float16")
    records = pack(form, form.encode(torch.arange(30.0).reshape(3, 10)))
    assert records.shape == (3,) and records.dtype == form.record
    assert np.array_equal(records["indices"], [[9, 8]] * 3)
