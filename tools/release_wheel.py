# SPDX-License-Identifier: Apache-2.0
"""Makes the wheel that is released: linked for glibc 2.28, tagged manylinux_2_28, judged by tools/check_wheel.py with
those limits. Run by `make release-wheel`; EVERGEMM_ARCHS chooses the GPU architectures (default: all).

    python tools/release_wheel.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = "manylinux_2_28_x86_64"


def run(*command: object, **options) -> None:
    print("+", *command, flush=True)
    subprocess.run(list(map(str, command)), check=True, **options)


def main() -> int:
    output = ROOT / "dist/release"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    environment = {**os.environ, "EVERGEMM_ARCHS": os.environ.get("EVERGEMM_ARCHS", "all")}
    with tempfile.TemporaryDirectory() as folder:
        settings = ["-C", "cmake.define.EVERGEMM_ZIG_LINK=ON", "-C", "build-dir=build/release"]
        pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder]
        run(*pip, *settings, ROOT, env=environment)
        (wheel,) = Path(folder).glob("evergemm-*.whl")
        run("auditwheel", "repair", "--plat", PLATFORM, "--exclude", "libtorch*.so", "-w", output, wheel)
    (wheel,) = output.glob("evergemm-*.whl")
    run(sys.executable, ROOT / "tools/check_wheel.py", wheel, "--glibc", "2.28", "--glibcxx", "3.4.24")
    return 0


if __name__ == "__main__":
    sys.exit(main())
