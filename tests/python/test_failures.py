# SPDX-License-Identifier: Apache-2.0
"""Every call that the library makes of torch's C interface fails once: each operator then raises, keeps nothing and is
right again on the next call; registration takes everything back and says why. In processes of their own, with
failing_torch.c between the library and torch."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import evergemm
import pytest
from evergemm import _library

HERE = pathlib.Path(__file__).parent
PACKAGE_FOLDER = pathlib.Path(evergemm.__file__).parents[1]


@pytest.fixture(scope="module")
def failing_torch(tmp_path_factory) -> pathlib.Path:
    library = tmp_path_factory.mktemp("preload") / "failing_torch.so"
    source = HERE / "failing_torch.c"
    subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def child(failing_torch: pathlib.Path, code: str, *arguments: object) -> str:
    paths = os.pathsep.join([str(PACKAGE_FOLDER), str(HERE)])
    finished = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "LD_PRELOAD": str(failing_torch)},
        timeout=600,
    )
    assert finished.returncode == 0, f"exit {finished.returncode}\n{finished.stdout}\n{finished.stderr[-3000:]}"
    return finished.stdout


CALLS = """
import ctypes, torch
from guarded_tensor import same_bits
from operator_calls import CALLS
torch_fails = ctypes.CDLL(None)
torch.manual_seed(0)

def results(call, arguments):
    returned = call.run(arguments)
    returned = [] if returned is None else [returned] if isinstance(returned, torch.Tensor) else list(returned)
    return [t.clone() for t in returned + [arguments[name] for name in call.written]]

kinds = set()
for call in CALLS:
    made = call.make()
    kept = {name: value.clone() for name, value in made.items() if isinstance(value, torch.Tensor)}
    def again():
        for name in call.written:
            made[name].copy_(kept[name])
        return results(call, made)
    torch_fails.failing_torch_arm(-1)
    expected = again()
    calls = torch_fails.failing_torch_seen()
    assert calls > 5, call.name
    for n in range(calls):
        for name in call.written:
            made[name].copy_(kept[name])
        torch_fails.failing_torch_arm(n)
        try:
            call.run(made)
        except RuntimeError as error:
            text = str(error)
        else:
            raise SystemExit(f"{call.name}: call {n} of {calls} failed, and nobody said so")
        finally:
            torch_fails.failing_torch_arm(-1)
        assert text.startswith(call.name + ": torch failed while "), text
        kinds.add(text.partition("torch failed while ")[2].partition(":")[0])
        assert all(same_bits(x, y) for x, y in zip(again(), expected, strict=True)), (call.name, n)
print(*sorted(kinds), sep="\\n")
"""


def test_every_call_of_torch_may_fail(failing_torch):
    kinds = child(failing_torch, CALLS).splitlines()
    assert kinds == [
        "allocating a result",
        "allocating memory",
        "asking for its number of threads",
        "reading a tensor argument (it must be strided and in memory)",
        "running a parallel loop",
    ]


REGISTRATION = """
import ctypes, importlib.util, pathlib, shutil, sys, torch
library, c_api, folder = map(pathlib.Path, sys.argv[1:4])
spec = importlib.util.spec_from_file_location("c_api", c_api)
module = importlib.util.module_from_spec(spec)
sys.modules["c_api"] = module
spec.loader.exec_module(module)
torch_fails = ctypes.CDLL(None)
schemas = None
n = 0
while True:
    copy = folder / f"{n}.so"  # each copy registers itself when it is loaded
    shutil.copy(library, copy)
    torch_fails.failing_torch_arm(n)
    torch.ops.load_library(str(copy))
    torch_fails.failing_torch_arm(-1)
    loaded = module.Library(copy)
    copy.unlink()
    schemas = loaded.schemas()
    if loaded.status() == "":
        break
    assert loaded.status().startswith("torch refused to "), loaded.status()
    for schema, _ in schemas:
        assert not torch._C._dispatch_has_kernel("evergemm::" + schema.partition("(")[0]), (n, schema)
    n += 1
tensors = sum(takes for _, takes in schemas)
# the namespace, three keys, each schema once, each tensor operator for CPU and CUDA, each query once
assert n == 1 + 3 + len(schemas) + 2 * tensors + (len(schemas) - tensors), n
a = torch.ones(2, 3, dtype=torch.int8)
one = torch.ones(1)
assert torch.ops.evergemm.scaled_mm(a, a.t(), one, one, None, torch.float32).eq(3).all()
"""


def test_every_step_of_the_registration_may_fail(failing_torch, tmp_path):
    c_api = pathlib.Path(evergemm.__file__).parent / "_c_api.py"
    child(failing_torch, REGISTRATION, _library.find(), c_api, tmp_path)


DROPINS = """
import ctypes, torch, evergemm
from evergemm.compat import vllm
torch_fails = ctypes.CDLL(None)
n = 0
while True:
    torch_fails.failing_torch_arm(n)
    try:
        evergemm._library.library.register_dropins(vllm.OPERATORS)
    except RuntimeError as error:
        assert str(error).startswith("torch refused to "), error
    else:
        break
    finally:
        torch_fails.failing_torch_arm(-1)
    for name in vllm.OPERATORS:
        assert not torch._C._dispatch_has_kernel("_C::" + name), (n, name)
    n += 1
assert n > 2 * len(vllm.OPERATORS)
assert torch.ops._C.cutlass_scaled_mm_supports_fp8(0) is False
"""


def test_every_step_of_an_installation_may_fail(failing_torch):
    child(failing_torch, DROPINS)
