# SPDX-License-Identifier: Apache-2.0
"""What is timed: evergemm's scaled_mm and what a user of torch would call instead, on the same operands.

A Case is one problem with its operands; `implementations` gives each candidate as a function of a call number, which
rotates over several weights so that they come from memory, not from a cache. Must not go here: clocks, tables.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from .. import ops
from .timing import last_level_cache_bytes

OURS = "evergemm"
SCHEMES = {
    # name -> (dtype, scales) as explain() takes them
    "int8": ("int8", "rowwise"),
    "fp8": ("fp8", "rowwise"),
    "fp8-block": ("fp8", "blockwise"),
}
_BLOCK = 128
_ROTATED = 3  # times the last cache
_MOST_COPIES = 256
_CHECKED_ROWS, _CHECKED_COLUMNS = 16, 512


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem. a [m, k]; weights: several [n, k] of the same kind; scales float32, real = scale * stored."""

    name: str
    scheme: str
    m: int
    n: int
    k: int
    out_dtype: torch.dtype
    a: torch.Tensor
    weights: list[torch.Tensor]
    scale_a: torch.Tensor
    scale_b: torch.Tensor

    @property
    def operations(self) -> float:
        return 2.0 * self.m * self.n * self.k

    @property
    def bytes(self) -> float:
        """Each operand read once, the result written once; what a kernel cannot avoid."""
        blocks = 4.0 * (self.scale_a.numel() + self.scale_b.numel()) if self.scheme == "fp8-block" else 0.0
        return self.n * self.k + self.m * self.k + self.m * self.n * self.out_dtype.itemsize + blocks


def _copies(weight_bytes: int) -> int:
    return max(1, min(_MOST_COPIES, math.ceil(_ROTATED * last_level_cache_bytes() / max(weight_bytes, 1))))


def make_case(name: str, scheme: str, m: int, n: int, k: int, out_dtype: torch.dtype, seed: int = 0) -> Case:
    """Random operands over the whole range of the type: never zeros or small integers, which run faster."""
    generator = torch.Generator().manual_seed(seed)
    if scheme == "int8":
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
        weight = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator)
    else:
        a = (64 * torch.randn(m, k, generator=generator)).clamp_(-448, 448).to(torch.float8_e4m3fn)
        weight = (64 * torch.randn(n, k, generator=generator)).clamp_(-448, 448).to(torch.float8_e4m3fn)
    if scheme == "fp8-block":
        blocks = -(-k // _BLOCK)
        shape_a, shape_b = (m, blocks), (blocks, -(-n // _BLOCK))
    else:
        shape_a, shape_b = (m, 1), (1, n)
    scale_a = torch.rand(shape_a, generator=generator) * 1e-2 + 1e-3
    scale_b = torch.rand(shape_b, generator=generator) * 1e-2 + 1e-3
    weights = [weight] + [weight.clone() for _ in range(_copies(weight.nbytes) - 1)]
    return Case(name, scheme, m, n, k, out_dtype, a, weights, scale_a, scale_b)


def _pick(items: list, index: int):
    return items[index % len(items)]


def implementations(case: Case, wanted: list[str] | None = None) -> dict[str, Callable[[int], torch.Tensor]]:
    """Name -> function of the call's number. Peers that this torch does not have, or that refuse the problem, are absent.

    int8: torch._int_mm, then float, times both scales. oneDNN's qlinear as torch.compile uses it: weights packed
    beforehand, activations unsigned with a zero point and one scale for the whole tensor (it has no scale per token).
    fp8: torch._scaled_mm with one scale per tensor (all that torch has on the CPU). mm: float weights, unquantized.
    """
    everything: dict[str, Callable[[], Callable[[int], torch.Tensor]]] = {OURS: lambda: _evergemm(case)}
    if case.scheme == "int8":
        everything["torch._int_mm + dequantize"] = lambda: _int_mm(case)
        everything["onednn qlinear"] = lambda: _qlinear(case)
    elif case.scheme == "fp8":
        everything["torch._scaled_mm"] = lambda: _scaled_mm(case)
    everything["fp32 mm"] = lambda: _mm(case, torch.float32)
    everything["bf16 mm"] = lambda: _mm(case, torch.bfloat16)
    found = {}
    for name, make in everything.items():
        if wanted is not None and name != OURS and name not in wanted:
            continue
        if name == OURS:
            found[name] = make()
            continue
        try:
            call = make()
            call(0)
        except (RuntimeError, AttributeError, NotImplementedError):
            continue  # a peer that is not there is no failure of ours
        found[name] = call
    return found


def _evergemm(case: Case) -> Callable[[int], torch.Tensor]:
    transposed = [weight.t() for weight in case.weights]

    def call(index: int) -> torch.Tensor:
        return ops.scaled_mm(case.a, _pick(transposed, index), case.scale_a, case.scale_b, None, case.out_dtype)

    return call


def _int_mm(case: Case) -> Callable[[int], torch.Tensor]:
    transposed = [weight.t() for weight in case.weights]

    def call(index: int) -> torch.Tensor:
        product = torch._int_mm(case.a, _pick(transposed, index)).to(torch.float32)
        return product.mul_(case.scale_b).mul_(case.scale_a).to(case.out_dtype)

    return call


def _qlinear(case: Case) -> Callable[[int], torch.Tensor]:
    packed = [torch.ops.onednn.qlinear_prepack(weight, None) for weight in case.weights]
    unsigned = (case.a.to(torch.int16) + 128).to(torch.uint8)
    scales, zeros = case.scale_b.reshape(-1).contiguous(), torch.zeros(case.n, dtype=torch.int32)
    one_scale = float(case.scale_a.mean())
    qlinear = torch.ops.onednn.qlinear_pointwise.default

    def call(index: int) -> torch.Tensor:
        weight = _pick(packed, index)
        return qlinear(unsigned, one_scale, 128, weight, scales, zeros, None, 1.0, 0, case.out_dtype, "none", [], "")

    return call


def _scaled_mm(case: Case) -> Callable[[int], torch.Tensor]:
    transposed = [weight.t() for weight in case.weights]
    scale_a, scale_b = case.scale_a.mean(), case.scale_b.mean()

    def call(index: int) -> torch.Tensor:
        return torch._scaled_mm(case.a, _pick(transposed, index), scale_a, scale_b, out_dtype=case.out_dtype)

    return call


def _mm(case: Case, dtype: torch.dtype) -> Callable[[int], torch.Tensor]:
    a = case.a.to(dtype)
    count = _copies(case.n * case.k * dtype.itemsize)
    weights = [case.weights[0].to(dtype)]
    weights += [weights[0].clone() for _ in range(count - 1)]
    transposed = [weight.t() for weight in weights]

    def call(index: int) -> torch.Tensor:
        return torch.mm(a, _pick(transposed, index))

    return call


def check(case: Case, result: torch.Tensor) -> None:
    """Raises RuntimeError where evergemm's result is wrong on a sample of rows and columns: int8 bit for bit; fp8 inside the
    bound of fp32 sums, from the real operands."""
    rows = torch.linspace(0, case.m - 1, min(case.m, _CHECKED_ROWS)).round().long().unique()
    columns = torch.linspace(0, case.n - 1, min(case.n, _CHECKED_COLUMNS)).round().long().unique()
    a = case.a[rows].to(torch.float64)
    b = case.weights[0][columns].to(torch.float64).t()
    got = result[rows][:, columns]
    problem = f"{case.name} {case.scheme} m={case.m} n={case.n} k={case.k}"
    if case.scheme == "int8":
        wanted = (a @ b).to(torch.float32).mul_(case.scale_b[:, columns]).mul_(case.scale_a[rows]).to(case.out_dtype)
        if not torch.equal(got, wanted):
            raise RuntimeError(
                f"bench: expected the exact product; got {int((got != wanted).sum())} wrong values; {problem}."
            )
        return
    if case.scheme == "fp8-block":
        a *= case.scale_a[rows].repeat_interleave(_BLOCK, 1)[:, : case.k].to(torch.float64)
        scale_b = case.scale_b.repeat_interleave(_BLOCK, 0)[: case.k].repeat_interleave(_BLOCK, 1)[:, : case.n]
        b *= scale_b[:, columns].to(torch.float64)
    else:
        a *= case.scale_a[rows].to(torch.float64)
        b *= case.scale_b[:, columns].to(torch.float64)
    exact = a @ b
    # One fp32 rounding for each of the sums and products on the way of a value, and one to the result's type.
    steps = _BLOCK + -(-case.k // _BLOCK) + 4
    bound = steps * 2.0**-24 * (a.abs() @ b.abs()) + exact.abs() * torch.finfo(case.out_dtype).eps
    if not bool(((got.to(torch.float64) - exact).abs() <= bound).all()):
        raise RuntimeError(f"bench: expected values inside the bound of fp32 sums; got some outside; {problem}.")
