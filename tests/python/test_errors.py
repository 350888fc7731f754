# SPDX-License-Identifier: Apache-2.0
"""Every refusal that a caller in Python can meet, by its whole text, from the kernels and from fake tensors alike.

The rules themselves are the validator's (tests/cpp/validate_test.cpp); here they are asked through torch, with torch's
tensors. Each row changes the good call of operator_calls.py (m 6, n 48, k 256) in one place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import evergemm
import numpy as np
import pytest
import torch
from operator_calls import BY_NAME, CALLS, FP8, K, M, N, fp8_matrix, int8_matrix
from torch._subclasses.fake_tensor import FakeTensorMode


@dataclasses.dataclass(frozen=True)
class Refused:
    name: str
    change: Callable[[dict], dict]
    text: str
    fakes: bool = True  # False: a rule about memory, which fake tensors do not have


def replaced(**values: object) -> Callable[[dict], dict]:
    return lambda arguments: {**arguments, **values}


def changed(name: str, function: Callable[[torch.Tensor], object]) -> Callable[[dict], dict]:
    return lambda arguments: {**arguments, name: function(arguments[name])}


def bfloat16(*sizes: int) -> torch.Tensor:
    return torch.zeros(sizes, dtype=torch.bfloat16)


def short_storage(arguments: dict) -> dict:
    """a, whose storage was cut by one byte behind its back."""
    a = arguments["a"]
    a.untyped_storage().resize_(M * K - 1)
    return arguments


def short_storage_behind_an_offset(arguments: dict) -> dict:
    memory = int8_matrix(M + 2, K)
    a = memory[2:]  # before the cut: older torches look at the storage when they make a view
    memory.untyped_storage().resize_((M + 2) * K - 1)
    return {**arguments, "a": a}


def misaligned(scale: torch.Tensor) -> torch.Tensor:
    memory = np.zeros(4 * scale.numel() + 4, np.uint8)
    return torch.from_numpy(memory[2:-2].view(np.float32))


ONE_OF_THESE = "pass a scale of one of these shapes"
NO_BLOCKS = " (block scales are for float8_e4m3fn operands without zero points)"
X_DTYPES = "bfloat16, float16 or float32"

REFUSED = (
    # ---- scaled_mm, in signature order -------------------------------------------------------------------------------
    Refused(
        "scaled_mm",
        changed("a", lambda a: a.to(torch.bfloat16)),
        "scaled_mm: expected a of dtype int8 or float8_e4m3fn; got bfloat16; fix: convert or quantize a to one of "
        "them.",
    ),
    Refused(
        "scaled_mm",
        changed("a", lambda a: a.to(torch.float8_e5m2)),
        "scaled_mm: expected a of dtype int8 or float8_e4m3fn; got float8_e5m2; "
        "fix: convert or quantize a to one of them.",
    ),
    Refused(
        "scaled_mm",
        changed("a", lambda a: a.to(torch.complex64)),
        "scaled_mm: expected a of dtype int8 or float8_e4m3fn; got dtype code 9; "
        "fix: convert or quantize a to one of them.",
    ),
    Refused(
        "scaled_mm",
        changed("a", lambda a: a[None]),
        "scaled_mm: expected a of rank 2 [m, k]; got shape [1, 6, 256], strides [1536, 256, 1]; "
        "fix: reshape a to [m, k].",
    ),
    Refused(
        "scaled_mm",
        changed("a", lambda a: a.t().contiguous().t()),
        "scaled_mm: expected a row-major (stride(1) == 1); got shape [6, 256], strides [1, 6]; "
        "fix: pass a.contiguous().",
    ),
    Refused(
        "scaled_mm",
        replaced(a=torch.zeros(1, 131072, dtype=torch.int8)),
        "scaled_mm: expected k of at most 131071 for int8 (the sum is exact in int32 up to there); got k = 131072; "
        "fix: split k and add the results, or use float8_e4m3fn.",
    ),
    Refused(
        "scaled_mm",
        replaced(b=fp8_matrix(N, K).t()),
        "scaled_mm: expected b of dtype int8; got float8_e4m3fn; fix: pass b.to(torch.int8).",
    ),
    Refused(
        "scaled_mm",
        replaced(b=torch.zeros(K, dtype=torch.int8)),
        "scaled_mm: expected b of rank 2 [k, n]; got shape [256], strides [1]; fix: reshape b to [k, n].",
    ),
    Refused(
        "scaled_mm",
        replaced(b=int8_matrix(N, K - 1).t()),
        "scaled_mm: expected b with as many rows as a has columns (k = 256); got shape [255, 48], strides [1, 255]; "
        "fix: pass weight.t() of an [n, k] weight with the same k as a.",
    ),
    Refused(
        "scaled_mm",
        changed("b", lambda b: b.contiguous()),
        "scaled_mm: expected b column-major (stride(0) == 1); got shape [256, 48], strides [48, 1]; "
        "fix: pass weight.t() of a contiguous [n, k] weight.",
    ),
    Refused(
        "scaled_mm",
        changed("scale_a", lambda scale: scale.half()),
        "scaled_mm: expected scale_a of dtype float32; got float16; fix: pass scale_a.to(torch.float32).",
    ),
    Refused(
        "scaled_mm",
        changed("scale_a", lambda scale: scale.to(torch.float8_e8m0fnu)),
        "scaled_mm: expected scale_a of dtype float32; got float8_e8m0fnu; fix: pass scale_a.to(torch.float32).",
    ),
    Refused(
        "scaled_mm",
        replaced(scale_a=torch.ones(M + 1)),
        "scaled_mm: expected scale_a of 1 element (TensorWise) or shape [6] or [6, 1] (RowWise); "
        f"got shape [7], strides [1]; fix: {ONE_OF_THESE}{NO_BLOCKS}.",
    ),
    Refused(
        "scaled_mm",
        replaced(scale_a=torch.ones(M, 2), scale_b=torch.ones(2, 1)),
        "scaled_mm: expected scale_a of 1 element (TensorWise) or shape [6] or [6, 1] (RowWise); "
        f"got shape [6, 2], strides [2, 1]; fix: {ONE_OF_THESE}{NO_BLOCKS}.",
    ),
    Refused(
        "scaled_mm.out",
        replaced(scale_b=torch.ones(1, 1, N)),
        "scaled_mm: expected scale_b of 1 element (TensorWise), shape [48], [1, 48] or [48, 1] (RowWise) or shape "
        "[2, 1] "
        f"(BlockWise128x128); got shape [1, 1, 48], strides [48, 48, 1]; fix: {ONE_OF_THESE}.",
    ),
    Refused(
        "scaled_mm.out",
        replaced(scale_a=torch.ones(M, 2)),
        "scaled_mm: expected scale_a and scale_b both in blocks, or both TensorWise or RowWise; got scale_a of shape "
        "[6, 2] with scale_b of shape [48]; fix: pass block scales for both operands or for none.",
    ),
    Refused(
        "scaled_mm",
        changed("bias", lambda bias: bias.float()),
        "scaled_mm: expected bias of dtype bfloat16; got float32; fix: pass bias.to(torch.bfloat16).",
    ),
    Refused(
        "scaled_mm",
        changed("bias", lambda bias: bias[:-1]),
        "scaled_mm: expected bias of shape [48] ([n]); got shape [47], strides [1]; "
        "fix: pass a vector with one value for each of the 48 columns of b.",
    ),
    Refused(
        "scaled_mm",
        replaced(out_dtype=torch.float64, bias=None),
        "scaled_mm: expected out_dtype bfloat16, float16 or float32; got float64; fix: choose one of them.",
    ),
    Refused(
        "scaled_mm.out",
        replaced(out=torch.empty(M, N, dtype=torch.int32), bias=None),
        "scaled_mm: expected out of dtype bfloat16, float16 or float32; got int32; "
        "fix: convert or quantize out to one of them.",
    ),
    Refused(
        "scaled_mm.out",
        replaced(out=bfloat16(N, M)),
        "scaled_mm: expected out of shape [6, 48]; got shape [48, 6], strides [6, 1]; "
        "fix: allocate out as torch.empty(m, n).",
    ),
    Refused(
        "scaled_mm.out",
        replaced(out=bfloat16(N, M).t()),
        "scaled_mm: expected out row-major (stride(1) == 1); got shape [6, 48], strides [1, 6]; "
        "fix: allocate out as torch.empty(m, n).",
    ),
    Refused(
        "scaled_mm.out",
        replaced(out=bfloat16(1, N).expand(M, N)),
        "scaled_mm: expected out whose rows do not share elements (stride(0) >= 48); got shape [6, 48], "
        "strides [0, 1]; fix: allocate out as torch.empty(m, n).",
    ),
    Refused(
        "scaled_mm.out",
        lambda arguments: {
            **arguments,
            "a": (memory := torch.zeros(M, 1024, dtype=torch.uint8))[:, :K].view(FP8),
            "out": memory.view(torch.bfloat16)[:, K // 2 - 1 : K // 2 - 1 + N],
        },
        "scaled_mm: expected out that shares no byte with a; got out with shape [6, 48], strides [512, 1] over a with "
        "shape [6, 256], strides [1024, 1]; fix: pass a separate tensor for out.",
    ),
    Refused(
        "scaled_mm.out",
        lambda arguments: {**arguments, "bias": arguments["out"][3]},
        "scaled_mm: expected out that shares no byte with bias; got out with shape [6, 48], strides [48, 1] over bias "
        "with shape [48], strides [1]; fix: pass a separate tensor for out.",
    ),
    Refused(
        "scaled_mm",
        short_storage,
        "scaled_mm: expected a inside its storage (1536 bytes from its first element); got 1535 bytes left in the "
        "storage, shape [6, 256], strides [256, 1]; fix: do not resize the storage of a tensor in use, or pass a fresh "
        "one.",
        fakes=False,
    ),
    Refused(
        "scaled_mm",
        short_storage_behind_an_offset,
        "scaled_mm: expected a inside its storage (1536 bytes from its first element); got 1535 bytes left in the "
        "storage, shape [6, 256], strides [256, 1]; fix: do not resize the storage of a tensor in use, or pass a fresh "
        "one.",
        fakes=False,
    ),
    Refused(
        "scaled_mm",
        changed("scale_b", misaligned),
        "scaled_mm: expected scale_b aligned to its element (4 bytes); got an address that is 2 bytes off; "
        "fix: pass scale_b.clone().",
        fakes=False,
    ),
    # ---- scaled_mm_azp and the forced row --------------------------------------------------------------------------
    Refused(
        "scaled_mm_azp",
        replaced(a=fp8_matrix(M, K)),
        "scaled_mm_azp: expected a of dtype int8; got float8_e4m3fn; fix: pass a.to(torch.int8).",
    ),
    Refused(
        "scaled_mm_azp",
        changed("azp_adj", lambda adj: adj.long()),
        "scaled_mm_azp: expected azp_adj of dtype int32; got int64; fix: pass azp_adj.to(torch.int32).",
    ),
    Refused(
        "scaled_mm_azp.out",
        changed("azp_adj", lambda adj: adj[None]),
        "scaled_mm_azp: expected azp_adj of shape [48] ([n]); got shape [1, 48], strides [48, 1]; "
        "fix: pass a vector with one value for each of the 48 columns of b.",
    ),
    Refused(
        "scaled_mm_azp.out",
        changed("azp", lambda azp: azp[1:]),
        "scaled_mm_azp: expected azp of 6 evenly spaced elements (m); got shape [5], strides [1]; "
        "fix: pass a vector with one value for each of the 6 rows of a.",
    ),
    Refused(
        "_scaled_mm_row",
        replaced(row=-1),
        "_scaled_mm_row: expected row of at least 0; got a negative number; fix: choose a row of the table.",
    ),
    Refused(
        "_scaled_mm_row",
        replaced(row=1 << 40),
        "scaled_mm_azp: expected row in [0, ROWS) of cpu; got 2147483647; fix: choose a row that "
        "evergemm.explain() lists.",
        fakes=False,  # which rows there are is a question of the device
    ),
    # ---- quantizers ------------------------------------------------------------------------------------------------
    Refused(
        "quantize_per_tensor",
        changed("x", lambda x: x.double()),
        f"quantize_per_tensor: expected x of dtype {X_DTYPES}; got float64; fix: convert or quantize x to one of them.",
    ),
    Refused(
        "quantize_per_tensor",
        changed("x", lambda x: x.t()),
        "quantize_per_tensor: expected x whose rows are contiguous and evenly spaced; got shape [256, 6], "
        "strides [1, 256]; fix: pass x.contiguous().",
    ),
    Refused(
        "quantize_per_tensor",
        replaced(dtype=torch.uint8),
        "quantize_per_tensor: expected dtype int8 or float8_e4m3fn; got uint8; fix: choose one of them.",
    ),
    Refused(
        "quantize_per_tensor.out",
        replaced(out_scale=torch.empty(2)),
        "quantize_per_tensor: expected out_scale of 1 element; got shape [2], strides [1]; "
        "fix: allocate it as torch.empty(1).",
    ),
    Refused(
        "quantize_per_tensor.out",
        lambda arguments: {**arguments, "out_q": arguments["x"].view(FP8)[:, :K]},
        "quantize_per_tensor: expected out_q that shares no byte with x; got out_q with shape [6, 256], "
        "strides [512, 1] over x with shape [6, 256], strides [256, 1]; fix: pass a separate tensor for out_q.",
    ),
    Refused(
        "quantize_static",
        replaced(scale=torch.ones(M + 1)),
        "quantize_static: expected scale of 1 element (TensorWise), shape [6] or [6, 1] (RowWise), [6, 2] "
        "(BlockWise1x128) or [1, 2] (BlockWise128x128); got shape [7], strides [1]; "
        "fix: pass a scale of one of these shapes.",
    ),
    Refused(
        "quantize_static.out",
        replaced(out_q=torch.empty(M, K - 1, dtype=FP8)),
        "quantize_static: expected out_q of the shape of x (last dimension 256); got shape [6, 255], strides [255, 1]; "
        "fix: allocate out_q with that shape.",
    ),
    Refused(
        "quantize_per_token",
        replaced(scale_upper_bound=torch.ones(2)),
        "quantize_per_token: expected scale_upper_bound of 1 element; got shape [2], strides [1]; "
        "fix: pass a scalar tensor.",
    ),
    Refused(
        "quantize_per_token",
        replaced(x=torch.tensor(1.0)),
        "quantize_per_token: expected x of rank 1 or more; got a scalar; fix: pass x.reshape(1, -1).",
    ),
    Refused(
        "quantize_per_token.out",
        replaced(out_scale=torch.empty(M + 1, 1)),
        "quantize_per_token: expected out_scale of 6 evenly spaced elements; got shape [7, 1], strides [1, 1]; "
        "fix: allocate it as torch.empty(6, 1, dtype=torch.float32).",
    ),
    Refused(
        "quantize_per_token.out",
        replaced(out_q=torch.empty(M, K, dtype=torch.uint8)),
        "quantize_per_token: expected out_q of dtype int8 or float8_e4m3fn; got uint8; "
        "fix: convert or quantize out_q to one of them.",
    ),
    Refused(
        "quantize_per_token_asymmetric.out",
        replaced(out_q=torch.empty(M, K, dtype=FP8)),
        "quantize_per_token_asymmetric: expected out_q of dtype int8; got float8_e4m3fn; fix: pass "
        "out_q.to(torch.int8).",
    ),
    Refused(
        "quantize_per_token_asymmetric.out",
        replaced(out_azp=torch.empty(M - 1, dtype=torch.int32)),
        "quantize_per_token_asymmetric: expected out_azp of 6 evenly spaced elements; got shape [5], strides [1]; "
        "fix: allocate it as torch.empty(m, 1, dtype=torch.int32).",
    ),
    Refused(
        "quantize_per_group",
        replaced(group_size=0),
        "quantize_per_group: expected group_size of at least 1; got 0; fix: pass 128.",
    ),
    Refused(
        "quantize_per_group.out",
        replaced(out_scale=torch.empty(M, 3)),
        "quantize_per_group: expected out_scale of shape [6, 2]; got shape [6, 3], strides [3, 1]; "
        "fix: allocate it as torch.empty(6, 2, dtype=torch.float32).",
    ),
    Refused(
        "quantize_per_block",
        replaced(block_n=-1),
        "quantize_per_block: expected block_n of at least 1; got -1; fix: pass 128.",
    ),
    Refused(
        "quantize_per_block",
        replaced(block_k=0),
        "quantize_per_block: expected block_k of at least 1; got 0; fix: pass 128.",
    ),
    Refused(
        "quantize_per_block",
        changed("w", lambda w: w[None]),
        "quantize_per_block: expected w of rank 2 [n, k]; got shape [1, 6, 256], strides [1536, 256, 1]; "
        "fix: reshape w to [n, k].",
    ),
    Refused(
        "activate_and_quantize",
        replaced(activation=3),
        "activate_and_quantize: expected activation 0 (silu), 1 (gelu) or 2 (relu squared); got 3; "
        "fix: choose one of them.",
    ),
    Refused(
        "activate_and_quantize",
        replaced(x=bfloat16(M, 7)),
        "activate_and_quantize: expected an even last dimension of x (gate and up halves); got shape [6, 7], "
        "strides [7, 1]; fix: pass x with both halves.",
    ),
    Refused(
        "activate_and_quantize",
        replaced(group_size=-2),
        "activate_and_quantize: expected group_size of 0 (per token) or more; got -2; fix: pass 128.",
    ),
    Refused(
        "rms_norm_quantize",
        changed("weight", lambda weight: weight[1:]),
        "rms_norm_quantize: expected weight of shape [256]; got shape [255], strides [1]; "
        "fix: pass one value for each column of x.",
    ),
    Refused(
        "rms_norm_quantize",
        changed("weight", lambda weight: weight.float()),
        "rms_norm_quantize: expected weight of dtype bfloat16; got float32; fix: pass weight.to(torch.bfloat16).",
    ),
    Refused(
        "rms_norm_quantize",
        lambda arguments: {**arguments, "residual": arguments["x"]},
        "rms_norm_quantize: expected residual that shares no byte with x; got residual with shape [6, 256], "
        "strides [256, 1] over x with shape [6, 256], strides [256, 1]; fix: pass a separate tensor for residual.",
    ),
    Refused(
        "rms_norm_quantize.out",
        changed("residual", lambda residual: residual[:, 1:]),
        "rms_norm_quantize: expected residual of the shape of x (last dimension 256); got shape [6, 255], "
        "strides [256, 1]; fix: allocate residual with that shape.",
    ),
    # ---- drop-in operators -----------------------------------------------------------------------------------------
    Refused(
        "cutlass_scaled_mm",
        replaced(a_scales=torch.ones(M + 1)),
        "cutlass_scaled_mm: expected a_scales of 1 element (TensorWise) or 6 elements (RowWise); "
        f"got shape [7], strides [1]; fix: {ONE_OF_THESE}{NO_BLOCKS}.",
    ),
    Refused(
        "cutlass_scaled_mm",
        replaced(out=torch.empty(M, N), bias=None),
        "cutlass_scaled_mm: expected out of dtype bfloat16 or float16; got float32; "
        "fix: convert or quantize out to one of them.",
    ),
    Refused(
        "cutlass_scaled_mm_azp",
        changed("azp_adj", lambda adj: adj[:-1]),
        "cutlass_scaled_mm_azp: expected azp_adj of 48 evenly spaced elements (n); got shape [47], strides [1]; "
        "fix: pass a vector with one value for each of the 48 columns of b.",
    ),
    Refused(
        "quantized_linear",
        replaced(weight=int8_matrix(N, K - 1)),
        "quantized_linear: expected weight with as many columns as x has features (k = 256); got shape [48, 255], "
        "strides [255, 1]; fix: pass an [n, k] weight with the k of x.",
    ),
    Refused(
        "quantized_linear",
        replaced(weight_scale=torch.ones(2, 1)),
        "quantized_linear: expected weight_scale of 1 element, shape [48] or [48, 1]; got shape [2, 1], strides [1, 1]; "
        "fix: pass a scale of one of these shapes (blocks are for float8_e4m3fn without input_scale).",
    ),
    Refused(
        "quantized_linear",
        replaced(weight=fp8_matrix(N, K)),
        "quantized_linear: expected azp_adj only with an int8 weight and no input_scale; got a weight of "
        "float8_e4m3fn; fix: leave azp_adj away.",
    ),
    Refused(
        "quantized_linear",
        replaced(bias=torch.zeros(N)),
        "quantized_linear: expected bias of dtype bfloat16; got float32; fix: pass bias.to(torch.bfloat16).",
    ),
    Refused(
        "permute_cols",
        changed("A", lambda a: a.float()),
        "permute_cols: expected A of dtype float16, bfloat16 or int16; got float32; "
        "fix: convert or quantize A to one of them.",
    ),
    Refused(
        "permute_cols",
        changed("A", lambda a: a.t()),
        "permute_cols: expected A contiguous; got shape [256, 6], strides [1, 256]; fix: pass A.contiguous().",
    ),
    Refused(
        "permute_cols",
        changed("perm", lambda perm: perm.long()),
        "permute_cols: expected perm of dtype int32; got int64; fix: pass perm.to(torch.int32).",
    ),
    Refused(
        "permute_cols",
        changed("perm", lambda perm: perm[1:]),
        "permute_cols: expected perm of 256 elements (one for each column of A); got shape [255], strides [1]; "
        "fix: pass a permutation of range(A.size(-1)) as int32.",
    ),
    Refused(
        "per_token_group_fp8_quant",
        changed("input", lambda x: x[:, ::2]),
        "per_token_group_fp8_quant: expected input contiguous; got shape [6, 128], strides [256, 2]; "
        "fix: pass input.contiguous().",
    ),
    Refused(
        "per_token_group_fp8_quant",
        replaced(output_q=torch.empty(M, K, dtype=torch.int8)),
        "per_token_group_fp8_quant: expected output_q of dtype float8_e4m3fn; got int8; "
        "fix: pass output_q.to(torch.float8_e4m3fn).",
    ),
    Refused(
        "per_token_group_fp8_quant",
        replaced(group_size=100),
        "per_token_group_fp8_quant: expected group_size that divides the last dimension of input (256); got 100; "
        "fix: choose a divisor, usually 128.",
    ),
    Refused(
        "per_token_group_quant_int8",
        replaced(int8_min=127.0),
        "per_token_group_quant_int8: expected int8_min < int8_max; got 127.000000 and 127.000000; fix: pass -128 "
        "and 127.",
    ),
    Refused(
        "per_token_group_quant_int8",
        replaced(output_q=torch.empty(M, K - 1, dtype=torch.int8)),
        "per_token_group_quant_int8: expected output_q of the shape of input; got shape [6, 255], strides [255, 1]; "
        "fix: allocate it as torch.empty_like(input, dtype=...).",
    ),
    Refused(
        "per_token_group_fp8_quant_packed",
        replaced(output_s_packed=torch.empty(M, 1, dtype=torch.int32), group_size=32),
        "per_token_group_fp8_quant_packed: expected output_s_packed of shape [6, 2] and strides [1, 8]; got shape "
        "[6, 1], "
        "strides [1, 1]; fix: allocate it as torch.empty_strided(shape, strides, dtype=torch.int32).",
    ),
    # ---- mixture of experts: one of each, the rules are tests/cpp/validate_moe_test.cpp's --------------------------
    Refused(
        "moe_route",
        changed("topk_ids", lambda ids: ids.to(torch.int16)),
        "moe_route: expected topk_ids of dtype int32 or int64; got int16; fix: convert or quantize topk_ids to one of them.",
    ),
    Refused(
        "grouped_scaled_mm",
        changed("b", lambda b: b.contiguous()),
        "grouped_scaled_mm: expected b column-major for each expert (stride(1) == 1); got shape [3, 256, 48], strides "
        "[12288, 48, 1]; fix: pass weight.transpose(1, 2) of a contiguous [experts, n, k] weight.",
    ),
    Refused(
        "grouped_scaled_mm",
        changed("expert_offsets", lambda offsets: offsets[:-1]),
        "grouped_scaled_mm: expected expert_offsets of shape [4] ([experts + 1]); got shape [3], strides [1]; "
        "fix: pass expert_offsets with that many elements.",
    ),
    Refused(
        "grouped_scaled_mm_masked",
        changed("rows_per_expert", lambda rows: rows[:-1]),
        "grouped_scaled_mm_masked: expected rows_per_expert of shape [3] ([experts]); got shape [2], strides [1]; "
        "fix: pass rows_per_expert with that many elements.",
    ),
    Refused(
        "moe_gather_quantize",
        replaced(group_size=-2),
        "moe_gather_quantize: expected group_size -1 (one scale), 0 (a scale a row) or more; got -2; fix: choose one of "
        "them.",
    ),
    Refused(
        "moe_combine",
        changed("topk_weights", lambda weights: weights[:1]),
        "moe_combine: expected topk_weights of shape [2, 2] (tokens, top_k); got shape [1, 2], strides [2, 1]; "
        "fix: pass topk_weights of that shape.",
    ),
    Refused(
        "fused_moe",
        replaced(apply_router_weight_on_input=True),
        "fused_moe: expected top_k 1 with apply_router_weight_on_input; got top_k 2; fix: apply the weights when combining "
        "(apply_router_weight_on_input=False).",
    ),
    Refused(
        "cutlass_moe_mm",
        replaced(per_out_ch=False),
        "cutlass_moe_mm: expected b_scales of 3 evenly spaced elements (per_out_ch=False); got shape [3, 48, 1], strides "
        "[48, 1, 1]; fix: pass one scale an expert, or per_out_ch=True.",
    ),
    Refused(
        "get_cutlass_moe_mm_data",
        replaced(num_experts=4),
        "get_cutlass_moe_mm_data: expected expert_offsets contiguous, of 5 elements (experts + 1); got shape [4], strides "
        "[1]; fix: allocate it with torch.empty(..., dtype=torch.int32).",
    ),
    Refused(
        "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
        replaced(n=2**30),
        "get_cutlass_moe_mm_problem_sizes_from_expert_offsets: expected n in [0, 1073741823]; got 1073741824; "
        "fix: pass the sizes of the weights.",
    ),
    Refused(
        "get_cutlass_batched_moe_mm_data",
        replaced(padded_m=-1),
        "get_cutlass_batched_moe_mm_data: expected padded_m with 0 <= num_local_experts * padded_m < 2^31; got -1; "
        "fix: pass the rows that each expert has room for.",
    ),
)


def expected_text(refused: Refused) -> str:
    rows = len(evergemm._library.library.facts()["architectures"]["cpu"]["rows"])
    return refused.text.replace("ROWS", str(rows))


def identify(refused: Refused) -> str:
    got = refused.text.partition(": expected ")[2].partition("; got ")[0]
    return f"{refused.name}-{'_'.join(got.split()[:4])}"


@pytest.mark.parametrize("refused", REFUSED, ids=identify)
def test_kernels_refuse_by_name(refused):
    call = BY_NAME[refused.name]
    with pytest.raises(RuntimeError) as caught:
        call.run(refused.change(call.make()))
    assert str(caught.value) == expected_text(refused)


@pytest.mark.parametrize("refused", [r for r in REFUSED if r.fakes], ids=identify)
def test_fakes_refuse_in_the_same_words(refused):
    call = BY_NAME[refused.name]
    real = refused.change(call.make())
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(v) if isinstance(v, torch.Tensor) else v for name, v in real.items()}
        with pytest.raises(RuntimeError) as caught:
            call.run(fake)
    assert str(caught.value) == expected_text(refused)


def test_every_operator_is_refused_at_least_once():
    assert {refused.name.partition(".")[0] for refused in REFUSED} == {call.name.partition(".")[0] for call in CALLS}


def test_an_error_leaves_nothing_written():
    call = BY_NAME["scaled_mm.out"]
    arguments = call.make()
    arguments["out"].fill_(7)
    arguments["b"] = arguments["b"].contiguous()
    with pytest.raises(RuntimeError):
        call.run(arguments)
    assert arguments["out"].eq(7).all()


@pytest.mark.parametrize("name", ["scaled_mm", "quantize_per_token"])
def test_meta_tensors_are_judged_like_fakes(name):
    call = BY_NAME[name]
    real = call.make()
    meta = {key: v.to("meta") if isinstance(v, torch.Tensor) else v for key, v in real.items()}
    results, expected = call.run(meta), call.run(real)
    if isinstance(expected, torch.Tensor):
        results, expected = (results,), (expected,)
    for result, wanted in zip(results, expected, strict=True):
        assert (result.shape, result.dtype, result.stride()) == (wanted.shape, wanted.dtype, wanted.stride())


def test_sparse_tensors_and_wrong_types_do_not_reach_the_kernels():
    call = BY_NAME["quantize_per_token"]
    with pytest.raises((RuntimeError, NotImplementedError), match="quantize_per_token"):
        call.run({**call.make(), "x": torch.eye(4).to_sparse()})
    with pytest.raises(RuntimeError, match="quantize_per_token"):
        call.run({**call.make(), "dtype": "int8"})
