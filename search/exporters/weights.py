"""The trained student itself: its weights as timm loads them, with a model card."""

import yaml

from search.exporters.base import Export, Exporter, Source, decisive, register, to_json
from search.exporters.timm_recipe import hub_config
from search.model_card import LOADING_OWN, arguments_text, table
from search.statistics import summary

CARD = """---
{front}---

# {title}

An image classifier of {classes} classes, for images of {size} pixels. {taught} It is trial {trial} of study `{study}`.

## How good it is

{metrics}

## How it was trained

{epochs} epochs on {images} images of `{data}` (fingerprint `{fingerprint}`).

{configuration}

## How to load it

```python
{loading}
```

## What to keep in mind

It knows the data it was trained on and imitates its teacher, with the teacher's errors. Nothing was measured on other
data, under shift, or by groups of people. Its licence is for you to fill in: it follows from the data's and the
teacher's.
"""
TAUGHT = (
    "It was trained by the distiller `{distiller}` ([OFA-KD](https://arxiv.org/abs/2310.19444) and its rivals), with a "
    "frozen `{teacher}` as teacher, which reaches {top1:.2f} on the holdout."
)
LOADING = """import timm
{imports}
model = timm.create_model("local-dir:.", pretrained=True)  # this folder
model.eval()"""
TOLD = ("distiller", "stages", "eps", "temperature", "gt_loss_weight", "kd_loss_weight", "ofa_loss_weight", "opt", "lr",
        "weight_decay", "batch_size", "mixup", "cutmix", "smoothing", "seed")  # fmt: skip


@register
class Weights(Exporter):
    """`model.safetensors` and `config.json`, a folder as timm and the Hugging Face hub have it, and `README.md`."""

    name = "weights"
    title = "the trained student, as timm and model hubs load it, with a model card"

    def export(self, source: Source) -> Export:
        from trainables.foreign import is_import_path

        config = source.config
        foreign = is_import_path(config.student)
        files = {} if foreign else {"config.json": to_json(hub_config(source, "student"))}
        return Export(
            files=files | {"README.md": card(source)},
            command=[],
            needs="",
            exact=dict.fromkeys(decisive(config), "in the weights, which are trained"),
            copies={"model.safetensors": source.weights},
            notes=["The model card says how to load it. Its `license` is yours to fill in."],
        )


def card(source: Source) -> str:
    """The model card, Markdown with the front matter that model hubs read."""
    config, record = source.config, source.record
    taught = config.distiller != "none"
    return CARD.format(
        front=_front_matter(source),
        title=f"{config.student}, distilled from {config.teacher}" if taught else config.student,
        taught=TAUGHT.format(**vars(config), top1=record["teacher_top1"])
        if taught
        else "It was trained on labels alone.",
        classes=len(source.classes),
        size=config.img_size,
        trial=record["trial"],
        study=record["study"],
        metrics=table(["metric", "on", "value"], _metrics(record)),
        epochs=config.epochs,
        images=source.train_images,
        data=config.data,
        fingerprint=record["data_fingerprint"],
        configuration=table(["field", "value"], [(name, str(getattr(config, name))) for name in TOLD]),
        loading=_loading(source),
    )


def _metrics(record: dict) -> list[tuple[str, str, str]]:
    """Each with its interval, where several seeds tell one."""
    rows = [("top-1", f"holdout, {record['holdout_images']} images that chose it", f"{record['val_top1']:.2f}")]
    for name, values in record.get("final", {}).items():
        part, _, metric = name.partition("/")
        if part != "test" or not values:
            continue
        found = summary(values)
        text = f"{found.mean:.2f}"
        if found.low is not None:
            text += f" (95% interval {found.low:.2f} to {found.high:.2f})"
        rows.append((metric, f"test split, {found.count} seed(s)", text))
    return rows


def _front_matter(source: Source) -> str:
    return yaml.safe_dump(
        {
            "library_name": "timm",
            "pipeline_tag": "image-classification",
            "license": "unknown",
            "tags": ["image-classification", "knowledge-distillation", "ofa-kd"],
            "datasets": [source.config.data],
        },
        sort_keys=False,
    )


def _loading(source: Source) -> str:
    from trainables.foreign import is_import_path
    from trainables.models import is_ours

    name, kwargs = source.config.student, source.config.student_kwargs
    if is_import_path(name):
        module, _, factory = name.partition(":")
        options = {"module": module, "factory": factory, "classes": len(source.classes)}
        return LOADING_OWN.format(**options, kwargs=arguments_text(kwargs)).replace("student.safe", "model.safe")
    return LOADING.format(imports="import trainables.models  # its architecture is ours\n" if is_ours(name) else "")
