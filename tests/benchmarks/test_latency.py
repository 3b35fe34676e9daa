"""Backends, turns and the rows of the latency command."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import depthzoo
from benchmarks import backends, latency
from benchmarks.backends import CannotRunError, Case, input_size, onnx_file, prepare, random_images
from benchmarks.latency import interleave
from benchmarks.roofline import Peak
from train import records
from train.arguments import command

CPU = torch.device("cpu")
SIZE = (32, 64)


class Watched(nn.Module):
    """A convolution that records how it is called."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.seen: list[tuple[bool, bool, int]] = []

    def __deepcopy__(self, _: object) -> "Watched":
        copied = Watched()
        copied.seen = self.seen
        return copied

    def forward(self, image: Tensor) -> Tensor:
        nhwc = image.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((nhwc, torch.is_inference_mode_enabled(), len(image)))
        result: Tensor = self.conv(image)
        return result


def case(module: nn.Module, backend: str, precision: str = "fp32", batch: int = 2) -> Case:
    return Case("net", module, backend, precision, SIZE, batch, CPU)


# -- backends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["eager", "channels_last"])
def test_pytorch_runs_a_copy_in_inference_mode(backend: str, tmp_path: Path) -> None:
    network = Watched()
    call = prepare(case(network, backend), tmp_path)
    result = call.run()
    assert call.cold_ms > 0 and call.load_ms is None
    assert set(network.seen) == {(backend == "channels_last", True, 2)}
    torch.testing.assert_close(result, network.conv(random_images(2, SIZE)))


@pytest.mark.slow
def test_compiled_gives_the_same(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    try:
        call = prepare(case(network, "compile"), tmp_path)
    except CannotRunError as error:
        pytest.skip(str(error))
    torch.testing.assert_close(call.run(), network(random_images(2, SIZE)))


def test_what_cannot_run_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> object:
        try:
            raise ValueError("No working C++ compiler\nmore")
        except ValueError as inner:
            raise RuntimeError("backend failed\nwith a long\nstory") from inner

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(CannotRunError, match="^No working C\\+\\+ compiler$"):
        prepare(case(Watched(), "compile"), tmp_path)


def test_onnxruntime_runs_networks_that_are_not_of_the_zoo(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 1, 3, padding=1).eval()
    call = prepare(case(network, "onnxruntime", batch=3), tmp_path)
    assert call.load_ms and call.cold_ms > 0
    depth = call.run().numpy()  # type: ignore[attr-defined]
    expected = network(random_images(3, SIZE)).detach().numpy()
    np.testing.assert_allclose(depth, expected, atol=1e-5)


@pytest.mark.slow
def test_models_of_the_zoo_run_with_every_cpu_backend(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = depthzoo.create_model("unet_mobilenet_v3", weights=None).eval()
    expected = model(random_images(1, SIZE)).detach().numpy()
    path = onnx_file(case(model, "onnxruntime"), tmp_path)
    assert onnx_file(case(model, "onnxruntime", "tf32"), tmp_path) == path  # the same file
    depth = prepare(case(model, "onnxruntime", batch=1), tmp_path).run().numpy()  # type: ignore[attr-defined]
    np.testing.assert_allclose(depth, expected, atol=1e-4)
    (prediction, _) = prepare(case(model, "predictor"), tmp_path).run()  # type: ignore[misc]
    assert prediction.depth.shape == (480, 640)


def test_sizes_that_networks_take() -> None:
    assert input_size("eager", (240, 330), 1) == (240, 330)
    assert input_size("onnxruntime", (240, 330), 1) == (256, 320)
    assert input_size("eager", (480, 640), 14) == input_size("onnxruntime", (480, 640), 14) == (476, 644)


@pytest.mark.skipif(not backends.CLEAR.exists(), reason="only Linux reports a resident set and its peak")
def test_peak_memory_is_that_of_the_call() -> None:
    taken = 256 << 20

    def call() -> None:
        np.ones(taken, np.uint8)

    call()
    before, peak = backends.held(CPU, False), backends.peak_memory(call, CPU, False)
    assert before is not None and peak is not None
    assert peak - before == pytest.approx(taken, rel=0.1)


# -- turns ------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only the timed calls advance."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    return now


def test_calls_take_turns(clock: list[float]) -> None:
    order: list[str] = []
    costs = {"a": iter([9.0, 1.0, 3.0, 2.0]), "b": iter([9.0, 10.0, 10.0, 40.0])}

    def run(name: str) -> None:
        order.append(name)
        clock[0] += next(costs[name])

    # The first round is over the time already: three more are done nevertheless, and no fourth.
    times, interrupted = interleave({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=9, seconds=1)
    assert order == ["a", "b"] * 4 and not interrupted
    assert times == {"a": [1000, 3000, 2000], "b": [10000, 10000, 40000]}


def test_a_fast_call_runs_twice_and_the_second_counts(clock: list[float]) -> None:
    costs = iter([0.4, 0.1] * 4)

    def run() -> None:
        clock[0] += next(costs)

    times, _ = interleave({"a": run}, rounds=3, seconds=99)
    assert times["a"] == pytest.approx([100, 100, 100])


@pytest.mark.parametrize(("rounds", "kept"), [(3, None), (6, 5)])
def test_ctrl_c_keeps_complete_rounds(clock: list[float], rounds: int, kept: int | None) -> None:
    calls = [0]

    def run() -> None:
        calls[0] += 1
        clock[0] += 1
        if calls[0] > rounds:
            raise KeyboardInterrupt

    if kept is None:
        with pytest.raises(KeyboardInterrupt):
            interleave({"a": run}, rounds=9, seconds=99)
    else:
        times, interrupted = interleave({"a": run}, rounds=9, seconds=99)
        assert interrupted and len(times["a"]) == kept


# -- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network is a convolution, and the device has a known peak."""
    monkeypatch.setattr(latency, "build", lambda _: (nn.Conv2d(3, 1, 3), 1, tuple(backends.BACKENDS["cpu"])))
    monkeypatch.setattr(latency, "measure_peak", lambda _: Peak({"fp32": 1.0}, 1000.0))


def call(out: Path, *words: str) -> int:
    start = ["--device", "cpu", "--backends", "eager", "channels_last", "--sizes", "32x64", "--rounds", "3"]
    return command(latency.parser(), latency.run, [*start, "--out", str(out), *words])


@pytest.mark.usefixtures("small")
def test_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "latency.jsonl"
    assert call(out, "--models", "unet", "--peers", "deeplabv3_resnet50", "--batches", "1", "2") == 0
    rows = records.load(out)
    assert len(rows) == 8 and len({row["run"] for row in rows}) == 1
    first = rows[0]
    assert (first["model"], first["peer"], first["backend"], first["batch"]) == ("unet", False, "eager", 1)
    assert (first["asked"], first["height"], first["width"]) == ("32x64", 32, 64)
    assert first["ms_min"] <= first["ms"] <= first["ms_max"] and first["rounds"] == 3
    assert first["roofline_ms"] == pytest.approx(2 * 30 * 62 * 27 / 1e6, abs=1e-3)  # at 1 GFLOP/s
    assert capsys.readouterr().out.count(" of the roofline") == 8
    # What is stored is skipped, and the rest is measured.
    before = rows[0]["ms"]
    assert call(out, "--models", "unet", "--batches", "1", "4", "--skip-existing") == 0
    rows = records.load(out)
    assert len(rows) == 10 and rows[0]["ms"] == before
    assert capsys.readouterr().err.count("stored: ") == 2


@pytest.mark.usefixtures("small")
def test_what_cannot_run_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = latency.prepare

    def broken(case: Case, folder: Path) -> Any:
        if case.backend == "channels_last":
            raise CannotRunError("out of memory")
        return real(case, folder)

    monkeypatch.setattr(latency, "prepare", broken)
    assert call(tmp_path / "latency.jsonl", "--models", "unet") == 0
    assert [row["backend"] for row in records.load(tmp_path / "latency.jsonl")] == ["eager"]
    assert "skipped: unet channels_last fp32 32x64 batch 1: out of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--models", "unt"], "unknown model 'unt': did you mean 'unet'"),
        (["--peers", "glpn"], "unknown peer 'glpn'"),
        (["--backends", "tensorrt"], "unknown backend 'tensorrt'"),
        (["--rounds", "0"], "at least 1"),
    ],
)
def test_bad_arguments(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(tmp_path / "latency.jsonl", *words) == 2
    assert message in capsys.readouterr().err
