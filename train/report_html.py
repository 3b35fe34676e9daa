"""A run's report as one HTML file that needs nothing else: no scripts, no fonts, no network."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from depthzoo.metrics import METRICS
from depthzoo.visualize import Pixels, colormap_lut
from train.anchors import COLUMNS, sections, show
from train.curves import best_row, number, series, svg
from train.samples import Tile, ValidationSample, tiles

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
# Nothing may be fetched, whatever a key or a recipe says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    name: str,
    metrics: dict[str, Any],
    config: str = "",
    card: dict[str, Any] | None = None,
    samples: Sequence[ValidationSample] = (),
    results: dict[str, dict[str, float]] | None = None,
    about: str = "",
) -> str:
    """The whole page; see ``train.report.write_report`` for what is in it.

    Args:
        name: of the run.
        metrics: content of ``metrics.json``.
        config: text of ``config.toml``.
        card: of the run's weights.
        samples: frames to show.
        results: figures of the best weights, "per_image" and "pooled".
        about: what ``results`` are of.
    """
    history = [row for row in metrics.get("history") or [] if isinstance(row, dict)]
    best = best_row(history)
    body = [
        *_head(name, metrics, card or {}, best),
        *_curves(metrics, history, best),
        *_frames(samples, about),
        *_comparison(best, results, about),
        *_history(history, best),
    ]
    if config:
        body.append(f"<details open><summary>Configuration</summary><pre>{escape(config)}</pre></details>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(name)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _head(
    name: str, metrics: dict[str, Any], card: dict[str, Any], best: dict[str, Any] | None
) -> Iterator[str]:
    step, steps = metrics.get("step", "?"), metrics.get("steps", "?")
    resumed = ", ".join(str(at) for at in metrics.get("resumed_from") or [])
    status = f"step {step} of {steps}" + (f", resumed from step {resumed}" if resumed else ", never resumed")
    yield f"<header><h1>{escape(name)}</h1><p>{escape(status)}</p>"
    parameters, dataset = card.get("parameters"), card.get("dataset")
    source = dataset.get("source") if isinstance(dataset, dict) else dataset
    trained = card.get("trained_on")
    versions = card.get("versions")
    facts = [
        card.get("model"),
        f"{parameters / 1e6:.2f}M parameters" if isinstance(parameters, int) else None,
        f"trained on {source}" if source else None,
        str(trained.get("device")) if isinstance(trained, dict) and trained.get("device") else None,
        f"commit {str(card['commit'])[:12]}" if card.get("commit") else None,
        ", ".join(f"{key} {value}" for key, value in versions.items())
        if isinstance(versions, dict)
        else None,
    ]
    yield f'<p class="soft">{escape(" · ".join(str(fact) for fact in facts if fact))}</p>'
    if best:
        yield '<div class="keys">'
        for key, title in COLUMNS.items():
            unit = " m" if key == "rmse" else ""
            yield f"<div><span class='soft'>validation {title}</span><b>{number(best.get(key)):.3f}{unit}</b></div>"
        yield f"<div><span class='soft'>best at step</span><b>{escape(str(best.get('step', '?')))}</b></div>"
        yield f"<div><span class='soft'>images/s</span><b>{number(best.get('images_per_s')):.1f}</b></div></div>"
    yield "</header>"


def _curves(
    metrics: dict[str, Any], history: list[dict[str, Any]], best: dict[str, Any] | None
) -> Iterator[str]:
    resumed = [number(step) for step in metrics.get("resumed_from") or []]
    last = number(metrics.get("step"))
    curves = series(history)
    if not curves:
        yield "<h2>Curves</h2><p class='soft'>no validation yet</p>"
        return
    end = last if last == last else curves[0].steps[-1]
    marked = number(best.get("step")) if best else None
    drawn = "".join(svg(curve, end, resumed, marked) for curve in curves)
    yield f'<h2>Curves</h2><div class="curves">{drawn}</div>'
    yield "<p class='soft'>over steps; the large dot is the best validation, a dashed line a resumption</p>"


def _frames(samples: Sequence[ValidationSample], about: str) -> Iterator[str]:
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


def _comparison(
    best: dict[str, Any] | None, results: dict[str, dict[str, float]] | None, about: str
) -> Iterator[str]:
    own = results or ({"per_image": best} if best else {})
    if not own:
        return
    yield f"<h2>Figures</h2><p class='soft'>{escape(about or 'best validation of the run')}</p>"
    rows = [
        _row([way.replace("_", "-"), *(f"{number(figures.get(name)):.3f}" for name in METRICS)], "ours")
        for way, figures in own.items()
    ]
    yield _table(["averaged", *METRICS], rows)
    yield (
        "<h3>To hold them against</h3><p class='soft'>Per-image figures on the 654 test frames of NYU Depth V2, "
        "Eigen protocol; other frames compare only roughly.</p>"
    )
    this = own.get("per_image", {})
    rows = [
        _row(["this run", *(f"{number(this.get(key)):.3f}".removeprefix("0") for key in COLUMNS)], "ours")
    ]
    for title, anchors in sections():
        rows.append(f'<tr class="section"><td colspan="{1 + len(COLUMNS)}">{escape(title)}</td></tr>')
        rows += [_row([anchor.name, *map(show, anchor.figures)]) for anchor in anchors]
    yield _table(["", *COLUMNS.values()], rows)


def _history(history: list[dict[str, Any]], best: dict[str, Any] | None) -> Iterator[str]:
    if not history:
        return
    keys = ["step", "loss", *METRICS, "lr", "images_per_s"]
    keys = [key for key in keys if any(key in row for row in history)]
    rows = [
        _row([_cell(key, row.get(key)) for key in keys], "best" if row is best else "") for row in history
    ]
    yield f"<details><summary>All {len(history)} validations</summary>{_table(keys, rows)}</details>"


def _cell(key: str, value: Any) -> str:
    if key == "step":
        return str(value)
    return f"{number(value):.3g}" if key in ("lr", "images_per_s") else f"{number(value):.4f}"
