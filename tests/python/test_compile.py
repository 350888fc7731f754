# SPDX-License-Identifier: Apache-2.0
"""The operators under torch.compile, torch.export and AOTInductor: opcheck, one compile for many sizes, sizes without hints,
fakes that agree with kernels, and a package that runs from C++."""

from __future__ import annotations

import pathlib
import subprocess

import evergemm
import pytest
import torch
from evergemm import _library, _schemas
from guarded_tensor import same_bits
from operator_calls import BY_NAME, CALLS, FP8, fp8_matrix, int8_matrix
from torch._dynamo.source import ConstantSource
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

K, N = 64, 48


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    counters.clear()


@pytest.fixture
def allclose_of_float8(monkeypatch):
    """torch.allclose has no float8 kernels; opcheck compares with it. Whole values compare as well in fp32."""
    original = torch.allclose

    def allclose(x, y, *args, **kwargs):
        if x.dtype == FP8:
            x, y = x.float(), y.float()
        return original(x, y, *args, **kwargs)

    monkeypatch.setattr(torch, "allclose", allclose)


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_opcheck(call, allclose_of_float8):
    positional, keywords = call.split(call.make())
    results = torch.library.opcheck(call.overload, positional, keywords)
    assert set(results.values()) == {"SUCCESS"} and len(results) == 4, results


@pytest.mark.parametrize("schema", _schemas.QUERIES, ids=lambda schema: schema.partition("(")[0])
def test_opcheck_of_queries(schema):
    operator = getattr(torch.ops.evergemm, schema.partition("(")[0]).default
    assert set(torch.library.opcheck(operator, (90,)).values()) == {"SUCCESS"}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_fakes_return_what_kernels_return(call):
    """Shape, strides, dtype and device of every result, also where dimensions are empty."""
    real = call.make()
    variants = [real]
    if "x" in real and not {"out_q", "residual", "scale", "topk_ids"} & set(real):
        variants += [{**real, "x": real["x"][:0]}, {**real, "x": real["x"][:1]}]
        if "weight" not in real:  # whose columns are those of x
            variants.append({**real, "x": real["x"][:, :0]})
    if "dtype" in real:  # a last group of fewer columns
        variants += [{**real, name: 100} for name in ("group_size", "block_k") if name in real]
    for arguments in variants:
        expected = call.run(arguments)
        with FakeTensorMode() as mode:
            fake = {name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for name, v in arguments.items()}
            result = call.run(fake)
        if expected is None:
            assert result is None
            continue
        pairs = [(result, expected)] if isinstance(expected, torch.Tensor) else zip(result, expected, strict=True)
        for got, wanted in pairs:
            assert got.shape == wanted.shape and got.dtype == wanted.dtype and got.device == wanted.device
            assert got.stride() == wanted.stride()


# ---- torch.compile ---------------------------------------------------------------------------------------------------


class Layer(torch.nn.Module):
    """Quantize, multiply: what a quantized linear layer does."""

    def __init__(self, scheme: str):
        super().__init__()
        self.scheme = scheme
        weight = int8_matrix(N, K) if scheme.startswith("int8") else fp8_matrix(N, 2 * 128)
        self.register_buffer("weight", weight)
        rows = (2, 1) if scheme == "fp8_block" else (N,)
        self.register_buffer("weight_scale", torch.rand(rows) + 0.5)
        self.register_buffer("azp_adj", weight.to(torch.int32).sum(1, dtype=torch.int32))
        self.register_buffer("bias", torch.randn(N))
        self.register_buffer("norm", torch.ones(weight.shape[1]))

    @property
    def columns(self) -> int:
        return self.weight.shape[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight.t()
        if self.scheme == "int8":
            q, scale = evergemm.quantize_per_token(x, torch.int8)
        elif self.scheme == "int8_azp":
            q, scale, azp = evergemm.quantize_per_token_asymmetric(x)
            return evergemm.scaled_mm_azp(
                q, weight, scale, self.weight_scale, self.azp_adj, azp, self.bias, torch.float32
            )
        elif self.scheme == "int8_out":
            q, scale = torch.empty_like(x, dtype=torch.int8), x.new_empty(x.shape[0], 1)
            evergemm.quantize_per_token(x, torch.int8, out=(q, scale))
            out = x.new_empty(x.shape[0], N)
            return evergemm.scaled_mm(q, weight, scale, self.weight_scale, self.bias, out=out) * 2
        elif self.scheme == "fp8":
            q, scale = evergemm.quantize_per_token(x, FP8)
        elif self.scheme == "fp8_tensor":
            q, scale = evergemm.quantize_per_tensor(x, FP8)
        elif self.scheme == "fp8_fused":
            q, scale = evergemm.rms_norm_quantize(x, self.norm, 1e-5, 0, FP8, x * 2)
        else:
            q, scale = evergemm.quantize_per_group(x, 128, FP8, column_major_scales=True)
        return evergemm.scaled_mm(q, weight, scale, self.weight_scale, self.bias, torch.float32)


SCHEMES = ("int8", "int8_azp", "int8_out", "fp8", "fp8_tensor", "fp8_fused", "fp8_block")


# Inductor's code does not depend on the scheme: two suffice.
@pytest.mark.parametrize(
    ("scheme", "backend"),
    [*((scheme, "aot_eager") for scheme in SCHEMES), ("int8", "inductor"), ("int8_out", "inductor")],
)
def test_one_compile_for_twenty_sizes(scheme, backend):
    layer = Layer(scheme)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for m in range(2, 22):
            x = torch.randn(m, layer.columns)
            assert same_bits(compiled(x), layer(x)), m
    assert counters["stats"]["unique_graphs"] == 1


def test_drop_in_operators_compile():
    weight = int8_matrix(N, K)

    def multiply(a, scale_a, scale_b, x, perm):
        out = torch.empty(a.shape[0], N, dtype=torch.bfloat16)
        torch.ops.evergemm.cutlass_scaled_mm(out, a, weight.t(), scale_a, scale_b, None)
        q, s = torch.empty_like(x, dtype=FP8), x.new_empty(x.shape[0], x.shape[1] // 32, dtype=torch.float32)
        torch.ops.evergemm.per_token_group_fp8_quant(x, q, s, 32, 1e-10, -448.0, 448.0, False, False, False)
        return out, q, s, torch.ops.evergemm.permute_cols(x, perm)

    compiled = torch.compile(multiply, fullgraph=True, dynamic=True, backend="aot_eager")
    for m in range(2, 22):
        arguments = (
            int8_matrix(m, K),
            torch.rand(m, 1),
            torch.rand(N),
            torch.randn(m, K, dtype=torch.bfloat16),
            torch.randperm(K).to(torch.int32),
        )
        for got, wanted in zip(compiled(*arguments), multiply(*arguments), strict=True):
            assert same_bits(got, wanted)
    assert counters["stats"]["unique_graphs"] == 1


def test_a_refusal_under_compile_has_the_operators_text():
    layer = torch.compile(Layer("int8"), fullgraph=True, dynamic=True, backend="aot_eager")
    with pytest.raises(RuntimeError) as caught:
        layer(torch.randn(4, K + 1))
    assert (
        f"scaled_mm: expected b with as many rows as a has columns (k = {K + 1}); got shape [{K}, {N}], "
        f"strides [1, {K}]; fix: pass weight.t() of an [n, k] weight with the same k as a." in str(caught.value)
    )


def test_symbolic_sizes_are_not_specialized():
    """Sizes of results stay symbols, those of the arguments; what must agree becomes one symbol."""
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)

    def dynamic(tensor):
        context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * tensor.dim())
        return mode.from_tensor(tensor, source=ConstantSource(f"t{id(tensor)}"), symbolic_context=context)

    a, b = dynamic(int8_matrix(6, 64)), dynamic(int8_matrix(10, 64).t())
    scale_b = dynamic(torch.rand(10))
    x = dynamic(torch.randn(6, 200, dtype=torch.bfloat16))
    assert a.shape[1].node.expr != b.shape[0].node.expr
    with mode:
        result = evergemm.scaled_mm(a, b, torch.rand(1), scale_b)
        q, scale = evergemm.quantize_per_group(x)
    assert [str(size) for size in result.shape] == [str(a.shape[0]), str(b.shape[1])]
    assert a.shape[1].node.expr == b.shape[0].node.expr  # k and k
    assert b.shape[1].node.expr == scale_b.shape[0].node.expr  # n and n
    assert [str(size) for size in q.shape] == [str(size) for size in x.shape]
    assert str(scale.shape[0]) == str(x.shape[0]) and scale.shape[1].node.expr.free_symbols
    assert not any(value.is_number for value in environment.replacements.values())


# ---- torch.export ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES)
def test_export(scheme):
    layer = Layer(scheme)
    rows = torch.export.Dim("rows", min=2, max=4096)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(7, layer.columns),), dynamic_shapes=({0: rows},))
        module = program.module()
        for m in (2, 3, 50):
            x = torch.randn(m, layer.columns)
            assert same_bits(module(x), layer(x))
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert any(target.startswith("evergemm.") for target in targets), targets


class Routed(torch.nn.Module):
    """Rows chosen by data: their number is a size without a hint."""

    def __init__(self, scheme: str):
        super().__init__()
        self.layer = Layer(scheme)

    def forward(self, x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        return self.layer(x[chosen])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_export_with_unbacked_sizes(scheme):
    model = Routed(scheme)
    rows = torch.export.Dim("rows", min=2, max=4096)
    x, chosen = torch.randn(9, model.layer.columns), torch.arange(9) % 3 == 0
    with torch.no_grad():
        program = torch.export.export(model, (x, chosen), dynamic_shapes=({0: rows}, {0: rows}))
        module = program.module()
        for kept in (3, 1, 0, 9):
            chosen = torch.arange(9) < kept
            assert same_bits(module(x, chosen), model(x, chosen)), kept


def test_unbacked_sizes_that_must_agree():
    """A relation between two unknown sizes is asserted, not guessed: the graph checks it when it runs."""

    class Two(torch.nn.Module):
        def forward(self, x, chosen, scale, chosen_scale):
            a, scales = x[chosen], scale[chosen_scale]
            return evergemm.scaled_mm(a, x[:4].t(), scales, torch.ones(1), None, torch.float32)

    x, scale = int8_matrix(8, 32), torch.rand(8)
    chosen = torch.arange(8) < 5
    arguments = (x, chosen, scale, chosen.clone())
    program = torch.export.export(Two(), arguments)
    module = program.module()
    assert same_bits(module(*arguments), Two()(*arguments))
    relations = [str(node.args[0]) for node in program.graph.nodes if "assert" in str(node.target)]
    assert any(relation.startswith("eq") for relation in relations), program.graph
    with pytest.raises((RuntimeError, AssertionError)):
        module(x, chosen, scale, torch.arange(8) < 6)


# ---- AOTInductor -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runner(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("runner")
    program = folder / "run_package"
    installed = pathlib.Path(torch.__file__).parent
    libraries, headers = installed / "lib", installed / "include"
    command = ["g++", "-std=c++20", "-O0", f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += ["-isystem", str(headers), "-isystem", str(headers / "torch" / "csrc" / "api" / "include")]
    command += [str(pathlib.Path(__file__).parent / "run_package.cpp"), "-o", str(program)]
    command += [
        f"-L{libraries}",
        f"-Wl,-rpath,{libraries}",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return program


# Up to torch 2.11 (2.10 shown) a ScalarType that stands in a package reaches operators as another one, a fault mended since:
# there, only the out variants, which take none.
TORCH_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
PACKAGED = ("int8_out", "int8_azp", "fp8_block") if TORCH_VERSION >= (2, 12) else ("int8_out",)


@pytest.mark.parametrize("scheme", PACKAGED)
def test_a_package_runs_from_cpp(tmp_path, runner, scheme):
    """Compiled ahead of time, loaded by a C++ program without Python: the library registers itself when it is loaded."""
    layer = Layer(scheme)
    rows = torch.export.Dim("rows", min=2, max=4096)
    with torch.no_grad():
        program = torch.export.export(layer, (torch.randn(7, layer.columns),), dynamic_shapes=({0: rows},))
        package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "layer.pt2"))
    for m in (7, 33):
        x = torch.randn(m, layer.columns)
        (tmp_path / "input").write_bytes(x.numpy().tobytes())
        arguments = [_library.find(), package, tmp_path / "input", m, layer.columns, tmp_path / "output"]
        ran = subprocess.run([runner, *map(str, arguments)], capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert ran.stdout.split() == [str(m), str(N)]
        result = torch.frombuffer(bytearray((tmp_path / "output").read_bytes()), dtype=torch.float32).reshape(m, N)
        assert same_bits(result, layer(x))


def test_every_operator_is_checked():
    assert {name for schema in _schemas.TENSOR_OPERATORS for name in [schema.partition("(")[0]]} == set(BY_NAME)
