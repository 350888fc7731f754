# SPDX-License-Identifier: Apache-2.0
"""Quantized models to and from safetensors files and state_dicts, with the tensor names of compressed-tensors.

A quantized linear layer is stored as `NAME.weight` (int8 or float8_e4m3fn [n, k]), `NAME.weight_scale` (float32: [n, 1],
[1] or [ceil(n/128), ceil(k/128)]), `NAME.input_scale` (float32 [1], static schemes only), `NAME.bias`, and, where activations
have zero points, `NAME.azp_adj` (int32 [n]), which that format computes instead of storing. Stands beside quantize.py; nn.py says what the tensors mean. File formats are safetensors' business: nothing is parsed here but JSON.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from .nn import QuantLinear

# What another tool may have stored beside a weight that QuantLinear cannot honour -> what that means.
_UNSUPPORTED = {
    "weight_packed": "weights of fewer than 8 bits",
    "weight_zero_point": "asymmetric weights",
    "input_zero_point": "static asymmetric activations",
    "weight_g_idx": "reordered weight groups",
}
_QUANTIZED = (torch.int8, torch.float8_e4m3fn)
_BLOCK_SCALE = "weight_scale_inv"  # the name of block scales (also multipliers) in checkpoints that came first


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What load_ did.

    Attributes:
        replaced: names of nn.Linear layers that became QuantLinear.
        missing: names of the model that the checkpoint does not have (empty where strict).
        unexpected: names of the checkpoint that the model does not have (empty where strict).
    """

    replaced: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]


def _safetensors():
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"checkpoint: expected the package safetensors; got {error}; fix: pip install safetensors."
        ) from error
    return safetensors.torch


def save(model: torch.nn.Module, path: str | os.PathLike[str]) -> None:
    """Writes the model's state_dict as one safetensors file; the same model gives the same bytes.

    A tensor that stands under several names (tied weights) is written once, under the first; load_ ties it again.

    Args:
        model: any module, quantized or not.
        path: of the file; its folder must exist. Replaced in one step where it exists.

    Raises:
        ImportError: the package safetensors is missing.
        OSError: the file cannot be written.
    """
    tensors: dict[str, torch.Tensor] = {}
    seen = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() > 0 and key in seen:
            continue
        seen.add(key)
        # A tensor of its own: safetensors refuses views of one storage, and writes what is contiguous.
        owns_storage = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
        tensors[name] = tensor if owns_storage else tensor.clone(memory_format=torch.contiguous_format)
    path = Path(path)
    unfinished = path.with_name(path.name + ".unfinished")
    # One key only: more would be written in no fixed order.
    _safetensors().save_file(tensors, unfinished, metadata={"format": "pt"})
    os.replace(unfinished, path)


def _read(source: str | os.PathLike[str] | Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], bool]:
    """(tensors by name, whether a description beside them says that int8 activations have zero points)."""
    if isinstance(source, Mapping):
        return dict(source), False
    path = Path(source)
    asymmetric = False
    if path.is_dir():
        asymmetric = _described_as_asymmetric(path / "config.json")
        index = path / "model.safetensors.index.json"
        if index.is_file():
            files = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        for name in files:
            if Path(name).name != name:  # the index is data from outside: it may not lead out of its folder
                raise ValueError(
                    f"checkpoint.load_: expected names of files beside {index}; got {name!r}; "
                    "fix: take the checkpoint from a source you trust."
                )
        paths = [path / name for name in files]
    else:
        paths = [path]
    tensors: dict[str, torch.Tensor] = {}
    for one in paths:
        if not one.is_file():
            raise FileNotFoundError(
                f"checkpoint.load_: expected a safetensors file, or a folder with model.safetensors; got {one}, which does "
                "not exist; fix: give the path of a checkpoint."
            )
        tensors.update(_safetensors().load_file(one))
    return tensors, asymmetric


def _described_as_asymmetric(path: Path) -> bool:
    """Whether config.json says so; refuses what is meant otherwise than its tensors would be read."""
    if not path.is_file():
        return False
    config = json.loads(path.read_text("utf-8")).get("quantization_config") or {}
    asymmetric = set()
    for name, group in (config.get("config_groups") or {}).items():
        activations = group.get("input_activations")
        if activations is None:
            raise ValueError(
                f"checkpoint.load_: expected quantized activations; got weights only in group {name} of {path}; "
                "fix: take a checkpoint whose activations are int8 or float8 too."
            )
        symmetric, dynamic = activations.get("symmetric", True), activations.get("dynamic", False)
        if not symmetric and not dynamic:
            raise ValueError(
                f"checkpoint.load_: expected zero points of activations found in each call; got fixed ones in group {name} of "
                f"{path}; fix: take a checkpoint with symmetric or with dynamic activations."
            )
        asymmetric.add(not symmetric)
    if len(asymmetric) > 1:
        raise ValueError(
            f"checkpoint.load_: expected groups that are all symmetric or all asymmetric; got both in {path}; "
            "fix: take a checkpoint with one scheme."
        )
    return True in asymmetric


def _refuse_unsupported(name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    for suffix, meaning in _UNSUPPORTED.items():
        if f"{name}.{suffix}" in tensors:
            raise ValueError(
                f"checkpoint.load_: expected symmetric 8-bit tensors for {name}; got {name}.{suffix} ({meaning}); "
                "fix: take an int8 or float8 checkpoint without it."
            )


def _layer_of(name: str, linear: torch.nn.Linear, tensors: Mapping[str, torch.Tensor], asymmetric: bool) -> QuantLinear:
    """The QuantLinear that the checkpoint has for this nn.Linear, on the nn.Linear's device."""
    weight = tensors[f"{name}.weight"]
    if weight.shape != linear.weight.shape:
        raise ValueError(
            f"checkpoint.load_: expected {name}.weight {list(linear.weight.shape)}, as in the model; "
            f"got {list(weight.shape)}; fix: build the model with the checkpoint's configuration."
        )
    scale = tensors.get(f"{name}.weight_scale", tensors.get(f"{name}.{_BLOCK_SCALE}"))
    if scale is None:
        raise ValueError(
            f"checkpoint.load_: expected {name}.weight_scale beside a weight of {weight.dtype}; got none; "
            "fix: take a checkpoint that stores its scales."
        )
    device = linear.weight.device if not linear.weight.is_meta else weight.device
    input_scale = tensors.get(f"{name}.input_scale")
    bias = linear.bias
    if bias is not None and bias.is_meta:
        bias = torch.nn.Parameter(torch.empty(bias.shape, dtype=bias.dtype, device=device), requires_grad=False)
    try:
        return QuantLinear(
            weight.to(device, copy=True),  # the source keeps its own
            scale.to(device, torch.float32, copy=True),
            bias,
            None if input_scale is None else input_scale.to(device, torch.float32, copy=True),
            asymmetric=f"{name}.azp_adj" in tensors or (asymmetric and weight.dtype == torch.int8),
        )
    except ValueError as error:
        raise ValueError(f"checkpoint.load_: {name}: {error}") from error


def load_(
    model: torch.nn.Module,
    source: str | os.PathLike[str] | Mapping[str, torch.Tensor],
    strict: bool = True,
) -> LoadReport:
    """Loads a checkpoint into the model, in place; layers that it stores quantized become QuantLinear.

    An nn.Linear whose weight is int8 or float8_e4m3fn in the checkpoint is replaced, with the scheme that its tensors tell
    (see evergemm.nn.QuantLinear); scales in other floating-point dtypes become float32. A layer that is a QuantLinear
    already takes the tensors of its own scheme. Everything else loads as load_state_dict does. Nothing changes where the
    checkpoint does not fit a layer that it would replace.

    Args:
        model: with nn.Linear layers where the checkpoint has quantized ones, or quantized before. May be on the meta
            device only as far as the checkpoint fills it.
        source: a safetensors file; a folder with model.safetensors or model.safetensors.index.json; or a state_dict.
        strict: every name must be in both model and checkpoint (tied names once).

    Returns:
        LoadReport.

    Raises:
        ValueError: the checkpoint stores something that QuantLinear is not (packed weights, zero points, other shapes).
        RuntimeError: from load_state_dict, for names or shapes that do not fit.
        FileNotFoundError, ImportError: no such file; no safetensors.
    """
    tensors, asymmetric = _read(source)
    replacements: dict[int, QuantLinear] = {}
    names: list[str] = []
    shared: dict[int, QuantLinear] = {}  # id of a float weight -> the first layer that replaces one of it
    for name, module in model.named_modules():
        if type(module) is not torch.nn.Linear:
            continue
        _refuse_unsupported(name, tensors)
        weight = tensors.get(f"{name}.weight")
        if weight is not None and weight.dtype in _QUANTIZED:
            replacements[id(module)] = _layer_of(name, module, tensors, asymmetric)
            shared.setdefault(id(module.weight), replacements[id(module)])
        elif weight is None and id(module.weight) in shared:  # tied: written once, under an earlier name
            first = shared[id(module.weight)]
            input_scale = tensors.get(f"{name}.input_scale")
            replacements[id(module)] = QuantLinear(
                first.weight,
                first.weight_scale,
                module.bias,
                None if input_scale is None else input_scale.to(first.weight.device, torch.float32, copy=True),
                asymmetric=f"{name}.azp_adj" in tensors or asymmetric,
            )
        else:
            continue
        names.append(name)
        if replacements[id(module)].azp_adj is not None:
            tensors.setdefault(f"{name}.azp_adj", replacements[id(module)].azp_adj)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                replacements[id(child)].train(child.training)
                setattr(parent, child_name, replacements[id(child)])

    _take_block_scale_names(tensors)
    result = model.load_state_dict(tensors, strict=False)
    missing = _without_tied(model, result.missing_keys, tensors)
    if strict and (missing or result.unexpected_keys):
        raise RuntimeError(
            f"checkpoint.load_: expected the names of the model; got missing {missing}, "
            f"unexpected {list(result.unexpected_keys)}; fix: build the model with the checkpoint's configuration, or pass "
            "strict=False."
        )
    return LoadReport(tuple(names), tuple(missing), tuple(result.unexpected_keys))


def _take_block_scale_names(tensors: dict[str, torch.Tensor]) -> None:
    for name in [name for name in tensors if name.endswith(f".{_BLOCK_SCALE}")]:
        tensors[name.removesuffix(_BLOCK_SCALE) + "weight_scale"] = tensors.pop(name)


def _without_tied(model: torch.nn.Module, missing: list[str], tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The missing names whose tensor is not loaded under another name either."""
    state = model.state_dict()
    loaded = {state[name].data_ptr() for name in tensors if name in state and state[name].numel() > 0}
    return [name for name in missing if name not in state or state[name].data_ptr() not in loaded]
