"""A script in one file that needs torch and timm alone, to read as a tutorial and to run anywhere.

Its frame is `train_student.py.txt`; what of it depends on the trial is put in here.
"""

import inspect
import json
from pathlib import Path
from typing import Any

from search.exporters.base import (
    Export,
    Exporter,
    Source,
    account_images,
    decisive,
    eps_by_output,
    lacking,
    loss_weights,
    register,
)
from search.exporters.timm_recipe import model_arguments
from trainables.config import TrialConfig

FRAME = Path(__file__).with_name("train_student.py.txt")
DISTILLERS = ("ofa", "kd", "none")
RECIPE = (
    "seed", "epochs", "batch_size", "img_size", "opt", "lr", "momentum", "weight_decay", "projector_lr_scale",
    "projector_weight_decay_scale", "sched", "min_lr", "warmup_lr", "warmup_epochs", "decay_epochs", "decay_rate",
    "clip_grad", "smoothing", "mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "crop_scale", "crop_ratio", "hflip",
    "color_jitter", "aa", "reprob", "train_interpolation", "model_ema", "model_ema_decay", "amp", "amp_dtype",
)  # fmt: skip
LOSSES = ("distiller", "stages", "eps", "temperature", "gt_loss_weight", "kd_loss_weight", "ofa_loss_weight")
LEFT_OUT = ("logit_standardization", "curriculum_temperature", "sched_restarts")  # the script has no such thing
IMPORTS = """from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import Mixup, create_transform
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3
"""
GROUND_TRUTH = '''
def ground_truth(logits, target):
    """Cross-entropy with the labels."""
    if target.ndim == 2:  # mixed, and smoothed with it
        return F.cross_entropy(logits, target)
    return F.cross_entropy(logits, target, label_smoothing=CONFIG["smoothing"])
'''
BINARY = '''
def ground_truth(logits, target):
    """Binary cross-entropy of every class with the labels."""
    return BinaryCrossEntropy(smoothing=CONFIG["smoothing"])(logits, target)
'''
ALONE = '''

def total_loss(logits, stages, answer, target):
    """Cross-entropy alone: there is no teacher."""
    return CONFIG["gt_loss_weight"] * ground_truth(logits, target)
'''
KD = '''

def total_loss(logits, stages, answer, target):
    """Cross-entropy, and T² KL(teacher || student), both softened by T (Hinton et al., 2015)."""
    temperature = CONFIG["temperature"]
    taught, learned = F.log_softmax(answer.float() / temperature, 1), F.log_softmax(logits / temperature, 1)
    distance = temperature**2 * F.kl_div(learned, taught, log_target=True, reduction="batchmean")
    return CONFIG["gt_loss_weight"] * ground_truth(logits, target) + CONFIG["kd_loss_weight"] * distance
'''
OFA = '''

def ofa_loss(logits, answer, target, eps):
    """One-for-all distillation (Hao et al., NeurIPS 2023): {formula}.

    m is one for the target and zero elsewhere; with mixed labels the target is the largest.
    """
    temperature = CONFIG["temperature"]
    taught, learned = (answer.float() / temperature).softmax(1), F.log_softmax(logits / temperature, 1)
    m = F.one_hot(target if target.ndim == 1 else target.argmax(1), logits.shape[1])
    weights = {weights}
    return -{factor}(weights * learned).sum(1).mean()


def total_loss(logits, stages, answer, target):
    """Cross-entropy, the loss of the final logits, and the sum of those of the stages' logits; each eps its own."""
    eps = CONFIG["eps"]
    loss = CONFIG["gt_loss_weight"] * ground_truth(logits, target)
    loss = loss + CONFIG["kd_loss_weight"] * ofa_loss(logits, answer, target, eps[-1])
    for stage, exponent in zip(stages, eps):
        loss = loss + CONFIG["ofa_loss_weight"] * ofa_loss(stage, answer, target, exponent)
    return loss
'''
FORMS = {
    "all": ("-sum_c ((p_t,c + m_c)^eps - m_c) log p_s,c", "(taught + m) ** eps - m"),
    "target": (
        "-(1 + p_t,y)^eps log p_s,y - sum_(c != y) p_t,c log p_s,c",
        "torch.where(m == 1, (1 + taught) ** eps, taught)",
    ),
}


@register
class PythonScript(Exporter):
    """`train_student.py`, and the teacher's weights beside it."""

    name = "python"
    title = "a script of its own, with torch and timm only"

    def refuses(self, source: Source) -> list[str]:
        from trainables.foreign import is_import_path

        config = source.config
        problems = lacking(config, DISTILLERS, LEFT_OUT, "the script")
        if config.student_source != "scratch":
            problems.append(f"student_source: the script begins from scratch, not {config.student_source}")
        for role in ("student", "teacher") if config.distiller != "none" else ("student",):
            name = getattr(config, role)
            if is_import_path(name) or _own_module(name) is False:
                problems.append(f"{role}: {name} is no model of timm's; lightning and hf build any")
        return problems

    def export(self, source: Source) -> Export:
        config = source.config
        taught = config.distiller != "none"
        settings: dict[str, Any] = {name: getattr(config, name) for name in RECIPE}
        settings |= {name: getattr(config, name) for name in LOSSES if name in decisive(config) or name == "distiller"}
        settings["num_classes"] = len(source.classes)
        settings |= self._models(source)
        student = _student(source)
        if config.distiller == "ofa":
            settings["ofa_loss_weight"] = config.ofa_loss_weight
            settings["eps"] = eps_by_output(config)
        settings["features"] = student.indices
        settings |= loss_weights(config)
        script = FRAME.read_text()
        copies, imports = {}, IMPORTS
        if config.bce_loss:
            imports = imports.replace("from timm.optim", "from timm.loss import BinaryCrossEntropy\nfrom timm.optim", 1)
        for role in ("student", "teacher") if taught else ("student",):
            if (module := _own_module(getattr(config, role))) is not None:
                copies[module.name] = module
                imports += f"\nimport {module.stem}  # noqa: F401 - {getattr(config, role)}, which timm has not\n"
        projectors, more = _projectors(student)
        imports = imports.replace("from timm.optim", f"{more}from timm.optim", 1)
        for mark, text in {
            "@student@": config.student, "@teacher@": config.teacher if taught else "nobody",
            "@trial@": source.record["trial"], "@study@": source.record["study"],
            "@imports@": imports, "@math@": "import math\n" if more else "", "@config@": _as_code(settings),
            "@projectors@\n": projectors, "@losses@\n": _losses(config),
        }.items():  # fmt: skip
            script = script.replace(mark, text)
        export = Export(
            files={"train_student.py": script},
            command=["python", "train_student.py", "--data", "data"],
            needs="pip install torch timm",
            copies=copies | ({"teacher.safetensors": source.teacher} if taught else {}),
        )
        export.exact = dict.fromkeys(decisive(config) - {"images"}, "`CONFIG`, and what reads it")
        account_images(export, source)
        if config.model_ema:
            export.approximated["model_ema"] = "the average alone is kept; in a trial the better of both"
            del export.exact["model_ema"]
        export.notes.append("The student of the last epoch is `student.safetensors`.")
        return export

    @staticmethod
    def _models(source: Source) -> dict[str, Any]:
        config, found = source.config, {}
        for role in ("student", "teacher") if config.distiller != "none" else ("student",):
            found[role] = getattr(config, role)
            arguments = model_arguments(source, role)
            if role == "student":
                rates = {"drop_rate": config.drop, "drop_path_rate": config.drop_path}
                arguments |= {name: rate for name, rate in rates.items() if rate is not None}
            found[f"{role}_arguments"] = arguments
        return found


def _as_code(settings: dict[str, Any]) -> str:
    """A dict as people write it, one entry a line."""

    def literal(value: Any) -> str:
        return json.dumps(value) if isinstance(value, str) else repr(value)

    return "{\n" + "".join(f'    "{name}": {literal(value)},\n' for name, value in settings.items()) + "}"


def _student(source: Source):
    """The student with its projectors, as the trial has it."""
    import torch

    from trainables.loop import build_student

    with torch.random.fork_rng():
        return build_student(source.config, len(source.classes))


def _projectors(student) -> tuple[str, str]:
    """The code of the student's projectors, which is ours, a function that makes them, and what they need of timm."""
    from trainables import projectors as ours

    built = list(student.projectors.values())
    if not built:
        return 'def PROJECTORS():\n    """None."""\n    return []\n\n\n', ""
    parts = {
        "ConvProjector": [ours.SepConv, ours.ConvProjector],
        "TokenProjector": [ours.PatchMerging, ours.TokenProjector],
        "PooledProjector": [ours.PooledProjector],
    }[type(built[0]).__name__]
    constants = f"LEAST_GRID, HEADS = {ours.LEAST_GRID}, {ours.HEADS}\n\n\n" if ours.TokenProjector in parts else ""
    code = constants + "\n\n".join(inspect.getsource(part) for part in [*parts, ours.initialize])
    calls = ",\n        ".join(_call(student, stage, projector) for stage, projector in student.projectors.items())
    code = code.replace(": Tensor", "").replace(" -> Tensor", "")
    code += (
        f'\n\ndef PROJECTORS():\n    """One a stage, shallow to deep."""\n    return [\n        {calls},\n    ]\n\n\n'
    )
    return code, "from timm.models.vision_transformer import Block\n" if constants else ""


def _call(student, stage: str, projector) -> str:
    channels, height, width = student.feature_shapes[int(stage)]
    classes, out = "CONFIG['num_classes']".replace("'", '"'), student.model.num_features
    name = type(projector).__name__
    if name == "ConvProjector":
        from trainables.student import available_stages

        return f"ConvProjector({channels}, {stage}, {out}, {classes}, {len(available_stages(student.model))})"
    if name == "TokenProjector":
        return f"TokenProjector({channels}, ({height}, {width}), {stage}, {classes}, {out})"
    return f"PooledProjector({channels}, {classes})"


def _losses(config: TrialConfig) -> str:
    code = BINARY if config.bce_loss else GROUND_TRUTH
    if config.distiller == "ofa":
        formula, weights = FORMS[config.enhance]
        factor = "temperature**2 * " if config.temperature_squared else ""
        return code + OFA.format(formula=formula, weights=weights, factor=factor)
    return code + (KD if config.distiller == "kd" else ALONE)


def _own_module(name: str) -> Path | bool | None:
    """The file of a model of ours that stands on timm alone; None for timm's own, False for one that needs more."""
    import timm

    from trainables.models import is_ours

    if not is_ours(name):
        return None
    file = Path(inspect.getfile(timm.model_entrypoint(name.partition(".")[0])))
    return file if "trainables" not in file.read_text() else False
