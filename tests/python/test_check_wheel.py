# SPDX-License-Identifier: Apache-2.0
"""tools/check_wheel.py: a small library that keeps every rule passes, and each way to break one is named."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
specification = importlib.util.spec_from_file_location("check_wheel", ROOT / "tools/check_wheel.py")
check_wheel = importlib.util.module_from_spec(specification)
sys.modules["check_wheel"] = check_wheel
specification.loader.exec_module(check_wheel)

SOURCE = """
extern void torch_call_dispatcher(void);
extern void aoti_torch_get_current_cuda_stream(void) __attribute__((weak));
void evergemm_c_api_v1(void) {
  torch_call_dispatcher();
  if (aoti_torch_get_current_cuda_stream) aoti_torch_get_current_cuda_stream();
}
"""
FLAGS = ["-Wl,-z,relro", "-Wl,-z,now", "-Wl,-z,noexecstack"]


@pytest.fixture(scope="module")
def stubs(tmp_path_factory):
    """Stand-ins for torch's libraries, to link against."""
    folder = tmp_path_factory.mktemp("stubs")
    (folder / "s.c").write_text("void torch_call_dispatcher(void) {}\nvoid torch_from_blob(void) {}\n")
    for name in ("torch", "torch_cpu", "foreign"):
        compiler("-shared", "-fPIC", "-o", folder / f"lib{name}.so", f"-Wl,-soname,lib{name}.so", folder / "s.c")
    return folder


def compiler(*words):
    subprocess.run([os.environ.get("CC", "gcc"), *map(str, words)], check=True)


def build(stubs, folder, source=SOURCE, flags=(), libraries=("torch", "torch_cpu")):
    path = folder / "libevergemm_torch.so"
    (folder / "l.c").write_text(source)
    names = [f"-l{name}" for name in libraries]
    compiler("-shared", "-fPIC", "-o", path, folder / "l.c", *FLAGS, *flags, f"-L{stubs}", "-Wl,--no-as-needed", *names)
    return path


def with_hidden(code):
    """SOURCE and a function that is linked but not exported."""
    return SOURCE + code.replace("HIDDEN", '__attribute__((visibility("hidden")))')


NEWER = with_hidden("extern void torch_from_blob(void); HIDDEN void f_(void); void f_(void) { torch_from_blob(); }")
CPYTHON = with_hidden("extern void PyErr_Clear(void); HIDDEN void f_(void); void f_(void) { PyErr_Clear(); }")
PATH = with_hidden('HIDDEN const char* f_(void); const char* f_(void) { return "/ho' + 'me/somebody/file.cpp"; }')
ALLOCATES = with_hidden("#include <stdlib.h>\nHIDDEN void f_(void); void f_(void) { free(malloc(1)); }")
NO_EXPORT = SOURCE.replace("void evergemm_c_api_v1", '__attribute__((visibility("hidden"))) void f_')
UNSTABLE = SOURCE.replace("torch_call_dispatcher", "_ZN2at6Tensor5emptyEv")

BREAKS = {
    "foreign library": ({"libraries": ("torch", "torch_cpu", "foreign")}, "NEEDED holds libforeign.so"),
    "libtorch.so missing": ({"libraries": ("torch_cpu",)}, "NEEDED lacks libtorch.so"),
    "newer function": ({"source": NEWER}, "torch_from_blob is new in torch 2."),
    "strong CUDA function": ({"source": SOURCE.replace("__attribute__((weak))", "")}, "is not weak"),
    "C++ of torch": ({"source": UNSTABLE}, "_ZN2at6Tensor5emptyEv is not on the list"),
    "symbol of CPython": ({"source": CPYTHON}, "PyErr_Clear is not on the list"),
    "second export": ({"source": SOURCE + "void another(void) {}"}, "exports ['another', 'evergemm_c_api_v1']"),
    "no export": ({"source": NO_EXPORT}, "exports []"),
    "no RELRO": ({"flags": ["-Wl,-z,norelro"]}, "no RELRO"),
    "lazy binding": ({"flags": ["-Wl,-z,lazy"]}, "no BIND_NOW"),
    "executable stack": ({"flags": ["-Wl,-z,execstack"]}, "the stack is executable"),
    "RPATH": ({"flags": ["-Wl,-rpath,/somewhere", "-Wl,--disable-new-dtags"]}, "DT_RPATH is set"),
    "RUNPATH": ({"flags": ["-Wl,-rpath,/somewhere", "-Wl,--enable-new-dtags"]}, "DT_RUNPATH is set"),
    "machine path": ({"source": PATH}, "path of the machine"),
    "no torch": ({"source": "void evergemm_c_api_v1(void) {}"}, "takes no function from torch"),
}


def test_a_good_library_passes(stubs, tmp_path):
    report = check_wheel.judge_library(build(stubs, tmp_path), check_wheel.Limits())
    assert report.problems == []
    assert dict(report.figures)["exported"] == "evergemm_c_api_v1"


@pytest.mark.parametrize("case", BREAKS)
def test_each_rule_can_fail(case, stubs, tmp_path):
    changes, expected = BREAKS[case]
    report = check_wheel.judge_library(build(stubs, tmp_path, **changes), check_wheel.Limits())
    assert any(expected in problem for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("limit", "expected"),
    [({"glibc": (2, 2)}, "needs GLIBC_2."), ({"cpu_bytes": 1000}, "bytes; expected at most 1000")],
)
def test_limits_hold(limit, expected, stubs, tmp_path):
    path = build(stubs, tmp_path, source=ALLOCATES)
    report = check_wheel.judge_library(path, check_wheel.Limits(**limit))
    assert any(expected in problem for problem in report.problems), report.problems


def wheel_of(folder, library, tag="py3-none-linux_x86_64", extra=()):
    wheel = folder / f"evergemm-0.1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(library, "evergemm/libevergemm_torch.so")
        archive.writestr("evergemm-0.1.0.dist-info/licenses/LICENSE", "Apache-2.0")
        for name, text in extra:
            archive.writestr(name, text)
    return wheel


def judge(wheel):
    return check_wheel.judge_wheel(wheel, check_wheel.Limits(), audit=False).problems


def test_wheel_rules(stubs, tmp_path):
    library = build(stubs, tmp_path)
    assert judge(wheel_of(tmp_path, library)) == []
    assert judge(wheel_of(tmp_path, library, "py3-none-manylinux_2_28_x86_64")) == []
    assert any("expected py3-none" in p for p in judge(wheel_of(tmp_path, library, "cp311-cp311-linux_x86_64")))
    second = [("evergemm/libother.so", b"x")]
    assert any("holds the libraries" in p for p in judge(wheel_of(tmp_path, library, extra=second)))
    path = [("evergemm/a.py", "x = '/ho" + "me/somebody/x'")]
    assert any("evergemm/a.py holds a path" in p for p in judge(wheel_of(tmp_path, library, extra=path)))


def test_second_opinion_can_disagree(stubs, tmp_path):
    assert check_wheel.second_opinion(build(stubs, tmp_path)) == []
    unstable = build(stubs, tmp_path, source=UNSTABLE)
    assert check_wheel.second_opinion(unstable) != []
