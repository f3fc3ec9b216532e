"""Models of ours, registered with timm on import: what timm builds by name here, it builds with these too."""

from trainables.models import mlp_mixer

__all__ = ["mlp_mixer"]
