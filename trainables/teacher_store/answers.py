"""What the training loop asks: the teacher's answer to each batch, from the store where it is there."""

import contextlib
import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from trainables.context import RunContext
from trainables.distillers.base import TeacherOutput
from trainables.errors import one_line
from trainables.stream import TrainStream
from trainables.teacher_store.parts import Damaged, OtherVersion, Parts
from trainables.teacher_store.records import TEMPERATURES, Fields, Form, pack, unpack

PART_BYTES = 64 * 2**20  # of a file of logits at most: so much a writer holds, and a reader of S3 waits for
PARTS = 4  # of an epoch at least: a trial a little behind another one reads what that one has just computed
READ, WRITE, COMPUTE = MODES = ("read", "write", "compute")

Rows = dict[str, Tensor]
Kept = dict[str, tuple[Fields, tuple[float, ...]]]  # of a part, on the CPU: by kind, and what its writer told


class Answers:
    """The teacher's answers to one trial's batches: read where they are kept, else computed, and then kept.

    Whoever computes an answer trains on it as others read it later, so that no trial depends on who came first. The
    store is never needed: where it fails, with a warning, the teacher answers.

    Args:
        teacher: gives the teacher; not called where all answers are read.
        parts: where they lie.
        forms: `logits`, and `embedding` where that is asked for: how each is kept.
        stream: whose batches are answered.
        context: through it the ranks agree on what is read.
        warn: told of a store that fails.
    """

    def __init__(
        self,
        teacher: Callable[[], Callable[[Tensor], TeacherOutput]],
        parts: Parts,
        forms: Mapping[str, Form],
        stream: TrainStream,
        context: RunContext,
        warn: Callable[[str], None],
    ):
        self._teacher, self._parts, self._forms = teacher, parts, dict(forms)
        self._stream, self._context, self._warn = stream, context, warn
        self._slots, self._batch_size, self._steps = stream.slots, stream.batch_size, len(stream)
        self._per_part = steps_per_part(self._steps, self._batch_size, forms["logits"])
        self._mode = COMPUTE
        self._kept: dict[str, Fields] = {}  # this part's answers, on the device
        self._computed: list[dict[str, Fields]] = []  # of this part's steps
        self._error = None  # summed over this part's computed steps
        self._failed: set[str] = set()  # `read` and `written`: what of them is not tried again in this trial
        self._writer, self._reader = (ThreadPoolExecutor(1, thread_name_prefix="teacher-store") for _ in range(2))
        self._writing: Future | None = None
        self._ahead: tuple[tuple[int, int], Future] | None = None  # what is read meanwhile: its part and epoch
        self.epoch(0)

    def epoch(self, epoch: int) -> None:
        """Begins with the stream's epoch of that number, from 0."""
        self._epoch, self._counts = self._stream.view(epoch), dict.fromkeys(MODES, 0)
        self._errors: list[tuple[float, ...]] = []  # of the parts so far
        self._part: int | None = None  # the one in hand

    def __call__(self, images: Tensor, step: int) -> TeacherOutput:
        """The answer to a batch.

        Args:
            images: [b, 3, S, S] of this rank, in the student's normalisation.
            step: the batch's place in the epoch; they come one after the other, from 0 or where a trial goes on.
        """
        number, place = divmod(step, self._per_part)
        if place == 0 or number != self._part:
            self._begin(number, images.device)
            if place and self._mode == WRITE:  # the rest alone is no part
                self._mode = COMPUTE
        self._counts[self._mode] += 1
        fresh = None if self._mode == READ else self._teacher()(images)
        with torch.autocast(images.device.type, enabled=False), torch.no_grad():  # what is kept is not rounded again
            rows = self._round(fresh) if fresh else self._rows(place)
            if place + 1 == self._length(number):
                self._end(number)
        return TeacherOutput(rows["logits"], rows.get("embedding"))

    def figures(self) -> dict[str, float]:
        """Of the epoch so far: `stored`, the share of its steps that was read, and with the largest logits only
        `topk_kl_T`, the mean divergence of what is kept from the teacher's own at temperature T."""
        found = {"stored": self._counts[READ] / max(1, sum(self._counts.values()))}
        if self._errors and any(any(one) for one in self._errors):
            means = np.mean(self._errors, axis=0)
            found |= {f"topk_kl_{t:g}": float(mean) for t, mean in zip(TEMPERATURES, means, strict=True)}
        return found

    def settle(self) -> None:
        """Waits for what is being written; where that fails it is told, and nothing more is written in this trial."""
        waiting, self._writing = self._writing, None
        try:
            if waiting:
                waiting.result()
        except Exception as error:  # a full disk, a folder that is gone, a network
            self._fail("written", error)

    def close(self) -> None:
        """Waits for what is being written."""
        self.settle()
        self._writer.shutdown()
        self._reader.shutdown(cancel_futures=True)

    def _begin(self, number: int, device: torch.device) -> None:
        """Brings a part to the device whole, or finds that it must be computed; all ranks alike, as rank 0 has it."""
        self._part = number
        self._computed, self._error, self._kept = [], None, {}
        found: Kept | None = None

        def look() -> str:
            nonlocal found
            mode, found = self._look(number, device)
            return mode

        self._mode = self._context.from_rank_0(look)
        if self._mode == READ and found is None and look() != READ:  # another rank, on another machine
            self._mode = COMPUTE
        if self._mode == READ:
            self._errors.append(found["logits"][1])
            for kind, (fields, _) in found.items():
                self._kept[kind] = {name: one.to(device, non_blocking=True) for name, one in fields.items()}
            follows = (number + 1, self._epoch) if self._length(number + 1) > 0 else (0, self._epoch + 1)
            self._ahead = follows, self._reader.submit(self._open, *follows, device)

    def _look(self, number: int, device: torch.device) -> tuple[str, Kept | None]:
        """What to do with a part, and what is kept of it."""
        otherwise = COMPUTE if self._failed else WRITE
        if "read" in self._failed:
            return COMPUTE, None
        (wanted, ahead), self._ahead = self._ahead or (None, None), None
        found = None
        with contextlib.suppress(Exception):  # what goes wrong ahead of its use is met below
            found = ahead.result() if wanted == (number, self._epoch) else None
        try:
            found = found or self._open(number, self._epoch, device)
        except Damaged:  # by a writer that was killed, or a disk: it is written anew
            return otherwise, None
        except Exception as error:  # whatever a file system raises: the store is never needed
            self._fail("read", error)
            return COMPUTE, None
        return (READ, found) if found else (otherwise, None)

    def _open(self, number: int, epoch: int, device: torch.device) -> Kept | None:
        found = {}
        for kind, form in self._forms.items():
            shape = self._length(number), self._batch_size
            part = self._parts.open(self._file(kind, number, epoch), shape, form.record)
            if part is None:
                return None
            found[kind] = unpack(part.records, self._slots, pinned=device.type == "cuda"), part.figures
        return found

    def _rows(self, place: int) -> Rows:
        return {
            kind: self._forms[kind].decode({name: values[place] for name, values in fields.items()})
            for kind, fields in self._kept.items()
        }

    def _round(self, fresh: TeacherOutput) -> Rows:
        """A computed answer as it will be read; keeps it for the part's end."""
        fields = {kind: form.encode(getattr(fresh, kind)) for kind, form in self._forms.items()}
        rows = {kind: self._forms[kind].decode(one) for kind, one in fields.items()}
        if self._mode == WRITE:
            self._computed.append(fields)
            error = self._forms["logits"].error(fresh.logits, rows["logits"])
            self._error = error if self._error is None else self._error + error
        return rows

    def _end(self, number: int) -> None:
        """A part is computed: rank 0 puts the ranks' shares together and has a thread write them."""
        if self._mode != WRITE:
            return
        steps = len(self._computed)
        figures = tuple((self._error / steps).tolist())
        self._errors.append(figures)
        own = {}
        for kind, form in self._forms.items():
            names = form.record.names
            own[kind] = pack(form, {name: torch.stack([one[kind][name] for one in self._computed]) for name in names})
        self._computed = []
        shares = self._context.gather((self._slots, own))
        self.settle()
        if shares is None or self._failed:
            return
        whole = {}
        for kind, form in self._forms.items():
            whole[kind] = np.empty((steps, self._batch_size), dtype=form.record)
            for slots, share in shares:
                whole[kind][:, slots] = share[kind]
        if all(np.isfinite(one["values"]).all() for one in whole.values()):  # else the trial fails, by its loss
            self._writing = self._writer.submit(self._write, number, self._epoch, whole, figures)

    def _write(self, number: int, epoch: int, whole: dict[str, np.ndarray], figures: tuple[float, ...]) -> None:
        for kind, records in whole.items():
            self._parts.write(self._file(kind, number, epoch), records, figures)

    def _fail(self, what: str, error: Exception) -> None:
        self._failed.add(what)
        reason = str(error) if isinstance(error, OtherVersion) else getattr(error, "strerror", None) or one_line(error)
        self._warn(f"the teacher store in {self._parts.root} cannot be {what} ({reason}): the teacher answers instead")

    def _length(self, number: int) -> int:
        return min(self._per_part, self._steps - number * self._per_part)

    def _file(self, kind: str, number: int, epoch: int | None = None) -> str:
        return f"{self._epoch if epoch is None else epoch:05}-{number:03}.{kind}"


def steps_per_part(steps: int, batch_size: int, form: Form) -> int:
    """How many steps a file has: so few that an epoch has `PARTS` and none is larger than `PART_BYTES`."""
    return max(1, min(math.ceil(steps / PARTS), PART_BYTES // (batch_size * form.record.itemsize)))
