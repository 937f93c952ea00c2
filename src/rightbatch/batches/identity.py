"""What a schedule is called in a state, so that a resumed run can refuse another one."""

import zlib
from collections.abc import Callable, Sequence
from functools import partial

from rightbatch.batches.stages import Stage

_LONGEST = 400  # characters; it stands in every state and message


def identity_of(name: str, stages: Sequence[Stage]) -> str:
    """Say everything that decides about sizes and rates; of a long one, its ends and a checksum.

    Example:
        >>> identity_of("table", [Stage(0, 64, None, ""), Stage(1000, 128, 0.5, "")])
        'table 0:64 1000:128*0.5'
    """
    entries = (
        f"{stage.starts_at}:{stage.batch_size}"
        + ("" if stage.rate_factor is None else f"*{stage.rate_factor:.6g}")
        for stage in stages
    )
    text = f"{name} {' '.join(entries)}"
    if len(text) <= _LONGEST:
        return text
    most = _LONGEST // 2
    return f"{text[:most]} ... {stages[-1].starts_at}:{stages[-1].batch_size}, " + _checksum(text)


def _checksum(text: str) -> str:
    return f"checksum {zlib.crc32(text.encode()):08x}"


def name_of(policy: Callable[[float], float]) -> str:
    """Name a policy with its parameters; a lambda by its code.

    Example:
        >>> from rightbatch.batches.policies import norm_test_size
        >>> name_of(partial(norm_test_size, theta=0.5))
        'norm_test_size(theta=0.5)'
    """
    if isinstance(policy, partial):
        options = ", ".join(f"{name}={value}" for name, value in sorted(policy.keywords.items()))
        return f"{name_of(policy.func)}({options})"
    name = getattr(policy, "__name__", type(policy).__name__)
    code = getattr(policy, "__code__", None)
    if name != "<lambda>" or code is None:
        return name
    numbers = [number for number in code.co_consts if isinstance(number, int | float)]
    return f"{name} {_checksum(f'{code.co_code!r} {code.co_names} {numbers}')}"
