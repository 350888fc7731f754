# SPDX-License-Identifier: Apache-2.0
"""What torch.compile and torch.export run in place of the kernels: the same validation, and results without data.

The library's own validator judges each call (through the C interface), with a hint where a size is symbolic and a
stand-in where it has none. Relations between sizes go through torch._check, and results are computed from the
symbolic sizes, so that no size is specialized. Must not go here: rules or wording of errors.
"""

from __future__ import annotations

import types

import torch

from . import _c_api, _schemas
from ._library import library

# Stands in for a size that nothing is known of (unbacked): positive, even, whole blocks, so that rules which hold for
# some sizes are taken to hold; the kernel judges the real ones.
_UNKNOWN_SIZE = 512

# Addresses only have to be right relative to each other: every storage gets a range of its own.
_STORAGE_RANGE = 1 << 44


def _is_unbacked(value) -> bool:
    if not isinstance(value, torch.SymInt) or value.node.hint is not None:
        return False
    return not value.node.expr.is_number


def _hint(value) -> int:
    """A plausible integer for a size, without a guard."""
    if not isinstance(value, torch.SymInt):
        return int(value)
    node = value.node
    if node.hint is not None:
        return int(node.hint)
    expression = node.expr
    if not expression.is_number:
        environment = node.shape_env
        # Older torch calls the hints of symbols var_to_val.
        newer = hasattr(environment, "backed_var_to_val")
        hints = environment.backed_var_to_val if newer else environment.var_to_val
        expression = expression.xreplace({s: hints.get(s, _UNKNOWN_SIZE) for s in expression.free_symbols})
    return int(expression)


def _at_least_one(size):
    """Of a plain integer; a symbolic size is taken to be more than 1, as torch.compile does."""
    return size if isinstance(size, torch.SymInt) else max(size, 1)


def _contiguous_strides(sizes) -> list:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step = step * _at_least_one(size)
    return strides


def _describe(tensor: torch.Tensor, storages: dict[int, int]) -> _c_api.TensorArgument:
    storage = storages.setdefault(tensor.untyped_storage()._cdata, len(storages) + 1)
    offset = _hint(tensor.storage_offset()) * tensor.element_size()
    device = tensor.device
    return _c_api.TensorArgument(
        sizes=[_hint(size) for size in tensor.shape],
        strides=[_hint(stride) for stride in tensor.stride()],
        dtype=str(tensor.dtype).removeprefix("torch."),
        device="cpu" if device.type == "meta" else f"{device.type}:{device.index or 0}",
        address=storage * _STORAGE_RANGE + offset,
        requires_grad=tensor.requires_grad and torch.is_grad_enabled(),
    )


class _Signature:
    """An operator's arguments by name, in the order of its schema."""

    def __init__(self, schema: torch._C.FunctionSchema):
        self._arguments = schema.arguments

    def bind(self, args: tuple, kwargs: dict) -> dict:
        values = {}
        for position, argument in enumerate(self._arguments):
            if position < len(args):
                values[argument.name] = args[position]
            elif argument.name in kwargs:
                values[argument.name] = kwargs[argument.name]
            else:
                values[argument.name] = argument.default_value
        return values

    def describe(self, values: dict) -> list:
        storages: dict[int, int] = {}
        described = []
        for argument in self._arguments:
            value = values[argument.name]
            if isinstance(value, torch.Tensor):
                value = _describe(value, storages)
            elif isinstance(value, torch.dtype):
                value = _c_api.DTypeArgument(str(value).removeprefix("torch."))
            elif isinstance(value, torch.SymInt):
                value = _hint(value)
            elif str(argument.type) == "float":
                value = float(value)
            described.append(value)
        return described


def _sizes_of(values: dict):
    for value in values.values():
        if isinstance(value, torch.Tensor):
            yield from value.shape
            yield from value.stride()


def _check(condition, relation: str) -> None:
    torch._check(condition, lambda: f"evergemm: expected {relation}")


# ---- relations between sizes ---------------------------------------------------------------------------------------


def _check_scale(scale: torch.Tensor, outer, blocks: tuple, relation: str) -> None:
    """`scale` is one value (nothing to relate), one for each of `outer`, or a grid of blocks."""
    sizes = list(scale.shape)
    hints = [_hint(size) for size in sizes]
    count = 1
    for hint in hints:
        count *= hint
    if count == 1:
        return
    if len(sizes) == 2 and hints == [_hint(size) for size in blocks] and count != _hint(outer):
        for size, wanted in zip(sizes, blocks, strict=True):
            _check(size == wanted, relation)
        return
    for size, hint in zip(sizes, hints, strict=True):
        if hint != 1 or _is_unbacked(size):
            _check(size == outer, relation)


def _relate_scaled_mm(v) -> None:
    if v.a.dim() != 2 or v.b.dim() != 2:
        return  # the validator says so
    m, k = v.a.shape
    n = v.b.shape[1]
    _check(v.b.shape[0] == k, "b with as many rows as a has columns")
    k_blocks = (k + 127) // 128
    _check_scale(
        v.scale_a, m, (m, k_blocks), "scale_a of 1 element, one a row of a, or one a row and block of 128 of k"
    )
    _check_scale(
        v.scale_b,
        n,
        (k_blocks, (n + 127) // 128),
        "scale_b of 1 element, one a column of b, or one a block of 128 x 128",
    )
    for name, length in (("bias", n), ("azp_adj", n), ("azp", m)):
        vector = getattr(v, name, None)
        if vector is not None:
            _check(vector.numel() == length, f"{name} of one value a {'row of a' if name == 'azp' else 'column of b'}")
    out = getattr(v, "out", None)
    if out is not None and out.dim() == 2:
        _check(out.shape[0] == m, "out of shape [m, n]")
        _check(out.shape[1] == n, "out of shape [m, n]")


def _relate_cutlass(v) -> None:
    _relate_scaled_mm(types.SimpleNamespace(**{**vars(v), "scale_a": v.a_scales, "scale_b": v.b_scales}))


def _relate_rows(v) -> None:
    """Quantizers: each output has x's leading sizes."""
    x = v.w if hasattr(v, "w") else v.x
    gated = getattr(v, "gated", False)
    for name, other in vars(v).items():
        if name in ("out_q", "residual") and isinstance(other, torch.Tensor) and other.dim() == x.dim():
            for i, (size, wanted) in enumerate(zip(other.shape, x.shape, strict=True)):
                wanted = wanted // 2 if gated and i == x.dim() - 1 else wanted
                _check(size == wanted, f"{name} of the shape of x")
    if getattr(v, "weight", None) is not None and v.weight.dim() == 1 and x.dim() > 0:
        _check(v.weight.shape[0] == x.shape[-1], "weight of one value a column of x")


def _relate_linear(v) -> None:
    if v.weight.dim() != 2 or v.x.dim() < 1:
        return  # the validator says so
    n, k = v.weight.shape
    _check(v.x.shape[-1] == k, "weight with as many columns as x has features")
    blocks = ((n + 127) // 128, (k + 127) // 128)
    _check_scale(v.weight_scale, n, blocks, "weight_scale of 1 element, one a row of weight, or one a 128 x 128 of it")
    for name in ("azp_adj", "bias"):
        vector = getattr(v, name)
        if vector is not None:
            _check(vector.numel() == n, f"{name} of one value a row of weight")


def _relate_permute(v) -> None:
    if v.A.dim() > 0:
        _check(v.perm.numel() == v.A.shape[-1], "perm of one value a column of A")


def _relate_grouped(v) -> None:
    masked = hasattr(v, "rows_per_expert")
    rows = v.rows_per_expert if masked else v.expert_offsets
    if v.b.dim() != 3 or v.a.dim() != (3 if masked else 2) or rows.dim() != 1:
        return  # the validator says so
    experts, k, n = v.b.shape
    _check(v.a.shape[-1] == k, "b with as many rows an expert as a has columns")
    if masked:
        _check(v.a.shape[0] == experts, "b with as many experts as a")
    _check(rows.shape[0] == (experts if masked else experts + 1), "one offset or count for each expert")
    out = getattr(v, "out", None)
    if out is not None and out.dim() == v.a.dim():
        for size, wanted in zip(out.shape, [*v.a.shape[:-1], n], strict=True):
            _check(size == wanted, "out with the rows of a and the columns of b")


def _relate_combine(v) -> None:
    if v.slot.dim() == 2 and v.topk_weights.dim() == 2:
        for size, wanted in zip(v.topk_weights.shape, v.slot.shape, strict=True):
            _check(size == wanted, "topk_weights of the shape of slot")


def _relate_layer(v) -> None:
    if v.x.dim() != 2 or v.topk_ids.dim() != 2 or v.topk_weights.dim() != 2:
        return
    _check(v.topk_weights.shape[0] == v.x.shape[0], "topk_weights with a row for each row of x")
    for size, wanted in zip(v.topk_ids.shape, v.topk_weights.shape, strict=True):
        _check(size == wanted, "topk_ids of the shape of topk_weights")


def _relate_nothing(v) -> None:
    pass


# ---- results -------------------------------------------------------------------------------------------------------


def _result_scaled_mm(v):
    return v.a.new_empty((v.a.shape[0], v.b.shape[1]), dtype=v.out_dtype)


def _result_linear(v):
    return v.x.new_empty((*v.x.shape[:-1], v.weight.shape[0]))


def _quantized(x: torch.Tensor, dtype: torch.dtype, columns=None) -> torch.Tensor:
    sizes = list(x.shape)
    if columns is not None:
        sizes[-1] = columns
    return x.new_empty(sizes, dtype=dtype)


def _row_scale(x: torch.Tensor, groups=1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return x.new_empty([*x.shape[:-1], groups], dtype=dtype)


def _ceil_divide(size, by):
    return (size + by - 1) // by


def _result_per_tensor(v):
    return _quantized(v.x, v.dtype), v.x.new_empty((1,), dtype=torch.float32)


def _result_static(v):
    return _quantized(v.x, v.dtype)


def _result_per_token(v):
    return _quantized(v.x, v.dtype), _row_scale(v.x)


def _result_per_token_asymmetric(v):
    return _quantized(v.x, torch.int8), _row_scale(v.x), _row_scale(v.x, dtype=torch.int32)


def _result_per_group(v):
    q, scale = _quantized(v.x, v.dtype), _row_scale(v.x, _ceil_divide(v.x.shape[-1], v.group_size))
    if v.column_major_scales:
        rows = 1
        for size in v.x.shape[:-1]:
            rows = rows * size
        strides = [*_contiguous_strides(v.x.shape[:-1]), _at_least_one(rows)]
        scale = torch.empty_strided(scale.shape, strides, dtype=torch.float32, device=v.x.device)
    return q, scale


def _result_per_block(v):
    n, k = v.w.shape
    scale = v.w.new_empty((_ceil_divide(n, v.block_n), _ceil_divide(k, v.block_k)), dtype=torch.float32)
    return _quantized(v.w, v.dtype), scale


def _result_fused(v):
    columns = v.x.shape[-1] // 2 if getattr(v, "gated", False) else v.x.shape[-1]
    groups = 1 if v.group_size == 0 else _ceil_divide(columns, v.group_size)
    return _quantized(v.x, v.dtype, columns), _row_scale(v.x, groups)


def _result_permute(v):
    return v.A.new_empty(v.A.shape)


def _result_route(v):
    tokens, top_k = v.topk_ids.shape
    sizes = ((v.num_local_experts + 1,), (tokens * top_k,), (tokens, top_k))
    return tuple(v.topk_ids.new_empty(size, dtype=torch.int32) for size in sizes)


def _result_grouped(v):
    return v.a.new_empty([*v.a.shape[:-1], v.b.shape[2]], dtype=v.out_dtype)


def _result_gather(v):
    rows, columns = v.source_row.shape[0], v.x.shape[1]
    if v.scale is not None or v.group_size == -1:
        scale = (1,)
    else:
        scale = (rows, 1 if v.group_size == 0 else _ceil_divide(columns, v.group_size))
    return v.x.new_empty((rows, columns), dtype=v.dtype), v.x.new_empty(scale, dtype=torch.float32)


def _result_combine(v):
    return v.y.new_empty((v.slot.shape[0], v.y.shape[1]), dtype=v.out_dtype)


def _result_layer(v):
    return v.x.new_empty(v.x.shape)


# Operator -> what its sizes have to do with each other, what it returns.
_OPERATORS = {
    "scaled_mm": (_relate_scaled_mm, _result_scaled_mm),
    "scaled_mm_azp": (_relate_scaled_mm, _result_scaled_mm),
    "_scaled_mm_row": (_relate_scaled_mm, _result_scaled_mm),
    "quantize_per_tensor": (_relate_rows, _result_per_tensor),
    "quantize_static": (_relate_rows, _result_static),
    "quantize_per_token": (_relate_rows, _result_per_token),
    "quantize_per_token_asymmetric": (_relate_rows, _result_per_token_asymmetric),
    "quantize_per_group": (_relate_rows, _result_per_group),
    "quantize_per_block": (_relate_rows, _result_per_block),
    "activate_and_quantize": (_relate_rows, _result_fused),
    "rms_norm_quantize": (_relate_rows, _result_fused),
    "quantized_linear": (_relate_linear, _result_linear),
    "cutlass_scaled_mm": (_relate_cutlass, None),
    "cutlass_scaled_mm_azp": (_relate_cutlass, None),
    "permute_cols": (_relate_permute, _result_permute),
    "per_token_group_fp8_quant": (_relate_nothing, None),
    "per_token_group_fp8_quant_packed": (_relate_nothing, None),
    "per_token_group_quant_int8": (_relate_nothing, None),
    "moe_route": (_relate_nothing, _result_route),
    "grouped_scaled_mm": (_relate_grouped, _result_grouped),
    "grouped_scaled_mm_masked": (_relate_grouped, _result_grouped),
    "moe_gather_quantize": (_relate_nothing, _result_gather),
    "moe_combine": (_relate_combine, _result_combine),
    "fused_moe": (_relate_layer, _result_layer),
    "cutlass_moe_mm": (_relate_nothing, None),
    "get_cutlass_moe_mm_data": (_relate_nothing, None),
    "get_cutlass_moe_mm_problem_sizes_from_expert_offsets": (_relate_nothing, None),
    "get_cutlass_batched_moe_mm_data": (_relate_nothing, None),
}


def fake_of(name: str, overload: str = ""):
    """The fake of one operator, for whatever namespace it is registered in."""
    relate, result = _OPERATORS[name]
    operator = f"{name}.{overload}" if overload else name
    signature = _Signature(torch._C._get_schema(f"evergemm::{name}", overload))

    def fake(*args, **kwargs):
        values = signature.bind(args, kwargs)
        named = types.SimpleNamespace(**values)
        # With unbacked sizes the relations come first: what they settle, the validator can judge.
        unbacked = any(_is_unbacked(size) for size in _sizes_of(values))
        if not unbacked:
            library.validate(operator, signature.describe(values))
        relate(named)
        if unbacked:
            library.validate(operator, signature.describe(values))
        return None if overload == "out" or result is None else result(named)

    return fake


def _register() -> torch.library.Library:
    fragment = torch.library.Library("evergemm", "FRAGMENT")
    for schema in _schemas.TENSOR_OPERATORS:
        name, _, overload = schema.partition("(")[0].partition(".")
        qualified = f"evergemm::{name}.{overload}" if overload else f"evergemm::{name}"
        torch.library.register_fake(qualified, fake_of(name, overload), lib=fragment)
    return fragment


_fragment = _register()  # the fakes are registered as long as this lives
