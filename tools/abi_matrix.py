# SPDX-License-Identifier: Apache-2.0
"""Installs one wheel beside every torch that it claims to run on, one environment after the other, and runs the
operators' tests in each; also on a torch that behaves as a CPU-only build. With --write it makes docs/compatibility.md
of what it saw.

    python tools/abi_matrix.py dist/evergemm-*.whl        every torch: 3 minutes and 6 GB each, one at a time
    python tools/abi_matrix.py dist/evergemm-*.whl --torch 2.10 2.15    only these
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "evergemm/libevergemm_torch.so"
# torch -> the CPython that it is tried with, where this machine has it (else the one that runs this script).
ENVIRONMENTS = {"2.10": "3.10", "2.11": "3.11", "2.12": "3.12", "2.13": "3.13", "2.14": "3.12", "2.15": "3.11"}
CPU_ONLY = "CPU-only"
OPERATOR_TESTS = [
    "test_registration.py",
    "test_ops.py",
    "test_dropin.py",
    "test_errors.py",
    "test_moe.py",
    "test_moe_dropin.py",
]
TEST_REQUIREMENTS = [
    "pytest>=8",
    "hypothesis>=6.100",
    "numpy>=1.23",
    "ml_dtypes>=0.5",
    "safetensors>=0.4",
    "expecttest>=0.2",
]


@dataclass
class Row:
    torch: str  # "2.10", or CPU_ONLY
    version: str = ""
    cuda: str = ""
    python: str = ""
    glibc: str = ""
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    sha256: str = ""
    problem: str = "not run"

    @property
    def good(self) -> bool:
        return not self.problem and self.failed == 0 and self.passed > 0

    def result(self) -> str:
        if self.good:
            return "passed"
        return self.problem or "FAILED"


def run(*command: object, **options) -> str:
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{(result.stdout + result.stderr)[-2000:]}")
    return result.stdout


def interpreter(version: str) -> str:
    """An interpreter of that version, wherever this machine keeps such things, or the running one."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates += [str(path / "bin/python") for path in sorted(pyenv.glob(f"{version}.*"))]
    for candidate in filter(None, candidates):
        probe = "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"
        result = subprocess.run([candidate, "-c", probe], capture_output=True, text=True)
        if result.returncode == 0 and result.stdout.strip() == version:
            return candidate
    return sys.executable


def site_packages(python: Path) -> Path:
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())


def make_environment(folder: Path, torch: str) -> tuple[Path, dict[str, str]]:
    """An environment with that torch and the tests' requirements. Where the running interpreter has that very torch,
    the new environment borrows its packages instead of installing gigabytes again."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    }
    environment["PYTHONNOUSERSITE"] = "1"
    python = folder / "bin/python"
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        installed = ""
    if torch == CPU_ONLY or installed.split("+")[0].startswith(torch + "."):
        run(sys.executable, "-m", "venv", "--without-pip", folder)
        borrowed = site_packages(Path(sys.executable))
        (site_packages(python) / "borrowed.pth").write_text(f"{borrowed}\n")
        if torch == CPU_ONLY:
            made = folder / "cpu_only"
            run(sys.executable, ROOT / "tools/cpu_only_torch.py", made)
            environment["PYTHONPATH"] = str(made)
        return python, environment
    run(interpreter(ENVIRONMENTS[torch]), "-m", "venv", folder)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    run(*pip, f"torch=={torch}.*", *TEST_REQUIREMENTS)
    return python, environment


def install(wheel: Path, python: Path) -> Path:
    """The wheel as pip would lay it out, without its dependencies: it holds no scripts that need rewriting."""
    target = site_packages(python)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target / LIBRARY


def try_torch(torch: str, wheel: Path, work: Path) -> Row:
    row = Row(torch, problem="")
    start = time.monotonic()
    folder = work / f"torch_{torch}"
    try:
        python, environment = make_environment(folder, torch)
        library = install(wheel, python)
        row.sha256 = hashlib.sha256(library.read_bytes()).hexdigest()
        probe = (
            "import platform, torch, evergemm; print(torch.__version__, torch.version.cuda, platform.python_version(), "
            "evergemm.__file__, sep='\\n')"
        )
        row.version, row.cuda, row.python, origin = run(python, "-c", probe, env=environment, cwd=work).split("\n")[:4]
        if not origin.startswith(str(folder)):
            raise RuntimeError(f"imported {origin}, not the wheel that was installed in {folder}")
        if torch != CPU_ONLY and not row.version.startswith(torch + "."):
            raise RuntimeError(f"got torch {row.version} where {torch} was asked for")
        if torch == CPU_ONLY and row.cuda != "None":
            raise RuntimeError(f"the CPU-only torch says CUDA {row.cuda}")
        run_tests(row, python, environment, work)
    except RuntimeError as error:
        row.problem = "FAILED: " + str(error).strip().splitlines()[-1][:160]
        print(error, flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        row.seconds = time.monotonic() - start
    return row


def run_tests(row: Row, python: Path, environment: dict[str, str], work: Path) -> None:
    results = work / f"results_{row.torch}.xml"
    tests = [ROOT / "tests/python" / name for name in OPERATOR_TESTS]
    command = [python, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", f"--junitxml={results}", *tests]
    process = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    if not results.exists():
        raise RuntimeError(f"pytest exits with {process.returncode}\n{(process.stdout + process.stderr)[-3000:]}")
    suite = ElementTree.parse(results).getroot().find("testsuite")
    row.failed = int(suite.get("failures")) + int(suite.get("errors"))
    row.skipped = int(suite.get("skipped"))
    row.passed = int(suite.get("tests")) - row.failed - row.skipped
    if process.returncode != 0 and row.failed == 0:
        row.problem = f"FAILED: pytest exits with {process.returncode}"
    if row.failed or row.problem:
        print(process.stdout[-6000:], process.stderr[-2000:], flush=True)


def asks_for(wheel: Path) -> str:
    """The glibc and libstdc++ that the library needs, as tools/check_wheel.py sees them."""
    command = [sys.executable, ROOT / "tools/check_wheel.py", wheel, "--json", "--no-second-opinion"]
    return json.loads(run(*command))["figures"]["asks for"]


def page(rows: list[Row], wheel: Path) -> str:
    sha256 = {row.sha256 for row in rows if row.sha256}
    commit = run("git", "rev-parse", "--short", "HEAD", cwd=ROOT).strip()
    lines = [
        "# Compatibility",
        "",
        "Generated by `make abi-matrix`: one file, built once, installed beside each torch; the operators' tests "
        f"({', '.join(f'`{name}`' for name in OPERATOR_TESTS)}) run in each environment.",
        "",
        f"- wheel `{wheel.name}`, made from commit {commit}",
        f"- library `{Path(LIBRARY).name}`, sha256 `{', '.join(sorted(sha256)) or 'none'}`",
        f"- it asks for {asks_for(wheel)}; limits: glibc 2.34 as linked on Debian 12, glibc 2.28 for release wheels "
        "(`make release-wheel`)",
        f"- {datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d}, Linux {platform.machine()}, "
        f"{' '.join(platform.libc_ver())}, no GPU",
        "",
        "| torch | its CUDA | CPython | result | passed | failed | skipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row.version or row.torch}" + (
            " as a CPU-only build (1)" if row.torch == CPU_ONLY and row.version else ""
        )
        ran = row.passed + row.failed > 0
        counts = [str(n) if ran else "-" for n in (row.passed, row.failed, row.skipped)]
        cells = [name, row.cuda.replace("None", "none") or "-", row.python or "-", row.result(), *counts]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    lines += [
        "",
        "(1) The package index has no CPU-only torch for x86-64 Linux. `tools/cpu_only_torch.py` makes a copy of a "
        "CUDA torch without its CUDA libraries, in which the CUDA functions that extensions may ask for do not exist.",
        "",
        "Not run: a driver for CUDA 12, more than one GPU, aarch64, musl.",
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", nargs="+", choices=[*ENVIRONMENTS, CPU_ONLY], default=[*ENVIRONMENTS, CPU_ONLY])
    parser.add_argument("--jobs", type=int, default=1, help="environments at a time, 6 GB each")
    parser.add_argument("--write", type=Path, help="write the page here")
    options = parser.parse_args()
    wheel = options.wheel.resolve()

    rows = {torch: Row(torch) for torch in [*ENVIRONMENTS, CPU_ONLY]}
    with tempfile.TemporaryDirectory(prefix="abi_matrix_") as work:
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            runs = {pool.submit(try_torch, torch, wheel, Path(work).resolve()): torch for torch in options.torch}
            for finished in concurrent.futures.as_completed(runs):
                row = rows[runs[finished]] = finished.result()
                print(
                    f"torch {row.version or row.torch}, CUDA {row.cuda}, CPython {row.python}: {row.result()}, "
                    f"{row.passed} passed, {row.failed} failed, {row.skipped} skipped, {row.seconds:.0f} s",
                    flush=True,
                )
                if options.write:  # after each, so that an interrupted run has said what it saw
                    options.write.write_text(page(list(rows.values()), wheel))
    if len({row.sha256 for row in rows.values() if row.sha256}) > 1:
        raise SystemExit("abi_matrix: the environments did not get the same file")
    if options.write:
        print(f"wrote {options.write}")
    good = [rows[torch].good for torch in options.torch]
    print(f"torch releases: {sum(good)} passed, {len(good) - sum(good)} failed")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
