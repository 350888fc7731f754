# SPDX-License-Identifier: Apache-2.0
"""Runs the C++ tests (CTest) and the Python tests (pytest) in one go and closes with one line that counts both. A
suite, or a C++ program, that ran no case fails. Needs a built preset and the installed package (`make test` does both).

    python tools/run_tests.py [--preset host] [--only cpp|python] [pytest arguments ...]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Tally:
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    problems: list[str] = field(default_factory=list)  # what is wrong beyond failed cases

    def line(self) -> str:
        return f"{self.passed} passed, {self.failed} failed, {self.skipped} skipped"


def run_cpp(preset: str) -> Tally:
    build = ROOT / "build" / preset
    results = build / "test_results"
    shutil.rmtree(results, ignore_errors=True)
    command = ["ctest", "--preset", preset, "--no-tests=error"]
    exit_code = subprocess.run(command, cwd=ROOT).returncode
    listing = subprocess.run(
        ["ctest", "--preset", preset, "--show-only=json-v1"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    tally = Tally()
    for program in [test["name"] for test in json.loads(listing.stdout)["tests"]]:
        path = results / f"{program}.json"
        if not path.exists():
            tally.failed += 1
            tally.problems.append(f"{program} ended before it wrote its results")
            continue
        result = json.loads(path.read_text())
        cases = [case for suite in result["testsuites"] for case in suite["testsuite"]]
        ran = [case for case in cases if case["status"] == "RUN" and case["result"] != "SKIPPED"]
        failed = sum(bool(case.get("failures")) for case in ran)
        tally.passed += len(ran) - failed
        tally.failed += failed
        tally.skipped += len(cases) - len(ran)
        if not ran:
            tally.failed += 1
            tally.problems.append(f"{program} ran no case")
    if exit_code != 0 and tally.failed == 0:
        tally.failed += 1
        tally.problems.append(f"{' '.join(command)} exited with {exit_code}")
    if tally.passed + tally.failed == 0:
        tally.failed += 1
        tally.problems.append("no C++ test ran")
    return tally


def run_python(arguments: list[str]) -> Tally:
    results = ROOT / "build/test_results_python.xml"
    results.parent.mkdir(exist_ok=True)
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", f"--junitxml={results}", *arguments]
    exit_code = subprocess.run(command, cwd=ROOT).returncode
    tally = Tally()
    if results.exists():
        suite = ElementTree.parse(results).getroot().find("testsuite")
        total = int(suite.get("tests"))
        tally.failed = int(suite.get("failures")) + int(suite.get("errors"))
        tally.skipped = int(suite.get("skipped"))
        tally.passed = total - tally.failed - tally.skipped
    if tally.passed == 0:
        tally.failed += 1
        tally.problems.append("no Python test passed")
    elif exit_code != 0 and tally.failed == 0:
        tally.failed += 1
        tally.problems.append(f"pytest exited with {exit_code}")
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="host", help="the CMake preset whose tests are run")
    parser.add_argument("--only", choices=["cpp", "python"])
    options, rest = parser.parse_known_args()

    tallies = {}
    for name, run in (("cpp", lambda: run_cpp(options.preset)), ("python", lambda: run_python(rest))):
        if options.only in (None, name):
            print(f"== {'C++' if name == 'cpp' else 'Python'} tests ==", flush=True)
            start = time.monotonic()
            tallies[name] = run(), time.monotonic() - start

    print()
    for name, (tally, seconds) in tallies.items():
        print(f"{'C++' if name == 'cpp' else 'Python'} tests: {tally.line()} in {seconds:.0f} s")
        for problem in tally.problems:
            print(f"  {problem}")
    everything = Tally(
        sum(tally.passed for tally, _ in tallies.values()),
        sum(tally.failed for tally, _ in tallies.values()),
        sum(tally.skipped for tally, _ in tallies.values()),
    )
    print(everything.line(), flush=True)
    return 1 if everything.failed else 0


if __name__ == "__main__":
    sys.exit(main())
