# SPDX-License-Identifier: Apache-2.0
"""`evergemm bench`: the operators against torch's on the shapes of real models; a table, a CSV and a roofline picture.

One process, implementations in turns, weights rotated so that they come from memory, evergemm's result checked before it is
timed, read bandwidth measured in the same run. `--cpu-report` and `--gpu-report` measure the lines of docs/performance.md and
write them there. Must not go here: clocks (timing.py), candidates and checks (peers.py), the GPU's (gpu_bench.py), whole
mixture-of-experts layers (moe_bench.py), drawing (charts.py).
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import datetime
import json
import platform
import re
from collections.abc import Sequence
from pathlib import Path

from ..text import bytes_text, markdown_table, microseconds_text, table
from . import machine

SHAPES_FILE = Path(__file__).parents[1] / "data" / "shapes.json"
PRESETS = {
    "llama-8b": ("L1", "L2", "L3"),
    "llama-70b": ("L4", "L5", "L6"),
    "qwen3": ("Q1", "Q2"),
    "deepseek-v3": ("D1", "D2", "D3", "D4", "D5", "D6"),
    "minilm": ("1536x384", "384x1536", "384x384"),
}
_DEFAULT_SHAPES, _DEFAULT_ROWS = "L1,D1", "1,32"
_GPU_ROWS = "1,16,64,256,1024"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A weight [n, k] of a model."""

    id: str
    layer: str
    n: int
    k: int


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One implementation on one problem."""

    shape: Shape
    m: int
    scheme: str
    implementation: str
    row: str  # evergemm's; "" for peers
    timing: object  # timing.Timing
    operations: float
    bytes: float

    @property
    def operations_per_second(self) -> float:
        return self.operations / (self.timing.median * 1e-6)

    @property
    def bytes_per_second(self) -> float:
        return self.bytes / (self.timing.median * 1e-6)


def known_shapes() -> dict[str, Shape]:
    """The dense shapes of shapes.json by id."""
    listed = json.loads(SHAPES_FILE.read_text("utf-8"))["dense"]
    return {one["id"]: Shape(one["id"], one["layer"], one["n"], one["k"]) for one in listed}


def shapes_named(names: Sequence[str]) -> list[Shape]:
    """Ids of shapes.json, or NxK such as 1536x384."""
    known = known_shapes()
    found = []
    for name in names:
        sizes = re.fullmatch(r"(\d+)x(\d+)", name)
        if name in known:
            found.append(known[name])
        elif sizes and int(sizes[1]) > 0 and int(sizes[2]) > 0:
            found.append(Shape(name, f"weight [{sizes[1]}, {sizes[2]}]", int(sizes[1]), int(sizes[2])))
        else:
            raise ValueError(
                f"bench: expected shapes of {', '.join(known)} or NxK; got {name!r}; fix: name one of them."
            )
    return found


def measure(
    shapes: Sequence[Shape],
    rows: Sequence[int],
    schemes: Sequence[str],
    rounds: int,
    seconds: float,
    peers: Sequence[str] | None = None,
    quiet: bool = False,
) -> list[Measurement]:
    """Every implementation on every problem; RuntimeError where evergemm's result is wrong."""
    import torch

    from ..explanation import explain
    from . import peers as peers_module
    from .progress import Progress
    from .timing import interleaved

    measurements = []
    problems = [(shape, scheme, m) for shape in shapes for scheme in schemes for m in rows]
    with torch.no_grad(), Progress("timing", len(problems) * rounds, quiet) as progress:
        for shape, scheme, m in problems:
            progress.advance(0, f"timing {shape.id} {scheme} m={m}")
            case = peers_module.make_case(shape.id, scheme, m, shape.n, shape.k, torch.float32)
            calls = peers_module.implementations(case, peers)
            peers_module.check(case, calls[peers_module.OURS](0))
            dtype, scales = peers_module.SCHEMES[scheme]
            row = explain(m=m, n=shape.n, k=shape.k, dtype=dtype, scales=scales, out_dtype="float32").row
            for name, timing in interleaved(calls, rounds, seconds, progress.advance).items():
                measurements.append(
                    Measurement(
                        shape,
                        m,
                        scheme,
                        name,
                        row if name == peers_module.OURS else "",
                        timing,
                        case.operations,
                        _bytes_of(name, case),
                    )
                )
        progress.advance(0, f"timing {len(problems)} problems, {rounds} rounds")
    return measurements


def _bytes_of(implementation: str, case) -> float:
    """What that implementation cannot avoid to move: float weights and activations are larger."""
    width = {"fp32 mm": 4, "bf16 mm": 2}.get(implementation)
    if width is None:
        return case.bytes
    return float(width * (case.n * case.k + case.m * case.k + case.m * case.n))


def _grouped(measurements: Sequence[Measurement]) -> dict[tuple, dict[str, Measurement]]:
    groups: dict[tuple, dict[str, Measurement]] = {}
    for one in measurements:
        groups.setdefault((one.shape, one.scheme, one.m), {})[one.implementation] = one
    return groups


def results_table(measurements: Sequence[Measurement], bandwidth: float) -> str:
    """A line a problem: evergemm's time, spread, rates, and every peer's time over evergemm's (above 1: evergemm faster)."""
    from .peers import OURS

    peers = list(dict.fromkeys(one.implementation for one in measurements if one.implementation != OURS))
    lines = []
    for (shape, scheme, m), found in _grouped(measurements).items():
        ours = found[OURS]
        ratios = [f"{found[peer].timing.median / ours.timing.median:.2f}x" if peer in found else "" for peer in peers]
        lines.append(
            (
                shape.id,
                f"{shape.n} x {shape.k}",
                scheme,
                m,
                microseconds_text(ours.timing.median),
                f"{ours.timing.spread:.0%}",
                f"{ours.operations_per_second / 1e9:,.0f}",
                f"{ours.bytes_per_second / 1e9:.1f}",
                f"{ours.bytes_per_second / bandwidth:.0%}",
                *ratios,
                ours.row,
            )
        )
    header = ("shape", "n x k", "scheme", "m", "time", "spread", "GOP/s", "GB/s", "of read", *peers, "row")
    return table(header, lines, right=range(3, len(header) - 1))


def write_csv(path: Path, measurements: Sequence[Measurement], bandwidth: float) -> None:
    """One line for each implementation and problem; microseconds, bytes and operations per second."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(
            "shape,layer,n,k,m,scheme,implementation,row,median_us,low_us,high_us,rounds,calls_per_round,"
            "operations_per_second,bytes_per_second,measured_read_bytes_per_second".split(",")
        )
        for one in measurements:
            timing = one.timing
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
                    f"{timing.median:.3f}",
                    f"{timing.low:.3f}",
                    f"{timing.high:.3f}",
                    timing.rounds,
                    timing.calls,
                    f"{one.operations_per_second:.6g}",
                    f"{one.bytes_per_second:.6g}",
                    f"{bandwidth:.6g}",
                ]
            )


def _machine() -> str:
    import torch

    threads = torch.get_num_threads()
    return f"{machine.processor()['model']}, {threads} thread{'s' if threads != 1 else ''}, torch {torch.__version__}"


# ---- the report of docs/performance.md ---------------------------------------------------------------------------------

_REPORT_SHAPES = ("1536x384", "384x1536", "4096x4096")
_REPORT_ROWS = (32, 128, 512)
_REPORT_SINGLE = "4096x4096"  # one row of activations: a stream of weights


def cpu_report(rounds: int, seconds: float, quiet: bool = False) -> str:
    """Measures every line of the CPU's report in one run; Markdown."""
    from . import timing
    from .peers import OURS

    warning = timing.busy_warning()
    before = timing.read_bandwidth()
    single = measure(
        shapes_named([_REPORT_SINGLE]), [1], ["int8", "fp8", "fp8-block"], rounds, seconds, ["fp32 mm"], quiet
    )
    bandwidth = max(before, timing.read_bandwidth())  # the strictest: the better of before and after
    shapes = shapes_named(_REPORT_SHAPES)
    int8 = measure(
        shapes,
        _REPORT_ROWS,
        ["int8"],
        rounds,
        seconds,
        ["torch._int_mm + dequantize", "onednn qlinear", "fp32 mm"],
        quiet,
    )
    fp8 = measure(shapes, _REPORT_ROWS, ["fp8", "fp8-block"], rounds, seconds, ["torch._scaled_mm", "fp32 mm"], quiet)

    def time_of(one: Measurement | None) -> str:
        return f"{one.timing.median:,.1f}" if one else ""

    def ratio(peer: Measurement | None, ours: Measurement) -> str:
        return f"{peer.timing.median / ours.timing.median:.2f}" if peer else ""

    lines = [
        f"Measured {datetime.date.today().isoformat()} on {_machine()}, Python {platform.python_version()}, by "
        "`evergemm bench --cpu-report docs/performance.md`.",
        f"Microseconds a call, median of {rounds} rounds in which the implementations take turns; result float32; weights "
        f"rotated over at least three times the last cache ({bytes_text(timing.last_level_cache_bytes())}). A ratio is a peer's "
        "time over evergemm's: above 1, evergemm is faster. Every result was checked first.",
    ]
    if warning:
        lines.append(f"**{warning[0].upper()}{warning[1:]}.**")

    lines += ["", "### int8", ""]
    cells = []
    for (shape, _, m), found in _grouped(int8).items():
        ours = found[OURS]
        int_mm, qlinear = found.get("torch._int_mm + dequantize"), found.get("onednn qlinear")
        fp32 = found.get("fp32 mm")
        cells.append(
            (
                f"{shape.n} x {shape.k}",
                m,
                time_of(ours),
                f"{ours.timing.spread:.0%}",
                f"{ours.operations_per_second / 1e9:,.0f}",
                time_of(int_mm),
                ratio(int_mm, ours),
                time_of(qlinear),
                ratio(qlinear, ours),
                ratio(fp32, ours),
                f"`{ours.row}`",
            )
        )
    header = (
        "n x k",
        "m",
        "evergemm",
        "spread",
        "GOP/s",
        "`_int_mm` + dequantize",
        "ratio",
        "oneDNN qlinear",
        "ratio",
        "fp32 mm ratio",
        "row",
    )
    lines += [markdown_table(header, cells, right=range(1, 10))]

    lines += ["", f"### One row of activations, {single[0].shape.n} x {single[0].shape.k}", ""]
    cells = []
    for (_, scheme, _), found in _grouped(single).items():
        ours = found[OURS]
        cells.append(
            (
                scheme,
                time_of(ours),
                f"{ours.timing.spread:.0%}",
                f"{ours.bytes_per_second / 1e9:.1f}",
                f"{ours.bytes_per_second / bandwidth:.0%}",
                ratio(found.get("fp32 mm"), ours),
                f"`{ours.row}`",
            )
        )
    header = ("scheme", "evergemm", "spread", "GB/s", "of measured read bandwidth", "fp32 mm ratio", "row")
    lines += [
        f"Read bandwidth measured in the same run: {bandwidth / 1e9:.1f} GB/s (the best of sum, dot and matrix-vector "
        "product in fp32). Bytes counted: weight, activations, result.",
        "",
        markdown_table(header, cells, right=range(1, 6)),
    ]

    lines += ["", "### fp8", ""]
    cells = []
    for (shape, scheme, m), found in _grouped(fp8).items():
        ours, scaled_mm, fp32 = found[OURS], found.get("torch._scaled_mm"), found.get("fp32 mm")
        cells.append(
            (
                f"{shape.n} x {shape.k}",
                scheme,
                m,
                time_of(ours),
                f"{ours.timing.spread:.0%}",
                time_of(scaled_mm),
                ratio(scaled_mm, ours),
                time_of(fp32),
                ratio(fp32, ours),
                f"`{ours.row}`",
            )
        )
    header = (
        "n x k",
        "scheme",
        "m",
        "evergemm",
        "spread",
        "`_scaled_mm`",
        "ratio",
        "fp32 mm",
        "ratio",
        "row",
    )
    lines += [markdown_table(header, cells, right=range(2, 9))]
    lines += [
        "",
        "oneDNN's qlinear is called as torch.compile calls it: weights packed beforehand, unsigned activations with one scale "
        "for the whole tensor. `torch._scaled_mm` has one scale per tensor on the CPU. evergemm packs nothing beforehand and "
        "scales per token and channel (blocks: 1x128 by 128x128).",
    ]
    return "\n".join(lines)


def _markers(report: str) -> tuple[str, str]:
    return f"<!-- {report}-report:begin -->", f"<!-- {report}-report:end -->"


def _page_with_markers(path: Path, report: str) -> str:
    page = path.read_text("utf-8")
    begin, end = _markers(report)
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise ValueError(
            f"bench: expected the lines {begin} and {end} once each in {path}; got another number or order; "
            "fix: put them where the report belongs."
        )
    return page


def write_between_markers(path: Path, text: str, report: str = "cpu") -> None:
    """Replaces what stands between the markers of a report ("cpu", "gpu" or "moe") in a Markdown file."""
    page = _page_with_markers(path, report)
    begin, end = _markers(report)
    head, tail = page[: page.index(begin) + len(begin)], page[page.index(end) :]
    path.write_text(f"{head}\n{text}\n{tail}", "utf-8")


# ---- the command -------------------------------------------------------------------------------------------------------


def _words(text: str) -> list[str]:
    return [word for word in text.replace(" ", "").split(",") if word]


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(word) for word in _words(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers with commas, got {text!r}") from error
    if not numbers or min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"expected numbers of at least 1, got {text!r}")
    return numbers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = known_shapes()
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "shapes (n x k of the weight):\n" + "\n".join(
        f"  {one.id}  {one.n:>5} x {one.k:<5}  {one.layer}" for one in known.values()
    )
    parser.add_argument(
        "--shapes", type=_words, help=f"ids of the list below, or NxK, with commas (default {_DEFAULT_SHAPES})"
    )
    parser.add_argument("--preset", choices=PRESETS, help="the shapes of a model")
    parser.add_argument(
        "--m",
        type=_numbers,
        help=f"rows of activations, with commas (default {_DEFAULT_ROWS}; on a GPU {_GPU_ROWS})",
    )
    parser.add_argument(
        "--schemes", type=_words, help="of int8,fp8,fp8-block, on a GPU also fp8-tensor (one scale); default all"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], help="default: the GPU where torch and this build serve one"
    )
    parser.add_argument(
        "--moe",
        action="store_true",
        help="whole mixture-of-experts layers: --shapes ids such as F1 or EXPERTSxTOP_KxHIDDENxINTERMEDIATE, --m tokens",
    )
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument(
        "--seconds", type=float, help="a round of one implementation takes (default 0.1; on a GPU 0.005)"
    )
    parser.add_argument("--vs", choices=["torch", "nothing"], default="torch", help="peers (default torch)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("evergemm-bench"),
        help="folder for bench.csv and bench.png (./evergemm-bench)",
    )
    parser.add_argument(
        "--cpu-report",
        type=Path,
        metavar="FILE",
        help="measure the CPU's report and write it into FILE, between its markers",
    )
    parser.add_argument(
        "--gpu-report",
        type=Path,
        metavar="FILE",
        help="measure the GPU's report and write it into FILE, between its markers, and its picture beside FILE",
    )
    parser.add_argument(
        "--moe-report",
        type=Path,
        metavar="FILE",
        help="the same for mixtures of experts on the GPU",
    )


def _gpu_served() -> bool:
    """Whether torch sees a GPU that this build has kernels for."""
    import torch

    if not torch.cuda.is_available():
        return False
    from .. import _library
    from ..explanation import architecture_of

    rows = _library.library.facts()["architectures"].get(architecture_of(torch.device("cuda")), {})
    return bool(rows.get("built"))


def run(arguments: argparse.Namespace) -> int:
    """Exit code 0; 1 where a result was wrong or an argument names nothing."""
    if arguments.rounds < 1:
        raise ValueError(f"bench: expected at least 1 round; got {arguments.rounds}; fix: leave --rounds away.")
    on_gpu = arguments.device == "cuda" or (arguments.device is None and arguments.cpu_report is None and _gpu_served())
    seconds = arguments.seconds or (0.005 if on_gpu or arguments.gpu_report else 0.1)
    if arguments.cpu_report is not None:
        _page_with_markers(arguments.cpu_report, "cpu")  # a file without markers is refused before minutes of timing
        report = cpu_report(arguments.rounds, seconds)
        write_between_markers(arguments.cpu_report, report)
        print(report)
        return 0
    if arguments.gpu_report is not None:
        from . import gpu_bench

        _page_with_markers(arguments.gpu_report, "gpu")
        picture = arguments.gpu_report.with_name("performance_gpu.png")
        report = gpu_bench.report(
            shapes_named(gpu_bench.REPORT_SHAPES), list(known_shapes().values()), picture, arguments.rounds, seconds
        )
        write_between_markers(arguments.gpu_report, report, "gpu")
        print(report)
        return 0

    if arguments.moe_report is not None:
        from . import moe_report

        _page_with_markers(arguments.moe_report, "moe")
        picture = arguments.moe_report.with_name("performance_moe.png")
        report = moe_report.report(picture, arguments.rounds, arguments.seconds or 0.005)
        write_between_markers(arguments.moe_report, report, "moe")
        print(report)
        return 0

    if arguments.moe:
        from . import moe_bench

        return moe_bench.run(arguments, on_gpu, seconds)

    from . import charts
    from .progress import Progress
    from .timing import busy_warning, read_bandwidth

    if on_gpu:
        from .gpu_bench import SCHEMES
    else:
        from .peers import SCHEMES
    schemes = list(SCHEMES) if arguments.schemes is None else arguments.schemes
    unknown = [scheme for scheme in schemes if scheme not in SCHEMES]
    if unknown or not schemes:
        raise ValueError(f"bench: expected schemes of {', '.join(SCHEMES)}; got {unknown}; fix: name some of them.")
    names = list(arguments.shapes or (PRESETS[arguments.preset] if arguments.preset else _words(_DEFAULT_SHAPES)))
    shapes = shapes_named(names)
    rows = arguments.m or _numbers(_GPU_ROWS if on_gpu else _DEFAULT_ROWS)
    csv_path, png_path = arguments.output / "bench.csv", arguments.output / "bench.png"
    if on_gpu:
        from . import gpu_bench

        found = gpu_bench.measure(shapes, rows, schemes, arguments.rounds, seconds)
        print(f"{gpu_bench.device_text()}\n\n{gpu_bench.results_table(found)}")
        print("\ncolumns of peers: their time over evergemm's; above 1, evergemm is faster; host us: of an eager call")
        arguments.output.mkdir(parents=True, exist_ok=True)
        gpu_bench.write_csv(csv_path, found)
        gpu_bench.draw(png_path, found, names)
        pictures = [png_path]
        if gpu_bench.draw_roofline(png_path.with_name("bench_roofline.png"), found, names):
            pictures.append(png_path.with_name("bench_roofline.png"))
        print(f"table: {csv_path.resolve()}", *(f"picture: {path.resolve()}" for path in pictures), sep="\n")
        return 0
    warning = busy_warning()
    with Progress("measuring read bandwidth", 1) as progress:
        bandwidth = read_bandwidth()
        progress.advance()
    peers = None if arguments.vs == "torch" else []
    measurements = measure(shapes, rows, schemes, arguments.rounds, seconds, peers)

    print(f"{_machine()}; read bandwidth {bandwidth / 1e9:.1f} GB/s")
    if warning:
        print(f"note: {warning}")
    print()
    print(results_table(measurements, bandwidth))
    if peers is None:
        print("\ncolumns of peers: their time over evergemm's; above 1, evergemm is faster")
    arguments.output.mkdir(parents=True, exist_ok=True)
    write_csv(csv_path, measurements, bandwidth)
    charts.roofline(
        png_path,
        [
            (one.scheme, one.implementation, one.operations / one.bytes, one.operations_per_second)
            for one in measurements
        ],
        bandwidth,
        title="evergemm and torch on " + ", ".join(names),
        subtitle=_machine(),
    )
    print(f"table: {csv_path.resolve()}\npicture: {png_path.resolve()}")
    return 0
