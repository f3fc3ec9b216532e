"""Models of ours, registered with timm on import: what timm builds by name here, it builds with these too."""

from trainables.models import cyclemlp, hire_mlp, mlp_mixer, swin, vip

__all__ = ["cyclemlp", "hire_mlp", "mlp_mixer", "swin", "vip"]
