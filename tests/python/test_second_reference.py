# SPDX-License-Identifier: Apache-2.0
"""A second reference in numpy and ml_dtypes, written from docs/numerics.md: the operators must equal it bit for bit.

It shares nothing with the library: conversions are ml_dtypes', fused operations are emulated in float64, loops run over
whole arrays. Cases are those of tests/cases.json. Must not go here: torch arithmetic, tolerances.
"""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import evergemm
import ml_dtypes
import numpy as np
import pytest
import torch

CASES = json.loads((Path(__file__).parents[1] / "cases.json").read_text())
GEMM_CASES = [case for case in CASES["gemm"] if not case["slow"]]
QUANTIZE_CASES = [case for case in CASES["quantize"] if not case["slow"]]
FLOAT8 = np.dtype(ml_dtypes.float8_e4m3fn)
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
FLOAT16 = np.dtype(np.float16)
FLOAT32 = np.dtype(np.float32)
INT8 = np.dtype(np.int8)
TORCH_DTYPE = {
    FLOAT8: torch.float8_e4m3fn,
    BFLOAT16: torch.bfloat16,
    FLOAT16: torch.float16,
    FLOAT32: torch.float32,
    INT8: torch.int8,
    np.dtype(np.int32): torch.int32,
}
BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
INPUTS = (BFLOAT16, FLOAT16, FLOAT32)
QUANTIZED = (INT8, FLOAT8)
F32_MAX = np.float32(np.finfo(np.float32).max)


@pytest.fixture(autouse=True)
def _numpy_is_quiet():
    with np.errstate(all="ignore"):
        yield


# ---- arrays to tensors and back, by bits ----------------------------------------------------------------------------


def tensor(array: np.ndarray) -> torch.Tensor:
    if array.size == 0:  # torch.from_numpy gives empty tensors strides of 0
        return torch.empty(array.shape, dtype=TORCH_DTYPE[array.dtype])
    array = np.ascontiguousarray(array)
    bits = torch.from_numpy(array.view(f"i{array.dtype.itemsize}").copy())
    return bits.view(TORCH_DTYPE[array.dtype]).reshape(array.shape)


def array(t: torch.Tensor) -> np.ndarray:
    numpy_dtype = next(key for key, value in TORCH_DTYPE.items() if value == t.dtype)
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[t.element_size()]
    return t.contiguous().view(integer).numpy().view(numpy_dtype).reshape(t.shape)


def assert_same(got: torch.Tensor, expected: np.ndarray, what: str) -> None:
    """Equal bits; a NaN of a floating result equals any NaN (one-byte results and scales are compared by bits)."""
    result = array(got)
    assert result.dtype == expected.dtype, what
    assert result.shape == expected.shape, f"{what}: {result.shape} instead of {expected.shape}"
    integer = BITS[expected.dtype.itemsize]
    differ = result.view(integer) != np.ascontiguousarray(expected).view(integer)
    if expected.dtype.itemsize == 2:
        differ &= ~(np.isnan(result) & np.isnan(expected))
    where = np.argwhere(differ)
    assert len(where) == 0, (
        f"{what}: {len(where)} of {differ.size} differ, first at {where[0].tolist()}: "
        f"{result[tuple(where[0])]} instead of {expected[tuple(where[0])]}"
    )


# ---- fp32 arithmetic ------------------------------------------------------------------------------------------------


def fma32(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """x * y + z rounded once. The product is exact in float64; where the sum, rounded to float64, lies exactly between
    two float32 values, the part that was lost decides."""
    product = np.asarray(x, np.float64) * np.asarray(y, np.float64)
    addend = np.asarray(z, np.float64)
    total = product + addend
    back = total - product
    lost = (product - (total - back)) + (addend - back)
    nearest = total.astype(np.float32)
    other = np.nextafter(nearest, np.where(total > nearest, np.inf, -np.inf).astype(np.float32))
    tie = (total != nearest) & ((nearest.astype(np.float64) + other.astype(np.float64)) / 2 == total) & (lost != 0)
    toward_lost = np.where((lost > 0) == (other > nearest), other, nearest)
    return np.where(tie & np.isfinite(total), toward_lost, nearest).astype(np.float32)


def test_fma32_rounds_once():
    rng = np.random.default_rng(3)
    x, y, z = (np.ldexp(rng.normal(size=4000), rng.integers(-30, 30, 4000)).astype(np.float32) for _ in range(3))
    tie = np.float32(1 + 2.0**-12)  # squared: 1 + 2^-11 + 2^-24, half way between two float32
    x, y = np.append(x, [tie] * 3), np.append(y, [tie] * 3)
    z = np.append(z, np.array([0, 2.0**-70, -(2.0**-70)], np.float32))
    got = fma32(x, y, z)
    for a, b, c, result in zip(x.tolist(), y.tolist(), z.tolist(), got, strict=True):
        exact = Fraction(a) * Fraction(b) + Fraction(c)
        error = abs(Fraction(float(result)) - exact)
        for neighbour in (np.nextafter(result, np.float32(np.inf)), np.nextafter(result, np.float32(-np.inf))):
            other = abs(Fraction(float(neighbour)) - exact)
            even = int(result.view(np.uint32)) % 2 == 0
            assert error < other or (error == other and even), (a, b, c)


def store(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.asarray(values, np.float32).astype(dtype)


# ---- GEMM -----------------------------------------------------------------------------------------------------------


def block_sums(a: np.ndarray, b: np.ndarray):
    """For each 128 of k: fp32 fmas, k ascending. a [m, k], b [k, n]. In float64 a sum is exact before its rounding."""
    for begin in range(0, a.shape[1], 128):
        total = np.zeros((a.shape[0], b.shape[1]), np.float64)
        for k in range(begin, min(begin + 128, a.shape[1])):
            total = (total + a[:, k, None] * b[None, k, :]).astype(np.float32).astype(np.float64)
        yield total.astype(np.float32)


def second_scaled_mm(a, b, scale_a, scale_b, bias, out_dtype, azp_adj=None, azp=None) -> np.ndarray:
    """scale_a [m, 1], [1, 1] or [m, k/128]; scale_b [1, n], [1, 1] or [k/128, n/128]; the rest as the operator's."""
    bias32 = None if bias is None else bias.astype(np.float32)
    plain = scale_a.shape[1] == 1 and scale_b.shape in ((1, 1), (1, b.shape[1]))  # goes before blocks where both fit
    if a.dtype == FLOAT8 and not plain:
        main = np.zeros((a.shape[0], b.shape[1]), np.float32)
        columns = np.arange(b.shape[1]) // 128
        for block, total in enumerate(block_sums(a.astype(np.float64), b.astype(np.float64))):
            main = fma32(scale_a[:, block, None] * scale_b[block, columns][None, :], total, main)
        return store(main if bias is None else main + bias32, out_dtype)
    if a.dtype == FLOAT8:
        accumulated = np.zeros((a.shape[0], b.shape[1]), np.float32)
        for total in block_sums(a.astype(np.float64), b.astype(np.float64)):
            accumulated = accumulated + total
    else:
        sums = (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)  # exact below 2^53
        if azp_adj is not None:
            sums = sums - (1 if azp is None else azp.astype(np.int64)[:, None]) * azp_adj.astype(np.int64)[None, :]
        accumulated = sums.astype(np.uint32).astype(np.int32).astype(np.float32)
    t = scale_b * accumulated
    if bias is None and azp_adj is None:
        return store(scale_a * t, out_dtype)
    return store(fma32(np.broadcast_to(scale_a, t.shape), t, np.float32(0) if bias is None else bias32), out_dtype)


def operands(rng, case, dtype):
    shape_a, shape_b = (case["m"], case["k"]), (case["n"], case["k"])
    if dtype == INT8:
        return [rng.integers(-128, 128, shape, np.int8) for shape in (shape_a, shape_b)]
    codes = rng.permutation(np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8))
    return [codes[rng.integers(0, len(codes), shape)].view(FLOAT8) for shape in (shape_a, shape_b)]


def random_scale(rng, shape) -> np.ndarray:
    return (rng.uniform(0.25, 1, shape) * rng.choice([1, 1, 1, -1], shape) / 64).astype(np.float32)


def seed_of(case) -> int:
    return sum(case["id"].encode()) * 1009 + len(case["id"])


def ids(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


@ids(GEMM_CASES)
@pytest.mark.parametrize("variant", ["int8", "int8_tensor", "azp", "azp_folded", "fp8_row", "fp8_tensor", "fp8_block"])
def test_scaled_mm(case, variant):
    m, n, k = case["m"], case["n"], case["k"]
    rng = np.random.default_rng(seed_of(case))
    dtype = INT8 if variant.startswith(("int8", "azp")) else FLOAT8
    a, weight = operands(rng, case, dtype)
    out_dtype = (BFLOAT16, FLOAT16, FLOAT32)[seed_of(case) % 3]
    bias = rng.normal(0, 8, n).astype(out_dtype) if seed_of(case) % 2 else None
    shape_a, shape_b = (m, 1), (1, n)
    if variant.endswith("tensor"):
        shape_a = shape_b = (1, 1)
    if variant == "fp8_block":
        shape_a, shape_b = (m, -(-k // 128)), (-(-k // 128), -(-n // 128))
    scale_a, scale_b = random_scale(rng, shape_a), random_scale(rng, shape_b)
    given = [tensor(a), tensor(weight).t(), tensor(scale_a), tensor(scale_b)]
    bias_given = None if bias is None else tensor(bias)
    if variant.startswith("azp"):
        azp = rng.integers(-128, 128, m, np.int32) if variant == "azp" else None
        azp_adj = (weight.astype(np.int64).sum(1) * (1 if variant == "azp" else 77)).astype(np.int32)
        got = evergemm.scaled_mm_azp(
            *given, tensor(azp_adj), None if azp is None else tensor(azp), bias_given, TORCH_DTYPE[out_dtype]
        )
        expected = second_scaled_mm(a, weight.T, scale_a, scale_b, bias, out_dtype, azp_adj, azp)
    else:
        got = evergemm.scaled_mm(*given, bias_given, TORCH_DTYPE[out_dtype])
        expected = second_scaled_mm(a, weight.T, scale_a, scale_b, bias, out_dtype)
    assert_same(got, expected, f"{case['id']} {variant}, seed {seed_of(case)}")


# ---- quantizers ------------------------------------------------------------------------------------------------------


def scale_of(absmax: np.ndarray, dtype: np.dtype) -> np.ndarray:
    q_max = np.float32(127 if dtype == INT8 else 448)
    scale = np.maximum(np.minimum(absmax, F32_MAX) / q_max, np.float32(2.0**-126))
    scale = np.where(absmax == 0, np.float32(1), scale)
    return np.where(np.isnan(absmax), np.uint32(0x7FC00000).view(np.float32), scale).astype(np.float32)


def power_of_two(scale: np.ndarray) -> np.ndarray:
    fraction, exponent = np.frexp(scale)
    rounded = np.ldexp(np.float32(1), np.minimum(np.where(fraction == 0.5, exponent - 1, exponent), 127))
    return np.where(np.isnan(scale), scale, rounded).astype(np.float32)


def quantized(values: np.ndarray, scale: np.ndarray, dtype: np.dtype) -> np.ndarray:
    quotient = values / scale
    if dtype == INT8:
        return np.where(np.isnan(quotient), 0, np.clip(np.rint(quotient), -128, 127)).astype(np.int8)
    codes = np.clip(quotient, -448, 448).astype(FLOAT8).view(np.uint8)
    return np.where(np.isnan(quotient), np.uint8(0x7F), codes).view(FLOAT8)


def absmax_of(values: np.ndarray) -> np.ndarray:
    """Over the last axis; NaN where there is one, 0 where there is nothing."""
    return np.max(np.abs(values), axis=-1, initial=np.float32(0)).astype(np.float32)


def per_group(values, group, dtype, powers=False):
    rows, columns = values.shape
    groups = -(-columns // group)
    scale, q = np.zeros((rows, groups), np.float32), np.zeros((rows, columns), dtype)
    for g in range(groups):
        part = slice(g * group, min(columns, (g + 1) * group))
        scale[:, g] = scale_of(absmax_of(values[:, part]), dtype)
        if powers:
            scale[:, g] = power_of_two(scale[:, g])
        q[:, part] = quantized(values[:, part], scale[:, g, None], dtype)
    return q, scale


def per_block(values, block_rows, block_columns, dtype):
    rows, columns = values.shape
    scale = np.zeros((-(-rows // block_rows), -(-columns // block_columns)), np.float32)
    q = np.zeros((rows, columns), dtype)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            part = np.s_[i * block_rows : (i + 1) * block_rows, j * block_columns : (j + 1) * block_columns]
            scale[i, j] = scale_of(absmax_of(values[part].reshape(-1)), dtype)
            q[part] = quantized(values[part], scale[i, j], dtype)
    return q, scale


def asymmetric(values):
    low = np.minimum(np.min(values, axis=1, initial=np.float32(0)), np.float32(0))
    high = np.maximum(np.max(values, axis=1, initial=np.float32(0)), np.float32(0))
    low, high = np.maximum(low, -F32_MAX), np.minimum(high, F32_MAX)  # numpy's keep NaN
    span = np.minimum(high - low, F32_MAX)
    scale = np.where(span == 0, np.float32(1), np.maximum(span / np.float32(255), np.float32(2.0**-126)))
    scale = np.where(np.isnan(span), np.uint32(0x7FC00000).view(np.float32), scale).astype(np.float32)
    azp = np.nan_to_num(np.rint(np.float32(-128) - low / scale)).astype(np.int32)
    quotient = np.rint(values / scale[:, None]).astype(np.float64) + azp[:, None]
    q = np.where(np.isnan(quotient), 0, np.clip(quotient, -128, 127)).astype(np.int8)
    return q, scale[:, None], azp[:, None]


def values_of(rng, shape, dtype, kind) -> np.ndarray:
    if kind == "normal":
        return rng.normal(0, 2, shape).astype(dtype)
    if kind == "zeros":
        return np.zeros(shape, dtype)
    bits = BITS[dtype.itemsize]
    codes = rng.integers(0, 2 ** (8 * dtype.itemsize), shape, bits, endpoint=False)
    if kind == "finite":
        codes = np.where(np.isfinite(codes.view(dtype).astype(np.float32)), codes, bits(3))
    return codes.view(dtype)


def check_all_quantizers(x: np.ndarray, dtype: np.dtype, group: int, block: tuple[int, int], what: str) -> None:
    values, given, torch_dtype = x.astype(np.float32), tensor(x), TORCH_DTYPE[dtype]

    def check(got, expected, name):
        assert len(got) == len(expected), name
        for number, (one, other) in enumerate(zip(got, expected, strict=True)):
            assert_same(one, other, f"{name}[{number}] {what} {x.dtype} -> {dtype}")

    scale = scale_of(absmax_of(values.reshape(-1)), dtype)
    check(
        evergemm.quantize_per_tensor(given, torch_dtype), (quantized(values, scale, dtype), scale.reshape(1)), "tensor"
    )
    absmax = absmax_of(values)[:, None]
    scale = scale_of(absmax, dtype)
    check(evergemm.quantize_per_token(given, torch_dtype), (quantized(values, scale, dtype), scale), "token")
    scale = scale_of(np.minimum(absmax, np.float32(1.5)), dtype)
    check(
        evergemm.quantize_per_token(given, torch_dtype, torch.tensor(1.5)),
        (quantized(values, scale, dtype), scale),
        "token bounded",
    )
    if dtype == INT8:
        check(evergemm.quantize_per_token_asymmetric(given), asymmetric(values), "asymmetric")
    for powers in (False, True):
        check(
            evergemm.quantize_per_group(given, group, torch_dtype, power_of_two_scales=powers),
            per_group(values, group, dtype, powers),
            f"group {group} powers {powers}",
        )
    check(evergemm.quantize_per_block(given, *block, torch_dtype), per_block(values, *block, dtype), f"block {block}")
    if x.shape[0] > 1:
        static = np.resize(
            np.array([1, 0.1, 3.7e-5, 2.0**-126, -0.375, np.inf, 0, np.nan], np.float32), (x.shape[0], 1)
        )
        check(
            [evergemm.quantize_static(given, tensor(static), torch_dtype)], [quantized(values, static, dtype)], "static"
        )


@ids(QUANTIZE_CASES)
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_quantizers(case, dtype):
    for x_dtype in INPUTS:
        for kind in ("normal", "any", "finite", "zeros"):
            rng = np.random.default_rng(seed_of(case))
            x = values_of(rng, (case["rows"], case["columns"]), x_dtype, kind)
            check_all_quantizers(
                x, dtype, case["group_columns"], (case["group_rows"], case["group_columns"]), f"{case['id']} {kind}"
            )


@pytest.mark.parametrize("x_dtype", (BFLOAT16, FLOAT16), ids=str)
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
def test_quantizers_on_every_16_bit_value(x_dtype, dtype):
    codes = np.random.default_rng(65536).permutation(65536).astype(np.uint16)
    check_all_quantizers(codes.view(x_dtype).reshape(512, 128), dtype, 4, (4, 4), "every value")
    check_all_quantizers(codes.view(x_dtype).reshape(8, 8192), dtype, 1, (1, 2), "every value")


# ---- fused quantizers ------------------------------------------------------------------------------------------------


def exp32(x: np.ndarray) -> np.ndarray:
    limited = np.clip(x, np.float32(-104), np.float32(89))
    n = np.rint(np.asarray(limited, np.float64) * np.float64(np.float32(1.44269504088896341))).astype(np.float32)
    r = fma32(n, np.float32(-0.693359375), limited)
    r = fma32(n, np.float32(2.12194440e-4), r)
    p = np.full_like(r, np.float32(1.9875691500e-4))
    for coefficient in (1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1):
        p = fma32(p, r, np.full_like(r, np.float32(coefficient)))
    y = fma32(r * r, p, r) + np.float32(1)
    return np.ldexp(y.astype(np.float64), np.nan_to_num(n).astype(np.int64)).astype(np.float32)


def silu(x):
    return x / (np.float32(1) + exp32(-x))


def gelu(x):
    y = np.abs(x) * np.float32(0.70710678118654752)
    t = np.float32(1) / fma32(np.float32(0.3275911), y, np.float32(1))
    p = np.full_like(x, np.float32(1.061405429))
    for coefficient in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        p = fma32(p, t, np.full_like(x, np.float32(coefficient)))
    half_erfc = ((p * t) * exp32(-(y * y))) * np.float32(0.5)
    negative = np.where(half_erfc == 0, np.float32(0), x * half_erfc)
    return np.where(x > 0, x * (np.float32(1) - half_erfc), negative).astype(np.float32)


def relu_squared(x):
    positive = np.where(x > 0, x, np.float32(0))
    return np.where(np.isnan(x), x, positive * positive).astype(np.float32)


def quantized_rows(values, group, dtype):
    if group == 0:
        scale = scale_of(absmax_of(values), dtype)[:, None]
        return quantized(values, scale, dtype), scale
    return per_group(values, group, dtype)


@pytest.mark.parametrize("x_dtype", INPUTS, ids=str)
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", [silu, gelu, relu_squared], ids=lambda f: f.__name__)
def test_activate_and_quantize(x_dtype, dtype, gated, activation):
    for rows, columns, group, kind in (
        (7, 128, 0, "normal"),
        (5, 83, 16, "normal"),
        (512, 128, 0, "any"),
        (512, 128, 4, "any"),
        (1, 1, 0, "normal"),
    ):
        rng = np.random.default_rng(rows * columns + group)
        x = values_of(rng, (rows, 2 * columns if gated else columns), x_dtype, kind)
        values = activation(x[:, :columns].astype(np.float32))
        if gated:
            values = values * x[:, columns:].astype(np.float32)
        got = evergemm.activate_and_quantize(tensor(x), activation.__name__, gated, group, TORCH_DTYPE[dtype])
        for number, (one, other) in enumerate(zip(got, quantized_rows(values, group, dtype), strict=True)):
            assert_same(one, other, f"{activation.__name__} {rows}x{columns} group {group} {kind} [{number}]")


def tree_of_halves(values):
    while values.shape[1] > 1:
        half = values.shape[1] // 2
        values = values[:, :half] + values[:, half:]
    return values[:, 0]


@pytest.mark.parametrize("x_dtype", INPUTS, ids=str)
@pytest.mark.parametrize("dtype", QUANTIZED, ids=str)
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "plain"])
def test_rms_norm_quantize(x_dtype, dtype, with_residual):
    for rows, columns, group, eps in (
        (3, 384, 0, 1e-6),
        (5, 4097, 128, 1e-5),
        (2, 9001, 0, 1e-6),
        (2, 31, 7, 0.0),
        (2, 33, 0, 1e-6),
        (4, 1, 1, 1e-6),
    ):
        rng = np.random.default_rng(columns)
        x, weight = values_of(rng, (rows, columns), x_dtype, "normal"), values_of(rng, (columns,), x_dtype, "normal")
        values, residual_given = x.astype(np.float32), None
        if with_residual:
            residual = values_of(rng, (rows, columns), x_dtype, "normal")
            residual_given = tensor(residual)
            stored = (values + residual.astype(np.float32)).astype(x_dtype)
            values = stored.astype(np.float32)
        squares = np.zeros((rows, -(-columns // 256) * 256), np.float32)
        squares[:, :columns] = values * values
        partial = np.zeros((rows, 32), np.float32)
        for run in range(squares.shape[1] // 256):
            partial[:, run % 32] += tree_of_halves(squares[:, run * 256 : run * 256 + 256])
        mean = tree_of_halves(partial) / np.float32(columns)
        factor = np.float32(1) / np.sqrt(mean + np.float32(eps))
        values = (values * factor[:, None]) * weight.astype(np.float32)[None, :]
        got = evergemm.rms_norm_quantize(tensor(x), tensor(weight), eps, group, TORCH_DTYPE[dtype], residual_given)
        for number, (one, other) in enumerate(zip(got, quantized_rows(values, group, dtype), strict=True)):
            assert_same(one, other, f"rms_norm {rows}x{columns} group {group} [{number}]")
        if with_residual:
            assert_same(residual_given, stored, f"residual {rows}x{columns}")


# ---- drop-in group quantizers ----------------------------------------------------------------------------------------


def dropin(values, group, eps, q_min, q_max, ue8m0, dtype):
    rows, columns = values.shape
    grouped = values.reshape(rows, columns // group, group)
    absmax = absmax_of(np.where(np.isnan(grouped), np.float32(0), grouped))
    scale = np.maximum(absmax, np.float32(eps)) / np.float32(q_max)
    exponent = None
    if ue8m0:
        bits = np.maximum(scale, np.float32(1e-10)).view(np.uint32)
        exponent = (bits >> 23) + ((bits & 0x7FFFFF) != 0)
        scale = np.ldexp(np.float64(1), exponent.astype(np.int64) - 127).astype(np.float32)
    v = np.where(np.isinf(grouped), grouped, grouped / scale[:, :, None])
    v = np.where(np.isnan(v), np.float32(q_min), np.clip(v, np.float32(q_min), np.float32(q_max)))
    q = np.trunc(v).astype(np.int8) if dtype == INT8 else v.astype(np.float32).astype(FLOAT8)
    return q.reshape(rows, columns), scale.astype(np.float32), exponent


@pytest.mark.parametrize("x_dtype", INPUTS, ids=str)
@pytest.mark.parametrize(
    "rows, columns, group", [(1, 128, 128), (5, 640, 128), (3, 96, 16), (512, 128, 4), (512, 128, 1)]
)
def test_dropin_group_quantizers(x_dtype, rows, columns, group):
    operators = torch.ops.evergemm
    for kind in ("normal", "any", "finite", "zeros"):
        x = values_of(np.random.default_rng(rows + group), (rows, columns), x_dtype, kind)
        given, values, what = tensor(x), x.astype(np.float32), f"{rows}x{columns} group {group} {kind}"
        for ue8m0 in (False, True):
            q = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
            scale = torch.empty_strided((rows, columns // group), (1, rows))
            operators.per_token_group_fp8_quant(given, q, scale, group, 1e-10, -448.0, 448.0, ue8m0, False, False)
            expected_q, expected_scale, exponent = dropin(values, group, 1e-10, -448, 448, ue8m0, FLOAT8)
            assert_same(q, expected_q, f"fp8 q {what} ue8m0 {ue8m0}")
            assert_same(scale, expected_scale, f"fp8 scale {what} ue8m0 {ue8m0}")

        q, scale = torch.empty(rows, columns, dtype=torch.int8), torch.empty(rows, columns // group)
        operators.per_token_group_quant_int8(given, q, scale, group, 1e-10, -128.0, 127.0)
        int8_q, int8_scale, _ = dropin(values, group, 1e-10, -128, 127, False, INT8)
        assert_same(q, int8_q, f"int8 q {what}")
        assert_same(scale, int8_scale, f"int8 scale {what}")

        groups, padded = columns // group, -(-rows // 4) * 4
        words = -(-groups // 4)
        storage = torch.full((rows + (words - 1) * padded,), -1, dtype=torch.int32)
        q = torch.empty(rows + 2, columns, dtype=torch.float8_e4m3fn)
        packed = storage.as_strided((rows, words), (1, padded))
        operators.per_token_group_fp8_quant_packed(given, q, packed, group, 1e-10, -448.0, 448.0)
        assert_same(q[:rows], expected_q, f"packed q {what}")
        assert not q[rows:].view(torch.uint8).any(), f"packed q behind the rows {what}"
        expected_bytes = np.zeros((words, padded, 4), np.uint8)
        for g in range(groups):
            expected_bytes[g // 4, :rows, g % 4] = exponent[:, g]
        expected_words = expected_bytes.view(np.int32).reshape(-1)[: storage.numel()]
        assert_same(storage, expected_words, f"packed words {what}")
