"""What must change with the batch size: the learning rate and everything that goes with it."""

from rightbatch.results import Change, Validity
from rightbatch.scaling.families import (
    OptimizerFamily,
    register_optimizer,
    registered_optimizers,
)
from rightbatch.scaling.hyperparameters import scaled_hyperparameters
from rightbatch.scaling.layerwise import LayerwiseReport, check_layerwise_optimizer
from rightbatch.scaling.learning_rate import ScalingRule, default_rule, scale_learning_rate
from rightbatch.scaling.live import batch_size_set_for, scale_hyperparameters
from rightbatch.scaling.report import ScalingReport

__all__ = [
    "Change",
    "LayerwiseReport",
    "OptimizerFamily",
    "ScalingReport",
    "ScalingRule",
    "Validity",
    "batch_size_set_for",
    "check_layerwise_optimizer",
    "default_rule",
    "register_optimizer",
    "registered_optimizers",
    "scale_hyperparameters",
    "scale_learning_rate",
    "scaled_hyperparameters",
]
