# SPDX-License-Identifier: Apache-2.0
"""Fits the costs of the portable rows (src/plan/portable.h) to a sweep of tests/gpu/row_bench.cpp on any GPU; `tune.py portable`
runs it. The model is predict() of src/plan/portable.cpp. Must not go here: timing, Hopper's own rows.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

BYTES_PER_NANOSECOND = 17  # that a multiprocessor draws from memory: kPortableBytesPerNanosecond
Key = tuple[str, int, int, int]  # kind, n, k, m
NAME = re.compile(r"portable_(int8|fp8|fp8promoted)_(\d+)x(\d+)x(\d+)_s(\d+)(?:/(\d+))?$")


@dataclass(frozen=True)
class Tile:
    """A row and into how many parts it splits k, read from a name such as portable_int8_128x128x64_s4/2."""

    row: str
    m: int
    n: int
    parts: int

    @staticmethod
    def named(name: str) -> Tile:
        found = NAME.match(name)
        if found is None:
            raise ValueError(f"tune: expected a name such as portable_int8_128x128x64_s4/2; got {name}")
        return Tile(name.partition("/")[0], int(found[2]), int(found[3]), int(found[6] or 1))


@dataclass(frozen=True)
class Cost:
    resident: int
    alone: float
    shared: float


@dataclass(frozen=True)
class Device:
    """What all rows share: multiprocessors, the nanoseconds of a launch and of a second kernel, bytes of parts a nanosecond."""

    multiprocessors: int
    launch: float = 2500.0
    sum: float = 2200.0
    part_bytes: float = 25.0


def predict(tile: Tile, cost: Cost, device: Device, key: Key) -> float:
    """Nanoseconds."""
    _, n, k, m = key
    tiles = -(-m // tile.m) * -(-n // tile.n)
    blocks = max(1, -(-k // 128))
    share = -(-tiles * tile.parts // device.multiprocessors)
    of_part = -(-blocks // tile.parts) * max(-(-share // cost.resident) * cost.alone, share * cost.shared)
    time = max(of_part, blocks * 128 * (m + n) / (device.multiprocessors * BYTES_PER_NANOSECOND))
    if tile.parts > 1:
        written = 2 * tile.parts * tiles * tile.m * tile.n * 4
        time += device.sum + written / (device.multiprocessors * device.part_bytes)
    return time + device.launch


def error(points: list[tuple[Tile, Key, float]], cost: Cost, device: Device) -> float:
    return sum(
        abs(math.log(predict(tile, cost, device, key) / (microseconds * 1e3))) ** 1.5
        for tile, key, microseconds in points
    )


def fit_row(points: list[tuple[Tile, Key, float]], device: Device) -> Cost:
    """resident, alone, shared: the least error on a grid, refined twice."""
    best = min(
        (
            Cost(resident, alone, alone * ratio)
            for resident in (1, 2, 3, 4)
            for alone in (100 * 1.2**i for i in range(20))
            for ratio in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15)
        ),
        key=lambda cost: error(points, cost, device),
    )
    for step in (1.08, 1.02):
        best = min(
            (
                Cost(best.resident, best.alone * step**i, best.shared * step**j)
                for i in range(-4, 5)
                for j in range(-4, 5)
            ),
            key=lambda cost: error(points, cost, device),
        )
    return best


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def fit(cells: dict[Key, dict[str, float]], kind: str, multiprocessors: int) -> None:
    cells = {key: rows for key, rows in cells.items() if key[0] == kind}
    points: dict[str, list[tuple[Tile, Key, float]]] = {}
    for key, rows in cells.items():
        for name, microseconds in rows.items():
            tile = Tile.named(name)
            points.setdefault(tile.row, []).append((tile, key, microseconds))
    device = Device(multiprocessors)
    costs: dict[str, Cost] = {}
    for _ in range(2):  # costs of rows from what is not split, then what splitting costs, then both once more
        costs = {
            row: fit_row([point for point in of_row if point[0].parts == 1], device) for row, of_row in points.items()
        }
        device = min(
            (
                Device(multiprocessors, launch, total, part_bytes)
                for launch in (1500, 2000, 2500, 3000, 3500)
                for total in (1000, 1500, 2000, 2500, 3000, 4000)
                for part_bytes in (8, 12, 16, 20, 25, 30, 40)
            ),
            key=lambda tried: sum(error(of_row, costs[row], tried) for row, of_row in points.items()),
        )
    print(f"{device}")
    for row, cost in costs.items():
        tile = Tile.named(row)
        print(f"{row:36s} m {tile.m:3d} n {tile.n:3d}: {cost.resident}, {cost.alone:.0f}, {cost.shared:.0f}")
    losses = []
    for key, rows in cells.items():
        chosen = min(rows, key=lambda name: predict(Tile.named(name), costs[Tile.named(name).row], device, key))
        best = min(rows, key=rows.__getitem__)
        losses.append((rows[chosen] / rows[best], key, chosen, best))
    for loss, key, chosen, best in sorted(losses, reverse=True)[:8]:
        print(f"  {loss:.2f} at m {key[3]} n {key[1]} k {key[2]}: {chosen} for {best}")
    print(f"chosen / best {geomean([loss for loss, *_ in losses]):.4f} over {len(losses)} cells")
