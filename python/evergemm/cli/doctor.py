# SPDX-License-Identifier: Apache-2.0
"""`evergemm doctor`: what this machine has, what runs on it, what is missing and what to do about it.

Standard library only: it must run where torch is broken or missing. Processor and GPUs are read from /proc and NVML (no
context is created); torch and the library are asked by probe.py in another process. Exit code 0: evergemm is ready to use;
1: it is not. Must not go here: rules and rows (the library's).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path

from ..text import bytes_text, table
from . import machine

OLDEST_PYTHON = (3, 10)
OLDEST_TORCH = (2, 10)
OLDEST_DRIVER = 580  # of the CUDA 13 runtime in this library
_PROBE_SECONDS = 120


# ---- torch and the library ---------------------------------------------------------------------------------------------


def _probe() -> tuple[dict[str, list[dict]], str]:
    """(step -> its findings, how the process ended where it did not end well)."""
    code = Path(__file__).with_name("probe.py").read_text("utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=_PROBE_SECONDS, errors="replace"
        )
        output, end, words = done.stdout, done.returncode, done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired as expired:
        output = expired.stdout.decode(errors="replace") if isinstance(expired.stdout, bytes) else expired.stdout or ""
        end, words = 0, []
        failure = f"no answer within {_PROBE_SECONDS} s"
    else:
        failure = ""
    if end < 0:
        failure = f"killed by {signal.Signals(-end).name}"
    elif end > 0:
        failure = words[-1] if words else f"exit code {end}"
    steps: dict[str, list[dict]] = {}
    for line in output.splitlines():
        try:
            fact = json.loads(line)
        except ValueError:
            continue  # torch printed something
        if isinstance(fact, dict) and "step" in fact:
            steps.setdefault(fact.pop("step"), []).append(fact)
    return steps, failure


def _torch_problem(steps: dict, failure: str) -> tuple[str, str] | None:
    """(what is wrong with torch, what to do), or None."""
    if "torch" in steps:
        version = steps["torch"][0]["version"]
        numbers = re.match(r"(\d+)\.(\d+)", version)
        if numbers is None or tuple(map(int, numbers.groups())) < OLDEST_TORCH:
            return f"torch {version} is older than 2.10", "pip install --upgrade 'torch>=2.10'"
        return None
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed", "pip install 'torch>=2.10'"
    return f"torch does not import: {failure or 'no reason given'}", "pip install --force-reinstall 'torch>=2.10'"


# ---- the verdict -------------------------------------------------------------------------------------------------------


def examine() -> dict:
    """Everything that doctor knows, as JSON-ready data. "ready" is the verdict; "problems" say what to do about it."""
    problems: list[dict] = []
    notes: list[dict] = []

    def problem(what: str, fix: str) -> None:
        problems.append({"what": what, "fix": fix})

    if sys.version_info < OLDEST_PYTHON:
        problem(f"Python {platform.python_version()} is older than 3.10", "use a newer Python")
    processor = machine.processor()
    driver, gpus, no_gpu = machine.gpus()
    steps, failure = _probe()

    torch = steps.get("torch", [{}])[0]
    wrong = _torch_problem(steps, failure)
    torch_ok = wrong is None
    if wrong is not None:
        problem(*wrong)
    library = steps.get("library", [{}])[0]
    architectures = library.get("architectures", {})
    library_error = ""
    if torch_ok and not library:
        library_error = failure or "no reason given"
        # Our own messages say what to do behind "fix:".
        what, _, fix = library_error.partition("; fix: ")
        problem(f"the library does not load: {what}", fix.rstrip(".") or "reinstall evergemm with pip")
    elif library.get("status"):
        library_error = library["status"]
        problem(f"operators are not registered: {library_error}", "load one copy of evergemm a process")
    product = steps.get("product", [{}])[0].get("right")
    if library and product is None:
        problem(f"a small product did not finish: {failure}", "report it with the output of evergemm doctor --json")
    elif product is False:
        problem("a small product came out wrong", "report it with the output of evergemm doctor --json")
    elif library and "row" not in steps:
        problem(f"the planner did not answer: {failure}", "report it with the output of evergemm doctor --json")

    for gpu in gpus:
        gpu["architecture"] = machine.architecture(gpu["capability"])
        gpu["built"] = bool(architectures.get(gpu["architecture"], {}).get("built"))
    if gpus and driver is not None and int(driver.split(".")[0]) < OLDEST_DRIVER:
        notes.append(
            {
                "what": f"driver {driver} is older than {OLDEST_DRIVER}: the GPU's kernels cannot run, the CPU's do",
                "fix": f"install driver {OLDEST_DRIVER} or newer",
            }
        )
    for name in sorted({gpu["architecture"] for gpu in gpus if library and not gpu["built"]}):
        if architectures.get(name, {}).get("rows"):
            fix = f"EVERGEMM_ARCHS={name} pip install --force-reinstall --no-deps . (needs nvcc)"
        else:
            fix = "use the CPU; this release has no rows for so old a GPU"
        notes.append({"what": f"no kernels for {name} in this library", "fix": fix})
    if gpus and torch_ok and torch.get("cuda") is None:
        notes.append({"what": "this torch has no CUDA", "fix": "install a CUDA build of torch to use the GPU"})

    return {
        "ready": not problems,
        "problems": problems,
        "notes": notes,
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "platform": platform.platform(),
            "libc": " ".join(platform.libc_ver()),
        },
        "cpu": processor,
        "gpus": gpus,
        "driver": driver,
        "no_gpu": no_gpu,
        "torch": {
            "ok": torch_ok,
            "version": torch.get("version"),
            "cuda": torch.get("cuda"),
            "threads": torch.get("threads"),
            "path": torch.get("file"),
            "error": "" if wrong is None else wrong[0],
        },
        "library": {
            "ok": bool(library) and not library_error and product is True,
            "version": library.get("version"),
            "path": library.get("path") or _library_file(),
            "bytes": _size(library.get("path") or _library_file()),
            "operators": library.get("operators"),
            "instruction_set": library.get("cpu", {}).get("instruction_set"),
            "architectures": architectures,
            "error": library_error,
        },
        "rows": [_with_better(row, gpus) for row in steps.get("row", [])],
    }


def _library_file() -> str | None:
    """The library beside this package's sources, found without loading it."""
    found = sorted(Path(__file__).parents[1].glob("libevergemm_torch.so"))
    return str(found[0]) if found else None


def _size(path: str | None) -> int | None:
    try:
        return os.path.getsize(path) if path else None
    except OSError:
        return None


def _with_better(row: dict, gpus: list[dict]) -> dict:
    """Adds "why_not_better": reasons that rows for the same problem cannot run on this device, with those rows."""
    reasons: dict[str, list[str]] = {}
    for name, reason in row.pop("rejected"):
        if not reason.startswith("multiplies "):  # rows for another type are no better here
            reasons.setdefault(reason, []).append(name)
    row["why_not_better"] = [{"reason": reason, "rows": names} for reason, names in reasons.items()]
    return row


# ---- showing it --------------------------------------------------------------------------------------------------------


def _show(facts: dict) -> str:
    cpu, torch, library = facts["cpu"], facts["torch"], facts["library"]
    lines: list[str] = []

    def line(mark: str, title: str, text: str) -> None:
        lines.append(f"  {mark:4}  {title:8}  {text}")

    python = facts["python"]
    system = python["platform"].split("-with-")[0]
    line("ok", "python", f"{python['version']} on {system}, {python['libc'] or 'unknown libc'}")
    memory = f", {cpu['memory_bytes'] / 2**30:.0f} GiB" if cpu["memory_bytes"] else ""
    line("ok", "cpu", f"{cpu['model']}, {cpu['threads']} thread{'s' if cpu['threads'] != 1 else ''}{memory}")
    has = [machine.FEATURES[name] for name in cpu["features"]]
    lacks = [title for name, title in machine.FEATURES.items() if name not in cpu["features"]]
    features = ", ".join(has) or f"no vector extension that rows use ({cpu['machine']})"
    line("", "", features + (f"; not {', '.join(lacks)}" if has and lacks else ""))
    if facts["gpus"]:
        for gpu in facts["gpus"]:
            built = "kernels built" if gpu["built"] else "no kernels in this library"
            size = f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
            mark = "ok" if gpu["built"] else "--"
            line(mark, "gpu", f"{gpu['name']}, {size}, {gpu['architecture']} ({built})")
        line("", "", f"driver {facts['driver']}")
    else:
        line("--", "gpu", f"none: {facts['no_gpu']}; the CPU runs everything")
    if torch["ok"]:
        cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "CPU only"
        line("ok", "torch", f"{torch['version']}, {cuda}, {torch['threads']} threads")
    else:
        line("!!", "torch", torch["error"])
    if library["ok"]:
        built = [name for name, one in library["architectures"].items() if one["built"]]
        plans = [name for name, one in library["architectures"].items() if one["rows"] and not one["built"]]
        text = f"{library['version']}, {library['operators']} operators, {bytes_text(library['bytes'])}, "
        text += f"kernels for {', '.join(built)}" + (f"; explains {', '.join(plans)} too" if plans else "")
        line("ok", "library", text)
        forced = os.environ.get("EVERGEMM_CPU")
        chosen = library["instruction_set"]
        line("", "", f"CPU rows up to {chosen}" + (f" (EVERGEMM_CPU={forced} limits it)" if forced else ""))
    elif library["path"]:
        why = library["error"] or ("not asked: torch comes first" if not torch["ok"] else "see below")
        line(
            "!!" if torch["ok"] else "--", "library", f"{library['path']} ({bytes_text(library['bytes'] or 0)}): {why}"
        )
    else:
        line("!!" if torch["ok"] else "--", "library", "libevergemm_torch.so is not in the package")

    if facts["rows"]:
        lines += ["", f"what runs here (n = k = {facts['rows'][0]['n']}):"]
        cells = []
        for row in facts["rows"]:
            better = "; ".join(
                f"{len(one['rows'])} more {'rows' if len(one['rows']) > 1 else 'row'}: {one['reason']}"
                for one in row["why_not_better"]
            )
            shown = row["row"] or "none"
            cells.append(
                (row["place"], row["scheme"], row["m"], shown, better or row["error"] or "it is the best there is")
            )
        lines += [
            "  " + text
            for text in table(("on", "scheme", "m", "row", "why not a better one"), cells, (2,)).splitlines()
        ]

    lines.append("")
    for mark, entries in (("problem", facts["problems"]), ("note", facts["notes"])):
        for entry in entries:
            lines += [f"{mark}: {entry['what']}", f"    fix: {entry['fix']}"]
    lines.append("evergemm is ready." if facts["ready"] else "evergemm is not ready: see the problems above.")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the same as JSON, for scripts")


def run(arguments: argparse.Namespace) -> int:
    """Prints the findings; exit code 0 where evergemm is ready to use, else 1."""
    facts = examine()
    print(json.dumps(facts, indent=2) if arguments.json else _show(facts))
    return 0 if facts["ready"] else 1
