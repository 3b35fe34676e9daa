"""Write the report of a run, RUN/report.html: curves, frames and metrics in one file that needs nothing else.

python -m train.report RUN [--data DIR]

Without --data the report is made from metrics.json and config.toml alone.
"""

import argparse
import base64
import io
import json
import math
import sys
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from depthzoo.files import atomic_write
from depthzoo.metrics import METRICS
from depthzoo.prediction import select_device
from depthzoo.visualize import colormap_lut
from depthzoo.weights import read_metadata
from train.arguments import command
from train.cards import load_any
from train.evaluation import Predict, default_protocol, evaluate, ranked, torch_predict
from train.published_results import COLUMNS, RESULTS, format_metric
from train.samples import Pixels, Sample, Tile, make_samples, tiles
from train.shards import ShardDataset

# Title of a curve by its key in the history.
CURVES = {
    "loss": "training loss",
    "abs_rel": "validation AbsRel",
    "rmse": "validation RMSE, m",
    "d1": "validation d1",
    "lr": "learning rate",
    "images_per_s": "images/s",
}
WIDTH, HEIGHT = 320, 190  # of a curve, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 24, 24
# The page may fetch nothing, whatever a key or a recipe contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
Row = dict[str, Any]
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #d9dce1; --back: #fcfcfd;
  --card: #f2f3f5; --accent: #1668c7; --mark: #d9690a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaed; --soft: #a3a8b0; --line: #3a3f46;
  --back: #141619; --card: #1e2125; --accent: #6fb1ff; --mark: #ffa24c; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 76rem; background: var(--back); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .6rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1rem 0 .3rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.keys { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem; margin-top: 1rem; }
.keys div { background: var(--card); border-radius: .5rem; padding: .5rem .8rem; }
.keys b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: .8rem; }
svg { width: 100%; height: auto; background: var(--card); border-radius: .5rem; }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; }
svg .name { fill: var(--ink); font-size: 12px; font-weight: 600; }
svg .grid { stroke: var(--line); } svg .resumed { stroke: var(--soft); stroke-dasharray: 4 3; }
svg .curve { fill: none; stroke: var(--accent); stroke-width: 1.8; stroke-linejoin: round; }
svg circle { fill: var(--accent); } svg .best { fill: var(--mark); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: .4rem; }
@media (max-width: 44rem) { .tiles { grid-template-columns: repeat(2, 1fr); } }
figure { margin: 0; } figure img { display: block; width: 100%; height: auto; border-radius: .3rem; }
figcaption { font-size: .8rem; color: var(--soft); }
.bar { height: .4rem; margin-top: .25rem; border-radius: .2rem; }
.ends { display: flex; justify-content: space-between; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
@media (max-width: 44rem) { th, td { padding-right: .45rem; } } tr.ours td { font-weight: 600; }
tr.section td { color: var(--soft); padding-top: .7rem; } tr.best td { color: var(--mark); }
pre { background: var(--card); border-radius: .5rem; padding: .8rem; overflow-x: auto; font-size: .85rem; }
summary { cursor: pointer; font-weight: 600; margin: 1.5rem 0 .5rem; }
"""


def report_run(run: Path, dataset: ShardDataset, device: torch.device) -> Path:
    """Write ``report.html`` into the folder of a run, with frames and metrics of its best weights if it has any.

    Raises:
        ValueError: no ``metrics.json`` in the folder, or a frame that cannot be decoded.
        OSError: the report cannot be written.
    """
    read_metrics(run)
    if not (run / "model.safetensors").is_file():
        return write_report(run)
    model = load_any(str(run)).to(device).eval()
    height, width = (model.card or {}).get("size", (480, 640))
    protocol, predict = default_protocol(dataset), torch_predict(model, device)
    results, rows = evaluate(predict, dataset, (height, width), protocol)
    samples = choose_samples(predict, dataset, (height, width), protocol, rows)
    target = dataset.info.get("truth", "as stored")
    about = f"{len(dataset)} {dataset.split} frames, {target} target, {protocol} protocol, {height}x{width}"
    return write_report(run, samples, results, about)


def choose_samples(
    predict: Predict, dataset: ShardDataset, size: tuple[int, int], protocol: str, rows: Tensor, each: int = 2
) -> list[Sample]:
    """Return the best, the median and the worst frames of a split by AbsRel, ``each`` of them, none twice."""
    order = ranked(rows)
    middle = max(0, (len(order) - each) // 2)
    groups = {"best": order[:each], "median": order[middle : middle + each], "worst": order[::-1][:each]}
    roles: dict[int, str] = {}
    # With few frames the worst and the best say more than the median.
    for role in ("worst", "best", "median"):
        for index in groups[role]:
            roles.setdefault(index, role)
    chosen = sorted(roles, key=lambda index: list(groups).index(roles[index]))
    return make_samples(predict, dataset, chosen, size, protocol, [roles[index] for index in chosen])


def read_metrics(run: Path) -> Row:
    """Return the content of a run's ``metrics.json``.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = run / "metrics.json"
    if not path.is_file():
        raise ValueError(f"{run} has no metrics.json; expected the folder of a run that has validated")
    try:
        metrics: Row = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("history"), list):
        raise ValueError(f"{path} has no history; expected the metrics of a run")
    return metrics


def write_report(
    run: Path,
    samples: Sequence[Sample] = (),
    results: dict[str, dict[str, float]] | None = None,
    about: str = "",
) -> Path:
    """Write ``report.html`` from what the folder of a run holds, some frames, and the metrics of its best weights.

    Without ``results`` the best validation is shown; ``about`` says what they are of ("95 val frames, eigen").
    """
    metrics, config, weights = read_metrics(run), run / "config.toml", run / "model.safetensors"
    card = read_metadata(weights) if weights.is_file() else {}
    history: list[Row] = metrics["history"]
    best = min(history, key=lambda row: row["abs_rel"], default=None)
    body = [
        *_head(run.resolve().name, metrics, card, best),
        *_curves(metrics, best),
        *_frames(samples, about),
        *_comparison(best, results, about),
        *_history(history, best),
    ]
    if config.is_file():
        text = escape(config.read_text(encoding="utf-8"))
        body.append(f"<details open><summary>Configuration</summary><pre>{text}</pre></details>")
    name, content = escape(run.resolve().name), "\n".join(body)
    html = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{STYLE}</style></head>\n<body>\n{content}\n</body></html>\n"
    )
    with atomic_write(run / "report.html") as part:
        part.write_text(html, encoding="utf-8")
    return run / "report.html"


def _head(name: str, metrics: Row, card: Row, best: Row | None) -> Iterator[str]:
    resumed = ", ".join(map(str, metrics["resumed_from"]))
    status = f", resumed from step {resumed}" if resumed else ", never resumed"
    yield f"<header><h1>{escape(name)}</h1><p>step {metrics['step']} of {metrics['steps']}{status}</p>"
    if card:
        facts = [
            card["model"],
            f"{card['parameters'] / 1e6:.2f}M parameters",
            f"trained on {card['dataset']['source']}",
            card["trained_on"]["device"],
            f"commit {card['commit'][:12]}",
            ", ".join(f"{key} {value}" for key, value in card["versions"].items()),
        ]
        yield f'<p class="soft">{escape(" · ".join(facts))}</p>'
    if best:
        yield '<div class="keys">'
        for key, title in COLUMNS.items():
            unit = " m" if key == "rmse" else ""
            yield f"<div><span class='soft'>validation {title}</span><b>{best[key]:.3f}{unit}</b></div>"
        yield f"<div><span class='soft'>best at step</span><b>{best['step']}</b></div>"
        yield f"<div><span class='soft'>images/s</span><b>{best['images_per_s']:.1f}</b></div></div>"
    yield "</header>"


def _curves(metrics: Row, best: Row | None) -> Iterator[str]:
    yield "<h2>Curves</h2>"
    if best is None:
        yield "<p class='soft'>no validation yet</p>"
        return
    yield '<div class="curves">'
    for key, title in CURVES.items():
        points = [(row["step"], row[key]) for row in metrics["history"] if row[key] is not None]
        if points:
            yield _svg(title, points, max(metrics["step"], 1), metrics["resumed_from"], best["step"])
    yield "</div>"
    yield "<p class='soft'>over steps; the large dot is the best validation, a dashed line a resumption</p>"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers within [low, high]."""
    raw = (high - low) / count
    if not raw > 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(
    title: str, points: Sequence[tuple[float, float]], end: float, resumed: Sequence[float], best: float
) -> str:
    """Draw one curve over the steps 0 to ``end``, in the colors of the page."""
    values = [value for _, value in points]
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # No quantity here goes below zero.
    low, high = max(low - margin, 0.0) if low >= 0 else low - margin, high + margin

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / end

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    parts = [f'<text class="name" x="{LEFT}" y="14">{title}</text>']
    for value in ticks(low, high):
        parts.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{y(value) + 3.5:.1f}" text-anchor="end">{value:.4g}</text>')
    for step in ticks(0, end, 3):
        anchor = "end" if x(step) > WIDTH - 30 else "middle"
        parts.append(f'<text x="{x(step):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{step:.0f}</text>')
    for step in resumed:
        place = f"M{x(step):.1f} {TOP}V{HEIGHT - BOTTOM}"
        parts.append(f'<path class="resumed" d="{place}"><title>resumed at step {step:g}</title></path>')
    line = " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
    parts.append(f'<polyline class="curve" points="{line}"/>')
    for step, value in points:
        marked = ' class="best" r="4.5"' if step == best else ' r="2.5"'
        place = f'cx="{x(step):.1f}" cy="{y(value):.1f}"'
        parts.append(f"<circle{marked} {place}><title>step {step:g}: {value:.4g}</title></circle>")
    label = f"{title}: {values[0]:.4g} to {values[-1]:.4g}"
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _frames(samples: Sequence[Sample], about: str) -> Iterator[str]:
    if not samples:
        return
    yield f"<h2>Frames</h2><p class='soft'>{escape(about)}; dark in the error: not counted by the protocol</p>"
    for sample in samples:
        shown = "".join(_figure(tile) for tile in tiles(sample, 400))
        yield f'<section><h3>{escape(sample.title())}</h3><div class="tiles">{shown}</div></section>'


def _figure(tile: Tile) -> str:
    caption, legend = escape(tile.caption), ""
    if tile.legend:
        colormap, low, high = tile.legend
        stops = colormap_lut(colormap)[np.linspace(0, 255, 12).round().astype(int)]
        colours = ", ".join("#" + bytes(stop).hex() for stop in stops)
        legend = f'<div class="bar" style="background: linear-gradient(90deg, {colours})"></div>'
        caption = f"<span>{low:.2f}</span><span>{caption}</span><span>{high:.2f} m</span>"
    else:
        caption = f"<span></span><span>{caption}</span><span></span>"
    return (
        f'<figure><img alt="{escape(tile.caption)}" src="{_data(tile.pixels)}">'
        f'<figcaption>{legend}<div class="ends">{caption}</div></figcaption></figure>'
    )


def _data(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _row(cells: Sequence[str], kind: str = "") -> str:
    return f'<tr class="{kind}">' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _table(header: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _comparison(best: Row | None, results: dict[str, dict[str, float]] | None, about: str) -> Iterator[str]:
    own = results or ({"per_image": best} if best else {})
    if not own:
        return
    yield f"<h2>Metrics</h2><p class='soft'>{escape(about or 'best validation of the run')}</p>"
    rows = [
        _row([way.replace("_", "-"), *(f"{metrics[name]:.3f}" for name in METRICS)], "ours")
        for way, metrics in own.items()
    ]
    yield _table(["averaged", *METRICS], rows)
    yield (
        "<h3>To compare with</h3><p class='soft'>Per-image metrics on the 654 test frames of NYU Depth V2, "
        "Eigen protocol; other frames compare only roughly.</p>"
    )
    rows = [_row(["this run", *(format_metric(own["per_image"][key]) for key in COLUMNS)], "ours")]
    for title, published in RESULTS.items():
        rows.append(f'<tr class="section"><td colspan="{1 + len(COLUMNS)}">{escape(title)}</td></tr>')
        rows += [_row([name, *map(format_metric, metrics)]) for name, metrics in published.items()]
    yield _table(["", *COLUMNS.values()], rows)


def _history(history: Sequence[Row], best: Row | None) -> Iterator[str]:
    if not history:
        return
    keys = ["step", "loss", *METRICS, "lr", "images_per_s"]
    rows = [_row([_cell(key, row[key]) for key in keys], "best" if row is best else "") for row in history]
    yield f"<details><summary>All {len(history)} validations</summary>{_table(keys, rows)}</details>"


def _cell(key: str, value: float | None) -> str:
    if value is None or key == "step":
        return "-" if value is None else str(value)
    return f"{value:.3g}" if key in ("lr", "images_per_s") else f"{value:.4f}"


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.report", description=__doc__.splitlines()[0])
    main.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    main.add_argument("--data", type=Path, metavar="DIR", help="its data set, for frames and both averages")
    main.add_argument("--device", metavar="cpu|cuda")
    return main


def run(args: argparse.Namespace) -> int:
    if args.data:
        print(report_run(args.run, ShardDataset(args.data, "val"), select_device(args.device)))
    else:
        print(write_report(args.run))
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
