"""Squared gradient norms of single examples, from the training step's own backward pass."""

from rightbatch.noise.per_example.capture import ExampleSquares, example_squares
from rightbatch.noise.per_example.definition import per_example_grad_sq
from rightbatch.noise.per_example.explanation import Explanation, explain

__all__ = ["ExampleSquares", "Explanation", "example_squares", "explain", "per_example_grad_sq"]
