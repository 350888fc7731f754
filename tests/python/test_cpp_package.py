# SPDX-License-Identifier: Apache-2.0
"""The library without torch: what its objects share, and find_package(evergemm): it is installed, and examples/cpp is
configured, built and run against that."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# cmake and ninja of the environment that runs the tests come first: the system's may be too old
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def command(*words, **options):
    environment = {**os.environ, "PATH": PATH, **options.pop("env", {})}
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=environment, **options)
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A build of the library. The tests' own is used where there is one; without it the library is built here."""
    folder = ROOT / "build/host"
    if not (folder / "CMakeCache.txt").exists():
        folder = tmp_path_factory.mktemp("build")
    command("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DEVERGEMM_ARCHS=none", "-DEVERGEMM_BUILD_TORCH=OFF")
    command("cmake", "--build", folder, "--target", "evergemm")
    return folder


@pytest.fixture(scope="module")
def prefix(build, tmp_path_factory):
    """An installed evergemm."""
    folder = tmp_path_factory.mktemp("prefix")
    command("cmake", "--install", build, "--prefix", folder, "--component", "cpp")
    return folder


def test_example_builds_and_runs_against_the_installed_package(prefix, tmp_path):
    command("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
            "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")  # fmt: skip
    command("cmake", "--build", tmp_path)
    printed = command(tmp_path / "scaled_mm", env={"LD_LIBRARY_PATH": ""})
    assert "row: cpu_int8_" in printed
    assert "240 elements, all equal to the plain loops" in printed
    assert "a mistake reads: scaled_mm: expected b column-major" in printed
    needed = command("readelf", "-d", tmp_path / "scaled_mm")
    assert "torch" not in needed and "cuda" not in needed


def test_installed_tree_names_no_folder_of_the_build(prefix):
    files = [path for path in prefix.rglob("*") if path.is_file()]
    assert any(path.name == "evergemmConfig.cmake" for path in files)
    for path in files:
        assert str(ROOT).encode() not in path.read_bytes(), path


def test_a_newer_version_is_not_satisfied(prefix, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.26)\nproject(x LANGUAGES CXX)\nfind_package(evergemm 9.0 REQUIRED)\n"
    )
    result = subprocess.run(
        ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": PATH},
    )
    assert result.returncode != 0 and "version: 0." in result.stderr


def test_files_with_instruction_sets_share_nothing(build):
    """A weak symbol (an inline function, a template of the library) in a file that is compiled for AVX could be the
    copy that the linker keeps for portable code: the program would end on an older processor."""
    objects = sorted(path for path in (build / "src/cpu").rglob("*.o") if "_avx" in path.name)
    assert len(objects) >= 4, objects
    for path in objects:
        symbols = [line.split() for line in command("nm", "--defined-only", path).splitlines()]
        shared = [words[-1] for words in symbols if words[-2] in "WwVvu"]
        assert shared == [], f"{path.name} shares {shared}: keep it in the unnamed namespace"
        assert any(words[-2] in "TDR" for words in symbols), path
