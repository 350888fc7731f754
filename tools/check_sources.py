# SPDX-License-Identifier: Apache-2.0
"""What the sources may not contain: a layer's include of what it may not see, asserts, prints and exits in library
code, paths and hosts of some machine, files without their licence line. Prints one line a finding and exits 1; standard
library only. tests/python/test_check_sources.py breaks every rule once.

    python tools/check_sources.py [FOLDER]
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

CPP = (".h", ".cpp", ".cuh", ".cu")
STANDARD = r"<[a-z_0-9]+>|<std(?:int|def)\.h>"  # <vector>, <cstdint>; the C interface uses <stdint.h>
API = r'"evergemm/[a-z_0-9]+\.h"'
TABLES = (
    r'"plan/(?:cpu|cpu_moe|cpu_quantize|grouped|(?:portable|sm[0-9]+[a-z]?)(?:_grouped)?|rules|table|tile_[a-z]+)\.h"'
)
# Per layer: the includes that it may have. House rule: the fence is the missing include path; this says the same in
# text, for headers that are on every path (<torch/...>, <cuda.h>, the system's).
LAYERS = {
    "include/evergemm": [STANDARD, API],
    "src/plan": [STANDARD, API, r"<cpuid\.h>", r'"plan/[a-z_0-9]+\.h"'],
    "src/reference": [STANDARD, API, r'"reference/[a-z_0-9]+\.h"'],
    "src/cpu": [STANDARD, API, TABLES, r'"cpu/[a-z_0-9]+\.h"', r"<immintrin\.h>"],
    "src/cuda": [
        STANDARD,
        API,
        TABLES,
        r'"cuda/[a-z_0-9/]+\.(?:h|cuh)"',
        r'"wgmma\.cuh"',  # written by the build
        r"<cuda[a-z_0-9]*\.h>",
        r"<(?:cutlass|cute)/.*>",
    ],
    "bindings": [
        STANDARD,
        API,
        r'"[a-z_0-9]+\.h"',
        r'"plan/operators\.h"',
        r'"cuda/registry\.h"',  # facts and launches of a build with CUDA
        r"<torch/(?:csrc/stable|headeronly|csrc/inductor/aoti_torch/c)/.*>",
        r"<dlfcn\.h>",
    ],
}
LIBRARY = ("include", "src", "bindings")  # what ends in the binary
SHIPPED = (*LIBRARY, "python")
COMMENTED = (*CPP, ".py", ".sh", ".cmake", ".toml", ".map", ".tsv", ".yaml", ".yml", ".in")

# Written in pieces, so that this file passes its own gate.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:" + "|".join(["work", "home", "root", "Users", "tmp/w"]) + r")/\w")
HOSTS = [
    "py" + "pi.org",
    "python" + "hosted.org",
    "download.py" + "torch.org",
    "deb.de" + "bian.org",
    "archive.ub" + "untu.com",
]
HOST = re.compile("|".join(map(re.escape, HOSTS)))
UNFINISHED = re.compile(r"\b(?:" + "|".join(["TO" + "DO", "FIX" + "ME", "XX" + "X"]) + r")\b")

LIBRARY_RULES = [
    (re.compile(r"(?<!static_)\bassert\s*\("), "assert: return a Status (house: no assert in shipped code)"),
    (
        re.compile(r"(?<![\w:])(?:std::)?(?:printf|fprintf|puts|putchar)\s*\(|std::c(?:out|err)\b"),
        "library code never prints",
    ),
    (
        re.compile(r"(?<![\w:.])(?:std::)?(?:abort|exit|_exit|quick_exit|terminate|__trap|__builtin_trap)\s*\("),
        "library code never exits or traps",
    ),
]


def sources(root: Path) -> Iterator[Path]:
    """Every file that git tracks or would track, so that build outputs and environments are left out."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=root,
        check=True,
        capture_output=True,
    ).stdout.decode()
    for name in sorted(set(listing.split("\0"))):
        if name and (root / name).is_file():
            yield root / name


def without_comments(text: str) -> str:
    """C++ without comments, line numbers kept. String literals stay: a message may not name a machine either."""
    pattern = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
    return pattern.sub(lambda m: m[0] if m[0].startswith('"') else "\n" * m[0].count("\n"), text)


def without_strings(text: str) -> str:
    return re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)


def findings_of(name: str, text: str) -> Iterator[tuple[int, str]]:
    """(line, what is wrong) for one file; `name` is its path from the root."""
    suffix = Path(name).suffix
    lines = text.splitlines()
    top = name.split("/")[0]

    if suffix in COMMENTED or Path(name).name in ("CMakeLists.txt", "Makefile"):
        opening = lines[1] if lines and lines[0].startswith("#!") and len(lines) > 1 else (lines[0] if lines else "")
        if "SPDX-License-Identifier: Apache-2.0" not in opening:
            yield 1, "opens without 'SPDX-License-Identifier: Apache-2.0'"
    if re.search(r"(?:^|[_/])(?:utils?|common|helpers?|impl2)(?:[_./]|$)", name):
        yield 1, "a file is named after what it does (no utils, common, helper, impl2)"

    for number, line in enumerate(lines, 1):
        if MACHINE_PATH.search(line):
            yield number, "path of some machine"
        if HOST.search(line):
            yield number, "host of a package registry"
        if UNFINISHED.search(line):
            yield number, "unfinished work belongs in CONTRIBUTING's list of known issues"

    if suffix in CPP:
        code = without_comments(text)
        layer = next((folder for folder in LAYERS if name.startswith(folder + "/")), None)
        for number, line in enumerate(code.splitlines(), 1):
            include = re.match(r"\s*#\s*include\s*(\S+)", line)
            if include and ".." in include[1]:
                yield number, f"include {include[1]} climbs out of its folder"
            elif include and layer and not any(re.fullmatch(allowed, include[1]) for allowed in LAYERS[layer]):
                yield number, f"{layer} may not include {include[1]}"
        builds = Path(name).name.startswith("print_")  # a program that the build runs; not in the library
        if top in LIBRARY and not builds:
            for number, line in enumerate(without_strings(code).splitlines(), 1):
                for pattern, reason in LIBRARY_RULES:
                    if pattern.search(line):
                        yield number, reason
                if top != "bindings" and re.search(r"\bthrow\b", line):
                    yield number, "no exception below bindings/: return a Status"
                if top == "bindings" and re.search(r"\bthrow\s+(?!std::runtime_error\b)\w", line):
                    yield number, "only std::runtime_error leaves an operator"
                if top == "bindings" and "<<<" in line:
                    yield number, "bindings launch no kernel"
    if suffix == ".py" and top == "python":
        for number, line in enumerate(lines, 1):
            if re.match(r"\s*assert\b", line):
                yield number, "assert in shipped code: raise an error that says expected, got, fix"


def check(root: Path) -> tuple[list[str], int]:
    findings = []
    count = 0
    for path in sources(root):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # a picture
        count += 1
        name = path.relative_to(root).as_posix()
        findings += [f"{name}:{line}: {reason}" for line, reason in findings_of(name, text)]
    return findings, count


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    findings, count = check(root)
    for finding in findings:
        print(finding)
    print(f"check_sources: {count} files, {len(findings)} findings")
    return 1 if findings or count == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
