"""What a space file declares: the study, its scales and its search function. Imports neither torch nor ray."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

SCALES = ("embedded", "cifar100", "imagenet")


class Scale:
    """One size of a study: any fields of `search.settings.Settings`, checked when the study is resolved.

    Example:
        >>> Scale(teacher="vit_small_patch16_224", student="resmlp_12_224", data="torch/cifar100", epochs=60)
    """

    def __init__(self, **fields: Any):
        self.fields = fields


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
