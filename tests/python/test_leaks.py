# SPDX-License-Identifier: Apache-2.0
"""10^5 good and 10^5 failing calls of every operator: the process does not grow, and no tensor of a call stays alive.

Failing calls bring foreign dtypes, as tensors and as ScalarType arguments, since a conversion that throws while torch's
stack is unpacked is where handles get lost; then refusals of the validator.
"""

from __future__ import annotations

import gc
import itertools
import os
import weakref

import numpy as np
import pytest
import torch
from operator_calls import CALLS, Call

CALLS_EACH = 100_000
WARM_UP = 3_000
# A handle alone is 16 bytes and more: one lost in each call would be 1.6 MB.
MAX_GROWTH = 512 * 1024

FOREIGN = tuple(
    getattr(torch, name)
    for name in "float8_e8m0fnu float4_e2m1fn_x2 float8_e5m2 float8_e4m3fnuz complex64 complex32 uint16 uint64 bits8".split()
)


def resident_bytes() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def observed(tensor: torch.Tensor, memories: list[weakref.ref]) -> torch.Tensor:
    """The same tensor in memory that tells when the last reference to it is gone, C++'s included."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    memory = np.zeros((last + 1) * tensor.element_size() + 64, np.uint8)
    memories.append(weakref.ref(memory))
    view = torch.from_numpy(memory)[: (last + 1) * tensor.element_size()].view(tensor.dtype)
    view = view.as_strided(tensor.shape, tensor.stride())
    view.copy_(tensor)
    return view


def foreign(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor of that dtype and of the same shape."""
    bytes_needed = max(tensor.numel(), 1) * dtype.itemsize
    return torch.zeros(bytes_needed, dtype=torch.uint8).view(dtype)[: tensor.numel()].reshape(tensor.shape)


def failing(call: Call, arguments: dict) -> list[dict]:
    """Calls that must be refused, each in another way."""
    variants = []
    for name, value in arguments.items():
        if isinstance(value, torch.Tensor):
            variants += [{**arguments, name: foreign(value, dtype)} for dtype in FOREIGN]
            variants.append({**arguments, name: value[..., None, None, None].expand(*value.shape, 2, 3, 4)})
        elif isinstance(value, torch.dtype):
            # Torch before 2.11 has no stable code for some of these and throws before our kernel runs; it then drops what
            # it has unpacked of the arguments behind. Those are None here: what is measured is this library.
            behind = list(arguments)[list(arguments).index(name) + 1 :]
            absent = {other: None for other in behind if isinstance(arguments[other], torch.Tensor)}
            variants += [{**arguments, **absent, name: dtype} for dtype in FOREIGN]
    return variants


def refused(call: Call, arguments: dict) -> bool:
    try:
        call.run(arguments)
    except RuntimeError:
        return True
    return False


def growth_of(run, count: int) -> int:
    for _ in range(WARM_UP):
        run()
    gc.collect()
    before = resident_bytes()
    for _ in range(count):
        run()
    gc.collect()
    return resident_bytes() - before


def assert_all_gone(memories: list[weakref.ref]) -> None:
    gc.collect()
    alive = sum(memory() is not None for memory in memories)
    assert memories and alive == 0, f"{alive} of {len(memories)} tensors are still referenced"


def observed_arguments(call: Call, memories: list[weakref.ref]) -> dict:
    return {
        name: observed(value, memories) if isinstance(value, torch.Tensor) else value
        for name, value in call.make().items()
    }


def growth_of_failing_calls(call: Call, memories: list[weakref.ref]) -> int:
    arguments = observed_arguments(call, memories)
    variants = [call.split(variant) for variant in failing(call, arguments) if refused(call, variant)]
    assert len(variants) >= len(FOREIGN)  # every operator refuses each foreign dtype somewhere
    overload, cycle = call.overload, itertools.cycle(variants)

    def run():
        positional, keywords = next(cycle)
        try:
            overload(*positional, **keywords)
        except RuntimeError:
            return
        raise AssertionError("accepted")

    with torch.no_grad():
        return growth_of(run, CALLS_EACH)


def growth_of_good_calls(call: Call, memories: list[weakref.ref], count: int) -> int:
    positional, keywords = call.split(observed_arguments(call, memories))
    overload = call.overload
    return growth_of(lambda: overload(*positional, **keywords), count)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_failing_calls_keep_nothing(call):
    memories: list[weakref.ref] = []
    growth = growth_of_failing_calls(call, memories)
    print(f"{growth} bytes in {CALLS_EACH} failing calls")
    assert growth < MAX_GROWTH
    assert_all_gone(memories)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
@pytest.mark.parametrize("grad_mode", [False, True], ids=["no_grad", "grad"])
def test_good_calls_keep_nothing(call, grad_mode):
    memories: list[weakref.ref] = []
    count = CALLS_EACH // 5 if grad_mode else CALLS_EACH
    with torch.set_grad_enabled(grad_mode):
        growth = growth_of_good_calls(call, memories, count)
    print(f"{growth} bytes in {count} calls")
    assert growth < MAX_GROWTH
    assert_all_gone(memories)
