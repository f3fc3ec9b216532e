"""The model card of a delivered student: what it is, how it was made, how good it is, how to load it."""

from pathlib import Path
from typing import Any

import yaml

from search.ledger import TrialRecord
from search.objective import format_value
from search.preflight import Plan
from search.results import in_words

WEIGHTS = "student.safetensors"
CARD = """---
{front}---

# {student}, distilled from {teacher}

An image classifier of {classes} classes ({data_name}), {params:,.0f} parameters, for images of {size} pixels.
It was trained by [OFA-KD](https://arxiv.org/abs/2310.19444) with a frozen `{teacher}` as teacher ({teacher_top1}).
Its hyperparameters are those of {of} of the study `{study}`.

## How good it is

On the test split ({test_images}), which nothing was trained on or chosen by:

{metrics}

One training run, so without error bars; those of the study's finalists are in its report. It was trained on the
{train_images} images of the training split and the {holdout_images} of the holdout together, its teacher on the
training split alone.

## How it was trained

{epochs} epochs on {data}.

{configuration}

`config.yaml` beside this file has every field.

## How to load it

```python
{loading}
```

Images are squares of {size} pixels, scaled to 0..1, then normalised by mean {mean} and deviation {std}.
The classes, in the order of the logits, are in `config.yaml`.

## What to keep in mind

It knows the data it was trained on and imitates its teacher, with the teacher's errors. Nothing was measured on other
data, under shift, or by groups of people.
"""
LOADING = """import timm
from safetensors.torch import load_file
{imports}
model = timm.create_model({name!r}, num_classes={classes}{kwargs})
model.load_state_dict(load_file("student.safetensors"))
model.eval()"""
LOADING_OWN = """from safetensors.torch import load_file

from {module} import {factory}

model = {factory}(num_classes={classes}{kwargs})
model.load_state_dict(load_file("student.safetensors"))
model.eval()"""


def write_card(path: Path, plan: Plan, source: TrialRecord, record: TrialRecord, folder: Path) -> None:
    """Writes the card as Markdown with the front matter that model hubs read.

    Args:
        path: the card's file.
        plan: the study's.
        source: the trial whose configuration it is.
        record: the training's, complete.
        folder: the study's.
    """
    config = record.config
    test = {name: value for name, value in record.history[-1].items() if name.startswith("test/")}
    images = _input(config, len(plan.classes))
    path.write_text(
        CARD.format(
            front=_front_matter(config, test),
            student=config["student"],
            teacher=config["teacher"],
            teacher_top1=_teacher_top1(folder),
            classes=len(plan.classes),
            data=plan.data,
            data_name=config["data"],
            params=record.metric("cost/student_params"),
            of=record.of,
            study=folder.name,
            test_images=f"{plan.test_images} images",
            train_images=plan.train_images,
            holdout_images=plan.holdout_images,
            metrics=table(["metric", "value"], [(name, format_value(name, value)) for name, value in test.items()]),
            epochs=record.epoch,
            configuration=table(["field", "value"], _telling(config, source)),
            loading=_loading(config, len(plan.classes), path.with_name(WEIGHTS)),
            **images,
        )
    )


def _front_matter(config: dict[str, Any], test: dict[str, float]) -> str:
    return yaml.safe_dump(
        {
            "library_name": "timm",
            "pipeline_tag": "image-classification",
            "tags": ["image-classification", "knowledge-distillation", "ofa-kd"],
            "datasets": [str(config["data"])],
            "metrics": [{"name": name.removeprefix("test/"), "value": round(value, 4)} for name, value in test.items()],
        },
        sort_keys=False,
    )


def _teacher_top1(folder: Path) -> str:
    best = folder / "best.yaml"
    if not best.exists():
        return "its accuracy is in the study's report"
    return f"top-1 {yaml.safe_load(best.read_text())['teacher_top1']:.2f} on the holdout"


def _telling(config: dict[str, Any], source: TrialRecord) -> list[tuple[str, str]]:
    names = ("distiller", "stages", "eps", "temperature", "gt_loss_weight", "kd_loss_weight", "ofa_loss_weight")
    names += ("opt", "lr", "weight_decay", "batch_size", "mixup", "cutmix", "smoothing", "seed")
    return [(name, str(config[name])) for name in names] + [("searched", in_words(source.params) or "nothing")]


def _loading(config: dict[str, Any], classes: int, weights: Path) -> str:
    """Code that loads the weights, as it was tried here."""
    import timm
    from safetensors.torch import load_file

    from trainables.foreign import is_import_path
    from trainables.models import is_ours

    name, kwargs = config["student"], dict(config["student_kwargs"])
    if is_import_path(name):
        module, _, factory = name.partition(":")
        return LOADING_OWN.format(module=module, factory=factory, classes=classes, kwargs=arguments_text(kwargs))
    try:
        kwargs = {"img_size": config["img_size"], **kwargs}
        model = timm.create_model(name, num_classes=classes, **kwargs)
    except (TypeError, AssertionError):  # it takes no size, or just its own
        del kwargs["img_size"]
        model = timm.create_model(name, num_classes=classes, **kwargs)
    model.load_state_dict(load_file(weights))
    imports = "\nimport trainables.models  # it is none of timm's own\n" if is_ours(name) else ""
    return LOADING.format(name=name, classes=classes, kwargs=arguments_text(kwargs), imports=imports)


def arguments_text(kwargs: dict[str, Any]) -> str:
    """Keyword arguments as code, a comma before each."""
    return "".join(f", {key}={value!r}" for key, value in kwargs.items())


def _input(config: dict[str, Any], classes: int) -> dict[str, Any]:
    """What images the plain model takes: their side in pixels, and mean and deviation by channel."""
    from trainables.build import build_model, normalization

    kwargs = config["student_kwargs"]
    model = build_model(config["student"], num_classes=classes, img_size=config["img_size"], kwargs=kwargs)
    mean, std = normalization(model)
    return {"size": getattr(model, "own_size", [config["img_size"]])[0], "mean": list(mean), "std": list(std)}


def table(head: list[str], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])
