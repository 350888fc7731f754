# SPDX-License-Identifier: Apache-2.0
"""The fences of the layers: every public header compiles alone, and a layer's real include path finds what the layer
may see and nothing else. The flags are those of the build's own compile commands."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# cmake and ninja of the environment that runs the tests come first: the system's may be too old
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
COMPILER = os.environ.get("CXX", "g++")

# layer -> a header that it may include, and headers that its include path must not find
FENCES = {
    "plan": (
        "plan/operators.h",
        ["cpu/registry.h", "reference/elements.h", "cuda/registry.h", "schema.h", "torch/csrc/stable/tensor.h"],
    ),
    "reference": (
        "reference/elements.h",
        ["plan/operators.h", "plan/cpu.h", "cpu/registry.h", "schema.h", "torch/csrc/stable/tensor.h"],
    ),
    "cpu": (
        "plan/cpu.h",
        [
            "plan/operators.h",
            "plan/validate_rules.h",
            "reference/elements.h",
            "cuda/registry.h",
            "torch/csrc/stable/tensor.h",
        ],
    ),
    "torch": (
        "torch/csrc/stable/c/shim.h",
        ["cpu/registry.h", "reference/elements.h", "plan/cpu.h", "cuda/registry.h", "cutlass/cutlass.h"],
    ),
}
FOLDER = {"plan": "src/plan", "reference": "src/reference", "cpu": "src/cpu", "torch": "bindings"}


@pytest.fixture(scope="module")
def include_paths(tmp_path_factory):
    """Per layer the -I and -isystem flags of one of its files, from a configured build."""
    build = tmp_path_factory.mktemp("fences")
    configured = subprocess.run(
        ["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON", "-DEVERGEMM_ARCHS=none"]
        + [f"-DPython_EXECUTABLE={sys.executable}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH},
    )
    assert configured.returncode == 0, configured.stdout + configured.stderr
    commands = json.loads((build / "compile_commands.json").read_text())
    found = {}
    for layer, folder in FOLDER.items():
        command = next(entry["command"] for entry in commands if entry["file"].startswith(f"{ROOT}/{folder}/"))
        words = shlex.split(command)
        found[layer] = [flag for i, word in enumerate(words) for flag in flags_at(words, i, word)]
    return found


def flags_at(words, i, word):
    if word.startswith("-I"):
        return [word]
    return [word, words[i + 1]] if word == "-isystem" else []


def compiles(include_flags, text, folder):
    """Whether `text` compiles with these include paths, as a file outside every source folder."""
    probe = folder / "probe.cpp"
    probe.write_text(text)
    command = [
        COMPILER,
        "-std=c++20",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-ffp-contract=off",
        *include_flags,
        probe,
    ]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.returncode == 0, result.stderr


PUBLIC_HEADERS = sorted((ROOT / "include/evergemm").glob("*.h"))


def test_there_are_public_headers():
    assert len(PUBLIC_HEADERS) >= 8


@pytest.mark.parametrize("header", PUBLIC_HEADERS, ids=lambda path: path.name)
def test_public_header_compiles_alone(header, tmp_path):
    ok, errors = compiles([f"-I{ROOT}/include"], f'#include "evergemm/{header.name}"\n', tmp_path)
    assert ok, errors


def test_c_interface_is_plain_c(tmp_path):
    probe = tmp_path / "probe.c"
    probe.write_text('#include "evergemm/c_api.h"\nint main(void) { return 0; }\n')
    compiler = os.environ.get("CC", "gcc")
    flags = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-I{ROOT}/include"]
    result = subprocess.run([compiler, *flags, probe], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("layer", FENCES)
def test_layer_finds_what_it_may_see(layer, include_paths, tmp_path):
    allowed, _ = FENCES[layer]
    ok, errors = compiles(include_paths[layer], f'#include "evergemm/plan.h"\n#include "{allowed}"\n', tmp_path)
    assert ok, errors


@pytest.mark.parametrize(
    ("layer", "header"), [(layer, header) for layer, (_, headers) in FENCES.items() for header in headers]
)
def test_layer_does_not_find_what_it_may_not(layer, header, include_paths, tmp_path):
    exists = any((folder / header).exists() for folder in (ROOT / "src", ROOT / "bindings"))
    ok, errors = compiles(include_paths[layer], f'#include "{header}"\n', tmp_path)
    assert not ok, f"{layer} can include {header}"
    assert f"fatal error: {header}: No such file" in errors
    assert exists or header.split("/")[0] in ("torch", "cutlass", "cuda"), f"{header} is gone: name one that exists"
