# SPDX-License-Identifier: Apache-2.0
"""tools/run_sanitizers.py reads what the tools print: with a stand-in for compute-sanitizer, so that no GPU is needed."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CLEAN = {
    "memcheck": "========= ERROR SUMMARY: 0 errors",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
TALLY = "2 tests, 7 cases, 0 failed"


def sanitize(folder: pathlib.Path, printed: str, tool: str = "memcheck", exit_code: int = 0, more: str = ""):
    """Runs quantize_test under a tool that prints this."""
    (folder / "compute-sanitizer").write_text(f"#!/bin/sh\n{more}\ncat <<'END'\n{printed}\nEND\nexit {exit_code}\n")
    (folder / "compute-sanitizer").chmod(0o755)
    command = [sys.executable, ROOT / "tools/run_sanitizers.py", "--build", folder, "--jobs", "2", "--limit", "5"]
    command += ["--programs", "quantize_test", "--tools", tool]
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("tool", CLEAN)
def test_a_clean_run_passes(tmp_path, tool):
    done = sanitize(tmp_path, f"{TALLY}\n{CLEAN[tool]}", tool)
    assert done.returncode == 0, done.stdout + done.stderr
    processes = 6 if tool == "racecheck" else 1
    assert f"| quantize_test --quick | {tool} | {processes} | {7 * processes} | 0 | 0 |" in done.stdout
    assert f"sanitizers: {processes} passed, 0 failed" in done.stdout


@pytest.mark.parametrize(
    "printed, exit_code, words",
    [
        (f"{TALLY}\n========= ERROR SUMMARY: 3 errors", 0, "3 findings"),
        (f"{TALLY}\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)", 0, "1 findings"),
        (f"{TALLY}\n{CLEAN['memcheck']}\n========= ERROR SUMMARY: 3 errors", 0, "3 findings"),
        (TALLY, 0, "the tool printed no summary"),
        (CLEAN["memcheck"], 2, "the program ended early, exit code 2"),
        (f"2 tests, 7 cases, 1 failed\n{CLEAN['memcheck']}", 1, "2 tests, 7 cases, 1 failed"),
        (f"0 tests, 0 cases, 0 failed\n{CLEAN['memcheck']}", 0, "0 tests, 0 cases, 0 failed"),
        (f"{TALLY}\n{CLEAN['memcheck']}", 9, "exit code 9"),
    ],
)
def test_whatever_is_not_clean_fails(tmp_path, printed, exit_code, words):
    done = sanitize(tmp_path, printed, exit_code=exit_code)
    assert done.returncode == 1, done.stdout + done.stderr
    assert words in done.stdout and "sanitizers: 0 passed, 1 failed" in done.stdout


def test_a_program_that_hangs_fails(tmp_path):
    done = sanitize(tmp_path, f"{TALLY}\n{CLEAN['memcheck']}", more="exec sleep 60")
    assert done.returncode == 1 and "took more than 5 s" in done.stdout


def test_initcheck_is_told_to_leave_red_zones_unwritten(tmp_path):
    for tool, words in (("initcheck", "zones 1"), ("memcheck", "zones unset")):
        sanitize(tmp_path, TALLY, tool, more='echo "zones ${EVERGEMM_UNWRITTEN_ZONES-unset}"')
        logs = list((tmp_path / "sanitizers").glob(f"{tool}_*.log"))
        assert logs and all(words in log.read_text() for log in logs)


def test_a_row_is_a_process(tmp_path):
    for folder, name in (
        ("generated", "sm90_int8_a"),
        ("generated", "sm90_int8_a_grouped"),
        ("portable", "portable_b"),
    ):
        path = tmp_path / "src/cuda" / folder / f"{name}.cu"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "compute-sanitizer").write_text(f"#!/bin/sh\necho '{TALLY}'\necho '{CLEAN['racecheck']}'\n")
    (tmp_path / "compute-sanitizer").chmod(0o755)
    command = [
        sys.executable,
        ROOT / "tools/run_sanitizers.py",
        "--build",
        tmp_path,
        "--jobs",
        "2",
        "--tools",
        "racecheck",
    ]
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("--rows=")[1].split(":")[0] for line in done.stdout.splitlines() if "--rows=" in line]
    assert sorted(rows) == ["portable_b", "sm90_int8_a", "sm90_int8_a_grouped"]
