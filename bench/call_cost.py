# SPDX-License-Identifier: Apache-2.0
"""What a call through the stable interface costs: quantize_static.out (three tensors) as it is shipped, against the same
operator registered the classic way in C++ (call_cost.cpp), over the same layers.

The problem is empty (no rows), so that what is timed is the call. Both are measured in turns, in short slices of the
thread's own CPU time, so that other processes on the machine count little; the best slice of each round, and over the
rounds median and spread.

    python bench/call_cost.py [--build FOLDER] [--rounds 15]

The first run builds the C++ layers and the classic operator into FOLDER (about two minutes on two cores).
"""

from __future__ import annotations

import argparse
import pathlib
import statistics
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable

import evergemm  # noqa: F401  registers torch.ops.evergemm
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
SLICE = 1000  # calls
SLICES = 40  # a round
TARGET_US = 0.15


def build(folder: pathlib.Path) -> pathlib.Path:
    library = folder / "call_cost.so"
    tools = pathlib.Path(sysconfig.get_path("scripts"))
    cmake = tools / "cmake" if (tools / "cmake").exists() else "cmake"
    options = ["-DEVERGEMM_BUILD_TORCH=OFF", "-DEVERGEMM_ARCHS=none"]
    subprocess.run([cmake, "-S", ROOT, "-B", folder, *options], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([cmake, "--build", folder, "--target", "evergemm", "-j2"], check=True, stdout=subprocess.DEVNULL)
    headers = pathlib.Path(torch.__file__).parent / "include"
    torch_libraries = pathlib.Path(torch.__file__).parent / "lib"
    command = ["g++", "-std=c++20", "-O3", "-shared", "-fPIC"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [f"-I{ROOT / 'include'}", f"-I{ROOT / 'src'}", "-isystem", headers]
    command += ["-isystem", headers / "torch" / "csrc" / "api" / "include"]
    command += [ROOT / "bench" / "call_cost.cpp", folder / "libevergemm.a", "-o", library]
    command += [f"-L{torch_libraries}", "-ltorch_cpu", "-lc10"]
    subprocess.run(list(map(str, command)), check=True)
    return library


def best_slice(call: Callable[[], object]) -> float:
    """Microseconds a call."""
    best = float("inf")
    for _ in range(SLICES):
        begin = time.thread_time_ns()
        for _ in range(SLICE):
            call()
        best = min(best, time.thread_time_ns() - begin)
    return best / SLICE / 1000


def caller(namespace: str) -> Callable[[], object]:
    operator = getattr(torch.ops, namespace).quantize_static.out
    x = torch.empty(0, 64, dtype=torch.bfloat16)
    scale, out = torch.ones(1), torch.empty(0, 64, dtype=torch.int8)
    return lambda: operator(x, scale, out_q=out)


def measure(rounds: int) -> tuple[list[float], list[float]]:
    stable, classic = caller("evergemm"), caller("evergemm_classic")
    figures: tuple[list[float], list[float]] = ([], [])
    best_slice(stable), best_slice(classic)
    for _ in range(rounds):
        for call, kept in zip((stable, classic), figures, strict=True):
            kept.append(best_slice(call))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build" / "call_cost", help="where to build")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.ops.load_library(str(build(arguments.build)))

    print(f"torch {torch.__version__}, evergemm {evergemm.__version__}: microseconds a call with three tensors")
    print(f"{'mode':<16}{'stable':>8}{'classic':>9}{'stable - classic (median, least, most)':>42}")
    above = 0.0
    for name, mode in (
        ("inference_mode", torch.inference_mode()),
        ("no_grad", torch.no_grad()),
        ("grad", torch.enable_grad()),
    ):
        with mode:
            stable, classic = measure(arguments.rounds)
        differences = [one - other for one, other in zip(stable, classic, strict=True)]
        median = statistics.median(differences)
        spread = f"{median:.3f}, {min(differences):.3f}, {max(differences):.3f}"
        print(f"{name:<16}{statistics.median(stable):>8.3f}{statistics.median(classic):>9.3f}{spread:>42}")
        if name != "grad":  # inference only: with grad mode on, each floating tensor is asked whether it requires grad
            above = max(above, median)
    print(f"target: at most {TARGET_US} above; {'met' if above <= TARGET_US else 'missed'}")
    return 0 if above <= TARGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
