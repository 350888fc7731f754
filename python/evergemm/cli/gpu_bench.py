# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench` on a GPU: time on the device by replayed graphs, beside torch's products; host time of eager calls.

One process; implementations take turns; weights rotate past three times the L2; every implementation's result is checked before
it is timed. evergemm is timed twice: alone, each kernel after the one before it, which is what ratios and shares are taken
from, and overlapping, as its operators run in a stream of other kernels. `--gpu-report` measures the GPU part of
docs/performance.md and writes it there. Must not go here: the CPU's candidates and clocks (peers.py, timing.py).
"""

from __future__ import annotations

import csv
import dataclasses
import datetime
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from .. import ops
from ..explanation import Explanation, architecture_of, explain
from ..text import markdown_table, microseconds_text, table
from . import deep_gemm_peer

OURS, OVERLAPPING = "evergemm", "evergemm, overlapping"
SCHEMES = {
    # name -> (dtype, scales) as explain() takes them
    "int8": ("int8", "rowwise"),
    "fp8": ("fp8", "rowwise"),
    "fp8-tensor": ("fp8", "tensorwise"),
    "fp8-block": ("fp8", "blockwise"),
}
REPORT_SHAPES = ("L1", "L3", "L5", "L7", "D1", "D2", "D4")
REPORT_ROWS = (1, 16, 64, 128, 256, 300, 1024, 4096)  # 300 fills whole tiles of no size
_BLOCK = 128
_ROTATED_BYTES = 150 << 20
_MOST_SETS = 16
_CHECKED_ROWS, _CHECKED_COLUMNS = 16, 512
_ERROR_LIMIT = 0.02  # of the norm of a sample: far above rounding, far below a lost block of k or a wrong scale
_EAGER_CALLS, _EAGER_ROUNDS = 50, 9
_EAGER_MOST_US = 200.0  # of the device: longer calls fill its queue, and say nothing of the host
_QUANTIZED_ROWS, _QUANTIZED_COLUMNS = 4096, 8192
_WARM_SECONDS = 0.1  # clocks settle under power before large problems are timed
_CHAIN_SCHEMES = ("int8", "fp8", "fp8-block")
_CHAIN_ROWS = (1, 16, 64, 256, 1024)
_ORDER_ROWS = (1, 16, 32, 64, 128)

Call = Callable[[int], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Operands on the device: a [m, k], the same values as several weights [n, k], scales float32."""

    shape: object  # bench.Shape
    scheme: str
    m: int
    a: torch.Tensor
    weights: list[torch.Tensor]
    scale_a: torch.Tensor
    scale_b: torch.Tensor

    def __str__(self) -> str:
        return f"{self.shape.id} {self.scheme} m={self.m} n={self.shape.n} k={self.shape.k}"


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One implementation on one problem: microseconds of the rounds on the device, microseconds of an eager call."""

    shape: object
    scheme: str
    m: int
    implementation: str
    row: str  # evergemm's; "" for peers
    rounds: tuple[float, ...]
    host: float  # NaN where it was not measured
    roofline: float | None  # the least microseconds that this device needs; None where its rates are not known

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    @property
    def share(self) -> float:
        return math.nan if self.roofline is None else self.roofline / self.median


# ---- operands and candidates -----------------------------------------------------------------------------------------------


def make_weights(shape, scheme: str, seed: int = 0) -> list[torch.Tensor]:
    """Random codes over the whole range; copies of them, enough to come from memory."""
    generator = torch.Generator("cuda").manual_seed(seed)
    if scheme == "int8":
        weight = torch.randint(-128, 128, (shape.n, shape.k), dtype=torch.int8, device="cuda", generator=generator)
    else:
        weight = _random_float8((shape.n, shape.k), generator)
    sets = min(_MOST_SETS, max(2, math.ceil(_ROTATED_BYTES / weight.nbytes)))
    return [weight] + [weight.clone() for _ in range(sets - 1)]


def _random_float8(size: tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(size, device="cuda", dtype=torch.bfloat16, generator=generator)
    return values.mul_(64).clamp_(-448, 448).to(torch.float8_e4m3fn)


def make_problem(shape, scheme: str, m: int, weights: list[torch.Tensor], seed: int = 1) -> Problem:
    """Activations and scales for these weights. Block scales in the layout that torch takes, too."""
    generator = torch.Generator("cuda").manual_seed(seed)
    n, k = shape.n, shape.k

    def scales(*size: int) -> torch.Tensor:
        return torch.rand(size, device="cuda", generator=generator) * 1e-2 + 1e-3

    if scheme == "int8":
        a = torch.randint(-128, 128, (m, k), dtype=torch.int8, device="cuda", generator=generator)
    else:
        a = _random_float8((m, k), generator)
    if scheme == "fp8-tensor":
        scale_a, scale_b = scales(1).view(()), scales(1).view(())
    elif scheme == "fp8-block":
        blocks = -(-k // _BLOCK)
        scale_a = scales(blocks, m).t()
        scale_b = scales(-(-n // _BLOCK), -(-blocks // 4) * 4)[:, :blocks].t()
    else:
        scale_a, scale_b = scales(m, 1), scales(1, n)
    return Problem(shape, scheme, m, a, weights, scale_a, scale_b)


def implementations(problem: Problem, row_index: int) -> dict[str, Call]:
    """Name -> function of a call number. Peers that this torch does not have, or that refuse the problem, are absent."""
    a, scale_a, scale_b = problem.a, problem.scale_a, problem.scale_b
    weights = [weight.t() for weight in problem.weights]
    count = len(weights)
    forced = torch.ops.evergemm._scaled_mm_row.default
    bfloat16 = torch.bfloat16
    found: dict[str, Call] = {
        OURS: lambda i: forced(
            a, weights[i % count], scale_a, scale_b, None, None, None, bfloat16, True, False, row_index, False
        ),
        OVERLAPPING: lambda i: ops.scaled_mm(a, weights[i % count], scale_a, scale_b),
    }

    def torch_scaled_mm(scale_of_b: torch.Tensor, fast: bool) -> Call:
        return lambda i: torch._scaled_mm(
            a, weights[i % count], scale_a, scale_of_b, out_dtype=bfloat16, use_fast_accum=fast
        )

    candidates: dict[str, list[Call]] = {}
    if problem.scheme == "int8":
        candidates["torch._int_mm + dequantize"] = [
            lambda i: torch._int_mm(a, weights[i % count]).to(torch.float32).mul_(scale_b).mul_(scale_a).to(bfloat16)
        ]
        candidates["torch._int_mm alone"] = [lambda i: torch._int_mm(a, weights[i % count])]
    elif problem.scheme == "fp8-block":
        tight = scale_b.t().contiguous().t()  # torch's releases differ in the pitch that they take
        candidates["torch._scaled_mm"] = [torch_scaled_mm(scale_b, False), torch_scaled_mm(tight, False)]
        candidates[deep_gemm_peer.NAME] = deep_gemm_peer.dense(a, problem.weights, scale_a, scale_b)
    else:
        candidates["torch._scaled_mm"] = [torch_scaled_mm(scale_b, True)]
    for name, forms in candidates.items():
        for call in forms:
            try:
                call(0)
                torch.cuda.synchronize()
            except Exception:
                continue  # a peer that is not there is no failure of ours
            found[name] = call
            break
    return found


# ---- checks ------------------------------------------------------------------------------------------------------------


def _some_rows(codes: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return codes.view(torch.uint8)[rows].view(codes.dtype).to(torch.float64)


def check(problem: Problem, name: str, result: torch.Tensor) -> None:
    """Raises RuntimeError where a result is wrong on a sample of rows and columns: evergemm's int8 bit for bit, others by norm."""
    if name.endswith("alone"):
        return  # another result: sums without scales
    n, k = problem.shape.n, problem.shape.k
    rows = torch.linspace(0, problem.m - 1, min(problem.m, _CHECKED_ROWS)).round().long().unique().cuda()
    columns = torch.linspace(0, n - 1, min(n, _CHECKED_COLUMNS)).round().long().unique().cuda()
    a, b = _some_rows(problem.a, rows), _some_rows(problem.weights[0], columns).t()
    got = result[rows][:, columns]
    if problem.scheme == "fp8-block":
        a *= problem.scale_a[rows].repeat_interleave(_BLOCK, 1)[:, :k]
        b *= problem.scale_b.repeat_interleave(_BLOCK, 0)[:k].repeat_interleave(_BLOCK, 1)[:, columns]
        scale_a = scale_b = torch.ones((), device="cuda")
    elif problem.scheme == "fp8-tensor":
        scale_a, scale_b = problem.scale_a, problem.scale_b
    else:
        scale_a, scale_b = problem.scale_a[rows], problem.scale_b[:, columns]
    product = a @ b
    if problem.scheme == "int8" and name.startswith(OURS):
        wanted = product.to(torch.float32).mul_(scale_b).mul_(scale_a).to(result.dtype)
        if not torch.equal(got, wanted):
            raise RuntimeError(
                f"bench: expected the exact product; got {int((got != wanted).sum())} wrong values; {problem}, {name}."
            )
        return
    exact = product * scale_b * scale_a
    error = float((got.to(torch.float64) - exact).norm() / exact.norm())
    if not error < _ERROR_LIMIT:
        raise RuntimeError(
            f"bench: expected an error below {_ERROR_LIMIT:.0%} of the product; got {error:.2%}; {problem}, {name}."
        )


# ---- clocks ------------------------------------------------------------------------------------------------------------


class Replay:
    """A graph of one call for each weight, and its time."""

    def __init__(self, call: Call, sets: int):
        self._sets = sets
        self._graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call(0)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self._graph):
            for index in range(sets):
                call(index)
        self._begin, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def microseconds(self, times: int) -> float:
        """A call, over `times` replays."""
        self._begin.record()
        for _ in range(times):
            self._graph.replay()
        self._end.record()
        self._end.synchronize()
        return 1e3 * self._begin.elapsed_time(self._end) / (times * self._sets)

    def times_for(self, seconds: float) -> int:
        return max(1, round(1e6 * seconds / (self.microseconds(1) * self._sets)))


def in_turns(clocks: Mapping[str, Replay], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of a call by name and round: every round asks each clock once, for about `seconds`. A clock is a Replay or
    has its two methods."""
    times = {name: clock.times_for(seconds) for name, clock in clocks.items()}
    samples: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(rounds):
        for name, clock in clocks.items():
            samples[name].append(clock.microseconds(times[name]))
    return samples


def eager_microseconds(call: Call) -> float:
    """Host time of a call while the device's queue has room: the best round."""
    best = math.inf
    for _ in range(_EAGER_ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for index in range(_EAGER_CALLS):
            call(index)
        best = min(best, time.perf_counter() - begin)
    torch.cuda.synchronize()
    return 1e6 * best / _EAGER_CALLS


def plan_of(scheme: str, m: int, n: int, k: int, deterministic: bool = False) -> Explanation:
    """What the library chooses on the current GPU."""
    dtype, scales = SCHEMES[scheme]
    architecture = architecture_of(torch.device("cuda"))
    return explain(m=m, n=n, k=k, dtype=dtype, scales=scales, arch=architecture, deterministic=deterministic)


def measure_problem(problem: Problem, rounds: int, seconds: float) -> list[Measurement]:
    """Every implementation; RuntimeError where a result is wrong."""
    plan = plan_of(problem.scheme, problem.m, problem.shape.n, problem.shape.k)
    calls = implementations(problem, plan.json["row_index"])
    for name, call in calls.items():
        check(problem, name, call(0))
    replays = {name: Replay(call, len(problem.weights)) for name, call in calls.items()}
    if problem.m >= 1024:
        first = next(iter(replays.values()))
        first.microseconds(first.times_for(_WARM_SECONDS))
    samples = in_turns(replays, rounds, seconds)
    return [
        Measurement(
            problem.shape,
            problem.scheme,
            problem.m,
            name,
            plan.row if name.startswith(OURS) else "",
            tuple(samples[name]),
            eager_microseconds(call) if statistics.median(samples[name]) < _EAGER_MOST_US else math.nan,
            plan.roofline_microseconds,
        )
        for name, call in calls.items()
    ]


def measure(
    shapes: Sequence, rows: Sequence[int], schemes: Sequence[str], rounds: int, seconds: float, quiet: bool = False
) -> list[Measurement]:
    """Every implementation on every problem."""
    from .progress import Progress

    found: list[Measurement] = []
    count = len(shapes) * len(schemes) * len(rows)
    with torch.inference_mode(), Progress("timing", count, quiet) as progress:
        for shape in shapes:
            weights: dict[str, list[torch.Tensor]] = {}
            for scheme in schemes:
                kind = "int8" if scheme == "int8" else "fp8"
                if kind not in weights:
                    weights.clear()  # one kind at a time: large models' weights fill the device
                    weights[kind] = make_weights(shape, scheme)
                for m in rows:
                    progress.advance(0, f"timing {shape.id} {scheme} m={m}")
                    found += measure_problem(make_problem(shape, scheme, m, weights[kind]), rounds, seconds)
                    progress.advance()
        progress.advance(0, f"timing {count} problems, {rounds} rounds")
    return found


# ---- what is shown -----------------------------------------------------------------------------------------------------


def device_text() -> str:
    """The device and what runs on it."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{properties.name} ({properties.multi_processor_count} multiprocessors), torch {torch.__version__}"


def grouped(measurements: Sequence[Measurement]) -> dict[tuple, dict[str, Measurement]]:
    """By problem, then by implementation."""
    groups: dict[tuple, dict[str, Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.shape, one.scheme, one.m), {})[one.implementation] = one
    return groups


def best_peer(found: dict[str, Measurement]) -> Measurement | None:
    """The fastest of the peers that do the same work."""
    peers = [one for name, one in found.items() if not name.startswith(OURS) and not name.endswith("alone")]
    return min(peers, key=lambda one: one.median, default=None)


def results_table(measurements: Sequence[Measurement]) -> str:
    """A line a problem: evergemm's time and share of the roofline, each peer's time over it, host times."""
    peers = list(dict.fromkeys(one.implementation for one in measurements if not one.implementation.startswith(OURS)))
    lines = []
    for (shape, scheme, m), found in grouped(measurements).items():
        ours, overlapping, best = found[OURS], found[OVERLAPPING], best_peer(found)
        lines.append(
            (
                shape.id,
                f"{shape.n} x {shape.k}",
                scheme,
                m,
                microseconds_text(ours.median),
                f"{(max(ours.rounds) - min(ours.rounds)) / ours.median:.0%}",
                "" if ours.roofline is None else f"{ours.share:.3f}",
                "" if ours.roofline is None else f"{overlapping.share:.3f}",
                *(f"{found[peer].median / ours.median:.2f}x" if peer in found else "" for peer in peers),
                _digits(overlapping.host),
                _digits(best.host if best else math.nan),
                ours.row,
            )
        )
    header = ("shape", "n x k", "scheme", "m", "time", "spread", "share", "overlapping", *peers)
    header += ("host us", "peer's", "row")
    return table(header, lines, right=range(3, len(header) - 1))


def write_csv(path: Path, measurements: Sequence[Measurement]) -> None:
    """One line for each implementation and problem; microseconds."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            "shape,layer,n,k,m,scheme,implementation,row,median_us,low_us,high_us,rounds,host_us,roofline_us".split(",")
        )
        for one in measurements:
            writer.writerow(
                [
                    one.shape.id,
                    one.shape.layer,
                    one.shape.n,
                    one.shape.k,
                    one.m,
                    one.scheme,
                    one.implementation,
                    one.row,
                ]
                + [f"{value:.3f}" for value in (one.median, min(one.rounds), max(one.rounds))]
                + [len(one.rounds), _digits(one.host, 2), "" if one.roofline is None else f"{one.roofline:.3f}"]
            )


def _digits(value: float, digits: int = 1) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values))) if values else math.nan


def curves(measurements: Sequence[Measurement]) -> list[tuple[str, str, list[tuple[int, float]]]]:
    """(scheme, implementation, [(m, geometric mean over the shapes of the share of the roofline)]) for the picture."""
    points: dict[tuple[str, str], dict[int, list[float]]] = {}
    for one in measurements:
        if one.roofline is not None:
            points.setdefault((one.scheme, one.implementation), {}).setdefault(one.m, []).append(one.share)
    return [
        (scheme, name, [(m, _geomean(shares)) for m, shares in sorted(by_rows.items())])
        for (scheme, name), by_rows in points.items()
    ]


def ratios(measurements: Sequence[Measurement]) -> list[tuple[str, list[tuple[int, float]]]]:
    """(scheme, [(m, geometric mean over the shapes of the best peer's time over evergemm's)]) for the picture."""
    points: dict[str, dict[int, list[float]]] = {}
    for (_, scheme, m), found in grouped(measurements).items():
        peer = best_peer(found)
        if peer is not None:
            points.setdefault(scheme, {}).setdefault(m, []).append(peer.median / found[OURS].median)
    return [(scheme, [(m, _geomean(values)) for m, values in sorted(rows.items())]) for scheme, rows in points.items()]


def draw_roofline(path: Path, measurements: Sequence[Measurement], names: Sequence[str]) -> bool:
    """Operations a second over operations a byte; False where the device's rates are not known and nothing is drawn."""
    from . import charts

    bandwidth, points = 0.0, []
    for one in measurements:
        if one.implementation == OVERLAPPING or one.implementation.endswith("alone"):
            continue
        plan = plan_of(one.scheme, one.m, one.shape.n, one.shape.k)
        if plan.roofline_microseconds is None:
            return False
        bandwidth = max(bandwidth, plan.bytes / (plan.roofline_microseconds * 1e-6))  # of what is bound by memory
        rate = plan.operations / (one.median * 1e-6)
        points.append((one.scheme, one.implementation, plan.operations / plan.bytes, rate))
    charts.roofline(path, points, bandwidth, title="Scaled products on " + ", ".join(names), subtitle=device_text())
    return True


def draw(path: Path, measurements: Sequence[Measurement], names: Sequence[str]) -> None:
    from . import charts

    charts.gpu(
        path,
        [one for one in curves(measurements) if one[1] != OVERLAPPING and not one[1].endswith("alone")],
        ratios(measurements),
        title="Scaled products on " + ", ".join(names),
        subtitle=f"{device_text()}; geometric means over the shapes; graph replay, weights from memory",
    )


# ---- chains: each kernel reads what the one before it wrote --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chain:
    """Quantize, product [n, k], quantize, product [k, n], and so on, over rotated weights."""

    shape: object
    scheme: str
    m: int
    waiting: tuple[
        float, ...
    ]  # microseconds of the four kernels where products start after the quantizer's end, by round
    overlapping: tuple[float, ...]  # and where they start while it ends, as the operators run
    roofline: float | None


def _chain_weights(shape, scheme: str, sets: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """[n, k] and [k, n], as often as it takes for them to come from memory."""
    first = make_weights(shape, scheme)[0]
    second = make_weights(dataclasses.replace(shape, n=shape.k, k=shape.n), scheme)[0]
    return [(first.clone(), second.clone()) for _ in range(sets)]


def measure_chain(shape, scheme: str, m: int, weights: Sequence, rounds: int, seconds: float) -> Chain:
    """RuntimeError where both ways do not have the same bits."""
    n, k = shape.n, shape.k
    plans = [plan_of(scheme, m, n, k), plan_of(scheme, m, k, n)]
    q_dtype = torch.int8 if scheme == "int8" else torch.float8_e4m3fn
    forced = torch.ops.evergemm._scaled_mm_row.default

    def quantize(x: torch.Tensor):
        if scheme == "fp8-block":
            return ops.quantize_per_group(x, _BLOCK, q_dtype, column_major_scales=True)
        return ops.quantize_per_token(x, q_dtype)

    def scale_of(rows: int, depth: int) -> torch.Tensor:  # keeps the values of every step about as large
        shape_of_scale = (-(-depth // _BLOCK), -(-rows // _BLOCK)) if scheme == "fp8-block" else (1, rows)
        return torch.full(shape_of_scale, 1 / (64 * math.sqrt(depth)), device="cuda")

    scale_of_b = [scale_of(n, k), scale_of(k, n)]

    start = torch.randn(
        m, k, device="cuda", dtype=torch.bfloat16, generator=torch.Generator("cuda").manual_seed(3)
    )  # every replay reads it: it outlives the graphs

    def chain(overlap: bool) -> Call:
        before = [start]

        def call(i: int) -> torch.Tensor:
            x = start if i == 0 else before[0]
            for which, weight in enumerate(weights[i % len(weights)]):
                q, scale = quantize(x)
                row = plans[which].json["row_index"]
                x = forced(
                    q, weight.t(), scale, scale_of_b[which], None, None, None, torch.bfloat16, True, False, row, overlap
                )
            before[0] = x
            return x

        return call

    results = [chain(overlap)(0) for overlap in (False, True)]
    if not torch.equal(*results) or not bool(results[0].isfinite().all()):
        raise RuntimeError(
            f"bench: expected the same finite bits with and without overlap; got others; {shape.id} m={m}."
        )
    replays = [Replay(chain(overlap), len(weights)) for overlap in (False, True)]
    times = replays[0].times_for(seconds)
    samples: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for replay, kept in zip(replays, samples, strict=True):
            kept.append(replay.microseconds(times))
    least = [plan.roofline_microseconds for plan in plans]
    roofline = None
    if None not in least:
        bandwidth = max(plan.bytes / plan.roofline_microseconds for plan in plans)
        roofline = sum(least) + 3 * m * (n + k) / bandwidth  # quantizers: 2 bytes read and 1 written an element
    return Chain(shape, scheme, m, tuple(samples[0]), tuple(samples[1]), roofline)


def chain_lines(shapes: Sequence, rounds: int, seconds: float) -> list[tuple]:
    """By scheme and m, over the shapes: geometric means of shares and of what overlapping gains."""
    found: dict[tuple[str, int], list[Chain]] = {}
    for shape in shapes:
        for scheme in _CHAIN_SCHEMES:
            weights = _chain_weights(shape, scheme, min(8, max(2, math.ceil(_ROTATED_BYTES / (2 * shape.n * shape.k)))))
            for m in _CHAIN_ROWS:
                found.setdefault((scheme, m), []).append(measure_chain(shape, scheme, m, weights, rounds, seconds))
    lines = []
    for scheme in _CHAIN_SCHEMES:
        for m in _CHAIN_ROWS:
            chains = found[scheme, m]
            waiting = [statistics.median(chain.waiting) for chain in chains]
            overlapping = [statistics.median(chain.overlapping) for chain in chains]
            gains = [one / other for one, other in zip(waiting, overlapping, strict=True)]
            shares = [
                [_geomean([chain.roofline / us for chain, us in zip(chains, times, strict=True)])]
                if all(chain.roofline is not None for chain in chains)
                else [math.nan]
                for times in (waiting, overlapping)
            ]
            lines.append(
                (
                    scheme,
                    m,
                    _digits(shares[0][0], 3),
                    _digits(shares[1][0], 3),
                    f"{_geomean(gains):.2f}",
                    f"{min(gains):.2f}",
                )
            )
    return lines


# ---- one order of accumulation -------------------------------------------------------------------------------------------


def order_lines(shapes: Sequence, rounds: int, seconds: float) -> list[tuple]:
    """fp8 products for which deterministic=True takes another row: microseconds without and with it, in turns."""
    forced = torch.ops.evergemm._scaled_mm_row.default
    lines = []
    for shape in shapes:
        for scheme in ("fp8", "fp8-block"):
            weights: list[torch.Tensor] = []
            for m in _ORDER_ROWS:
                plans = [plan_of(scheme, m, shape.n, shape.k, one_order) for one_order in (False, True)]
                if plans[0].row == plans[1].row:
                    continue
                weights = weights or make_weights(shape, scheme)
                problem = make_problem(shape, scheme, m, weights)

                def product(plan: Explanation, problem: Problem = problem) -> Call:
                    row, count = plan.json["row_index"], len(problem.weights)
                    return lambda i: forced(
                        problem.a,
                        problem.weights[i % count].t(),
                        problem.scale_a,
                        problem.scale_b,
                        *(None, None, None, torch.bfloat16, True, False, row, False),
                    )

                calls = [product(plan) for plan in plans]
                for call in calls:
                    check(problem, OURS, call(0))
                replays = [Replay(call, len(weights)) for call in calls]
                times = replays[0].times_for(seconds)
                samples = [[replay.microseconds(times) for replay in replays] for _ in range(rounds)]
                default, one_order = (statistics.median(values) for values in zip(*samples, strict=True))
                lines.append(
                    (
                        f"{shape.n} x {shape.k}",
                        scheme,
                        m,
                        f"{default:.2f}",
                        f"{one_order:.2f}",
                        f"{one_order / default:.2f}",
                        f"`{plans[0].row}`",
                        f"`{plans[1].row}`",
                    )
                )
    return lines


# ---- the report of docs/performance.md ---------------------------------------------------------------------------------


def copy_bandwidth(rounds: int = 5) -> float:
    """Bytes a second, read and written, of a copy on the device of as many bytes as a quantizer's input has."""
    sets, size = 4, 2 * _QUANTIZED_ROWS * _QUANTIZED_COLUMNS
    sources = [torch.empty(size, dtype=torch.uint8, device="cuda").fill_(1) for _ in range(sets)]
    targets = [torch.empty_like(source) for source in sources]
    replay = Replay(lambda i: targets[i % sets].copy_(sources[i % sets]), sets)
    times = replay.times_for(0.01)
    return 2 * size / (statistics.median(replay.microseconds(times) for _ in range(rounds)) * 1e-6)


def quantizer_lines(bandwidth: float, rounds: int, seconds: float) -> list[tuple]:
    """Each quantizer at 4096 x 8192 and 1 x 8192 bfloat16: microseconds, share of the copy's bandwidth."""
    rows, columns, sets = _QUANTIZED_ROWS, _QUANTIZED_COLUMNS, 4
    fp8 = torch.float8_e4m3fn
    weight = torch.randn(columns, device="cuda", dtype=torch.bfloat16)
    one = torch.full((1,), 0.01, device="cuda")
    # name, bytes an element of the result beside scales, whether the input is twice as wide, call
    entries = (
        ("quantize_per_tensor, fp8 (reads twice)", 5, 1, lambda x, r: ops.quantize_per_tensor(x, fp8)),
        ("quantize_static, fp8", 3, 1, lambda x, r: ops.quantize_static(x, one, fp8)),
        ("quantize_per_token, fp8", 3, 1, lambda x, r: ops.quantize_per_token(x, fp8)),
        ("quantize_per_token, int8", 3, 1, lambda x, r: ops.quantize_per_token(x, torch.int8)),
        ("quantize_per_token_asymmetric", 3, 1, lambda x, r: ops.quantize_per_token_asymmetric(x)),
        ("quantize_per_group 128, fp8", 3, 1, lambda x, r: ops.quantize_per_group(x)),
        ("activate_and_quantize, silu gated, per group 128, fp8", 5, 2, lambda x, r: _activate(x, 128, fp8)),
        ("activate_and_quantize, silu gated, per token, int8", 5, 2, lambda x, r: _activate(x, 0, torch.int8)),
        ("rms_norm_quantize with residual, per token, fp8", 7, 1, lambda x, r: _rms_norm(x, r, weight, fp8)),
    )
    lines = []
    for name, width, wide, call in entries:
        shown = [name]
        for m in (rows, 1):
            inputs = [torch.randn(m, wide * columns, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
            residuals = [torch.randn(m, columns, device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
            replay = Replay(lambda i, x=inputs, r=residuals, f=call: f(x[i % sets], r[i % sets]), sets)
            times = replay.times_for(seconds)
            us = statistics.median(replay.microseconds(times) for _ in range(rounds))
            shown.append(f"{us:.1f}" if m > 1 else f"{us:.2f}")
            if m > 1:
                shown.append(f"{width * m * columns / (us * 1e-6) / bandwidth:.2f}")
        lines.append(tuple(shown))
    return lines


def _activate(x: torch.Tensor, group: int, dtype: torch.dtype):
    return ops.activate_and_quantize(x, "silu", True, group, dtype)


def _rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, dtype: torch.dtype):
    return ops.rms_norm_quantize(x, weight, 1e-6, 0, dtype, residual)


def report(
    shapes: Sequence, order_shapes: Sequence, picture: Path, rounds: int, seconds: float, quiet: bool = False
) -> str:
    """Measures every line of the GPU's report in one run, draws its picture; Markdown. order_shapes: where deterministic=True is
    looked at."""
    with torch.inference_mode():
        bandwidth = copy_bandwidth()
        quantizers = quantizer_lines(bandwidth, rounds, seconds)
        orders = order_lines(order_shapes, rounds, seconds)
        chains = chain_lines(shapes, rounds, seconds)
    measurements = measure(shapes, REPORT_ROWS, list(SCHEMES), rounds, seconds, quiet)
    draw(picture, measurements, [shape.id for shape in shapes])

    cells, hosts = [], {}
    for scheme in SCHEMES:
        for m in REPORT_ROWS:
            found = [group for (_, s, rows), group in grouped(measurements).items() if (s, rows) == (scheme, m)]
            peers = [best_peer(group) for group in found]
            pairs = [(group[OURS], peer) for group, peer in zip(found, peers, strict=True) if peer is not None]
            others = [
                [group[name].median / group[OURS].median for group in found if name in group]
                for name in ("torch._int_mm alone", deep_gemm_peer.NAME)
            ]
            cells.append(
                (
                    scheme,
                    m,
                    f"{_geomean([group[OURS].share for group in found]):.3f}",
                    f"{_geomean([group[OVERLAPPING].share for group in found]):.3f}",
                    f"{_geomean([peer.share for _, peer in pairs]):.3f}" if pairs else "",
                    f"{_geomean([peer.median / ours.median for ours, peer in pairs]):.2f}" if pairs else "",
                    f"{min(peer.median / ours.median for ours, peer in pairs):.2f}" if pairs else "",
                    *(f"{_geomean(ratios_of):.2f}" if ratios_of else "" for ratios_of in others),
                )
            )
            hosts[scheme, m] = (
                statistics.median(group[OVERLAPPING].host for group in found),
                statistics.median(peer.host for _, peer in pairs) if pairs else math.nan,
            )
    names = ", ".join(f"{shape.id} {shape.n}x{shape.k}" for shape in shapes)
    host_rows = [m for m in REPORT_ROWS if m <= 64]
    return "\n".join(
        [
            f"Measured {datetime.date.today().isoformat()} on {device_text()}, Python {platform.python_version()}, by "
            "`evergemm bench --gpu-report docs/performance.md`.",
            f"Shapes (n x k): {names}. Share: of the least time, max(2 m n k / 1450 TF, bytes / 3.08 TB/s). Geometric means over the "
            f"shapes; median of {rounds} rounds. Result bfloat16; fp8 sums in the tensor core (`fast_accumulation`), torch's too.",
            "",
            "### Products",
            "",
            markdown_table(
                (
                    "scheme",
                    "m",
                    "share",
                    "overlapping",
                    "best peer's share",
                    "peer time / ours",
                    "worst shape",
                    "`_int_mm` alone / ours",
                    "DeepGEMM / ours",
                ),
                cells,
                right=range(1, 9),
            ),
            "",
            f"![share of the roofline and ratio to the best peer over m]({picture.name})",
            "",
            "Peers: `torch._scaled_mm` with the same scales; fp8-block: DeepGEMM, too, where the module `deep_gemm` is installed "
            f"(here: {deep_gemm_peer.version()}); int8: `torch._int_mm`, then the scales (`alone`: without them, another "
            "result). Overlapping: with programmatic dependent launch, in a graph of products that do not depend on each other.",
            "",
            "### Chains",
            "",
            "Quantize, product of n x k, quantize its result, product of k x n, and on with that result: every kernel reads what the one "
            "before it wrote. Waiting: a product starts when its quantizer has ended; overlapping: it starts while that ends, and "
            "reads only weights before, as the operators run. Least time: that of both products and of 3 bytes an element that is "
            "quantized. int8 and fp8 by token and channel, fp8-block by 1 x 128.",
            "",
            markdown_table(
                ("scheme", "m", "share, waiting", "share, overlapping", "waiting / overlapping", "least gain"),
                chains,
                right=range(1, 6),
            ),
            "",
            "### One order of accumulation",
            "",
            "What `deterministic=True` costs: it leaves out the rows that split k, which serve few tokens (block scales: a few "
            "hundred; measured here up to 128) and few output features. "
            "Everywhere else, and for int8, it changes nothing. Microseconds.",
            "",
            markdown_table(
                ("n x k", "scheme", "m", "default", "deterministic", "ratio", "default row", "deterministic row"),
                orders,
                right=range(2, 6),
            ),
            "",
            "### Host time of an eager call",
            "",
            "Microseconds, allocation of the result included; median over the shapes of the best of "
            f"{_EAGER_ROUNDS} x {_EAGER_CALLS} calls.",
            "",
            markdown_table(
                ("scheme", *(f"m = {m}, evergemm" for m in host_rows), *(f"m = {m}, torch" for m in host_rows)),
                [
                    (
                        scheme,
                        *(_digits(hosts[scheme, m][0]) for m in host_rows),
                        *(_digits(hosts[scheme, m][1]) for m in host_rows),
                    )
                    for scheme in SCHEMES
                ],
                right=range(1, 1 + 2 * len(host_rows)),
            ),
            "",
            "### Quantizers",
            "",
            f"8192 columns of bfloat16. A copy of as many bytes moves {bandwidth / 1e9:,.0f} GB/s; bytes: each element read and "
            "written once.",
            "",
            markdown_table(("operator", "4096 rows, us", "of copy", "1 row, us"), quantizers, right=range(1, 4)),
        ]
    )
