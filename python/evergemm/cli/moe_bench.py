# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench --moe`: a whole mixture-of-experts layer beside compositions of torch's operators, on the GPU or the CPU.

Routed alike for everyone, results checked before they are timed, implementations in turns. On a GPU graphs are replayed, a graph
holding calls with different routings so that weights come from memory; a loop over experts is timed as a user would run it,
call by call, for its host has to know which experts have tokens. On a CPU calls follow each other. Share: of the least
time that the weights of the experts used and the products need. Must not go here: scaled_mm's bench (bench.py, gpu_bench.py),
drawing (charts.py).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .. import ops
from ..explanation import architecture_of, explain
from ..text import microseconds_text, table

SHAPES_FILE = Path(__file__).parents[1] / "data" / "shapes.json"
OURS = "evergemm"
SCHEMES = ("fp8", "fp8-block", "int8")
GPU_TOKENS, CPU_TOKENS = (1, 8, 64, 256, 1024, 4096), (1, 16, 128)
GPU_SHAPES, CPU_SHAPES = ("F1",), ("16x4x512x256",)
_SETS = 8  # routings
_LOOP = ", a loop"  # how the names of loops over experts end
_ERROR_LIMIT = {
    "fp8": 0.1,
    "fp8-block": 0.1,
    "int8": 0.05,
}  # quantization's own, against floats; another expert's: above 1

Call = Callable[[int], torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Shape:
    """`experts` on this device, of which a token takes top_k; w13 [2 * intermediate, hidden], w2 [hidden, intermediate]."""

    id: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int

    @property
    def weights(self) -> int:
        """Elements of one expert."""
        return 3 * self.hidden * self.intermediate


@dataclasses.dataclass(frozen=True)
class Measurement:
    shape: Shape
    scheme: str
    tokens: int
    implementation: str
    rounds: tuple[float, ...]  # microseconds
    roofline: float | None
    experts_used: float

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)


def shapes_named(names: Sequence[str]) -> list[Shape]:
    """Of the ids in data/shapes.json, or EXPERTSxTOP_KxHIDDENxINTERMEDIATE."""
    known = {
        one["id"]: Shape(one["id"], one["local"], one["top_k"], one["hidden"], one["intermediate"])
        for one in json.loads(SHAPES_FILE.read_text())["moe"]
    }
    found = []
    for name in names:
        numbers = name.split("x")
        if name in known:
            found.append(known[name])
        elif len(numbers) == 4 and all(number.isdigit() and int(number) > 0 for number in numbers):
            found.append(Shape(name, *map(int, numbers)))
        else:
            raise ValueError(
                f"bench: expected shapes of {', '.join(known)} or EXPERTSxTOP_KxHIDDENxINTERMEDIATE; got {name!r}; "
                "fix: name some of them."
            )
    return found


class Layer:
    """Random weights, quantized, and tokens with several routings."""

    def __init__(self, shape: Shape, scheme: str, device: str):
        self.shape, self.scheme, self.device = shape, scheme, device
        self.dtype = torch.int8 if scheme == "int8" else torch.float8_e4m3fn
        generator = torch.Generator(device).manual_seed(0)
        h, i, experts = shape.hidden, shape.intermediate, shape.experts
        self.w13, self.s13 = self._quantized(experts, 2 * i, h, generator)
        self.w2, self.s2 = self._quantized(experts, h, i, generator)

    def _quantized(self, experts: int, n: int, k: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of normal weights, expert by expert: floats of all of them would not fit everywhere."""
        q = torch.empty(experts, n, k, dtype=self.dtype, device=self.device)
        scales = []
        for expert in range(experts):
            weight = torch.randn(n, k, generator=generator, device=self.device) / k**0.5
            if self.scheme == "fp8-block":
                one, scale = ops.quantize_per_block(weight, 128, 128, self.dtype)
            else:
                one, scale = ops.quantize_per_token(weight, self.dtype)
            q.view(torch.uint8)[expert] = one.view(torch.uint8)
            scales.append(scale if self.scheme == "fp8-block" else scale.flatten())
        return q, torch.stack(scales)

    def floats(self, weight: str, expert: int, dtype: torch.dtype) -> torch.Tensor:
        q, scale = (self.w13, self.s13) if weight == "w13" else (self.w2, self.s2)
        codes = q.view(torch.uint8)[expert].view(self.dtype).to(torch.float32)
        scale = scale[expert]
        if self.scheme == "fp8-block":
            scale = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)[: codes.shape[0], : codes.shape[1]]
            return (codes * scale).to(dtype)
        return (codes * scale[:, None]).to(dtype)


@dataclasses.dataclass(frozen=True)
class Problem:
    layer: Layer
    tokens: int
    x: torch.Tensor
    ids: torch.Tensor  # [sets, tokens, top_k]
    weights: torch.Tensor  # [tokens, top_k]

    @property
    def experts_used(self) -> float:
        return statistics.mean(len(set(one.flatten().tolist())) for one in self.ids.cpu())

    def rows_of(self, index: int) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        """(expert, tokens, choices) of the experts that routing `index` uses."""
        ids = self.ids[index].cpu()
        return [
            (expert, *(part.to(self.x.device) for part in (ids == expert).nonzero(as_tuple=True)))
            for expert in sorted(set(ids.flatten().tolist()))
        ]


def make_problem(layer: Layer, tokens: int, seed: int = 1) -> Problem:
    shape, device = layer.shape, layer.device
    generator = torch.Generator().manual_seed(seed)
    ids = torch.rand(_SETS, tokens, shape.experts, generator=generator).topk(shape.top_k, -1).indices
    x = torch.randn(tokens, shape.hidden, generator=generator).to(device, torch.bfloat16)
    weights = torch.softmax(torch.randn(tokens, shape.top_k, generator=generator), 1)
    return Problem(layer, tokens, x, ids.to(device, torch.int32), weights.to(device))


# ---- implementations -------------------------------------------------------------------------------------------------


def _per_token_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = x.abs().amax(1, keepdim=True).to(torch.float32).clamp(min=1e-12) / 448
    return (x.to(torch.float32) / scale).to(torch.float8_e4m3fn), scale


def _torch_grouped(problem: Problem) -> Call:
    """Permute by argsort, quantize, torch._scaled_grouped_mm, silu and mul, quantize, again, weighted sum by index_add."""
    layer, shape = problem.layer, problem.layer.shape
    w13, w2 = layer.w13.transpose(1, 2), layer.w2.transpose(1, 2)
    experts = torch.arange(shape.experts, device=problem.x.device, dtype=torch.int32)

    def call(index: int) -> torch.Tensor:
        flat = problem.ids[index % _SETS].flatten()
        order = flat.argsort(stable=True)
        ends = (flat[:, None] == experts).sum(0).cumsum(0).to(torch.int32)
        token = order // shape.top_k
        q, scale = _per_token_fp8(problem.x)
        h = torch._scaled_grouped_mm(
            q.view(torch.uint8)[token].view(torch.float8_e4m3fn),
            w13,
            scale[token].flatten(),
            layer.s13,
            offs=ends,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        gate, up = h.chunk(2, 1)
        q, scale = _per_token_fp8(torch.nn.functional.silu(gate) * up)
        y = torch._scaled_grouped_mm(
            q, w2, scale.flatten(), layer.s2, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        weighted = y.to(torch.float32) * problem.weights.flatten()[order][:, None]
        result = torch.zeros(problem.x.shape, dtype=torch.float32, device=problem.x.device)
        return result.index_add_(0, token, weighted).to(torch.bfloat16)

    return call


def _loop(problem: Problem, product: Callable, quantize: Callable) -> Call:
    """An expert after the other; which tokens it has is known before, which costs a real loop a wait for the device."""
    layer = problem.layer
    routings = [problem.rows_of(index) for index in range(_SETS)]

    def call(index: int) -> torch.Tensor:
        result = torch.zeros(problem.x.shape, dtype=torch.float32, device=problem.x.device)
        quantized = quantize(problem.x)
        for expert, token, choice in routings[index % _SETS]:
            h = product(
                [
                    part.view(torch.uint8)[token].view(part.dtype) if part.element_size() == 1 else part[token]
                    for part in quantized
                ],
                layer.w13,
                layer.s13,
                expert,
            )
            gate, up = h.chunk(2, 1)
            y = product(quantize(torch.nn.functional.silu(gate) * up), layer.w2, layer.s2, expert)
            result.index_add_(0, token, y.to(torch.float32) * problem.weights[token, choice][:, None])
        return result.to(problem.x.dtype)

    return call


def implementations(problem: Problem) -> dict[str, Call]:
    """Name -> function of a call number. Peers that this torch does not have, or that refuse the problem, are absent."""
    layer = problem.layer

    def fused(index: int) -> torch.Tensor:
        return ops.fused_moe(
            problem.x, layer.w13, layer.w2, layer.s13, layer.s2, problem.weights, problem.ids[index % _SETS]
        )

    def ours(parts, weight, scale, expert):
        scale = scale[expert].t() if scale.dim() == 3 else scale[expert]
        return ops.scaled_mm(parts[0], weight[expert].t(), parts[1], scale)

    def ours_quantize(x):
        if layer.scheme == "fp8-block":
            return ops.quantize_per_group(x, 128, layer.dtype)
        return ops.quantize_per_token(x, layer.dtype)

    def scaled_mm(parts, weight, scale, expert):
        return torch._scaled_mm(
            parts[0], weight[expert].t(), parts[1], scale[expert][None], out_dtype=torch.bfloat16, use_fast_accum=True
        )

    candidates: dict[str, Call] = {OURS: fused, f"evergemm.scaled_mm{_LOOP}": _loop(problem, ours, ours_quantize)}
    if layer.device == "cuda" and layer.scheme == "fp8":
        candidates["torch._scaled_grouped_mm"] = _torch_grouped(problem)
        candidates[f"torch._scaled_mm{_LOOP}"] = _loop(problem, scaled_mm, _per_token_fp8)
    if layer.device == "cpu":
        dtype = torch.bfloat16
        floats = {
            name: [layer.floats(name, expert, dtype) for expert in range(layer.shape.experts)] for name in ("w13", "w2")
        }

        def linear(parts, weight, scale, expert):
            name = "w13" if weight is layer.w13 else "w2"
            return torch.nn.functional.linear(parts[0], floats[name][expert])

        candidates[f"torch bfloat16{_LOOP}"] = _loop(problem, linear, lambda x: [x])
    found = {}
    for name, call in candidates.items():
        try:
            call(0)
            if layer.device == "cuda":
                torch.cuda.synchronize()
        except RuntimeError:
            if name == OURS:
                raise
            continue  # a peer that is not there is no failure of ours
        found[name] = call
    return found


def check(problem: Problem, name: str, result: torch.Tensor) -> None:
    """Raises RuntimeError where a result is far from the layer in floats."""
    wanted = torch.zeros(problem.x.shape, dtype=torch.float32, device=problem.x.device)
    x = problem.x.to(torch.float32)
    for expert, token, choice in problem.rows_of(0):
        gate, up = (x[token] @ problem.layer.floats("w13", expert, torch.float32).t()).chunk(2, 1)
        y = (torch.nn.functional.silu(gate) * up) @ problem.layer.floats("w2", expert, torch.float32).t()
        wanted.index_add_(0, token, y * problem.weights[token, choice][:, None])
    error, limit = float((result.to(torch.float32) - wanted).norm() / wanted.norm()), _ERROR_LIMIT[problem.layer.scheme]
    if not error < limit:
        raise RuntimeError(
            f"bench: expected an error below {limit:.0%} of the layer in floats; got {error:.2%}; {name}, "
            f"{problem.layer.shape.id} {problem.layer.scheme}, {problem.tokens} tokens."
        )


# ---- measuring -------------------------------------------------------------------------------------------------------


def _roofline(problem: Problem) -> float | None:
    """Microseconds: the weights of the experts used, the tokens in and out, or the products."""
    if problem.layer.device == "cpu":
        return None
    dtype = "int8" if problem.layer.scheme == "int8" else "fp8"
    arch = architecture_of(problem.x.device)

    def rate(m: int, key: str) -> float | None:
        least = explain(m=m, n=8192, k=8192, dtype=dtype, scales="rowwise", arch=arch).json["roofline"]
        return least[key] / least["microseconds"] if least["microseconds"] else None

    bandwidth, operations = rate(1, "bytes"), rate(65536, "operations")
    if bandwidth is None or operations is None:
        return None
    shape = problem.layer.shape
    moved = problem.experts_used * shape.weights + 2 * problem.x.numel() * problem.x.element_size()
    return max(moved / bandwidth, 2 * problem.tokens * shape.top_k * shape.weights / operations)


class Eager:
    """Calls one after the other; times as gpu_bench.Replay does."""

    def __init__(self, call: Call):
        self._call = call
        self._begin, self._end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def microseconds(self, times: int) -> float:
        torch.cuda.synchronize()
        self._begin.record()
        for index in range(times):
            self._call(index)
        self._end.record()
        self._end.synchronize()
        return 1e3 * self._begin.elapsed_time(self._end) / times

    def times_for(self, seconds: float) -> int:
        return max(1, round(1e6 * seconds / self.microseconds(1)))


def measure_problem(problem: Problem, rounds: int, seconds: float) -> list[Measurement]:
    calls = implementations(problem)
    for name, call in calls.items():
        check(problem, name, call(0))
    if problem.layer.device == "cuda":
        from .gpu_bench import Replay, in_turns

        replays = {}
        for name, call in list(calls.items()):
            try:
                replays[name] = Eager(call) if name.endswith(_LOOP) else Replay(call, _SETS)
            except RuntimeError:
                if name == OURS:
                    raise
                # else it waits for the device, so that no graph can hold it
        samples = in_turns(replays, rounds, seconds)
    else:
        from .timing import interleaved

        timings = interleaved(calls, rounds, seconds)
        samples = {name: [timing.low, timing.median, timing.high] for name, timing in timings.items()}
    least, used = _roofline(problem), problem.experts_used
    return [
        Measurement(problem.layer.shape, problem.layer.scheme, problem.tokens, name, tuple(one), least, used)
        for name, one in samples.items()
    ]


def measure(
    shapes: Sequence[Shape],
    tokens: Sequence[int],
    schemes: Sequence[str],
    device: str,
    rounds: int,
    seconds: float,
    quiet: bool = False,
) -> list[Measurement]:
    from .progress import Progress

    found: list[Measurement] = []
    count = len(shapes) * len(schemes) * len(tokens)
    with torch.inference_mode(), Progress("timing", count, quiet) as progress:
        for shape in shapes:
            for scheme in schemes:
                layer = Layer(shape, scheme, device)
                for number in tokens:
                    progress.advance(0, f"timing {shape.id} {scheme}, {number} tokens")
                    found += measure_problem(make_problem(layer, number), rounds, seconds)
                    progress.advance()
                del layer
        progress.advance(0, f"timing {count} layers, {rounds} rounds")
    return found


def results_table(measurements: Sequence[Measurement]) -> str:
    """A line a problem: evergemm's time, its share of the roofline, each peer's time and how many times as long it is."""
    peers = list(dict.fromkeys(one.implementation for one in measurements if one.implementation != OURS))
    header = ["layer", "scheme", "tokens", "experts used", OURS, "of the roofline", *peers]
    groups: dict[tuple, dict[str, Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.shape.id, one.scheme, one.tokens), {})[one.implementation] = one
    lines = []
    for (shape, scheme, tokens), found in groups.items():
        ours = found[OURS]
        share = "" if ours.roofline is None else f"{ours.roofline / ours.median:.0%}"
        line = [shape, scheme, str(tokens), f"{ours.experts_used:.0f}", microseconds_text(ours.median), share]
        for peer in peers:
            other = found.get(peer)
            line.append(
                "" if other is None else f"{microseconds_text(other.median)} ({other.median / ours.median:.2f}x)"
            )
        lines.append(line)
    return table(header, lines)


def write_csv(path: Path, measurements: Sequence[Measurement]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            "shape,experts,top_k,hidden,intermediate,scheme,tokens,implementation,microseconds,fastest,slowest,roofline,"
            "experts_used".split(",")
        )
        for one in measurements:
            shape = one.shape
            writer.writerow(
                [
                    shape.id,
                    shape.experts,
                    shape.top_k,
                    shape.hidden,
                    shape.intermediate,
                    one.scheme,
                    one.tokens,
                    one.implementation,
                    f"{one.median:.3f}",
                    f"{min(one.rounds):.3f}",
                    f"{max(one.rounds):.3f}",
                    "" if one.roofline is None else f"{one.roofline:.3f}",
                    f"{one.experts_used:.1f}",
                ]
            )


def run(arguments, on_gpu: bool, seconds: float) -> int:
    """`evergemm bench --moe` with bench's arguments."""
    from . import charts

    schemes = list(SCHEMES) if arguments.schemes is None else list(arguments.schemes)
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown or not schemes:
        raise ValueError(f"bench: expected schemes of {', '.join(SCHEMES)}; got {unknown}; fix: name some of them.")
    shapes = shapes_named(arguments.shapes or (GPU_SHAPES if on_gpu else CPU_SHAPES))
    tokens = arguments.m or (GPU_TOKENS if on_gpu else CPU_TOKENS)
    found = measure(shapes, tokens, schemes, "cuda" if on_gpu else "cpu", arguments.rounds, seconds)
    print(results_table(found))
    csv_path, png_path = arguments.output / "moe.csv", arguments.output / "moe.png"
    write_csv(csv_path, found)
    lines: dict[str, list[tuple[int, float]]] = {}
    for one in found:
        if one.shape == shapes[0]:
            lines.setdefault(f"{one.scheme}, {one.implementation}", []).append((one.tokens, one.median))
            if one.roofline is not None and one.implementation == OURS:
                lines.setdefault(f"{one.scheme}, roofline", []).append((one.tokens, one.roofline))
    shape = shapes[0]
    charts.layers(
        png_path,
        lines,
        f"A mixture-of-experts layer: {shape.experts} experts, top {shape.top_k}, {shape.hidden} to {shape.intermediate}",
    )
    print(f"wrote {csv_path} and {png_path}")
    return 0
