# SPDX-License-Identifier: Apache-2.0
"""The gpu lane: `make gpu-test`. Without a Hopper GPU it fails rather than skips: a lane that ran nothing proves nothing."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch

ROOT = pathlib.Path(__file__).parents[2]


def pytest_sessionstart(session):
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.exit(
            "tests/gpu: expected a GPU of compute capability 9.0; got none; fix: run this lane on an H100 or H200", 2
        )


def pytest_report_header(config):
    return f"{torch.cuda.get_device_name()}, torch {torch.__version__}" if torch.cuda.is_available() else "no GPU"


@pytest.fixture(scope="session")
def programs() -> pathlib.Path:
    """The folder with the built C++ programs."""
    return pathlib.Path(os.environ.get("EVERGEMM_GPU_BUILD", ROOT / "build" / "gpu")) / "tests" / "gpu"


@pytest.fixture(autouse=True)
def seeded(request):
    seed = sum(map(ord, request.node.name))
    print(f"seed {seed}")
    torch.manual_seed(seed)
