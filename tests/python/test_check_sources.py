# SPDX-License-Identifier: Apache-2.0
"""tools/check_sources.py: this tree passes, and each of its rules can fail."""

import importlib.util
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
specification = importlib.util.spec_from_file_location("check_sources", ROOT / "tools/check_sources.py")
check_sources = importlib.util.module_from_spec(specification)
specification.loader.exec_module(check_sources)

HEAD = "// SPDX-License-Identifier: Apache-2.0\n"
PYTHON_HEAD = "# SPDX-License-Identifier: Apache-2.0\n"

BROKEN = {
    "no licence line": ("src/plan/a.cpp", "int a;\n", "opens without"),
    "no licence line, cmake": ("src/plan/CMakeLists.txt", "project(x)\n", "opens without"),
    "file name": ("src/plan/string_utils.cpp", HEAD, "named after what it does"),
    "machine path": ("docs/a.md", "see /ho" + "me/me/file\n", "path of some machine"),
    "registry host": ("docs/a.md", "from https://py" + "pi.org/simple\n", "host of a package registry"),
    "unfinished": ("src/plan/a.cpp", HEAD + "// TO" + "DO later\n", "unfinished work"),
    "plan includes a kernel": (
        "src/plan/a.cpp",
        HEAD + '#include "cpu/registry.h"\n',
        'src/plan may not include "cpu/registry.h"',
    ),
    "plan includes CUDA": (
        "src/plan/a.cpp",
        HEAD + "#include <cuda_runtime.h>\n",
        "src/plan may not include <cuda_runtime.h>",
    ),
    "reference includes vectors": (
        "src/reference/a.cpp",
        HEAD + "#include <immintrin.h>\n",
        "src/reference may not include",
    ),
    "cpu includes the planner": ("src/cpu/a.cpp", HEAD + '#include "plan/operators.h"\n', "src/cpu may not include"),
    "cuda includes torch": (
        "src/cuda/a.cu",
        HEAD + "#include <torch/csrc/stable/tensor.h>\n",
        "src/cuda may not include",
    ),
    "api includes torch": (
        "include/evergemm/a.h",
        HEAD + "#include <torch/torch.h>\n",
        "include/evergemm may not include",
    ),
    "bindings include unstable torch": (
        "bindings/a.cpp",
        HEAD + "#include <torch/extension.h>\n",
        "bindings may not include",
    ),
    "bindings include cutlass": ("bindings/a.cpp", HEAD + "#include <cutlass/cutlass.h>\n", "bindings may not include"),
    "climbing include": ("src/cpu/a.cpp", HEAD + '#include "../plan/operators.h"\n', "climbs out"),
    "assert": ("src/cpu/a.cpp", HEAD + "void f(int x) { assert(x); }\n", "assert"),
    "print": ("src/cuda/a.cu", HEAD + 'void f() { printf("x"); }\n', "never prints"),
    "stream print": ("bindings/a.cpp", HEAD + "void f() { std::cerr << 1; }\n", "never prints"),
    "trap": ("src/cuda/a.cuh", HEAD + "void f() { __trap(); }\n", "never exits or traps"),
    "terminate": ("bindings/a.cpp", HEAD + "void f() { std::terminate(); }\n", "never exits or traps"),
    "exception below bindings": (
        "src/plan/a.cpp",
        HEAD + 'void f() { throw std::runtime_error("x"); }\n',
        "no exception below",
    ),
    "foreign exception": (
        "bindings/a.cpp",
        HEAD + 'void f() { throw std::invalid_argument("x"); }\n',
        "only std::runtime_error",
    ),
    "launch in bindings": ("bindings/a.cpp", HEAD + "void f() { kernel<<<1, 1>>>(); }\n", "launch no kernel"),
    "python assert": ("python/evergemm/a.py", PYTHON_HEAD + "assert True\n", "assert in shipped code"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_each_rule_can_fail(case):
    name, text, expected = BROKEN[case]
    found = [reason for _, reason in check_sources.findings_of(name, text)]
    assert len(found) == 1 and expected in found[0], found


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "src/cpu/a.cpp",
            HEAD + '#include <immintrin.h>\n#include "plan/cpu.h"\nstatic_assert(sizeof(int) == 4);  // assert(x)\n',
        ),
        (
            "bindings/a.cpp",
            HEAD + '#include <torch/headeronly/macros/Macros.h>\n#include "plan/operators.h"\nvoid f() { throw; }\n',
        ),
        ("src/plan/a.cpp", HEAD + 'const char* text = "call exit(1) or assert(x)"; int n = snprintf(b, 1, "x");\n'),
        ("tools/a.sh", "#!/bin/sh\n" + PYTHON_HEAD),
    ],
)
def test_what_is_allowed_passes(name, text):
    assert list(check_sources.findings_of(name, text)) == []


def test_this_tree_passes():
    findings, count = check_sources.check(ROOT)
    assert findings == []
    assert count > 50


def test_a_broken_file_is_found_in_a_tree(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / "src/cpu").mkdir(parents=True)
    (tmp_path / "src/cpu/a.cpp").write_text(HEAD + '#include "cuda/registry.h"\n')
    result = subprocess.run(["python3", ROOT / "tools/check_sources.py", tmp_path], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'src/cpu/a.cpp:2: src/cpu may not include "cuda/registry.h"' in result.stdout


def test_an_empty_tree_fails(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    assert subprocess.run(["python3", ROOT / "tools/check_sources.py", tmp_path], capture_output=True).returncode == 1
