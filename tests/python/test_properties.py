# SPDX-License-Identifier: Apache-2.0
"""Properties that hold for any shape, stride and value, on inputs that hypothesis makes up and shrinks: exact int8 products
on strided views, invariances of docs/numerics.md section 5, and that a wrong call is a RuntimeError with expected, got, fix."""

import re

import evergemm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

SETTINGS = settings(max_examples=150, deadline=None, derandomize=True, print_blob=True)  # the same cases in every run
ERROR = re.compile(r"^[a-z_0-9]+: expected .+; got .+; fix: .+\.$", re.DOTALL)
SIZES = st.sampled_from([0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 130, 257])
SEEDS = st.integers(0, 2**31 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def int8_matrix(rows: int, columns: int, gap: int, source: torch.Generator) -> torch.Tensor:
    """[rows, columns] int8 over its full range, with `gap` elements between rows."""
    whole = torch.randint(-128, 128, (rows, columns + gap), dtype=torch.int8, generator=source)
    return whole[:, :columns]


def scales(shape: tuple, source: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=source) * 0.02 + 1e-3


@SETTINGS
@given(m=SIZES, n=SIZES, k=SIZES, gap=st.integers(0, 5), rowwise=st.booleans(), biased=st.booleans(), seed=SEEDS)
def test_int8_products_are_exact_on_any_view(m, n, k, gap, rowwise, biased, seed):
    source = generator(seed)
    a, weight = int8_matrix(m, k, gap, source), int8_matrix(n, k, gap, source)
    scale_a, scale_b = scales((m, 1) if rowwise else (1,), source), scales((1, n) if rowwise else (1,), source)
    bias = torch.rand(n, generator=source) if biased else None
    out = evergemm.scaled_mm(a, weight.t(), scale_a, scale_b, bias, torch.float32)
    exact = (a.to(torch.int64) @ weight.to(torch.int64).t()).to(torch.float32)  # below 2^24 for these k: exact in fp32
    term = (scale_b * exact).to(torch.float64)
    # fma(scale_a, term, bias) in one rounding: the product of two fp32 is exact in fp64, the sum rounds twice at most
    wanted = scale_a.to(torch.float64) * term + (0.0 if bias is None else bias.to(torch.float64))
    ulp = torch.finfo(torch.float32).eps * wanted.abs()
    assert out.shape == (m, n)
    assert torch.all((out.to(torch.float64) - wanted).abs() <= 0.5000001 * ulp + 1e-45)


@SETTINGS
@given(m=st.integers(1, 40), n=SIZES, k=SIZES, power=st.integers(-20, 20), blocks=st.booleans(), seed=SEEDS)
def test_powers_of_two_scale_fp8_results_exactly(m, n, k, power, blocks, seed):
    source = generator(seed)
    a = torch.randn(m, k, generator=source).to(torch.float8_e4m3fn)
    weight = torch.randn(n, k, generator=source).to(torch.float8_e4m3fn)
    k_blocks, n_blocks = -(-k // 128), -(-n // 128)
    scale_a = scales((m, k_blocks) if blocks else (m, 1), source)
    scale_b = scales((k_blocks, n_blocks) if blocks else (1, n), source)
    once = evergemm.scaled_mm(a, weight.t(), scale_a, scale_b, None, torch.float32)
    scaled = evergemm.scaled_mm(a, weight.t(), scale_a * 2.0**power, scale_b, None, torch.float32)
    assert torch.equal(scaled, once * 2.0**power)


@SETTINGS
@given(m=st.integers(2, 40), n=SIZES, k=SIZES, seed=SEEDS)
def test_a_row_does_not_depend_on_the_other_rows(m, n, k, seed):
    source = generator(seed)
    a = torch.randn(m, k, generator=source).to(torch.float8_e4m3fn)
    weight = torch.randn(n, k, generator=source).to(torch.float8_e4m3fn)
    scale_a, scale_b = scales((m, 1), source), scales((1, n), source)
    order = torch.randperm(m, generator=source)
    whole = evergemm.scaled_mm(a, weight.t(), scale_a, scale_b, None, torch.float32)
    permuted = evergemm.scaled_mm(
        a.view(torch.uint8)[order].view(a.dtype), weight.t(), scale_a[order], scale_b, None, torch.float32
    )
    one = evergemm.scaled_mm(a[:1], weight.t(), scale_a[:1], scale_b, None, torch.float32)
    assert torch.equal(permuted, whole[order])
    assert torch.equal(one, whole[:1])


@SETTINGS
@given(
    rows=SIZES,
    columns=SIZES,
    dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    target=st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    power=st.integers(-10, 10),
    seed=SEEDS,
)
def test_a_quantized_row_is_within_half_a_step(rows, columns, dtype, target, power, seed):
    x = (torch.randn(rows, columns, generator=generator(seed)) * 2.0**power).to(dtype)
    q, scale = evergemm.quantize_per_token(x, target)
    assert q.shape == x.shape and scale.shape == (rows, 1)
    if x.numel() == 0:
        return
    wide = x.to(torch.float64)
    restored = q.to(torch.float64) * scale.to(torch.float64)
    largest = wide.abs().amax(dim=1, keepdim=True)
    # int8: half a step of absmax / 127. e4m3: 2^-4 of the value, or half the subnormal step 2^-9. Plus the scale's own rounding.
    step = largest / 127 / 2 if target == torch.int8 else torch.maximum(wide.abs() * 2.0**-4, largest / 448 * 2.0**-10)
    assert torch.all((restored - wide).abs() <= step * (1 + 1e-5) + largest * 1e-6)


SHAPES = st.lists(st.integers(0, 5), min_size=0, max_size=3).map(tuple)
DTYPES = st.sampled_from(
    [torch.int8, torch.float8_e4m3fn, torch.float32, torch.bfloat16, torch.int32, torch.bool, torch.float64]
)


@SETTINGS
@given(
    m=st.integers(0, 4),
    n=st.integers(0, 4),
    k=st.integers(0, 4),
    kind=st.sampled_from([torch.int8, torch.float8_e4m3fn]),
    spoiled=st.sampled_from([None, None, 0, 1, 2, 3]),  # the argument that is replaced by something else
    shape=SHAPES,
    dtype=DTYPES,
    out_dtype=st.sampled_from([torch.bfloat16, torch.float16, torch.float32, torch.int8]),
)
def test_a_call_is_right_or_refused_in_words(m, n, k, kind, spoiled, shape, dtype, out_dtype):
    arguments = [
        torch.ones(m, k).to(kind),
        torch.ones(n, k).to(kind).t(),
        torch.ones(m, 1),
        torch.ones(1, n),
    ]
    if spoiled is not None:
        arguments[spoiled] = torch.ones(shape).to(dtype)
    try:
        out = evergemm.scaled_mm(*arguments, None, out_dtype)
    except RuntimeError as error:
        assert spoiled is not None or out_dtype == torch.int8, str(error)
        assert ERROR.match(str(error).splitlines()[0]), str(error)
    else:
        assert out.shape == (arguments[0].shape[0], arguments[1].shape[1])
        assert out.dtype == out_dtype and torch.all(out == arguments[0].shape[1])
