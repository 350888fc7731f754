# SPDX-License-Identifier: Apache-2.0
"""What the files of this folder that go through torch share: which operators are those of mixture of experts, copies on the
GPU, equality to the bit. Must not go here: tests, cases."""

from __future__ import annotations

import torch

MOE = ("moe_", "grouped_", "fused_", "cutlass_moe", "get_cutlass")


def to_gpu(value):
    """A copy on the GPU with the same strides."""
    if not isinstance(value, torch.Tensor):
        return value
    copy = torch.empty_strided(value.size(), value.stride(), dtype=value.dtype, device="cuda")
    return copy.copy_(value)


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    width = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return torch.equal(x.contiguous().cpu().view(width), y.contiguous().cpu().view(width))
