"""What an exception says about memory: out of it, past another limit, or a plain error."""

from collections.abc import Iterator

import torch

# Types first; texts only for what arrives as a bare RuntimeError. Each text was seen in an
# exception of torch or of a library below it.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA driver, HIP, XPU, MPS
    "Out of memory allocating",  # GNU's OpenMP; its last words
    "can't allocate memory",  # CPU allocator
    "not enough memory",  # CPU allocator on Windows
    "bad_alloc",  # the C++ library, also as the last words of a process
    "bad allocation",  # on Windows
    "Thread creation failed",  # OpenMP, whose threads need stacks; its last words
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUFFT_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN since 9
    "OUT_OF_DEVICE_MEMORY",  # the drivers below XPU
    "busy or unavailable",  # a GPU that serves one process: no room beside it for a second
)
_OTHER_LIMIT = (  # of kernels and index types, however much memory there is
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUFFT_INTERNAL_ERROR",
    "invalid configuration argument",
    "32BitIndex",
    "integer out of range",
    "Invalid buffer size",  # MPS: of one tensor
    "currently supported by the MPS backend",
    "tensor dims larger than INT_MAX",
)
_POISONED = ("illegal memory access", "device-side assert")  # nothing later can be trusted


def classify(error: BaseException) -> str | None:
    """Say whether an exception means that a batch is too large.

    Types are looked at before texts, and causes behind an exception are looked at too, since
    loaders and frameworks wrap what they catch.

    Args:
        error: What a training step raised.

    Returns:
        ``"oom"`` for memory, ``"limit"`` for a limit of a kernel or an index type, and
        ``None`` for every other error, which is the user's to see.

    Example:
        >>> classify(RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"))
        'oom'
        >>> classify(RuntimeError("CUDA error: an illegal memory access was encountered")) is None
        True
    """
    chain = list(_chain(error))
    if any(isinstance(link, torch.OutOfMemoryError | MemoryError) for link in chain):
        return "oom"
    return classify_text("\n".join(str(link) for link in chain if isinstance(link, RuntimeError)))


def classify_text(text: str) -> str | None:
    """Say whether words of torch, or of a library below it, mean that a batch is too large.

    Args:
        text: Of an exception without a type of its own, or the last words of a process.

    Returns:
        As `classify`.

    Example:
        >>> classify_text("terminate called after throwing an instance of 'std::bad_alloc'")
        'oom'
    """
    for words, outcome in ((_POISONED, None), (_OUT_OF_MEMORY, "oom"), (_OTHER_LIMIT, "limit")):
        if any(word in text for word in words):
            return outcome
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and what a traceback would show above it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        shown = None if error.__suppress_context__ else error.__context__
        error = error.__cause__ or shown
