# SPDX-License-Identifier: Apache-2.0
"""The drop-in operators against an independent writing of their semantics (oracle.py), in every form that their callers use,
and compat.vllm: its functions, and install() with vLLM, with a broken one, and without."""

from __future__ import annotations

import inspect
import os
import pathlib
import subprocess
import sys
import textwrap

import evergemm
import oracle
import pytest
import torch
from evergemm.compat import vllm
from guarded_tensor import GuardedTensor, same_bits
from operator_calls import FP8, fp8_matrix, int8_matrix

OPS = torch.ops.evergemm
PACKAGE_FOLDER = str(pathlib.Path(evergemm.__file__).parents[1])


@pytest.fixture(autouse=True)
def seeded(request):
    seed = sum(map(ord, request.node.name))
    print(f"seed {seed}")
    torch.manual_seed(seed)


# ---- cutlass_scaled_mm -----------------------------------------------------------------------------------------------

M, N, K = 10, 144, 272


def shaped(values: torch.Tensor, form: str) -> torch.Tensor:
    """The same values in a form that callers pass."""
    n = values.numel()
    if form == "wide":  # strides of dimensions of size 1 that mean nothing
        return values.as_strided((n, 1), (1, 77))
    if form == "spread":
        spread = torch.full((n, 3), 1e9)
        spread[:, 0] = values
        return spread[:, :1]
    return values.reshape({"[]": (), "[1]": (1,), "[1,1]": (1, 1), "[r]": (n,), "[r,1]": (n, 1), "[1,r]": (1, n)}[form])


ONE = ("[]", "[1]", "[1,1]")
MANY = ("[r]", "[r,1]", "[1,r]", "wide", "spread")


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("form_a", ONE + MANY)
@pytest.mark.parametrize("form_b", ONE + MANY)
def test_scales_are_judged_by_numel(dtype, form_a, form_b):
    matrix = int8_matrix if dtype == torch.int8 else fp8_matrix
    a, b = matrix(M, K), matrix(N, K).t()
    values_a = torch.randn(M if form_a in MANY else 1)  # negative ones too
    values_b = torch.randn(N if form_b in MANY else 1)
    for out_dtype, bias_shape in ((torch.bfloat16, None), (torch.float16, (N,)), (torch.bfloat16, (1, N))):
        bias = None if bias_shape is None else torch.randn(bias_shape, dtype=out_dtype)
        expected = oracle.scaled_mm(a, b, values_a, values_b, bias, out_dtype)
        out = GuardedTensor((M, N), out_dtype, (N + 8, 1))
        assert OPS.cutlass_scaled_mm(out.tensor, a, b, shaped(values_a, form_a), shaped(values_b, form_b), bias) is None
        assert same_bits(out.tensor, expected)
        out.assert_intact()


@pytest.mark.parametrize("m_major", [True, False], ids=["m-major", "row-major"])
@pytest.mark.parametrize("transposed_b", [True, False], ids=["transposed", "plain"])
def test_block_scales_in_any_layout(m_major, transposed_b):
    a, b = fp8_matrix(M, K), fp8_matrix(N, K).t()
    scale_a, scale_b = torch.rand(M, 3) - 0.3, torch.rand(3, 2) - 0.3
    bias = torch.randn(N, dtype=torch.bfloat16)
    expected = oracle.scaled_mm(a, b, scale_a, scale_b, bias, torch.bfloat16)
    if m_major:
        scale_a = scale_a.t().contiguous().t()
        assert scale_a.stride() == (1, M)
    if transposed_b:
        scale_b = scale_b.t().contiguous().t()
    out = GuardedTensor((M, N), torch.bfloat16)
    OPS.cutlass_scaled_mm(out.tensor, a, b, scale_a, scale_b, bias)
    assert same_bits(out.tensor, expected)
    out.assert_intact()


@pytest.mark.parametrize("azp_shape", [None, (M,), (M, 1), (1, M)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("adj_shape", [(N,), (1, N), (N, 1)], ids=str)
def test_azp(azp_shape, with_bias, adj_shape):
    a, b = int8_matrix(M, K), int8_matrix(N, K).t()
    scale_a, scale_b = torch.rand(M, 1), torch.rand(N, 1)
    azp_adj = b.int().sum(0, dtype=torch.int32)
    azp = None if azp_shape is None else torch.randint(-128, 128, azp_shape, dtype=torch.int32)
    bias = torch.randn(1, N, dtype=torch.float16) if with_bias else None
    expected = oracle.scaled_mm(a, b, scale_a, scale_b, bias, torch.float16, azp_adj, azp)
    out = GuardedTensor((M, N), torch.float16, (N + 1, 1))
    OPS.cutlass_scaled_mm_azp(out.tensor, a, b, scale_a, scale_b, azp_adj.reshape(adj_shape), azp, bias)
    assert same_bits(out.tensor, expected)
    out.assert_intact()


def test_azp_without_bias_adds_positive_zero():
    """Zero times a negative scale is -0 without zero points, +0 with them."""
    a, b = torch.zeros(1, 4, dtype=torch.int8), torch.zeros(1, 4, dtype=torch.int8).t()
    minus, zero = torch.tensor([-1.0]), torch.zeros(1, dtype=torch.int32)
    out = torch.empty(1, 1, dtype=torch.bfloat16)
    OPS.cutlass_scaled_mm(out, a, b, minus, torch.ones(1), None)
    assert out.signbit().all()
    OPS.cutlass_scaled_mm_azp(out, a, b, minus, torch.ones(1), zero, None, None)
    assert not out.signbit().any()


# ---- queries ---------------------------------------------------------------------------------------------------------


def test_capability_queries():
    """True only inside the predecessor's range and where this binary has the architecture."""
    built = {name for name, facts in evergemm._library.library.facts()["architectures"].items() if facts["built"]}
    # a GPU runs its own code or that of an earlier member of its generation; beyond the last one, PTX, which only a build of
    # all architectures has
    later = {87: "sm86", 88: "sm86", 101: "sm100", 109: "sm103", 119: "sm110", 129: "sm121"}
    if len(built) == len(evergemm._library.library.facts()["architectures"]):
        later |= {130: "sm120", 2**62: "sm120"}
    known = (-1, 0, 70, 74, 75, 80, 86, 89, 90, 91, 99, 100, 103, 110, 120, 121, 130, 2**62)
    for capability in (*known, *later):
        here = bool({f"sm{capability}", f"sm{capability}a", later.get(capability)} & built)
        assert OPS.cutlass_scaled_mm_supports_fp8(capability) is (here and capability >= 89)
        assert OPS.cutlass_scaled_mm_supports_block_fp8(capability) is (here and capability >= 90)
        assert OPS.cutlass_group_gemm_supported(capability) is (here and 90 <= capability <= 119)
        assert vllm.cutlass_scaled_mm_supports_fp8(capability) is (here and capability >= 89)
        assert vllm.cutlass_scaled_mm_supports_block_fp8(capability) is (here and capability >= 90)
        assert vllm.cutlass_group_gemm_supported(capability) is (here and 90 <= capability <= 119)


# ---- per_token_group_* -----------------------------------------------------------------------------------------------

EPS = 1e-10


def group_samples(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    x = (torch.randn(rows, columns) * 2.0 ** torch.randint(-8, 9, (rows, 1))).to(dtype)
    if rows > 4:
        x[0] = 0  # a group of zeros: eps / q_max
        x[1, 3] = float("nan")
        x[2, 5] = float("inf")
        x[3, 7] = float("-inf")
        x[4] = float("nan")
    return x


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("power_of_two", [False, True], ids=["plain", "ue8m0"])
@pytest.mark.parametrize("column_major", [False, True], ids=["row-major", "column-major"])
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(9, 256, 128), (1, 64, 64), (7, 96, 32), (5, 9, 3), (0, 128, 128)]
)
def test_per_token_group_fp8_quant(x_dtype, power_of_two, column_major, rows, columns, group):
    x = group_samples(rows, columns, x_dtype)
    q, scale = oracle.dropin_group(x, group, EPS, -448.0, 448.0, FP8, power_of_two)
    groups = columns // group
    out_q = GuardedTensor((rows, columns), FP8)
    out_s = GuardedTensor((rows, groups), torch.float32, (1, max(rows, 1) + 3) if column_major else (groups, 1))
    flags = (power_of_two, column_major, False)
    OPS.per_token_group_fp8_quant(x, out_q.tensor, out_s.tensor, group, EPS, -448.0, 448.0, *flags)
    assert same_bits(out_s.tensor, scale)
    assert same_bits(out_q.tensor, q)
    out_q.assert_intact()
    out_s.assert_intact()


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(9, 256, 128), (1, 64, 64), (7, 96, 32), (5, 9, 3), (0, 128, 128)]
)
def test_per_token_group_quant_int8(x_dtype, rows, columns, group):
    x = group_samples(rows, columns, x_dtype)
    q, scale = oracle.dropin_group(x, group, EPS, -128.0, 127.0, torch.int8)
    out_q, out_s = GuardedTensor((rows, columns), torch.int8), GuardedTensor((rows, columns // group), torch.float32)
    OPS.per_token_group_quant_int8(x, out_q.tensor, out_s.tensor, group, EPS, -128.0, 127.0)
    assert same_bits(out_s.tensor, scale)
    assert same_bits(out_q.tensor, q)
    out_q.assert_intact()
    out_s.assert_intact()


def test_special_values_of_group_quantizers():
    """The stated ones by hand: zero group, NaN to q_min, inf to the limit of its sign, truncation toward zero."""
    x = torch.zeros(4, 4)
    x[1] = torch.tensor([float("nan"), 1.0, -1.0, 0.5])
    x[2] = torch.tensor([float("inf"), 3.0, -3.0, float("-inf")])
    x[3] = torch.tensor([127.0, 1.999, -1.999, -127.0])
    q, s = torch.empty(4, 4, dtype=torch.int8), torch.empty(4, 1)
    OPS.per_token_group_quant_int8(x, q, s, 4, EPS, -128.0, 127.0)
    assert s.flatten().tolist() == [float(torch.tensor(EPS) / 127), float(torch.tensor(1.0) / 127), float("inf"), 1.0]
    assert q.tolist() == [[0, 0, 0, 0], [-128, 127, -127, 63], [127, 0, 0, -128], [127, 1, -1, -127]]


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "group"), [(9, 1024, 128), (8, 512, 128), (1, 128, 128), (6, 640, 128), (5, 60, 12), (3, 28, 4)]
)
@pytest.mark.parametrize("extra_rows", [0, 5])
def test_per_token_group_fp8_quant_packed(x_dtype, rows, columns, group, extra_rows):
    x = group_samples(rows, columns, x_dtype)
    groups = columns // group
    words, aligned = -(-groups // 4), -(-rows // 4) * 4
    q, scale = oracle.dropin_group(x, group, EPS, -448.0, 448.0, FP8, power_of_two=True)
    plain = oracle.dropin_group(x, group, EPS, -448.0, 448.0, FP8)[1]
    exponents = torch.zeros(rows, words * 4, dtype=torch.int64)
    exponents[:, :groups] = torch.from_numpy(oracle.dropin_exponents(plain.numpy()))
    shifts = torch.tensor([0, 8, 16, 24])
    packed = (exponents.reshape(rows, words, 4) << shifts).sum(2).to(torch.int32)

    out_q = GuardedTensor((rows + extra_rows, columns), FP8)
    # Storage ends at rows + (words - 1) * aligned words: the poison begins right there.
    out_s = GuardedTensor((rows, words), torch.int32, (1, aligned))
    OPS.per_token_group_fp8_quant_packed(x, out_q.tensor, out_s.tensor, group, EPS, -448.0, 448.0)
    assert same_bits(out_s.tensor, packed)
    assert same_bits(out_q.tensor[:rows], q)
    assert out_q.tensor[rows:].view(torch.uint8).eq(0).all()
    out_q.assert_intact()
    # Words of the rows that pad a column are 0 in every column but the last, which has none.
    span = (words - 1) * aligned + rows
    memory = out_s.tensor.as_strided((span,), (1,))
    for column in range(words - 1):
        assert memory[column * aligned + rows : (column + 1) * aligned].eq(0).all()
    padded = GuardedTensor((span,), torch.int32)
    window = padded.tensor.as_strided((rows, words), (1, aligned))
    OPS.per_token_group_fp8_quant_packed(x, out_q.tensor, window, group, EPS, -448.0, 448.0)
    padded.assert_intact()


@pytest.mark.parametrize("shape", [(2, 3, 256), (256,), (2, 2, 2, 128)], ids=str)
def test_group_quantizers_take_any_rank(shape):
    x = torch.randn(shape, dtype=torch.bfloat16)
    flat = x.reshape(-1, shape[-1])
    expected = oracle.dropin_group(flat, 128, EPS, -448.0, 448.0, FP8)
    q, s = torch.empty(shape, dtype=FP8), torch.empty(*shape[:-1], shape[-1] // 128)
    OPS.per_token_group_fp8_quant(x, q, s, 128, EPS, -448.0, 448.0, False, False, False)
    assert same_bits(q.reshape(flat.shape), expected[0]) and same_bits(s.reshape(expected[1].shape), expected[1])


# ---- compat.vllm: functions ------------------------------------------------------------------------------------------


def test_functions_have_vllms_positions_and_defaults():
    signatures = {
        "cutlass_scaled_mm": "a b scale_a scale_b out_dtype bias=None",
        "cutlass_scaled_mm_azp": "a b scale_a scale_b out_dtype azp_adj azp=None bias=None",
        "cutlass_scaled_mm_supports_fp8": "cuda_device_capability",
        "cutlass_scaled_mm_supports_block_fp8": "cuda_device_capability",
        "cutlass_group_gemm_supported": "cuda_device_capability",
        "permute_cols": "a perm",
        "scaled_fp8_quant": "input scale=None num_token_padding=None scale_ub=None use_per_token_if_dynamic=False "
        "output=None group_shape=None",
        "scaled_int8_quant": "input scale=None azp=None symmetric=True",
        "cutlass_moe_mm": "out_tensors a_tensors b_tensors a_scales b_scales expert_offsets problem_sizes a_strides "
        "b_strides c_strides per_act_token per_out_ch",
        "get_cutlass_moe_mm_data": "topk_ids expert_offsets problem_sizes1 problem_sizes2 input_permutation "
        "output_permutation num_experts n k blockscale_offsets=None is_gated=True",
        "get_cutlass_moe_mm_problem_sizes_from_expert_offsets": "expert_first_token_offset problem_sizes1 "
        "problem_sizes2 n k swap_ab",
        "get_cutlass_batched_moe_mm_data": "expert_offsets problem_sizes1 problem_sizes2 expert_num_tokens "
        "num_local_experts padded_m n k",
    }
    for name, wanted in signatures.items():
        parameters = inspect.signature(getattr(vllm, name)).parameters.values()
        found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters]
        assert " ".join(found) == wanted, name


def test_functions_multiply():
    a, b = int8_matrix(6, K).reshape(2, 3, K), int8_matrix(N, K).t()
    scale_a, scale_b = torch.rand(6, 1), torch.rand(N)
    bias = torch.randn(N, dtype=torch.bfloat16)
    expected = oracle.scaled_mm(a.reshape(6, K), b, scale_a, scale_b, bias, torch.bfloat16)
    result = vllm.cutlass_scaled_mm(a, b, scale_a, scale_b, torch.bfloat16, bias)
    assert result.shape == (2, 3, N) and same_bits(result.reshape(6, N), expected)
    azp_adj, azp = b.int().sum(0, dtype=torch.int32), torch.arange(6, dtype=torch.int32)
    expected = oracle.scaled_mm(a.reshape(6, K), b, scale_a, scale_b, bias, torch.bfloat16, azp_adj, azp)
    result = vllm.cutlass_scaled_mm_azp(a, b, scale_a, scale_b, torch.bfloat16, azp_adj, azp, bias)
    assert result.shape == (2, 3, N) and same_bits(result.reshape(6, N), expected)
    x = torch.randn(4, 32, dtype=torch.float16)
    perm = torch.randperm(32).to(torch.int32)
    assert same_bits(vllm.permute_cols(x, perm), x[:, perm.long()])


def test_scaled_fp8_quant():
    x = torch.randn(5, 256, dtype=torch.bfloat16)
    per_tensor = oracle.quantize_blocks(x, 5, 256, FP8)
    q, scale = vllm.scaled_fp8_quant(x)
    assert same_bits(q, per_tensor[0]) and scale.shape == (1,) and same_bits(scale, per_tensor[1].reshape(1))
    per_token = oracle.quantize_blocks(x, 1, 256, FP8, bound=0.5)
    q, scale = vllm.scaled_fp8_quant(x, None, 8, torch.tensor(0.5), use_per_token_if_dynamic=True)
    assert q.shape == (8, 256) and scale.shape == (8, 1)
    assert same_bits(q[:5], per_token[0]) and same_bits(scale[:5], per_token[1])
    assert q[5:].view(torch.uint8).eq(0).all() and scale[5:].eq(1).all()
    given = torch.tensor([0.02])
    wanted = oracle.quantize_with(x, given.reshape(1, 1), 5, 256, FP8)
    output = torch.empty(5, 256, dtype=FP8)
    q, scale = vllm.scaled_fp8_quant(x, given, output=output)
    assert q is output and scale is given and same_bits(q, wanted)
    rows = torch.rand(5) + 0.01
    wanted = oracle.quantize_with(x, rows.reshape(5, 1), 1, 256, FP8)
    assert same_bits(vllm.scaled_fp8_quant(x, rows, group_shape=(1, -1))[0], wanted)
    assert same_bits(vllm.scaled_fp8_quant(x, rows.reshape(5, 1))[0], wanted)
    blocks = torch.rand(5, 2) + 0.01
    wanted = oracle.quantize_with(x, blocks, 1, 128, FP8)
    assert same_bits(vllm.scaled_fp8_quant(x, blocks)[0], wanted)
    assert same_bits(vllm.scaled_fp8_quant(x, blocks, group_shape=(1, 128))[0], wanted)
    for arguments, text in (
        (
            {"scale": rows},
            "expected group_shape with a scale of rank 1; got None; fix: pass (1, -1) for one scale a row.",
        ),
        (
            {"scale": torch.rand(256), "group_shape": (-1, 1)},
            "expected groups of the whole tensor, a row, 1 x 128 or 128 x 128; got groups of 5 x 1; "
            "fix: quantize with one of these, or keep vLLM's operator.",
        ),
        (
            {"output": output, "num_token_padding": 8},
            "expected output or num_token_padding; got both; fix: pass one of them.",
        ),
    ):
        with pytest.raises(RuntimeError) as caught:
            vllm.scaled_fp8_quant(x, **arguments)
        assert str(caught.value) == f"scaled_fp8_quant: {text}"


def test_scaled_int8_quant():
    x = torch.randn(2, 3, 64, dtype=torch.float16)
    flat = x.reshape(6, 64)
    q, scale, azp = vllm.scaled_int8_quant(x)
    expected = oracle.quantize_blocks(flat, 1, 64, torch.int8)
    assert q.shape == x.shape and azp is None
    assert same_bits(q.reshape(6, 64), expected[0]) and same_bits(scale, expected[1])
    q, scale, azp = vllm.scaled_int8_quant(x, symmetric=False)
    for result, wanted in zip((q.reshape(6, 64), scale, azp), oracle.quantize_asymmetric(flat), strict=True):
        assert same_bits(result, wanted)
    given, zero = torch.tensor([0.03]), torch.tensor([-7], dtype=torch.int32)
    q, scale, azp = vllm.scaled_int8_quant(x, given)
    assert scale is given and azp is None
    assert same_bits(q.reshape(6, 64), oracle.quantize_with(flat, given.reshape(1, 1), 6, 64, torch.int8))
    q, scale, azp = vllm.scaled_int8_quant(x, given, zero, symmetric=False)
    assert azp is zero and same_bits(q, (torch.round(x.float() / 0.03) - 7).clamp(-128, 127).to(torch.int8))
    with pytest.raises(RuntimeError, match="scaled_int8_quant: expected azp exactly where symmetric is False"):
        vllm.scaled_int8_quant(x, given, zero)


# ---- compat.vllm.install(), each in a process of its own -------------------------------------------------------------

CHILD = """
import sys, torch
sys.path.insert(0, {package!r})
import evergemm
from evergemm.compat import vllm
def multiplies():
    a = torch.ones(2, 16, dtype=torch.int8)
    out = torch.empty(2, 2, dtype=torch.bfloat16)
    torch.ops._C.cutlass_scaled_mm(out, a, a.t(), torch.ones(1), torch.ones(1), None)
    assert out.eq(16).all()
"""


def child(code: str, *folders: pathlib.Path) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", CHILD.format(package=PACKAGE_FOLDER) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])},
        timeout=300,
    )
    assert finished.returncode == 0, f"exit {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout.strip()


def fake_vllm(folder: pathlib.Path, extension: str) -> pathlib.Path:
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "_C_stable_libtorch.py").write_text(textwrap.dedent(extension))
    return folder


def test_install_without_vllm():
    child(
        """
        first = vllm.install()
        assert first == vllm.install() == vllm.Installation(vllm.OPERATORS, ())
        multiplies()
        for name in vllm.OPERATORS:
            ours = str(torch._C._get_schema(f"evergemm::{name}", "")).replace("evergemm::", "_C::")
            assert str(torch._C._get_schema(f"_C::{name}", "")) == ours
        assert torch.ops._C.cutlass_scaled_mm_supports_fp8(0) is False
        x = torch.randn(3, 8, dtype=torch.float16)
        perm = torch.arange(7, -1, -1, dtype=torch.int32)
        compiled = torch.compile(torch.ops._C.permute_cols, fullgraph=True, backend="aot_eager")
        assert compiled(x, perm).equal(x.flip(1))
        try:
            torch.ops._C.permute_cols(x.float(), perm)
        except RuntimeError as error:
            assert str(error).startswith("permute_cols: expected A of dtype")
        else:
            raise SystemExit("accepted")
        """
    )


def test_install_defines_only_what_vllm_lacks(tmp_path):
    extension = """
    import torch
    library = torch.library.Library("_C", "DEF")
    library.define("permute_cols(Tensor A, Tensor perm) -> Tensor")
    library.impl("permute_cols", lambda a, perm: a + 1, "CPU")
    """
    child(
        """
        installed = vllm.install()
        assert installed.kept == ("permute_cols",), installed
        assert set(installed.registered) == set(vllm.OPERATORS) - {"permute_cols"}
        multiplies()
        x = torch.zeros(2, 2, dtype=torch.float16)
        assert torch.ops._C.permute_cols(x, torch.zeros(2, dtype=torch.int32)).eq(1).all()
        assert vllm.permute_cols(x, torch.zeros(2, dtype=torch.int32)).eq(0).all()
        assert not torch._C._dispatch_has_kernel_for_dispatch_key("_C::cutlass_scaled_mm", "Meta")
        assert vllm.install() == installed
        """,
        fake_vllm(tmp_path, extension),
    )


def test_install_beside_a_vllm_that_does_not_import(tmp_path):
    text = child(
        """
        try:
            vllm.install()
        except RuntimeError as error:
            print(error)
        for name in vllm.OPERATORS:
            assert not torch._C._dispatch_has_kernel("_C::" + name), name
        """,
        fake_vllm(tmp_path, "raise ImportError('libcudart.so.99: no such file')"),
    )
    assert text == (
        "evergemm.compat.vllm.install: expected vllm._C_stable_libtorch to import, so that its operators come first; got "
        "ImportError: libcudart.so.99: no such file; fix: repair or uninstall vLLM. Nothing was registered under _C."
    )


def test_a_refused_installation_is_rolled_back():
    child(
        """
        library = evergemm._library.library
        theirs = torch.library.Library("_C", "FRAGMENT")
        theirs.define("permute_cols(Tensor x) -> Tensor")
        for names in (["cutlass_scaled_mm", "permute_cols"], ["cutlass_scaled_mm", "no_such_operator"]):
            try:
                library.register_dropins(names)
            except RuntimeError as error:
                print(error)
            else:
                raise SystemExit("accepted")
            assert not torch._C._dispatch_has_kernel("_C::cutlass_scaled_mm")
        assert vllm.install().kept == ("permute_cols",)
        multiplies()
        """
    )
