# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-experts modules that hold quantized weights, and what quantize_ does with a model's experts.

QuantMoE stands where transformers' MixtralExperts or Qwen3MoeExperts stood (the 3-D weights of transformers 5), QuantMoEBlock
where the sparse block of transformers 4 stood, whose experts are a ModuleList. One fused_moe a call. Stands beside nn.py;
quantize.py calls it. Must not go here: arithmetic, how linear layers are replaced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from . import ops as _ops

_STORED = ("w13", "w13_scale", "w2", "w2_scale")  # what keeps its dtype whatever the model is cast to

_FUSED = ("MixtralExperts", "Qwen3MoeExperts")  # gate_up_proj [e, 2i, h], down_proj [e, h, i], act_fn
# The block's class -> the names of gate, up and down in one of its experts.
_LISTS = {
    "MixtralSparseMoeBlock": ("w1", "w3", "w2"),
    "Qwen3MoeSparseMoeBlock": ("gate_proj", "up_proj", "down_proj"),
}

_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "relu_squared": lambda x: torch.relu(x).square(),
}


def _wrong(expected: str, got: str, fix: str) -> ValueError:
    return ValueError(f"QuantMoE: expected {expected}; got {got}; fix: {fix}.")


class QuantMoE(torch.nn.Module):
    """Experts with int8 or float8_e4m3fn weights: `sum over choices of weight * w2[e] @ (act(gate) * up)`, gate and up the
    halves of `w13[e] @ x`. Called as transformers calls its experts: (hidden_states, top_k_index, top_k_weights).

    x is quantized as the scales say: one a token for scales per channel, 1 x 128 for blocks. A scale is a multiplier. What is
    stored is in buffers, which casts of the model (`.half()`) move between devices but never to another dtype. For inference
    only.

    Args:
        w13: [experts, 2 * intermediate, hidden], gate rows first; int8 or float8_e4m3fn.
        w2: [experts, hidden, intermediate], dtype of w13.
        w13_scale, w2_scale: float32, [experts, n] a channel, or (float8) [experts, ceil(n/128), ceil(k/128)] blocks.
        activation: "silu", "gelu" (erf) or "relu_squared".

    Raises:
        ValueError: a dtype or shape that is not listed.
    """

    def __init__(
        self,
        w13: torch.Tensor,
        w2: torch.Tensor,
        w13_scale: torch.Tensor,
        w2_scale: torch.Tensor,
        activation: str = "silu",
    ):
        super().__init__()
        if w13.dtype not in (torch.int8, torch.float8_e4m3fn) or w13.dim() != 3 or w13.shape[1] % 2:
            raise _wrong(
                "w13 [experts, 2 * intermediate, hidden] of int8 or float8_e4m3fn",
                f"shape {list(w13.shape)}, {w13.dtype}",
                "quantize the experts with evergemm.quantize_",
            )
        experts, rows, hidden = w13.shape
        if w2.dtype != w13.dtype or tuple(w2.shape) != (experts, hidden, rows // 2):
            raise _wrong(
                f"w2 {[experts, hidden, rows // 2]} of {w13.dtype}",
                f"shape {list(w2.shape)}, {w2.dtype}",
                "pass the weights of the same experts",
            )
        for name, scale, weight in (("w13_scale", w13_scale, w13), ("w2_scale", w2_scale, w2)):
            _, n, k = weight.shape
            shapes = [(experts, n)]
            if weight.dtype == torch.float8_e4m3fn:
                shapes.append((experts, -(-n // 128), -(-k // 128)))
            if scale.dtype != torch.float32 or tuple(scale.shape) not in shapes:
                raise _wrong(
                    f"{name} float32 of shape {' or '.join(str(list(shape)) for shape in shapes)}",
                    f"shape {list(scale.shape)}, {scale.dtype}",
                    "pass scales per output channel or, for float8, per 128 x 128 block",
                )
        if activation not in _FUNCTIONS:
            raise _wrong(f"activation {', '.join(_FUNCTIONS)}", repr(activation), "choose one of them")
        self.activation = activation
        self.register_buffer("w13", w13)
        self.register_buffer("w13_scale", w13_scale)
        self.register_buffer("w2", w2)
        self.register_buffer("w2_scale", w2_scale)

    @property
    def num_experts(self) -> int:
        return self.w13.shape[0]

    @property
    def scheme(self) -> str:
        """ "int8_dynamic", "fp8_dynamic" or "fp8_block"."""
        if self.w13_scale.dim() == 3:
            return "fp8_block"
        return "int8_dynamic" if self.w13.dtype == torch.int8 else "fp8_dynamic"

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """hidden_states [tokens, hidden], top_k_index [tokens, top_k] (an index that is no expert contributes nothing),
        top_k_weights [tokens, top_k] -> [tokens, hidden] of hidden_states' dtype.

        Raises:
            RuntimeError: from fused_moe, for another dtype or shape, or an input that requires grad.
        """
        return _ops.fused_moe(
            hidden_states,
            self.w13,
            self.w2,
            self.w13_scale,
            self.w2_scale,
            top_k_weights.to(torch.float32),
            top_k_index,
            activation=self.activation,
        )

    def extra_repr(self) -> str:
        experts, rows, hidden = self.w13.shape
        return f"experts={experts}, hidden={hidden}, intermediate={rows // 2}, scheme={self.scheme}"

    def _apply(self, fn, recurse: bool = True):
        # Module.to(dtype), .half() and .float() come through here: stored tensors follow to the device, not to the dtype.
        stored = [getattr(self, name) for name in _STORED]

        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            result = fn(tensor)
            if result.dtype != tensor.dtype and any(tensor is one for one in stored):
                return tensor.to(result.device)
            return result

        return super()._apply(keep_dtype, recurse)

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        # torch's own loading copies with a silent cast: float weights would become garbage int8.
        for name in _STORED:
            given = state_dict.get(prefix + name)
            if given is not None and given.dtype != getattr(self, name).dtype:
                errors.append(
                    f"QuantMoE: expected {prefix}{name} of {getattr(self, name).dtype}; got {given.dtype}; fix: load before "
                    "evergemm.quantize_, or load a checkpoint that was quantized with the same scheme."
                )
                return
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)


class QuantMoEBlock(torch.nn.Module):
    """The sparse block of transformers 4 with quantized experts: the router stays as it is; returns (hidden, router logits).

    Args:
        gate: the router, hidden -> experts.
        experts: QuantMoE.
        top_k: choices of a token.
        normalize: divide the chosen probabilities by their sum.
    """

    def __init__(self, gate: torch.nn.Module, experts: QuantMoE, top_k: int, normalize: bool):
        super().__init__()
        self.gate, self.experts, self.top_k, self.normalize = gate, experts, top_k, normalize

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden_states [..., hidden] -> ([..., hidden], router logits [tokens, experts])."""
        rows = hidden_states.reshape(-1, hidden_states.shape[-1])
        logits = self.gate(rows)
        weights, index = torch.softmax(logits, 1, dtype=torch.float32).topk(self.top_k, 1)
        if self.normalize:
            weights = weights / weights.sum(1, keepdim=True)
        weights = weights.to(rows.dtype)  # as the block that it replaces rounds them
        return self.experts(rows, index, weights).view(hidden_states.shape), logits


# ---- for quantize_ -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Candidate:
    """Experts of a model: the module that would be replaced, and its float weights."""

    name: str
    module: torch.nn.Module
    top_k: int
    act_fn: Callable[[torch.Tensor], torch.Tensor]
    block: bool  # the whole sparse block, with its ModuleList of experts

    def _experts(self) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        names = _LISTS[type(self.module).__name__]
        return [tuple(getattr(expert, name).weight for name in names) for expert in self.module.experts]

    def weights(self):
        """(w13 [2i, h], w2 [h, i]) of each expert, one after the other."""
        if self.block:
            for gate, up, down in self._experts():
                yield torch.cat([gate, up]).detach(), down.detach()
        else:
            for pair in zip(self.module.gate_up_proj, self.module.down_proj, strict=True):
                yield tuple(weight.detach() for weight in pair)

    def parameters(self) -> list[torch.Tensor]:
        if self.block:
            return [weight for expert in self._experts() for weight in expert]
        return [self.module.gate_up_proj, self.module.down_proj]

    def linears(self) -> set[int]:
        """ids of the nn.Linear modules that belong to it and are no candidates of their own."""
        return {id(m) for m in self.module.modules() if isinstance(m, torch.nn.Linear)} if self.block else set()


def _activation_of(act_fn: Callable[[torch.Tensor], torch.Tensor]) -> str | None:
    """The activation that a function is, judged by its values."""
    probe = torch.linspace(-6, 6, 49)
    with torch.no_grad():
        values = act_fn(probe)
    return next((n for n, f in _FUNCTIONS.items() if torch.allclose(values, f(probe), rtol=1e-6, atol=1e-7)), None)


def candidates(model: torch.nn.Module) -> list[Candidate]:
    """The experts of transformers' Mixtral and Qwen3-MoE models, of either layout."""
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in _FUSED and isinstance(getattr(module, "gate_up_proj", None), torch.nn.Parameter):
            parent = model.get_submodule(name.rpartition(".")[0]) if name else module
            top_k = getattr(getattr(parent, "gate", None), "top_k", 2)
            found.append(Candidate(name, module, top_k, module.act_fn, False))
        elif (
            kind in _LISTS and isinstance(getattr(module, "experts", None), torch.nn.ModuleList) and len(module.experts)
        ):
            found.append(Candidate(name, module, module.top_k, module.experts[0].act_fn, True))
    return found


def _has_kernels(device: torch.device) -> bool:
    """Whether this library was built for the device."""
    from ._library import library
    from .explanation import architecture_of

    if device.type not in ("cpu", "cuda"):
        return False
    return library.facts()["architectures"].get(architecture_of(device), {}).get("built", False)


def why_not(candidate: Candidate, static: bool, largest_k: int | None) -> str:
    """Why these experts cannot be replaced, or an empty string. `largest_k`: of int8 products."""
    if not candidate.name:
        return "the model itself: nothing could hold its replacement"
    if static:
        return "experts have dynamic scales only: Int8Dynamic takes them"
    if _activation_of(candidate.act_fn) is None:
        return f"its activation is none of {', '.join(_FUNCTIONS)}"
    weights = candidate.parameters()
    if any(w.dtype not in (torch.float32, torch.bfloat16, torch.float16) for w in weights):
        return f"its weights are {weights[0].dtype}; float32, bfloat16 and float16 can be quantized"
    if any(w.is_meta or not _has_kernels(w.device) for w in weights):
        return f"its weights are on {weights[0].device}; this library has no kernels for it"
    if largest_k is not None and max(w.shape[-1] for w in weights) > largest_k:
        return f"{max(w.shape[-1] for w in weights)} input features: int8 sums are exact up to {largest_k}"
    if not all(bool(torch.isfinite(w).all()) for w in weights):
        return "its weights hold NaN or infinity"
    return ""


def quantized(
    candidate: Candidate, quantize: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
) -> torch.nn.Module:
    """The module that replaces it; `quantize` makes (q, scale) of one [n, k] weight."""
    parts: list[list[torch.Tensor]] = [[], [], [], []]
    for pair in candidate.weights():
        for i, weight in enumerate(pair):
            q, scale = quantize(weight)
            parts[i].append(q)
            parts[2 + i].append(scale if scale.shape[0] != q.shape[0] or scale.shape[1] != 1 else scale.flatten())
    experts = QuantMoE(*(torch.stack(part) for part in parts), activation=_activation_of(candidate.act_fn))
    if not candidate.block:
        return experts.train(candidate.module.training)
    normalize = bool(getattr(candidate.module, "norm_topk_prob", True))  # Mixtral always does
    return QuantMoEBlock(candidate.module.gate, experts, candidate.top_k, normalize).train(candidate.module.training)


def relative_error(candidate: Candidate, module: torch.nn.Module, x: torch.Tensor) -> float:
    """|quantized(x) - float(x)| / |float(x)| for rows x, whose choices are spread over the experts."""
    x = x.to(candidate.parameters()[0].device)
    with torch.no_grad():
        if candidate.block:
            # the block's own forward, as a model of transformers 4 calls it: [batch, sequence, hidden] -> (hidden, logits)
            wanted, got = candidate.module(x[None])[0].double(), module(x[None])[0].double()
        else:
            generator = torch.Generator().manual_seed(0)
            experts = module.num_experts
            index = torch.rand(x.shape[0], experts, generator=generator).argsort(1)[:, : min(candidate.top_k, experts)]
            index = index.to(x.device)
            weights = torch.full(index.shape, 1 / max(index.shape[1], 1), dtype=x.dtype, device=x.device)
            wanted, got = candidate.module(x, index, weights).double(), module(x, index, weights).double()
    size, difference = float(wanted.norm()), float((got - wanted).norm())
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def put(model: torch.nn.Module, candidate: Candidate, module: torch.nn.Module) -> None:
    """Into its place."""
    parent, _, name = candidate.name.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


def hidden_size(candidate: Candidate) -> int:
    return candidate.parameters()[0].shape[-1]


def stored_bytes(module: torch.nn.Module) -> int:
    experts = module.experts if isinstance(module, QuantMoEBlock) else module
    return sum(getattr(experts, name).nbytes for name in _STORED)


def row_name(module: torch.nn.Module, m: int, top_k: int, x_dtype: torch.dtype) -> str:
    """The row that runs it for m tokens where its weights are, or why none does."""
    from . import _c_api
    from ._library import library
    from .explanation import architecture_of

    experts = module.experts if isinstance(module, QuantMoEBlock) else module

    def described(tensor: torch.Tensor) -> _c_api.TensorArgument:
        return _c_api.TensorArgument(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    def made_up(*shape: int, dtype: str) -> _c_api.TensorArgument:
        return _c_api.TensorArgument(shape, dtype)

    values = [
        made_up(m, experts.w13.shape[2], dtype=str(x_dtype).removeprefix("torch.")),
        *(described(tensor) for tensor in (experts.w13, experts.w2, experts.w13_scale, experts.w2_scale)),
        made_up(m, top_k, dtype="float32"),
        made_up(m, top_k, dtype="int64"),
        *(None, None, None, 0, False, True, False),
    ]
    try:
        architecture = architecture_of(experts.w13.device)
        return library.explain("fused_moe", values, None if architecture == "cpu" else architecture)["row"]
    except RuntimeError as error:
        return str(error)
