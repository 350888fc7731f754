# SPDX-License-Identifier: Apache-2.0
"""An output tensor inside poisoned memory: every byte that it does not address must be as before the call."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_POISON = 0xA5
_ZONE = 4096  # bytes before and after


class GuardedTensor:
    """`tensor` has the given shape and strides (None: contiguous) and lies in the middle of poison."""

    def __init__(self, shape: Sequence[int], dtype: torch.dtype, strides: Sequence[int] | None = None):
        if strides is None:
            strides = torch.empty(shape, device="meta").stride()
        last = sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) if 0 not in shape else -1
        size = 2 * _ZONE + (last + 1) * dtype.itemsize
        self._bytes = torch.full((size,), _POISON, dtype=torch.uint8)
        self._addressed = torch.zeros(size, dtype=torch.bool)
        inside = slice(_ZONE, size - _ZONE)
        self.tensor = self._bytes[inside].view(dtype).as_strided(shape, strides, _ZONE // dtype.itemsize)
        for byte in range(dtype.itemsize):  # the same view, one byte of each element at a time
            offset = _ZONE + byte
            self._addressed.as_strided(shape, [stride * dtype.itemsize for stride in strides], offset).fill_(True)

    def assert_intact(self) -> None:
        """Nothing outside `tensor`'s elements was written."""
        stray = ((self._bytes != _POISON) & ~self._addressed).nonzero().flatten()
        assert stray.numel() == 0, (
            f"{stray.numel()} stray bytes, the first {stray[0].item() - _ZONE} bytes from the tensor"
        )


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Equal shape, dtype and value of every element; NaN equals NaN, -0 does not equal +0."""
    if x.shape != y.shape or x.dtype != y.dtype:
        return False
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.dtype.itemsize]
    equal = x.contiguous().view(integers) == y.contiguous().view(integers)
    if x.dtype.is_floating_point:
        equal |= x.float().isnan().contiguous() & y.float().isnan().contiguous()
    return bool(equal.all())
