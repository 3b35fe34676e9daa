"""The documents are what results and cards say, and the tables say what rows hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import report
from train import records
from train.arguments import command

ORIGIN = {
    "machine": "Z80",
    "device": "cpu",
    "threads": 2,
    "load": 0.25,
    "torch": "2.15.0",
    "commit": "0123456789+",
}
ORIGIN |= {"command": "python -m benchmarks.latency"}


def latency_row(model: str, backend: str, ms: float, **others: Any) -> records.Row:
    row = {"run": "1", "model": model, "peer": False, "backend": backend, "precision": "fp32"}
    row |= {
        "asked": "480x640",
        "height": 480,
        "width": 640,
        "batch": 1,
        "parameters": 3_479_473,
        "gflop": 4.92,
    }
    row |= {"roofline_ms": 10.0, "ms": ms, "ms_min": 0.9 * ms, "ms_max": 1.5 * ms, "rounds": 30}
    return ORIGIN | row | others


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        latency_row("unet", "eager", 200.0),
        latency_row("unet", "onnxruntime", 100.0),
        latency_row("unet_mobilenet_v3", "eager", 40.0),
        latency_row("unet_mobilenet_v3", "onnxruntime", 20.0, precision="int8", roofline_ms=None),
        latency_row("glpn_nyu", "eager", 30.0, peer=True, run="2", height=476, width=644),
        latency_row("unet", "eager", 1600.0, batch=16, gflop=16 * 4.92),
    ]
    records.store(tmp_path / "latency.jsonl", rows)
    speeds = [("plain", 10.0), ("train", 25.0)]
    records.store(
        tmp_path / "train_speed.jsonl",
        [
            ORIGIN
            | {"run": "3", "model": "unet", "backend": loop, "precision": "fp32", "batch": 4, "height": 96}
            | {"width": 128, "images_per_s": rate, "images_per_s_min": rate - 1, "images_per_s_max": rate + 1}
            for loop, rate in speeds
        ],
    )
    return tmp_path


# -- documents ---------------------------------------------------------------------------------------------


@pytest.fixture
def copy(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the documents and of the results."""
    shutil.copytree(root / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    for name in report.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path / "benchmarks" / "results")
    return tmp_path


def call(*words: str) -> int:
    return command(report.parser(), report.run, list(words))


def test_documents_are_what_their_sources_say(root: Path) -> None:
    assert not report.stale(root, root / "benchmarks" / "results")


@pytest.mark.parametrize("name", list(report.DOCUMENTS))
def test_a_figure_typed_by_hand_is_found(name: str, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (copy / name).read_text()
    start = text.index("<!-- ")
    wrong = text[start:].replace("| `unet_mobilenet_v3` |", "| `unet_mobilenet_v4` |", 1)
    (copy / name).write_text(text[:start] + wrong)
    assert call("--check") == 1
    assert capsys.readouterr().err == f"{name} is not what its sources say: run make readme\n"
    assert call() == 0
    assert (copy / name).read_text() == text and call("--check") == 0


def test_a_missing_marker_is_named(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "benchmarks" / "README.md"
    path.write_text(path.read_text().replace("<!-- /training -->", ""))
    assert call("--check") == 2
    assert (
        "benchmarks/README.md must have <!-- training --> and <!-- /training --> once"
        in capsys.readouterr().err
    )


def test_stored_rows_say_where_they_come_from(root: Path) -> None:
    for path in (root / "benchmarks" / "results").glob("*.jsonl"):
        rows = records.load(path)
        assert rows and len({records.identity(row) for row in rows}) == len(rows)
        for row in rows:
            assert {"machine", "device", "threads", "run", "commit", "command", "torch"} <= row.keys()
            assert "/home" not in json.dumps(row) and "/work" not in json.dumps(row)


# -- tables -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (123.4, "123"), (1234.5, "1,234")],
)
def test_numbers(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_latency(results: Path) -> None:
    text = report.latency(results)
    assert "**Z80, 2 threads, 480x640, batch 1**" in text and "**Z80, 2 threads, 480x640, batch 16**" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | input | parameters | GFLOP | eager | onnxruntime | onnxruntime int8 |"
    # The zoo first, the fastest first; the roofline efficiency in brackets.
    assert lines[2] == "| `unet_mobilenet_v3` | 480x640 | 3.5M | 4.92 | 40.0 (25%) | | 20.0 |"
    assert lines[3].startswith("| `unet` |") and lines[4].startswith("| *glpn_nyu* | 476x644 |")
    assert "2 runs; only rows of one run were timed in turn" in text
    assert "load 0.2; torch 2.15.0; commit 0123456+; `python -m benchmarks.latency`" in text


def test_training(results: Path) -> None:
    text = report.training(results)
    assert "| `unet` | plain | fp32 | 4 | 10.0 | 9.00 to 11.0 | | |" in text
    assert "| `unet` | train | fp32 | 4 | 25.0 | 24.0 to 26.0 | 2.50 | |" in text


def test_what_is_not_measured_is_said(tmp_path: Path) -> None:
    blocks = (report.latency, report.training, report.accuracy, report.claims)
    assert {block(tmp_path) for block in blocks} == {report.NONE}
    assert "not been measured yet" in report.gpu(tmp_path)
    gpu = latency_row("unet", "eager", 1.0, machine="Voodoo 3", device="cuda")
    records.store(tmp_path / "latency.jsonl", [gpu])
    assert report.gpu(tmp_path) == "Measured on a GPU: latency (Voodoo 3)."


def test_plots(results: Path) -> None:
    (results / "latency.gone.png").touch()
    drawn = report.draw_plots(results)
    assert [path.name for path in drawn] == [
        "latency.z80-2-threads-480x640-1.png",
        "latency.z80-2-threads-480x640-16.png",
    ]
    assert sorted(results.glob("*.png")) == sorted(drawn)
    with Image.open(drawn[0]) as image:
        assert image.width > 500
    assert report.plots(results).count("](results/") == 2
