# SPDX-License-Identifier: Apache-2.0
"""The build backend of pyproject.toml: scikit-build-core, and torch's headers from where they already are.

pip builds in an environment of its own that would need torch, gigabytes of it, for some header files. Where the environment
that the package is installed into has torch, its headers are used and nothing is downloaded; otherwise torch becomes a
requirement of the build.
"""

import os
import sysconfig
from pathlib import Path

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403 (the hooks that are not changed here)

_HEADER = "torch/include/torch/csrc/stable/library.h"


def _installed_headers():
    """torch's include folder in the interpreter's own site-packages, which pip's isolation hides from imports."""
    if os.environ.get("EVERGEMM_TORCH_INCLUDE"):
        return os.environ["EVERGEMM_TORCH_INCLUDE"]
    for kind in ("purelib", "platlib"):
        folder = Path(sysconfig.get_path(kind))
        if (folder / _HEADER).is_file():
            return str(folder / "torch/include")
    return None


def _with_torch(requirements):
    return requirements if _installed_headers() else [*requirements, "torch>=2.10"]


def _use_headers():
    headers = _installed_headers()
    if headers:
        os.environ["EVERGEMM_TORCH_INCLUDE"] = headers  # pyproject.toml hands it to CMake


def get_requires_for_build_wheel(config_settings=None):
    return _with_torch(_backend.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings=None):
    return _with_torch(_backend.get_requires_for_build_editable(config_settings))


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    _use_headers()
    return _backend.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    _use_headers()
    return _backend.build_editable(wheel_directory, config_settings, metadata_directory)
