"""What a space file declares: the study, its scales and its search function. Imports neither torch nor ray."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SCALES = ("embedded", "cifar100", "imagenet")


class Scale:
    """One size of a study: any fields of `search.settings.Settings`, checked when the study is resolved.

    Args:
        pairs: where there are several pairs to choose from by `--set pair=NAME`: the fields of each, laid over the
            scale's own. The first one is the default. Other scales may have other pairs, or none.
        **fields: what holds for every pair.

    Raises:
        TypeError: a pair is not given by its fields.

    Example:
        >>> Scale(teacher="vit_small_patch16_224", student="resmlp_12_224", data="torch/cifar100", epochs=60)
        >>> Scale(
        ...     pairs={
        ...         "vit_s-resnet18": {"teacher": "vit_small_patch16_224", "student": "resnet18", "lr": 0.1},
        ...         "swin_t-resnet18": {"teacher": "swin_tiny_patch4_window7_224", "student": "resnet18"},
        ...     },
        ...     data="torch/cifar100",
        ... )
    """

    def __init__(self, pairs: dict[str, dict[str, Any]] | None = None, **fields: Any):
        for name, pair in (pairs or {}).items():
            if not isinstance(pair, dict):
                raise TypeError(f"pair {name!r} is a {type(pair).__name__}; give its fields, {{'teacher': ..., ...}}")
        self.pairs, self.fields = pairs or {}, fields


@dataclass
class Study:
    """A search: what is searched, what it is compared with, and at which scales.

    Args:
        space: define-by-run function in Optuna's idiom; takes a trial and returns fields of
            `trainables.config.TrialConfig` (OFA-KD's own and the recipe's).
        scales: by name, `embedded`, `cifar100` and `imagenet`.
        first_guesses: parameters by the names that `space` suggests, tried first; the rest is sampled.
        baselines: what OFA-KD is compared with: `scratch`, `kd`, or fields of `TrialConfig` with a `name`.
        fields: what holds at every scale.
    """

    space: Callable[[Any], dict[str, Any]]
    scales: dict[str, Scale]
    first_guesses: list[dict[str, Any]] = field(default_factory=list)
    baselines: list[str | dict[str, Any]] = field(default_factory=lambda: ["scratch", "kd"])
    fields: dict[str, Any] = field(default_factory=dict)
