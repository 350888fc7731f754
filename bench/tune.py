# SPDX-License-Identifier: Apache-2.0
"""Fits the costs of the Hopper table (src/plan/sm90.h) to sweeps of tests/gpu/row_bench.cpp and says what a choice loses.

    row_bench cells.tsv rows.tsv "int8,fast,block" "256,512,1024,4096" "6144x4096,7168x8192"      (on the device)
    python bench/tune.py fit rows.tsv [rows.tsv ...] --kind fast [--hold-out 3]
    python bench/tune.py judge rows.tsv [rows.tsv ...]                                             (asks evergemm.explain)
    python bench/tune.py portable rows.tsv [rows.tsv ...] --kind int8 --multiprocessors 108        (row_bench ... portable)

`fit` prints TileCost numbers for every row and, with --hold-out N, what choosing by them loses on every Nth shape when it was
not fitted. `judge` prints what the library's own choice loses against the best row, by kind and range of m. `portable` prints
PortableCost numbers (src/plan/portable.h) for the card that the sweep was taken on, whatever GPU it is. The table is
edited by hand from this. Must not go here: timing.
"""

from __future__ import annotations

import argparse
import collections
import csv
import math
import re
from collections.abc import Iterable

import portable_costs

Key = tuple[str, int, int, int]  # kind, n, k, m
RESIDENT = {1: 132, 2: 66, 3: 39, 4: 30}  # clusters of that size that an H100 holds at a time, of one that holds few
BYTES_PER_MICROSECOND = 2.8e6
LAUNCH_MICROSECONDS = 3.0
FEW_TOKENS, MIDDLE_TOKENS = 128, 768
SINGLE_WAVE = 1.2  # tenths_in_one_wave() of sm90.h
RATE = 8192 * 1.6e3  # operations a microsecond of one multiprocessor's tensor cores


def read(paths: Iterable[str]) -> dict[Key, dict[str, float]]:
    """Microseconds by cell and row, of the first file that has them."""
    cells: dict[Key, dict[str, float]] = collections.defaultdict(dict)
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in csv.DictReader(file, delimiter="\t"):
                key = (line["kind"], int(line["n"]), int(line["k"]), int(line["m"]))
                cells[key].setdefault(line["row"], float(line["us"]))
    return cells


class Row:
    """A row's tile, read from its name."""

    def __init__(self, name: str):
        parts = re.match(r"sm90_\w+?_(\d+)x(\d+)x\d+_c(\d)x(\d)(?:_split(\d))?_(\w+?)(_swap)?$", name)
        if parts is None:
            raise ValueError(f"tune: expected a name such as sm90_fp8_128x256x128_c2x1_cooperative; got {name}")
        self.m, self.n, self.cluster_m, self.cluster_n = (int(parts[i]) for i in range(1, 5))
        self.split, self.pingpong, self.swapped = int(parts[5] or 1), parts[6] == "pingpong", bool(parts[7])

    def reaches(self, m: int) -> bool:
        """Small tiles are timed, and fitted, for middle token counts only."""
        return m <= MIDDLE_TOKENS or self.m * self.n > 64 * 128

    def waves(self, m: int, n: int) -> int:
        rows, columns = (n, m) if self.swapped else (m, n)
        tiles = -(-rows // (self.m * self.cluster_m)) * -(-columns // (self.n * self.cluster_n))
        return -(-tiles // RESIDENT[self.cluster_m * self.cluster_n * self.split])

    def microseconds(self, cost: tuple[float, float], key: Key) -> float:
        _, n, k, m = key
        block, tile = cost
        waves = self.waves(m, n)
        if waves == 1 and self.pingpong and self.m >= 128:
            block *= SINGLE_WAVE
        multiplying = waves * (-(-k // 128) * block + tile)
        return LAUNCH_MICROSECONDS + max(multiplying, (n * k + m * k + 2 * m * n) / BYTES_PER_MICROSECOND)


def fit(cells: dict[Key, dict[str, float]], keys: list[Key]) -> dict[str, tuple[float, float]]:
    """(block, tile) in microseconds of every row, the least sum of |log error|^1.5 on a grid."""
    samples = collections.defaultdict(list)
    for key in keys:
        for name, time in cells[key].items():
            if Row(name).reaches(key[3]):
                samples[name].append((key, time))
    costs = {}
    for name, points in samples.items():
        row = Row(name)
        full_rate = row.m * row.n * 128 * 2 / RATE
        grid = [(full_rate * 0.9 * 1.025**i, tile / 4) for i in range(45) for tile in range(21)]
        costs[name] = min(
            grid,
            key=lambda cost: sum(abs(math.log(row.microseconds(cost, key) / time)) ** 1.5 for key, time in points),
        )
    return costs


def geomean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def loss(cells, keys, costs) -> float:
    """Time of the chosen row over the best row's, geometric mean."""
    ratios = []
    for key in keys:
        usable = {name: t for name, t in cells[key].items() if name in costs and Row(name).reaches(key[3])}
        chosen = min(usable, key=lambda name: Row(name).microseconds(costs[name], key))
        ratios.append(usable[chosen] / min(cells[key].values()))
    return geomean(ratios)


def run_fit(arguments) -> None:
    cells = read(arguments.files)
    keys = [key for key in cells if key[0] == arguments.kind and key[3] > FEW_TOKENS]
    if arguments.hold_out:
        shapes = sorted({key[1:3] for key in keys})
        held = set(shapes[:: arguments.hold_out])
        costs = fit(cells, [key for key in keys if key[1:3] not in held])
        print(f"held out: chosen / best {loss(cells, [key for key in keys if key[1:3] in held], costs):.4f}")
    costs = fit(cells, keys)
    print(f"fitted:   chosen / best {loss(cells, keys, costs):.4f}")
    for name, (block, tile) in costs.items():
        print(f"{name:48s} block_ns {block * 1e3:4.0f} tile_ns {tile * 1e3:4.0f}")


def run_judge(arguments) -> None:
    import evergemm

    options = {
        "int8": {"dtype": "int8"},
        "fast": {"dtype": "fp8"},
        "promoted": {"dtype": "fp8", "fast_accumulation": False},
        "block": {"dtype": "fp8", "scales": "blockwise"},
    }
    groups = collections.defaultdict(list)
    for (kind, n, k, m), times in read(arguments.files).items():
        row = evergemm.explain("scaled_mm", m=m, n=n, k=k, arch="sm90a", **options[kind]).row
        if row in times:
            span = "m <= 64" if m <= 64 else "m <= 256" if m <= 256 else "m > 256"
            groups[kind, span].append((times[row] / min(times.values()), f"{m}x{n}x{k} {row}"))
    for (kind, span), losses in sorted(groups.items()):
        worst = max(losses)
        mean = geomean([ratio for ratio, _ in losses])
        print(
            f"{kind:8s} {span:8s} {len(losses):3d} cells: chosen / best {mean:.4f}, worst {worst[0]:.2f} at {worst[1]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("fit")
    command.add_argument("files", nargs="+")
    command.add_argument("--kind", required=True, choices=["int8", "fast", "promoted", "block"])
    command.add_argument("--hold-out", type=int, default=0, metavar="N")
    command.set_defaults(run=run_fit)
    command = commands.add_parser("judge")
    command.add_argument("files", nargs="+")
    command.set_defaults(run=run_judge)
    command = commands.add_parser("portable")
    command.add_argument("files", nargs="+")
    command.add_argument("--kind", required=True, choices=["int8", "fast", "promoted", "block"])
    command.add_argument("--multiprocessors", type=int, required=True, help="of the card that the sweep was taken on")
    command.set_defaults(run=lambda given: portable_costs.fit(read(given.files), given.kind, given.multiprocessors))
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
