# SPDX-License-Identifier: Apache-2.0
"""Every operator through torch: values against the formulas (oracle.py), the out variant against the functional one,
strides, empty and odd shapes, memory around the outputs, gradients, aliases. Wording of errors is test_errors.py's."""

from __future__ import annotations

import json
import pathlib

import evergemm
import oracle
import pytest
import torch
from guarded_tensor import GuardedTensor, same_bits
from operator_calls import BY_NAME, CALLS, FP8, fp8_matrix, int8_matrix

CASES = json.loads((pathlib.Path(__file__).parents[1] / "cases.json").read_text())
GEMM_CASES = [case for case in CASES["gemm"] if not case["slow"]]
QUANTIZE_CASES = [case for case in CASES["quantize"] if not case["slow"]]
OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
X_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
REFERENCE_ROW = 0


@pytest.fixture(autouse=True)
def seeded(request):
    seed = sum(map(ord, request.node.name))
    print(f"seed {seed}")
    torch.manual_seed(seed)


def identified(cases):
    return pytest.mark.parametrize("case", cases, ids=[case["id"] for case in cases])


# ---- GEMM ------------------------------------------------------------------------------------------------------------


def operands(case: dict, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    matrix = int8_matrix if dtype == torch.int8 else fp8_matrix
    return matrix(case["m"], case["k"]), matrix(case["n"], case["k"]).t()


def scales(case: dict, mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    m, n, k = case["m"], case["n"], case["k"]
    if mode == "blockwise":
        blocks = -(-k // 128)
        return torch.rand(m, blocks) + 0.1, torch.rand(blocks, -(-n // 128)) + 0.1
    sizes = {
        "tensorwise": ((), (1, 1)),
        "rowwise": ((m, 1), (1, n)),
        "mixed": ((m,), (1,)),
        "checkpoint": ((1,), (n, 1)),
    }
    shape_a, shape_b = sizes[mode]
    return torch.rand(shape_a) * 0.1 + 0.01, torch.rand(shape_b) * 0.1 + 0.01


def guarded_out(m: int, n: int, dtype: torch.dtype, gap: int) -> GuardedTensor:
    return GuardedTensor((m, n), dtype, (n + gap, 1))


@identified(GEMM_CASES)
@pytest.mark.parametrize(
    ("dtype", "mode"),
    [
        (torch.int8, "tensorwise"),
        (torch.int8, "rowwise"),
        (FP8, "mixed"),
        (FP8, "checkpoint"),
        (FP8, "blockwise"),
    ],
    ids=["int8-tensorwise", "int8-rowwise", "fp8-mixed", "fp8-checkpoint", "fp8-blockwise"],
)
def test_scaled_mm(case, dtype, mode):
    a, b = operands(case, dtype)
    scale_a, scale_b = scales(case, mode)
    for index, out_dtype in enumerate(OUT_DTYPES):
        bias = torch.randn(case["n"], dtype=out_dtype) if (index + case["n"]) % 2 else None
        expected = oracle.scaled_mm(a, b, scale_a, scale_b, bias, out_dtype)
        result = evergemm.scaled_mm(a, b, scale_a, scale_b, bias, out_dtype)
        assert same_bits(result, expected)
        assert result.is_contiguous()
        out = guarded_out(case["m"], case["n"], out_dtype, gap=index)
        assert evergemm.scaled_mm(a, b, scale_a, scale_b, bias, out=out.tensor) is out.tensor
        assert same_bits(out.tensor, expected)
        out.assert_intact()
        row = torch.ops.evergemm._scaled_mm_row(
            a, b, scale_a, scale_b, None, None, bias, out_dtype, True, False, REFERENCE_ROW
        )
        assert same_bits(row, expected)


@identified(GEMM_CASES)
@pytest.mark.parametrize("with_azp", [True, False], ids=["azp", "folded"])
def test_scaled_mm_azp(case, with_azp):
    a, b = operands(case, torch.int8)
    scale_a, scale_b = scales(case, "rowwise")
    azp_adj = b.to(torch.int32).sum(0, dtype=torch.int32)
    azp = torch.randint(-128, 128, (case["m"],), dtype=torch.int32) if with_azp else None
    for index, out_dtype in enumerate(OUT_DTYPES):
        bias = torch.randn(case["n"], dtype=out_dtype) if (index + case["k"]) % 2 else None
        expected = oracle.scaled_mm(a, b, scale_a, scale_b, bias, out_dtype, azp_adj, azp)
        result = evergemm.scaled_mm_azp(a, b, scale_a, scale_b, azp_adj, azp, bias, out_dtype)
        assert same_bits(result, expected)
        out = guarded_out(case["m"], case["n"], out_dtype, gap=3)
        evergemm.scaled_mm_azp(a, b, scale_a, scale_b, azp_adj, azp, bias, out=out.tensor)
        assert same_bits(out.tensor, expected)
        out.assert_intact()


def test_azp_wraps_in_int32():
    """Zero points whose correction leaves int32 wrap, as two's complement does."""
    a, b = int8_matrix(3, 8), int8_matrix(5, 8).t()
    azp_adj = torch.tensor([2**31 - 1, -(2**31), 7, -1, 12345], dtype=torch.int32)
    azp = torch.tensor([3, -128, 2**30], dtype=torch.int32)
    one = torch.ones(1)
    expected = oracle.scaled_mm(a, b, one, one, None, torch.float32, azp_adj, azp)
    assert same_bits(evergemm.scaled_mm_azp(a, b, one, one, azp_adj, azp, None, torch.float32), expected)


def test_int8_extremes_are_exact():
    k = 4096
    a = torch.full((4, k), -128, dtype=torch.int8)
    a[1] = 127
    a[2, ::2] = 127
    b = torch.full((3, k), -128, dtype=torch.int8)
    b[1] = 127
    b[2, 1::2] = 127
    one = torch.ones(1)
    expected = (a.to(torch.int64) @ b.to(torch.int64).t()).to(torch.float32)
    assert same_bits(evergemm.scaled_mm(a, b.t(), one, one, None, torch.float32), expected)


def strided(matrix: torch.Tensor, gap: int) -> torch.Tensor:
    """The same matrix with `gap` foreign elements after each row."""
    rows, columns = matrix.shape
    wide = torch.empty(rows, columns + gap, dtype=matrix.dtype)
    wide.view(torch.uint8).fill_(0x7F)
    wide[:, :columns] = matrix
    return wide[:, :columns]


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("gap", [1, 16, 77])
def test_real_strides_are_honoured(dtype, gap):
    case = {"m": 9, "n": 150, "k": 200}
    a, b = operands(case, dtype)
    mode = "rowwise" if dtype == torch.int8 else "blockwise"
    scale_a, scale_b = scales(case, mode)
    bias = torch.randn(case["n"], dtype=torch.float16)
    expected = oracle.scaled_mm(a, b, scale_a, scale_b, bias, torch.float16)
    spread_bias = torch.randn(case["n"], 3, dtype=torch.float16)
    spread_bias[:, 1] = bias
    result = evergemm.scaled_mm(
        strided(a, gap),
        strided(b.t(), gap).t(),
        strided(scale_a, gap) if mode == "rowwise" else scale_a.t().contiguous().t(),
        scale_b.t().contiguous().t() if mode == "blockwise" else strided(scale_b, gap),
        spread_bias[:, 1],
        torch.float16,
    )
    assert same_bits(result, expected)


def test_strides_of_dimensions_of_size_one_are_ignored():
    a, b = int8_matrix(1, 32), int8_matrix(1, 32).t()
    odd_a = a.as_strided((1, 32), (7, 1))
    odd_b = b.as_strided((32, 1), (1, 5))
    thin_a, thin_b = int8_matrix(4, 1).as_strided((4, 1), (1, 9)), int8_matrix(3, 1).t().as_strided((1, 3), (11, 1))
    one = torch.ones(1)
    for x, w in ((odd_a, odd_b), (thin_a, thin_b)):
        expected = (x.to(torch.int64) @ w.to(torch.int64)).float()
        assert same_bits(evergemm.scaled_mm(x, w, one, one, None, torch.float32), expected)


def test_accumulation_and_determinism_agree_on_the_cpu():
    a, b = operands({"m": 5, "n": 33, "k": 700}, FP8)
    scale_a, scale_b = torch.rand(5, 1), torch.rand(33)
    results = [
        evergemm.scaled_mm(a, b, scale_a, scale_b, fast_accumulation=fast, deterministic=deterministic)
        for fast in (True, False)
        for deterministic in (True, False)
    ]
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
def test_threads_change_no_bit(dtype):
    a, b = operands({"m": 70, "n": 530, "k": 390}, dtype)
    scale_a, scale_b = torch.rand(70, 1), torch.rand(530)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(evergemm.scaled_mm(a, b, scale_a, scale_b))
    finally:
        torch.set_num_threads(threads)
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@identified([case for case in GEMM_CASES if case["id"] in ("odd_larger", "m5", "k0", "m0")])
def test_every_row_of_this_processor(case, dtype):
    """Rows forced by _scaled_mm_row, not only those that the rules pick. Nothing to reject is an error too."""
    a, b = operands(case, dtype)
    scale_a, scale_b = scales(case, "rowwise")
    expected = oracle.scaled_mm(a, b, scale_a, scale_b, None, torch.float32)
    rows = evergemm._library.library.facts()["architectures"]["cpu"]["rows"]
    ran, refused = [], []
    for row, name in enumerate(rows):
        arguments = (a, b, scale_a, scale_b, None, None, None, torch.float32, True, False, row)
        try:
            result = torch.ops.evergemm._scaled_mm_row(*arguments)
        except RuntimeError as error:
            assert name in str(error)
            refused.append(name)
            continue
        assert same_bits(result, expected), name
        ran.append(name)
    assert "cpu_reference" in ran
    other = "fp8" if dtype == torch.int8 else "int8"
    if result.numel() > 0:
        assert any(other in name for name in refused)


# ---- quantizers ------------------------------------------------------------------------------------------------------


def samples(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows of very different magnitude, with exact ties, zeros and a row of zeros."""
    x = torch.randn(rows, columns) * (2.0 ** torch.randint(-6, 7, (rows, 1)))
    if rows > 2:
        x[1] = 0
    if columns > 3:
        x[:, 1] = 0
        x[-1:, :4] = torch.tensor([0.5, 1.5, -2.5, 127.0])
    return x.to(dtype)


def with_gap(x: torch.Tensor) -> torch.Tensor:
    wide = torch.full((x.shape[0], x.shape[1] + 5), 1e4, dtype=x.dtype)
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def check_quantizer(function, arguments: tuple, expected: tuple, spaced: bool = True) -> None:
    """Functional and out variant against `expected`, the out variant inside poison, q with a leading stride."""
    results = function(*arguments)
    single = isinstance(results, torch.Tensor)
    results = (results,) if single else results
    assert len(results) == len(expected)
    for result, wanted in zip(results, expected, strict=True):
        assert same_bits(result, wanted), (result, wanted)
    outs = []
    for index, wanted in enumerate(expected):
        strides = None
        if spaced and index == 0 and wanted.dim() == 2:
            strides = (wanted.shape[1] + 3, 1)
        elif spaced and wanted.dim() == 2:  # scales spread out in both directions
            strides = (2 * wanted.shape[1] + 1, 2)
        outs.append(GuardedTensor(wanted.shape, wanted.dtype, strides))
    tensors = tuple(out.tensor for out in outs)
    returned = function(*arguments, out=tensors[0] if single else tensors)
    assert returned is tensors[0] if single else returned is tensors
    for out, wanted in zip(outs, expected, strict=True):
        assert same_bits(out.tensor, wanted)
        out.assert_intact()


@identified(QUANTIZE_CASES)
@pytest.mark.parametrize("x_dtype", X_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
def test_quantizers(case, x_dtype, dtype):
    rows, columns = case["rows"], case["columns"]
    x = with_gap(samples(rows, columns, x_dtype))
    one_block = oracle.quantize_blocks(x, max(rows, 1), max(columns, 1), dtype)
    scale = one_block[1].reshape(-1) if x.numel() else torch.ones(1)
    check_quantizer(evergemm.quantize_per_tensor, (x, dtype), (one_block[0], scale))

    per_row = oracle.quantize_blocks(x, 1, max(columns, 1), dtype)
    row_scale = per_row[1] if columns else torch.ones(rows, 1)
    check_quantizer(evergemm.quantize_per_token, (x, dtype), (per_row[0], row_scale))

    group_rows, group_columns = case["group_rows"], case["group_columns"]
    groups = oracle.quantize_blocks(x, 1, group_columns, dtype)
    check_quantizer(evergemm.quantize_per_group, (x, group_columns, dtype), groups)
    powers = oracle.quantize_blocks(x, 1, group_columns, dtype, power_of_two=True)
    check_quantizer(evergemm.quantize_per_group, (x, group_columns, dtype, False, True), powers)
    blocks = oracle.quantize_blocks(x, group_rows, group_columns, dtype)
    check_quantizer(evergemm.quantize_per_block, (x, group_rows, group_columns, dtype), blocks)


@identified(QUANTIZE_CASES)
def test_quantize_per_token_asymmetric(case):
    x = samples(case["rows"], case["columns"], torch.bfloat16) + 1
    check_quantizer(evergemm.quantize_per_token_asymmetric, (x,), oracle.quantize_asymmetric(x))


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize(
    ("shape", "block"),
    [((), None), ((1, 1), None), ((9,), (1, None)), ((9, 1), (1, None)), ((9, 3), (1, 128)), ((1, 3), (128, 128))],
    ids=str,
)
def test_quantize_static(dtype, shape, block):
    x = with_gap(samples(9, 300, torch.float16))
    scale = torch.rand(shape) + 0.05
    rows, columns = (9, 300) if block is None else (block[0], block[1] or 300)
    grid = scale.reshape(-(-9 // rows), -(-300 // columns))
    check_quantizer(evergemm.quantize_static, (x, scale, dtype), (oracle.quantize_with(x, grid, rows, columns, dtype),))


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
def test_quantize_per_token_bound(dtype):
    x = samples(7, 65, torch.float32)
    for bound in (0.25, 1e9):
        expected = oracle.quantize_blocks(x, 1, 65, dtype, bound=bound)
        check_quantizer(evergemm.quantize_per_token, (x, dtype, torch.tensor(bound)), expected)


def test_column_major_scales():
    x = samples(7, 300, torch.bfloat16)
    q, scale = evergemm.quantize_per_group(x, 128, FP8, column_major_scales=True)
    expected = oracle.quantize_blocks(x, 1, 128, FP8)
    assert scale.stride() == (1, 7)
    assert same_bits(q, expected[0]) and same_bits(scale, expected[1])


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
def test_not_finite_stays_in_its_row(dtype):
    x = samples(5, 40, torch.float32)
    x[0, 3], x[1, 5], x[2, 7] = float("nan"), float("inf"), float("-inf")
    q, scale = evergemm.quantize_per_token(x, dtype)
    expected = oracle.quantize_blocks(x, 1, 40, dtype)
    assert same_bits(scale, expected[1])
    assert scale[0].isnan() and scale[1:].isfinite().all()
    assert same_bits(q[1:], expected[0][1:])
    assert same_bits(q[3:], evergemm.quantize_per_token(x[3:], dtype)[0])


def test_leading_dimensions_are_rows():
    x = samples(12, 96, torch.bfloat16)
    for function, arguments in (
        (evergemm.quantize_per_tensor, (FP8,)),
        (evergemm.quantize_per_token, (FP8,)),
        (evergemm.quantize_per_token_asymmetric, ()),
        (evergemm.quantize_per_group, (32,)),
        (evergemm.activate_and_quantize, ()),
    ):
        flat = function(x, *arguments)
        deep = function(x.reshape(3, 2, 2, 96), *arguments)
        for one, other in zip(flat, deep, strict=True):
            assert one.numel() == other.numel() and same_bits(one.reshape(-1), other.reshape(-1))
            assert other.shape[:-1] == (3, 2, 2) or other.numel() == 1
    vector = evergemm.quantize_per_token(x[0], torch.int8)
    assert vector[0].shape == (96,) and vector[1].shape == (1,)


def check_fused(q: torch.Tensor, scale: torch.Tensor, exact: torch.Tensor, group: int) -> None:
    """fp32 arithmetic against float64: the scale to 2^-18, each value to half a step of q (fp8: of its own binade)
    and as much again as fp32 may move it."""
    columns = exact.shape[1]
    group = group or columns
    spread = scale.double().repeat_interleave(group, 1)[:, :columns]
    absmax = torch.stack([part.abs().amax(1) for part in exact.split(group, 1)], 1)
    q_max = oracle.Q_MAX[q.dtype]
    wanted = torch.where(absmax == 0, torch.ones_like(absmax), absmax / q_max)
    assert ((scale.double() / wanted - 1).abs() <= 2**-18).all()
    units = exact / spread
    slack = 2**-16 * units.abs() + 2**-20 * q_max
    if q.dtype == torch.int8:
        step = torch.full_like(units, 0.5)
    else:
        binade = torch.floor(torch.log2(units.abs().clamp(min=2**-6)))
        step = 2 ** (binade - 4)
    assert ((q.double() - units).abs() <= step + slack).all()


@pytest.mark.parametrize("x_dtype", X_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu_squared"])
@pytest.mark.parametrize("group", [0, 48])
def test_activate_and_quantize(x_dtype, dtype, gated, activation, group):
    x = with_gap((torch.randn(6, 260) * 3).to(x_dtype))
    q, scale = evergemm.activate_and_quantize(x, activation, gated, group, dtype)
    index = ("silu", "gelu", "relu_squared").index(activation)
    check_fused(q, scale, oracle.activated(x, index, gated), group)
    check_quantizer(evergemm.activate_and_quantize, (x, activation, gated, group, dtype), (q, scale))


@pytest.mark.parametrize("x_dtype", X_DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("group", [0, 100])
def test_rms_norm_quantize(x_dtype, dtype, with_residual, group):
    x = with_gap(torch.randn(5, 264).to(x_dtype))
    weight = (torch.rand(264) + 0.5).to(x_dtype)
    before = torch.randn(5, 264).to(x_dtype)
    exact, total = oracle.normalized(x, weight, 1e-5, before if with_residual else None)
    residual = None
    if with_residual:
        guarded = GuardedTensor((5, 264), x_dtype, (270, 1))
        residual = guarded.tensor
        residual.copy_(before)
    q, scale = evergemm.rms_norm_quantize(x, weight, 1e-5, group, dtype, residual)
    check_fused(q, scale, exact, group)
    if with_residual:
        assert same_bits(residual, total)
        guarded.assert_intact()
        residual.copy_(before)
    outs = [GuardedTensor(q.shape, q.dtype, (q.shape[1] + 3, 1)), GuardedTensor(scale.shape, scale.dtype)]
    evergemm.rms_norm_quantize(x, weight, 1e-5, group, dtype, residual, out=(outs[0].tensor, outs[1].tensor))
    assert same_bits(outs[0].tensor, q) and same_bits(outs[1].tensor, scale)
    assert residual is None or same_bits(residual, total)
    for out in outs:
        out.assert_intact()


def test_out_must_have_the_dtype_that_is_asked_for():
    x = samples(3, 16, torch.float32)
    out = (torch.empty(3, 16, dtype=FP8), torch.empty(3, 1))
    with pytest.raises(RuntimeError) as caught:
        evergemm.quantize_per_token(x, torch.int8, out=out)
    assert str(caught.value) == (
        "quantize_per_token: expected out of the dtype that was asked for (torch.int8); got torch.float8_e4m3fn; "
        "fix: allocate out as torch.int8, or ask for torch.float8_e4m3fn."
    )


# ---- what holds for every operator ---------------------------------------------------------------------------------


def results_of(call, arguments: dict) -> list[torch.Tensor]:
    returned = call.run(arguments)
    returned = [] if returned is None else [returned] if isinstance(returned, torch.Tensor) else list(returned)
    return returned + [arguments[name] for name in call.written]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_repeats_and_leaves_its_inputs_alone(call):
    first, second = call.make(), None
    second = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in first.items()}
    # clone() makes non-dense tensors dense, so give it the original's layout
    for name, value in first.items():
        if isinstance(value, torch.Tensor) and value.stride() != second[name].stride():
            second[name] = value
    kept = {name: value.clone() for name, value in first.items() if isinstance(value, torch.Tensor)}
    results = [result.clone() for result in results_of(call, first)]
    for name, value in kept.items():
        if name not in call.written:
            assert same_bits(first[name], value), name
    if "residual" not in call.written:
        again = results_of(call, second)
        assert all(same_bits(one, other) for one, other in zip(results, again, strict=True))
    assert results and not any(result.requires_grad for result in results)


def has_floats(call) -> bool:
    return any(isinstance(v, torch.Tensor) and v.is_floating_point() for v in call.make().values())


@pytest.mark.parametrize("call", [call for call in CALLS if has_floats(call)], ids=lambda call: call.name)
def test_tensors_that_require_grad_are_refused(call):
    """Leaves and results of a graph alike, each argument by its name; welcome without grad mode."""
    arguments = call.make()
    floating = [name for name, v in arguments.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    assert floating
    for name in floating:
        leaf = arguments[name].detach().as_strided(arguments[name].shape, arguments[name].stride()).requires_grad_()
        graph_result = leaf.as_strided(leaf.shape, leaf.stride())
        for value in (leaf, graph_result):
            with pytest.raises(RuntimeError) as caught:
                call.run({**arguments, name: value})
            assert str(caught.value) == (
                f"{call.name.partition('.')[0]}: expected tensors without gradients (inference only); "
                f"got {name} that requires grad; fix: call it under torch.no_grad(), or pass {name}.detach()."
            )
            with torch.no_grad():
                call.run({**arguments, name: value})
    with torch.inference_mode():
        call.run()


def test_copy_on_write_outputs_are_copied():
    original = torch.zeros(2, 3)
    clone = torch._lazy_clone(original)
    a, b, one = int8_matrix(2, 8), int8_matrix(3, 8).t(), torch.ones(1)
    evergemm.scaled_mm(a, b, one, one, out=clone)
    assert same_bits(clone, (a.int() @ b.int()).float())
    assert original.eq(0).all()


def test_negated_and_permuted_views():
    """A lazily negated scale is negated; a permutation out of range writes zeros."""
    a, b = int8_matrix(4, 32), int8_matrix(5, 32).t()
    scale = torch.rand(4, 1)
    negated = torch._neg_view(scale)
    assert same_bits(evergemm.scaled_mm(a, b, negated, torch.ones(1)), evergemm.scaled_mm(a, b, -scale, torch.ones(1)))
    x = torch.randn(3, 2, 6, dtype=torch.float16)
    perm = torch.tensor([5, 0, -1, 3, 6, 2], dtype=torch.int32)
    expected = x[..., perm.clamp(0, 5).long()].clone()
    expected[..., [2, 4]] = 0
    assert same_bits(evergemm.permute_cols(x, perm), expected)


@pytest.mark.parametrize("scheme", ["int8", "int8_tensor", "int8_static", "int8_azp", "fp8", "fp8_static", "fp8_block"])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("sizes", "n"), [((1, 16), 16), ((2, 3, 300), 130), ((200,), 5), ((0, 40), 7), ((4, 0), 3)])
def test_quantized_linear_is_its_two_steps(scheme, x_dtype, sizes, n):
    """Bit for bit what the quantizer and scaled_mm give."""
    k = sizes[-1]
    x, bias = torch.randn(sizes).to(x_dtype), torch.randn(n).to(x_dtype)
    dtype = torch.int8 if scheme.startswith("int8") else FP8
    weight = torch.randint(-128, 128, (n, k)).to(torch.int8) if dtype == torch.int8 else torch.randn(n, k).to(FP8)
    scale = torch.rand(1 if scheme == "int8_tensor" else n) + 0.1
    rows = x.view(-1, k) if k else x
    if scheme == "int8_azp":
        adjustment = weight.sum(1, dtype=torch.int32)
        q, scale_x, azp = evergemm.quantize_per_token_asymmetric(rows)
        expected = evergemm.scaled_mm_azp(q, weight.t(), scale_x, scale, adjustment, azp, bias, x_dtype)
        got = evergemm.quantized_linear(x, weight, scale, None, adjustment, bias)
    elif scheme.endswith("_static"):
        scale_x = torch.tensor([0.01])
        q = evergemm.quantize_static(rows, scale_x, dtype)
        expected = evergemm.scaled_mm(q, weight.t(), scale_x, scale, bias, x_dtype)
        got = evergemm.quantized_linear(x, weight, scale, scale_x, None, bias)
    elif scheme == "fp8_block" and -(-n // 128) * -(-k // 128) != 1:
        scale = torch.rand(-(-n // 128), -(-k // 128)) + 0.1
        q, scale_x = evergemm.quantize_per_group(rows, 128, dtype)
        expected = evergemm.scaled_mm(q, weight.t(), scale_x, scale.t(), bias, x_dtype)
        got = evergemm.quantized_linear(x, weight, scale, None, None, bias)
    else:
        q, scale_x = evergemm.quantize_per_token(rows, dtype)
        expected = evergemm.scaled_mm(q, weight.t(), scale_x, scale, bias, x_dtype)
        got = evergemm.quantized_linear(x, weight, scale, None, None, bias)
        promoted = evergemm.quantized_linear(
            x, weight, scale, None, None, bias, fast_accumulation=False, deterministic=True
        )
        wanted = evergemm.scaled_mm(
            q, weight.t(), scale_x, scale, bias, x_dtype, fast_accumulation=False, deterministic=True
        )
        assert torch.equal(promoted, wanted.view(promoted.shape))
    assert got.shape == (*sizes[:-1], n) and got.dtype == x_dtype
    assert torch.equal(got, expected.view(got.shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int16], ids=str)
@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (1, 1), (5, 7), (2, 3, 64), (129, 33)], ids=str)
def test_permute_cols(dtype, shape):
    x = torch.randint(-1000, 1000, shape).to(dtype)
    perm = torch.randperm(shape[-1]).to(torch.int32)
    assert same_bits(evergemm.permute_cols(x, perm), x[..., perm.long()])
    spread = torch.zeros(shape[-1], 2, dtype=torch.int32)
    spread[:, 0] = perm
    assert same_bits(evergemm.permute_cols(x, spread[:, 0]), x[..., perm.long()])


def test_calls_cover_every_operator():
    schemas = evergemm._library.library.schemas()
    assert {schema.partition("(")[0] for schema, tensors in schemas if tensors} == set(BY_NAME)
