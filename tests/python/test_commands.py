# SPDX-License-Identifier: Apache-2.0
"""The commands around the tests: a machine that lacks something gets one line to paste, a build that cannot be made
says so in one line, and a suite that ran nothing fails."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def run(*words, **environment):
    words = [str(word) for word in words]
    return subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PATH": PATH, **environment}
    )


# ---- what the machine must have ------------------------------------------------------------------------------------


def machine_with(folder, programs):
    """A PATH on which only these programs and a few basic ones are found."""
    for name in ("sh", "grep", "cut", "id", *programs):
        real = sys.executable if name == "python3" else shutil.which(name)
        program(folder, name, f'exec {real} "$@"')
    return str(folder)


def test_a_complete_machine_passes():
    assert run("sh", "tools/check_machine.sh", "--tests").returncode == 0


@pytest.mark.parametrize(
    ("programs", "lacks", "packages"),
    [
        ([], "python3 >= 3.10, g++ >= 12, make, git", "python3 python3-venv g++ make git"),
        (["python3", "make", "git"], "g++ >= 12", "g++"),
        (["python3", "g++", "git"], "make", "make"),
    ],
)
def test_what_is_missing_is_one_line_to_paste(programs, lacks, packages, tmp_path):
    result = run("sh", "tools/check_machine.sh", PATH=machine_with(tmp_path, programs), CXX="")
    assert result.returncode == 1
    said, line = result.stderr.splitlines()
    assert said == f"evergemm: this machine lacks: {lacks}. Paste this line, then try again:"
    sudo = "" if os.getuid() == 0 else "sudo "
    on_jammy = 'VERSION_ID="22.04"' in Path("/etc/os-release").read_text()
    packages = packages.replace("g++", "g++-12") if on_jammy else packages
    assert line == f"{sudo}apt-get update && {sudo}apt-get install -y {packages}"


def test_the_tests_need_python_headers(tmp_path):
    """torch.compile builds against Python.h, which Debian and Ubuntu pack apart."""
    machine_with(tmp_path, ["g++", "make", "git"])
    program(tmp_path, "python3", f'case "$*" in *Python.h*) exit 1 ;; esac; exec {sys.executable} "$@"')
    result = run("sh", "tools/check_machine.sh", "--tests", PATH=str(tmp_path), CXX="")
    assert result.returncode == 1
    assert "this machine lacks: Python's headers. Paste" in result.stderr
    assert result.stderr.endswith("apt-get install -y python3-dev\n")
    assert run("sh", "tools/check_machine.sh", PATH=str(tmp_path), CXX="").returncode == 0


def test_an_old_compiler_is_passed_over(tmp_path):
    for name, version in (("g++", "11"), ("g++-12", "12")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    result = run("sh", "tools/check_machine.sh", "--compiler", PATH=f"{tmp_path}:{os.environ['PATH']}", CXX="")
    assert result.stdout == "g++-12\n"


# ---- what the build must have ------------------------------------------------------------------------------------------


def configure(folder, *arguments, **environment):
    return run("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", *arguments, **environment)


def one_line(result):
    lines = [line.strip() for line in (result.stdout + result.stderr).splitlines() if "expected" in line]
    assert len(lines) == 1, result.stdout + result.stderr
    return lines[0]


def program(folder, name, text):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_unknown_architecture(tmp_path):
    result = configure(tmp_path / "b", "-DEVERGEMM_ARCHS=sm12x")
    assert result.returncode != 0
    assert one_line(result) == (
        "evergemm: EVERGEMM_ARCHS: expected native, none, all or a list of sm75, sm80, sm86, sm89, "
        "sm90a, sm100, sm103, sm110, sm120, sm121; got sm12x; fix: leave it out."
    )


def test_nvcc_too_old_is_an_error_where_architectures_were_ordered(tmp_path):
    nvcc = program(tmp_path / "bin", "nvcc", "echo 'Cuda compilation tools, release 11.8, V11.8.89'")
    result = configure(tmp_path / "b", "-DEVERGEMM_ARCHS=sm90a", CUDACXX=str(nvcc))
    assert result.returncode != 0
    line = one_line(result)
    assert line.startswith(f"evergemm: EVERGEMM_ARCHS=sm90a: expected nvcc >= 13.0; got 11.8 ({nvcc}); fix: install")
    assert line.endswith("or set EVERGEMM_ARCHS=none.")


def test_gpu_without_usable_nvcc_warns_once_and_builds_for_the_cpu(tmp_path):
    nvcc = program(tmp_path / "bin", "nvcc", "exit 1")
    program(tmp_path / "bin", "nvidia-smi", "echo 9.0")
    result = configure(
        tmp_path / "b", "-DEVERGEMM_BUILD_TORCH=OFF", CUDACXX=str(nvcc), PATH=f"{tmp_path / 'bin'}:{PATH}"
    )
    assert result.returncode == 0, result.stderr
    assert one_line(result).startswith("evergemm: building for the CPU only: expected nvcc >= 13.0; got")


def test_the_same_gpu_is_an_error_where_native_was_ordered(tmp_path):
    nvcc = program(tmp_path / "bin", "nvcc", "exit 1")
    program(tmp_path / "bin", "nvidia-smi", "echo 9.0")
    result = configure(tmp_path / "b", "-DEVERGEMM_ARCHS=native", CUDACXX=str(nvcc), PATH=f"{tmp_path / 'bin'}:{PATH}")
    assert result.returncode != 0
    assert one_line(result).startswith("evergemm: EVERGEMM_ARCHS=native: expected nvcc >= 13.0; got")


def test_missing_torch_headers(tmp_path):
    result = configure(tmp_path / "b", "-DEVERGEMM_ARCHS=none", f"-DEVERGEMM_TORCH_INCLUDE={tmp_path}")
    assert result.returncode != 0
    line = one_line(result)
    assert line.startswith(f"evergemm: expected torch's stable headers; got none in '{tmp_path}'; fix: pip install")


def test_old_torch_headers(tmp_path):
    for name, text in {
        "torch/csrc/stable/library.h": "",
        "torch/headeronly/version.h": "#define TORCH_VERSION_MAJOR 2\n#define TORCH_VERSION_MINOR 9\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    result = configure(tmp_path / "b", "-DEVERGEMM_ARCHS=none", f"-DEVERGEMM_TORCH_INCLUDE={tmp_path}")
    assert result.returncode != 0
    assert "expected headers of torch >= 2.10; got 2.9 in" in one_line(result)


def test_old_compiler(tmp_path):
    (tmp_path / "old.cmake").write_text(
        "set(CMAKE_CXX_COMPILER_VERSION 11.4)\nset(CMAKE_CXX_COMPILER_ID GNU)\n"
        f'include("{ROOT}/cmake/Dependencies.cmake")\nset(CMAKE_CXX_COMPILER /usr/bin/g++)\nevergemm_check_compiler()\n'
    )
    result = run("cmake", "-P", tmp_path / "old.cmake")
    assert result.returncode != 0
    assert one_line(result).startswith(
        "evergemm: expected g++ >= 12; got 11.4 (/usr/bin/g++); fix: apt-get install g++-12"
    )


# ---- counting -----------------------------------------------------------------------------------------------------------


def test_a_suite_that_ran_nothing_fails(tmp_path):
    (tmp_path / "test_nothing.py").write_text("")
    result = run(sys.executable, "tools/run_tests.py", "--only", "python", tmp_path)
    assert result.returncode == 1
    assert "no Python test passed" in result.stdout
    assert result.stdout.splitlines()[-1] == "0 passed, 1 failed, 0 skipped"


def test_failures_and_skips_are_counted(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): raise ValueError\n@pytest.mark.skip\ndef test_c(): pass\n"
    )
    result = run(sys.executable, "tools/run_tests.py", "--only", "python", tmp_path)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "1 passed, 1 failed, 1 skipped"
