"""The losses as plain functions and small modules of tensors: one file a method, used by `trainables.distillers`."""

from trainables.losses.kd import kd_loss
from trainables.losses.ofa import enhanced_targets, ofa_loss, weighted_cross_entropy
from trainables.losses.softened import full_precision, log_probabilities, standardized

__all__ = [
    "enhanced_targets",
    "full_precision",
    "kd_loss",
    "log_probabilities",
    "ofa_loss",
    "standardized",
    "weighted_cross_entropy",
]
