# SPDX-License-Identifier: Apache-2.0
"""The operators as Python functions: defaults, `out=`, and what each argument means.

Stands between the caller and torch.ops.evergemm. Letters: m rows of activations (tokens), n output features, k
reduction. A scale is always a multiplier, `real = scale * quantized`, float32. All functions are for inference: a
tensor that requires grad, under grad mode, is refused. They run on the device of their tensors, on torch's current
stream, and do not synchronise. A refusal is a RuntimeError `operator: expected ...; got ...; fix: ...`. The exact
arithmetic is in docs/numerics.md. Must not go here: checks that the library makes.
"""

from __future__ import annotations

import torch

_ops = torch.ops.evergemm
_scaled_mm = _ops.scaled_mm.default
_scaled_mm_out = _ops.scaled_mm.out
_scaled_mm_azp = _ops.scaled_mm_azp.default
_scaled_mm_azp_out = _ops.scaled_mm_azp.out
_quantize_per_tensor = _ops.quantize_per_tensor.default
_quantize_per_tensor_out = _ops.quantize_per_tensor.out
_quantize_static = _ops.quantize_static.default
_quantize_static_out = _ops.quantize_static.out
_quantize_per_token = _ops.quantize_per_token.default
_quantize_per_token_out = _ops.quantize_per_token.out
_quantize_per_token_asymmetric = _ops.quantize_per_token_asymmetric.default
_quantize_per_token_asymmetric_out = _ops.quantize_per_token_asymmetric.out
_quantize_per_group = _ops.quantize_per_group.default
_quantize_per_group_out = _ops.quantize_per_group.out
_quantize_per_block = _ops.quantize_per_block.default
_quantize_per_block_out = _ops.quantize_per_block.out
_activate_and_quantize = _ops.activate_and_quantize.default
_activate_and_quantize_out = _ops.activate_and_quantize.out
_rms_norm_quantize = _ops.rms_norm_quantize.default
_rms_norm_quantize_out = _ops.rms_norm_quantize.out
_quantized_linear = _ops.quantized_linear.default
_permute_cols = _ops.permute_cols.default
_moe_route = _ops.moe_route.default
_grouped_scaled_mm = _ops.grouped_scaled_mm.default
_grouped_scaled_mm_out = _ops.grouped_scaled_mm.out
_grouped_scaled_mm_masked = _ops.grouped_scaled_mm_masked.default
_grouped_scaled_mm_masked_out = _ops.grouped_scaled_mm_masked.out
_moe_gather_quantize = _ops.moe_gather_quantize.default
_moe_combine = _ops.moe_combine.default
_fused_moe = _ops.fused_moe.default

_ACTIVATIONS = {"silu": 0, "gelu": 1, "relu_squared": 2}

Pair = tuple[torch.Tensor, torch.Tensor]
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def _check_out_dtype(operator: str, dtype: torch.dtype, q: torch.Tensor) -> None:
    if q.dtype != dtype:
        raise RuntimeError(
            f"{operator}: expected out of the dtype that was asked for ({dtype}); got {q.dtype}; "
            f"fix: allocate out as {dtype}, or ask for {q.dtype}."
        )


def scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    fast_accumulation: bool = True,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cast(scale_a * (scale_b * (a @ b)) + bias)` of two int8 or two float8_e4m3fn matrices.

    Args:
        a: [m, k], int8 or float8_e4m3fn, row-major (stride(1) == 1, any leading stride).
        b: [k, n], dtype of a, column-major (stride(0) == 1): `weight.t()` of a contiguous [n, k] weight.
        scale_a: float32. 1 element of any rank (TensorWise), [m] or [m, 1] (RowWise), or [m, ceil(k/128)]
            (BlockWise1x128).
        scale_b: float32. 1 element (TensorWise), [n], [1, n] or [n, 1] (RowWise), or [ceil(k/128), ceil(n/128)]
            (BlockWise128x128). Blocks are for float8 and for both operands; TensorWise and RowWise may be mixed. Any
            strides.
        bias: [n], dtype of the result, added before the one rounding; or None.
        out_dtype: bfloat16, float16 or float32; not read where `out` is given.
        fast_accumulation: float8 only. False adds every 128 of k to an fp32 sum; blocks always do. int8 is exact
            either way.
        deterministic: one order of accumulation for every m, so that a row's bits do not depend on the other rows'
            number.
        out: [m, n], bfloat16, float16 or float32, row-major (any leading stride), sharing no byte with an input.

    Returns:
        [m, n], or `out`. Empty for m = 0 or n = 0; bias (or zeros) for k = 0.

    Raises:
        RuntimeError: an argument breaks one of the rules above; for int8, k above 131071 (the sum would leave int32).
    """
    if out is None:
        if fast_accumulation and not deterministic:  # the schema's defaults: naming them costs most of a microsecond
            return _scaled_mm(a, b, scale_a, scale_b, bias, out_dtype)
        return _scaled_mm(
            a, b, scale_a, scale_b, bias, out_dtype, fast_accumulation=fast_accumulation, deterministic=deterministic
        )
    _scaled_mm_out(
        a, b, scale_a, scale_b, bias, fast_accumulation=fast_accumulation, deterministic=deterministic, out=out
    )
    return out


def scaled_mm_azp(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    azp_adj: torch.Tensor,
    azp: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`cast(scale_a * (scale_b * (a @ b - azp ⊗ azp_adj)) + bias)`: int8 activations with zero points.

    Args:
        a: [m, k], int8, row-major; its real value is `scale_a * (a - azp)`.
        b: [k, n], int8, column-major.
        scale_a: float32, 1 element or [m] or [m, 1].
        scale_b: float32, 1 element or [n], [1, n] or [n, 1].
        azp_adj: [n], int32: the sum of b over k. With `azp=None`, that sum times the one zero point of the whole
            tensor.
        azp: int32 of m elements ([m] or [m, 1]), a zero point for each row; or None.
        bias: [n], dtype of the result; or None.
        out_dtype: bfloat16, float16 or float32; not read where `out` is given.
        out: as for `scaled_mm`.

    Returns:
        [m, n], or `out`. The subtraction is done in int32: exact for zero points in [-128, 127] and k up to 65793,
        modulo 2^32 beyond.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _scaled_mm_azp(a, b, scale_a, scale_b, azp_adj, azp, bias, out_dtype)
    _scaled_mm_azp_out(a, b, scale_a, scale_b, azp_adj, azp, bias, out=out)
    return out


def quantize_per_tensor(x: torch.Tensor, dtype: torch.dtype, *, out: Pair | None = None) -> Pair:
    """One dynamic scale for the whole tensor: `scale = absmax / q_max`, `q = saturate(round(x / scale))`.

    Args:
        x: any shape, bfloat16, float16 or float32, rows contiguous and evenly spaced.
        dtype: int8 (q_max 127) or float8_e4m3fn (q_max 448).
        out: (q, scale) to write to: q of x's shape, scale of 1 float32.

    Returns:
        (q of x's shape, scale [1] float32). absmax 0 gives scale 1; NaN anywhere gives a NaN scale.

    Raises:
        RuntimeError: x has another dtype or layout, dtype is another, or `out` does not fit.
    """
    if out is None:
        return _quantize_per_tensor(x, dtype)
    _check_out_dtype("quantize_per_tensor", dtype, out[0])
    _quantize_per_tensor_out(x, out_q=out[0], out_scale=out[1])
    return out


def quantize_static(
    x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    """`saturate(round(x / scale))` with a scale that is known.

    Args:
        x: [..., k], bfloat16, float16 or float32; leading dimensions count as m rows.
        scale: float32. 1 element (TensorWise), [m] or [m, 1] (RowWise), [m, ceil(k/128)] (BlockWise1x128) or
            [ceil(m/128), ceil(k/128)] (BlockWise128x128).
        dtype: int8 or float8_e4m3fn.
        out: q to write to, of x's shape.

    Returns:
        q of x's shape, or `out`.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _quantize_static(x, scale, dtype)
    _check_out_dtype("quantize_static", dtype, out)
    _quantize_static_out(x, scale, out_q=out)
    return out


def quantize_per_token(
    x: torch.Tensor,
    dtype: torch.dtype,
    scale_upper_bound: torch.Tensor | None = None,
    *,
    out: Pair | None = None,
) -> Pair:
    """One dynamic scale for each row (token): `scale = absmax(row) / q_max`.

    Args:
        x: [..., k], bfloat16, float16 or float32.
        dtype: int8 or float8_e4m3fn.
        scale_upper_bound: 1 float32; the row's absmax is limited to it first. None: no limit.
        out: (q, scale) to write to: q of x's shape, scale of one float32 a row.

    Returns:
        (q of x's shape, scale [..., 1] float32). A row of zeros has scale 1; NaN stays in its row.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _quantize_per_token(x, dtype, scale_upper_bound)
    _check_out_dtype("quantize_per_token", dtype, out[0])
    _quantize_per_token_out(x, scale_upper_bound, out_q=out[0], out_scale=out[1])
    return out


def quantize_per_token_asymmetric(x: torch.Tensor, *, out: Triple | None = None) -> Triple:
    """int8 with a scale and a zero point for each row: `lo = min(x, 0)`, `hi = max(x, 0)`, `scale = (hi - lo) / 255`,
    `azp = round(-128 - lo / scale)`, `q = saturate(round(x / scale) + azp)`.

    Args:
        x: [..., k], bfloat16, float16 or float32.
        out: (q, scale, azp) to write to.

    Returns:
        (q int8 of x's shape, scale [..., 1] float32, azp [..., 1] int32); `real = scale * (q - azp)`.

    Raises:
        RuntimeError: x has another dtype or layout, or `out` does not fit.
    """
    if out is None:
        return _quantize_per_token_asymmetric(x)
    _quantize_per_token_asymmetric_out(x, out_q=out[0], out_scale=out[1], out_azp=out[2])
    return out


def quantize_per_group(
    x: torch.Tensor,
    group_size: int = 128,
    dtype: torch.dtype = torch.float8_e4m3fn,
    column_major_scales: bool = False,
    power_of_two_scales: bool = False,
    *,
    out: Pair | None = None,
) -> Pair:
    """One dynamic scale for each `group_size` neighbours of a row; with 128, what `scaled_mm` takes as BlockWise1x128.

    Args:
        x: [..., k], bfloat16, float16 or float32.
        group_size: at least 1; the last group of a row may be shorter.
        dtype: int8 or float8_e4m3fn.
        column_major_scales: the scales' rows run fastest in memory (strides (1, m)).
        power_of_two_scales: round each scale up to a power of two.
        out: (q, scale) to write to; the scale's own strides are followed.

    Returns:
        (q of x's shape, scale [..., ceil(k/group_size)] float32).

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _quantize_per_group(x, group_size, dtype, column_major_scales, power_of_two_scales)
    _check_out_dtype("quantize_per_group", dtype, out[0])
    _quantize_per_group_out(x, group_size, column_major_scales, power_of_two_scales, out_q=out[0], out_scale=out[1])
    return out


def quantize_per_block(
    w: torch.Tensor,
    block_n: int = 128,
    block_k: int = 128,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    out: Pair | None = None,
) -> Pair:
    """One dynamic scale for each block of a weight. `scale.t()` of 128 x 128 blocks is `scaled_mm`'s BlockWise128x128.

    Args:
        w: [n, k], bfloat16, float16 or float32.
        block_n, block_k: at least 1; blocks at the edges may be smaller.
        dtype: int8 or float8_e4m3fn.
        out: (q, scale) to write to.

    Returns:
        (q [n, k], scale [ceil(n/block_n), ceil(k/block_k)] float32).

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _quantize_per_block(w, block_n, block_k, dtype)
    _check_out_dtype("quantize_per_block", dtype, out[0])
    _quantize_per_block_out(w, block_n, block_k, out_q=out[0], out_scale=out[1])
    return out


def activate_and_quantize(
    x: torch.Tensor,
    activation: str = "silu",
    gated: bool = True,
    group_size: int = 0,
    dtype: torch.dtype = torch.float8_e4m3fn,
    *,
    out: Pair | None = None,
) -> Pair:
    """An activation and the quantizer behind it in one pass: quantizes `act(x)`, or `act(gate) * up` of x = [gate, up].

    Args:
        x: [..., k], or [..., 2k] where gated (first half gate, second half up); bfloat16, float16 or float32.
        activation: "silu", "gelu" (erf) or "relu_squared".
        gated: x has both halves.
        group_size: 0 for one scale a row, otherwise the length of a group (see `quantize_per_group`).
        dtype: int8 or float8_e4m3fn.
        out: (q, scale) to write to.

    Returns:
        (q [..., k], scale [..., 1] or [..., ceil(k/group_size)] float32).

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    code = _ACTIVATIONS.get(activation)
    if code is None:
        raise RuntimeError(
            f"activate_and_quantize: expected activation {', '.join(_ACTIVATIONS)}; got {activation!r}; "
            "fix: choose one of them."
        )
    if out is None:
        return _activate_and_quantize(x, code, gated, group_size, dtype)
    _check_out_dtype("activate_and_quantize", dtype, out[0])
    _activate_and_quantize_out(x, code, gated, group_size, out_q=out[0], out_scale=out[1])
    return out


def rms_norm_quantize(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float = 1e-6,
    group_size: int = 0,
    dtype: torch.dtype = torch.float8_e4m3fn,
    residual: torch.Tensor | None = None,
    *,
    out: Pair | None = None,
) -> Pair:
    """RMS norm and the quantizer behind it in one pass: quantizes `h * rsqrt(mean(h * h) + eps) * weight`.

    Args:
        x: [..., k], bfloat16, float16 or float32.
        weight: [k], dtype of x.
        eps: added to the mean square.
        group_size: 0 for one scale a row, otherwise the length of a group (see `quantize_per_group`).
        dtype: int8 or float8_e4m3fn.
        residual: x's shape and dtype. Where given, h = x + residual (rounded to x's dtype) and is **stored in
            residual**; otherwise h = x.
        out: (q, scale) to write to.

    Returns:
        (q of x's shape, scale [..., 1] or [..., ceil(k/group_size)] float32).

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _rms_norm_quantize(x, weight, eps, group_size, dtype, residual)
    _check_out_dtype("rms_norm_quantize", dtype, out[0])
    _rms_norm_quantize_out(x, weight, eps, group_size, residual, out_q=out[0], out_scale=out[1])
    return out


def quantized_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: torch.Tensor | None = None,
    azp_adj: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    fast_accumulation: bool = True,
    deterministic: bool = False,
) -> torch.Tensor:
    """A linear layer with a quantized weight: quantizes x and multiplies, in one call and with the bits of the two.

    What it saves is host time: half of what a quantizer and `scaled_mm` cost, which is what few tokens wait for.

    Args:
        x: [..., k], bfloat16, float16 or float32; rows contiguous and evenly spaced.
        weight: [n, k], int8 or float8_e4m3fn, row-major (stride(1) == 1).
        weight_scale: float32. 1 element, [n] or [n, 1], or (float8) [ceil(n/128), ceil(k/128)]. Any strides.
        input_scale: float32, 1 element: x is quantized with it, as `quantize_static` does. None: dynamically, for each token as
            `quantize_per_token` does, or, where weight_scale is in blocks, for each 128 of a token as `quantize_per_group` does.
        azp_adj: [n], int32, the sum of weight over k: x is quantized as `quantize_per_token_asymmetric` does. int8 without
            input_scale only.
        bias: [n], dtype of x; or None.
        fast_accumulation, deterministic: as for `scaled_mm`.

    Returns:
        [..., n] of x's dtype.

    Raises:
        RuntimeError: an argument breaks one of the rules above; for int8, k above 131071.
    """
    if fast_accumulation and not deterministic:  # the schema's defaults: naming them costs most of a microsecond
        return _quantized_linear(x, weight, weight_scale, input_scale, azp_adj, bias)
    return _quantized_linear(
        x,
        weight,
        weight_scale,
        input_scale,
        azp_adj,
        bias,
        fast_accumulation=fast_accumulation,
        deterministic=deterministic,
    )


def permute_cols(a: torch.Tensor, perm: torch.Tensor) -> torch.Tensor:
    """`a[..., perm]` for 16-bit types.

    Args:
        a: [..., k], float16, bfloat16 or int16, contiguous.
        perm: [k], int32. A value outside [0, k) writes 0 in its column.

    Returns:
        a's shape and dtype, contiguous.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    return _permute_cols(a, perm)


# ---- mixture of experts ----------------------------------------------------------------------------------------------


def moe_route(topk_ids: torch.Tensor, num_local_experts: int, expert_map: torch.Tensor | None = None) -> Triple:
    """Where each choice of each token goes when the rows are sorted by expert, in token order inside an expert.

    Args:
        topk_ids: [tokens, top_k], int32 or int64. Any value: a choice outside [0, experts), or mapped outside, goes nowhere.
        num_local_experts: experts on this rank.
        expert_map: [global experts], int32 or int64, each id's local expert or -1; None: ids are local.

    Returns:
        (expert_offsets [experts + 1]: the rows before each expert, the last one all rows; source_row [tokens * top_k]: the
        token of each row, -1 behind the last row; slot [tokens, top_k]: the row of each choice, -1 for nowhere), int32.

    Raises:
        RuntimeError: an argument has another shape or dtype, or tokens * top_k is 2^31 or more.
    """
    return _moe_route(topk_ids, num_local_experts, expert_map)


def grouped_scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    expert_offsets: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    fast_accumulation: bool = True,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """scaled_mm for each expert: rows `expert_offsets[e] .. expert_offsets[e + 1]` of a times `b[e]`.

    Args:
        a: [rows, k], int8 or float8_e4m3fn, rows contiguous; no alignment or padding between experts.
        b: [experts, k, n], dtype of a, each expert column-major: `weight.transpose(1, 2)` of an [experts, n, k] weight.
        scale_a: float32. 1 element (TensorWise), [rows] or [rows, 1] (RowWise), [rows, ceil(k/128)] (BlockWise1x128).
        scale_b: float32. [experts] (TensorWise), [experts, n], [experts, 1, n] or [experts, n, 1] (RowWise), or
            [experts, ceil(k/128), ceil(n/128)] (BlockWise128x128; float8 and both operands).
        expert_offsets: [experts + 1], int32 or int64. Any values: they are limited to [0, rows] and made ascending.
        out_dtype: bfloat16, float16 or float32; not read where `out` is given.
        fast_accumulation, deterministic: as for `scaled_mm`.
        out: [rows, n]; rows of no expert stay as they are.

    Returns:
        [rows, n], zeros in rows of no expert; or `out`.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _grouped_scaled_mm(
            a,
            b,
            scale_a,
            scale_b,
            expert_offsets,
            out_dtype,
            fast_accumulation=fast_accumulation,
            deterministic=deterministic,
        )
    _grouped_scaled_mm_out(
        a,
        b,
        scale_a,
        scale_b,
        expert_offsets,
        fast_accumulation=fast_accumulation,
        deterministic=deterministic,
        out=out,
    )
    return out


def grouped_scaled_mm_masked(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    rows_per_expert: torch.Tensor,
    out_dtype: torch.dtype = torch.bfloat16,
    *,
    fast_accumulation: bool = True,
    deterministic: bool = False,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """scaled_mm for each expert: the first `rows_per_expert[e]` rows of `a[e]` times `b[e]`.

    Args:
        a: [experts, capacity, k], int8 or float8_e4m3fn, rows contiguous.
        b, scale_b: as for `grouped_scaled_mm`.
        scale_a: float32. 1 element, [experts, capacity] or [experts, capacity, 1], or [experts, capacity, ceil(k/128)].
        rows_per_expert: [experts], int32 or int64. Any values: they are limited to [0, capacity].
        out_dtype, fast_accumulation, deterministic: as for `grouped_scaled_mm`.
        out: [experts, capacity, n]; rows that no expert uses stay as they are.

    Returns:
        [experts, capacity, n], zeros in rows that no expert uses; or `out`.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    if out is None:
        return _grouped_scaled_mm_masked(
            a,
            b,
            scale_a,
            scale_b,
            rows_per_expert,
            out_dtype,
            fast_accumulation=fast_accumulation,
            deterministic=deterministic,
        )
    _grouped_scaled_mm_masked_out(
        a,
        b,
        scale_a,
        scale_b,
        rows_per_expert,
        fast_accumulation=fast_accumulation,
        deterministic=deterministic,
        out=out,
    )
    return out


def moe_gather_quantize(
    x: torch.Tensor,
    source_row: torch.Tensor,
    scale: torch.Tensor | None = None,
    row_weights: torch.Tensor | None = None,
    group_size: int = 0,
    dtype: torch.dtype = torch.float8_e4m3fn,
) -> Pair:
    """Row t of the result: `x[source_row[t]]`, times `row_weights[t]`, quantized.

    Args:
        x: [tokens, k], bfloat16, float16 or float32, rows contiguous.
        source_row: [rows], int32 or int64; a value outside [0, tokens) gives a row of zeros with scale 1.
        scale: 1 float32, a static scale; None: dynamic.
        row_weights: [rows] float32; the product is rounded to x's dtype before it is quantized. None: 1.
        group_size: 0 for one scale a row, otherwise the length of a group; -1: one scale, whose absmax sees every token of x,
            gathered or not (without row_weights).
        dtype: int8 or float8_e4m3fn.

    Returns:
        (q [rows, k], scale [rows, 1] or [rows, ceil(k/group_size)] float32; [1] where there is one scale).

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    return _moe_gather_quantize(x, source_row, scale, row_weights, group_size, dtype)


def moe_combine(
    y: torch.Tensor, slot: torch.Tensor, topk_weights: torch.Tensor, out_dtype: torch.dtype = torch.bfloat16
) -> torch.Tensor:
    """`sum over c of topk_weights[i, c] * y[slot[i, c]]` in fp32, c ascending, rounded once.

    Args:
        y: [rows, n], bfloat16, float16 or float32, rows contiguous.
        slot: [tokens, top_k], int32 or int64; a value outside [0, rows) is skipped, its weight not read.
        topk_weights: [tokens, top_k], float32.
        out_dtype: bfloat16, float16 or float32.

    Returns:
        [tokens, n].

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    return _moe_combine(y, slot, topk_weights, out_dtype)


def fused_moe(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    w13_scale: torch.Tensor,
    w2_scale: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    expert_map: torch.Tensor | None = None,
    a1_scale: torch.Tensor | None = None,
    a2_scale: torch.Tensor | None = None,
    activation: str = "silu",
    apply_router_weight_on_input: bool = False,
    *,
    fast_accumulation: bool = True,
    deterministic: bool = False,
) -> torch.Tensor:
    """A mixture-of-experts layer: route, quantize, `w13`, activation, quantize, `w2`, weighted sum of each token's choices.

    Args:
        x: [tokens, hidden], bfloat16, float16 or float32; also the dtype of the result and between the steps.
        w13: [experts, 2 * intermediate, hidden] (gate rows first) or, without gate, [experts, intermediate, hidden]; int8 or
            float8_e4m3fn, rows contiguous.
        w2: [experts, hidden, intermediate], dtype of w13.
        w13_scale, w2_scale: float32. [experts], [experts, n], or [experts, ceil(n/128), ceil(k/128)] (float8), for the
            weights as stored ([experts, n, k]). They also say how activations are quantized: one scale for all, one a row, or
            1 x 128.
        topk_weights: [tokens, top_k] float32.
        topk_ids, expert_map: as for `moe_route`.
        a1_scale, a2_scale: 1 float32, static scales of the activations before w13 and w2; None: dynamic. A dynamic scale for
            all covers every token before w13, and the routed rows before w2.
        activation: "silu", "gelu" (erf) or "relu_squared".
        apply_router_weight_on_input: weight x (rounded to its dtype) instead of the result; top_k is 1.
        fast_accumulation, deterministic: as for `scaled_mm`.

    Returns:
        [tokens, hidden] of x's dtype; zeros for a token whose choices all went nowhere.

    Raises:
        RuntimeError: an argument breaks one of the rules above.
    """
    code = _ACTIVATIONS.get(activation)
    if code is None:
        raise RuntimeError(
            f"fused_moe: expected activation {', '.join(_ACTIVATIONS)}; got {activation!r}; fix: choose one of them."
        )
    return _fused_moe(
        x,
        w13,
        w2,
        w13_scale,
        w2_scale,
        topk_weights,
        topk_ids,
        expert_map,
        a1_scale,
        a2_scale,
        code,
        apply_router_weight_on_input,
        fast_accumulation=fast_accumulation,
        deterministic=deterministic,
    )
