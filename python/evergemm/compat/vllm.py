# SPDX-License-Identifier: Apache-2.0
"""evergemm in the place of vLLM's quantized GEMM operators.

Two ways in. `install()` registers, under torch.ops._C, those of vLLM's operators that this library has and nobody else
has defined; code that calls torch.ops._C then runs here. The functions below have the names, positions and defaults of
vLLM's Python functions for these operators and call torch.ops.evergemm directly, installed or not.

Differences from vLLM that a caller can see: every shape and alignment works (no multiples of 16), float32 is no output type
of the drop-in operators, and errors are RuntimeErrors `operator: expected ...; got ...; fix: ...`. Must not go here:
arithmetic that an operator of ours has.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util

import torch

from .. import _fakes, _library, _schemas, ops

_ops = torch.ops.evergemm

# The drop-in operators that this library has, by the names that vLLM registers.
OPERATORS = (
    "cutlass_scaled_mm",
    "cutlass_scaled_mm_azp",
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_group_gemm_supported",
    "cutlass_scaled_mm_supports_block_fp8",
    "permute_cols",
    "per_token_group_fp8_quant",
    "per_token_group_fp8_quant_packed",
    "per_token_group_quant_int8",
    "cutlass_moe_mm",
    "get_cutlass_moe_mm_data",
    "get_cutlass_moe_mm_problem_sizes_from_expert_offsets",
    "get_cutlass_batched_moe_mm_data",
)

# vLLM's extension modules that define operators under _C.
_EXTENSIONS = ("_C", "_C_stable_libtorch")


@dataclasses.dataclass(frozen=True)
class Installation:
    """What install() did: names now served by evergemm, and names left to whoever had defined them."""

    registered: tuple[str, ...]
    kept: tuple[str, ...]


_registered: set[str] = set()
_fragment: torch.library.Library | None = None  # keeps the fakes registered


def _import_extensions() -> bool:
    """Lets vLLM define its operators first, where it is installed; says whether it is."""
    if importlib.util.find_spec("vllm") is None:
        return False
    for name in _EXTENSIONS:
        module = f"vllm.{name}"
        try:
            if importlib.util.find_spec(module) is not None:
                importlib.import_module(module)
        except Exception as error:  # whatever vLLM's own import raises
            raise RuntimeError(
                f"evergemm.compat.vllm.install: expected {module} to import, so that its operators come first; got "
                f"{type(error).__name__}: {error}; fix: repair or uninstall vLLM. Nothing was registered under _C."
            ) from error
    return True


def _is_defined(name: str) -> bool:
    try:
        torch._C._get_schema(f"_C::{name}", "")
    except RuntimeError:
        return False
    return True


def install() -> Installation:
    """Registers under torch.ops._C the operators of OPERATORS that are missing there; overrides none.

    Where vLLM is installed, its extension modules are imported first, since torch ends a process that defines an operator
    twice; without vLLM the operators also get fakes for torch.compile. Calling it again changes nothing.

    Returns:
        Installation: what was registered (by this call or an earlier one) and what was left alone.

    Raises:
        RuntimeError: vLLM is installed and its extension does not import, or torch refuses. Nothing is registered then.
    """
    global _fragment
    with_vllm = _import_extensions()
    missing = [name for name in OPERATORS if not _is_defined(name)]
    if missing:
        _library.library.register_dropins(missing)
        _registered.update(missing)
        if not with_vllm:
            if _fragment is None:
                _fragment = torch.library.Library("_C", "FRAGMENT")
            for schema in _schemas.TENSOR_OPERATORS:
                name = schema.partition("(")[0]
                if name in missing:
                    torch.library.register_fake(f"_C::{name}", _fakes.fake_of(name), lib=_fragment)
    registered = tuple(name for name in OPERATORS if name in _registered)
    return Installation(registered, tuple(name for name in OPERATORS if name not in _registered))


def _refuse(operator: str, expected: str, got: object, fix: str) -> RuntimeError:
    return RuntimeError(f"{operator}: expected {expected}; got {got}; fix: {fix}.")


# ---- vLLM's functions ------------------------------------------------------------------------------------------------


def cutlass_scaled_mm_supports_fp8(cuda_device_capability: int) -> bool:
    """Whether fp8 runs here on a GPU of this capability (major * 10 + minor)."""
    return _ops.cutlass_scaled_mm_supports_fp8(cuda_device_capability)


def cutlass_scaled_mm_supports_block_fp8(cuda_device_capability: int) -> bool:
    """Whether fp8 with block scales runs here on a GPU of this capability (major * 10 + minor)."""
    return _ops.cutlass_scaled_mm_supports_block_fp8(cuda_device_capability)


def cutlass_group_gemm_supported(cuda_device_capability: int) -> bool:
    """Whether grouped products run here on a GPU of this capability (major * 10 + minor)."""
    return _ops.cutlass_group_gemm_supported(cuda_device_capability)


def cutlass_scaled_mm(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out_dtype: torch.dtype,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`scale_a * (scale_b * (a @ b)) + bias`; evergemm.scaled_mm says what is accepted, with scales judged by numel.

    Args:
        a: [..., k], int8 or float8_e4m3fn; b: [k, n] column-major; scales float32; bias of n values.
        out_dtype: bfloat16 or float16.

    Returns:
        [..., n].
    """
    rows = a.view(-1, a.shape[-1])
    out = torch.empty((rows.shape[0], b.shape[1]), dtype=out_dtype, device=a.device)
    _ops.cutlass_scaled_mm(out, rows, b, scale_a, scale_b, bias)
    return out.view(*a.shape[:-1], b.shape[1])


def cutlass_scaled_mm_azp(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    out_dtype: torch.dtype,
    azp_adj: torch.Tensor,
    azp: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`scale_a * (scale_b * (a @ b - azp ⊗ azp_adj)) + bias` of int8; see evergemm.scaled_mm_azp.

    Args:
        azp_adj: n values, int32, the sum of b over k; without azp, that times the zero point of the whole tensor.
        azp: a zero point for each row of a, int32; or None.

    Returns:
        [..., n].
    """
    rows = a.view(-1, a.shape[-1])
    out = torch.empty((rows.shape[0], b.shape[1]), dtype=out_dtype, device=a.device)
    _ops.cutlass_scaled_mm_azp(out, rows, b, scale_a, scale_b, azp_adj, azp, bias)
    return out.view(*a.shape[:-1], b.shape[1])


def permute_cols(a: torch.Tensor, perm: torch.Tensor) -> torch.Tensor:
    """`a[..., perm]` of a 16-bit type; perm int32."""
    return _ops.permute_cols(a, perm)


def _scale_blocks(scale: torch.Tensor, group_shape: tuple[int, int] | None, m: int, n: int) -> torch.Tensor:
    """The static scale of scaled_fp8_quant in a shape that quantize_static takes."""
    if scale.numel() == 1:
        return scale
    if scale.dim() == 1 and group_shape is None:
        raise _refuse(
            "scaled_fp8_quant", "group_shape with a scale of rank 1", None, "pass (1, -1) for one scale a row"
        )
    if group_shape is None:
        if scale.dim() != 2 or 0 in scale.shape:
            raise _refuse("scaled_fp8_quant", "a scale of rank 0, 1 or 2", tuple(scale.shape), "reshape it")
        group_shape = (-(-m // scale.shape[0]), -(-n // scale.shape[1]))
    rows, columns = (m if group_shape[0] == -1 else group_shape[0]), (n if group_shape[1] == -1 else group_shape[1])
    if rows == 1 and columns == n:
        return scale.reshape(m, 1)
    if columns == 128 and rows in (1, 128):
        return scale
    raise _refuse(
        "scaled_fp8_quant",
        "groups of the whole tensor, a row, 1 x 128 or 128 x 128",
        f"groups of {rows} x {columns}",
        "quantize with one of these, or keep vLLM's operator",
    )


def scaled_fp8_quant(
    input: torch.Tensor,
    scale: torch.Tensor | None = None,
    num_token_padding: int | None = None,
    scale_ub: torch.Tensor | None = None,
    use_per_token_if_dynamic: bool = False,
    output: torch.Tensor | None = None,
    group_shape: tuple[int, int] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """float8_e4m3fn and its scale.

    Args:
        input: [m, n], bfloat16, float16 or float32.
        scale: a known scale (float32): 1 element, one a row (group_shape (1, -1)), or groups of 1 x 128 or 128 x 128.
            None: a dynamic one.
        num_token_padding: at least that many rows in the result; rows beyond m are 0 (with scale 1).
        scale_ub: 1 float32, limits the absmax of dynamic scales per token.
        use_per_token_if_dynamic: one dynamic scale a row, otherwise one for all.
        output: where to write; not together with num_token_padding.
        group_shape: rows and columns of a group of `scale`, -1 for all of them.

    Returns:
        (quantized [max(m, num_token_padding), n], scale: the given one, [1], or one a row [rows, 1]).

    A row of zeros has scale 1 (vLLM: 1 / (448 * 512)).
    """
    if input.dim() != 2:
        raise _refuse("scaled_fp8_quant", "input of rank 2 [m, n]", f"shape {tuple(input.shape)}", "reshape it")
    m, n = input.shape
    rows = m
    if output is None:
        rows = max(num_token_padding or 0, m)
        output = torch.empty((rows, n), dtype=torch.float8_e4m3fn, device=input.device)
        if rows > m:
            output[m:].view(torch.uint8).zero_()
    elif num_token_padding is not None:
        raise _refuse("scaled_fp8_quant", "output or num_token_padding", "both", "pass one of them")
    if scale is not None:
        ops.quantize_static(input, _scale_blocks(scale, group_shape, m, n), torch.float8_e4m3fn, out=output[:m])
    elif use_per_token_if_dynamic:
        scale = torch.ones((rows, 1), dtype=torch.float32, device=input.device)
        ops.quantize_per_token(input, torch.float8_e4m3fn, scale_ub, out=(output[:m], scale[:m]))
    else:
        scale = torch.empty(1, dtype=torch.float32, device=input.device)
        ops.quantize_per_tensor(input, torch.float8_e4m3fn, out=(output[:m], scale))
    return output, scale


def scaled_int8_quant(
    input: torch.Tensor,
    scale: torch.Tensor | None = None,
    azp: torch.Tensor | None = None,
    symmetric: bool = True,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """int8, its scale, and its zero point where asymmetric.

    Args:
        input: [..., n], bfloat16, float16 or float32.
        scale: a known scale for the whole tensor, 1 float32; None: one dynamic scale a row.
        azp: the known zero point (1 int32) where `scale` is given and symmetric is False.
        symmetric: without zero points.

    Returns:
        (quantized of input's shape, scale: the given one or [rows, 1], azp: the given one, [rows, 1] int32 or None).
    """
    rows = input.contiguous().view(-1, input.shape[-1]) if scale is None else input
    if scale is not None:
        if symmetric != (azp is None):
            raise _refuse(
                "scaled_int8_quant",
                "azp exactly where symmetric is False",
                f"symmetric={symmetric}",
                "pass both or none",
            )
        if azp is None:
            return ops.quantize_static(input, scale.reshape(1), torch.int8), scale, None
        shifted = torch.round(input.float() / scale) + azp  # no operator of ours has a known zero point
        return shifted.clamp(-128, 127).to(torch.int8), scale, azp
    if symmetric:
        q, row_scale = ops.quantize_per_token(rows, torch.int8)
        return q.view(input.shape), row_scale, None
    q, row_scale, row_azp = ops.quantize_per_token_asymmetric(rows)
    return q.view(input.shape), row_scale, row_azp


# ---- grouped products ------------------------------------------------------------------------------------------------


def cutlass_moe_mm(
    out_tensors: torch.Tensor,
    a_tensors: torch.Tensor,
    b_tensors: torch.Tensor,
    a_scales: torch.Tensor,
    b_scales: torch.Tensor,
    expert_offsets: torch.Tensor,
    problem_sizes: torch.Tensor,
    a_strides: torch.Tensor,
    b_strides: torch.Tensor,
    c_strides: torch.Tensor,
    per_act_token: bool,
    per_out_ch: bool,
) -> None:
    """`out[rows of e] = a_scale * (b_scale_e * (a[rows of e] @ b_e))` for each expert e.

    Args:
        out_tensors: [rows, n], bfloat16 or float16, contiguous. Rows of no expert stay as they are.
        a_tensors: [rows, k], int8 or float8_e4m3fn, contiguous.
        b_tensors: [experts, n, k] contiguous, or its transpose(1, 2).
        a_scales: float32, one a row where per_act_token, otherwise 1 or one an expert.
        b_scales: float32, one a column of each expert where per_out_ch, otherwise one an expert.
        expert_offsets: [experts], int64 or int32: the first row of each.
        problem_sizes: [experts, 3] int32, (m, n, k) or (n, m, k).
        a_strides, b_strides, c_strides: [experts] int64: the pitch of a's rows, b's columns and out's rows.

    Values that do not fit the tensors' sizes contribute nothing, or as many rows as there are; an expert does not write what
    an earlier one owns.
    """
    _ops.cutlass_moe_mm(
        out_tensors,
        a_tensors,
        b_tensors,
        a_scales,
        b_scales,
        expert_offsets,
        problem_sizes,
        a_strides,
        b_strides,
        c_strides,
        per_act_token,
        per_out_ch,
    )


def get_cutlass_moe_mm_data(
    topk_ids: torch.Tensor,
    expert_offsets: torch.Tensor,
    problem_sizes1: torch.Tensor,
    problem_sizes2: torch.Tensor,
    input_permutation: torch.Tensor,
    output_permutation: torch.Tensor,
    num_experts: int,
    n: int,
    k: int,
    blockscale_offsets: torch.Tensor | None = None,
    is_gated: bool = True,
) -> None:
    """Writes what cutlass_moe_mm needs to know of a routing, and the permutations to and from rows sorted by expert.

    Args:
        topk_ids: [tokens, top_k] int32; outside [0, num_experts): not on this rank.
        expert_offsets: [num_experts + 1] int32, the rows before each expert.
        problem_sizes1, problem_sizes2: [num_experts, 3] int32: (m, n1, k) and (m, k, n), n1 = 2n where is_gated;
            (n1, m, k) and (k, m, n) where topk_ids has at most 64 elements and blockscale_offsets is None.
        input_permutation: tokens * top_k int32: the token of each row; untouched behind the last row.
        output_permutation: tokens * top_k int32: the row of each choice, expert_offsets[-1] for a choice that went nowhere.
        blockscale_offsets: [num_experts + 1] int32, **written**: sums of the counts, each rounded up to 128; or None.
    """
    _ops.get_cutlass_moe_mm_data(
        topk_ids,
        expert_offsets,
        problem_sizes1,
        problem_sizes2,
        input_permutation,
        output_permutation,
        num_experts,
        n,
        k,
        blockscale_offsets,
        is_gated,
    )


def get_cutlass_moe_mm_problem_sizes_from_expert_offsets(
    expert_first_token_offset: torch.Tensor,
    problem_sizes1: torch.Tensor,
    problem_sizes2: torch.Tensor,
    n: int,
    k: int,
    swap_ab: bool,
) -> None:
    """The problem sizes of get_cutlass_moe_mm_data (gated) from offsets, [experts + 1] int64; `swap_ab`: transposed."""
    _ops.get_cutlass_moe_mm_problem_sizes_from_expert_offsets(
        expert_first_token_offset, problem_sizes1, problem_sizes2, n, k, swap_ab
    )


def get_cutlass_batched_moe_mm_data(
    expert_offsets: torch.Tensor,
    problem_sizes1: torch.Tensor,
    problem_sizes2: torch.Tensor,
    expert_num_tokens: torch.Tensor,
    num_local_experts: int,
    padded_m: int,
    n: int,
    k: int,
) -> None:
    """Offsets e * padded_m, [num_local_experts] int32, and the problem sizes (gated) of experts with padded_m rows each, of
    which expert_num_tokens ([num_local_experts] int32) are used; transposed where there are at most 64 rows in all."""
    _ops.get_cutlass_batched_moe_mm_data(
        expert_offsets, problem_sizes1, problem_sizes2, expert_num_tokens, num_local_experts, padded_m, n, k
    )
