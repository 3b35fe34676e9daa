"""The command: what it stores, prints and says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import latency
from benchmarks.latency import parser, run
from benchmarks.measure import networks, peers
from benchmarks.measure.ceiling import Ceiling
from benchmarks.measure.peers import Peer
from benchmarks.measure.record import read_runs
from benchmarks.report.latency_report import report
from depthzoo.models import _api
from train.arguments import command

CEILING = Ceiling({"fp32": 100.0, "int8": 400.0}, 10.0, {"fp32": "torch", "int8": "onnxruntime"})


class Pointwise(nn.Conv2d):
    """A model: 1x1, three to one."""

    card = None

    def __init__(self) -> None:
        super().__init__(3, 1, 1, bias=False)


def small_peer() -> nn.Module:
    return peers.Dense(nn.Conv2d(3, 1, 7, 7))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zoo of two tiny models, one tiny peer that wants multiples of 14, one that is not installed."""
    monkeypatch.setattr(_api, "BUILDERS", {})
    for name in ("point", "point_two"):

        def build(weights: object = None) -> Pointwise:
            return Pointwise()

        build.__name__ = name
        _api.register_model(build)
    small = {
        "small": Peer(small_peer, "torch", 148, (28, 42), 14, "here"),
        "absent": Peer(small_peer, "no_such_package", 148, (28, 42), 14, "here"),
    }
    for module in (peers, networks, latency):
        monkeypatch.setattr(module, "PEERS", small)
    monkeypatch.setattr(latency, "measure_ceiling", lambda _: CEILING)
    monkeypatch.setattr(latency, "PAUSE", {"cpu": 0.0})


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., int]:
    """The command on the CPU, eager, into one file."""

    def call(*arguments: str) -> int:
        given = [*arguments, "--device", "cpu", "--rounds", "3", "--out", str(tmp_path / "out.json")]
        return command(parser(), run, given if "--backends" in given else [*given, "--backends", "eager"])

    return call


def test_what_is_stored(call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--sizes", "64x96", "native", "--batches", "1", "4"]
    assert call("--models", "point", "--peers", *sizes, "--reference", "small") == 0
    runs = read_runs(tmp_path / "out.json")
    assert [(one["size"], one["batch"]) for one in runs] == [
        ([64, 96], 1),
        ([64, 96], 4),
        (None, 1),
        (None, 4),
    ]
    native = {(32 * 15, 640): "point", (28, 42): "small"}
    for one in runs:
        assert one["missing"] == {"absent": "no_such_package is not installed: pip install -e '.[peers]'"}
        assert one["machine"]["device"] == "cpu" and one["commit"] and "latency" not in one["versions"]
        assert one["ceiling"] == CEILING.facts() and one["clock"] == "perf_counter"
        assert [(row["model"], row["peer"]) for row in one["rows"]] == [("point", False), ("small", True)]
        for row in one["rows"]:
            assert (row["backend"], row["precision"], row["batch"]) == ("eager", "fp32", one["batch"])
            size = tuple(row["size"])
            if one["size"] is None:
                assert native[size] == row["model"]
            else:
                assert size == ((64, 96) if row["model"] == "point" else (70, 98))
            assert row["weights"] == "random" and row["runs"] == 3 and row["ready"] is None
            assert 0 < row["quickest"] <= row["median"] <= row["slowest"] and row["first"] > 0
            assert row["images_per_s"] == round(1000 * row["batch"] / row["median"], 3)
    point = runs[1]["rows"][0]
    assert point["parameters"] == 3 and point["bytes"] == 4 * (4 * 64 * 96 * (3 + 1) + 3)
    assert point["gflop"] == pytest.approx(2 * 3 * 4 * 64 * 96 / 1e9, abs=5e-4)
    # At 10 GB/s the bytes take longer than the operations at 100 GFLOP/s.
    assert point["floor"] == pytest.approx(1000 * point["bytes"] / 10e9, abs=5e-4)
    assert point["percent_of_floor"] == pytest.approx(
        100 * point["floor"] / point["median"], rel=0.05, abs=0.1
    )
    printed = capsys.readouterr()
    assert "64x96, batch 4" in printed.out and "native sizes, batch 1" in printed.out
    assert "x ref" in printed.out and "all figures in" in printed.out
    assert printed.err.count("ready: ") == 8


def test_a_run_takes_the_place_of_the_same(call: Callable[..., int], tmp_path: Path) -> None:
    for models in (["point"], ["point_two"], ["point"], ["point", "point_two"]):
        assert call("--models", *models, "--sizes", "32x32") == 0
    assert [one["models"] for one in read_runs(tmp_path / "out.json")] == [
        ["point_two"],
        ["point"],
        ["point", "point_two"],
    ]
    assert call("--models", "none", "--peers", "small", "--sizes", "32x32") == 0
    assert [row["model"] for row in read_runs(tmp_path / "out.json")[-1]["rows"]] == ["small"]


def test_candidates_take_turns(call: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def forward(self: Pointwise, image: Tensor) -> Tensor:
        nhwc = image.is_contiguous(memory_format=torch.channels_last)
        if type(image) is Tensor:  # not when it is only counted
            seen.append("channels_last" if nhwc else "eager")
        return nn.Conv2d.forward(self, image)

    monkeypatch.setattr(Pointwise, "forward", forward)
    assert call("--models", "point", "--sizes", "32x64", "--backends", "eager", "channels_last") == 0
    # Each first and for its memory; then a round that is not timed and three that are, each quick call twice.
    assert seen == (["eager"] * 2 + ["channels_last"] * 2) * 5


def test_ctrl_c_keeps_what_is_finished(
    call: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interleave, calls = latency.interleave, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return interleave(*arguments, **options)

    monkeypatch.setattr(latency, "interleave", interrupted)
    assert call("--models", "point", "--sizes", "32x32", "64x64", "96x96") == 130
    assert [one["size"] for one in read_runs(tmp_path / "out.json")] == [[32, 32]]
    *_, last = capsys.readouterr().err.splitlines()
    assert last == f"latency.py: interrupted, 1 of 3 runs are in {tmp_path / 'out.json'}"


def test_what_cannot_be_timed_is_said(
    call: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--models", "point", "--backends", "eager", "onnxruntime-cuda-graph", "tensorrt") == 0
    (one,) = read_runs(tmp_path / "out.json")
    assert one["missing"] == dict.fromkeys(
        ("onnxruntime cuda graph", "tensorrt"), "needs CUDA; this run is on cpu"
    )
    assert "not timed: tensorrt: needs CUDA; this run is on cpu" in capsys.readouterr().out
    assert call("--models", "point", "--backends", "tensorrt") == 2
    error = capsys.readouterr().err
    assert error == "latency.py: error: nothing to time: tensorrt: needs CUDA; this run is on cpu\n"


def test_a_backend_that_works_nowhere_is_tried_once(
    call: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    prepare = latency.backends.prepare

    def prepared(network: nn.Module, backend: str, *arguments: Any) -> Any:
        tried.append(backend)
        if backend == "compile":
            raise latency.CannotRunError("torch.compile: no compiler", everywhere=True)
        if backend == "channels_last":
            raise latency.CannotRunError("not this one")
        return prepare(network, backend, *arguments)

    monkeypatch.setattr(latency.backends, "prepare", prepared)
    asked = ["eager", "channels_last", "compile"]
    assert call("--models", "point", "point_two", "--sizes", "32x32", "--backends", *asked) == 0
    assert tried == [*asked, "eager", "channels_last"]
    assert read_runs(tmp_path / "out.json")[0]["missing"] == {
        "point, channels_last fp32": "not this one",
        "compile": "torch.compile: no compiler",
        "point_two, channels_last fp32": "not this one",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "pointe"], "unknown model 'pointe': did you mean 'point'"),
        (["--peers", "smal"], "unknown peer 'smal': did you mean 'small'?"),
        (["--backends", "eeger"], "unknown backend 'eeger': did you mean 'eager'?"),
        (["--rounds", "0"], "--rounds 0: expected at least 1"),
        (["--batches", "4", "0"], "--batches 0: expected at least 1"),
        (["--reference", "small"], "--reference small: none of the --models and --peers of this run"),
        (["--data", "nowhere"], "no data set at nowhere: no such folder"),
        (["--out", __file__], f'{__file__}: not a result file: expected JSON with "runs"'),
        (["--out", "nowhere/out.json"], "nowhere/out.json: the folder nowhere does not exist"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(parser(), run, ["--device", "cpu", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"latency.py: error: {says}") and error.count("\n") == 1


def test_the_table(call: Callable[..., int], tmp_path: Path) -> None:
    def row(model: str, backend: str, precision: str, median: float, batch: int = 16, **others: Any) -> Any:
        known = {"size": [480, 640], "quickest": 0.9 * median, "slowest": 12 * median, "first": 98765.4}
        figures = {
            "images_per_s": 1000 * batch / median,
            "percent_of_floor": 12.34,
            "peak_memory": 12_345_678_901,
        }
        about = {"model": model, "backend": backend, "precision": precision, "batch": batch, "median": median}
        return known | figures | about | others

    name = "lraspp_mobilenet_v3_large"
    rows = [
        row(name, "eager", "fp32", 1600.0),
        row(name, "onnxruntime cuda graph", "fp16", 200.0, 8),
        row("other", "onnxruntime", "int8", 4.0, peak_memory=None, percent_of_floor=None),
    ]
    machine = {"processor": "Z80", "threads": 1, "load_before": 0.5}
    stored = {"machine": machine, "ceiling": CEILING.facts(), "size": [480, 640], "batch": 16, "rows": rows}
    text = report(stored | {"missing": {"tensorrt": "no"}}, f"{name}:onnxruntime-cuda-graph:fp16")
    assert max(map(len, text.splitlines())) <= 120
    _, heading, _, heads, eager, graph, other, missing = text.splitlines()
    assert "480x640, batch 16, on Z80, 1 threads" in heading and missing == "not timed: tensorrt: no"
    # Ratios are of pictures a second: 10, 40 and 4000.
    assert heads.split()[-8:] == ["img/s", "x", "eager", "x", "ref", "floor", "MB"][-8:] or "x ref" in heads
    assert eager.split()[-5:] == ["10.0", "1.00", "0.25", "12%", "12346"]
    assert graph.split()[-5:] == ["40.0", "4.00", "1.00", "12%", "12346"] and "8x480x640" in graph
    assert other.split()[-2:] == ["4000", "100.00"]
    assert "x ref" not in report(stored | {"missing": {}})
    assert (
        report(stored | {"missing": {}}, "other:eager").splitlines()[-1]
        == "not timed: the reference other:eager"
    )


def test_recorded_figures_are_whole() -> None:
    """What the repository's own file says follows from what it says."""
    path = latency.RESULTS / "latency.cpu.json"
    if not path.is_file():
        pytest.skip("no figures yet")
    for one in json.loads(path.read_text())["runs"]:
        assert (
            one["rows"]
            and not one["commit"].endswith("+")
            and one["command"].startswith("python benchmarks/")
        )
        known = Ceiling(**one["ceiling"])
        for row in one["rows"]:
            floor = known.floor(row["gflop"], row["bytes"], row["precision"])
            assert row["floor"] == pytest.approx(floor, rel=0.01)
            assert row["percent_of_floor"] == pytest.approx(
                100 * row["floor"] / row["median"], rel=0.01, abs=0.1
            )
            assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median"], rel=0.01)
