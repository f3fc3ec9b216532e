"""timm models as students and teachers: built for an image size and a class count, with checked weights."""

import difflib
import re
from typing import Any

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor

import trainables.models  # noqa: F401 - registers our own with timm
from trainables.config import Taps
from trainables.errors import InputError, one_line
from trainables.foreign import build_foreign, is_import_path
from trainables.trace import probe
from trainables.weights import load_weights, pretrained

# timm's arguments that fields of their own set; `features_only` builds another kind of model
RESERVED = {
    "num_classes": "the data",
    "img_size": "img_size",
    "drop_rate": "drop",
    "drop_path_rate": "drop_path",
    "pretrained": "{field}_source",
    "checkpoint_path": "{field}_weights",
    "features_only": "the way features are tapped",
}


def build_model(
    name: str,
    *,
    num_classes: int,
    img_size: int,
    source: str = "scratch",
    weights: str | None = None,
    kwargs: dict[str, Any] | None = None,
    drop: float | None = None,
    drop_path: float | None = None,
    taps: Taps = "ofakd",
    field: str = "student",
) -> nn.Module:
    """Any model that classifies, timm's or not, for square images of any size; in train mode, on the default device.

    A timm model's size is asked for by timm's `img_size`; where a model takes none it is built plainly; and where that
    fails too, it resizes its input to its own size inside. Each way is tried by one pass over zeros. Initial weights
    are those of `timm.create_model` from the same random state, whichever way it takes.

    Args:
        name: as in `timm.list_models()`, with or without a tag of pretrained weights, or `package.module:factory`, see
            `build_foreign`.
        num_classes: logits.
        img_size: pixels, the side.
        source: "scratch", "pretrained" (timm's weights, from the Hugging Face hub or its cache) or "checkpoint".
        weights: the checkpoint's path.
        kwargs: further arguments of `timm.create_model`, or of the factory.
        drop: dropout rate.
        drop_path: stochastic depth rate.
        taps: as for `stages_of`; names of modules are tapped where the model is not timm's.
        field: the name in error messages, "student" or "teacher".

    Raises:
        InputError: an unknown or headless model, arguments or a size it cannot take, weights out of reach or misfit.
    """
    if is_import_path(name):
        if source == "pretrained":
            raise InputError(
                f"{field}_source=pretrained: only timm's models have known weights; give {field}_weights=PATH with "
                f"{field}_source=checkpoint, or have the factory of {name} load its own by {field}_kwargs"
            )
        named = taps if isinstance(taps, list) and all(isinstance(tap, str) for tap in taps) else None
        options = {"kwargs": kwargs or {}, "drop": drop, "drop_path": drop_path, "field": field, "modules": named}
        model = build_foreign(name, num_classes=num_classes, img_size=img_size, **options)
        if source == "checkpoint":
            load_weights(model, weights, field)
        return model
    _check_name(name, field)
    arguments = dict(kwargs or {})
    _check_kwargs(arguments, field)
    arguments |= {"num_classes": num_classes}
    arguments |= {key: rate for key, rate in (("drop_rate", drop), ("drop_path_rate", drop_path)) if rate is not None}
    random_state, built, reason = torch.get_rng_state(), False, ""
    for own_size, resized in ((False, False), (True, False), (True, True)):
        way = arguments if own_size else {**arguments, "img_size": img_size}
        torch.set_rng_state(random_state)
        try:
            model = _create(name, way, resized, field)
            built = True
            logits, _ = probe(model, img_size)
            if logits.shape == (2, num_classes):
                break
            reason = f"its output is {list(logits.shape)}"
        except InputError:
            raise
        except Exception as error:  # a model may fail at a size in any way it likes
            reason = one_line(error)
    else:
        if kwargs and not built:
            raise InputError(f"{field}_kwargs={kwargs}: {name} cannot be built so ({reason}); change or drop them")
        raise InputError(f"img_size={img_size}: {field} {name} cannot take it ({reason}); try another size or model")
    if source == "pretrained":
        model = pretrained(name, lambda: _create(name, way, resized, field, pretrained=True), field)
    elif source == "checkpoint":
        load_weights(model, weights, field)
    return model


def pooled_embedding(model: nn.Module, final: Any) -> Tensor:
    """What the classifier sees of each image: the pooled feature behind the last norm, before the last layer.

    Args:
        model: as `build_model` gives it.
        final: the first of what its `forward_intermediates` gives; also with its gradient.

    Returns:
        [B, D]; D is timm's `head_hidden_size` where a model has it, else `num_features`. In training it has passed the
        head's dropout.
    """
    return model.forward_head(final, pre_logits=True)


def normalization(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pixels (in 0 to 1) that the model expects; ImageNet's where it has none."""
    config = model.pretrained_cfg
    return tuple(config.get("mean") or IMAGENET_DEFAULT_MEAN), tuple(config.get("std") or IMAGENET_DEFAULT_STD)


def family(model: nn.Module) -> str:
    """Which of the paper's recipes suits a student: "cnn" (SGD) or "token" (AdamW).

    "cnn" has batch norm over images, most of its parameters in convolutions, and some of these mix neighbouring places
    without a stride: an MLP written in 1x1 convolutions between strided patch embeddings (Hire-MLP) has not.
    """
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    mixing = any(max(layer.kernel_size) > 1 and max(layer.stride) == 1 for layer in convolutions)
    mostly = 2 * sum(layer.weight.numel() for layer in convolutions) > sum(w.numel() for w in model.parameters())
    return "cnn" if normed and mixing and mostly else "token"


def near_names(name: str) -> list[str]:
    """Up to three models of timm whose names are like this one, best first."""
    return difflib.get_close_matches(name, timm.list_models())


class _Resizing:
    """Mixed into a model's class: images are resized to the model's own size. Parameters keep their names."""

    own_size: tuple[int, int]

    def _resize(self, x: Tensor) -> Tensor:
        return x if x.shape[-2:] == self.own_size else F.interpolate(x, self.own_size, mode="bilinear")

    def forward(self, x: Tensor, *args, **kwargs):
        return super().forward(self._resize(x), *args, **kwargs)

    def forward_features(self, x: Tensor, *args, **kwargs):
        return super().forward_features(self._resize(x), *args, **kwargs)

    def forward_intermediates(self, x: Tensor, *args, **kwargs):
        return super().forward_intermediates(self._resize(x), *args, **kwargs)


def _check_name(name: str, field: str) -> None:
    if not timm.is_model(name):
        near = near_names(name)
        fix = f"did you mean {', '.join(near)}?" if near else "timm.list_models() has all names"
        raise InputError(f"{field}={name}: timm has no such model; {fix}")
    base, _, tag = name.partition(".")
    if base.endswith("_enc"):
        raise InputError(f"{field}={name}: an encoder without a classifier; use {base.removesuffix('_enc')}")
    if tag and name not in (tagged := timm.list_models(f"{base}.*", pretrained=True)):
        raise InputError(f"{field}={name}: no such weights; there are {', '.join(tagged) or 'none for this model'}")


def _check_kwargs(kwargs: dict[str, Any], field: str) -> None:
    where = {key: f"{field}_kwargs: {key}={value!r}" for key, value in kwargs.items()}
    problems = [
        f"{where[key]} cannot be given here; {setter.format(field=field)} sets it"
        for key, setter in RESERVED.items()
        if key in kwargs
    ]
    if kwargs.get("patch_drop_rate"):
        problems.append(f"{where['patch_drop_rate']} drops tokens, so features are no longer a grid; leave it out")
    if problems:
        raise InputError(problems)


def _create(name: str, arguments: dict[str, Any], resized: bool, field: str, pretrained: bool = False) -> nn.Module:
    try:
        model = timm.create_model(name, pretrained=pretrained, **arguments)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused is None or refused[1] == "img_size" or refused[1] not in arguments:
            raise
        value = arguments.pop(key := refused[1])
        if key == "drop_path_rate" and value == 0:  # what a model without stochastic depth does anyway
            return _create(name, arguments, resized, field, pretrained)
        where = RESERVED.get(key, f"{field}_kwargs: {key}")
        raise InputError(f"{where}={value!r}: {field} {name} takes no such argument; leave it out") from None
    if resized:
        cls = type(model)
        model.__class__ = type(f"Resizing{cls.__name__}", (_Resizing, cls), {"__module__": cls.__module__})
        model.own_size = tuple(model.pretrained_cfg["input_size"][1:])
    return model
