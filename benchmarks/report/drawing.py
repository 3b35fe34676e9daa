"""The looks of the plots. Colours are those of Okabe and Ito, "Color Universal Design", told apart by everybody."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999", "#F0E442", "#000000")
HATCHES = ("", "///", "...", "xxx", "\\\\\\")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
BAR_INCHES = 0.2
GREY = "#bbbbbb"
# At the left: the legend is at the right.
TITLE: dict[str, Any] = {"fontsize": 11, "x": 0.01, "ha": "left"}

Data = Mapping[str, Any]


def styles(names: Iterable[str], values: Sequence[str]) -> dict[str, str]:
    """A colour, marker or hatch for each different name, in the order of their appearance."""
    return {name: values[i % len(values)] for i, name in enumerate(dict.fromkeys(names))}


def plain(value: float) -> str:
    """A tick or a label: three digits, never an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def logarithmic(axes: Axes, which: str = "x", subs: Sequence[float] = (1, 2, 5)) -> None:
    """A logarithmic axis with ticks that read as numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def clean(axes: Axes, grid: str) -> None:
    """Only what is needed of a frame and a grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e5e5e5", linewidth=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)


def accuracy(data: Data) -> Figure:
    """AbsRel against a cost, a panel for each cost; a colour for a model, a marker for a way of running it."""
    panels: Mapping[str, Sequence[Data]] = data["panels"]
    points = [point for each in panels.values() for point in each]
    colours = styles(sorted({point["model"] for point in points}), COLOURS)
    markers = styles((point["way"] for point in points), MARKERS)
    figure = Figure(figsize=(4.2 * len(panels) + 2.6, 4), layout="constrained")
    figure.suptitle(f"Accuracy against cost\n{data['title']}", **TITLE)
    for axes, (label, each) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for point in each:
            axes.plot(
                point["x"],
                point["abs_rel"],
                markers[point["way"]],
                color=colours[point["model"]],
                markersize=8,
                markeredgecolor="white",
            )
        logarithmic(axes)
        clean(axes, "both")
        axes.margins(0.12, 0.2)
        axes.set_xlabel(f"{label}, log scale")
        axes.set_ylabel("AbsRel, lower is better")
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], linestyle="", marker=marker, color="#444444", label=name)
        for name, marker in markers.items()
    ]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def latency(data: Data) -> Figure:
    """Bars by model, zoo above peers, a colour for each way; a black line marks the floor."""
    groups = grouped(data["bars"], "median")
    ways = styles((bar["way"] for bar in data["bars"]), COLOURS)
    figure, axes, positions = bar_figure(groups, data["title"])
    for bar, at in positions:
        axes.barh(
            at, bar["median"], height=0.9, color=ways[bar["way"]], hatch="" if not bar["peer"] else "///"
        )
        axes.plot([bar["quickest"], bar["slowest"]], [at, at], color="#444444", linewidth=1)
        label_bar(axes, bar["median"], at, max(bar["median"], bar["slowest"]))
        if bar["floor"]:
            axes.plot([bar["floor"]] * 2, [at - 0.45, at + 0.45], color="black", linewidth=2)
    low = min(min(bar["median"], bar["floor"] or bar["median"]) for bar in data["bars"]) / 2
    high = 1.8 * max(bar["slowest"] for bar in data["bars"])
    logarithmic(axes, subs=(1, 2, 5) if high < 1000 * low else (1, 3))
    axes.set_xlim(low, high)
    clean(axes, "x")
    axes.set_xlabel("milliseconds, log scale; median, and from quickest to slowest")
    handles: list[Any] = [Patch(color=colour, label=name) for name, colour in ways.items()]
    if any(bar["peer"] for bar in data["bars"]):
        handles.append(Patch(facecolor="white", edgecolor="#444444", hatch="///", label="peer"))
    if any(bar["floor"] for bar in data["bars"]):
        handles.append(Line2D([], [], color="black", linewidth=2, label="floor"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def grouped(bars: Sequence[Data], key: str) -> list[tuple[str, list[Data]]]:
    """Bars by model; the zoo before peers, each in the order of its quickest."""
    models: dict[tuple[bool, str], list[Data]] = {}
    for bar in bars:
        models.setdefault((bool(bar.get("peer")), bar["model"]), []).append(bar)
    known = sorted(models.items(), key=lambda each: (each[0][0], min(bar[key] for bar in each[1])))
    return [(name, each) for (_, name), each in known]


def bar_figure(groups: Sequence[tuple[str, Sequence[Data]]], title: str) -> tuple[Figure, Axes, list[Any]]:
    """An empty figure for horizontal bars, its axes, and each bar with its place."""
    positions, centres, at = [], [], 0.0
    for _, bars in groups:
        centres.append(at + (len(bars) - 1) / 2)
        for bar in bars:
            positions.append((bar, at))
            at += 1
        at += 0.8
    figure = Figure(figsize=(9, 1.5 + BAR_INCHES * at), layout="constrained")
    figure.suptitle(title, **TITLE)
    axes = figure.subplots()
    axes.set_yticks(centres, [name for name, _ in groups])
    axes.set_ylim(at - 0.6, -0.8)
    axes.tick_params(axis="y", length=0)
    return figure, axes, positions


def training(data: Data) -> Figure:
    """Images per second and, where known, memory, a pair of panels; a colour for each way."""
    bars: Sequence[Data] = data["bars"]
    panels = {"images/s, median and spread, more is better": ("images_per_s", 1.0)}
    if any(bar["peak_memory"] for bar in bars):
        panels["peak memory (GiB), less is better"] = ("peak_memory", 2.0**30)
    models = list(dict.fromkeys(bar["model"] for bar in bars))
    ways = styles((bar["way"] for bar in bars), COLOURS)
    groups = [(name, [bar for bar in bars if bar["model"] == name]) for name in models]
    height = 1.6 + BAR_INCHES * (len(bars) + 0.8 * len(groups))
    figure = Figure(figsize=(4.4 * len(panels) + 2, height), layout="constrained")
    figure.suptitle(data["title"], **TITLE)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (label, (key, unit)) in zip(all_axes, panels.items(), strict=True):
        at, centres = 0.0, []
        for _, each in groups:
            centres.append(at + (len(each) - 1) / 2)
            for bar in each:
                if bar[key]:
                    axes.barh(at, bar[key] / unit, height=0.9, color=ways[bar["way"]])
                    end = bar[key] / unit
                    if key == "images_per_s" and bar["lowest"]:
                        axes.plot([bar["lowest"], bar["highest"]], [at, at], color="#444444", linewidth=1)
                        end = bar["highest"]
                    label_bar(axes, bar[key] / unit, at, end)
                at += 1
            at += 0.8
        axes.set_yticks(centres, models if axes is all_axes[0] else [""] * len(models))
        axes.set_ylim(at - 0.6, -0.8)
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)
        axes.set_xlabel(label)
        clean(axes, "x")
    handles = [Patch(color=colour, label=name) for name, colour in ways.items()]
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def label_bar(axes: Axes, value: float, at: float, end: float | None = None) -> None:
    """The value behind a bar's end, or where else what belongs to it ends."""
    axes.annotate(
        plain(value),
        (value if end is None else end, at),
        (4, 0),
        textcoords="offset points",
        va="center",
        fontsize=7,
        bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"},
        zorder=4,
    )


def scaling(data: Data) -> Figure:
    """Throughput over each of what was varied; dashed, what perfect scaling would be from the first point."""
    panels: Mapping[str, Sequence[Data]] = data["panels"]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    names = sorted({curve["name"] for curves in panels.values() for curve in curves})
    looks: dict[str, dict[str, Any]] = {
        name: {"color": COLOURS[i % 9], "marker": MARKERS[i % 10]} for i, name in enumerate(names)
    }
    figure = Figure(figsize=(4.2 * columns + 2.4, 3.4 * lines + 0.5), layout="constrained")
    figure.suptitle(data["title"], **TITLE)
    grid = [axes for row in figure.subplots(lines, columns, squeeze=False) for axes in row]
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, (over, curves) in zip(grid, panels.items(), strict=False):
        draw_curves(axes, over, curves, looks)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    handles.append(Line2D([], [], linestyle="--", color=GREY, label="in proportion"))
    if any(curve["from memory"] for curves in panels.values() for curve in curves):
        handles.append(Line2D([], [], linestyle=":", color="#444444", label="frames in memory"))
    figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=9)
    return figure


def draw_curves(axes: Axes, over: str, curves: Sequence[Data], looks: Mapping[str, Any]) -> None:
    """A panel: curves with their spread; logarithmic where what varies spans decades."""
    for curve in curves:
        values, rates, lowest, highest = zip(*curve["points"], strict=True)
        ideal, known = IDEAL.get(over), [i for i, value in enumerate(values) if value > 0]
        if ideal is not None and known:
            start = known[0]
            perfect = [rates[start] * (values[i] / values[start]) ** ideal for i in known]
            axes.plot([values[i] for i in known], perfect, "--", color=GREY, linewidth=1.2)
        if curve["from memory"]:
            axes.axhline(curve["from memory"], linestyle=":", color="#444444", linewidth=1.2)
        below = [rate - low for rate, low in zip(rates, lowest, strict=True)]
        above = [high - rate for rate, high in zip(rates, highest, strict=True)]
        axes.errorbar(values, rates, [below, above], capsize=2, elinewidth=1, **looks[curve["name"]])
    ticks = sorted({point[0] for curve in curves for point in curve["points"]})
    if over in ("pixels", "batch"):
        logarithmic(axes)
        logarithmic(axes, "y")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xticks(ticks, [plain(tick) if over != "pixels" else f"{tick / 1000:.0f}k" for tick in ticks])
    clean(axes, "both")
    fixed = dict.fromkeys(curve["at"] for curve in curves if curve["at"])
    axes.set_xlabel(over + (f" ({'; '.join(fixed)})" if fixed else ""))
    axes.set_ylabel("images/s, median and spread")


# The exponent of throughput where cost grows, or work divides, in proportion.
IDEAL = {"pixels": -1.0, "workers": 1.0, "processes": 1.0}
DRAW: Mapping[str, Callable[[Data], Figure]] = {
    "accuracy": accuracy,
    "latency": latency,
    "training": training,
    "scaling": scaling,
}
