"""Squared gradient norms of single examples, from the training step's own backward pass."""

from rightbatch.noise.per_example.capture import ExampleSquares
from rightbatch.noise.per_example.definition import per_example_grad_sq
from rightbatch.noise.per_example.explanation import Explanation, explain
from rightbatch.noise.per_example.watch import example_squares

__all__ = ["ExampleSquares", "Explanation", "example_squares", "explain", "per_example_grad_sq"]
