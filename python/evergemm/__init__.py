# SPDX-License-Identifier: Apache-2.0
"""evergemm: quantized GEMM kernels for PyTorch in one binary that outlives PyTorch releases.

Importing loads the library, registers `torch.ops.evergemm.*` and checks every operator; it opens no GPU and creates no
context. What is heavier (modules that quantize models, explain) is imported when it is first asked for.
"""

from __future__ import annotations

import importlib

from . import (
    _fakes,  # noqa: F401  registers the operators for torch.compile and torch.export
    _library,
)
from .ops import (
    activate_and_quantize,
    permute_cols,
    quantize_per_block,
    quantize_per_group,
    quantize_per_tensor,
    quantize_per_token,
    quantize_per_token_asymmetric,
    quantize_static,
    rms_norm_quantize,
    scaled_mm,
    scaled_mm_azp,
)

__version__ = _library.library.version()

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
    "permute_cols",
    "quantize_",
    "quantize_per_block",
    "quantize_per_group",
    "quantize_per_tensor",
    "quantize_per_token",
    "quantize_per_token_asymmetric",
    "quantize_static",
    "rms_norm_quantize",
    "scaled_mm",
    "scaled_mm_azp",
]


def __getattr__(name: str):
    module = _LATER.get(name)
    if module is None:
        raise AttributeError(f"module 'evergemm' has no attribute {name!r}")
    if not module:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value  # also where a module of the same name was just bound
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LATER))
