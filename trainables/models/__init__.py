"""Models of ours, registered with timm on import: what timm builds by name here, it builds with these too."""

import timm

from trainables.models import cyclemlp, hire_mlp, mlp_mixer, swin, vip

__all__ = ["cyclemlp", "hire_mlp", "is_ours", "mlp_mixer", "swin", "vip"]


def is_ours(name: str) -> bool:
    """Whether timm builds a model of this name by our code; a name that it does not know is not ours."""
    base = name.partition(".")[0]
    return timm.is_model(base) and timm.model_entrypoint(base).__module__.startswith(f"{__name__}.")
