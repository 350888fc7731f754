# SPDX-License-Identifier: Apache-2.0
"""Lists the C functions that torch offers to extensions, from torch's own wheels.

Writes cmake/torch_2_10_shims.txt (what libtorch_cpu.so of the oldest torch we run on exports; link stubs are made of
it) and tools/torch_symbols.tsv (symbol, library, first version; tools/check_wheel.py judges a wheel by it). Needed
again only when a new torch is to be listed:

    pip download --no-deps -d WHEELS torch==2.10.0 ...; python tools/list_shims.py WHEELS/*.whl
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOOR = (2, 10)
LIBRARIES = ("libtorch_cpu.so", "libtorch_cuda.so")
# The stable C functions; everything else that these libraries export is C++ and not stable.
SHIM = re.compile(r"^(?:aoti_torch|torch)_\w+$")


def exported_shims(wheel: Path, library: str) -> set[str]:
    """The stable C functions that `library` inside `wheel` defines."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        path = archive.extract(f"torch/lib/{library}", folder)
        text = subprocess.run(["nm", "-D", "--defined-only", path], check=True, capture_output=True, text=True).stdout
    names = {line.split()[-1].split("@")[0] for line in text.splitlines() if line}
    return {name for name in names if SHIM.match(name)}


def version_of(wheel: Path) -> tuple[int, int]:
    major, minor = wheel.name.split("-")[1].split(".")[:2]
    return int(major), int(minor)


def main() -> int:
    wheels = sorted((Path(argument) for argument in sys.argv[1:]), key=version_of)
    if FLOOR not in map(version_of, wheels):
        print(
            f"list_shims: expected a wheel of torch {FLOOR[0]}.{FLOOR[1]} among the arguments; got {wheels}",
            file=sys.stderr,
        )
        return 2
    first: dict[tuple[str, str], tuple[int, int]] = {}
    floor: set[str] = set()
    for wheel in wheels:
        version = version_of(wheel)
        for library in LIBRARIES:
            shims = exported_shims(wheel, library)
            print(f"torch {version[0]}.{version[1]} {library}: {len(shims)} functions")
            for name in shims:
                first.setdefault((name, library), version)
            if version == FLOOR and library == "libtorch_cpu.so":
                floor = shims

    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# The stable C functions that libtorch_cpu.so of torch 2.10, the oldest torch we run on, exports.",
        "# cmake/Dependencies.cmake makes link stubs of this list. Made by tools/list_shims.py.",
        *sorted(floor),
    ]
    (ROOT / "cmake/torch_2_10_shims.txt").write_text("\n".join(lines) + "\n")
    oldest = ".".join(map(str, version_of(wheels[0])))
    lines = [
        "# SPDX-License-Identifier: Apache-2.0",
        "# Stable C functions of torch, the library that exports each, and the first torch release that has it",
        f"# ({oldest}: that one or an earlier one). tools/check_wheel.py reads it. Made by tools/list_shims.py.",
        "symbol\tlibrary\tfirst_version",
        *(f"{name}\t{library}\t{version[0]}.{version[1]}" for (name, library), version in sorted(first.items())),
    ]
    (ROOT / "tools/torch_symbols.tsv").write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
