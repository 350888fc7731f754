# SPDX-License-Identifier: Apache-2.0
"""vLLM's way through a mixture-of-experts layer with the drop-in operators, on the CPU: data operator, cutlass_moe_mm,
activation, quantizer, cutlass_moe_mm, weighted sum; against the loop of scaled_mm bit for bit and against dense floats. Then
each operator on data of any value, with red zones."""

from __future__ import annotations

import oracle
import pytest
import torch
from evergemm.compat import vllm
from guarded_tensor import GuardedTensor, same_bits
from operator_calls import FP8, fp8_matrix, int8_matrix

HOSTILE = (0, -1, 2**31 - 1, -(2**31), 1, 2, 5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def int32(*shape: int, fill: int = -7) -> torch.Tensor:
    return torch.full(shape, fill, dtype=torch.int32)


# ---- vLLM's calling pattern ------------------------------------------------------------------------------------------


class Layer:
    """Weights as vLLM keeps them: [experts, 2n, k] and [experts, k, n] fp8, a scale an expert or a channel."""

    def __init__(self, experts: int, n: int, k: int, per_channel: bool):
        self.experts, self.n, self.k, self.per_channel = experts, n, k, per_channel
        self.float13 = torch.randn(experts, 2 * n, k) / k**0.5
        self.float2 = torch.randn(experts, k, n) / n**0.5
        self.w13, self.s13 = self.quantized(self.float13)
        self.w2, self.s2 = self.quantized(self.float2)

    def quantized(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = [oracle.quantize_blocks(w, 1 if self.per_channel else w.shape[0], w.shape[1], FP8) for w in weights]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def pitches(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        k, n = self.k, self.n
        return tuple(torch.full((self.experts,), value, dtype=torch.int64) for value in (k, 2 * n, n, k))


def quantize(x: torch.Tensor, per_token: bool) -> tuple[torch.Tensor, torch.Tensor]:
    return vllm.scaled_fp8_quant(x, use_per_token_if_dynamic=per_token)


def grouped_by_loop(out, a, b, a_scales, b_scales, offsets) -> None:
    """What cutlass_moe_mm does, by scaled_mm."""
    import evergemm

    for expert in range(b.shape[0]):
        begin, end = int(offsets[expert]), int(offsets[expert + 1])
        scale_a = a_scales if a_scales.numel() == 1 else a_scales[begin:end]
        scale_b = b_scales[expert].reshape(-1)
        out[begin:end] = evergemm.scaled_mm(a[begin:end], b[expert].t(), scale_a, scale_b, out_dtype=out.dtype)


def vllm_layer(layer: Layer, x, weights, ids, per_token: bool, transposed_view: bool, blockscales: bool, by_loop=False):
    """As vLLM's fused_experts does it with these operators: quantize all tokens, permute, product, silu and mul in x's type,
    quantize, product, unpermute with weights."""
    tokens, top_k = ids.shape
    experts, n, k, rows = layer.experts, layer.n, layer.k, ids.numel()
    offsets, sizes1, sizes2 = int32(experts + 1), int32(experts, 3), int32(experts, 3)
    # Permutations start as zeros: rows that nobody needs gather row 0.
    a_map, c_map = int32(rows, fill=0), int32(rows, fill=0)
    blocks = int32(experts + 1) if blockscales else None
    vllm.get_cutlass_moe_mm_data(ids, offsets, sizes1, sizes2, a_map, c_map, experts, n, k, blocks, True)
    assert (sizes1[:, 1] == 2 * n).all() == (blockscales or rows > 64) or n * 2 in sizes1[:, 1]
    k_pitch, c1_pitch, n_pitch, c2_pitch = layer.pitches()

    q, scale = quantize(x, per_token)
    q = q.view(torch.uint8)[a_map.long()].view(FP8)
    scale = scale[a_map.long()] if per_token else scale
    w13, w2 = (w.transpose(1, 2) if transposed_view else w for w in (layer.w13, layer.w2))
    c1 = torch.zeros(rows, 2 * n, dtype=x.dtype)
    c2 = torch.empty(rows, n, dtype=x.dtype)
    c3 = torch.zeros(rows, k, dtype=x.dtype)
    if by_loop:
        grouped_by_loop(c1, q, layer.w13, scale, layer.s13, offsets)
    else:
        vllm.cutlass_moe_mm(
            c1,
            q,
            w13,
            scale,
            layer.s13,
            offsets[:-1].long(),
            sizes1,
            k_pitch,
            k_pitch,
            c1_pitch,
            per_token,
            layer.per_channel,
        )
    gate, up = c1.chunk(2, 1)
    c2.copy_(torch.nn.functional.silu(gate.float()).to(x.dtype) * up)
    q2, scale2 = quantize(c2, per_token)
    if by_loop:
        grouped_by_loop(c3, q2, layer.w2, scale2, layer.s2, offsets)
    else:
        vllm.cutlass_moe_mm(
            c3, q2, w2, scale2, layer.s2, offsets[:-1], sizes2, n_pitch, n_pitch, c2_pitch, per_token, layer.per_channel
        )
    routed = (ids >= 0) & (ids < experts)
    gathered = torch.cat([c3, torch.zeros(1, k, dtype=x.dtype)])[c_map.view(tokens, top_k).long()]
    return (gathered.double() * (weights * routed)[..., None]).sum(1), offsets


def dense(layer: Layer, x, weights, ids) -> torch.Tensor:
    result = torch.zeros(x.shape, dtype=torch.float64)
    for token, choice in torch.cartesian_prod(torch.arange(ids.shape[0]), torch.arange(ids.shape[1])).tolist():
        expert = int(ids[token, choice])
        if not 0 <= expert < layer.experts:
            continue
        gate, up = (layer.float13[expert].double() @ x[token].double()).chunk(2)
        y = layer.float2[expert].double() @ (torch.nn.functional.silu(gate) * up)
        result[token] += weights[token, choice].double() * y
    return result


@pytest.mark.parametrize(
    "tokens, top_k", [(1, 2), (13, 4), (16, 4), (40, 6)], ids=str
)  # 16 * 4: the last transposed sizes
@pytest.mark.parametrize("per_token", [True, False], ids=["per_token", "per_tensor"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["per_channel", "per_expert"])
@pytest.mark.parametrize("parallel", [False, True], ids=["all_experts", "expert_parallel"])
def test_vllms_calling_pattern(tokens, top_k, per_token, per_channel, parallel):
    experts, n, k = 8, 72, 160
    layer = Layer(experts, n, k, per_channel)
    x, weights = torch.randn(tokens, k, dtype=torch.bfloat16), torch.rand(tokens, top_k)
    ids = torch.rand(tokens, experts).argsort(1)[:, :top_k].to(torch.int32)
    if parallel:
        ids[torch.rand(tokens, top_k) < 0.5] = -1  # on another rank
    wanted = dense(layer, x, weights, ids)
    loop, offsets = vllm_layer(layer, x, weights, ids, per_token, False, False, by_loop=True)
    for transposed_view in (False, True):
        for blockscales in (False, True):
            result, same_offsets = vllm_layer(layer, x, weights, ids, per_token, transposed_view, blockscales)
            assert same_bits(result, loop) and same_offsets.equal(offsets)
    # fp8's own error in this layer: at most 0.069 measured. Another expert's weights: above 1.
    assert (loop - wanted).norm() <= 0.1 * wanted.norm()
    if (ids >= 0).any():
        others = torch.where(ids >= 0, (ids + 1) % experts, -1)
        assert (loop - dense(layer, x, weights, others)).norm() > 0.5 * wanted.norm()


@pytest.mark.parametrize("counts", [(3, 0, 5, 1), (0, 0, 0, 0), (5, 5, 5, 5)], ids=str)
@pytest.mark.parametrize("capacity", [5, 40], ids=["transposed", "plain"])
def test_vllms_batched_pattern(counts, capacity):
    import evergemm

    experts, n, k = 4, 72, 160
    layer = Layer(experts, n, k, True)
    x = torch.randn(experts, capacity, k, dtype=torch.bfloat16)
    offsets, sizes1, sizes2 = int32(experts), int32(experts, 3), int32(experts, 3)
    vllm.get_cutlass_batched_moe_mm_data(
        offsets, sizes1, sizes2, torch.tensor(counts, dtype=torch.int32), experts, capacity, n, k
    )
    assert offsets.tolist() == [expert * capacity for expert in range(experts)]
    assert (sizes1[:, 0] == 2 * n).all() == (experts * capacity <= 64)
    q, scale = quantize(x.view(-1, k), True)
    k_pitch, c1_pitch, _, _ = layer.pitches()
    out = torch.full((experts * capacity, 2 * n), 7, dtype=torch.bfloat16)
    vllm.cutlass_moe_mm(out, q, layer.w13, scale, layer.s13, offsets, sizes1, k_pitch, k_pitch, c1_pitch, True, True)
    masked = evergemm.grouped_scaled_mm_masked(
        q.view(experts, capacity, k),
        layer.w13.transpose(1, 2),
        scale.view(experts, capacity),
        layer.s13,
        torch.tensor(counts, dtype=torch.int32),
    )
    out = out.view(experts, capacity, 2 * n)
    for expert, count in enumerate(counts):
        assert same_bits(out[expert, :count], masked[expert, :count]) and out[expert, count:].eq(7).all()


def test_sizes_from_offsets_are_those_of_the_data_operator():
    experts, n, k = 6, 24, 40
    for tokens in (5, 50):
        ids = torch.randint(-1, experts + 1, (tokens, 2), dtype=torch.int32)
        offsets, a_map, c_map = int32(experts + 1), int32(2 * tokens), int32(2 * tokens)
        wanted = int32(experts, 3), int32(experts, 3)
        vllm.get_cutlass_moe_mm_data(ids, offsets, *wanted, a_map, c_map, experts, n, k)
        sizes = int32(experts, 3), int32(experts, 3)
        vllm.get_cutlass_moe_mm_problem_sizes_from_expert_offsets(offsets.long(), *sizes, n, k, 2 * tokens <= 64)
        assert sizes[0].equal(wanted[0]) and sizes[1].equal(wanted[1])


def test_reinterpreted_workspaces_are_no_overlap():
    """Inputs and output are views of one storage, side by side."""
    layer = Layer(3, 16, 32, False)
    storage = torch.zeros(4096, dtype=torch.uint8)
    a = storage[:320].view(FP8).view(10, 32)
    a.view(torch.uint8).copy_(fp8_matrix(10, 32).view(torch.uint8))
    out = storage[320 : 320 + 10 * 32 * 2].view(torch.bfloat16).view(10, 32)
    sizes = torch.tensor([[4, 32, 32], [0, 32, 32], [6, 32, 32]], dtype=torch.int32)
    pitch = torch.full((3,), 32, dtype=torch.int64)
    starts = torch.tensor([0, 4, 4])
    vllm.cutlass_moe_mm(out, a, layer.w13, torch.ones(1), layer.s13, starts, sizes, pitch, pitch, pitch, False, False)
    wanted = torch.zeros(10, 32, dtype=torch.bfloat16)
    grouped_by_loop(wanted, a, layer.w13, torch.ones(1), layer.s13, torch.tensor([0, 4, 4, 10]))
    assert same_bits(out, wanted) and storage[960:].eq(0).all()
    with pytest.raises(
        RuntimeError, match="^cutlass_moe_mm: expected out_tensors that shares no byte with a_tensors; got "
    ):
        shifted = storage[318 : 318 + 10 * 32 * 2].view(torch.bfloat16).view(10, 32)
        vllm.cutlass_moe_mm(
            shifted, a, layer.w13, torch.ones(1), layer.s13, starts, sizes, pitch, pitch, pitch, False, False
        )


# ---- data of any value -----------------------------------------------------------------------------------------------


def hostile(*shape: int, dtype: torch.dtype = torch.int32, also: tuple[int, ...] = ()) -> torch.Tensor:
    wide = (2**63 - 1, -(2**63)) if dtype == torch.int64 else ()
    values = torch.tensor([*HOSTILE, *also, *wide], dtype=torch.int64)
    return values[torch.randint(0, len(values), shape)].to(dtype)


def test_cutlass_moe_mm_on_hostile_data_leaves_other_rows_alone():
    """Expert 0 is in order and comes first: whatever the others say, its rows are right and nothing outside is written."""
    experts, rows, n, k = 5, 24, 16, 32
    a, b = int8_matrix(rows, k), int8_matrix(experts * n, k).view(experts, n, k)
    wanted = (a[:4].int() @ b[0].int().t()).bfloat16()
    for _ in range(1500):
        guarded = GuardedTensor((rows, n), torch.bfloat16)
        starts = hostile(experts, dtype=torch.int64, also=(rows, rows - 1, 4, 9))
        sizes = hostile(experts, 3, also=(n, k, rows))
        straight = torch.rand(experts) < 0.6
        sizes[straight, 1], sizes[straight, 2] = n, k
        pitches = [
            torch.where(torch.rand(experts) < 0.7, p, hostile(experts, dtype=torch.int64, also=(2 * p,)))
            for p in (k, k, n)
        ]
        starts[0], sizes[0] = 0, torch.tensor([4, n, k])
        for pitch, value in zip(pitches, (k, k, n), strict=True):
            pitch[0] = value
        vllm.cutlass_moe_mm(
            guarded.tensor, a, b, torch.ones(1), torch.ones(experts), starts, sizes, *pitches, False, False
        )
        guarded.assert_intact()
        assert same_bits(guarded.tensor[:4], wanted)


def test_data_operators_on_hostile_data():
    experts, tokens, top_k, n, k = 6, 15, 3, 8, 16
    for _ in range(500):
        ids = hostile(tokens, top_k, also=(experts, experts + 1))
        guarded = [
            GuardedTensor(shape, torch.int32)
            for shape in (
                (experts + 1,),
                (experts, 3),
                (experts, 3),
                (tokens * top_k,),
                (tokens * top_k,),
                (experts + 1,),
            )
        ]
        offsets, sizes1, sizes2, a_map, c_map, blocks = (g.tensor for g in guarded)
        a_map.fill_(-9)
        vllm.get_cutlass_moe_mm_data(ids, offsets, sizes1, sizes2, a_map, c_map, experts, n, k, blocks, False)
        valid = ids[(ids >= 0) & (ids < experts)]
        counts = torch.bincount(valid.long(), minlength=experts)
        routed = len(valid)
        assert offsets.tolist() == [0, *counts.cumsum(0).tolist()] and sizes1[:, 0].equal(counts.int())
        assert blocks.tolist() == [0, *((counts + 127) // 128 * 128).cumsum(0).tolist()]
        assert sizes1[:, 1].eq(n).all() and sizes2[:, 1].eq(k).all() and sizes2[:, 2].eq(n).all()
        assert a_map[:routed].ge(0).all() and a_map[routed:].eq(-9).all()
        nowhere = ((ids < 0) | (ids >= experts)).flatten()
        assert c_map[nowhere].eq(routed).all() and c_map[~nowhere].sort().values.equal(
            torch.arange(routed, dtype=torch.int32)
        )
        wild = hostile(experts + 1, dtype=torch.int64)
        vllm.get_cutlass_moe_mm_problem_sizes_from_expert_offsets(wild, sizes1, sizes2, n, k, False)
        steps = wild.clamp(0, 2**31 - 1).cummax(0).values.diff()
        assert sizes1[:, 0].equal(steps.int()) and sizes2[:, 0].equal(steps.int())
        rows = GuardedTensor((experts,), torch.int32)
        counts = hostile(experts)
        vllm.get_cutlass_batched_moe_mm_data(rows.tensor, sizes1, sizes2, counts, experts, 12, n, k)
        assert sizes1[:, 0].equal(counts.clamp(0, 12)) and sizes1[:, 1].eq(2 * n).all()
        for one in (*guarded, rows):
            one.assert_intact()


# ---- what is refused -------------------------------------------------------------------------------------------------


def arguments() -> dict:
    experts, rows, n, k = 3, 10, 16, 32
    return {
        "out_tensors": torch.zeros(rows, n, dtype=torch.bfloat16),
        "a_tensors": fp8_matrix(rows, k),
        "b_tensors": fp8_matrix(experts * n, k).view(experts, n, k),
        "a_scales": torch.ones(1),
        "b_scales": torch.ones(experts),
        "expert_offsets": torch.zeros(experts, dtype=torch.int64),
        "problem_sizes": torch.zeros(experts, 3, dtype=torch.int32),
        "a_strides": torch.full((experts,), k),
        "b_strides": torch.full((experts,), k),
        "c_strides": torch.full((experts,), n),
        "per_act_token": False,
        "per_out_ch": False,
    }


@pytest.mark.parametrize(
    "change, text",
    [
        ({"per_act_token": True}, "expected a_scales of 10 evenly spaced elements (per_act_token=True); got shape [1], "),
        ({"a_scales": torch.ones(10)}, "expected a_scales of 1 or 3 (an expert) evenly spaced elements (per_act_token=False); "),
        ({"b_scales": torch.ones(3, 16)}, "expected b_scales of 3 evenly spaced elements (per_out_ch=False); got shape [3, 16]"),
        ({"per_out_ch": True}, "expected b_scales of 48 evenly spaced elements (per_out_ch=True); got shape [3], "),
        ({"expert_offsets": torch.zeros(4, dtype=torch.int64)}, "expected expert_offsets of shape [3] ([experts]); got shape [4]"),
        ({"problem_sizes": torch.zeros(3, 3)}, "expected problem_sizes of dtype int32; got float32"),
        ({"c_strides": torch.zeros(3, dtype=torch.int32)}, "expected c_strides of dtype int64; got int32"),
        ({"out_tensors": torch.zeros(10, 16)}, "expected out_tensors of dtype bfloat16 or float16; got float32"),
        ({"out_tensors": torch.zeros(9, 16).half()}, "expected out_tensors with as many rows as a_tensors (10); got shape [9, 16]"),
        ({"a_tensors": fp8_matrix(10, 64)[:, ::2]}, "expected a_tensors contiguous (start rows count dense rows); got shape [10, 32]"),
        ({"b_tensors": fp8_matrix(30, 32).view(3, 10, 32)}, "expected b_tensors contiguous of shape [3, 16, 32] ([experts, n, k])"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_cutlass_moe_mm_refuses_by_name(change, text):
    with pytest.raises(RuntimeError) as caught:
        vllm.cutlass_moe_mm(**{**arguments(), **change})
    assert str(caught.value).startswith(f"cutlass_moe_mm: {text}") and "; fix: " in str(caught.value)
    vllm.cutlass_moe_mm(**arguments())


def test_one_scale_of_a_for_each_expert():
    given = arguments()
    given["problem_sizes"] = torch.tensor([[4, 16, 32], [16, 2, 32], [4, 16, 32]], dtype=torch.int32)
    given["expert_offsets"] = torch.tensor([0, 4, 6], dtype=torch.int32)
    given["a_scales"] = torch.tensor([1.0, 2.0, 0.5])
    vllm.cutlass_moe_mm(**given)
    wanted = torch.zeros(10, 16, dtype=torch.bfloat16)
    rows = torch.tensor([1.0] * 4 + [2.0] * 2 + [0.5] * 4).view(10, 1)
    grouped_by_loop(
        wanted, given["a_tensors"], given["b_tensors"], rows, given["b_scales"], torch.tensor([0, 4, 6, 10])
    )
    assert same_bits(given["out_tensors"], wanted)
