"""timm's train.py, https://github.com/huggingface/pytorch-image-models, 1.0.23 and later, which can distil logits."""

from typing import Any

from search.exporters.base import (
    Export,
    Exporter,
    Source,
    account_images,
    check_keys,
    decisive,
    eps_by_output,
    loss_weights,
    register,
    start_weights,
    to_json,
    to_yaml,
)
from search.exporters.timm_recipe import (
    JUDGED,
    UNREAD,
    hub_config,
    model_arguments,
    own_models,
    recipe_keys,
    refusals,
    shown_whole,
)
from trainables.config import TrialConfig

KEYS = {
    "model", "model_kwargs", "pretrained", "initial_checkpoint", "kd_model_name", "kd_distill_type", "kd_loss_type",
    "distill_loss_weight", "task_loss_weight", "kd_temperature", "num_classes", "img_size", "data_dir", "dataset",
    "train_split", "val_split",
    "batch_size", "opt", "momentum", "weight_decay", "clip_grad", "sched", "sched_on_updates", "lr", "warmup_lr",
    "min_lr", "epochs", "decay_epochs", "decay_rate", "warmup_epochs", "scale", "ratio", "hflip", "color_jitter", "aa",
    "bce_loss", "reprob", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "smoothing", "train_interpolation",
    "crop_pct", "drop", "drop_path",
    "model_ema", "model_ema_decay", "seed", "amp", "amp_dtype", "channels_last", "torchcompile",
}  # fmt: skip
LOGITS = ("ofa", "kd")  # distillers whose term on the logits is, or is nearly, train.py's
NO_PLACE = "train.py compares final logits only"


@register
class TimmTrain(Exporter):
    """A YAML file for `train.py -c`: its `kd_*` keys where the distillation is like them, else the recipe alone."""

    name = "timm"
    title = "timm's train.py"

    def refuses(self, source: Source) -> list[str]:
        return own_models(source) + refusals(source.config)

    def export(self, source: Source) -> Export:
        config = source.config
        recipe, exact = recipe_keys(source)
        keys = {
            "model": config.student,
            "model_kwargs": model_arguments(source, "student"),
            "num_classes": len(source.classes),
            "img_size": config.img_size,
            "train_split": "train",
            "val_split": "validation",
        }
        export = Export(
            files={},
            command=["python", "pytorch-image-models/train.py", "--data-dir", "data", "-c", "timm.yaml"],
            needs="git clone https://github.com/huggingface/pytorch-image-models && pip install timm",
            exact=exact | {"img_size": "`img_size`", "student": "`model` and `model_kwargs`"},
        )
        account_images(export, source)
        if config.distiller in LOGITS and config.kd_loss_weight:
            keys |= _distillation(config)
            _account(config, export)
            export.files["teacher/config.json"] = to_json(hub_config(source, "teacher"))
            export.copies["teacher/model.safetensors"] = source.teacher
            export.notes.append("Run it in this folder: the teacher is looked for in `./teacher`.")
        else:
            export.notes.append("This is the student's plain recipe, without any teacher.")
            if config.distiller == "none":
                export.exact["distiller"] = "no `kd_*` keys"
            if config.gt_loss_weight == 1:
                export.exact["gt_loss_weight"] = "the only loss"
            elif config.distiller == "none":
                export.dropped["gt_loss_weight"] = "its only loss has the weight 1"
            gone = decisive(config) - export.exact.keys() - export.dropped.keys() - UNREAD.keys()
            export.dropped |= dict.fromkeys(gone, "train.py has no such distillation")
        for name in decisive(config) & UNREAD.keys():
            export.dropped[name] = UNREAD[name]
        keys |= recipe | {"sched_on_updates": True}
        if shown_whole(config):
            keys["crop_pct"] = 1.0  # as in a trial, small images are judged whole
        if start := start_weights(source, export):
            keys["initial_checkpoint"] = start
        keys["pretrained"] = config.student_source == "pretrained"
        for name in ("amp", "channels_last", "torchcompile"):
            if getattr(config, name):
                keys[name] = "inductor" if name == "torchcompile" else True
        if config.amp:
            keys["amp_dtype"] = config.amp_dtype
        check_keys(keys, KEYS)
        export.notes.append(JUDGED)
        export.files["timm.yaml"] = to_yaml(keys, source.name)
        return export


def _distillation(config: TrialConfig) -> dict[str, Any]:
    weights = loss_weights(config)
    distil = weights["kd_loss_weight"]
    if config.distiller == "ofa" and not config.temperature_squared:
        distil /= config.temperature**2  # train.py multiplies by T², OFA does not
    return {
        "kd_model_name": "local-dir:teacher",
        "kd_distill_type": "logit",
        "kd_loss_type": "kl",
        "kd_temperature": config.temperature,
        "task_loss_weight": weights["gt_loss_weight"],
        "distill_loss_weight": distil,
    }


def _account(config: TrialConfig, export: Export) -> None:
    """What becomes of the distillation's fields."""
    read = decisive(config)
    export.exact |= {
        "teacher": "`kd_model_name`, a folder as timm loads it", "distiller": "`kd_distill_type: logit`",
        "temperature": "`kd_temperature`", "gt_loss_weight": "`task_loss_weight`",
        "kd_loss_weight": "`distill_loss_weight`",
    }  # fmt: skip
    if config.distiller == "ofa":
        if not config.temperature_squared:
            export.exact["kd_loss_weight"] += ", divided by T²: train.py multiplies its term by T², OFA does not"
        eps = eps_by_output(config)[-1]
        form = "KL(p_t || p_s) in place of OFA's loss, whose gradients are the same at eps = 1"
        if eps == 1 and config.enhance == "all":
            export.exact |= {"eps": f"eps = 1: {form}", "enhance": "as the distiller"}
        else:
            del export.exact["distiller"]
            export.approximated["distiller"] = form
            export.approximated["eps"] = f"the logits' {eps} becomes 1: the target class is not enhanced"
    named = export.exact.keys() | export.approximated.keys()
    for name, where in {
        "temperature_squared": "train.py multiplies by T² too",
        "normalize_loss_weights": "both weights are divided by the sum of all",
    }.items():
        if name in read:
            export.exact[name] = where
    for name in read & {"stages", "taps", "ofa_loss_weight", "enhance", "logit_standardization"} - named:
        export.dropped[name] = NO_PLACE if name != "logit_standardization" else "train.py compares logits as they are"
