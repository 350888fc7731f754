# SPDX-License-Identifier: Apache-2.0
"""Loads the one shared library beside this file and makes sure that torch has every operator of it.

First module that `import evergemm` runs. It opens no GPU and creates no context. Whatever is wrong is one ImportError
with the reason. Must not go here: operators' Python functions (ops.py), questions to the library (_c_api.py).
"""

from __future__ import annotations

import pathlib
import re

import torch

from . import _c_api, _schemas

_OLDEST_TORCH = (2, 10)
_FILE_NAME = "libevergemm_torch.so"


def _fail(expected: str, got: str, fix: str) -> ImportError:
    return ImportError(f"evergemm: expected {expected}; got {got}; fix: {fix}.")


def find() -> pathlib.Path:
    """The library's file. An editable install keeps it in another folder of the package than these sources."""
    import evergemm

    folders = [pathlib.Path(folder) for folder in evergemm.__path__]
    found = [folder / _FILE_NAME for folder in folders if (folder / _FILE_NAME).is_file()]
    if len(found) == 1:
        return found[0]
    places = ", ".join(str(folder) for folder in folders)
    if not found:
        raise _fail(f"{_FILE_NAME} in {places}", "no such file", "install the package with pip (it builds the library)")
    raise _fail(f"one {_FILE_NAME}", f"one in each of {places}", "uninstall one of the two installations")


def _check_torch() -> None:
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers is None or tuple(map(int, numbers.groups())) < _OLDEST_TORCH:
        raise _fail("torch >= 2.10", f"torch {torch.__version__}", "pip install --upgrade 'torch>=2.10'")


def _difference(schema: str, keys: tuple[str, ...]) -> str | None:
    """What torch has instead of this operator, or None where it is there as listed."""
    wanted = torch._C.parse_schema(f"evergemm::{schema}")
    overload = wanted.overload_name
    full_name = wanted.name + (f".{overload}" if overload else "")
    try:
        registered = torch._C._get_schema(wanted.name, overload)
    except RuntimeError:
        return f"no operator {full_name}"
    if str(registered) != str(wanted):
        return f"an operator {registered}"
    for key in keys:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(full_name, key):
            return f"{full_name} without a kernel for the dispatch key {key}"
    return None


def _verify() -> None:
    for schemas, keys in (
        (_schemas.TENSOR_OPERATORS, ("CPU", "CUDA")),
        (_schemas.QUERIES, ("CompositeExplicitAutograd",)),
    ):
        for schema in schemas:
            difference = _difference(schema, keys)
            if difference is not None:
                raise _fail(f"the operator {schema}", difference, "reinstall the package: library and sources differ")


def load() -> _c_api.Library:
    """Loads, registers and verifies; returns the library's C interface."""
    _check_torch()
    path = find()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        raise _fail(f"{path} to load into torch {torch.__version__}", str(error), "reinstall the package") from error
    library = _c_api.Library(path)
    status = library.status()
    if status:
        raise _fail(
            "its operators to be registered with torch",
            status,
            "load one copy of evergemm a process, and define no namespace evergemm of your own",
        )
    _verify()
    return library


library = load()
