"""The official OFA-KD script, `train.py` of https://github.com/Hao840/OFAKD, which stands on timm 0.6.5.

Which keys and models it knows is written down here, for it takes unknown keys in silence.
"""

import re
from functools import partial
from pathlib import Path
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
    to_yaml,
)
from search.exporters.timm_recipe import JUDGED, UNREAD, recipe_keys, refusals
from trainables.config import TrialConfig

SIZE = 224  # pixels, for which the shapes of its projectors are tabled
# Models by our name (timm's of today) and by that script's
STUDENTS = {
    "resnet18": "resnet18", "resnet34": "resnet34", "resnet50": "resnet50", "resnet101": "resnet101",
    "mobilenetv2_100": "mobilenetv2_100", "convnext_tiny": "convnext_tiny", "convnext_base": "convnext_base",
    "cyclemlp_b3": "CycleMLP_B3", "hire_mlp_small": "hire_mlp_small", "vip_s7": "vip_s7",
    "mixer_b16_224": "mixer_b16_224", "resmlp_12_224": "resmlp_12_224",
    "swin_tiny_patch4_window7_224": "swin_tiny_patch4_window7_224",
    "swin_base_patch4_window7_224": "swin_base_patch4_window7_224",
    "swin_nano": "swin_nano_patch4_window7_224", "swin_pico": "swin_pico_patch4_window7_224",
}  # fmt: skip
TEACHERS = STUDENTS | {
    "vit_small_patch16_224": "vit_small_patch16_224", "vit_base_patch16_224": "vit_base_patch16_224",
    "deit_tiny_patch16_224": "deit_tiny_patch16_224", "beitv2_base_patch16_224": "beitv2_base_patch16_224",
    "beitv2_large_patch16_224": "beitv2_large_patch16_224",
}  # fmt: skip
OPTIMIZERS = ("sgd", "nesterov", "momentum", "adam", "adamw", "nadam", "radam", "adamp", "sgdp", "adadelta", "adagrad",
              "adafactor", "lamb", "lambc", "larc", "lars", "madgrad", "madgradw", "novograd", "rmsprop",
              "rmsproptf")  # fmt: skip
DISTILLERS = {"ofa": "ofa", "kd": "kd", "none": "vanilla"}
KEYS = {
    "model", "teacher", "teacher_pretrained", "distiller", "gt_loss_weight", "kd_loss_weight", "kd_temperature",
    "ofa_eps", "ofa_stage", "ofa_loss_weight", "ofa_temperature", "num_classes",
    "img_size", "batch_size", "opt", "momentum", "weight_decay", "clip_grad", "sched", "lr", "warmup_lr", "min_lr",
    "epochs", "decay_epochs", "warmup_epochs", "decay_rate", "scale", "ratio", "hflip", "color_jitter", "aa",
    "bce_loss", "initial_checkpoint", "reprob", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "smoothing",
    "train_interpolation", "drop", "drop_path", "model_ema", "model_ema_decay", "seed", "native_amp",
}  # fmt: skip


@register
class OFAKDTrain(Exporter):
    """A YAML file for `train.py -c`, with OFA's own keys."""

    name = "ofakd"
    title = "the official OFA-KD script"

    def refuses(self, source: Source) -> list[str]:
        config, problems = source.config, refusals(source.config)
        known = {"student": STUDENTS} | ({"teacher": TEACHERS} if config.distiller != "none" else {})
        for role, models in known.items():
            if (name := getattr(config, role)) not in models:
                problems.append(f"{role}: the script has no {name}; it knows {', '.join(models)}")
            if getattr(config, f"{role}_kwargs"):
                problems.append(f"{role}_kwargs: the script builds {name} as it is")
        if config.img_size != SIZE:
            problems.append(f"img_size: the script is for {SIZE} pixels, and the trial has {config.img_size}")
        if config.distiller not in DISTILLERS:
            problems.append(f"distiller: the script has no working {config.distiller}; it is exported as {_listed()}")
        if config.logit_standardization:
            problems.append("logit_standardization: the script has no such thing")
        if config.student_source == "pretrained":
            problems.append("student_source: timm 0.6.5 has other weights; give a checkpoint, or begin from scratch")
        if config.student_source == "checkpoint" and not config.student_weights.endswith(".safetensors"):
            problems.append("student_weights: give them as .safetensors, so that they can be written for the script")
        if config.distiller == "ofa":
            if config.enhance != "all":
                problems.append("enhance: the script has the form 'all' only")
            if not config.stages:
                problems.append("stages: without one the script fails; its --ofa-stage needs at least one")
            if config.projector == "pooled" or config.taps != "ofakd":
                problems.append("projector, taps: the script has its own projectors at its own stages only")
        if config.opt not in OPTIMIZERS:
            problems.append(f"opt: timm 0.6.5, on which the script stands, has no '{config.opt}'")
        return problems

    def export(self, source: Source) -> Export:
        config = source.config
        recipe, exact = recipe_keys(source)
        model = {"model": STUDENTS[config.student], "num_classes": len(source.classes), "teacher": ""}
        taught = config.distiller != "none"
        if taught:
            model |= {"teacher": TEACHERS[config.teacher], "teacher_pretrained": "teacher.pth"}
        keys = model | {"distiller": DISTILLERS[config.distiller]} | _losses(config) | {"img_size": SIZE} | recipe
        keys["model_ema_decay"] = [config.model_ema_decay]
        export = Export(
            files={},
            command=["python", "OFAKD/train.py", "data", "-c", "ofakd.yaml"],
            needs="git clone https://github.com/Hao840/OFAKD && pip install -r OFAKD/requirements.txt",
        )
        export.exact = exact | {"img_size": "`img_size`", "student": "`model`", "distiller": "`distiller`"}
        export.exact |= {name: where for name, where in _WHERE.items() if name in decisive(config)}
        export.approximated = {
            "sched": "the rate changes once an epoch, here after every update",
            "weight_decay": "it also decays position embeddings and what else a model exempts",
        }
        account_images(export, source)
        if taught:
            export.approximated["teacher"] = (
                "its images come in the student's normalisation, here each model has its own"
            )
            export.pickles["teacher.pth"] = partial(old_weights, config.teacher, source.teacher)
        if _widths_differ(config):
            export.approximated["projector"] = "a CNN's are as wide as the wider of both models, here as the student"
        elif "projector" in decisive(config):
            export.exact["projector"] = "the script's own, by the kind of the student"
        for name in decisive(config) & UNREAD.keys() - {"projector"}:
            export.dropped[name] = UNREAD[name]
        if config.amp:
            keys["native_amp"] = True
            export.notes.append("Mixed precision there is float16 with scaled gradients.")
        for name in ("sched", "weight_decay"):
            export.exact.pop(name)
        if config.student_source == "checkpoint":
            keys["initial_checkpoint"] = "start.pth"
            export.pickles["start.pth"] = partial(old_weights, config.student, Path(config.student_weights))
        check_keys(keys, KEYS)
        export.notes.append(JUDGED)
        export.files["ofakd.yaml"] = to_yaml(keys, source.name)
        return export


_WHERE = {
    "eps": "`ofa_eps`, one per stage in the order of `ofa_stage` and one for the logits",
    "stages": "`ofa_stage`", "taps": "the script's own stages",
    "enhance": "the script's only form", "temperature": "`ofa_temperature` (of kd: `kd_temperature`)",
    "temperature_squared": "T² is in `kd_loss_weight` and `ofa_loss_weight`",
    "normalize_loss_weights": "the three weights are divided by their sum",
    "gt_loss_weight": "`gt_loss_weight`", "kd_loss_weight": "`kd_loss_weight`", "ofa_loss_weight": "`ofa_loss_weight`",
}  # fmt: skip


def old_weights(name: str, path: Path) -> dict[str, Any]:
    """A model's weights as timm 0.6.5 has them: all but Swin's are as they are today.

    Args:
        name: the model's, by our name.
        path: its weights, safetensors.
    """
    from safetensors.torch import load_file
    from timm import create_model

    import trainables.models  # noqa: F401 - Swin-Nano and Swin-Pico

    state = load_file(path)
    if not name.startswith("swin_"):
        return state

    def old(key: str) -> str:  # a stage's downsampling was at its end, and is at the next one's beginning
        key = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", key)
        return key.replace("head.fc.", "head.")

    buffers = ("relative_position_index", "attn_mask")  # which were kept with the weights
    kept = {key: value for key, value in create_model(name).named_buffers() if key.endswith(buffers)}
    return {old(key): value for key, value in state.items()} | kept


def _losses(config: TrialConfig) -> dict[str, Any]:
    keys: dict[str, Any] = loss_weights(config)
    if config.distiller == "ofa" and config.temperature_squared:
        keys |= {name: config.temperature**2 * keys[name] for name in ("kd_loss_weight", "ofa_loss_weight")}
    if config.distiller == "kd":
        keys["kd_temperature"] = config.temperature
    elif config.distiller == "ofa":
        keys |= {
            "ofa_eps": [float(one) for one in eps_by_output(config)],
            "ofa_stage": config.stages,
            "ofa_temperature": config.temperature,
        }
    return keys


def _widths_differ(config: TrialConfig) -> bool:
    """Whether that script's projectors are wider than ours: of a CNN beside a teacher that is wider than it."""
    if config.distiller != "ofa":
        return False
    import torch
    from timm import create_model

    from trainables.build import family

    with torch.random.fork_rng():
        student, teacher = (create_model(name) for name in (config.student, config.teacher))
    return family(student) == "cnn" and teacher.num_features > student.num_features


def _listed() -> str:
    return ", ".join(DISTILLERS)
