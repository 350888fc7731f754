# SPDX-License-Identifier: Apache-2.0
"""Runs the GPU test programs under compute-sanitizer, several processes side by side, and closes with a table: every program
under memcheck, synccheck, initcheck and racecheck. A finding, a failed test, a program that ran no case or took too long
fails. Needs a GPU and the programs of the preset `gpu`; `make gpu-sanitize` builds and runs.

    python tools/run_sanitizers.py [--build build/gpu] [--programs gemm_test ...] [--tools racecheck ...] [--rows TEXT] [--jobs 16]

racecheck follows every access to shared memory, so each kernel row is a process of its own on the least problems that
take it through all its barriers (`--tiny`). Under initcheck what tests only read has red zones that nobody wrote, so that a
read beyond an operand is a finding (tests/gpu/harness.h). Must not go here: which cases a program runs.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("memcheck", "synccheck", "initcheck", "racecheck")
SEARCHED = ("/usr/local/cuda/bin",)  # besides PATH


@dataclass(frozen=True)
class Check:
    """A program under some tools; `parts`: arguments of which each makes a process of its own; `rows`: so does each kernel row
    whose name matches all of the expression."""

    program: str
    tools: Sequence[str]
    arguments: Sequence[str] = ()
    parts: Sequence[str] = ("",)
    rows: str = ""


KINDS = ("int8_", "fp8_", "fp8promoted_")
HOPPER_KINDS = tuple(f"--rows=sm90_{kind}" for kind in KINDS)
PORTABLE_KINDS = tuple(f"--rows=portable_{kind}" for kind in KINDS)
# Tests of quantize_test by name: all but those of every 16-bit value, which run the same kernels again.
QUANTIZERS = tuple(f"--only={part}" for part in ("per_", "given_", "activation_", "rms_norm_", "dropin_", "columns"))
MIXTURE = tuple(f"--only={part}" for part in ("route", "data", "gather", "combine", "layer"))
MEMORY = ("memcheck", "synccheck", "initcheck")
CHECKS = (
    Check("gemm_test", MEMORY, ("--quick",), HOPPER_KINDS),
    Check("gemm_test", ("racecheck",), ("--tiny",), rows=r"sm90_\w+(?<!_grouped)"),
    Check("grouped_test", MEMORY, ("--quick",), HOPPER_KINDS),
    Check("grouped_test", ("racecheck",), ("--tiny",), rows=r"sm90_\w+_grouped"),
    Check("moe_test", MEMORY, ("--quick",), MIXTURE),
    Check("moe_test", ("racecheck",), ("--tiny",), MIXTURE),
    Check("moe_test", ("memcheck",), ("--quick",), ("--only=hostile",)),
    Check("portable_test", ("memcheck", "synccheck"), ("--variant=native", "--quick"), PORTABLE_KINDS),
    Check("portable_test", ("initcheck",), ("--variant=native", "--tiny"), PORTABLE_KINDS),
    Check("portable_test", ("racecheck",), ("--variant=native", "--tiny"), rows=r"portable_\w+"),
    Check("quantize_test", ("memcheck", "synccheck"), ("--quick",)),
    Check("quantize_test", ("initcheck", "racecheck"), ("--quick",), QUANTIZERS),
)


@dataclass(frozen=True)
class Job:
    check: Check
    tool: str
    part: str  # an argument of the program, or ""

    @property
    def arguments(self) -> list[str]:
        return [*self.check.arguments, *([self.part] if self.part else [])]

    def __str__(self) -> str:
        return " ".join([self.tool, self.check.program, *self.arguments])


@dataclass(frozen=True)
class Outcome:
    job: Job
    cases: int
    findings: int
    problem: str  # why it failed though the tool found nothing, or ""
    seconds: float
    log: Path

    @property
    def good(self) -> bool:
        return self.findings == 0 and not self.problem


def kernel_rows(build: Path) -> list[str]:
    """The names of this build's kernel rows: one source file each."""
    made = build / "src/cuda"
    return sorted(path.stem for folder in ("generated", "portable") for path in (made / folder).glob("*.cu"))


def jobs_of(checks: Sequence[Check], tools: Sequence[str], rows: Sequence[str], text: str) -> list[Job]:
    """Processes of single rows last: they are short and fill what the longer ones leave."""
    jobs = []
    for check in checks:
        parts = check.parts
        if check.rows:
            parts = [f"--rows={row}" for row in rows if re.fullmatch(check.rows, row) and text in row]
        jobs += [Job(check, tool, part) for tool in tools if tool in check.tools for part in parts]
    return sorted(jobs, key=lambda job: bool(job.check.rows))


def judge(job: Job, text: str, exit_code: int, seconds: float, log: Path) -> Outcome:
    """Reads what the tool and the program printed."""
    summaries = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)", text)
    tally = re.search(r"(\d+) tests?, (\d+) cases?, (\d+) failed", text)
    problem = ""
    if not summaries:
        problem = "the tool printed no summary"
    elif tally is None:
        problem = f"the program ended early, exit code {exit_code}"
    elif int(tally[3]) > 0 or int(tally[2]) == 0:
        problem = tally[0]
    elif exit_code != 0:
        problem = f"exit code {exit_code}"
    return Outcome(job, int(tally[2]) if tally else 0, sum(map(int, summaries)), problem, seconds, log)


def run(job: Job, build: Path, sanitizer: str, limit: float) -> Outcome:
    name = re.sub(r"[^\w]+", "_", str(job))
    log = build / "sanitizers" / f"{name}.log"
    command = [
        sanitizer,
        "--tool",
        job.tool,
        "--print-limit",
        "20",
        build / "tests/gpu" / job.check.program,
        *job.arguments,
    ]
    environment = dict(os.environ)
    if job.tool == "initcheck":
        environment["EVERGEMM_UNWRITTEN_ZONES"] = "1"
    begin = time.monotonic()
    with log.open("w") as file:
        try:
            exit_code = subprocess.run(
                list(map(str, command)), stdout=file, stderr=subprocess.STDOUT, timeout=limit, env=environment
            ).returncode
        except subprocess.TimeoutExpired:
            return Outcome(job, 0, 0, f"took more than {limit:.0f} s", limit, log)
    return judge(job, log.read_text(errors="replace"), exit_code, time.monotonic() - begin, log)


def summary(outcomes: Sequence[Outcome]) -> str:
    """A line for each program and tool."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.job.check.program, outcome.job.tool), []).append(outcome)
    lines = [
        "| program | tool | processes | cases | findings | failed processes | seconds, all and longest |",
        "|---|---|---|---|---|---|---|",
    ]
    for (program, tool), found in sorted(groups.items(), key=lambda item: (item[0][0], TOOLS.index(item[0][1]))):
        arguments = " ".join(found[0].job.check.arguments)
        seconds = [outcome.seconds for outcome in found]
        lines.append(
            f"| {program} {arguments} | {tool} | {len(found)} | {sum(outcome.cases for outcome in found)} | "
            f"{sum(outcome.findings for outcome in found)} | {sum(not outcome.good for outcome in found)} | "
            f"{sum(seconds):.0f}, {max(seconds):.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=Path, default=ROOT / "build/gpu")
    parser.add_argument("--programs", nargs="+", choices=sorted({check.program for check in CHECKS}), help="only these")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--rows", default="", help="where a row is a process: only those whose name holds this")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds for one process")
    options = parser.parse_args()

    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join([os.environ.get("PATH", ""), *SEARCHED]))
    if sanitizer is None:
        print("run_sanitizers: expected compute-sanitizer; got none; fix: put the CUDA toolkit's bin folder into PATH.")
        return 2
    build = options.build.resolve()
    (build / "sanitizers").mkdir(parents=True, exist_ok=True)
    checks = [check for check in CHECKS if options.programs is None or check.program in options.programs]
    jobs = jobs_of(checks, options.tools, kernel_rows(build), options.rows)
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    pool = concurrent.futures.ThreadPoolExecutor(options.jobs)
    pending = [pool.submit(run, job, build, sanitizer, options.limit) for job in jobs]
    try:
        for done in concurrent.futures.as_completed(pending):
            outcome = done.result()
            outcomes.append(outcome)
            verdict = "pass" if outcome.good else f"FAIL ({outcome.findings} findings) {outcome.problem}"
            print(f"{verdict} {outcome.job}: {outcome.cases} cases, {outcome.seconds:.1f} s", flush=True)
    except KeyboardInterrupt:  # what has ended is still shown
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        pool.shutdown(wait=False, cancel_futures=True)
    print(f"\n{summary(outcomes)}\n")
    bad = [outcome for outcome in outcomes if not outcome.good]
    for outcome in bad:
        print(f"{outcome.job}: {outcome.findings} findings {outcome.problem}; {outcome.log}")
    good, missing = len(outcomes) - len(bad), len(jobs) - len(outcomes)
    lost = f", {missing} not run" if missing else ""
    print(f"sanitizers: {good} passed, {len(bad)} failed{lost}, {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if bad or missing or not outcomes else 0


if __name__ == "__main__":
    sys.exit(main())
