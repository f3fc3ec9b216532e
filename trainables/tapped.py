"""timm's interface for any model: logits, features and embedding in one pass, by forward hooks on named modules."""

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from trainables.errors import InputError, one_line
from trainables.trace import first_tensor, to_nchw, trace


class Final(NamedTuple):
    """What `Tapped.forward_head` takes: the logits, [B, num_classes], and what the classifier was given."""

    logits: Tensor
    given: Tensor | None


class Tapped:
    """Mixed into a model's class by `make_tapped`: the part of timm's interface that students and teachers use.

    Parameters keep their names, so that state dicts are those of the model's own class. Hooks exist during a call only,
    so that copies, pickles and replicas carry none.

    Attributes:
        feature_info: as timm's, a dict for each feature, `num_chs`, `reduction` and `module`; and `layout`, how the
            module gives it: "NCHW", "NHWC" or "NLC".
        num_features: channels that the classifier takes, where the model has no attribute of this name.
        pretrained_cfg: the model's own, if it has one, and `architecture` and `classifier`.
        tapped_classifier: the module that gives the logits.
    """

    feature_info: list[dict[str, Any]]
    pretrained_cfg: dict[str, Any]
    tapped_classifier: str | None = None

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:  # torch.export wants the images to have a name
        """The model's own forward.

        Raises:
            InputError: its output is no tensor, as with auxiliary classifiers in training.
        """
        output = super().forward(x, *args, **kwargs)
        if not isinstance(output, Tensor):
            mode = "training" if self.training else "evaluation"
            raise InputError(
                f"{self.pretrained_cfg['architecture']}: in {mode} it gives a {type(output).__name__} and should give "
                "the logits alone; leave out auxiliary classifiers, by the factory's arguments"
            )
        return output

    def forward_intermediates(self, x: Tensor, indices: list[int] | int | None = None) -> tuple[Final, list[Tensor]]:
        """[B, 3, S, S] to what `forward_head` takes, and the features, [B, C, H, W].

        Args:
            x: images.
            indices: into `feature_info`, ascending; an int for so many of the last, or all that there are, as a model
                may have none; None for all.
        """
        if indices is None:
            infos = self.feature_info
        elif isinstance(indices, int):
            infos = self.feature_info[max(len(self.feature_info) - indices, 0) :]
        else:
            infos = [self.feature_info[index] for index in indices]
        outputs: dict[str, Tensor] = {}
        inputs: list[Tensor] = []

        def keep_output(name: str, module: nn.Module, args: tuple, output: Any) -> None:
            outputs[name] = output

        def keep_input(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            inputs[:] = [first_tensor((args, kwargs))]

        with contextlib.ExitStack() as hooks:
            for info in infos:
                hook = functools.partial(keep_output, info["module"])
                hooks.enter_context(self.get_submodule(info["module"]).register_forward_hook(hook))
            if self.tapped_classifier is not None:
                classifier = self.get_submodule(self.tapped_classifier)
                hooks.enter_context(classifier.register_forward_pre_hook(keep_input, with_kwargs=True))
            logits = self(x)
        features = [to_nchw(outputs[info["module"]], info["layout"]) for info in infos]
        return Final(logits, inputs[0] if inputs else None), features

    def forward_head(self, final: Any, *args, pre_logits: bool = False, **kwargs) -> Tensor:
        """The logits, or with `pre_logits` the embedding, [B, D].

        Raises:
            InputError: the embedding is not to be had.
        """
        if not isinstance(final, Final):  # the model has a method of this name too, and calls it
            return super().forward_head(final, *args, **kwargs, **({"pre_logits": True} if pre_logits else {}))
        if not pre_logits:
            return final.logits
        if final.given is None:
            name = self.pretrained_cfg["architecture"]
            raise InputError(f"{name} has no embedding: no linear layer or 1x1 convolution gives its logits")
        return _pooled(final.given, self.get_submodule(self.tapped_classifier))

    def __reduce__(self):
        return _blank, (type(self).__bases__[1],), self.__getstate__()


def make_tapped(
    model: nn.Module,
    name: str,
    num_classes: int,
    img_size: int,
    modules: list[str] | None = None,
    field: str = "student",
) -> Any:
    """Gives a model timm's interface, in place, after one pass over black images.

    Args:
        model: any model of images, [B, 3, S, S] to [B, num_classes].
        name: what messages call it.
        num_classes: logits.
        img_size: pixels, the side S.
        modules: those whose outputs are the features, as they run; None for a choice by rule, `Trace.features`.
        field: the name in error messages, "student" or "teacher".

    Returns:
        The model's output for two black images.

    Raises:
        InputError: the named modules give no features or run in another order, or the model's class admits no tapping.
        Exception: whatever the model raises.
    """
    for part, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            reason = f"{part or 'it'} is TorchScript, which hooks do not see into"
            raise InputError(_untappable(model, name, field, reason))
    seen = trace(model, num_classes, img_size)
    taken = seen.features() if modules is None else seen.named(modules, name)
    feature_info = [
        {
            "num_chs": output.channels,
            "reduction": max(round(img_size / output.side), 1),
            "module": output.module,
            "layout": output.layout,
        }
        for output in taken
    ]
    own = getattr(model, "pretrained_cfg", None)
    own = own if isinstance(own, dict) else {}
    width = seen.width or (taken[-1].channels if taken else num_classes)
    try:
        model.feature_info = feature_info
        model.pretrained_cfg = {"architecture": name, "classifier": seen.classifier, **own}
        if not isinstance(getattr(model, "num_features", None), int):
            model.num_features = width
        model.__class__ = _tapped_class(type(model))
    except (AttributeError, TypeError) as error:  # a property without a setter, a class that cannot be exchanged
        raise InputError(_untappable(model, name, field, one_line(error))) from error
    model.tapped_classifier = seen.classifier
    return seen.logits


def _untappable(model: nn.Module, name: str, field: str, reason: str) -> str:
    return (
        f"{field}={name}: its class {type(model).__name__} cannot be tapped ({reason}); have the factory give a plain "
        "torch.nn.Module that leaves feature_info, num_features and pretrained_cfg to be set"
    )


@functools.cache
def _tapped_class(cls: type[nn.Module]) -> type[nn.Module]:
    return type(f"Tapped{cls.__name__}", (Tapped, cls), {"__module__": cls.__module__})


def _blank(cls: type[nn.Module]) -> nn.Module:
    """A copy's shell; `copy` and `pickle` then set its state."""
    tapped = _tapped_class(cls)
    return tapped.__new__(tapped)


def _pooled(x: Tensor, classifier: nn.Module) -> Tensor:
    """What a classifier takes, [B, D]: where it looks at every place of a grid, the mean over them."""
    if isinstance(classifier, nn.Conv2d):
        return x.mean((2, 3))
    return x.flatten(1, -2).mean(1) if x.ndim > 2 else x
