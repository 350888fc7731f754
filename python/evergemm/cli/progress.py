# SPDX-License-Identifier: Apache-2.0
"""A progress bar on stderr: one line that is redrawn on a terminal; elsewhere one line when it is done.

Must not go here: results (they go to stdout).
"""

from __future__ import annotations

import sys
import time
from types import TracebackType

_REDRAW_SECONDS = 0.1
_BAR = 30


class Progress:
    """with Progress("encoding fp32", total=3500) as progress: progress.advance(64)"""

    def __init__(self, label: str, total: int, quiet: bool = False):
        self.label, self.total, self.done = label, max(total, 1), 0
        self._live = not quiet and sys.stderr.isatty()
        self._quiet = quiet
        self._start = self._drawn = time.monotonic()

    def __enter__(self) -> Progress:
        self._draw()
        return self

    def advance(self, count: int = 1, label: str | None = None) -> None:
        """`count` more are done; `label` changes the text."""
        self.done += count
        self.label = label or self.label
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._draw()

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        if not self._quiet and kind is None:
            sys.stderr.write(f"{self.label}: {time.monotonic() - self._start:.1f} s\n")
            sys.stderr.flush()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        if not self._live:
            return
        share = min(self.done / self.total, 1.0)
        bar = "#" * round(share * _BAR)
        seconds = self._drawn - self._start
        left = f", {seconds * (1 - share) / share:.0f} s left" if share > 0.05 else ""
        sys.stderr.write(f"\r\x1b[K{self.label} [{bar:.<{_BAR}}] {share:4.0%}{left}")
        sys.stderr.flush()
