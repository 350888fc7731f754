# SPDX-License-Identifier: Apache-2.0
"""The pictures: a roofline for bench, similarity and speed for demo. matplotlib, no display.

Must not go here: measuring.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# One colour a scheme in every picture (Okabe and Ito: told apart by colour-blind eyes too).
COLOURS = {
    "fp32": "#7f7f7f",
    "int8": "#0072b2",
    "fp8": "#d55e00",
    "fp8-tensor": "#cc79a7",
    "fp8-block": "#009e73",
}
_UNQUANTIZED = ("fp32 mm", "bf16 mm")
_INK, _GRID = "#222222", "#dddddd"


def _pyplot():
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(
            f"expected matplotlib to draw the picture; got {error}; fix: pip install matplotlib."
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as pyplot

    pyplot.rcParams.update(
        {
            "font.size": 9,
            "axes.edgecolor": _INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": _GRID,
            "grid.linewidth": 0.6,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "legend.frameon": False,
            "figure.facecolor": "white",
        }
    )
    return pyplot


def roofline(
    path: Path,
    points: Sequence[tuple[str, str, float, float]],
    bandwidth: float,
    title: str,
    subtitle: str,
) -> None:
    """points: (scheme, implementation, operations per byte, operations per second); bandwidth in bytes per second.

    The slope is the read bandwidth that was measured; the ceiling is the highest rate that any implementation reached."""
    import numpy

    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(9.5, 5), layout="constrained")
    ceiling = max(rate for *_, rate in points)
    lowest = min(intensity for *_, intensity, _ in points) / 2
    highest = max(max(intensity for *_, intensity, _ in points) * 2, 2 * ceiling / bandwidth)
    line = numpy.geomspace(lowest, highest, 200)
    limits = f"limits: {bandwidth / 1e9:.1f} GB/s read,\n{ceiling / 1e9:,.0f} GOP/s the best here"
    axes.plot(line, numpy.minimum(line * bandwidth, ceiling) / 1e9, color=_INK, linewidth=1.4, label=limits)
    # Float products are the same whatever scheme they stand beside: one grey mark each.
    kinds = [("" if name in _UNQUANTIZED else scheme, name, x, y / 1e9) for scheme, name, x, y in points]
    markers = dict(zip(dict.fromkeys(name for _, name, *_ in kinds), "oxs^vD*+", strict=False))
    for scheme, name in dict.fromkeys((scheme, name) for scheme, name, *_ in kinds):
        ours = name == "evergemm"
        axes.scatter(
            *zip(*[(x, y) for s, n, x, y in kinds if (s, n) == (scheme, name)], strict=True),
            marker=markers[name],
            s=48 if ours else 26,
            color=COLOURS.get(scheme, COLOURS["fp32"]),
            alpha=1.0 if ours else 0.6,
            linewidths=1.0,
            label=f"{name}, {scheme}" if scheme else name,
            zorder=3 if ours else 2,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="GOP/s")
    figure.legend(loc="outside right center", fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", size=11)
    axes.set_title(subtitle, weight="normal", size=9, color="#555555")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def gpu(
    path: Path,
    shares: Sequence[tuple[str, str, Sequence[tuple[int, float]]]],
    ratios: Sequence[tuple[str, Sequence[tuple[int, float]]]],
    title: str,
    subtitle: str,
) -> None:
    """shares: (scheme, implementation, [(m, share of the roofline)]); ratios: (scheme, [(m, best peer's time / evergemm's)])."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 5.0), layout="constrained", sharex=True)
    for scheme, name, points in shares:
        ours = name == "evergemm"
        left.plot(
            *zip(*points, strict=True),
            color=COLOURS.get(scheme, _INK),
            linestyle="-" if ours else "--" if name.startswith("torch") else ":",
            linewidth=1.8 if ours else 1.1,
            marker="o" if ours else None,
            markersize=4,
            label=f"{scheme}, {name}",
        )
    for scheme, points in ratios:
        right.plot(*zip(*points, strict=True), color=COLOURS.get(scheme, _INK), marker="o", markersize=4, label=scheme)
    right.axhline(1, color=_INK, linewidth=1.0)
    numbers = sorted({m for _, _, points in shares for m, _ in points} | {m for _, points in ratios for m, _ in points})
    # Labels that stand closer would lie over each other.
    labelled = [m for i, m in enumerate(numbers) if i == 0 or m > 1.4 * numbers[i - 1]]
    for axes in (left, right):
        axes.set(xscale="log", xlabel="m, rows of activations")
        axes.set_xticks(labelled, [str(m) for m in labelled])
        axes.minorticks_off()
    highest = max(share for _, _, points in shares for _, share in points)
    left.set(ylabel="share of the roofline", ylim=(0, max(1.0, 1.03 * highest)))
    left.set_title("Share of the least time")
    right.set(ylabel="time of the best peer / evergemm's", ylim=(0, None))
    right.set_title("Against the best peer: above 1, evergemm is faster")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)  # over no curve
    figure.suptitle(f"{title}\n", x=0.01, ha="left", weight="bold", size=11)
    figure.text(0.0105, 0.935, subtitle, ha="left", size=8, color="#555555")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def layers(path: Path, lines: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """lines: "scheme, implementation" -> [(tokens, microseconds)]; evergemm's solid, the roofline dotted, peers dashed."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7.6, 4.8), layout="constrained")
    for label, points in lines.items():
        scheme, name = label.split(", ", 1)
        ours = name == "evergemm"
        axes.plot(
            *zip(*points, strict=True),
            color=COLOURS.get(scheme, _INK),
            linestyle="-" if ours else ":" if name == "roofline" else "--",
            linewidth=1.8 if ours else 1.1,
            marker="o" if ours else None,
            markersize=4,
            label=label,
        )
    axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="microseconds a layer")
    numbers = sorted({tokens for points in lines.values() for tokens, _ in points})
    axes.set_xticks(numbers, [str(tokens) for tokens in numbers])
    axes.minorticks_off()
    axes.set_title(title)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def moe(
    path: Path,
    times: Mapping[str, Sequence[tuple[int, float]]],
    shares: Mapping[str, Sequence[tuple[int, float]]],
) -> None:
    """times: "scheme, implementation" -> [(tokens, microseconds of a layer)]; shares: "shape, implementation" -> [(tokens, share of
    the roofline of one product)]. evergemm's solid, the roofline dotted, peers dashed."""
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11.5, 5.6), layout="constrained")
    shapes = list(dict.fromkeys(label.split(", ", 1)[0] for label in shares))
    colours = dict(zip(shapes, ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"), strict=False))
    for axes, lines, known in ((left, times, COLOURS), (right, shares, colours)):
        for label, points in lines.items():
            first, name = label.split(", ", 1)
            ours = name == "evergemm"
            axes.plot(
                *zip(*points, strict=True),
                color=known.get(first, _INK),
                linestyle="-" if ours else ":" if name == "roofline" else "--" if "loop" not in name else "-.",
                linewidth=1.8 if ours else 1.1,
                marker="o" if ours else None,
                markersize=4,
                label=label,
            )
        numbers = sorted({tokens for points in lines.values() for tokens, _ in points})
        axes.set(xscale="log", xlabel="tokens")
        axes.set_xticks(numbers, [str(tokens) for tokens in numbers])
        axes.minorticks_off()
        axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)  # over no curve
    left.set(yscale="log", ylabel="microseconds a layer")
    left.set_title("A whole layer")
    right.set(ylabel="share of the least time", ylim=(0, 1))
    right.set_title("The first product of all experts, fp8")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def demo(
    path: Path,
    reference: Sequence[float],
    similarities: Mapping[str, Sequence[float]],
    speeds: Mapping[str, float],
    megabytes: Mapping[str, float],
    recalls: Mapping[str, float],
    title: str,
    subtitle: str,
) -> None:
    """similarities: scheme -> cosine similarities of the same pairs as `reference` (those of fp32); speeds: scheme ->
    sentences a second; megabytes: scheme -> linear layers' size; recalls: scheme -> recall@10."""
    pyplot = _pyplot()
    figure = pyplot.figure(figsize=(11, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, len(similarities) * 2, height_ratios=(1.25, 1))
    low = min([*reference, *(value for values in similarities.values() for value in values)]) - 0.02
    first = None
    for column, (scheme, values) in enumerate(similarities.items()):
        axes = figure.add_subplot(grid[0, 2 * column : 2 * column + 2], sharex=first, sharey=first)
        first = first or axes
        axes.plot([low, 1], [low, 1], color=_INK, linewidth=0.8, zorder=1)
        axes.scatter(reference, values, s=4, alpha=0.35, linewidths=0, color=COLOURS.get(scheme, _INK), zorder=2)
        axes.set(xlabel="cosine similarity, fp32", xlim=(low, 1.02), ylim=(low, 1.02), aspect="equal")
        axes.set_title(f"{scheme}: recall@10 {recalls[scheme]:.3f}")
        if column == 0:
            axes.set_ylabel("cosine similarity, quantized")
    half = len(similarities)
    for place, (values, unit, heading) in enumerate(
        (
            (speeds, "{:,.0f}", "Speed: sentences per second"),
            (megabytes, "{:.1f} MB", "Size of the linear layers"),
        )
    ):
        axes = figure.add_subplot(grid[1, place * half : (place + 1) * half])
        names = list(values)
        bars = axes.barh(names, list(values.values()), color=[COLOURS.get(name, _INK) for name in names], height=0.62)
        axes.bar_label(bars, [unit.format(value) for value in values.values()], padding=4)
        axes.invert_yaxis()
        axes.set_xlim(0, max(values.values()) * 1.18)
        axes.grid(axis="y", visible=False)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(heading)
    figure.suptitle(f"{title}\n", x=0.01, ha="left", weight="bold", size=12)
    figure.text(0.0105, 0.945, subtitle, ha="left", size=9, color="#555555")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
