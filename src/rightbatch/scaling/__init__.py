"""What must change with the batch size: the learning rate and everything that goes with it."""

from rightbatch.scaling.learning_rate import ScalingRule, default_rule, scale_learning_rate

__all__ = ["ScalingRule", "default_rule", "scale_learning_rate"]
