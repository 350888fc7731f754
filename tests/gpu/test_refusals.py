# SPDX-License-Identifier: Apache-2.0
"""What operators refuse on a GPU, through torch: one sentence, and the context lives on. What the backend below them refuses
(other architectures, devices that are not there, little shared memory) is in refusal_test.cpp."""

from __future__ import annotations

import pathlib
import re
import sys

import evergemm
import pytest
import torch

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
from on_gpu import same_bits, to_gpu
from operator_calls import CALLS


def alive() -> None:
    """A product has its bits, and no error is left behind."""
    a, one = torch.ones(64, 256, dtype=torch.int8, device="cuda"), torch.ones((), device="cuda")
    assert bool((evergemm.scaled_mm(a, a.t(), one, one) == 256).all())
    torch.cuda.synchronize()


def tensors(arguments: dict) -> list[str]:
    return [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_tensors_on_two_devices_are_refused(call):
    """Each tensor in turn is left on the CPU, the first one too."""
    arguments = call.make()
    names = tensors(arguments)
    base = call.name.split(".")[0]
    for name in names:
        if len(names) == 1:
            continue
        mixed = {other: value if other == name else to_gpu(value) for other, value in arguments.items()}
        kept = mixed[name].clone() if name in call.written else None
        with pytest.raises(RuntimeError) as error:
            call.run(mixed)
        text = str(error.value)
        assert re.match(
            rf"{base}: expected \w+ on (cpu|cuda:0) like the first argument; got (cpu|cuda:0); fix: ", text
        ), text
        assert "\n" not in text.strip()
        assert kept is None or same_bits(kept, mixed[name])
    alive()


def test_k_beyond_exact_sums_is_refused():
    one = torch.ones((), device="cuda")
    a = torch.ones(2, 131_072, dtype=torch.int8, device="cuda")
    with pytest.raises(
        RuntimeError, match="scaled_mm: expected k of at most 131071 for int8 .*; got k = 131072; fix: "
    ):
        evergemm.scaled_mm(a, a.t(), one, one)
    alive()
    a = a[:, :131_071].contiguous()  # the largest that is exact runs
    assert bool((evergemm.scaled_mm(a, a.t(), one, one, out_dtype=torch.float32) == 131_071).all())


def test_a_result_without_memory_for_it_is_refused():
    """The allocator's refusal is a RuntimeError of the operator, and leaves nothing."""
    m = 1 << 20
    a, one = torch.ones(m, 16, dtype=torch.int8, device="cuda"), torch.ones((), device="cuda")
    before = torch.cuda.memory_allocated()
    with pytest.raises(RuntimeError, match=r"scaled_mm: .*allocating a result"):
        evergemm.scaled_mm(a, a.t(), one, one)  # 2 TB
    assert torch.cuda.memory_allocated() == before
    alive()
