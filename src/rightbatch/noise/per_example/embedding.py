"""Per-example gradients of an embedding's weight, alone and tied to a linear head.

Shapes: N examples, T tokens looked up by one example, D features, V rows of the weight, S tokens
that a tied head saw. A row's gradient is the sum over all tokens of one example that name it.
"""

# ruff: noqa: N803, N806 (shapes are written in capitals)

import torch
from torch import Tensor

from rightbatch.noise.per_example import linear


def embedding_squares(ids_NT: Tensor, grads_NTD: Tensor, padding_idx: int | None) -> Tensor:
    """Square each example's gradient of an embedding's weight.

    Tokens of one example that name the same row are summed before the square.

    Args:
        ids_NT: The rows that were looked up.
        grads_NTD: Gradients with respect to the vectors found.
        padding_idx: The row that gets no gradient. ``None`` or a negative number: there is none.

    Returns:
        Shape [N], float32 or float64.

    Example:
        >>> ids, grads = torch.tensor([[5, 7, 5]]), torch.tensor([[[1.0], [3.0], [1.0]]])
        >>> embedding_squares(ids, grads, None).item()  # row 5 has 1 + 1, row 7 has 3
        13.0
        >>> embedding_squares(ids, grads, 7).item()
        4.0
    """
    (grads_NTD,) = linear.wide(grads_NTD)
    num_tokens = ids_NT.shape[1]
    # Tokens with one row share a slot. The slots come from sorting: T of them for each example,
    # where the rows of the weight would be V, and no question to the device how many are in use.
    sorted_NT, order_NT = ids_NT.sort(dim=1)
    fresh_NT = torch.zeros_like(ids_NT)
    fresh_NT[:, 1:] = sorted_NT[:, 1:] != sorted_NT[:, :-1]
    slots_NT = torch.empty_like(ids_NT).scatter_(1, order_NT, fresh_NT.cumsum(1).to(ids_NT.dtype))
    grads_NTD = _without_padding(ids_NT, grads_NTD, padding_idx)
    return linear.squared_norms(_sums(slots_NT, grads_NTD, num_tokens))


def embedding_gradients(
    ids_NT: Tensor, grads_NTD: Tensor, num_embeddings: int, padding_idx: int | None
) -> Tensor:
    """Compute each example's gradient of an embedding's weight, dense.

    Args:
        ids_NT: The rows that were looked up.
        grads_NTD: Gradients with respect to the vectors found.
        num_embeddings: V, rows of the weight.
        padding_idx: The row that gets no gradient. ``None`` or a negative number: there is none.

    Returns:
        Shape [N, V, D], float32 or float64.

    Example:
        >>> ids, grads = torch.tensor([[2, 0, 2]]), torch.tensor([[[1.0], [3.0], [1.0]]])
        >>> embedding_gradients(ids, grads, 3, None).tolist()
        [[[3.0], [0.0], [2.0]]]
    """
    (grads_NTD,) = linear.wide(grads_NTD)
    return _sums(ids_NT, _without_padding(ids_NT, grads_NTD, padding_idx), num_embeddings)


def tied_squares(
    ids_NT: Tensor,
    grads_emb_NTD: Tensor,
    inputs_NSD: Tensor,
    grads_head_NSV: Tensor,
    padding_idx: int | None,
) -> Tensor:
    """Square each example's gradient of a weight that is an embedding and a linear head.

    The square of the sum of both uses is exact, ``|E|^2 + |H|^2 + 2 <E, H>``, and no V x D
    gradient is made for the inner product: ``<E, H> = sum_ts head_grad_s[id_t] (e_t'h_s)``.

    Args:
        ids_NT: The rows that were looked up.
        grads_emb_NTD: Gradients with respect to the vectors found.
        inputs_NSD: What the head was applied to.
        grads_head_NSV: Gradients with respect to the head's outputs.
        padding_idx: The row that gets no gradient from the look-up; the head's stays.

    Returns:
        Shape [N], float32 or float64, never negative.

    Example:
        >>> ids, grads = torch.tensor([[1]]), torch.tensor([[[3.0]]])
        >>> inputs, head_grads = torch.tensor([[[2.0]]]), torch.tensor([[[1.0, 1.0]]])
        >>> tied_squares(ids, grads, inputs, head_grads, None).item()  # rows 2 and 3 + 2
        29.0
    """
    grads_emb_NTD, inputs_NSD, grads_head_NSV = linear.wide(
        grads_emb_NTD, inputs_NSD, grads_head_NSV
    )
    grads_emb_NTD = _without_padding(ids_NT, grads_emb_NTD, padding_idx)
    squares = embedding_squares(ids_NT, grads_emb_NTD, None)
    squares += linear.linear_squares(inputs_NSD, grads_head_NSV)
    (num_examples, num_tokens), num_heads = ids_NT.shape, inputs_NSD.shape[1]
    # Two S x T matrices at a time, for as many examples and head tokens as the scratch holds.
    examples = max(1, linear.SCRATCH // (2 * num_tokens * num_heads + 1))
    rows = max(1, linear.SCRATCH // (2 * num_tokens + 1))
    for first in range(0, num_examples, examples):
        part = slice(first, first + examples)
        embedded_NDT = grads_emb_NTD[part].transpose(1, 2)
        for top in range(0, num_heads, rows):
            inputs, grads = (t[part, top : top + rows] for t in (inputs_NSD, grads_head_NSV))
            ids_NST = ids_NT[part, None].expand(-1, grads.shape[1], -1)
            products_NST = (inputs @ embedded_NDT).mul_(grads.gather(2, ids_NST))
            squares[part] += 2 * products_NST.sum((1, 2))
    return squares.clamp_min_(0)


def _without_padding(ids_NT: Tensor, grads_NTD: Tensor, padding_idx: int | None) -> Tensor:
    if padding_idx is None or padding_idx < 0:
        return grads_NTD
    return grads_NTD.masked_fill((ids_NT == padding_idx)[..., None], 0)


def _sums(rows_NT: Tensor, grads_NTD: Tensor, num_rows: int) -> Tensor:
    """Sum the gradients of each example's tokens by row: [N, rows, D]."""
    num_examples, _, num_features = grads_NTD.shape
    offsets = num_rows * torch.arange(num_examples, device=rows_NT.device)
    sums = grads_NTD.new_zeros(num_examples * num_rows, num_features)
    sums.index_add_(0, (rows_NT + offsets[:, None]).flatten(), grads_NTD.flatten(0, 1))
    return sums.view(num_examples, num_rows, num_features)
