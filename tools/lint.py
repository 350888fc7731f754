# SPDX-License-Identifier: Apache-2.0
"""Formatting and Python lint with the pinned tools; `--fix` rewrites instead of refusing.

python tools/lint.py [--fix]
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP = (".h", ".cpp", ".cuh", ".cu")


def main() -> int:
    fix = "--fix" in sys.argv[1:]
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name for name in listing.split("\0") if name and (ROOT / name).is_file()]
    cpp = [name for name in names if name.endswith(CPP)]
    python = [name for name in names if name.endswith(".py")]
    commands = {
        f"clang-format, {len(cpp)} files": ["clang-format", *(["-i"] if fix else ["--dry-run", "-Werror"]), *cpp],
        f"ruff check, {len(python)} files": ["ruff", "check", "--quiet", *(["--fix"] if fix else []), *python],
        f"ruff format, {len(python)} files": ["ruff", "format", "--quiet", *([] if fix else ["--check"]), *python],
    }
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    failed = 0
    for title, command in commands.items():
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
        print(f"{title}: {'clean' if result.returncode == 0 else 'NOT CLEAN (python tools/lint.py --fix)'}")
        if result.returncode != 0:
            failed += 1
            print("\n".join((result.stdout + result.stderr).splitlines()[:60]))
    print(f"lint: {len(commands) - failed} passed, {failed} failed")
    return 1 if failed or not cpp or not python else 0


if __name__ == "__main__":
    sys.exit(main())
