"""What outlives a trial in its process: the decoded data, the holdout's batches and the frozen teacher."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from trainables.build import normalization
from trainables.config import DataFields, TrialConfig, data_fields
from trainables.context import RunContext
from trainables.data import ImageList, Splits, load_splits
from trainables.distillers.base import TEACHER_EMBEDDING, TEACHER_FEATURES
from trainables.errors import InputError
from trainables.randomness import own_random_numbers
from trainables.stream import TrainStream, eval_loader
from trainables.teacher import HOLDOUT, Teacher, build_teacher, weights_hash
from trainables.teacher_store.answers import Answers
from trainables.teacher_store.key import folder_name, stream_key, teacher_key
from trainables.teacher_store.parts import Parts
from trainables.teacher_store.records import Form, TopK, Whole

KEEP_DECODED = 64 * 2**20  # bytes of holdout tensors kept ready; of larger ones the loader's processes are kept
EVAL_BATCH = 256

log = logging.getLogger(__name__)


class Assets:
    """Loads each thing once and hands it to every trial that asks with equal settings.

    Args:
        device: where the teacher lives.
        teacher_weights: the study's copy of the teacher's weights; None before the teacher stands.
        teacher_store: where the teacher's answers are kept, a folder or any URL of fsspec's; None: nowhere.
        warn: told, in one line, of what goes wrong and ends nothing.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        teacher_weights: Path | None = None,
        teacher_store: str | None = None,
        warn: Callable[[str], None] = log.warning,
    ):
        self.device = torch.device(device)
        self.teacher_weights, self.teacher_store, self.warn = teacher_weights, teacher_store, warn
        self._kept: dict[str, tuple[object, object]] = {}

    def splits(self, config: TrialConfig) -> Splits:
        """The data's splits."""
        fields = data_fields(config)
        return self._once("splits", fields, lambda: load_splits(fields))

    def take(self, fields: DataFields, splits: Splits) -> None:
        """Takes the data of these fields as another process has read them."""
        self._kept["splits"] = (fields, splits)

    def split(self, part: str, config: TrialConfig) -> ImageList:
        """The holdout or the test split.

        Raises:
            InputError: the data have no test split.
        """
        split = getattr(self.splits(config), part)
        if split is None:
            raise InputError(
                f"data={config.data!r}: its classes are too small to spare a test split; add images, or search without "
                "a final: --set finalists=0"
            )
        return split

    def teacher(
        self, config: TrialConfig, mean: tuple[float, ...], std: tuple[float, ...], needs: Collection[str] = ()
    ) -> Teacher:
        """The teacher, taking images in the given normalisation and giving what `needs` names besides logits."""
        return Teacher(self._bare_teacher(config), mean, std, needs).to(self.device)

    def answers(
        self,
        config: TrialConfig,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        needs: Collection[str],
        teacher: Callable[[], Teacher],
        embedding: int | None,
        stream: TrainStream,
        context: RunContext,
    ) -> Answers | None:
        """The teacher's answers to a stream, from the store; None where none are kept.

        Distillers that compare whole feature maps go without: those of an image are hundreds of times its logits.

        Args:
            mean, std: of the normalisation in which the stream's images come.
            needs: as for `teacher`.
            teacher: gives the teacher, for what is not in the store.
            embedding: the width of the teacher's embedding, where it is needed.

        Raises:
            InputError: `teacher_store` keeps more logits than there are classes, or `teacher_store_at` cannot be used.
        """
        mode, root = config.store_mode, config.teacher_store_at or self.teacher_store
        if not mode.on or root is None or self.teacher_weights is None or TEACHER_FEATURES in needs:
            return None
        classes, dtype = len(self.splits(config).classes), config.teacher_store_dtype
        forms: dict[str, Form] = {"logits": TopK(classes, mode.topk, dtype) if mode.topk else Whole(classes, dtype)}
        if TEACHER_EMBEDDING in needs:
            forms["embedding"] = Whole(embedding, dtype)
        key = {
            "stream": stream_key(config, self._stamp(config), mean, std),
            "teacher": teacher_key(config, self._weights_hash(), self.device.type),
            "kept": {"logits": mode.topk or "all", "dtype": dtype},
        }
        return Answers(teacher, Parts(str(root), folder_name(key), key), forms, stream, context, self.warn)

    def images(self, part: str, config: TrialConfig, context: RunContext, mean, std):
        """This rank's batches of the holdout or the test split, normalised: kept as tensors where they are small, else
        decoded at each reading.

        Args:
            part: `holdout` or `test`.
            mean, std: of the model's normalisation.

        Raises:
            InputError: the data have no test split.
        """
        split, size = self.split(part, config), config.img_size

        def load():
            return eval_loader(
                split,
                size,
                mean=mean,
                std=std,
                batch_size=EVAL_BATCH,
                rank=context.rank,
                world_size=context.world_size,
                loader_workers=config.loader_workers,
            )

        small = len(split) * 3 * size * size * 4 <= KEEP_DECODED
        key = (self._data_key(config), tuple(mean), tuple(std), context.rank, context.world_size, config.loader_workers)
        return self._once(f"{part} {tuple(mean)}", key, lambda: list(load()) if small else load())

    def teacher_classes(self, config: TrialConfig, context: RunContext, part: str = "holdout") -> torch.Tensor | None:
        """The class the teacher gives to each of this rank's images of a split, in order; None before it stands."""
        if self.teacher_weights is None:
            return None
        known = self.teacher_weights.with_name(HOLDOUT)

        @torch.no_grad()
        def classify():
            if part == "holdout" and known.exists():  # found out when it was made ready
                return torch.from_numpy(np.load(known)[context.rank :: context.world_size])
            model = self._bare_teacher(config)
            batches = self.images(part, config, context, *normalization(model))
            return torch.cat([model(images.to(self.device, copy=True)).argmax(1).cpu() for images, _ in batches])

        key = (self._data_key(config), str(self.teacher_weights), context.rank, context.world_size)
        return self._once(f"teacher classes, {part}", key, classify)

    def _bare_teacher(self, config: TrialConfig) -> torch.nn.Module:
        def build():
            with own_random_numbers():  # a trial's do not depend on who built the teacher
                model = build_teacher(config, len(self.splits(config).classes), self.teacher_weights)
            return model.to(self.device).eval().requires_grad_(False)

        key = (config.teacher, str(config.teacher_kwargs), config.img_size, str(self.teacher_weights))
        return self._once("teacher", key, build)

    def _stamp(self, config: TrialConfig) -> dict[str, object]:
        train = self.splits(config).train
        return self._once("stamp", data_fields(config), lambda: {"count": len(train), "stamp": train.stamp()})

    def _weights_hash(self) -> str:
        path = self.teacher_weights
        return self._once("weights' hash", str(path), lambda: weights_hash(path))

    def _data_key(self, config: TrialConfig) -> str:
        return f"{self.splits(config).fingerprint} {config.img_size}"

    def _once(self, name: str, key: object, make):
        kept = self._kept.get(name)
        if kept is None or kept[0] != key:
            self._kept[name] = kept = (key, make())
        return kept[1]
