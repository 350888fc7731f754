# SPDX-License-Identifier: Apache-2.0
"""Runs the libFuzzer programs of the preset `fuzz` for some seconds each and says how many calls they made. The corpus
is kept in build/fuzz/corpus; an input that breaks a promise is left in build/fuzz/failures and its command is printed.

    python tools/run_fuzzers.py [--seconds 60]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("fuzz_validate", "fuzz_plan")


def run(name: str, seconds: int) -> tuple[int, str]:
    """Calls made, and what went wrong (empty: nothing)."""
    build = ROOT / "build/fuzz"
    program = build / "tests/fuzz" / name
    corpus = build / "corpus" / name
    failures = build / "failures"
    corpus.mkdir(parents=True, exist_ok=True)
    failures.mkdir(parents=True, exist_ok=True)
    command = [program, f"-max_total_time={seconds}", "-max_len=512", "-timeout=10", "-rss_limit_mb=2048"]
    command += ["-print_final_stats=1", f"-artifact_prefix={failures}/{name}-", corpus]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    calls = re.search(r"stat::number_of_executed_units:\s*(\d+)", result.stderr)
    count = int(calls[1]) if calls else 0
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if not line.startswith("#")]
        return count, "\n".join(lines[-40:])
    return count, "" if count > 1000 else f"only {count} calls"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each program")
    options = parser.parse_args()
    failed = 0
    for name in PROGRAMS:
        calls, problem = run(name, options.seconds)
        print(
            f"{name}: {calls} calls in {options.seconds} s: {'FAILED' if problem else 'every promise kept'}", flush=True
        )
        if problem:
            failed += 1
            print(problem)
    print(f"fuzzers: {len(PROGRAMS) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
