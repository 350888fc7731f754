# SPDX-License-Identifier: Apache-2.0
"""evergemm: quantized GEMM kernels for PyTorch in one binary that outlives PyTorch releases.

Importing loads the library, registers `torch.ops.evergemm.*` and checks every operator; it opens no GPU and creates no
context. What is heavier (modules that quantize models, explain) is imported when it is first asked for. Only in the command
line's own process does loading wait as well: `evergemm doctor` must run where torch is broken or missing.
"""

from __future__ import annotations

import importlib
import os
import sys

# From ops.py, bound when the library is loaded.
_OPERATORS = (
    "activate_and_quantize",
    "fused_moe",
    "grouped_scaled_mm",
    "grouped_scaled_mm_masked",
    "moe_combine",
    "moe_gather_quantize",
    "moe_route",
    "permute_cols",
    "quantize_per_block",
    "quantize_per_group",
    "quantize_per_tensor",
    "quantize_per_token",
    "quantize_per_token_asymmetric",
    "quantize_static",
    "quantized_linear",
    "rms_norm_quantize",
    "scaled_mm",
    "scaled_mm_azp",
)

# Name -> the module that has it.
_LATER = {
    "quantize_": "quantize",
    "Int8Dynamic": "quantize",
    "Int8Static": "quantize",
    "Fp8Dynamic": "quantize",
    "Fp8Block": "quantize",
    "explain": "explanation",
    "nn": "",
    "compat": "",
    "checkpoint": "",
}

__all__ = [
    "Fp8Block",
    "Fp8Dynamic",
    "Int8Dynamic",
    "Int8Static",
    "activate_and_quantize",
    "explain",
    "fused_moe",
    "grouped_scaled_mm",
    "grouped_scaled_mm_masked",
    "moe_combine",
    "moe_gather_quantize",
    "moe_route",
    "permute_cols",
    "quantize_",
    "quantize_per_block",
    "quantize_per_group",
    "quantize_per_tensor",
    "quantize_per_token",
    "quantize_per_token_asymmetric",
    "quantize_static",
    "quantized_linear",
    "rms_norm_quantize",
    "scaled_mm",
    "scaled_mm_azp",
]


def _is_command_line() -> bool:
    """Is this process `python -m evergemm` or the console script?"""
    if not sys.argv or sys.argv[0] != "-m":
        return bool(sys.argv) and os.path.basename(sys.argv[0]) == "evergemm"
    words = sys.orig_argv
    return "-mevergemm" in words or ("-m", "evergemm") in zip(words, words[1:], strict=False)


def _load() -> None:
    """Loads and verifies the library, registers the fakes, binds the operators. A second call does nothing."""
    if "__version__" in globals():
        return
    from . import _fakes, _library, ops  # noqa: F401  after the library: both need its operators

    globals().update({name: getattr(ops, name) for name in _OPERATORS})
    globals()["__version__"] = _library.library.version()


def __getattr__(name: str):
    if name not in _LATER and name not in _OPERATORS and name != "__version__":
        raise AttributeError(f"module 'evergemm' has no attribute {name!r}")
    _load()
    if name not in _LATER:
        return globals()[name]
    module = _LATER[name]
    if not module:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LATER) | set(_OPERATORS))


if not _is_command_line():
    _load()
