# SPDX-License-Identifier: Apache-2.0
"""QuantLinear: exact where its operands are exact, its tensors keep their dtypes, wrong tensors are refused by name."""

import copy
import io
import itertools

import evergemm
import pytest
import torch
from evergemm.nn import BLOCK, QuantLinear
from torch._dynamo.testing import CompileCounterWithBackend

FP8 = torch.float8_e4m3fn
SCHEMES = ("int8_dynamic", "int8_dynamic_asymmetric", "int8_static", "fp8_dynamic", "fp8_static", "fp8_block")
X_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def exact_layer(scheme: str, n: int, k: int, bias: bool = True, seed: int = 0) -> QuantLinear:
    """Small integers times powers of two: every product and sum is exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    dtype = torch.int8 if scheme.startswith("int8") else FP8
    weight = torch.randint(-2, 3, (n, k), generator=generator).to(torch.float32).to(dtype)
    shape = (-(-n // BLOCK), -(-k // BLOCK)) if scheme == "fp8_block" else (n, 1)
    weight_scale = torch.exp2(torch.randint(-2, 3, shape, generator=generator).float())
    biases = torch.randint(-4, 5, (n,), generator=generator).float() if bias else None
    input_scale = torch.tensor([0.5]) if scheme.endswith("static") else None
    return QuantLinear(weight, weight_scale, biases, input_scale, asymmetric=scheme.endswith("asymmetric"))


def exact_rows(scheme: str, m: int, k: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    """[m, k] that the scheme's quantizer represents exactly: its absmax is the largest code times a power of two."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-2, 3, (m, k), generator=generator).float()
    if scheme.endswith("asymmetric"):
        x[:, 0], x[:, -1] = 255.0, 0.0  # the range of one step a code where 0 <= x
        return x.abs().to(dtype)
    largest = 127.0 if scheme.startswith("int8") else 448.0
    if scheme.endswith("static"):
        return (0.5 * x).to(dtype)  # with the layer's input_scale of 0.5
    step = BLOCK if scheme == "fp8_block" else k
    x[:, ::step] = largest  # one in each row, or in each group of a row
    return x.to(dtype)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", X_DTYPES, ids=str)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (7, 5), (130, 300), (256, 384)])
@pytest.mark.parametrize("bias", [True, False])
def test_exact_operands_give_the_exact_product(scheme, dtype, n, k, bias):
    layer = exact_layer(scheme, n, k, bias)
    x = exact_rows(scheme, 9, k, dtype)
    exact = x.double() @ layer.dequantized_weight().double().t()
    if bias:
        exact += layer.bias.double()
    got = layer.to(dtype)(x)
    assert got.dtype == dtype
    assert exact.abs().max() < 2**24  # float32 holds it, so one rounding to the result's type is all that happens
    assert torch.equal(got, exact.float().to(dtype))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_dequantized_weight_scales_every_channel_and_block(scheme):
    n, k = 200, 270
    layer = exact_layer(scheme, n, k)
    wanted = torch.empty(n, k)
    for i, j in itertools.product(range(n), range(k)):
        at = (i // BLOCK, j // BLOCK) if scheme == "fp8_block" else (i, 0)
        wanted[i, j] = layer.weight[i, j].float() * layer.weight_scale[at]
    assert torch.equal(layer.dequantized_weight(), wanted)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bias_of_another_dtype_is_cast_to_that_of_x(scheme):
    layer = exact_layer(scheme, 24, 40)
    x = exact_rows(scheme, 3, 40, torch.bfloat16)
    assert layer.bias.dtype == torch.float32 and layer(x).dtype == torch.bfloat16
    assert torch.equal(layer(x), copy.deepcopy(layer).to(torch.bfloat16)(x))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(40,), (3, 40), (2, 3, 40), (2, 1, 3, 40), (0, 40), (2, 0, 40)])
def test_leading_dimensions_are_rows(scheme, shape):
    layer = exact_layer(scheme, 24, 40)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    got = layer(x)
    assert got.shape == (*shape[:-1], 24)
    rows = x.reshape(-1, 40)
    assert torch.equal(
        got.reshape(-1, 24), torch.cat([layer(row[None]) for row in rows]) if len(rows) else got.reshape(0, 24)
    )


@pytest.mark.parametrize("scheme", SCHEMES)
def test_layouts_of_x_do_not_matter(scheme):
    layer = exact_layer(scheme, 24, 40)
    x = torch.randn(6, 5, 40, generator=torch.Generator().manual_seed(3))
    wanted = layer(x)
    columns_first = x.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    assert columns_first.stride(-1) != 1
    assert torch.equal(layer(columns_first), wanted)
    assert torch.equal(layer(columns_first[:1]), wanted[:1])
    assert torch.equal(layer(x.transpose(0, 1)).transpose(0, 1), wanted)
    padded = torch.nn.functional.pad(x, (3, 5))[..., 3:43]
    assert torch.equal(layer(padded), wanted)
    assert torch.equal(layer(x[:1, :1].expand(4, 3, 40)), layer(x[:1, :1]).expand(4, 3, 24))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16, torch.float64])
def test_casts_of_the_model_leave_stored_tensors_alone(scheme, cast):
    layer = exact_layer(scheme, 24, 40)
    before = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    model = torch.nn.Sequential(layer, torch.nn.LayerNorm(24)).to(cast)
    for name in ("weight", "weight_scale", "input_scale", "azp_adj"):
        tensor = getattr(layer, name)
        if tensor is not None:
            assert tensor.dtype == before[name].dtype
            assert torch.equal(tensor.view(torch.uint8), before[name].view(torch.uint8))
    assert layer.bias.dtype == cast
    assert model[1].weight.dtype == cast


def test_weights_are_buffers_so_that_the_model_keeps_its_parameters_dtype():
    layer = exact_layer("fp8_static", 24, 40)
    assert list(layer.state_dict()) == ["bias", "weight", "weight_scale", "input_scale"]
    assert [name for name, _ in layer.named_parameters()] == ["bias"]
    assert not layer.bias.requires_grad


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scheme_is_read_from_the_tensors(scheme):
    layer = exact_layer(scheme, 200, 300)
    assert layer.scheme == scheme
    assert f"scheme={scheme}" in repr(layer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_copies_and_pickles_compute_the_same(scheme):
    layer = exact_layer(scheme, 24, 40)
    x = torch.randn(5, 40, generator=torch.Generator().manual_seed(4))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(twin(x), layer(x))


def test_scales_of_other_shapes_are_read_as_what_they_mean():
    weight = torch.ones(8, 16, dtype=torch.int8)
    assert QuantLinear(weight, torch.arange(1.0, 9.0)).weight_scale.shape == (8, 1)
    assert QuantLinear(weight, torch.tensor(2.0)).granularity == "tensor"
    assert QuantLinear(weight, torch.tensor([[2.0]])).granularity == "tensor"
    assert QuantLinear(weight, torch.ones(8, 1), input_scale=torch.tensor(1.0)).input_scale.shape == (1,)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(5))
    wanted = QuantLinear(weight, torch.full((8, 1), 2.0))(x)
    for scale in (torch.tensor(2.0), torch.tensor([[2.0]]), torch.full((8,), 2.0)):
        assert torch.equal(QuantLinear(weight, scale)(x), wanted)


INT8_WEIGHT, FP8_WEIGHT = torch.ones(200, 300, dtype=torch.int8), torch.ones(200, 300).to(FP8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((torch.ones(4, 4), torch.ones(4, 1)), "weight [n, k] of int8 or float8_e4m3fn"),
        ((torch.ones(4, 4, dtype=torch.uint8), torch.ones(4, 1)), "torch.uint8"),
        ((torch.ones(4, dtype=torch.int8), torch.ones(4, 1)), "shape [4]"),
        ((torch.ones(0, 4, dtype=torch.int8), torch.ones(0, 1)), "n and k at least 1"),
        ((INT8_WEIGHT, torch.ones(199, 1)), "weight_scale float32 of shape [1], [1, 1], [200, 1]"),
        ((INT8_WEIGHT, torch.ones(2, 3)), "shape [2, 3]"),
        ((INT8_WEIGHT, torch.ones(200, 1).half()), "torch.float16"),
        ((FP8_WEIGHT, torch.ones(3, 2)), "[200, 1], [2, 3]"),
        ((INT8_WEIGHT, torch.ones(200, 1), torch.ones(300)), "bias [200]"),
        ((INT8_WEIGHT, torch.ones(200, 1), torch.ones(200, dtype=torch.int32)), "floating point"),
        ((INT8_WEIGHT, torch.ones(200, 1), None, torch.ones(2)), "input_scale float32 of one element"),
        ((INT8_WEIGHT, torch.ones(200, 1), None, torch.ones(1).double()), "torch.float64"),
        ((FP8_WEIGHT, torch.ones(2, 3), None, torch.ones(1)), "no input_scale with block scales"),
        ((torch.empty(1, 131_072, dtype=torch.int8), torch.ones(1)), "at most 131071 input features"),
        ((FP8_WEIGHT, torch.ones(200, 1), None, None, True), "asymmetric only with an int8 weight"),
        ((INT8_WEIGHT, torch.ones(200, 1), None, torch.ones(1), True), "an input_scale; fix: leave asymmetric away"),
        ((torch.ones(1, 65_794, dtype=torch.int8), torch.ones(1), None, None, True), "65794 input features"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError) as raised:
        QuantLinear(*arguments)
    text = str(raised.value)
    assert text.startswith("QuantLinear: expected ") and "; got " in text and "; fix: " in text
    assert words in text


def test_int8_takes_as_many_input_features_as_the_operators_do():
    k = 131_071
    layer = QuantLinear(torch.full((1, k), -128, dtype=torch.int8), torch.ones(1), None, torch.ones(1))
    got = layer(torch.full((1, k), -128.0))
    assert got.item() == torch.tensor(float(k * 128 * 128)).item()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_state_dict_of_the_same_scheme_loads(scheme):
    source, target = exact_layer(scheme, 200, 300, seed=1), exact_layer(scheme, 200, 300, seed=2)
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(source(x), target(x))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source(x), target(x))


def test_scales_of_other_dtypes_and_ranks_load_as_float32():
    layer = exact_layer("int8_static", 24, 40)
    state = layer.state_dict()
    loaded = exact_layer("int8_static", 24, 40, seed=9)
    loaded.load_state_dict(
        state | {"weight_scale": state["weight_scale"].bfloat16().view(24), "input_scale": torch.tensor(0.5)}
    )
    assert loaded.weight_scale.dtype == torch.float32 and loaded.weight_scale.shape == (24, 1)
    assert torch.equal(loaded.weight_scale, layer.weight_scale)
    assert torch.equal(loaded.input_scale, layer.input_scale)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("weight", torch.ones(24, 40), "weight of torch.int8; got torch.float32"),
        ("weight", torch.ones(24, 40).to(FP8), "got torch.float8_e4m3fn"),
        ("weight_scale", torch.ones(24, 1, dtype=torch.int32), "weight_scale of a floating-point dtype"),
        ("weight_scale", torch.ones(23, 1), "size mismatch"),
        ("weight", torch.ones(40, 24, dtype=torch.int8), "size mismatch"),
    ],
)
def test_a_state_dict_that_would_be_cast_silently_is_refused(name, tensor, words):
    layer = exact_layer("int8_dynamic", 24, 40)
    before = layer.state_dict()[name].clone()
    with pytest.raises(RuntimeError, match="Error.s. in loading state_dict") as raised:
        layer.load_state_dict(layer.state_dict() | {name: tensor})
    assert words in str(raised.value)
    assert torch.equal(layer.state_dict()[name], before)


def test_zero_points_are_finer_where_x_leans_to_one_side():
    x = torch.rand(20, 40, generator=torch.Generator().manual_seed(7)) * 3 - 0.2
    weight = torch.randint(-127, 128, (24, 40), dtype=torch.int8, generator=torch.Generator().manual_seed(8))
    symmetric, asymmetric = (QuantLinear(weight, torch.ones(24, 1), asymmetric=flag) for flag in (False, True))
    exact = x.double() @ weight.double().t()
    errors = [float((layer(x).double() - exact).norm()) for layer in (symmetric, asymmetric)]
    assert errors[1] < 0.6 * errors[0]


def test_zero_point_sums_that_do_not_belong_to_the_weight_are_refused():
    layer = exact_layer("int8_dynamic_asymmetric", 24, 40)
    assert torch.equal(layer.azp_adj, layer.weight.to(torch.int32).sum(1).to(torch.int32))
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match="azp_adj to hold the sums of weight over its rows; got other values; fix: "):
        layer.load_state_dict(state | {"azp_adj": state["azp_adj"] + 1})
    with pytest.raises(RuntimeError, match="azp_adj of torch.int32; got torch.float32"):
        layer.load_state_dict(state | {"azp_adj": state["azp_adj"].float()})


def test_a_tensor_that_requires_grad_is_refused_by_name():
    layer = exact_layer("int8_dynamic", 24, 40)
    with torch.enable_grad(), pytest.raises(RuntimeError, match="no_grad"):
        layer(torch.randn(3, 40, requires_grad=True))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_compile_serves_every_number_of_rows(scheme):
    layer = exact_layer(scheme, 24, 40)
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, dynamic=True, backend=counter)
    for rows in range(2, 12):
        x = torch.randn(3, rows, 40, generator=torch.Generator().manual_seed(rows))
        assert torch.equal(compiled(x), layer(x))
    assert counter.frame_count == 1


def test_the_package_exports_the_module():
    assert evergemm.nn.QuantLinear is QuantLinear
