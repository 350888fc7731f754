# SPDX-License-Identifier: Apache-2.0
"""Builds the wheel with every GPU architecture, cold, prints how long that took and how large it is, and judges both: exits 1
where the build took longer than it may or tools/check_wheel.py (which knows the limit of the size) finds a problem.

    python tools/full_wheel.py [--minutes 45] [--out build/full_wheel]

Needs nvcc >= 13.0, no GPU. Must not go here: what a wheel may hold (check_wheel.py).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def build(out: Path) -> tuple[float, float]:
    """Wall and processor seconds."""
    shutil.rmtree(out, ignore_errors=True)
    environment = os.environ | {"EVERGEMM_ARCHS": "all"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        ".",
    ]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, used


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=45, help="the longest that the build may take")
    parser.add_argument("--out", type=Path, default=ROOT / "build/full_wheel")
    arguments = parser.parse_args()
    wall, used = build(arguments.out)
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[1]
    print(f"every GPU architecture: {wall:.0f} s, {used:.0f} s of processor time, {cores} cores, load {load:.1f}")
    wheels = [str(wheel) for wheel in arguments.out.glob("evergemm-*.whl")]
    judged = subprocess.run([sys.executable, str(ROOT / "tools/check_wheel.py"), *wheels], check=False).returncode
    if wall > arguments.minutes * 60:
        print(f"full_wheel: expected at most {arguments.minutes:g} minutes; got {wall / 60:.1f}")
        return 1
    return judged


if __name__ == "__main__":
    sys.exit(main())
