# SPDX-License-Identifier: Apache-2.0
"""quantize_: what it replaces, what it leaves and says why, and whether every figure of its report is right."""

import copy
import re

import evergemm
import pytest
import torch
from evergemm.nn import QuantLinear
from evergemm.quantize import SAMPLE_ROWS, model_bytes
from torch import nn

CONFIGS = {
    "int8_dynamic": evergemm.Int8Dynamic,
    "int8_static": evergemm.Int8Static,
    "fp8_dynamic": evergemm.Fp8Dynamic,
    "fp8_block": evergemm.Fp8Block,
}
# Largest relative error of one layer on normal data that rounding explains, x and weight together. int8: a step is absmax /
# 127, the error step / sqrt(12); absmax is 3 to 4 standard deviations of a row, 5 of all of x: 0.9 % to 1.6 %. e4m3: three
# bits after the leading one, 2.6 % for each operand.
MOST_ERROR = {"int8_dynamic": 0.015, "int8_static": 0.02, "fp8_dynamic": 0.045, "fp8_block": 0.045}


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(300, 200), nn.GELU(), nn.Linear(200, 70, bias=False), nn.LayerNorm(70))


def config_of(scheme: str, batches=None):
    if scheme == "int8_dynamic":
        return evergemm.Int8Dynamic(calibration=batches, asymmetric=False)
    if scheme == "int8_static":
        return evergemm.Int8Static(calibration=batches if batches is not None else [torch.randn(64, 300)])
    return CONFIGS[scheme](calibration=batches)


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_linear_is_replaced_and_the_model_still_computes(scheme, dtype):
    model = mlp().to(dtype)
    x = torch.randn(33, 300).to(dtype)
    wanted = model(x)
    report = evergemm.quantize_(model, config_of(scheme, [torch.randn(64, 300).to(dtype)]))
    assert [type(module) for module in model] == [QuantLinear, nn.GELU, QuantLinear, nn.LayerNorm]
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert [layer.scheme for layer in report.layers] == [scheme, scheme]
    assert [module.scheme for module in model if isinstance(module, QuantLinear)] == [scheme, scheme]
    assert not report.skipped
    assert model(x).dtype == dtype
    assert 0 < relative(model(x), wanted) < 2 * MOST_ERROR[scheme]


@pytest.mark.parametrize("scheme", CONFIGS)
def test_report_counts_bytes_errors_and_rows(scheme):
    model = mlp()
    original = copy.deepcopy(model)
    batches = [torch.randn(50, 300), torch.randn(100, 300)]
    report = evergemm.quantize_(model, config_of(scheme, batches))
    first, second = report.layers
    scales = {"fp8_block": (2 * 3, 1 * 2)}.get(scheme, (200, 70))
    static = 4 if scheme == "int8_static" else 0
    assert (first.shape, second.shape) == ((200, 300), (70, 200))
    assert (first.bytes_before, second.bytes_before) == (4 * 200 * 300 + 4 * 200, 4 * 70 * 200)
    assert first.bytes_after == 200 * 300 + 4 * scales[0] + static + 4 * 200
    assert second.bytes_after == 70 * 200 + 4 * scales[1] + static
    assert report.bytes_before == first.bytes_before + second.bytes_before
    assert report.bytes_after == first.bytes_after + second.bytes_after
    assert report.model_bytes_before == model_bytes(original) == report.bytes_before + 2 * 4 * 70
    assert report.model_bytes_after == model_bytes(model) == report.bytes_after + 2 * 4 * 70
    # The sample is what the layer was first given: 50 rows and the next 78.
    sample = torch.cat(batches)[:SAMPLE_ROWS]
    hidden = torch.cat([original[1](original[0](batch)) for batch in batches])[:SAMPLE_ROWS]
    for layer, x, place in ((first, sample, 0), (second, hidden, 2)):
        assert layer.sample == "calibration" and layer.sample_rows == SAMPLE_ROWS
        assert layer.relative_error == pytest.approx(relative(model[place](x), original[place](x)), rel=1e-5)
        assert 0 < layer.relative_error < MOST_ERROR[scheme]
        dtype, _, mode = scheme.partition("_")
        scales_word = {"block": "blockwise", "static": ("tensorwise", "rowwise")}.get(mode, "rowwise")
        for m, row in ((SAMPLE_ROWS, layer.row), (1, layer.row_single)):
            n, k = layer.shape
            plan = evergemm.explain(
                "scaled_mm", m=m, n=n, k=k, dtype=dtype, scales=scales_word, bias=place == 0, out_dtype="float32"
            )
            assert row == plan.row != ""


def test_zero_points_are_chosen_where_they_pay():
    """The first layer sees values of both signs, the second those behind a ReLU."""
    batches = [torch.randn(64, 300)]
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 70))
    reports = {}
    for asymmetric in (None, False, True):
        twin = copy.deepcopy(model)
        reports[asymmetric] = evergemm.quantize_(twin, evergemm.Int8Dynamic(batches, asymmetric)).layers
        schemes = [layer.scheme for layer in reports[asymmetric]]
        assert schemes == [twin[0].scheme, twin[2].scheme]
    plain, zero_point = "int8_dynamic", "int8_dynamic_asymmetric"
    assert [[layer.scheme for layer in layers] for layers in reports.values()] == [
        [plain, zero_point],
        [plain, plain],
        [zero_point, zero_point],
    ]
    assert reports[None][0] == reports[False][0] and reports[None][1] == reports[True][1]
    assert reports[True][1].relative_error < 0.9 * reports[False][1].relative_error
    assert reports[True][1].bytes_after == reports[False][1].bytes_after + 4 * 70
    plan = evergemm.explain("scaled_mm_azp", m=64, n=70, k=200, azp=True, bias=True, out_dtype="float32")
    assert reports[True][1].row == plan.row


def test_a_sample_is_generated_where_nothing_calibrates():
    reports = [evergemm.quantize_(copy.deepcopy(model), evergemm.Int8Dynamic()) for model in [mlp()] * 2]
    assert reports[0] == reports[1]
    assert {layer.sample for layer in reports[0].layers} == {"generated"}
    assert all(0 < layer.relative_error < MOST_ERROR["int8_dynamic"] for layer in reports[0].layers)


def test_a_broken_scale_shows_in_the_error():
    model = mlp()
    x = torch.randn(40, 300)
    wanted = model[0](x)
    evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert relative(model[0](x), wanted) < MOST_ERROR["int8_dynamic"]
    model[0].weight_scale[17] *= 2
    assert relative(model[0](x), wanted) > 2 * MOST_ERROR["int8_dynamic"]


def test_printed_report_names_every_layer():
    model = nn.Sequential(mlp(), nn.Linear(70, 10))
    text = str(evergemm.quantize_(model, evergemm.Int8Dynamic(asymmetric=False), lambda module, name: name != "1"))
    lines = text.splitlines()
    assert lines[0].split() == "layer n x k scheme before after error m row that runs".split()
    assert lines[2].startswith("0.0    200 x 300  int8_dynamic")
    assert re.search(r"0\.2 +70 x 200 +int8_dynamic +56 kB +14\.3 kB +[0-9.]+% +128  \w+", text)
    assert "1      10 x 70  filter_fn declined it" in text
    assert lines[-1] == "2 layers quantized: 297 kB -> 75.9 kB; whole model 300 kB -> 79.3 kB"


# ---- static calibration ----------------------------------------------------------------------------------------------


def test_static_scale_is_the_largest_input_of_all_batches():
    model = mlp()
    batches = [torch.randn(8, 300), 3 * torch.randn(8, 300), torch.randn(8, 300)]
    hidden = torch.cat([model[1](model[0](batch)) for batch in batches])
    evergemm.quantize_(model, evergemm.Int8Static(calibration=batches))
    assert model[0].input_scale.item() == pytest.approx(float(torch.cat(batches).abs().max()) / 127, rel=1e-7)
    assert model[2].input_scale.item() == pytest.approx(float(hidden.abs().max()) / 127, rel=1e-6)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x, y=None):
        return self.used(x if y is None else x + y)


@pytest.mark.parametrize(
    "batch",
    [
        torch.ones(3, 16),
        (torch.ones(3, 16), torch.ones(3, 16)),
        [torch.ones(3, 16)],
        {"x": torch.ones(3, 16), "y": None},
    ],
    ids=["tensor", "tuple", "list", "mapping"],
)
def test_a_batch_is_what_the_model_takes(batch):
    model = TwoInputs()
    report = evergemm.quantize_(model, evergemm.Int8Static(calibration=[batch]))
    peak = 2.0 if isinstance(batch, tuple) else 1.0
    assert model.used.input_scale.item() == pytest.approx(peak / 127, rel=1e-7)
    assert type(model.unused) is nn.Linear
    assert [(one.name, one.reason) for one in report.skipped] == [("unused", "calibration never ran it")]


def test_layers_that_calibration_misses_are_measured_on_generated_values_by_dynamic_schemes():
    report = evergemm.quantize_(TwoInputs(), evergemm.Fp8Dynamic(calibration=[torch.randn(3, 16)]))
    assert [(one.name, one.sample, one.sample_rows) for one in report.layers] == [
        ("used", "calibration", 3),
        ("unused", "generated", SAMPLE_ROWS),
    ]


def test_calibration_leaves_no_trace():
    model = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 4))
    model.train()
    model[1].eval()
    model[3].eval()
    running = model[2].running_mean.clone()
    seen = []
    model[1].register_forward_hook(lambda module, inputs, output: seen.append(torch.equal(inputs[0], output)))
    evergemm.quantize_(model, evergemm.Int8Static(calibration=[torch.randn(8, 16)]))
    assert seen == [True]  # in eval mode dropout passes everything
    assert torch.equal(model[2].running_mean, running)
    assert [module.training for module in model] == [True, False, True, False]
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_batch_that_fails_leaves_the_model_as_it_was():
    model = mlp().train()
    with pytest.raises(RuntimeError, match="shape"):
        evergemm.quantize_(model, evergemm.Int8Static(calibration=[torch.randn(8, 300), torch.randn(8, 299)]))
    assert [type(module) for module in model] == [nn.Linear, nn.GELU, nn.Linear, nn.LayerNorm]
    assert model.training and not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("batches", [[], iter([])], ids=["empty list", "used-up iterator"])
def test_calibration_without_a_batch_is_an_error(batches):
    with pytest.raises(ValueError, match="at least one batch.*got none.*fix: "):
        evergemm.quantize_(mlp(), evergemm.Int8Static(calibration=batches))


def test_an_input_of_infinities_has_no_static_scale():
    report = evergemm.quantize_(mlp(), evergemm.Int8Static(calibration=[torch.full((2, 300), torch.inf)]))
    assert {one.reason for one in report.skipped} == {"calibration gave it NaN or infinity"}


# ---- what is shared --------------------------------------------------------------------------------------------------


def test_layers_that_share_a_weight_share_the_quantized_one():
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    model[2].weight = model[0].weight
    before = model_bytes(model)
    report = evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert model[0].weight is model[2].weight and model[0].weight_scale is model[2].weight_scale
    assert [layer.shares_weight_with for layer in report.layers] == ["", "0"]
    assert [layer.bytes_before for layer in report.layers] == [4 * 32 * 32 + 4 * 32, 4 * 32]
    assert [layer.bytes_after for layer in report.layers] == [32 * 32 + 4 * 32 + 4 * 32, 4 * 32]
    assert before == report.model_bytes_before == report.bytes_before
    assert model_bytes(model) == report.model_bytes_after == report.bytes_after
    assert "(shares 0)" in str(report)


def test_one_module_in_two_places_is_replaced_in_both():
    layer = nn.Linear(32, 32)
    model = nn.ModuleDict({"a": nn.Sequential(layer), "b": layer})
    report = evergemm.quantize_(model, evergemm.Fp8Block())
    assert model["a"][0] is model["b"] and isinstance(model["b"], QuantLinear)
    assert [one.name for one in report.layers] == ["a.0"]


class TiedHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.inner(self.embed(ids)))


def test_a_head_tied_to_an_embedding_stays():
    model = TiedHead()
    report = evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert model.head.weight is model.embed.weight and model.head.weight.dtype == torch.float32
    assert [(one.name, one.reason) for one in report.skipped] == [
        ("head", "its weight is shared with embed.weight, which needs it unquantized")
    ]
    assert model(torch.tensor([1, 2])).shape == (2, 50)


# ---- what is left as it is --------------------------------------------------------------------------------------------


class MyLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def weight_normed() -> nn.Linear:
    with torch.enable_grad():
        return nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))


def old_weight_normed() -> nn.Linear:
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(8, 8))


def patched() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.forward = lambda x: x
    return layer


def hooked() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.register_forward_hook(lambda module, inputs, output: None)
    return layer


def with_nan() -> nn.Linear:
    layer = nn.Linear(8, 8)
    layer.weight[3, 3] = torch.nan
    return layer


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MyLinear(8, 8), "a MyLinear, whose forward may differ from nn.Linear's"),
        (weight_normed, "a ParametrizedLinear, whose forward may differ"),
        (old_weight_normed, "its weight is computed (a reparametrization), not stored"),
        (lambda: nn.Linear(0, 8), "it is empty"),
        (lambda: nn.Linear(8, 0), "it is empty"),
        (lambda: nn.Linear(8, 8).double(), "its weight is torch.float64"),
        (lambda: nn.Linear(8, 8, device="meta"), "its weight is on the meta device"),
        (lambda: nn.Linear(131_072, 1), "131072 input features: int8 sums are exact up to 131071"),
        (patched, "it has hooks or a patched forward"),
        (hooked, "it has hooks or a patched forward"),
        (with_nan, "its weight holds NaN or infinity"),
    ],
)
def test_odd_layers_stay_and_are_named(make, reason):
    odd = make()
    model = nn.ModuleDict({"odd": odd, "plain": nn.Linear(8, 8)})
    report = evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert model["odd"] is odd and isinstance(model["plain"], QuantLinear)
    assert [one.name for one in report.skipped] == ["odd"]
    assert report.skipped[0].reason.startswith(reason)
    assert reason in str(report)


def test_float8_takes_more_input_features_than_int8():
    model = nn.Sequential(nn.Linear(131_072, 1))
    assert [one.name for one in evergemm.quantize_(model, evergemm.Fp8Dynamic()).layers] == ["0"]


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 300), (129, 1), (3, 257), (130, 127)])
def test_odd_shapes_are_quantized(scheme, n, k):
    model = nn.Sequential(nn.Linear(k, n))
    x = torch.randn(5, k)
    wanted = model(x)
    report = evergemm.quantize_(model, config_of(scheme, [x]))
    assert len(report.layers) == 1
    assert relative(model(x), wanted) < 2 * MOST_ERROR[scheme]


def test_a_weight_whose_rows_are_not_contiguous_is_quantized():
    model = nn.Sequential(nn.Linear(40, 24))
    model[0].weight = nn.Parameter(torch.randn(40, 24).t())
    x = torch.randn(5, 40)
    wanted = model(x)
    evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert relative(model(x), wanted) < 2 * MOST_ERROR["int8_dynamic"]


def test_filter_is_asked_about_every_linear_with_its_name():
    model = nn.Sequential(mlp(), nn.Linear(70, 10))
    asked = []
    report = evergemm.quantize_(
        model, evergemm.Int8Dynamic(asymmetric=False), lambda module, name: asked.append((name, module))
    )
    assert [name for name, _ in asked] == ["0.0", "0.2", "1"]
    assert all(type(module) is nn.Linear for _, module in asked)
    assert not report.layers and [one.name for one in report.skipped] == ["0.0", "0.2", "1"]
    assert str(report).endswith("0 layers quantized: 0 B -> 0 B; whole model 300 kB -> 300 kB")


def test_quantizing_twice_changes_nothing():
    model = mlp()
    evergemm.quantize_(model, evergemm.Int8Dynamic())
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = evergemm.quantize_(model, evergemm.Fp8Dynamic())
    assert not report.layers and not report.skipped
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_attention_and_transformer_layers_keep_working():
    layer = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    x = torch.randn(2, 7, 32)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1, 5:] = True
    wanted = model(x, src_key_padding_mask=mask)
    report = evergemm.quantize_(model, evergemm.Int8Dynamic())
    assert [one.name for one in report.layers] == [f"layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2)]
    assert [one.name for one in report.skipped] == [f"layers.{i}.self_attn.out_proj" for i in (0, 1)]
    assert {one.reason.split(",")[0] for one in report.skipped} == {"a NonDynamicallyQuantizableLinear"}
    got = model(x, src_key_padding_mask=mask)
    assert relative(got[~mask], wanted[~mask]) < 2 * MOST_ERROR["int8_dynamic"]


# ---- wrong arguments -------------------------------------------------------------------------------------------------


def test_a_linear_alone_cannot_be_replaced_in_place():
    with pytest.raises(ValueError, match="got an nn.Linear itself; fix: wrap it"):
        evergemm.quantize_(nn.Linear(8, 8), evergemm.Int8Dynamic())


@pytest.mark.parametrize("config", ["int8", evergemm.Int8Dynamic, None, torch.int8], ids=str)
def test_a_config_that_is_none_is_an_error(config):
    with pytest.raises(TypeError, match="expected config Int8Dynamic.*; got .*; fix: "):
        evergemm.quantize_(mlp(), config)


def test_outputs_that_require_grad_are_refused_until_told():
    model = mlp()
    evergemm.quantize_(model, evergemm.Int8Dynamic())
    with torch.enable_grad():
        with pytest.raises(RuntimeError, match="no_grad"):
            nn.Sequential(nn.Linear(300, 300), model)(torch.randn(2, 300))
    with torch.inference_mode():
        nn.Sequential(nn.Linear(300, 300), model)(torch.randn(2, 300))
