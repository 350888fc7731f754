# SPDX-License-Identifier: Apache-2.0
"""quantize_(model, config): replaces a model's nn.Linear layers by QuantLinear and reports what that costs and gains.

Stands above nn.py and the operators; torch models come in, the same models with quantized layers go out. Must not go here:
arithmetic (the operators have it), file formats (checkpoint.py).
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from . import moe as _moe
from . import ops as _ops
from .nn import BLOCK, INT8_LARGEST_K, INT8_LARGEST_K_ASYMMETRIC, QuantLinear
from .text import bytes_text, table

_WORTH_IT = 0.9  # zero points are used where the error falls below this share of the symmetric one's
SAMPLE_ROWS = 128  # rows of input on which a layer's relative error is measured


@dataclasses.dataclass(frozen=True)
class Int8Dynamic:
    """int8 weights with a scale per output channel; activations quantized per token in each call.

    Args:
        calibration: batches whose activations decide about zero points and that the report's relative errors are measured
            on; None: generated ones. A batch is a tensor, a tuple of positional arguments, or a mapping of keyword
            arguments of the model.
        asymmetric: activations have a zero point per token: finer where they lean to one side, as behind an activation
            function or a layer norm. None: decided for each layer by its error on the sample.
    """

    calibration: Iterable | None = None
    asymmetric: bool | None = None


@dataclasses.dataclass(frozen=True)
class Int8Static:
    """int8 weights with a scale per output channel; activations quantized with one scale a layer, found beforehand.

    Args:
        calibration: batches (see Int8Dynamic) that the model is run on; a layer's input_scale is the largest magnitude of
            its input over all of them, divided by 127. A layer that they never reach stays as it is and is named.
    """

    calibration: Iterable


@dataclasses.dataclass(frozen=True)
class Fp8Dynamic:
    """float8_e4m3fn weights with a scale per output channel; activations quantized per token in each call.

    Args:
        calibration: see Int8Dynamic.
    """

    calibration: Iterable | None = None


@dataclasses.dataclass(frozen=True)
class Fp8Block:
    """float8_e4m3fn weights with a scale per 128 x 128 block; activations per 1 x 128 of a row, in each call.

    Args:
        calibration: see Int8Dynamic.
    """

    calibration: Iterable | None = None


Config = Int8Dynamic | Int8Static | Fp8Dynamic | Fp8Block

_SCHEME_NAMES = {
    Int8Dynamic: "int8_dynamic",
    Int8Static: "int8_static",
    Fp8Dynamic: "fp8_dynamic",
    Fp8Block: "fp8_block",
}


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer that was replaced.

    Attributes:
        name: where it stands in the model, as in `model.get_submodule(name)`.
        shape: (out_features, in_features).
        scheme: "int8_dynamic", "int8_dynamic_asymmetric", "int8_static", "fp8_dynamic" or "fp8_block".
        bytes_before, bytes_after: weight, scales and bias; a weight shared with an earlier layer counts there.
        relative_error: `|quantized(x) - float(x)| / |float(x)|` (2-norms over all outputs) on the sample.
        sample: "calibration" or "generated" (seeded normal values).
        sample_rows: rows of x in the sample.
        row: name of the kernel row that runs it for that many rows here, or why none does.
        row_single: the same for one row of x.
        shares_weight_with: an earlier layer whose quantized weight it shares, or "".
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    bytes_before: int
    bytes_after: int
    relative_error: float
    sample: str
    sample_rows: int
    row: str
    row_single: str
    shares_weight_with: str = ""


@dataclasses.dataclass(frozen=True)
class SkippedLayer:
    """One layer that stayed as it is, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Report:
    """What quantize_ did. `print(report)` shows it as a table.

    Attributes:
        layers: LayerReport of each replaced layer, in the model's order.
        skipped: SkippedLayer of each linear layer that was not replaced; those that filter_fn declined included.
        model_bytes_before, model_bytes_after: all parameters and buffers, each storage counted once.
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedLayer, ...]
    model_bytes_before: int
    model_bytes_after: int

    @property
    def bytes_before(self) -> int:
        """Of the replaced layers."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """Of the replaced layers."""
        return sum(layer.bytes_after for layer in self.layers)

    def __str__(self) -> str:
        lines = []
        if self.layers:
            rows = [
                (
                    layer.name,
                    f"{layer.shape[0]} x {layer.shape[1]}",
                    layer.scheme,
                    bytes_text(layer.bytes_before),
                    bytes_text(layer.bytes_after),
                    f"{layer.relative_error:.2%}",
                    str(layer.sample_rows),
                    layer.row + (f" (shares {layer.shares_weight_with})" if layer.shares_weight_with else ""),
                )
                for layer in self.layers
            ]
            header = ("layer", "n x k", "scheme", "before", "after", "error", "m", "row that runs")
            lines.append(table(header, rows, right=(3, 4, 5, 6)))
        if self.skipped:
            if lines:
                lines.append("")
            lines.append("left as they are:")
            lines.append(
                table(
                    ("layer", "shape", "why"),
                    [(one.name, " x ".join(map(str, one.shape)), one.reason) for one in self.skipped],
                )
            )
        if lines:
            lines.append("")
        count = len(self.layers)
        lines.append(
            f"{count} layer{'' if count == 1 else 's'} quantized: "
            f"{bytes_text(self.bytes_before)} -> {bytes_text(self.bytes_after)}; "
            f"whole model {bytes_text(self.model_bytes_before)} -> {bytes_text(self.model_bytes_after)}"
        )
        return "\n".join(lines)


def model_bytes(model: torch.nn.Module) -> int:
    """Bytes of all parameters and buffers; what several names share counts once."""
    seen: dict[tuple, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        seen[(tensor.device, tensor.data_ptr(), tensor.nbytes) if tensor.nbytes else (id(tensor),)] = tensor.nbytes
    return sum(seen.values())


def _bytes_of(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


# ---- what can be replaced ----------------------------------------------------------------------------------------------


def _other_owners(model: torch.nn.Module) -> dict[int, str]:
    """id of a parameter -> the name under which something else than an nn.Linear owns it."""
    owners = {}
    for module_name, module in model.named_modules():
        if type(module) is torch.nn.Linear:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), f"{module_name}.{name}" if module_name else name)
    return owners


def _why_not(linear: torch.nn.Module, dtype: torch.dtype, owners: Mapping[int, str]) -> str:
    """Why this nn.Linear cannot be replaced, or an empty string."""
    if type(linear) is not torch.nn.Linear:
        return f"a {type(linear).__name__}, whose forward may differ from nn.Linear's"
    if not isinstance(linear._parameters.get("weight"), torch.nn.Parameter):
        return "its weight is computed (a reparametrization), not stored"
    weight = linear.weight
    if 0 in weight.shape:
        return "it is empty"
    if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"its weight is {weight.dtype}; float32, bfloat16 and float16 can be quantized"
    if weight.is_meta:
        return "its weight is on the meta device"
    if weight.device.type not in ("cpu", "cuda"):
        return f"its weight is on {weight.device}; cpu and cuda have kernels"
    if id(weight) in owners:
        return f"its weight is shared with {owners[id(weight)]}, which needs it unquantized"
    if dtype == torch.int8 and weight.shape[1] > INT8_LARGEST_K:
        return f"{weight.shape[1]} input features: int8 sums are exact up to {INT8_LARGEST_K}"
    if linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear):
        return "it has hooks or a patched forward, which a replacement would lose"
    if not bool(torch.isfinite(weight).all()):
        return "its weight holds NaN or infinity"
    return ""


def _disable_fused_paths(model: torch.nn.Module, replaced: Sequence[torch.nn.Module]) -> None:
    """torch's transformer layers read linear1.weight and linear2.weight for a fused kernel that knows float weights only.
    Their own switches turn it off; where no layer of theirs was replaced nothing changes."""
    for module in model.modules():
        if isinstance(module, torch.nn.TransformerEncoderLayer):
            if any(part is new for part in (module.linear1, module.linear2) for new in replaced):
                module.activation_relu_or_gelu = 0
    for module in model.modules():
        if isinstance(module, torch.nn.TransformerEncoder):
            if any(not getattr(layer, "activation_relu_or_gelu", 1) for layer in module.layers):
                module.use_nested_tensor = False


# ---- what a layer sees -------------------------------------------------------------------------------------------------


class _Seen:
    """What one layer was given during calibration."""

    def __init__(self):
        self.absmax = 0.0
        self.rows: list[torch.Tensor] = []
        self.row_count = 0

    def take(self, x: torch.Tensor) -> None:
        rows = x.detach().reshape(-1, x.shape[-1])
        if rows.numel() == 0:
            return
        self.absmax = max(self.absmax, float(rows.abs().amax()))
        missing = SAMPLE_ROWS - self.row_count
        if missing > 0:
            self.rows.append(rows[:missing].clone())
            self.row_count += self.rows[-1].shape[0]


def _run(model: torch.nn.Module, batch) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)


def _calibrate(model: torch.nn.Module, linears: Iterable[torch.nn.Linear], batches: Iterable) -> dict[int, _Seen]:
    """Runs the model in eval mode over the batches; id of a layer -> what it saw. Leaves the model as it was."""
    seen: dict[int, _Seen] = {}
    handles = []
    for linear in linears:
        record = seen[id(linear)] = _Seen()
        handles.append(linear.register_forward_pre_hook(lambda _, inputs, record=record: record.take(inputs[0])))
    training = [module for module in model.modules() if module.training]
    count = 0
    try:
        model.eval()
        with torch.no_grad():
            for batch in batches:
                _run(model, batch)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
        for module in training:
            module.training = True
    if count == 0:
        raise ValueError(
            "quantize_: expected at least one batch in calibration; got none; "
            "fix: pass a list of batches (an iterator that was used up gives none)."
        )
    return seen


def _generated(linear: torch.nn.Linear) -> torch.Tensor:
    """[SAMPLE_ROWS, k] normal values, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SAMPLE_ROWS, linear.in_features, generator=generator)
    return values.to(linear.weight.device, linear.weight.dtype)


def _relative_error(linear: torch.nn.Linear, quantized: QuantLinear, x: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = torch.nn.functional.linear(
            x.float(), linear.weight.float(), None if linear.bias is None else linear.bias.float()
        ).double()
        got = quantized(x).double()
    size, difference = float(wanted.norm()), float((got - wanted).norm())
    if size == 0:
        return 0.0 if difference == 0 else float("inf")
    return difference / size


# ---- quantizing --------------------------------------------------------------------------------------------------------


def _quantized_weight(weight: torch.Tensor, config: Config) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        weight = weight.detach()
        if weight.stride(1) != 1:
            weight = weight.contiguous()
        if isinstance(config, Fp8Block):
            return _ops.quantize_per_block(weight, BLOCK, BLOCK, torch.float8_e4m3fn)
        dtype = torch.float8_e4m3fn if isinstance(config, Fp8Dynamic) else torch.int8
        return _ops.quantize_per_token(weight, dtype)  # a row of the weight is an output channel


# What explain() calls the scales of a scheme.
_SCALES = {
    "int8_dynamic": "rowwise",
    "int8_dynamic_asymmetric": "rowwise",
    "int8_static": ("tensorwise", "rowwise"),
    "fp8_dynamic": "rowwise",
    "fp8_block": "blockwise",
}


def _row_name(layer: QuantLinear, m: int, x_dtype: torch.dtype) -> str:
    from .explanation import architecture_of, explain

    asymmetric = layer.azp_adj is not None
    plan = explain(
        "scaled_mm_azp" if asymmetric else "scaled_mm",
        m=m,
        n=layer.out_features,
        k=layer.in_features,
        dtype="int8" if layer.weight.dtype == torch.int8 else "fp8",
        scales=_SCALES[layer.scheme],
        azp=asymmetric,
        bias=layer.bias is not None,
        out_dtype=str(x_dtype).removeprefix("torch."),
        arch=architecture_of(layer.weight.device),
    )
    return plan.row or plan.error


def _choose_experts(
    model: torch.nn.Module, config: Config, dtype: torch.dtype, filter_fn: Callable[[torch.nn.Module, str], bool] | None
) -> tuple[list[_moe.Candidate], list[SkippedLayer]]:
    """The experts of mixture-of-experts layers that can be replaced whole, and what stays as it is."""
    experts, skipped = [], []
    for candidate in _moe.candidates(model):
        if filter_fn is not None and not filter_fn(candidate.module, candidate.name):
            reason = "filter_fn declined it"
        else:
            reason = _moe.why_not(
                candidate, isinstance(config, Int8Static), INT8_LARGEST_K if dtype == torch.int8 else None
            )
        if reason:
            skipped.append(SkippedLayer(candidate.name, tuple(candidate.parameters()[0].shape), reason))
            continue
        experts.append(candidate)
        if candidate.block:
            shape = tuple(candidate.module.gate.weight.shape)
            skipped.append(SkippedLayer(f"{candidate.name}.gate", shape, "a router: its choices are made in float"))
    return experts, skipped


def _replace_experts(
    model: torch.nn.Module, candidate: _moe.Candidate, config: Config, seen: Mapping[int, _Seen], scheme: str
) -> LayerReport:
    """Puts quantized experts in their place. The report's shape is that of one expert's first weight."""
    weights = candidate.parameters()
    record = seen.get(id(candidate.module))
    sampled = record is not None and record.row_count > 0
    if sampled:
        x = torch.cat(record.rows).to(weights[0].dtype)
    else:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(SAMPLE_ROWS, _moe.hidden_size(candidate), generator=generator).to(weights[0].dtype)
    module = _moe.quantized(candidate, lambda weight: _quantized_weight(weight, config))
    _, rows, hidden = (module.experts if candidate.block else module).w13.shape
    report = LayerReport(
        name=candidate.name,
        shape=(rows, hidden),
        scheme=scheme,
        bytes_before=_bytes_of(*weights),
        bytes_after=_moe.stored_bytes(module),
        relative_error=_moe.relative_error(candidate, module, x),
        sample="calibration" if sampled else "generated",
        sample_rows=x.shape[0],
        row=_moe.row_name(module, x.shape[0], candidate.top_k, x.dtype),
        row_single=_moe.row_name(module, 1, candidate.top_k, x.dtype),
    )
    _moe.put(model, candidate, module)
    return report


def quantize_(
    model: torch.nn.Module,
    config: Config,
    filter_fn: Callable[[torch.nn.Module, str], bool] | None = None,
) -> Report:
    """Replaces each nn.Linear of the model, in place, by a QuantLinear; returns what that did.

    Layers that cannot be replaced stay as they are and are named in the report with the reason: subclasses of nn.Linear
    (nn.MultiheadAttention reads its out_proj's weight directly), a weight that an nn.Embedding shares, empty or non-finite
    weights, dtypes other than float32, bfloat16 and float16, layers with hooks. nn.Linear layers that share one weight go
    on sharing the quantized one. The experts of transformers' Mixtral and Qwen3-MoE models are replaced whole, by a
    nn.QuantMoE (their routers stay as they are). torch's nn.TransformerEncoderLayer takes a fused path around its layers; where one of
    them is replaced, that path is switched off. The model is for inference from then on: the operators refuse tensors
    that require grad, so call it under torch.no_grad() or torch.inference_mode().

    Args:
        model: any module that contains nn.Linear layers; it must not be an nn.Linear itself (nothing could hold its
            replacement).
        config: Int8Dynamic(), Int8Static(calibration=batches), Fp8Dynamic() or Fp8Block().
        filter_fn: called with (module, name) of each candidate; False leaves it as it is.

    Returns:
        Report: a table when printed.

    Raises:
        TypeError: config is none of the four.
        ValueError: the model is an nn.Linear, or calibration has no batch.
    """
    if type(config) not in _SCHEME_NAMES:
        raise TypeError(
            f"quantize_: expected config Int8Dynamic(), Int8Static(calibration=...), Fp8Dynamic() or Fp8Block(); "
            f"got {config!r}; fix: pass an instance of one of them."
        )
    if isinstance(model, torch.nn.Linear):
        raise ValueError(
            "quantize_: expected a model that contains nn.Linear layers; got an nn.Linear itself; "
            "fix: wrap it, torch.nn.Sequential(layer)."
        )
    scheme = _SCHEME_NAMES[type(config)]
    dtype = torch.int8 if scheme.startswith("int8") else torch.float8_e4m3fn
    bytes_before = model_bytes(model)

    owners = _other_owners(model)
    order = {name: i for i, (name, _) in enumerate(model.named_modules())}
    chosen: dict[int, tuple[str, torch.nn.Linear]] = {}
    experts, skipped = _choose_experts(model, config, dtype, filter_fn)
    inside = set().union(*(candidate.linears() for candidate in experts))
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or id(module) in inside:
            continue
        if filter_fn is not None and not filter_fn(module, name):
            reason = "filter_fn declined it"
        else:
            reason = _why_not(module, dtype, owners)
        if reason:
            shape = (module.out_features, module.in_features)
            skipped.append(SkippedLayer(name, shape, reason))
        else:
            chosen[id(module)] = (name, module)

    seen: dict[int, _Seen] = {}
    if config.calibration is not None and (chosen or experts):
        modules = [module for _, module in chosen.values()] + [candidate.module for candidate in experts]
        seen = _calibrate(model, modules, config.calibration)

    places: dict[int, list[tuple[torch.nn.Module, str]]] = collections.defaultdict(
        list
    )  # one module may stand in several
    for parent in model.modules():
        for name, child in parent._modules.items():
            places[id(child)].append((parent, name))
    uses = collections.Counter(id(linear.weight) for _, linear in chosen.values())
    # id of a float weight that several layers share -> (it, its first layer, its quantized form). Keeping it keeps its id.
    shared: dict[int, tuple[torch.Tensor, str, torch.Tensor, torch.Tensor]] = {}

    layers = [_replace_experts(model, candidate, config, seen, scheme) for candidate in experts]
    replaced: list[QuantLinear] = []
    while chosen:  # each float weight is let go before the next layer is quantized
        key = next(iter(chosen))
        name, linear = chosen.pop(key)
        record = seen.pop(key, None)
        if isinstance(config, Int8Static):
            reason = ""
            if record is None or record.row_count == 0:
                reason = "calibration never ran it"
            elif not record.absmax < float("inf"):
                reason = "calibration gave it NaN or infinity"
            if reason:
                skipped.append(SkippedLayer(name, tuple(linear.weight.shape), reason))
                continue
        input_scale = None
        if isinstance(config, Int8Static):
            scale = record.absmax / 127 if record.absmax > 0 else 1.0
            input_scale = torch.tensor([scale], dtype=torch.float32, device=linear.weight.device)
        first = ""
        if id(linear.weight) in shared:
            _, first, weight, weight_scale = shared[id(linear.weight)]
        else:
            weight, weight_scale = _quantized_weight(linear.weight, config)
            if uses[id(linear.weight)] > 1:
                shared[id(linear.weight)] = (linear.weight, name, weight, weight_scale)
        sampled = record is not None and record.row_count > 0
        x = torch.cat(record.rows).to(linear.weight.dtype) if sampled else _generated(linear)
        quantized = QuantLinear(weight, weight_scale, linear.bias, input_scale)
        error = _relative_error(linear, quantized, x)
        wanted = config.asymmetric if isinstance(config, Int8Dynamic) else False
        if wanted is not False and linear.in_features <= INT8_LARGEST_K_ASYMMETRIC:
            other = QuantLinear(weight, weight_scale, linear.bias, asymmetric=True)
            other_error = _relative_error(linear, other, x)
            if wanted or other_error < _WORTH_IT * error:
                quantized, error = other, other_error
        quantized.train(linear.training)
        layers.append(
            LayerReport(
                name=name,
                shape=(linear.out_features, linear.in_features),
                scheme=scheme + ("_asymmetric" if quantized.azp_adj is not None else ""),
                bytes_before=_bytes_of(None if first else linear.weight, linear.bias),
                bytes_after=_bytes_of(
                    *(() if first else (weight, weight_scale)), input_scale, quantized.azp_adj, linear.bias
                ),
                relative_error=error,
                sample="calibration" if sampled else "generated",
                sample_rows=x.shape[0],
                row=_row_name(quantized, x.shape[0], x.dtype),
                row_single=_row_name(quantized, 1, x.dtype),
                shares_weight_with=first,
            )
        )
        for parent, child_name in places[key]:
            setattr(parent, child_name, quantized)
        replaced.append(quantized)
    _disable_fused_paths(model, replaced)
    layers.sort(key=lambda layer: order[layer.name])
    return Report(tuple(layers), tuple(skipped), bytes_before, model_bytes(model))
