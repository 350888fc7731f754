# SPDX-License-Identifier: Apache-2.0
"""Judges a built wheel: what the library inside needs, takes from torch, exports, and how it is linked. Prints the
figures and one line a problem; exits 1 where there is one. tests/python/test_check_wheel.py breaks every rule once.

    python tools/check_wheel.py dist/evergemm-*.whl [--glibc 2.34] [--no-second-opinion]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection

ROOT = Path(__file__).resolve().parent.parent
FLOOR = (2, 10)
LIBRARY = "evergemm/libevergemm_torch.so"
EXPORTED = {"evergemm_c_api_v1"}
MUST_NEED = {"libtorch.so", "libtorch_cpu.so"}  # libtorch.so brings libtorch_cuda.so, where the weak functions live
MAY_NEED = MUST_NEED | {
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "librt.so.1",
    "libpthread.so.0",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "ld-linux-x86-64.so.2",
}
# Undefined names that every shared library made by gcc has; all are weak and may stay null.
TOOLCHAIN_WEAK = {"__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__cxa_finalize"}
MEBIBYTE = 1 << 20
# A path of the machine that built it. The last is what pip's isolated builds would leave.
MACHINE_PATH = re.compile(rb"(?<![\w.-])/(?:work|home|root|Users|tmp|build)/[\w.@+-]+[/\w.@+-]*")


@dataclass
class Limits:
    glibc: tuple[int, ...] = (2, 34)  # Debian 12's linker asks for it; release wheels are held to 2.28
    glibcxx: tuple[int, ...] = (3, 4, 30)  # g++ 12
    cxxabi: tuple[int, ...] = (1, 3, 13)
    cpu_bytes: int = 4 * MEBIBYTE
    cuda_bytes: int = 60_000_000


@dataclass
class Report:
    figures: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def expect(self, good: bool, problem: str) -> None:
        if not good:
            self.problems.append(problem)


def torch_symbols() -> dict[str, tuple[str, tuple[int, int]]]:
    """name -> (library that exports it, first torch release); what both libraries have counts as libtorch_cpu's."""
    table: dict[str, tuple[str, tuple[int, int]]] = {}
    for line in (ROOT / "tools/torch_symbols.tsv").read_text().splitlines():
        if line.startswith("#") or line.startswith("symbol\t"):
            continue
        name, library, version = line.split("\t")
        major, minor = version.split(".")
        if name not in table or library == "libtorch_cpu.so":
            table[name] = library, (int(major), int(minor))
    return table


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def judge_library(path: Path, limits: Limits) -> Report:
    report = Report()
    size = path.stat().st_size
    with path.open("rb") as stream:
        elf = ELFFile(stream)
        dynamic = next(section for section in elf.iter_sections() if isinstance(section, DynamicSection))
        tags = list(dynamic.iter_tags())
        has_cuda = elf.get_section_by_name(".nv_fatbin") is not None
        segments = {segment["p_type"]: segment for segment in elf.iter_segments()}
        symbols = list(elf.get_section_by_name(".dynsym").iter_symbols())
        versions = symbol_versions(elf, symbols)

    needed = [tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"]
    report.figures.append(("NEEDED", " ".join(needed)))
    for name in needed:
        report.expect(name in MAY_NEED, f"NEEDED holds {name}, which is not allowed")
    for name in sorted(MUST_NEED - set(needed)):
        report.problems.append(f"NEEDED lacks {name}")

    check_undefined(symbols, versions, limits, report)

    exported = {s.name for s in symbols if s["st_shndx"] != "SHN_UNDEF" and s["st_info"]["bind"] != "STB_LOCAL"}
    report.figures.append(("exported", " ".join(sorted(exported))))
    report.expect(exported == EXPORTED, f"exports {sorted(exported)}; expected {sorted(EXPORTED)}")

    flags = next((tag.entry.d_val for tag in tags if tag.entry.d_tag == "DT_FLAGS"), 0)
    flags_1 = next((tag.entry.d_val for tag in tags if tag.entry.d_tag == "DT_FLAGS_1"), 0)
    kinds = {tag.entry.d_tag for tag in tags}
    bind_now = "DT_BIND_NOW" in kinds or flags & 0x8 or flags_1 & 0x1
    report.expect("PT_GNU_RELRO" in segments, "no RELRO (-z relro)")
    report.expect(bool(bind_now), "no BIND_NOW (-z now)")
    stack = segments.get("PT_GNU_STACK")
    report.expect(stack is not None and not stack["p_flags"] & 1, "the stack is executable (-z noexecstack)")
    report.expect("DT_TEXTREL" not in kinds and not flags & 0x4, "text relocations (compile with -fPIC)")
    for tag in tags:
        if tag.entry.d_tag in ("DT_RPATH", "DT_RUNPATH"):
            report.problems.append(
                f"{tag.entry.d_tag} is set: {getattr(tag, 'rpath', None) or getattr(tag, 'runpath', '')}"
            )
    writable_code = [s for s in segments.values() if s["p_type"] == "PT_LOAD" and s["p_flags"] & 3 == 3]
    report.expect(not writable_code, "a segment is writable and executable")
    report.figures.append(("linking", "RELRO, BIND_NOW, stack not executable, no RPATH"))

    limit = limits.cuda_bytes if has_cuda else limits.cpu_bytes
    report.figures.append(
        ("size", f"{size / MEBIBYTE:.2f} MiB {'with' if has_cuda else 'without'} CUDA (limit {limit // MEBIBYTE})")
    )
    report.expect(size <= limit, f"{size} bytes; expected at most {limit}")
    for found in sorted(set(MACHINE_PATH.findall(path.read_bytes())))[:5]:
        report.problems.append(f"holds a path of the machine that built it: {found.decode(errors='replace')}")
    return report


def symbol_versions(elf: ELFFile, symbols: list) -> dict[str, str]:
    """Undefined symbol -> its version, such as GLIBC_2.34."""
    by_index: dict[int, str] = {}
    indices = None
    for section in elf.iter_sections():
        if isinstance(section, GNUVerNeedSection):
            for _, entries in section.iter_versions():
                by_index.update({entry["vna_other"] & 0x7FFF: entry.name for entry in entries})
        elif isinstance(section, GNUVerSymSection):
            indices = [entry["ndx"] for entry in section.iter_symbols()]
    found = {}
    for position, symbol in enumerate(symbols):
        if symbol["st_shndx"] == "SHN_UNDEF" and indices and isinstance(indices[position], int):
            version = by_index.get(indices[position] & 0x7FFF)
            if version:
                found[symbol.name] = version
    return found


def check_undefined(symbols: list, versions: dict[str, str], limits: Limits, report: Report) -> None:
    allowed = torch_symbols()
    of_torch: list[tuple[int, int]] = []
    weak: list[str] = []
    for symbol in symbols:
        name = symbol.name
        if symbol["st_shndx"] != "SHN_UNDEF" or not name or name in versions:
            continue
        is_weak = symbol["st_info"]["bind"] == "STB_WEAK"
        if name in allowed:
            library, first = allowed[name]
            of_torch.append(first)
            report.expect(
                first <= FLOOR, f"{name} is new in torch {dotted(first)}; the oldest torch here is {dotted(FLOOR)}"
            )
            if library == "libtorch_cuda.so":
                weak.append(name)
                report.expect(
                    is_weak, f"{name} of libtorch_cuda.so is not weak: a CPU-only torch could not load the library"
                )
        else:
            report.expect(
                is_weak and name in TOOLCHAIN_WEAK,
                f"undefined symbol {name} is not on the list of torch's stable functions",
            )
    report.expect(bool(of_torch), "takes no function from torch: not the library that this gate is for")
    if of_torch:
        text = f"{len(of_torch)} functions, the newest from torch {dotted(max(of_torch))}"
        report.figures.append(("from torch", f"{text}; weak, from libtorch_cuda: {' '.join(weak) or 'none'}"))

    newest: dict[str, tuple[int, ...]] = {}
    for version in versions.values():
        family, _, number = version.partition("_")
        if re.fullmatch(r"[0-9.]+", number):
            newest[family] = max(newest.get(family, ()), numbers(number))
    report.figures.append(
        ("asks for", ", ".join(f"{family} {dotted(version)}" for family, version in sorted(newest.items())))
    )
    for family, limit in (("GLIBC", limits.glibc), ("GLIBCXX", limits.glibcxx), ("CXXABI", limits.cxxabi)):
        got = newest.get(family, ())
        report.expect(got <= limit, f"needs {family}_{dotted(got)}; expected at most {dotted(limit)}")


def second_opinion(library: Path) -> list[str]:
    """torch-abi-audit's view of the same file."""
    program = "import sys; from torch_abi_audit.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "--json", "--check", "torch", str(library)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0 or not result.stdout.strip():
        return [f"torch-abi-audit exits with {result.returncode}: {(result.stdout + result.stderr).strip()[-600:]}"]
    audited = json.loads(result.stdout)
    views = [module["torch"] for module in audited["extensions"] + audited["bundled_libs"]]
    problems = []
    if len(views) != 1 or not views[0]["uses_torch"]:
        problems.append(f"torch-abi-audit saw {len(views)} libraries that use torch; expected 1")
    for view in views:
        if not view["stable"] or view["unstable_symbols"] or view["unknown_shim_symbols"]:
            problems.append(f"torch-abi-audit: not stable: {view['unstable_symbols']} {view['unknown_shim_symbols']}")
        if numbers(view["min_torch_version"])[:2] > FLOOR:
            problems.append(f"torch-abi-audit: needs torch {view['min_torch_version']}")
    return problems


def judge_wheel(wheel: Path, limits: Limits, audit: bool) -> Report:
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        libraries = [name for name in names if re.search(r"\.so(\.|$)", name)]
        if libraries != [LIBRARY]:
            return Report(problems=[f"holds the libraries {libraries}; expected {[LIBRARY]}"])
        archive.extractall(folder)
        library = Path(folder) / LIBRARY
        report = judge_library(library, limits)
        report.figures.insert(0, ("sha256", hashlib.sha256(library.read_bytes()).hexdigest()))
        for name in names:
            if not name.endswith((".so", "/")):
                for found in sorted(set(MACHINE_PATH.findall(archive.read(name)))):
                    report.problems.append(f"{name} holds a path of some machine: {found.decode(errors='replace')}")
        if audit:
            problems = second_opinion(library)
            report.problems += problems
            report.figures.append(("torch-abi-audit", "disagrees" if problems else "agrees: stable ABI only"))
    tag = "-".join(wheel.stem.split("-")[2:])
    report.figures.insert(0, ("tag", tag))
    report.expect(
        re.fullmatch(r"py3-none-(?:linux|manylinux_2_[0-9]+)_x86_64(?:\.manylinux.*)?", tag) is not None,
        f"tag {tag}; expected py3-none-<platform>",
    )
    report.expect(any(name.endswith(".dist-info/licenses/LICENSE") for name in names), "LICENSE is not in the wheel")
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument(
        "--glibc", type=numbers, default=Limits.glibc, help="newest glibc version that may be asked for"
    )
    parser.add_argument("--glibcxx", type=numbers, default=Limits.glibcxx, help="the same for libstdc++")
    parser.add_argument("--no-second-opinion", action="store_true", help="leave out torch-abi-audit")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead")
    options = parser.parse_args()

    limits = Limits(glibc=options.glibc, glibcxx=options.glibcxx)
    report = judge_wheel(options.wheel, limits, audit=not options.no_second_opinion)
    if options.json:
        print(json.dumps({"figures": dict(report.figures), "problems": report.problems}))
    else:
        print(f"check_wheel: {options.wheel.name}")
        for name, value in report.figures:
            print(f"  {name:15} {value}")
        for problem in report.problems:
            print(f"  WRONG: {problem}")
        print("check_wheel: " + (f"{len(report.problems)} problems" if report.problems else "all rules hold"))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
