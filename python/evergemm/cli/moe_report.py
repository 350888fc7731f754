# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench --moe-report FILE`: the mixture-of-experts part of docs/performance.md, measured on a GPU in one run: whole
layers, products of all experts, skewed routings, the steps besides the products. Results are checked before they are timed,
implementations take turns, graphs are replayed. Must not go here: layers' implementations (moe_bench.py), drawing (charts.py).
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import json
import platform
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from .. import ops
from . import charts, deep_gemm_peer, moe_bench
from .gpu_bench import Replay, device_text, in_turns, markdown_table

FP8 = torch.float8_e4m3fn
TOKENS = (8, 64, 256, 1024, 4096)
SHAPES = ("E1", "E2", "E3", "E4")
LAYER_SHAPE, LAYER_TOKENS = "F1", (1, 8, 64, 256, 1024, 4096)
SKEWED_SHAPES, SKEWED_TOKENS = ("E1", "E3"), (256, 4096)
ROUTINGS = ("uniform", "zipf_1.0", "hot_expert_25_percent", "half_of_experts_empty")
ROUTED_TOKENS = (1, 8, 64, 256, 1024, 4096)
_PUBLISHED = {1: 18.5, 8: 62.7}  # microseconds of a one-kernel layer of LAYER_SHAPE's sizes, as its authors publish
_OPERATIONS, _BANDWIDTH = 1450e6, 3.08e6  # a microsecond
_ERROR_LIMIT = 0.01
_SCHEMES = ("fp8", "fp8-block", "int8")
_LOOP, _TORCH = "scaled_mm, a loop", "torch._scaled_grouped_mm"

Call = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class Routed:
    """Rows of each expert that is here, of `experts` in all; the host knows them only to prepare peers and to judge."""

    counts: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.counts)

    @property
    def used(self) -> int:
        return sum(count > 0 for count in self.counts)

    def ends(self) -> torch.Tensor:
        return torch.tensor(self.counts).cumsum(0).to("cuda", torch.int32)


def route(experts: int, local: int, top_k: int, tokens: int, routing: str) -> Routed:
    """Distinct experts for each token."""
    generator = torch.Generator().manual_seed(tokens * 31 + experts)
    scores = -torch.log(-torch.log(torch.rand(tokens, experts, generator=generator).clamp(1e-9, 1 - 1e-7)))
    if routing == "zipf_1.0":
        scores -= torch.log(torch.arange(1, experts + 1).float())
    elif routing == "hot_expert_25_percent":
        scores[torch.rand(tokens, generator=generator) < 0.25, 0] = 1e9
    elif routing == "half_of_experts_empty":
        scores[:, 1::2] = -1e9
    ids = scores.topk(top_k, 1).indices.flatten()
    return Routed(tuple(ids.bincount(minlength=experts)[:local].tolist()))


class Weights:
    """Of a layer's first product: [experts, n, k] of normal values, quantized, and their scales."""

    def __init__(self, experts: int, n: int, k: int, scheme: str):
        self.n, self.k, self.scheme = n, k, scheme
        self.dtype = torch.int8 if scheme == "int8" else FP8
        self.codes = torch.empty(experts, n, k, dtype=self.dtype, device="cuda")
        for expert in range(experts):
            values = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
            values = values.mul_(32).clamp_(-127, 127).round_() if scheme == "int8" else values.mul_(64)
            self.codes.view(torch.uint8)[expert] = values.to(self.dtype).view(torch.uint8)
        size = (experts, -(-k // 128), -(-n // 128)) if scheme == "fp8-block" else (experts, n)
        self.scale = torch.rand(size, device="cuda").add_(0.5).div_(64 * k**0.5)

    def rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(count, self.k, device="cuda", dtype=torch.bfloat16)
        if self.scheme == "fp8-block":
            return ops.quantize_per_group(x, 128, self.dtype, column_major_scales=True)
        return ops.quantize_per_token(x, self.dtype)


@dataclasses.dataclass(frozen=True)
class Cell:
    shape: str
    scheme: str
    tokens: int
    routing: str
    routed: Routed
    times: dict[str, float]  # microseconds, median
    roofline: float

    @property
    def ours(self) -> float:
        return self.times[moe_bench.OURS]

    @property
    def share(self) -> float:
        return self.roofline / self.ours

    def ratio(self, peer: str) -> str:
        return f"{self.times[peer] / self.ours:.2f}" if peer in self.times else ""


def _calls(weights: Weights, routed: Routed) -> dict[str, Call]:
    a, scale_a = weights.rows(routed.rows)
    b, ends = weights.codes.transpose(1, 2), routed.ends()
    offsets = torch.cat([torch.zeros(1, dtype=torch.int32, device="cuda"), ends])
    pieces, begin = [], 0
    for expert, count in enumerate(routed.counts):
        if count > 0:
            pieces.append((expert, begin, begin + count))
        begin += count
    out = torch.empty(routed.rows, weights.n, dtype=torch.bfloat16, device="cuda")

    def loop(_: int) -> torch.Tensor:
        for expert, first, end in pieces:
            ops.scaled_mm(a[first:end], b[expert], scale_a[first:end], weights.scale[expert], out=out[first:end])
        return out

    found: dict[str, Call] = {
        moe_bench.OURS: lambda _: ops.grouped_scaled_mm(a, b, scale_a, weights.scale, offsets, torch.bfloat16),
        _LOOP: loop,
    }
    wanted = loop(0).to(torch.float32)
    rows_of: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
    if weights.scheme == "fp8":
        found[_TORCH] = lambda _: torch._scaled_grouped_mm(
            a, b, scale_a.flatten(), weights.scale, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True
        )
    if weights.scheme == "fp8-block":
        peers = deep_gemm_peer.grouped(a, weights.codes, scale_a, weights.scale, routed.counts)
        found |= {name: call for name, (call, _) in peers.items()}
        rows_of |= {name: in_order for name, (_, in_order) in peers.items()}
    for name, call in list(found.items()):
        try:
            result = rows_of.get(name, lambda out: out)(call(0)).to(torch.float32)
            torch.cuda.synchronize()
        except Exception:
            if name in (moe_bench.OURS, _LOOP):
                raise
            del found[name]  # a peer that is not there is no failure of ours
            continue
        error = float((result - wanted).norm() / wanted.norm())
        if not error < _ERROR_LIMIT or (weights.scheme == "int8" and not torch.equal(result, wanted)):
            raise RuntimeError(
                f"bench: expected the products of a loop over experts; got an error of {error:.2%}; {name}."
            )
    return found


def _medians(calls: dict[str, Call], rounds: int, seconds: float, in_graph: int = 4) -> dict[str, float]:
    """Microseconds of a call; implementations in turns."""
    replays = {name: Replay(call, in_graph) for name, call in calls.items()}
    return {name: statistics.median(one) for name, one in in_turns(replays, rounds, seconds).items()}


@functools.cache
def _layers() -> dict[str, tuple[int, moe_bench.Shape]]:
    """Experts in all, of which a shape's are here."""
    listed = json.loads(moe_bench.SHAPES_FILE.read_text())["moe"]
    return {one["id"]: (one["experts"], moe_bench.shapes_named([one["id"]])[0]) for one in listed}


def measure_cell(
    name: str, weights: Weights, tokens: int, routing: str, rounds: int, seconds: float, peers: bool = True
) -> Cell | None:
    experts, shape = _layers()[name]
    routed = route(experts, shape.experts, shape.top_k, tokens, routing)
    if routed.rows == 0:
        return None
    calls = _calls(weights, routed)
    if not peers:
        calls = {moe_bench.OURS: calls[moe_bench.OURS]}
    moved = routed.used * weights.n * weights.k + routed.rows * (weights.k + 2 * weights.n)
    least = max(2 * routed.rows * weights.n * weights.k / _OPERATIONS, moved / _BANDWIDTH)
    return Cell(name, weights.scheme, tokens, routing, routed, _medians(calls, rounds, seconds), least)


def measure_products(rounds: int, seconds: float) -> tuple[list[Cell], list[Cell]]:
    """(uniform routings with peers, skewed routings)."""
    uniform, skewed = [], []
    for name in SHAPES:
        _, shape = _layers()[name]
        for scheme in _SCHEMES:
            weights = Weights(shape.experts, 2 * shape.intermediate, shape.hidden, scheme)
            uniform += [measure_cell(name, weights, tokens, "uniform", rounds, seconds) for tokens in TOKENS]
            if name in SKEWED_SHAPES and scheme != "int8":
                skewed += [
                    measure_cell(name, weights, tokens, routing, rounds, seconds, peers=False)
                    for tokens in SKEWED_TOKENS
                    for routing in ROUTINGS
                ]
            del weights
            torch.cuda.empty_cache()
    return [one for one in uniform if one], [one for one in skewed if one]


def route_times(experts: int, rounds: int, seconds: float) -> list[str]:
    shown = []
    for tokens in ROUTED_TOKENS:
        ids = torch.rand(tokens, experts).argsort(1)[:, :8].to("cuda", torch.int32)
        us = _medians({moe_bench.OURS: lambda _, ids=ids: ops.moe_route(ids, experts)}, rounds, seconds, in_graph=20)
        shown.append(f"{us[moe_bench.OURS]:.2f}")
    return shown


def step_lines(rounds: int, seconds: float) -> list[tuple[str, ...]]:
    lines = [(f"`moe_route`, top 8 of {experts}", *route_times(experts, rounds, seconds)) for experts in (256, 512)]
    for name, group in (("a scale a row", 0), ("scales of 1 x 128", 128)):
        shown = []
        for tokens in ROUTED_TOKENS:
            x = torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16)
            source = torch.randperm(tokens * 8, device="cuda").div(8, rounding_mode="floor").to(torch.int32)
            call = {moe_bench.OURS: lambda _, x=x, s=source, g=group: ops.moe_gather_quantize(x, s, None, None, g, FP8)}
            shown.append(f"{_medians(call, rounds, seconds, in_graph=20)[moe_bench.OURS]:.2f}")
        lines.append((f"`moe_gather_quantize`, 8 rows of 2048 to fp8, {name}", *shown))
    shown = []
    for tokens in ROUTED_TOKENS:
        y = torch.randn(tokens * 8, 2048, device="cuda", dtype=torch.bfloat16)
        slot = torch.randperm(tokens * 8, device="cuda").to(torch.int32).view(tokens, 8)
        weights = torch.rand(tokens, 8, device="cuda")
        call = {moe_bench.OURS: lambda _, y=y, s=slot, w=weights: ops.moe_combine(y, s, w, torch.bfloat16)}
        shown.append(f"{_medians(call, rounds, seconds, in_graph=20)[moe_bench.OURS]:.2f}")
    lines.append(("`moe_combine`, 8 rows of 2048", *shown))
    return lines


def _layer_lines(found: Sequence[moe_bench.Measurement]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, int], dict[str, moe_bench.Measurement]] = {}
    for one in found:
        groups.setdefault((one.scheme, one.tokens), {})[one.implementation] = one
    lines = []
    for (scheme, tokens), group in groups.items():
        ours = group[moe_bench.OURS]

        def ratio(name: str, group=group, ours=ours) -> str:
            return f"{group[name].median:.0f} ({group[name].median / ours.median:.2f})" if name in group else ""

        lines.append(
            (
                scheme,
                str(tokens),
                f"{ours.experts_used:.0f}",
                f"{ours.median:.1f}",
                "" if ours.roofline is None else f"{ours.roofline:.1f}",
                "" if ours.roofline is None else f"{ours.roofline / ours.median:.2f}",
                ratio(_TORCH),
                ratio("torch._scaled_mm, a loop"),
                f"{_PUBLISHED[tokens]}" if scheme != "int8" and tokens in _PUBLISHED else "",
            )
        )
    return lines


def report(picture: Path, rounds: int, seconds: float, quiet: bool = False) -> str:
    """Measures every line, draws the picture; Markdown."""
    layer = moe_bench.shapes_named([LAYER_SHAPE])[0]
    layers = moe_bench.measure([layer], LAYER_TOKENS, _SCHEMES, "cuda", rounds, seconds, quiet)
    with torch.inference_mode():
        products, skewed = measure_products(rounds, seconds)
        steps = step_lines(rounds, seconds)
    charts.moe(picture, *_curves(layers, products))
    cells = [
        (
            one.shape,
            str(one.tokens),
            str(one.routed.rows),
            str(one.routed.used),
            one.scheme,
            f"{one.ours:.1f}",
            f"{one.share:.2f}",
            one.ratio(_TORCH),
            one.ratio(_LOOP),
            one.ratio(deep_gemm_peer.MASKED),
            one.ratio(deep_gemm_peer.CONTIGUOUS),
        )
        for one in products
    ]
    sizes = ", ".join(
        f"{name} {shape.experts} of {experts} experts, top {shape.top_k}, {2 * shape.intermediate}x{shape.hidden}"
        for name, (experts, shape) in _layers().items()
        if name in SHAPES
    )
    skew_lines = []
    for name in SKEWED_SHAPES:
        for scheme in ("fp8", "fp8-block"):
            for tokens in SKEWED_TOKENS:
                here = {
                    one.routing: one for one in skewed if (one.shape, one.scheme, one.tokens) == (name, scheme, tokens)
                }
                skew_lines.append(
                    (
                        name,
                        scheme,
                        str(tokens),
                        *(f"{here[r].ours:.0f} ({here[r].share:.2f})" if r in here else "" for r in ROUTINGS),
                    )
                )
    return "\n".join(
        [
            f"Measured {datetime.date.today().isoformat()} on {device_text()}, Python {platform.python_version()}, by "
            "`evergemm bench --moe-report docs/performance.md`.",
            f"Microseconds, median of {rounds} rounds of replayed graphs, whose calls follow each other and overlap; share: of the "
            "least time, max(operations / 1450 TF, bytes / 3.08 TB/s), bytes those of the weights of experts that have rows, of "
            "rows and results. In brackets: a peer's time over evergemm's.",
            "",
            "### Whole layers",
            "",
            f"{layer.experts} experts, top {layer.top_k}, hidden {layer.hidden}, intermediate {layer.intermediate}, bfloat16 in and "
            "out; routing changes from call to call. torch: sort, quantize, `_scaled_grouped_mm`, silu and mul, quantize, "
            "`_scaled_grouped_mm`, weighted sum; a loop over experts is timed as it would run, call by call.",
            "",
            markdown_table(
                (
                    "scheme",
                    "tokens",
                    "experts used",
                    "evergemm",
                    "least",
                    "share",
                    "torch, grouped",
                    "torch, a loop",
                    "published by others",
                ),
                _layer_lines(layers),
                right=range(1, 9),
            ),
            "",
            f"![microseconds of a layer, share of the roofline of grouped products]({picture.name})",
            "",
            "Published by others: the times that FlashInfer's authors give for their kernel of one layer of these sizes; not measured "
            "here.",
            "",
            "### Products of all experts",
            "",
            f"First product of {sizes}. A loop: `evergemm.scaled_mm` for each expert that has rows, in a graph of its own, as if the "
            "host knew the rows. Scales of 1 x 128 lie with the tokens fastest, where the copy engine reads them (multiples of 4 rows). "
            f"DeepGEMM where the module `deep_gemm` is installed (here: {deep_gemm_peer.version()}): its products of rows that already lie as it "
            "wants them, a fixed number of places an expert (masked) or padded to 128 (contiguous).",
            "",
            markdown_table(
                (
                    "layer",
                    "tokens",
                    "rows",
                    "experts used",
                    "scheme",
                    "evergemm",
                    "share",
                    "`_scaled_grouped_mm` / ours",
                    "loop / ours",
                    "DeepGEMM masked / ours",
                    "contiguous / ours",
                ),
                cells,
                right=(1, 2, 3, 5, 6, 7, 8, 9, 10),
            ),
            "",
            "### Skewed routings",
            "",
            "The same product, microseconds and share of the same work's least time.",
            "",
            markdown_table(("layer", "scheme", "tokens", *ROUTINGS), skew_lines, right=range(2, 3 + len(ROUTINGS))),
            "",
            "### Steps besides the products",
            "",
            markdown_table(("step", *(f"{tokens} tokens" for tokens in ROUTED_TOKENS)), steps, right=range(1, 7)),
        ]
    )


def _curves(
    layers: Sequence[moe_bench.Measurement], products: Sequence[Cell]
) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[tuple[int, float]]]]:
    """Of the picture: microseconds of a layer; share of the roofline of fp8 products by shape."""
    times: dict[str, list[tuple[int, float]]] = {}
    for one in layers:
        if one.implementation.endswith("a loop"):
            continue  # a hundred times as long
        times.setdefault(f"{one.scheme}, {one.implementation}", []).append((one.tokens, one.median))
        if one.implementation == moe_bench.OURS and one.scheme == "fp8" and one.roofline is not None:
            times.setdefault("fp8, roofline", []).append((one.tokens, one.roofline))
    shares: dict[str, list[tuple[int, float]]] = {}
    for one in products:
        if one.scheme != "fp8":
            continue
        shares.setdefault(f"{one.shape}, {moe_bench.OURS}", []).append((one.tokens, one.share))
        if _TORCH in one.times:
            shares.setdefault(f"{one.shape}, {_TORCH}", []).append((one.tokens, one.roofline / one.times[_TORCH]))
    return times, shares
