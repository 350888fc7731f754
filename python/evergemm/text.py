# SPDX-License-Identifier: Apache-2.0
"""Plain text for people: aligned tables, byte counts, times. Imports nothing but the standard library.

Used by reports, explanations and the command line. Must not go here: anything that knows torch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """Columns as wide as their widest cell, two spaces apart, a line under the header; columns in `right` end flush."""
    lines = [list(map(str, header)), *(list(map(str, row)) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]

    def one(cells: Sequence[str]) -> str:
        return "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    return "\n".join([one(lines[0]), "  ".join("-" * width for width in widths), *map(one, lines[1:])])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> str:
    """The same as Markdown, for docs."""
    rule = ["---:" if column in right else "---" for column in range(len(header))]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in [header, rule, *rows])


def bytes_text(count: float) -> str:
    """ "10.7 MB": powers of 1000, three figures."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.3g} {unit}"


def microseconds_text(microseconds: float) -> str:
    """ "11.5 us", "3.42 ms", "1.2 s": the unit that leaves one to three digits before the point."""
    unit, size = ("us", 1) if microseconds < 1e3 else ("ms", 1e3) if microseconds < 1e6 else ("s", 1e6)
    value = microseconds / size
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"
