"""Making the teacher ready: fitted, downloaded or read, then judged, and its weights kept for all lanes."""

import json

from trainables.assets import Assets
from trainables.checkpoint import save_weights
from trainables.config import TrialConfig
from trainables.context import RunContext, TrialFailure
from trainables.evaluate import evaluate
from trainables.loop import run_trial, weights_path
from trainables.teacher import ABOUT, WEIGHTS, build_teacher, fit_config, weights_hash


def prepare_teacher(config: TrialConfig, recipe: dict, assets: Assets, context: RunContext) -> dict:
    """Leaves `teacher.safetensors` and `teacher.json` in the context's folder and returns what the latter says.

    A teacher that stands there already is only read. A fitted one trains on the training split without the holdout,
    going on from its checkpoint after a restart.

    Args:
        config: a trial's configuration; its teacher fields and its data count.
        recipe: the recipe's fields for fitting, used with `teacher_source='fit'`.

    Returns:
        `top1` and `loss` on the holdout, `images` of the holdout, `classes`, `sha256` of the weights, `epochs` fitted.

    Raises:
        InputError: the weights cannot be had or are another architecture's.
        TrialFailure: fitting diverged.
    """
    about, weights = context.folder / ABOUT, context.folder / WEIGHTS
    if about.exists() and weights.exists():
        return json.loads(about.read_text())
    splits = assets.splits(config)
    epochs = 0
    if config.teacher_source == "fit":
        fitting = fit_config(config, recipe)
        epochs = fitting.epochs
        if not run_trial(fitting, assets, context):
            raise TrialFailure("fitting the teacher was stopped")
        if context.rank == 0:
            weights_path(context.folder).replace(weights)
    elif context.rank == 0:
        save_weights(build_teacher(config, len(splits.classes)), weights)
    context.from_rank_0(lambda: None)  # all ranks read what rank 0 wrote
    model = build_teacher(config, len(splits.classes), weights).to(context.device).eval()
    judged = evaluate(model, assets, config, context, agreement=False)
    result = {
        "top1": judged["top1"],
        "loss": judged["loss"],
        "images": len(splits.holdout),
        "classes": len(splits.classes),
        "sha256": weights_hash(weights),
        "epochs": epochs,
    }
    if context.rank == 0:
        about.write_text(json.dumps(result))
    return result
