# SPDX-License-Identifier: Apache-2.0
"""The command line: `evergemm doctor | explain | bench | demo`, also `python -m evergemm`.

Each command is a module here with `add_arguments(parser)` and `run(arguments) -> exit code`, imported when it is asked for:
doctor must run where torch is broken or missing, so nothing here imports torch. Must not go here: what commands do.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import evergemm

# Command -> its line in --help.
COMMANDS = {
    "doctor": "what this machine has, what evergemm runs on it, and what is missing",
    "explain": "what would run for a problem, on any architecture, and why",
    "bench": "time the operators against torch's, checked first",
    "demo": "quantize a real model to int8 and fp8 and measure what that costs and gains",
}


def _parser(command: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="evergemm", description="Quantized GEMM kernels for PyTorch.")
    parsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, line in COMMANDS.items():
        subparser = parsers.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == command:  # the others' modules stay unloaded
            importlib.import_module(f".{name}", __name__).add_arguments(subparser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code: 0, 1 where what was asked for failed, 2 for wrong arguments."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((word for word in words if word in COMMANDS), None)
    parsed = _parser(command).parse_args(words)
    try:
        if parsed.command != "doctor":  # it says what is wrong where this would fail
            evergemm._load()
        return importlib.import_module(f".{parsed.command}", __name__).run(parsed)
    except BrokenPipeError:  # `evergemm explain ... | head` closed the pipe: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return 130
    except ImportError as error:
        sys.stderr.write(f"evergemm: {error}\n`evergemm doctor` says what is missing here.\n")
        return 1
    except (RuntimeError, ValueError, OSError) as error:
        sys.stderr.write(f"evergemm: {error}\n")
        return 1
