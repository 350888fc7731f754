# SPDX-License-Identifier: Apache-2.0
"""The library meets a torch that refuses: a bad schema, a second copy, a namespace that is taken, an old torch.

Each case is a process of its own, which must live on, tell the reason, leave nothing behind, and (where it makes sense)
be able to load the good library afterwards. Bad libraries are the built one with some bytes of its strings replaced, so
that what is tested is the shipped code.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

import evergemm
import pytest
import torch
from evergemm import _library, _schemas

LIBRARY = _library.find()
PACKAGE = pathlib.Path(evergemm.__file__).parent

# What every child process starts with. `load` is torch.ops.load_library and the C interface of the same file.
PRELUDE = """
import sys, torch
sys.path.insert(0, {package!r})
import importlib.util
spec = importlib.util.spec_from_file_location("c_api", {c_api!r})
c_api = importlib.util.module_from_spec(spec)
sys.modules["c_api"] = c_api
spec.loader.exec_module(c_api)
def load(path):
    torch.ops.load_library(path)
    return c_api.Library(path).status()
def works():
    a = torch.ones(2, 3, dtype=torch.int8)
    one = torch.ones(1)
    result = torch.ops.evergemm.scaled_mm(a, a.t(), one, one, None, torch.float32)
    assert result.eq(3).all() and result.shape == (2, 2)
    assert torch.ops.evergemm.cutlass_scaled_mm_supports_fp8(0) is False
def nothing_left():
    for name in ("scaled_mm", "scaled_mm.out", "permute_cols", "cutlass_group_gemm_supported"):
        assert not torch._C._dispatch_has_kernel("evergemm::" + name), name
        assert not hasattr(torch.ops.evergemm, name.partition(".")[0]), name
"""


def run(code: str, environment: dict | None = None) -> str:
    prelude = PRELUDE.format(package=str(PACKAGE.parent), c_api=str(PACKAGE / "_c_api.py"))
    finished = subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        env={**os.environ, **(environment or {})},
        timeout=300,
    )
    assert finished.returncode == 0, f"exit {finished.returncode}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout.strip()


def patched(folder: pathlib.Path, before: bytes, after: bytes) -> pathlib.Path:
    """A copy of the library in which `before` stands nowhere any more."""
    assert len(before) == len(after)
    content = LIBRARY.read_bytes()
    assert before in content, before
    path = folder / LIBRARY.name
    path.write_bytes(content.replace(before, after))
    return path


def test_the_frozen_list_is_the_library():
    frozen = [(schema, True) for schema in _schemas.TENSOR_OPERATORS] + [(schema, False) for schema in _schemas.QUERIES]
    assert _library.library.schemas() == frozen


@pytest.mark.parametrize("schema", _schemas.TENSOR_OPERATORS + _schemas.QUERIES, ids=lambda s: s.partition("(")[0])
def test_registered_as_listed(schema):
    wanted = torch._C.parse_schema(f"evergemm::{schema}")
    assert str(torch._C._get_schema(wanted.name, wanted.overload_name)) == str(wanted)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (b"scaled_mm(Tensor a", b"scaled_mm(Tensrr a", "torch refused to define scaled_mm(Tensrr a"),
        (b"quantize_static(Tensor x", b"quantize_static.Tensor x", "torch refused to define quantize_static.Tensor x"),
        (b"CompositeExplicitAutograd\0", b"CompositeExplicitAutogrxd\0", "torch refused to open the dispatch key"),
    ],
    ids=["type", "syntax", "key"],
)
def test_a_refused_definition_is_rolled_back(tmp_path, before, after, reason):
    bad = patched(tmp_path, before, after)
    status = run(
        f"""
status = load({str(bad)!r})
nothing_left()
assert load({str(LIBRARY)!r}) == ""
works()
print(status)
"""
    )
    assert status.startswith(reason), status


def test_a_second_copy_is_refused_and_the_first_goes_on(tmp_path):
    copy = tmp_path / LIBRARY.name
    shutil.copy(LIBRARY, copy)
    status = run(
        f"""
assert load({str(LIBRARY)!r}) == ""
works()
status = load({str(copy)!r})
works()
assert load({str(LIBRARY)!r}) == ""
print(status)
"""
    )
    assert status.startswith("torch refused to open the namespace evergemm"), status


IMPORT = """
try:
    import evergemm
except ImportError as error:
    print(error)
else:
    raise SystemExit("imported")
"""


def test_import_beside_another_copy(tmp_path):
    copy = tmp_path / LIBRARY.name
    shutil.copy(LIBRARY, copy)
    text = run(f"assert load({str(copy)!r}) == ''\n{IMPORT}\nworks()")
    assert text.startswith(
        "evergemm: expected its operators to be registered with torch; got torch refused to open the namespace evergemm"
    )
    assert text.endswith("fix: load one copy of evergemm a process, and define no namespace evergemm of your own.")


def test_import_with_the_namespace_taken():
    text = run(f"theirs = torch.library.Library('evergemm', 'DEF')\n{IMPORT}\nnothing_left()")
    assert "torch refused to open the namespace evergemm" in text


def test_import_with_an_operator_taken():
    code = f"""
theirs = torch.library.Library("evergemm", "FRAGMENT")
theirs.define("permute_cols(Tensor x) -> Tensor")
{IMPORT}
assert not torch._C._dispatch_has_kernel("evergemm::scaled_mm")
assert len(torch.ops.evergemm.permute_cols.default._schema.arguments) == 1
"""
    assert "torch refused to define permute_cols(Tensor A, Tensor perm) -> Tensor" in run(code)


def package_with(folder: pathlib.Path, library: pathlib.Path | None) -> str:
    """Code that imports a copy of the package whose library is `library`."""
    copy = folder / "site" / "evergemm"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    if library is not None:
        shutil.copy(library, copy / LIBRARY.name)
    return f"sys.path.insert(0, {str(copy.parent)!r})\n{IMPORT}"


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            b"bool fast_accumulation=True, bool deterministic=False) -> Tensor",
            b"bool fast_accumulatiom=True, bool deterministic=False) -> Tensor",
            "got an operator evergemm::scaled_mm(Tensor a, Tensor b",
        ),
        (b"permute_cols(Tensor A", b"permute_rows(Tensor A", "permute_rows(Tensor A, Tensor perm) -> Tensor has a"),
        (b"\0CUDA\0", b"\0Meta\0", "got evergemm::scaled_mm without a kernel for the dispatch key CUDA"),
    ],
    ids=["schema", "operator", "key"],
)
def test_a_library_of_other_sources_does_not_import(tmp_path, before, after, reason):
    text = run(package_with(tmp_path, patched(tmp_path, before, after)))
    assert text.startswith("evergemm: expected ") and "; fix: " in text
    assert reason in text


def test_import_without_the_library(tmp_path):
    text = run(package_with(tmp_path, None))
    assert text.startswith("evergemm: expected libevergemm_torch.so in ")
    assert text.endswith("got no such file; fix: install the package with pip (it builds the library).")


def test_import_of_a_broken_library(tmp_path):
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    text = run(package_with(tmp_path, broken))
    assert "to load into torch" in text and text.endswith("fix: reinstall the package.")


def test_import_into_an_old_torch():
    text = run(f"torch.__version__ = '2.9.1+cpu'\n{IMPORT}")
    assert text == ("evergemm: expected torch >= 2.10; got torch 2.9.1+cpu; fix: pip install --upgrade 'torch>=2.10'.")


def test_loading_into_an_old_torch(tmp_path):
    """C++ programs load the library without our Python: it looks at torch's version itself."""
    source, preloaded = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("unsigned long long aoti_torch_abi_version(void) { return 0x0209000000000000ull; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", preloaded, source], check=True)
    status = run(f"print(load({str(LIBRARY)!r}))\nnothing_left()", {"LD_PRELOAD": str(preloaded)})
    assert status == "expected torch 2.10 or newer; got torch 2.9"


def test_import_is_quiet_and_opens_no_gpu():
    code = "import evergemm\nassert not torch.cuda.is_initialized()\nworks()\nassert 'matplotlib' not in sys.modules"
    assert run(code) == ""
