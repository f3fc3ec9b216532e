"""torchdistill: YAML that uses our plugin module, with the OFA loss as one of its mid-level losses."""

from typing import Any

from search.exporters.base import (
    Export,
    Exporter,
    Source,
    Tagged,
    account_images,
    decisive,
    eps_by_output,
    lacking,
    loss_weights,
    register,
    start_weights,
    to_yaml,
)
from search.exporters.ours import INSTALL, TEACHER
from search.exporters.timm_recipe import bounded
from trainables.config import TrialConfig

PLUGIN = "trainables.adapters.torchdistill"
DISTILLERS = ("ofa", "kd")
LEFT_OUT = ("logit_standardization", "curriculum_temperature", "sched_restarts")
WHERE = {
    "student": "`models.student_model`", "teacher": "`models.teacher_model`", "img_size": "`models`, `datasets`",
    "epochs": "`train.num_epochs`", "batch_size": "`train_data_loader.kwargs.batch_size`, the batch over all GPUs",
    "clip_grad": "`optimizer.max_grad_norm`", "stages": "`student.forward_hook.output`",
    "taps": "`student_model.kwargs`", "projector": "`student_model.kwargs`",
    "projector_lr_scale": "`student_model.kwargs`", "projector_weight_decay_scale": "`student_model.kwargs`",
    "drop": "`student_model.kwargs`",
    "drop_path": "`student_model.kwargs`", "seed": "`student_model.kwargs`", "eps": "`criterion`, one an output",
    "distiller": "`criterion`", "temperature": "`criterion`", "enhance": "`criterion`",
    "temperature_squared": "`criterion`", "gt_loss_weight": "`sub_terms.gt.weight`",
    "kd_loss_weight": "`sub_terms.kd.weight`", "ofa_loss_weight": "`sub_terms.ofa.weight`",
    "normalize_loss_weights": "the weights are divided by their sum", "smoothing": "`sub_terms.gt`, or `mixup`",
    "bce_loss": "`sub_terms.gt`", "opt": "`optimizer.kwargs`", "lr": "`optimizer.kwargs`",
    "momentum": "`optimizer.kwargs`", "weight_decay": "`optimizer.kwargs`", "mixup": "`mixup`", "cutmix": "`mixup`",
    "mixup_prob": "`mixup`", "mixup_switch_prob": "`mixup`", "sched": "`scheduler.kwargs`",
    "min_lr": "`scheduler.kwargs`", "warmup_lr": "`scheduler.kwargs`", "warmup_epochs": "`scheduler.kwargs`",
    "decay_epochs": "`scheduler.kwargs`", "decay_rate": "`scheduler.kwargs`", "crop_scale": "`datasets.train`",
    "crop_ratio": "`datasets.train`", "hflip": "`datasets.train`", "color_jitter": "`datasets.train`",
    "aa": "`datasets.train`", "reprob": "`datasets.train`", "train_interpolation": "`datasets.train`",
}  # fmt: skip


@register
class TorchDistill(Exporter):
    """`torchdistill.yaml`, and the teacher's weights."""

    name = "torchdistill"
    title = "torchdistill, with a plugin that has the OFA loss"

    def refuses(self, source: Source) -> list[str]:
        return lacking(source.config, DISTILLERS, LEFT_OUT, "the plugin")

    def export(self, source: Source) -> Export:
        config = source.config
        mixed = bool(config.mixup or config.cutmix)
        content: dict[str, Any] = {"dependencies": [{"name": PLUGIN}], "datasets": _datasets(source)}
        if mixed:
            content["mixup"] = {
                "mixup_alpha": config.mixup, "cutmix_alpha": config.cutmix, "prob": config.mixup_prob,
                "switch_prob": config.mixup_switch_prob, "label_smoothing": config.smoothing,
                "num_classes": len(source.classes),
            }  # fmt: skip
        content |= {"models": _models(source), "train": _train(source, mixed)}
        export = Export(
            files={},
            command=["python", "-m", PLUGIN, "--config", "torchdistill.yaml"],
            needs=f"{INSTALL} torchdistill",
            copies={TEACHER: source.teacher},
            notes=["The order of images and their random crops are torchdistill's own; losses on a batch are ours."],
        )
        read = decisive(config)
        for name in read & {"model_ema", "model_ema_decay"}:
            export.dropped[name] = "torchdistill keeps no average of the weights"
        export.exact = {name: WHERE[name] for name in read - export.dropped.keys() - {"images"}}
        account_images(export, source)
        content["models"]["student_model"]["kwargs"]["weights"] = start_weights(source, export)
        export.files["torchdistill.yaml"] = to_yaml(content, source.name)
        return export


def _datasets(source: Source) -> dict[str, Any]:
    config = source.config
    common = {"student": _student_of(config), "num_classes": len(source.classes)}
    train = {
        "is_training": True, "scale": config.crop_scale, "ratio": config.crop_ratio, "hflip": config.hflip,
        "color_jitter": config.color_jitter, "auto_augment": config.aa, "re_prob": config.reprob, "re_mode": "pixel",
        "interpolation": config.train_interpolation,
    }  # fmt: skip

    def images(folder: str, transform: dict[str, Any]) -> Tagged:
        arguments = {"root": f"data/{folder}", **common, **transform}
        return Tagged("!import_call", {"key": f"{PLUGIN}.images", "init": {"kwargs": arguments}})

    return {"train": images("train", train), "validation": images("validation", {"is_training": False})}


def _student_of(config: TrialConfig) -> dict[str, Any]:
    return {"name": config.student, "img_size": config.img_size, "kwargs": config.student_kwargs}


def _models(source: Source) -> dict[str, Any]:
    config, classes = source.config, len(source.classes)
    student = _student_of(config) | {
        "num_classes": classes, "stages": _stages(config), "seed": config.seed, "taps": config.taps,
        "projector": config.projector, "projector_lr_scale": config.projector_lr_scale,
        "projector_weight_decay_scale": config.projector_weight_decay_scale, "source": config.student_source,
        "drop": config.drop, "drop_path": config.drop_path,
    }  # fmt: skip
    teacher = {
        "name": config.teacher, "num_classes": classes, "img_size": config.img_size, "weights": TEACHER,
        "student": _student_of(config), "kwargs": config.teacher_kwargs,
    }  # fmt: skip
    return {
        "teacher_model": {"key": "ofakd_teacher", "kwargs": teacher},
        "student_model": {"key": "ofakd_student", "kwargs": student, "dst_ckpt": "student.safetensors"},
    }


def _stages(config: TrialConfig) -> list[int]:
    return config.stages if config.distiller == "ofa" and config.ofa_loss_weight else []


def _train(source: Source, mixed: bool) -> dict[str, Any]:
    config = source.config
    loader = {"num_workers": config.loader_workers, "pin_memory": True}

    def data(dataset: str, sampler: str, collate: str | None, options: dict[str, Any]) -> dict[str, Any]:
        drawn = Tagged("!import_get", {"key": f"torch.utils.data.{sampler}"})
        return {
            "dataset_id": dataset,
            "sampler": {"class_or_func": drawn, "kwargs": {}},
            "collate_fn": collate,
            "kwargs": options | loader,
        }

    bounds = bounded(source)
    batch = bounds.pop("batch_size")
    hooks = [f"projectors.{stage}" for stage in _stages(config)]  # the final logits are there without
    model = {"forward_proc": "forward_batch_only", "sequential": [], "wrapper": None}
    return {
        "log_freq": 50,
        "num_epochs": config.epochs,
        "train_data_loader": data(
            "train", "RandomSampler", "ofakd_mixup" if mixed else None, {"batch_size": batch, "drop_last": True}
        ),
        "val_data_loader": data("validation", "SequentialSampler", None, {"batch_size": 256, "drop_last": False}),
        "teacher": model | {"forward_hook": {"input": [], "output": []}, "requires_grad": False},
        "student": model | {"forward_hook": {"input": [], "output": hooks}, "requires_grad": True},
        "optimizer": {
            "key": "ofakd_optimizer",
            "kwargs": {
                "opt": config.opt, "lr": config.lr, "weight_decay": config.weight_decay, "momentum": config.momentum,
            },
            "max_grad_norm": config.clip_grad,
            "grad_accum_step": 1,
        },
        "scheduler": {
            "key": "ofakd_scheduler",
            "kwargs": {
                "steps_per_epoch": source.train_images // batch, "sched": config.sched, "num_epochs": config.epochs,
                **bounds, "decay_epochs": config.decay_epochs, "decay_rate": config.decay_rate,
            },
            "scheduling_step": 1,
        },
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": _terms(config)}},
    }  # fmt: skip


def _terms(config: TrialConfig) -> dict[str, Any]:
    weights = loss_weights(config)
    truth = {"smoothing": config.smoothing, "bce_loss": config.bce_loss}
    terms = {"gt": _term("GroundTruthLoss", truth, weights["gt_loss_weight"])}
    if config.distiller == "kd":
        return terms | {"kd": _term("LogitsKDLoss", {"temperature": config.temperature}, weights["kd_loss_weight"])}
    eps = eps_by_output(config)
    options = {
        "temperature": config.temperature, "enhance": config.enhance, "temperature_squared": config.temperature_squared,
    }  # fmt: skip
    terms["kd"] = _term("OFALoss", {"modules": ["."], "eps": eps[-1:], **options}, weights["kd_loss_weight"])
    if stages := _stages(config):
        modules = [f"projectors.{stage}" for stage in stages]
        terms["ofa"] = _term("OFALoss", {"modules": modules, "eps": eps[:-1], **options}, weights["ofa_loss_weight"])
    return terms


def _term(key: str, kwargs: dict[str, Any], weight: float) -> dict[str, Any]:
    return {"criterion": {"key": key, "kwargs": kwargs}, "weight": weight}
