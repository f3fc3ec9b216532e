"""Making the teacher ready: fitted, downloaded or read, then judged, and its weights kept for all lanes."""

import json
import shutil
from pathlib import Path

import numpy as np

from trainables.assets import Assets
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.data import Splits
from trainables.evaluate import evaluate
from trainables.loop import STUDENT, run_trial
from trainables.metrics import Predictions, recall_by_class
from trainables.teacher import ABOUT, HOLDOUT, WEIGHTS, build_teacher, fit_config, weights_hash


def prepare_teacher(config: TrialConfig, recipe: dict, assets: Assets, context: RunContext, kept: Path) -> dict:
    """Leaves `teacher.safetensors`, `teacher.json` and `holdout.npy` in `kept` and returns what the second says.

    The third has the class that it gives to each image of the holdout, int64 [N] in order. Where it was fitted, the
    log of that is beside them.

    A teacher that stands there already is only read. A fitted one trains on the training split without the holdout in
    the context's own folder, going on from its checkpoint after a restart; then that folder becomes `kept` in one step,
    so that studies side by side never see half a teacher.

    Args:
        config: a trial's configuration; its teacher fields and its data count.
        recipe: the recipe's fields for fitting, used with `teacher_source='fit'`.
        kept: where this teacher is kept for all studies.

    Returns:
        `top1` and `loss` on the holdout, `by_class` (recall in percent there, by class, None for a class without
        images), `images` of the holdout, `classes` and their `class_names`, `class_counts` (of `train`,
        `teacher_train`, `holdout` and `test` the images of each class; an empty list where there is no test split),
        `sha256` of the weights, `epochs` fitted.
        A teacher of an earlier version stands without `by_class`, `class_counts` and `class_names`.

    Raises:
        InputError: the weights cannot be had or are another architecture's.
        TrialFailure: fitting diverged.
    """
    if not context.from_rank_0((kept / ABOUT).exists):
        _make(config, recipe, assets, context)
        context.from_rank_0(lambda: _move(context.folder, kept))  # all ranks wait for it
    return context.from_rank_0(lambda: json.loads((kept / ABOUT).read_text()))


def _make(config: TrialConfig, recipe: dict, assets: Assets, context: RunContext) -> None:
    # A teacher is kept for all studies of its data: by what students are judged, and on what, is no part of it.
    config = config.model_copy(update={"train_with_holdout": False, "metrics": []})
    weights, splits, epochs = context.folder / WEIGHTS, assets.splits(config), 0
    if config.teacher_source == "fit":
        fitting = fit_config(config, recipe)
        epochs = fitting.epochs
        if not run_trial(fitting, assets, context):
            raise TrialFailure("fitting the teacher was stopped")
        context.from_rank_0(lambda: (context.folder / STUDENT).replace(weights))
    else:
        context.from_rank_0(lambda: save_weights(build_teacher(config, len(splits.classes)), weights))
    context.hand_round(weights)
    model = build_teacher(config, len(splits.classes), weights).to(context.device).eval()
    recalls: list[float | None] = []

    def look(predictions: Predictions) -> None:
        recalls.extend(recall_by_class(predictions))
        np.save(context.folder / HOLDOUT, predictions.predicted.numpy())

    judged = evaluate(model, assets, config, context, agreement=False, look=look)
    about = {
        "top1": judged["top1"],
        "loss": judged["loss"],
        "by_class": recalls,
        "images": len(splits.holdout),
        "classes": len(splits.classes),
        "class_names": list(splits.classes),
        "class_counts": {part: _counts(splits, part) for part in ("train", "teacher_train", "holdout", "test")},
        "sha256": weights_hash(weights),
        "epochs": epochs,
    }
    context.from_rank_0(lambda: (context.folder / ABOUT).write_text(json.dumps(about)))


def _counts(splits: Splits, part: str) -> list[int]:
    """Images of each class in a split, in the order of the classes."""
    images = getattr(splits, part)
    return [] if images is None else np.bincount(images.targets, minlength=len(splits.classes)).tolist()


def _move(folder: Path, kept: Path) -> None:
    """Another study may have been first with the same teacher: then that one is kept."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.rename(kept)
    except OSError:
        if not (kept / ABOUT).exists():
            raise
        shutil.rmtree(folder)
