"""Which exceptions mean "too large". Oracle: texts of real exceptions, and two raised here."""

import pytest
import torch

from rightbatch.hardware.outcomes import classify

OUT_OF_MEMORY = {
    "cuda allocator": "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
    "cuda driver": "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "hip": "HIP out of memory. Tried to allocate 2.00 GiB",
    "xpu": "XPU out of memory. Tried to allocate 2.00 GiB",
    "mps": "MPS backend out of memory (MPS allocated: 9.05 GB, other allocations: 2.1 GB)",
    "cpu": "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
    "cpu on windows": "DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
    "cublas": "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cufft": "cuFFT error: CUFFT_ALLOC_FAILED",
    "cudnn": "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cudnn 9": "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "xpu driver": "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "exclusive mode": "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
    "exclusive mode, once": "CUDA error: all CUDA-capable devices are busy or unavailable",
    "openmp memory": "libgomp: Out of memory allocating 1024 bytes",
    "openmp": "libgomp: Thread creation failed: Resource temporarily unavailable",
}
OTHER_LIMIT = {
    "cudnn": "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a",
    "cufft": "cuFFT error: CUFFT_INTERNAL_ERROR",
    "grid": "CUDA error: invalid configuration argument",
    "index": "canUse32BitIndexMath(input) INTERNAL ASSERT FAILED: 32BitIndex",
    "integer": "integer out of range",
    "mps buffer": "Invalid buffer size: 19.45 GB",
    "mps product": "Output size of the matrix multiplication is larger than currently supported by "
    "the MPS backend: 72250,72250, needs to be less than 2**32 elements",
    "mps graph": "MPSGraph does not support tensor dims larger than INT_MAX",
}
NEITHER = {
    "shape": "mat1 and mat2 shapes cannot be multiplied (4x3 and 5x4)",
    "assert": "CUDA error: device-side assert triggered",
    "poisoned": "CUDA error: an illegal memory access was encountered (was: out of memory)",
}


@pytest.mark.parametrize("text", OUT_OF_MEMORY.values(), ids=OUT_OF_MEMORY)
def test_texts_that_mean_out_of_memory(text: str) -> None:
    assert classify(RuntimeError(text)) == "oom"


@pytest.mark.parametrize("text", OTHER_LIMIT.values(), ids=OTHER_LIMIT)
def test_texts_that_mean_another_limit(text: str) -> None:
    assert classify(RuntimeError(text)) == "limit"


@pytest.mark.parametrize("text", NEITHER.values(), ids=NEITHER)
def test_every_other_error_is_the_users(text: str) -> None:
    assert classify(RuntimeError(text)) is None


def test_the_type_decides_whatever_the_text_says() -> None:
    assert classify(torch.OutOfMemoryError("Speicher voll")) == "oom"
    assert classify(MemoryError()) == "oom"


def test_a_text_counts_in_runtime_errors_only() -> None:
    assert classify(ValueError("the label says out of memory")) is None


def test_a_real_refusal_of_the_cpu_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError, match="allocate") as caught:
        torch.empty(1 << 50, dtype=torch.float64)
    assert classify(caught.value) == "oom"


def test_a_real_refusal_of_python_is_recognised_behind_another_error() -> None:
    def collate() -> None:
        try:
            bytearray(1 << 60)
        except MemoryError as error:
            raise ValueError("no batch") from error

    with pytest.raises(ValueError, match="no batch") as caught:
        collate()
    assert classify(caught.value) == "oom"


def test_an_error_raised_while_handling_one_counts_unless_it_was_hidden() -> None:
    def raised(*, hidden: bool) -> Exception:
        try:
            try:
                raise MemoryError
            except MemoryError:
                if hidden:
                    raise KeyError("batch") from None
                raise KeyError("batch")  # noqa: B904 - the implicit chain is what is tested
        except KeyError as error:
            return error

    assert classify(raised(hidden=False)) == "oom"
    assert classify(raised(hidden=True)) is None


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert classify(first) is None
