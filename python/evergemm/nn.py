# SPDX-License-Identifier: Apache-2.0
"""Modules that hold quantized weights. QuantLinear stands where a torch.nn.Linear stood.

Stands between a model and the operators: one quantized_linear a call. quantize.py makes these modules from
nn.Linear, checkpoint.py from files. Must not go here: how weights are chosen or quantized, file formats.
"""

from __future__ import annotations

import torch

from . import ops as _ops
from .moe import QuantMoE, QuantMoEBlock  # noqa: F401  modules of this name space, too

BLOCK = 128  # width and height of a scale block of BlockWise weights, in elements
INT8_LARGEST_K = 131_071  # beyond it the int32 sum of int8 products could overflow, and the operators refuse

INT8_LARGEST_K_ASYMMETRIC = 65_793  # beyond it the sum with zero points is exact only modulo 2^32

_STORED = ("weight", "weight_scale", "input_scale", "azp_adj")  # what keeps its dtype whatever the model is cast to


def _block_scale_shape(out_features: int, in_features: int) -> tuple[int, int]:
    return (-(-out_features // BLOCK), -(-in_features // BLOCK))


def _wrong(expected: str, got: str, fix: str) -> ValueError:
    return ValueError(f"QuantLinear: expected {expected}; got {got}; fix: {fix}.")


class QuantLinear(torch.nn.Module):
    """`y = x @ real(weight).t() + bias` with an int8 or float8_e4m3fn weight and x quantized on the way in.

    How x is quantized follows from what is stored, as in checkpoints of the compressed-tensors layout:

    ==============  =================================  ==============  ==================================
    weight          weight_scale (float32)             input_scale     x is quantized
    ==============  =================================  ==============  ==================================
    int8 or float8  [n, 1] per channel, or [1]         None            per token (RowWise), dynamically
    int8 or float8  [n, 1] per channel, or [1]         [1] float32     with that one scale (TensorWise)
    int8            [n, 1] per channel, or [1]         None            as the first, with a zero point per token where
                                                                       azp_adj [n] int32 is there: sums of the weight over k
    float8          [ceil(n/128), ceil(k/128)] blocks  None            per 1 x 128 of a row, dynamically
    ==============  =================================  ==============  ==================================

    A scale is a multiplier: real = scale * stored. What is stored is in buffers (azp_adj is this library's own), so that
    `model.parameters()` keeps the dtype of the model, and casts of the model (`.half()`, `.to(torch.bfloat16)`) move them
    between devices but never change their dtype. `bias` is a parameter of the model's dtype. For inference only.

    Args:
        weight: [n, k] (out_features, in_features), int8 or float8_e4m3fn, contiguous; n and k at least 1.
        weight_scale: float32, of a shape in the table ([n] is taken as [n, 1]).
        bias: [n], floating point; or None.
        input_scale: 1 element, float32; or None.
        asymmetric: quantize x with a zero point per token: finer where x leans to one side. int8 without input_scale only.

    Raises:
        ValueError: a dtype or shape that is not in the table.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        weight_scale: torch.Tensor,
        bias: torch.Tensor | None = None,
        input_scale: torch.Tensor | None = None,
        asymmetric: bool = False,
    ):
        super().__init__()
        if weight.dtype not in (torch.int8, torch.float8_e4m3fn) or weight.dim() != 2 or 0 in weight.shape:
            raise _wrong(
                "weight [n, k] of int8 or float8_e4m3fn with n and k at least 1",
                f"shape {list(weight.shape)}, {weight.dtype}",
                "quantize it with evergemm.quantize_, or take such a checkpoint",
            )
        n, k = weight.shape
        if weight.dtype == torch.int8 and k > INT8_LARGEST_K:
            raise _wrong(
                f"at most {INT8_LARGEST_K} input features with an int8 weight (the int32 sum is exact up to there)",
                f"{k}",
                "use float8, or split the layer",
            )
        if weight_scale.shape == (n,) and n != 1:
            weight_scale = weight_scale.view(n, 1)
        elif weight_scale.dim() == 0:
            weight_scale = weight_scale.view(1)
        blocks = _block_scale_shape(n, k)
        shapes = {(1,): "tensor", (1, 1): "channel" if n == 1 else "tensor", (n, 1): "channel"}
        if weight.dtype == torch.float8_e4m3fn:
            # Where one block covers k (k <= 128) and n <= 128, [1, 1] fits both readings; their values agree.
            shapes.setdefault(blocks, "block")
        granularity = shapes.get(tuple(weight_scale.shape))
        if granularity is None or weight_scale.dtype != torch.float32:
            accepted = ", ".join(str(list(shape)) for shape in shapes)
            raise _wrong(
                f"weight_scale float32 of shape {accepted} for a {weight.dtype} weight {list(weight.shape)}",
                f"shape {list(weight_scale.shape)}, {weight_scale.dtype}",
                "pass scales per tensor, per output channel, or (float8) per 128 x 128 block",
            )
        if input_scale is not None and (input_scale.numel() != 1 or input_scale.dtype != torch.float32):
            raise _wrong(
                "input_scale float32 of one element",
                f"shape {list(input_scale.shape)}, {input_scale.dtype}",
                "quantize x per tensor, or leave input_scale away to quantize it dynamically",
            )
        if input_scale is not None and granularity == "block":
            raise _wrong(
                "no input_scale with block scales (x is quantized per 1 x 128 of a row)",
                f"shape {list(input_scale.shape)}",
                "leave input_scale away",
            )
        if asymmetric and (weight.dtype != torch.int8 or input_scale is not None or k > INT8_LARGEST_K_ASYMMETRIC):
            raise _wrong(
                f"asymmetric only with an int8 weight of at most {INT8_LARGEST_K_ASYMMETRIC} input features and no "
                "input_scale",
                f"{weight.dtype}, {k} input features, {'an' if input_scale is not None else 'no'} input_scale",
                "leave asymmetric away",
            )
        if bias is not None and (tuple(bias.shape) != (n,) or not bias.is_floating_point()):
            raise _wrong(
                f"bias [{n}], floating point", f"shape {list(bias.shape)}, {bias.dtype}", "pass the bias of nn.Linear"
            )
        self.in_features, self.out_features = k, n
        self.granularity = granularity  # of weight_scale: "tensor", "channel" or "block"
        self.register_buffer("weight", weight)
        self.register_buffer("weight_scale", weight_scale)
        self.register_buffer("input_scale", None if input_scale is None else input_scale.view(1))
        self.register_buffer("azp_adj", weight.sum(1, dtype=torch.int32) if asymmetric else None)
        # A parameter that already is one stays the same object, so that ties and devices of the model are kept.
        if bias is not None and not isinstance(bias, torch.nn.Parameter):
            bias = torch.nn.Parameter(bias, requires_grad=False)
        self.register_parameter("bias", bias)

    @property
    def scheme(self) -> str:
        """ "int8_dynamic", "int8_static", "fp8_dynamic", "fp8_static" or "fp8_block"."""
        dtype = "int8" if self.weight.dtype == torch.int8 else "fp8"
        if self.granularity == "block":
            return "fp8_block"
        if self.azp_adj is not None:
            return "int8_dynamic_asymmetric"
        return dtype + ("_dynamic" if self.input_scale is None else "_static")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in_features], bfloat16, float16 or float32 -> [..., out_features] of x's dtype.

        Raises:
            RuntimeError: from the operators, for another dtype or number of features, or an x that requires grad.
        """
        # Module's attribute lookup costs half a microsecond a tensor, its dictionaries nearly nothing.
        stored, bias = self._buffers, self._parameters["bias"]
        if bias is not None and bias.dtype != x.dtype:
            bias = bias.to(x.dtype)
        rows = x
        if x.stride(-1) != 1:
            rows = x.contiguous()
        elif x.dim() > 2 and not x.is_contiguous():
            rows = x.flatten(0, -2)  # a view where the strides allow it
        y = _ops.quantized_linear(
            rows, stored["weight"], stored["weight_scale"], stored["input_scale"], stored["azp_adj"], bias
        )
        return y if rows.dim() == x.dim() else y.view(*x.shape[:-1], self.out_features)

    def dequantized_weight(self) -> torch.Tensor:
        """The weight that the stored one stands for: [n, k] float32."""
        scale = self.weight_scale
        if self.granularity == "block":
            scale = scale.repeat_interleave(BLOCK, 0)[: self.out_features]
            scale = scale.repeat_interleave(BLOCK, 1)[:, : self.in_features]
        return self.weight.to(torch.float32) * scale

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.scheme}, weight_scale={list(self.weight_scale.shape)}"
        )

    def _apply(self, fn, recurse: bool = True):
        # Module.to(dtype), .half() and .float() come through here: stored tensors follow to the device, not to the dtype.
        stored = [getattr(self, name) for name in _STORED]

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if result.dtype != tensor.dtype and any(tensor is one for one in stored):
                return tensor.to(result.device)
            return result

        return super()._apply(keep_dtype, recurse)

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        # torch's own loading copies with a silent cast: float weights would become garbage int8.
        for name in _STORED:
            own, given = getattr(self, name), state_dict.get(prefix + name)
            if own is None or given is None:
                continue
            if name in ("weight", "azp_adj") and given.dtype != own.dtype:
                error_msgs.append(
                    f"QuantLinear: expected {prefix}{name} of {own.dtype}; got {given.dtype}; "
                    "fix: load before evergemm.quantize_, or load a checkpoint that was quantized with the same scheme."
                )
                return
            if name == "azp_adj":
                weight = state_dict.get(prefix + "weight")
                if weight is not None and not torch.equal(weight.sum(1, dtype=torch.int32), given.to(weight.device)):
                    error_msgs.append(
                        f"QuantLinear: expected {prefix}azp_adj to hold the sums of {prefix}weight over its rows; got other "
                        "values; fix: load a checkpoint whose tensors belong together."
                    )
                    return
            elif name != "weight":
                if not given.is_floating_point():
                    error_msgs.append(
                        f"QuantLinear: expected {prefix}{name} of a floating-point dtype; got {given.dtype}; "
                        "fix: load a checkpoint whose scales are multipliers."
                    )
                    return
                if given.numel() == own.numel():
                    given = given.reshape(own.shape)
                state_dict[prefix + name] = given.to(torch.float32)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
