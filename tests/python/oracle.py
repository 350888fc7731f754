# SPDX-License-Identifier: Apache-2.0
"""What the operators must return, from the formulas of docs/numerics.md in numpy and torch, independent of the library.

Exact wherever the arithmetic is defined to the bit: int8 and fp8 GEMM on the CPU, all plain quantizers, the drop-in
group quantizers. Functions take and return torch tensors on the CPU.
"""

from __future__ import annotations

import numpy as np
import torch

FLOAT8_MAX = 448.0
Q_MAX = {torch.int8: 127.0, torch.float8_e4m3fn: FLOAT8_MAX}
FLOAT_MAX = np.float32(np.finfo(np.float32).max)


def fma32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """round32(x * y + z) with one rounding. The product is exact in float64; the sum is rounded to odd there, so that
    the second rounding cannot see a tie that the first one made."""
    product = x.astype(np.float64) * y.astype(np.float64)
    addend = np.broadcast_to(z.astype(np.float64), product.shape)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total) & ((bits & 1) == 0)
    towards_larger = (error > 0) == (total > 0)
    odd = np.where(towards_larger, bits + 1, bits - 1).view(np.float64)
    return np.where(inexact, odd, total).astype(np.float32)


def _rounded(values: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


def _float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.to(torch.float32).contiguous().numpy()


def _block_sums(a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
    """fp32 sums over each 128 of k, k ascending; products of two fp8 values are exact in fp32."""
    sums = []
    for begin in range(0, a.shape[1], 128):
        total = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for k in range(begin, min(begin + 128, a.shape[1])):
            total = total + a[:, k : k + 1] * b[k : k + 1, :]
        sums.append(total)
    return sums


def _column(scale: torch.Tensor) -> np.ndarray:
    return _float32(scale).reshape(-1, 1)


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype,
    azp_adj: torch.Tensor | None = None,
    azp: torch.Tensor | None = None,
) -> torch.Tensor:
    m, k = a.shape
    n = b.shape[1]
    blockwise = scale_a.numel() not in (1, m) or scale_b.numel() not in (1, n)
    bias32 = None if bias is None else _float32(bias).reshape(1, n)
    if blockwise:
        main = np.zeros((m, n), np.float32)
        sa, sb = _float32(scale_a), _float32(scale_b)
        columns = np.arange(n) // 128
        for block, total in enumerate(_block_sums(_float32(a), _float32(b))):
            main = fma32(sa[:, block : block + 1] * sb[block][columns][None, :], total, main)
        return _rounded(main if bias32 is None else main + bias32, out_dtype)
    if a.dtype == torch.int8:
        total = a.to(torch.int64) @ b.to(torch.int64)
        if azp_adj is not None:
            zero_points = 1 if azp is None else azp.reshape(-1, 1).to(torch.int64)
            total = total - zero_points * azp_adj.reshape(1, -1).to(torch.int64)
        acc = total.to(torch.int32).numpy().astype(np.float32)  # wraps; int32 to float32 rounds to nearest even
    else:
        acc = np.zeros((m, n), np.float32)
        for total in _block_sums(_float32(a), _float32(b)):
            acc = acc + total
    sa, sb = _column(scale_a), _column(scale_b).reshape(1, -1)
    t = (sb * acc).astype(np.float32)
    if bias32 is not None:
        return _rounded(fma32(np.broadcast_to(sa, t.shape), t, bias32), out_dtype)
    if azp_adj is not None:
        return _rounded(sa * t + np.float32(0), out_dtype)
    return _rounded(sa * t, out_dtype)


# ---- quantizers ------------------------------------------------------------------------------------------------------


def _saturated(quotient: np.ndarray, dtype: torch.dtype, azp: np.ndarray | int = 0) -> torch.Tensor:
    if dtype == torch.int8:
        rounded = np.where(np.isnan(quotient), 0, np.rint(np.clip(quotient, -1e6, 1e6))) + azp
        rounded = np.where(np.isnan(quotient), 0, rounded)
        return torch.from_numpy(np.clip(rounded, -128, 127).astype(np.int8))
    clamped = np.clip(quotient, np.float32(-FLOAT8_MAX), np.float32(FLOAT8_MAX))
    return torch.from_numpy(clamped).to(torch.float8_e4m3fn)


def _scale(absmax: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    scale = np.minimum(absmax, FLOAT_MAX) / np.float32(Q_MAX[dtype])
    scale = np.maximum(scale, np.float32(2.0**-126))
    return np.where(absmax == 0, np.float32(1), scale).astype(np.float32)


def _absmax(values: np.ndarray, axis) -> np.ndarray:
    """NaN where there is one; 0 where there is nothing."""
    return np.max(np.abs(values), axis=axis, initial=np.float32(0))


def _blocks(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """[row blocks, rows, column blocks, columns], padded with zeros (which no absmax sees)."""
    m, k = values.shape
    padded = np.zeros((-(-m // rows) * rows, -(-k // columns) * columns), np.float32)
    padded[:m, :k] = values
    return padded.reshape(padded.shape[0] // rows, rows, padded.shape[1] // columns, columns)


def power_of_two_at_least(scale: np.ndarray) -> np.ndarray:
    mantissa, exponent = np.frexp(scale)
    up = np.where(mantissa == 0.5, exponent - 1, exponent)
    return np.where(np.isnan(scale), scale, np.ldexp(np.float32(1), np.minimum(up, 127))).astype(np.float32)


def quantize_blocks(
    x: torch.Tensor, rows: int, columns: int, dtype: torch.dtype, power_of_two: bool = False, bound: float | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [m, k] with one dynamic scale for each rows x columns block."""
    values = _float32(x)
    with np.errstate(all="ignore"):
        absmax = _absmax(_blocks(values, rows, columns), (1, 3))
        if bound is not None:
            absmax = np.minimum(absmax, np.float32(bound))
        scale = _scale(absmax, dtype)
        if power_of_two:
            scale = power_of_two_at_least(scale)
        spread = np.repeat(np.repeat(scale, rows, 0), columns, 1)[: x.shape[0], : x.shape[1]]
        return _saturated(values / spread, dtype), torch.from_numpy(scale)


def quantize_with(x: torch.Tensor, scale: torch.Tensor, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    spread = np.repeat(np.repeat(_float32(scale), rows, 0), columns, 1)[: x.shape[0], : x.shape[1]]
    with np.errstate(all="ignore"):
        return _saturated(_float32(x) / spread, dtype)


def quantize_asymmetric(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = _float32(x)
    low = np.min(values, axis=1, initial=np.float32(0), keepdims=True)
    high = np.max(values, axis=1, initial=np.float32(0), keepdims=True)
    scale = ((high - low) / np.float32(255)).astype(np.float32)
    scale = np.where(high == low, np.float32(1), np.maximum(scale, np.float32(2.0**-126)))
    azp = np.rint(np.float32(-128) - low / scale).astype(np.int32)
    return _saturated(values / scale, torch.int8, azp), torch.from_numpy(scale), torch.from_numpy(azp)


def activated(x: torch.Tensor, activation: int, gated: bool) -> torch.Tensor:
    """float64: what activate_and_quantize quantizes, up to its fp32 arithmetic."""
    values = x.to(torch.float64)
    half = values.shape[1] // 2
    gate = values[:, :half] if gated else values
    functions = (torch.nn.functional.silu, torch.nn.functional.gelu, lambda v: torch.relu(v) ** 2)
    result = functions[activation](gate)
    return result * values[:, half:] if gated else result


def normalized(
    x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """float64: what rms_norm_quantize quantizes, and the new residual."""
    total = None if residual is None else (x.float() + residual.float()).to(x.dtype)
    values = (x if total is None else total).to(torch.float64)
    mean = (values * values).mean(dim=1, keepdim=True)
    return values / torch.sqrt(mean + eps) * weight.to(torch.float64), total


# ---- drop-in group quantizers ----------------------------------------------------------------------------------------


def _dropin_scale(values: np.ndarray, group: int, eps: float, q_max: float, power_of_two: bool) -> np.ndarray:
    groups = values.reshape(values.shape[0], values.shape[1] // group, group)
    absmax = np.max(np.where(np.isnan(groups), np.float32(0), np.abs(groups)), axis=2, initial=np.float32(0))
    scale = (np.maximum(absmax, np.float32(eps)) / np.float32(q_max)).astype(np.float32)
    if not power_of_two:
        return scale
    exponent = dropin_exponents(scale).astype(np.int64)
    return (exponent << 23).astype(np.int32).view(np.float32)


def dropin_exponents(scale: np.ndarray) -> np.ndarray:
    """The biased exponent of the power of two at or above max(scale, 1e-10)."""
    bits = np.maximum(scale, np.float32(1e-10)).view(np.int32).astype(np.int64)
    return (bits >> 23) + ((bits & 0x7FFFFF) != 0)


def dropin_group(
    x: torch.Tensor, group: int, eps: float, q_min: float, q_max: float, dtype: torch.dtype, power_of_two: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """(q [m, k], scale [m, k / group]) of x [m, k]."""
    values = _float32(x)
    with np.errstate(all="ignore"):
        scale = _dropin_scale(values, group, eps, q_max, power_of_two)
        quotient = np.where(np.isinf(values), values, values / np.repeat(scale, group, 1))
        low = np.where(quotient > np.float32(q_min), quotient, np.float32(q_min))
        clamped = np.where(low < np.float32(q_max), low, np.float32(q_max))
    if dtype == torch.int8:
        return torch.from_numpy(np.trunc(clamped).astype(np.int8)), torch.from_numpy(scale)
    return torch.from_numpy(clamped).to(dtype), torch.from_numpy(scale)
