"""Ghost batch normalisation against BatchNorm on each ghost, in a loop (the definition)."""

import copy
import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rightbatch.norm.ghost import (
    GhostBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    split_into_ghosts,
)
from tests.norm.definition import (
    GHOST_FORMS,
    ORDINARY_FORMS,
    batch_of,
    ghosts_of,
    normalised_in_a_loop,
    randomised,
)

# batch size, ghost size, sizes of the ghosts: divisible, a remainder, one of one, fewer than wanted
CASES = [
    (8, 4, [4, 4]),
    (12, 2, [2] * 6),
    (10, 4, [4, 3, 3]),
    (9, 4, [5, 4]),
    (9, 2, [3, 2, 2, 2]),
    (3, 2, [3]),
    (7, 5, [7]),
    (8, 5, [4, 4]),
    (3, 64, [3]),
]


def sizes_of(batch_size: int, ghost_size: int) -> list[int]:
    sections = split_into_ghosts(batch_size, ghost_size)
    return [size for number, size in sections for _ in range(number)]


@pytest.mark.parametrize(("batch_size", "ghost_size", "expected"), CASES)
def test_the_sizes_of_ghosts(batch_size: int, ghost_size: int, expected: list[int]) -> None:
    assert sizes_of(batch_size, ghost_size) == expected


@given(batch_size=st.integers(2, 5000), ghost_size=st.integers(2, 300))
def test_ghosts_share_a_batch_evenly_and_stay_near_their_size(
    batch_size: int, ghost_size: int
) -> None:
    sizes = sizes_of(batch_size, ghost_size)
    assert sum(sizes) == batch_size
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    if batch_size % ghost_size == 0:
        assert set(sizes) == {ghost_size}
    if batch_size >= ghost_size:
        assert 2 * ghost_size <= 3 * min(sizes) + 2  # two thirds of it, but for rounding
        assert 2 * max(sizes) <= 3 * ghost_size + 2  # and half as much again


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("batch_size", "ghost_size", "sizes"), CASES)
def test_outputs_and_gradients_are_those_of_batchnorm_on_each_ghost(
    dims: int, batch_size: int, ghost_size: int, sizes: list[int]
) -> None:
    norm = randomised(GHOST_FORMS[dims](3, ghost_size))
    batch = batch_of(dims, batch_size).requires_grad_()
    wanted = batch.detach().clone().requires_grad_()
    expected = normalised_in_a_loop(norm, wanted, ghosts_of(batch_size, sizes))
    upstream = torch.randn(batch.shape)
    expected_grads = torch.autograd.grad(expected, [wanted, norm.weight, norm.bias], upstream)

    output = norm(batch)
    grads = torch.autograd.grad(output, [batch, norm.weight, norm.bias], upstream)

    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    for found, grad in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, grad, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(
    batch_size=st.integers(2, 40),
    ghost_size=st.integers(2, 12),
    dims=st.sampled_from([1, 2, 3]),
    momentum=st.sampled_from([0.1, 0.7, 1.0, None]),
)
def test_running_statistics_are_batchnorms_of_the_whole_batches(
    batch_size: int, ghost_size: int, dims: int, momentum: float | None
) -> None:
    """One update a batch, pooled by the law of total variance: the closed form is BatchNorm."""
    ghost = randomised(GHOST_FORMS[dims](3, ghost_size, momentum=momentum))
    ordinary = ORDINARY_FORMS[dims](3, momentum=momentum)
    ordinary.load_state_dict(ghost.state_dict())
    for seed, size in enumerate([batch_size, 17, batch_size + 1]):
        ghost(batch_of(dims, size, seed=seed))
        ordinary(batch_of(dims, size, seed=seed))
    torch.testing.assert_close(ghost.running_mean, ordinary.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(ghost.running_var, ordinary.running_var, rtol=1e-12, atol=0)
    assert ghost.num_batches_tracked == ordinary.num_batches_tracked == 3


def test_a_batch_of_any_number_of_ghosts_forgets_as_much_as_one_batch_does() -> None:
    """0.9 of the past stays after 8 ghosts: one update per ghost would keep 0.9^8 = 0.43."""
    norm = GhostBatchNorm1d(1, 2, momentum=0.1)
    norm.running_mean.fill_(100.0)
    norm(torch.tensor([-1.0, 1.0] * 8)[:, None])  # mean 0, unbiased variance 16 / 15
    assert norm.running_mean.item() == pytest.approx(90.0, rel=1e-14)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.1 * 16 / 15, rel=1e-14)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_evaluation_is_batchnorms_to_the_bit(dims: int, options: dict[str, bool]) -> None:
    ghost = randomised(GHOST_FORMS[dims](3, 4, **options)).eval()
    ordinary = ORDINARY_FORMS[dims](3, **options).eval()
    ordinary.load_state_dict(ghost.state_dict())
    batch = batch_of(dims, 10)
    assert torch.equal(ghost(batch), ordinary(batch))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_options_of_batchnorm(dims: int, batch_size: int, options: dict[str, bool]) -> None:
    norm = randomised(GHOST_FORMS[dims](3, 4, **options))
    batch = batch_of(dims, batch_size)
    ghosts = ghosts_of(batch_size, [4, 4] if batch_size == 8 else [5, 4])
    expected = normalised_in_a_loop(norm, batch, ghosts)
    torch.testing.assert_close(norm(batch), expected, rtol=1e-12, atol=1e-12)
    assert ("weight" in norm.state_dict()) is options.get("affine", True)
    assert ("running_mean" in norm.state_dict()) is options.get("track_running_stats", True)


def test_one_axis_of_length_is_1d_too() -> None:
    norm = randomised(GhostBatchNorm1d(3, 4))
    batch = batch_of(2, 8).flatten(2)
    expected = normalised_in_a_loop(norm, batch, ghosts_of(8, [4, 4]))
    torch.testing.assert_close(norm(batch), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("batch_size", [6, 7])
def test_gradients_are_derivatives(batch_size: int, subsample: bool) -> None:
    norm = randomised(GhostBatchNorm2d(2, 3, subsample=subsample))

    def output(batch: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        given_parameters = {"weight": weight, "bias": bias}
        return torch.func.functional_call(norm, given_parameters, (batch,))

    batch = batch_of(2, batch_size, channels=2).requires_grad_()
    assert torch.autograd.gradcheck(output, (batch, norm.weight, norm.bias))


def test_second_derivatives_are_derivatives() -> None:
    norm = GhostBatchNorm2d(2, 3)
    assert torch.autograd.gradgradcheck(norm, batch_of(2, 7, channels=2).requires_grad_())


def test_a_compiled_layer_takes_any_size() -> None:
    norm = randomised(GhostBatchNorm2d(3, 4))
    compiled = copy.deepcopy(norm)
    compiled.compile(backend="eager", fullgraph=True)
    for size in (8, 9, 13, 3):
        batch = batch_of(2, size)
        torch.testing.assert_close(compiled(batch), norm(batch), rtol=1e-12, atol=1e-12)
    assert torch.equal(compiled.running_var, norm.running_var)


@pytest.mark.parametrize("batch_size", [8, 9, 10])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_memory_format_changes_neither_values_nor_itself(dims: int, batch_size: int) -> None:
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    norm = randomised(GHOST_FORMS[dims](3, 4))
    twin = copy.deepcopy(norm)
    batch = batch_of(dims, batch_size).requires_grad_()
    last = batch.detach().to(memory_format=layout).requires_grad_()
    upstream = torch.randn(batch.shape)

    expected, output = norm(batch), twin(last)
    (grad,) = torch.autograd.grad(expected, batch, upstream)
    (last_grad,) = torch.autograd.grad(output, last, upstream.to(memory_format=layout))

    assert output.is_contiguous(memory_format=layout)
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last_grad, grad, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(twin.running_var, norm.running_var, rtol=1e-12, atol=0)


def test_inputs_need_not_be_contiguous() -> None:
    norm = randomised(GhostBatchNorm2d(3, 4))
    batch = batch_of(2, 16)[::2].transpose(2, 3)
    assert not batch.is_contiguous()
    expected = normalised_in_a_loop(norm, batch, ghosts_of(8, [4, 4]))
    torch.testing.assert_close(norm(batch), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch_size", [8, 9])
@pytest.mark.parametrize("subsample", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_half_precision_keeps_its_type_and_float32_statistics(
    float32: None, batch_size: int, subsample: bool, last: bool
) -> None:
    norm = GhostBatchNorm2d(3, 4, subsample=subsample)
    full = copy.deepcopy(norm)
    layout = torch.channels_last if last else torch.contiguous_format
    batch = batch_of(2, batch_size).bfloat16().to(memory_format=layout).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = norm(batch)
    output.float().square().sum().backward()
    expected = full(batch.detach().float())
    assert output.dtype == torch.bfloat16
    assert norm.running_mean.dtype == norm.weight.grad.dtype == torch.float32
    eps = torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(output.float(), expected, rtol=eps, atol=eps)
    torch.testing.assert_close(norm.running_var, full.running_var, rtol=1e-5, atol=0)


def test_a_layer_in_half_precision_throughout(float32: None) -> None:
    norm, batch = GhostBatchNorm2d(3, 4), batch_of(2, 9).bfloat16()
    half = copy.deepcopy(norm).bfloat16()
    expected, output = norm(batch.float()), half(batch)
    assert output.dtype == half.running_mean.dtype == torch.bfloat16
    eps = torch.finfo(torch.bfloat16).eps
    # Inputs lie up to 8 standard deviations from 0, scaled and shifted with rounded factors.
    torch.testing.assert_close(output.float(), expected, rtol=0, atol=8 * eps)
    # Moments, their pool and the average are rounded in turn, the means where they are largest.
    torch.testing.assert_close(half.running_var.float(), norm.running_var, rtol=4 * eps, atol=0)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_an_empty_batch_is_taken_as_batchnorm_takes_it(dims: int) -> None:
    ghost, ordinary = GHOST_FORMS[dims](3, 4), ORDINARY_FORMS[dims](3)
    batch = batch_of(dims, 0)
    assert torch.equal(ghost(batch), ordinary(batch))
    for name, buffer in ordinary.named_buffers():
        assert torch.equal(ghost.get_buffer(name), buffer)


def test_a_single_value_per_channel_is_refused_as_by_batchnorm() -> None:
    batch = batch_of(1, 1)
    for norm in (GhostBatchNorm1d(3, 4), nn.BatchNorm1d(3)):
        with pytest.raises(ValueError, match="more than 1 value per channel when training"):
            norm(batch)


def test_a_single_example_with_several_values_is_one_ghost() -> None:
    batch = batch_of(2, 1)
    assert torch.equal(GhostBatchNorm2d(3, 4)(batch), nn.BatchNorm2d(3)(batch))


def test_subsampling_normalises_all_by_the_first_ghost() -> None:
    """Ghost 0 of two ghosts holds examples 0 and 2: mean 4, variance 4."""
    norm = GhostBatchNorm1d(1, 2, subsample=True, eps=1e-15, momentum=0.5)
    output = norm(torch.tensor([[2.0], [100.0], [6.0], [-100.0]]))
    assert output.flatten().tolist() == pytest.approx([-1.0, 48.0, 1.0, -52.0], rel=1e-12)
    assert norm.running_mean.item() == pytest.approx(2.0)  # half of 4
    assert norm.running_var.item() == pytest.approx(4.5)  # half of 1, half of the unbiased 8


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"affine": False}], ids=str)
def test_subsampled_statistics_are_batchnorms_of_that_ghost(
    dims: int, options: dict[str, bool]
) -> None:
    ghost = randomised(GHOST_FORMS[dims](3, 4, subsample=True, **options))
    ordinary = ORDINARY_FORMS[dims](3, **options)
    ordinary.load_state_dict(ghost.state_dict())
    batch = batch_of(dims, 11)  # three ghosts
    torch.testing.assert_close(ghost(batch)[::3], ordinary(batch[::3]), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ghost.running_var, ordinary.running_var, rtol=1e-12, atol=0)
    assert ghost.num_batches_tracked == 1


def test_subsampling_needs_more_than_one_ghost() -> None:
    batch = batch_of(2, 5)
    expected = nn.BatchNorm2d(3)(batch)
    assert torch.equal(GhostBatchNorm2d(3, 5, subsample=True)(batch), expected)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_state_loads_from_batchnorm_and_back(dims: int) -> None:
    ordinary = randomised(ORDINARY_FORMS[dims](3))
    ghost = GHOST_FORMS[dims](3, 4)
    ghost.load_state_dict(ordinary.state_dict())
    ghost(batch_of(dims, 8))
    ordinary.load_state_dict(ghost.state_dict())
    assert torch.equal(ordinary.running_var, ghost.running_var)


def test_a_layer_survives_being_copied_and_saved() -> None:
    norm = GhostBatchNorm2d(3, 4, subsample=True)
    file = io.BytesIO()
    torch.save(norm, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (copy.deepcopy(norm), loaded):
        assert (twin.ghost_size, twin.subsample) == (4, True)
    assert str(norm).startswith("GhostBatchNorm2d(3, eps=1e-05")
    assert str(norm).endswith("ghost_size=4, subsample=True)")


def test_averages_are_re_estimated_by_torchs_own_function() -> None:
    """`update_bn` finds the layers by their class, resets them and takes cumulative averages."""
    batches = [batch_of(2, size, seed=size) for size in (8, 9, 5)]
    ghost, ordinary = nn.Sequential(GhostBatchNorm2d(3, 2)), nn.Sequential(nn.BatchNorm2d(3))
    for model in (ghost, ordinary):
        torch.optim.swa_utils.update_bn(batches, model)
    torch.testing.assert_close(ghost[0].running_var, ordinary[0].running_var, rtol=1e-12, atol=0)


def test_the_common_class_is_not_a_layer() -> None:
    with pytest.raises(TypeError, match="Use GhostBatchNorm1d, 2d or 3d"):
        GhostBatchNorm(3, 4)


@pytest.mark.parametrize("size", [1, 0, -4, 2.5, True, None])
def test_sizes_without_statistics_are_refused(size: object) -> None:
    with pytest.raises(ValueError, match=f"at least 2, got {size!r}"):
        GhostBatchNorm1d(3, size)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3, 4)(batch_of(1, 8))
    with pytest.raises(ValueError, match=r"`num_features` = 4 channels, got .*\(8, 3, 2, 3\)"):
        GhostBatchNorm2d(4, 4)(batch_of(2, 8))
