# SPDX-License-Identifier: Apache-2.0
"""find_package(evergemm): the library is installed, and examples/cpp is configured, built and run against that, without
torch on any path."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def command(*words, **options):
    result = subprocess.run(list(map(str, words)), capture_output=True, text=True, **options)
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    """An installed evergemm. The tests' own build is used where there is one; without it the library is built here."""
    build = ROOT / "build/host"
    if not (build / "CMakeCache.txt").exists():
        build = tmp_path_factory.mktemp("build")
    command("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", "-DEVERGEMM_ARCHS=none", "-DEVERGEMM_BUILD_TORCH=OFF")
    command("cmake", "--build", build, "--target", "evergemm")
    prefix = tmp_path_factory.mktemp("prefix")
    command("cmake", "--install", build, "--prefix", prefix, "--component", "cpp")
    return prefix


def test_example_builds_and_runs_against_the_installed_package(prefix, tmp_path):
    command("cmake", "-S", ROOT / "examples/cpp", "-B", tmp_path, "-G", "Ninja", f"-DCMAKE_PREFIX_PATH={prefix}",
            "-DCMAKE_BUILD_TYPE=Release", "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror")  # fmt: skip
    command("cmake", "--build", tmp_path)
    printed = command(tmp_path / "scaled_mm", env={**os.environ, "LD_LIBRARY_PATH": ""})
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
        ["cmake", "-S", tmp_path, "-B", tmp_path / "b", f"-DCMAKE_PREFIX_PATH={prefix}"], capture_output=True, text=True
    )
    assert result.returncode != 0 and "version: 0." in result.stderr
