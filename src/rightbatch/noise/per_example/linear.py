"""Per-example gradients of a linear layer's weight and bias, and their squares.

Shapes: N examples, T tokens (uses of the weight by one example), I inputs, O outputs. Example
``n`` has the gradient ``sum_t grad_t input_t'``, an O x I matrix, of which only the squared norm
is wanted. Which way to it is the cheapest depends on the shape alone.
"""

# ruff: noqa: N803, N806 (shapes are written in capitals)

from typing import Literal

import torch
from torch import Tensor

LinearPath = Literal["rank_one", "gram", "explicit", "tiled"]

# Elements of scratch that a rule may hold at once: 128 MiB of float32. That is small beside the
# activations of the layers that reach it, and matrix products of this size run at full speed.
SCRATCH = 1 << 25

_RUN = 1 << 16  # elements whose squares are summed in one run, to about 1e-6 in float32


def wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Bring tensors to one type that can carry a sum of squares: float32, or float64 if one is.

    Args:
        *tensors: Of any floating point types.

    Returns:
        The same values, on the same devices; tensors that are wide already are not copied.

    Example:
        >>> half = torch.ones(1, dtype=torch.bfloat16)
        >>> [t.dtype for t in wide(half, half)], [t.dtype for t in wide(half, half.double())]
        ([torch.float32, torch.float32], [torch.float64, torch.float64])
    """
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(dtype) for t in tensors)


def squared_norms(gradients: Tensor) -> Tensor:
    """Sum the squares of each example's elements.

    Args:
        gradients: Shape [N, ...].

    Returns:
        Shape [N].

    Example:
        >>> squared_norms(torch.tensor([[[1.0, 2.0]], [[0.0, 3.0]]])).tolist()
        [5.0, 9.0]
    """
    # The norm reads the elements once, where a product with itself would write them once more,
    # but it adds them up one by one: in float32 that loses a percent over 10^8 elements.
    parts = gradients.flatten(1).split(_RUN, dim=1)
    return torch.stack([torch.linalg.vector_norm(part, dim=1) for part in parts]).square().sum(0)


def tokens(tensor: Tensor) -> Tensor:
    """Flatten everything between the example and the features: [N, ..., F] to [N, T, F].

    Example:
        >>> tokens(torch.zeros(5, 2, 3, 4)).shape, tokens(torch.zeros(5, 4)).shape
        (torch.Size([5, 6, 4]), torch.Size([5, 1, 4]))
    """
    return tensor[:, None] if tensor.dim() == 2 else tensor.flatten(1, -2)


def choose_linear_path(
    num_examples: int, num_tokens: int, num_inputs: int, num_outputs: int
) -> LinearPath:
    """Choose how to square per-example gradients, by operations and then by memory.

    One token: the gradient is an outer product, and its square ``|input|^2 |grad|^2``. More: the
    cheaper of the T x T products of tokens (``gram``) and the gradients themselves
    (``explicit``), as long as it fits into `SCRATCH` for all examples, else ``tiled``: the
    cheaper one again, in blocks.

    Args:
        num_examples: N, from 0.
        num_tokens: T, from 0.
        num_inputs: I.
        num_outputs: O.

    Returns:
        The path's name.

    Example:
        >>> choose_linear_path(8, 16, 512, 512), choose_linear_path(8, 2048, 512, 512)
        ('gram', 'explicit')
    """
    if num_tokens == 1:
        return "rank_one"
    gram = _gram_is_cheaper(num_tokens, num_inputs, num_outputs)
    # Gram holds two matrices and their product.
    scratch = 3 * num_tokens**2 if gram else num_inputs * num_outputs
    if num_examples * scratch > SCRATCH:
        return "tiled"
    return "gram" if gram else "explicit"


def linear_squares(inputs_NTI: Tensor, grads_NTO: Tensor) -> Tensor:
    r"""Square each example's gradient of a linear layer's weight.

    ``|sum_t d_t a_t'|^2 = sum_ts (a_t'a_s)(d_t'd_s)``: the tokens are summed before the square.

    Args:
        inputs_NTI: What the weight was applied to.
        grads_NTO: Gradients with respect to the layer's outputs.

    Returns:
        Shape [N], float32 or float64, never negative.

    Example:
        >>> inputs = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
        >>> grads = torch.tensor([[[1.0], [2.0]]])
        >>> linear_squares(inputs, grads).item()  # 1 (1, 2) + 2 (0, 1) = (1, 4)
        17.0

    References:
        Goodfellow (2015), https://arxiv.org/abs/1510.01799; Li et al. (2021),
        https://arxiv.org/abs/2110.05679.
    """
    inputs_NTI, grads_NTO = wide(inputs_NTI, grads_NTO)
    (num_examples, num_tokens, num_inputs), num_outputs = inputs_NTI.shape, grads_NTO.shape[2]
    path = choose_linear_path(num_examples, num_tokens, num_inputs, num_outputs)
    if path == "rank_one":
        return squared_norms(inputs_NTI) * squared_norms(grads_NTO)
    if path == "explicit":
        return squared_norms(linear_gradients(inputs_NTI, grads_NTO))
    if path == "gram":
        return _products(inputs_NTI, inputs_NTI, grads_NTO, grads_NTO).clamp_min_(0)
    if _gram_is_cheaper(num_tokens, num_inputs, num_outputs):
        return _tiled_gram(inputs_NTI, grads_NTO)
    return _tiled_explicit(inputs_NTI, grads_NTO)


def linear_gradients(inputs_NTI: Tensor, grads_NTO: Tensor) -> Tensor:
    """Compute each example's gradient of a linear layer's weight.

    Args:
        inputs_NTI: What the weight was applied to.
        grads_NTO: Gradients with respect to the layer's outputs.

    Returns:
        Shape [N, O, I], float32 or float64.

    Example:
        >>> inputs = torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])
        >>> linear_gradients(inputs, torch.tensor([[[1.0], [2.0]]])).tolist()
        [[[1.0, 4.0]]]
    """
    inputs_NTI, grads_NTO = wide(inputs_NTI, grads_NTO)
    return grads_NTO.transpose(1, 2) @ inputs_NTI


def bias_squares(grads_NTO: Tensor) -> Tensor:
    """Square each example's gradient of a bias: the tokens are summed before the square.

    Args:
        grads_NTO: Gradients with respect to the layer's outputs.

    Returns:
        Shape [N], float32 or float64.

    Example:
        >>> bias_squares(torch.tensor([[[1.0], [2.0]]])).item()
        9.0
    """
    return squared_norms(bias_gradients(grads_NTO))


def bias_gradients(grads_NTO: Tensor) -> Tensor:
    """Compute each example's gradient of a bias.

    Args:
        grads_NTO: Gradients with respect to the layer's outputs.

    Returns:
        Shape [N, O], float32 or float64.

    Example:
        >>> bias_gradients(torch.tensor([[[1.0], [2.0]]])).tolist()
        [[3.0]]
    """
    return wide(grads_NTO)[0].sum(1)


def _gram_is_cheaper(num_tokens: int, num_inputs: int, num_outputs: int) -> bool:
    """Compare multiplications for one example: the matrix products, then the square."""
    gram = num_tokens**2 * (num_inputs + num_outputs + 1)
    return gram < (num_tokens + 1) * num_inputs * num_outputs


def _products(left_NTI: Tensor, right_NTI: Tensor, left_NTO: Tensor, right_NTO: Tensor) -> Tensor:
    """Sum ``(a_t'a_s)(d_t'd_s)`` over left tokens ``t`` and right tokens ``s``."""
    gram_NTS = left_NTI @ right_NTI.transpose(1, 2)
    gram_NTS *= left_NTO @ right_NTO.transpose(1, 2)
    return gram_NTS.sum((1, 2))


def _tiled_gram(inputs_NTI: Tensor, grads_NTO: Tensor) -> Tensor:
    num_examples, num_tokens, _ = inputs_NTI.shape
    squares = inputs_NTI.new_zeros(num_examples)
    examples = max(1, SCRATCH // (3 * num_tokens**2))
    rows = max(1, min(num_tokens, SCRATCH // (3 * num_tokens)))
    for first in range(0, num_examples, examples):
        inputs, grads = (t[first : first + examples] for t in (inputs_NTI, grads_NTO))
        total = squares[first : first + examples]
        for top in range(0, num_tokens, rows):
            # The matrices are symmetric: what lies right of the diagonal block counts twice.
            end = min(top + rows, num_tokens)
            left, left_grads = inputs[:, top:end], grads[:, top:end]
            total += _products(left, left, left_grads, left_grads)
            if end < num_tokens:
                total += 2 * _products(left, inputs[:, end:], left_grads, grads[:, end:])
    return squares.clamp_min_(0)


def _tiled_explicit(inputs_NTI: Tensor, grads_NTO: Tensor) -> Tensor:
    num_examples, _, num_inputs = inputs_NTI.shape
    num_outputs = grads_NTO.shape[2]
    squares = inputs_NTI.new_zeros(num_examples)
    examples = max(1, SCRATCH // (num_inputs * num_outputs))
    rows = max(1, min(num_outputs, SCRATCH // num_inputs))
    for first in range(0, num_examples, examples):
        part = slice(first, first + examples)
        for top in range(0, num_outputs, rows):
            block_NTO = grads_NTO[part, :, top : top + rows]
            squares[part] += squared_norms(linear_gradients(inputs_NTI[part], block_NTO))
    return squares
