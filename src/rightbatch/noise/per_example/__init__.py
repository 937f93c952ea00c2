"""Squared gradient norms of single examples, from the training step's own backward pass."""

from rightbatch.noise.per_example.capture import ExampleSquares, example_squares

__all__ = ["ExampleSquares", "example_squares"]
