# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts on the GPU through torch: every operator has the CPU's bits (fp8 products: on data whose sums are exact,
and near dense floats otherwise), vLLM's calling pattern, graphs with changed routing, QuantMoE."""

from __future__ import annotations

import copy
import csv
import importlib.util
import pathlib
import sys

import evergemm
import pytest
import torch
from evergemm.cli import main
from evergemm.compat import vllm
from evergemm.moe import QuantMoE

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "python"))
from on_gpu import MOE, same_bits, to_gpu
from operator_calls import CALLS

FP8 = torch.float8_e4m3fn
HOSTILE = (0, -1, 2**31 - 1, -(2**31))
ROUTINGS = ("uniform", "one_hot", "all_empty", "trailing_empty", "hostile")
KINDS = [(torch.int8, "tensor"), (torch.int8, "row"), (FP8, "tensor"), (FP8, "row"), (FP8, "blocks")]
# Quantization's own error in such a layer: measured, at most 0.036 (int8) and 0.069 (fp8). Another expert's weights: above 1.
ERROR = {torch.int8: 0.05, FP8: 0.1}


def exact_fp8(*shape: int) -> torch.Tensor:
    """From {-1, 0, 1, 2}: every partial sum fits the tensor core's accumulator, so every bit is known."""
    return torch.randint(-1, 3, shape).float().to(FP8)


def matrix(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8) if dtype == torch.int8 else exact_fp8(*shape)


def random_ids(tokens: int, top_k: int, experts: int, routing: str, dtype=torch.int32) -> torch.Tensor:
    if routing == "uniform":
        return torch.rand(tokens, experts).argsort(1)[:, :top_k].to(dtype)
    if routing == "one_hot":
        return torch.full((tokens, top_k), experts // 2, dtype=dtype)
    if routing == "all_empty":
        return torch.full((tokens, top_k), -1, dtype=dtype)
    if routing == "trailing_empty":
        return torch.randint(0, experts // 2 + 1, (tokens, top_k), dtype=dtype)
    values = torch.tensor([*HOSTILE, experts, experts + 1, *range(experts)])
    return values[torch.randint(0, len(values), (tokens, top_k))].to(dtype)


# ---- each operator has the CPU's bits --------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [call for call in CALLS if call.name.startswith(MOE)], ids=lambda call: call.name)
def test_every_operator_has_the_cpus_bits(call):
    arguments = call.make()
    if call.name.startswith(("grouped_", "cutlass_moe_mm")):  # fp8 products: exact on both
        for name, value in arguments.items():
            if isinstance(value, torch.Tensor) and value.dtype == FP8:
                arguments[name] = torch.empty_strided(value.size(), value.stride(), dtype=FP8).copy_(
                    exact_fp8(*value.shape)
                )
            elif isinstance(value, torch.Tensor) and "scale" in name:
                arguments[name] = torch.exp2(torch.randint(-2, 3, value.shape).float())
    if call.name == "fused_moe":
        for name in ("w13", "w2"):
            if arguments[name].dtype != torch.int8:
                pytest.fail("fused_moe's example is to be int8: its bits are known")
    on_gpu = {name: to_gpu(value) for name, value in arguments.items()}
    expected, got = call.run(arguments), call.run(on_gpu)
    pairs = []
    if expected is not None:
        pairs = list(zip(expected, got, strict=True)) if isinstance(expected, (tuple, list)) else [(expected, got)]
    pairs += [(arguments[name], on_gpu[name]) for name in call.written]
    assert pairs
    for x, y in pairs:
        assert y.is_cuda and same_bits(x, y)


@pytest.mark.parametrize("routing", ROUTINGS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("tokens, top_k, experts", [(1, 8, 256), (300, 8, 60), (4096, 8, 512), (20000, 6, 64)])
def test_route(tokens, top_k, experts, dtype, routing):
    ids = random_ids(tokens, top_k, experts, routing, dtype)
    for x, y in zip(evergemm.moe_route(ids, experts), evergemm.moe_route(ids.cuda(), experts), strict=True):
        assert same_bits(x, y)


def scales(kind: str, rows: tuple[int, ...], experts: int, n: int, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    kb, nb = -(-k // 128), -(-n // 128)

    def power_of_two(*shape: int) -> torch.Tensor:
        return torch.exp2(torch.randint(-2, 3, shape).float())

    if kind == "tensor":
        return power_of_two(1), power_of_two(experts)
    if kind == "row":
        return power_of_two(*rows, 1), power_of_two(experts, 1, n)
    return power_of_two(*rows, kb), power_of_two(experts, kb, nb)


@pytest.mark.parametrize("dtype, kind", KINDS, ids=str)
@pytest.mark.parametrize(
    "experts, rows, n, k", [(5, 37, 136, 208), (8, 700, 512, 256), (60, 256, 256, 384), (3, 9, 31, 17)]
)
def test_grouped_has_the_cpus_bits(dtype, kind, experts, rows, n, k):
    a, b = matrix(dtype, rows, k), matrix(dtype, experts, n, k).transpose(1, 2)
    scale_a, scale_b = scales(kind, (rows,), experts, n, k)
    cuts = torch.cat([torch.randint(1, rows, (experts,)).sort().values, torch.tensor([rows - 1])]).int()
    for out_dtype in (torch.bfloat16, torch.float32):
        call = (a, b, scale_a, scale_b, cuts, out_dtype)
        got = evergemm.grouped_scaled_mm(*map(to_gpu, call))
        assert same_bits(evergemm.grouped_scaled_mm(*call), got)
        out = torch.full((rows, n), 7, dtype=out_dtype, device="cuda")
        evergemm.grouped_scaled_mm(*map(to_gpu, call[:-1]), out=out)
        begin, end = int(cuts[0]), int(cuts[-1])
        assert same_bits(out[begin:end], got[begin:end]) and out[:begin].eq(7).all() and out[end:].eq(7).all()


@pytest.mark.parametrize("dtype, kind", KINDS, ids=str)
def test_masked_has_the_cpus_bits(dtype, kind):
    experts, capacity, n, k = 6, 70, 144, 256
    a, b = matrix(dtype, experts, capacity, k), matrix(dtype, experts, n, k).transpose(1, 2)
    scale_a, scale_b = scales(kind, (experts, capacity), experts, n, k)
    counts = torch.tensor([3, 0, 2**31 - 1, -5, 70, 33], dtype=torch.int32)
    call = (a, b, scale_a, scale_b, counts, torch.float32)
    assert same_bits(evergemm.grouped_scaled_mm_masked(*call), evergemm.grouped_scaled_mm_masked(*map(to_gpu, call)))


# ---- the layer -------------------------------------------------------------------------------------------------------


class Layer:
    """Random weights in float, and as fused_moe wants them, on the GPU."""

    def __init__(self, experts: int, hidden: int, intermediate: int, dtype: torch.dtype, kind: str):
        self.float13 = torch.randn(experts, 2 * intermediate, hidden, device="cuda") / hidden**0.5
        self.float2 = torch.randn(experts, hidden, intermediate, device="cuda") / intermediate**0.5
        self.w13, self.s13 = self.quantized(self.float13, dtype, kind)
        self.w2, self.s2 = self.quantized(self.float2, dtype, kind)
        self.dtype, self.kind = dtype, kind

    @staticmethod
    def quantized(weights: torch.Tensor, dtype: torch.dtype, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
        most = 127 if dtype == torch.int8 else 448
        experts, n, k = weights.shape
        if kind == "blocks":
            pairs = [evergemm.quantize_per_block(w, 128, 128, dtype) for w in weights]
            return torch.stack([q for q, _ in pairs]), torch.stack([s for _, s in pairs])
        scale = weights.abs().amax((1, 2) if kind == "tensor" else 2, keepdim=True) / most
        q = (weights / scale).clamp(-most, most)
        q = q.round().to(dtype) if dtype == torch.int8 else q.to(dtype)
        return q, scale.view(experts) if kind == "tensor" else scale.view(experts, n)

    def __call__(self, x, weights, ids, **options):
        return evergemm.fused_moe(x, self.w13, self.w2, self.s13, self.s2, weights, ids, **options)

    def on_cpu(self, x, weights, ids, **options):
        options = {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
        stored = (t.cpu() for t in (self.w13, self.w2, self.s13, self.s2))
        return evergemm.fused_moe(x.cpu(), *stored, weights.cpu(), ids.cpu(), **options)

    def dense(self, x, weights, ids) -> torch.Tensor:
        """The layer in float64, with weights and activations that were never quantized."""
        x, result = x.double(), torch.zeros(x.shape, dtype=torch.float64, device="cuda")
        for expert in range(self.w13.shape[0]):
            token, choice = (ids == expert).nonzero(as_tuple=True)
            gate, up = (x[token] @ self.float13[expert].double().t()).chunk(2, 1)
            y = (torch.nn.functional.silu(gate) * up) @ self.float2[expert].double().t()
            result.index_add_(0, token, y * weights[token, choice].double()[:, None])
        return result


def relative_error(result: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((result.double() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    "tokens, top_k, experts, hidden, intermediate",
    [(1, 8, 64, 512, 128), (8, 4, 16, 256, 256), (130, 2, 8, 384, 128), (700, 6, 32, 256, 128)],
)
@pytest.mark.parametrize("kind", ["tensor", "row"])
@pytest.mark.parametrize("routing", ["uniform", "hostile"])
def test_int8_layer_has_the_cpus_bits(tokens, top_k, experts, hidden, intermediate, kind, routing):
    layer = Layer(experts, hidden, intermediate, torch.int8, kind)
    x, weights = torch.randn(tokens, hidden, dtype=torch.bfloat16, device="cuda"), torch.rand(tokens, top_k).cuda()
    ids = random_ids(tokens, top_k, experts, routing, torch.int64).cuda()
    assert same_bits(layer.on_cpu(x, weights, ids), layer(x, weights, ids))
    if kind == "tensor":
        options = {"a1_scale": torch.tensor(0.03).cuda(), "a2_scale": torch.tensor(0.02).cuda()}
        assert same_bits(layer.on_cpu(x, weights, ids, **options), layer(x, weights, ids, **options))


@pytest.mark.parametrize("dtype, kind", KINDS, ids=str)
@pytest.mark.parametrize("routing", ["uniform", "one_hot", "hostile"])
@pytest.mark.parametrize("tokens", [1, 19, 300])
def test_layer_against_dense_floats(dtype, kind, routing, tokens):
    layer = Layer(8, 256, 384, dtype, kind)
    x, weights = torch.randn(tokens, 256, dtype=torch.bfloat16, device="cuda"), torch.rand(tokens, 3).cuda()
    ids = random_ids(tokens, 3, 8, routing).cuda()
    result, wanted = layer(x, weights, ids), layer.dense(x, weights, ids)
    if wanted.any():
        assert relative_error(result, wanted) < ERROR[dtype]
        assert relative_error(result, layer.dense(x, weights, (ids + 1) % 8)) > 0.5
    nowhere = ((ids < 0) | (ids >= 8)).all(1)
    assert result[nowhere].eq(0).all()


@pytest.mark.parametrize("dtype, kind", [pair for pair in KINDS if pair[1] != "tensor"], ids=str)
@pytest.mark.parametrize("activation", ["silu", "gelu", "relu_squared"])
def test_layer_is_its_steps(dtype, kind, activation):
    layer = Layer(6, 256, 384, dtype, kind)
    x, weights = torch.randn(77, 256, dtype=torch.bfloat16, device="cuda"), torch.rand(77, 2).cuda()
    ids = random_ids(77, 2, 6, "hostile").cuda()
    group = {"row": 0, "blocks": 128}[kind]
    scale13, scale2 = (s.transpose(1, 2) if group else s for s in (layer.s13, layer.s2))
    offsets, source_row, slot = evergemm.moe_route(ids, 6)
    q, scale = evergemm.moe_gather_quantize(x, source_row, None, None, group, dtype)
    h = evergemm.grouped_scaled_mm(q, layer.w13.transpose(1, 2), scale, scale13, offsets, x.dtype)
    q, scale = evergemm.activate_and_quantize(h, activation, True, group, dtype)
    y = evergemm.grouped_scaled_mm(q, layer.w2.transpose(1, 2), scale, scale2, offsets, x.dtype)
    wanted = evergemm.moe_combine(y, slot, weights, x.dtype)
    assert same_bits(layer(x, weights, ids, activation=activation), wanted)


def test_layer_with_a_map_and_weights_on_the_input():
    layer = Layer(4, 128, 64, torch.int8, "row")
    x, weights = torch.randn(50, 128, dtype=torch.bfloat16, device="cuda"), torch.rand(50, 1).cuda()
    ids = torch.randint(0, 8, (50, 1)).cuda()
    expert_map = torch.tensor([-1, 2, -1, 0, 3, -1, 1, -1], dtype=torch.int32).cuda()
    for on_input in (False, True):
        options = {"expert_map": expert_map, "apply_router_weight_on_input": on_input}
        assert same_bits(layer.on_cpu(x, weights, ids, **options), layer(x, weights, ids, **options))


# ---- graphs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, kind", [(torch.int8, "row"), (FP8, "blocks")], ids=str)
@pytest.mark.parametrize("tokens", [1, 24, 200])
def test_graph_of_the_layer_replays_with_changed_routing(dtype, kind, tokens):
    """10^4 replays in all; every replay has another routing, chosen on the device from a pool of them."""
    experts, top_k, pool = 16, 4, 50
    layer = Layer(experts, 256, 128, dtype, kind)
    x, weights = torch.randn(tokens, 256, dtype=torch.bfloat16, device="cuda"), torch.rand(tokens, top_k).cuda()
    routings = torch.stack(
        [random_ids(tokens, top_k, experts, ROUTINGS[i % len(ROUTINGS)]) for i in range(pool)]
    ).cuda()
    expected = torch.stack([layer(x, weights, ids) for ids in routings])
    ids, turn = routings[0].clone(), torch.zeros(1, dtype=torch.int64, device="cuda")
    wrong = torch.zeros(1, dtype=torch.int64, device="cuda")

    def step():
        ids.copy_(routings.index_select(0, turn)[0])
        result = layer(x, weights, ids)
        wrong.add_((result.view(torch.int16) != expected.index_select(0, turn)[0].view(torch.int16)).sum())
        turn.add_(1).remainder_(pool)

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(10):
            step()
    turn.zero_()
    for _ in range(170):
        graph.replay()
    assert int(wrong) == 0


@pytest.mark.parametrize(
    "dtype, kind", [(torch.int8, "row"), (FP8, "row"), (FP8, "blocks"), (torch.int8, "tensor")], ids=str
)
@pytest.mark.parametrize("tokens, hidden", [(1, 2048), (8, 2048), (64, 512), (65, 512), (500, 512)])
def test_layers_that_follow_each_other(dtype, kind, tokens, hidden):
    """Kernels of a chain start while the one before ends, and products fetch weights meanwhile: layer after layer with another
    routing, nothing between them, has the bits of layers with the device idle between them."""
    experts, top_k, layers = 64, 8, 12
    layer = Layer(experts, hidden, 512, dtype, kind)
    weights = torch.rand(tokens, top_k).cuda() / 4
    pool = torch.stack([random_ids(tokens, top_k, experts, ROUTINGS[i % 2]) for i in range(4 * layers)]).cuda()
    ids = [torch.zeros(tokens, top_k, dtype=torch.int32, device="cuda") for _ in range(layers)]
    x = torch.randn(tokens, hidden, dtype=torch.bfloat16, device="cuda")

    def chain(between=lambda: None):
        results = [x]
        for one in ids:
            results.append(layer(results[-1], weights, one))
            between()
        return results

    chain()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain()
    for turn in range(4):
        for i, one in enumerate(ids):
            one.copy_(pool[turn * layers + i])
        expected = chain(torch.cuda.synchronize)
        for _ in range(5):
            graph.replay()
        eager = chain()
        for i, wanted in enumerate(expected):
            assert same_bits(wanted, captured[i]) and same_bits(wanted, eager[i]), (turn, i)


# ---- vLLM's calling pattern ------------------------------------------------------------------------------------------


def vllm_layer(layer: Layer, x, weights, ids, per_token: bool, blockscales: bool):
    """As vLLM's fused_experts does it with these operators: quantize all tokens, permute, product, silu and mul in x's type,
    quantize, product, unpermute with weights."""
    (tokens, top_k), (experts, k, n), rows = ids.shape, layer.w2.shape, ids.numel()

    def int32(*shape, fill=0):
        return torch.full(shape, fill, dtype=torch.int32, device="cuda")

    offsets, sizes1, sizes2 = int32(experts + 1), int32(experts, 3), int32(experts, 3)
    a_map, c_map = int32(rows), int32(rows)
    blocks = int32(experts + 1) if blockscales else None
    vllm.get_cutlass_moe_mm_data(ids, offsets, sizes1, sizes2, a_map, c_map, experts, n, k, blocks, True)
    k_pitch, c1_pitch, n_pitch, c2_pitch = (
        torch.full((experts,), width, dtype=torch.int64, device="cuda") for width in (k, 2 * n, n, k)
    )
    per_channel = layer.kind == "row"
    q, scale = vllm.scaled_fp8_quant(x, use_per_token_if_dynamic=per_token)
    q = q.view(torch.uint8)[a_map.long()].view(FP8)
    scale = scale[a_map.long()] if per_token else scale
    c1 = torch.zeros(rows, 2 * n, dtype=x.dtype, device="cuda")
    c3 = torch.zeros(rows, k, dtype=x.dtype, device="cuda")
    vllm.cutlass_moe_mm(
        c1,
        q,
        layer.w13,
        scale,
        layer.s13,
        offsets[:-1].long(),
        sizes1,
        k_pitch,
        k_pitch,
        c1_pitch,
        per_token,
        per_channel,
    )
    gate, up = c1.chunk(2, 1)
    q2, scale2 = vllm.scaled_fp8_quant(
        torch.nn.functional.silu(gate.float()).to(x.dtype) * up, use_per_token_if_dynamic=per_token
    )
    vllm.cutlass_moe_mm(
        c3,
        q2,
        layer.w2.transpose(1, 2),
        scale2,
        layer.s2,
        offsets[:-1],
        sizes2,
        n_pitch,
        n_pitch,
        c2_pitch,
        per_token,
        per_channel,
    )
    routed = (ids >= 0) & (ids < experts)
    gathered = torch.cat([c3, torch.zeros(1, k, dtype=x.dtype, device="cuda")])[c_map.view(tokens, top_k).long()]
    return (gathered.double() * (weights * routed)[..., None]).sum(1)


@pytest.mark.parametrize(
    "tokens, top_k", [(1, 2), (16, 4), (40, 6), (600, 4)], ids=str
)  # 16 * 4: the last transposed sizes
@pytest.mark.parametrize("per_token", [True, False], ids=["per_token", "per_tensor"])
@pytest.mark.parametrize("kind", ["row", "tensor"])
@pytest.mark.parametrize("parallel", [False, True], ids=["all_experts", "expert_parallel"])
def test_vllms_calling_pattern(tokens, top_k, per_token, kind, parallel):
    layer = Layer(8, 256, 144, FP8, kind)
    x, weights = torch.randn(tokens, 256, dtype=torch.bfloat16, device="cuda"), torch.rand(tokens, top_k).cuda()
    ids = random_ids(tokens, top_k, 8, "uniform").cuda()
    if parallel:
        ids[torch.rand(tokens, top_k) < 0.5] = -1  # on another rank
    wanted = layer.dense(x, weights, ids)
    for blockscales in (False, True):
        result = vllm_layer(layer, x, weights, ids, per_token, blockscales)
        assert (result - wanted).norm() <= 0.1 * wanted.norm()
        if (ids >= 0).any():
            others = torch.where(ids >= 0, (ids + 1) % 8, -1)
            assert (result - layer.dense(x, weights, others)).norm() > 0.5 * wanted.norm()


# ---- modules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=str)
def test_quant_moe_moves_to_the_gpu(dtype):
    module = QuantMoE(
        matrix(dtype, 8, 2 * 96, 128), matrix(dtype, 8, 128, 96), torch.rand(8, 192) / 100, torch.rand(8, 128) / 100
    )
    x, weights = torch.randn(33, 128, dtype=torch.bfloat16), torch.rand(33, 2)
    index = random_ids(33, 2, 8, "uniform", torch.int64)
    wanted = module(x, index, weights)
    got = module.cuda()(x.cuda(), index.cuda(), weights.cuda())
    if dtype == torch.int8:
        assert same_bits(wanted, got)
    else:
        assert (
            relative_error(got.cpu(), wanted.double()) < 0.02
        )  # fp8 sums differ; one fp8 step of an activation is 0.06


class MixtralExperts(torch.nn.Module):
    """What quantize_ asks of transformers' class of that name."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = torch.nn.Parameter(torch.randn(4, 144, 96) / 10)
        self.down_proj = torch.nn.Parameter(torch.randn(4, 96, 72) / 8)
        self.act_fn = torch.nn.SiLU()

    def forward(self, hidden_states, top_k_index, top_k_weights):
        result = torch.zeros_like(hidden_states)
        for expert in range(4):
            token, choice = (top_k_index == expert).nonzero(as_tuple=True)
            gate, up = (hidden_states[token] @ self.gate_up_proj[expert].t()).chunk(2, 1)
            y = (self.act_fn(gate) * up) @ self.down_proj[expert].t()
            result.index_add_(0, token, y * top_k_weights[token, choice, None].to(y.dtype))
        return result


def stand_in() -> torch.nn.Module:
    model = torch.nn.Module()
    model.experts = MixtralExperts()
    return model


def mixtral() -> torch.nn.Module:
    from transformers import MixtralConfig, MixtralModel

    sizes = dict(
        vocab_size=50, hidden_size=96, intermediate_size=72, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    model = MixtralModel(MixtralConfig(**sizes)).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


MODELS = [stand_in, mixtral] if importlib.util.find_spec("transformers") else [stand_in]


@pytest.mark.parametrize("config", [evergemm.Int8Dynamic, evergemm.Fp8Dynamic, evergemm.Fp8Block])
@pytest.mark.parametrize("make", MODELS)
def test_quantizing_experts_on_the_gpu(make, config):
    """The buffers that the CPU makes; int8 results with its bits."""
    with torch.no_grad():
        on_cpu = make().to(torch.bfloat16)
        on_gpu = copy.deepcopy(on_cpu).cuda()
        for model in (on_cpu, on_gpu):
            report = evergemm.quantize_(model, config())
            (experts,) = (one for one in report.layers if one.name.endswith("experts"))
            assert experts.row.startswith("cpu_moe_" if model is on_cpu else "cuda_moe_layer")
            assert 0 < experts.relative_error < 0.09
        first, second = (model.get_submodule(experts.name) for model in (on_cpu, on_gpu))
        for name, buffer in first.named_buffers():
            assert same_bits(buffer, second.get_buffer(name)), name
        x, weights = torch.randn(21, 96, dtype=torch.bfloat16), torch.rand(21, 2)
        index = random_ids(21, 2, 4, "uniform", torch.int64)
        wanted, got = first(x, index, weights), second(x.cuda(), index.cuda(), weights.cuda())
        if config is evergemm.Int8Dynamic:
            assert same_bits(wanted, got)
        assert relative_error(got.cpu(), wanted.double()) < 0.02


def test_bench_times_whole_layers(tmp_path):
    words = "bench --moe --shapes 16x4x512x256 --m 1,40 --rounds 2 --seconds 0.001"
    assert main([*words.split(), "--output", str(tmp_path)]) == 0
    with (tmp_path / "moe.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len([one for one in lines if one["implementation"] == "evergemm"]) == 6
    assert "torch._scaled_grouped_mm" in {one["implementation"] for one in lines}
    for one in lines:
        assert 0 < float(one["roofline"]) < float(one["microseconds"])
    assert (tmp_path / "moe.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_row_does_not_depend_on_its_neighbours():
    layer = Layer(8, 256, 128, FP8, "row")
    x, weights = torch.randn(300, 256, dtype=torch.bfloat16, device="cuda"), torch.rand(300, 2).cuda()
    ids = random_ids(300, 2, 8, "uniform").cuda()
    whole = layer(x, weights, ids, deterministic=True)
    for tokens in (1, 7, 16, 33, 64, 128, 299):
        part = layer(x[:tokens], weights[:tokens], ids[:tokens], deterministic=True)
        assert same_bits(part, whole[:tokens]), tokens
    order = torch.randperm(300).cuda()
    assert same_bits(layer(x[order], weights[order], ids[order], deterministic=True), whole[order])


def test_a_group_wider_than_any_row():
    x, source = torch.randn(3, 16, dtype=torch.bfloat16), torch.tensor([2, 0, 1], dtype=torch.int32)
    for group_size in (17, 2**62, 2**63 - 1):
        expected = evergemm.moe_gather_quantize(x, source, None, None, group_size, torch.float8_e4m3fn)
        found = evergemm.moe_gather_quantize(x.cuda(), source.cuda(), None, None, group_size, torch.float8_e4m3fn)
        for one, other in zip(expected, found, strict=True):
            assert same_bits(one, other.cpu()), group_size


def test_more_than_2_to_the_31_elements_of_weights():
    experts, n, k = 70, 8192, 4096
    b = torch.randint(-128, 128, (experts, n, k), dtype=torch.int8, device="cuda")
    assert b.numel() > 2**31
    a = matrix(torch.int8, 96, k).cuda()
    offsets = torch.zeros(experts + 1, dtype=torch.int32)
    offsets[1], offsets[experts - 1], offsets[experts] = 20, 20, 96
    offsets[1 : experts - 1] = 20
    got = evergemm.grouped_scaled_mm(
        a, b.transpose(1, 2), torch.ones(1).cuda(), torch.ones(experts).cuda() / 65536, offsets.cuda()
    )
    one, scale = torch.ones(1).cuda(), torch.full((1,), 1 / 65536).cuda()
    for begin, end, expert in ((0, 20, 0), (20, 96, experts - 1)):
        assert same_bits(got[begin:end], evergemm.scaled_mm(a[begin:end], b[expert].t(), one, scale))
