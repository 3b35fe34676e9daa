"""How a run went, from the history in its ``metrics.json``: drawn as SVG and as pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from depthzoo.visualize import Pixels

# Key of the history, title, unit.
DRAWN = (
    ("loss", "training loss", ""),
    ("abs_rel", "validation AbsRel", ""),
    ("rmse", "validation RMSE", "m"),
    ("d1", "validation d1", ""),
    ("lr", "learning rate", ""),
    ("images_per_s", "images/s", ""),
)
WIDTH, HEIGHT = 320, 190  # of an SVG, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 24, 24


@dataclass(frozen=True)
class Series:
    """One curve: values over steps, all finite; ``unit`` of the values, or ""."""

    key: str
    title: str
    unit: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def number(value: Any) -> float:
    """A finite float, or NaN for whatever else a file may hold."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def series(history: Sequence[dict[str, Any]]) -> list[Series]:
    """The curves that a history has values for, in the order of ``DRAWN``."""
    found = []
    for key, title, unit in DRAWN:
        points = [(number(row.get("step")), number(row.get(key))) for row in history]
        points = [point for point in points if not any(map(math.isnan, point))]
        if points:
            steps, values = zip(*points, strict=True)
            found.append(Series(key, title, unit, steps, values))
    return found


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The validation of lowest AbsRel, if there is any."""
    rows = [row for row in history if not math.isnan(number(row.get("abs_rel")))]
    return min(rows, key=lambda row: number(row["abs_rel"])) if rows else None


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high]."""
    raw = (high - low) / count
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def svg(curve: Series, last_step: float, resumed: Sequence[float] = (), best: float | None = None) -> str:
    """A curve as inline SVG; its colours come from the page's ``--ink``, ``--line`` and ``--accent``.

    Args:
        curve: what to draw.
        last_step: end of the horizontal axis.
        resumed: steps at which the run was resumed, dashed.
        best: the step of the best validation, marked.
    """
    low, high = min(curve.values), max(curve.values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Nothing that is drawn goes below zero.
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin
    end = max(last_step, curve.steps[-1], 1)

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / end

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    unit = f", {curve.unit}" if curve.unit else ""
    parts = [f'<text class="name" x="{LEFT}" y="14">{curve.title}{unit}</text>']
    for value in ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(value) + 3.5:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in ticks(0, end, 3):
        anchor = "end" if x(step) > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step:.0f}</text>')
    for step in resumed:
        parts.append(
            f'<path class="resumed" d="M{x(step):.1f} {TOP}V{HEIGHT - BOTTOM}">'
            f"<title>resumed at step {step:g}</title></path>"
        )
    points = list(zip(curve.steps, curve.values, strict=True))
    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for step, value in points:
        marked = ' class="best" r="4.5"' if step == best else ' r="2.5"'
        parts.append(
            f'<circle{marked} cx="{x(step):.1f}" cy="{y(value):.1f}">'
            f"<title>step {step:g}: {value:.4g}</title></circle>"
        )
    label = f"{curve.title}: {curve.values[0]:.4g} to {curve.values[-1]:.4g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def draw(
    curves: Sequence[Series], width: int, title: str, resumed: Sequence[float] = (), best: float | None = None
) -> Pixels:
    """The curves side by side, three in a row: uint8 RGB (H, ``width``, 3).

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    # Not pyplot, which would choose a window system and keep the figure.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = max(1, math.ceil(len(curves) / 3))
    figure = Figure(figsize=(width / 100, 0.5 + 2.4 * lines), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, parse_math=False)
    for place, curve in enumerate(curves):
        axes = figure.add_subplot(lines, 3, place + 1)
        axes.plot(curve.steps, curve.values, marker="o", markersize=3, color="tab:blue")
        if best in curve.steps:
            axes.plot(best, curve.values[curve.steps.index(best)], "o", markersize=7, color="tab:orange")
        for step in resumed:
            axes.axvline(step, color="grey", linestyle="--", linewidth=1)
        axes.set_title(curve.title + (f", {curve.unit}" if curve.unit else ""), fontsize=10)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
