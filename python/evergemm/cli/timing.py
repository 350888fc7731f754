# SPDX-License-Identifier: Apache-2.0
"""Times calls against each other: in one process, in turns, as median and spread over rounds.

Used by bench and demo. Must not go here: what is timed (peers.py), how it is shown (bench.py, charts.py).
"""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_MOST_CALLS = 20_000  # a round
_SLOW_SECONDS = 2.0  # a call that takes longer is timed in one round only


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds a call: median, lowest and highest of the rounds' averages."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / self.median


def _seconds(call: Callable[[int], object], calls: int, start: int) -> float:
    begin = time.perf_counter()
    for index in range(start, start + calls):
        call(index)
    return (time.perf_counter() - begin) / calls


def interleaved(
    calls: Mapping[str, Callable[[int], object]],
    rounds: int = 7,
    seconds: float = 0.1,
    after_round: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Each round times every call for about `seconds`, one after the other, so that a disturbance hits all alike.

    A call is given a number that counts up, so that it can take another set of operands each time.
    """
    counts, slow = {}, set()
    for name, call in calls.items():
        call(0)  # first use: caches, packing, code paths
        once = min(_seconds(call, 1, 1), _seconds(call, 1, 2) if not slow else math.inf)
        counts[name] = max(1, min(_MOST_CALLS, math.ceil(seconds / max(once, 1e-7))))
        if once > _SLOW_SECONDS:
            slow.add(name)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if name in slow and turn > 0:
                continue
            samples[name].append(1e6 * _seconds(call, counts[name], turn * counts[name]))
        after_round()
    return {
        name: Timing(statistics.median(times), min(times), max(times), len(times), counts[name])
        for name, times in samples.items()
    }


def last_level_cache_bytes() -> int:
    """Of the first processor; 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        try:
            text = path.read_text().strip()
            sizes.append(int(text.rstrip("KM")) * (1 << 20 if text.endswith("M") else 1 << 10))
        except (OSError, ValueError):
            continue
    return max(sizes, default=32 << 20)


def read_bandwidth(rounds: int = 5) -> float:
    """Bytes a second that this process reads from memory with all of torch's threads: the best of three ways over a buffer
    of four times the last cache (256 MB to 1 GB)."""
    size = min(max(4 * last_level_cache_bytes(), 256 << 20), 1 << 30)
    # Written, not zero-filled: untouched pages would all be read from one page of zeros.
    buffer = torch.ones(size // 4, dtype=torch.float32)
    half = buffer.numel() // 2
    matrix, vector = buffer.view(-1, 4096), torch.ones(4096)
    calls = {
        "sum": lambda _: buffer.sum(),
        "dot": lambda _: torch.dot(buffer[:half], buffer[half:]),
        "mv": lambda _: torch.mv(matrix, vector),
    }
    times = interleaved(calls, rounds, seconds=0.0)
    return size / (min(timing.low for timing in times.values()) * 1e-6)


def busy_warning() -> str:
    """A line to print where other programs use the processor, or ""."""
    load, threads = os.getloadavg()[0], torch.get_num_threads()
    if load < 0.5 * threads + 0.5:
        return ""
    return f"other programs are running (load {load:.1f} on {threads} threads): times will be longer and scatter"
