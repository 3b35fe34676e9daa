"""Ways of running a network: what runs, how often at half the batch, and why something does not."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from benchmarks.measure import backends, exported, memory, timing
from benchmarks.measure.backends import CannotRunError, at_most, out_of_memory, precisions_of, prepare, ways
from depthzoo.models import create_model
from export.latency import random_images
from export.run_onnx import OnnxError

CPU = torch.device("cpu")
SIZE = (32, 64)


class Watched(nn.Module):
    """A convolution that keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 1, 3, padding=1)
        self.seen: list[dict[str, Any]] = []

    def __deepcopy__(self, _: object) -> "Watched":
        copied = Watched()
        copied.seen = self.seen
        return copied

    def forward(self, image: Tensor) -> Tensor:
        layout = image.is_contiguous(memory_format=torch.channels_last)
        weight = self.conv.weight.is_contiguous(memory_format=torch.channels_last)
        gradient = not torch.is_inference_mode_enabled()
        self.seen.append({"nhwc": (layout, weight), "gradient": gradient, "batch": len(image)})
        result: Tensor = self.conv(image)
        return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file of the zoo's form whose depth is the mean over the colours."""
    image, depth = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", channels, "H", "W"])
        for name, channels in (("image", 3), ("depth", 1))
    )
    axes = onnx.numpy_helper.from_array(np.array([1]), "axes")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("ReduceMean", ["image", "axes"], ["depth"])], "mean", [image], [depth], [axes]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    facts = {"format": "depthzoo/1", "input": json.dumps({"multiple_of": 32}), "size": "[32, 64]"}
    onnx.helper.set_model_props(model, facts)
    path = tmp_path_factory.mktemp("mean") / "mean.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("backend", ["eager", "channels_last"])
def test_torch_runs_a_copy_without_gradients(backend: str) -> None:
    network = Watched()
    before = network.conv.weight.clone()
    ready = prepare(network, backend, "fp32", SIZE, 2, CPU)
    assert ready.batch == 2 and ready.first > 0 and ready.ready is None
    result = ready.run()
    assert isinstance(result, Tensor) and result.is_inference() and result.shape == (2, 1, *SIZE)
    nhwc = backend == "channels_last"
    # Once first, once for the memory, once here.
    assert network.seen == [{"nhwc": (nhwc, nhwc), "gradient": False, "batch": 2}] * 3
    torch.testing.assert_close(network.conv(torch.from_numpy(random_images(2, SIZE))), result)
    assert torch.equal(network.conv.weight, before)


@pytest.mark.slow
def test_compiled_gives_the_same() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    missing: dict[str, str] = {}
    with timing.as_measured(CPU):
        try:
            ready = prepare(network, "compile", "fp32", SIZE, 1, CPU)
        except CannotRunError as error:
            missing["compile"] = str(error)
            assert error.everywhere and "compiler" in str(error).lower()
            pytest.skip(str(error))
        assert not missing
        torch.testing.assert_close(ready.run(), network(torch.from_numpy(random_images(1, SIZE))))


@pytest.mark.parametrize(
    ("cause", "everywhere"),
    [("No working C++ compiler found in cpp.cxx\nmore", True), ("Unsupported: a graph break\nmore", False)],
)
def test_what_cannot_be_compiled_says_why(
    cause: str, everywhere: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_(*_: object, **options: object) -> Callable[..., object]:
        assert options["fullgraph"] is True and options["dynamic"] is False

        def fail(*_: object) -> object:
            try:
                raise ValueError(cause)
            except ValueError as inner:
                raise RuntimeError("backend failed\nwith a long\nstory") from inner

        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    with pytest.raises(CannotRunError) as raised:
        prepare(Watched(), "compile", "fp32", SIZE, 1, CPU)
    assert str(raised.value) == f"torch.compile: {cause.splitlines()[0]}"
    assert raised.value.everywhere is everywhere


def test_onnxruntime_runs_the_file(file: Path) -> None:
    asked: list[str] = []

    def stored(precision: str) -> Path:
        asked.append(precision)
        return file

    for precision in ("fp32", "int8", "tf32"):
        ready = prepare(Watched(), "onnxruntime", precision, SIZE, 3, CPU, stored)
        assert ready.batch == 3 and ready.first > 0 and (ready.ready or 0) > 0
        depth = ready.run().numpy()  # type: ignore[attr-defined]
        np.testing.assert_allclose(depth, random_images(3, SIZE).mean(1, keepdims=True), rtol=1e-5)
    assert asked == ["fp32", "int8", "fp32"]  # TF32 is a way of running the same file


def test_a_size_that_the_file_does_not_take_is_a_reason(file: Path) -> None:
    with pytest.raises(CannotRunError, match="^size must be multiples of 32, not 33x64$") as raised:
        prepare(Watched(), "onnxruntime", "fp32", (33, 64), 1, CPU, lambda _: file)
    assert not raised.value.everywhere
    with pytest.raises(CannotRunError, match="no ONNX file"):
        prepare(Watched(), "onnxruntime", "fp32", SIZE, 1, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="its provider works here")
def test_a_provider_that_does_not_work_is_a_reason_for_all(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "FILES", {"onnxruntime": ({"cpu": "cuda"}, {})})
    with pytest.raises(CannotRunError, match="cuda") as raised:
        prepare(Watched(), "onnxruntime", "fp32", SIZE, 1, CPU, lambda _: file)
    assert raised.value.everywhere and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"),
        OnnxError(
            "onnxruntime cannot run it on cuda: Failed to allocate memory for requested buffer of size 9"
        ),
    ],
)
def test_out_of_memory_halves_the_batch(error: Exception) -> None:
    tried: list[int] = []

    def attempt(batch: int) -> str:
        tried.append(batch)
        if batch > 3:
            raise error
        return f"with {batch}"

    assert out_of_memory(error)
    assert at_most(attempt, 13, CPU) == "with 3" and tried == [13, 6, 3]


def test_out_of_memory_with_one_picture_is_a_reason() -> None:
    tried: list[int] = []

    def attempt(batch: int) -> None:
        tried.append(batch)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CannotRunError, match="out of memory with one picture"):
        at_most(attempt, 4, CPU)
    assert tried == [4, 2, 1]


def test_another_error_is_not_retried() -> None:
    def attempt(batch: int) -> None:
        raise RuntimeError(f"batch {batch} is no good")

    with pytest.raises(RuntimeError, match="batch 8 is no good"):
        at_most(attempt, 8, CPU)


def test_a_network_too_large_for_its_batch_runs_at_half() -> None:
    class Large(Watched):
        def __deepcopy__(self, _: object) -> "Large":
            return self

        def forward(self, image: Tensor) -> Tensor:
            if len(image) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(image)

    ready = prepare(Large(), "eager", "fp32", SIZE, 8, CPU)
    assert ready.batch == 2 and ready.run().shape == (2, 1, *SIZE)  # type: ignore[attr-defined]


def test_what_runs_where() -> None:
    missing: dict[str, str] = {}
    asked = ["eager", "onnxruntime", "onnxruntime cuda graph", "tensorrt"]
    assert list(ways(asked, ["fp32", "fp16", "int8"], "cpu", missing)) == [
        ("eager", "fp32"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ]
    assert missing == {
        "onnxruntime cuda graph": "needs CUDA; this run is on cpu",
        "tensorrt": "needs CUDA; this run is on cpu",
        "fp16": "not in eager, onnxruntime on cpu",
    }
    missing.clear()
    assert list(ways(asked, ["tf32", "int8"], "cuda", missing)) == [(each, "tf32") for each in asked]
    assert list(missing) == ["int8"]
    assert precisions_of("compile", "cuda") == ("fp32", "tf32", "fp16")
    assert precisions_of("tensorrt", "cuda") == ("tf32", "fp16")


def test_settings_are_put_back() -> None:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, torch._dynamo.config.recompile_limit
    with pytest.raises(KeyError), timing.as_measured(CPU):
        assert cudnn.benchmark and torch._dynamo.config.recompile_limit > 100
        raise KeyError
    assert before == (cudnn.benchmark, cudnn.allow_tf32, torch._dynamo.config.recompile_limit)


def test_a_gpu_is_timed_between_events(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        count = 0

        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.name = f"event {Event.count % 2}"
            Event.count += 1

        def record(self) -> None:
            done.append(self.name)

        def synchronize(self) -> None:
            done.append(f"waited for {self.name}")

        def elapsed_time(self, end: "Event") -> float:
            return 4.5 if (self.name, end.name) == ("event 0", "event 1") else -1

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = timing.clock(torch.device("cuda"))
    assert clock(lambda: done.append("call")) == 4.5
    turn = ["event 0", "call", "event 1", "waited for event 1"]
    assert done == turn * 2
    done.clear()
    monkeypatch.setattr(Event, "elapsed_time", lambda *_: 501.0)
    assert clock(lambda: done.append("call")) == 501 and done == turn
    assert timing.settings(torch.device("cuda"))["clock"] == "cuda events"


def test_a_quick_call_counts_when_it_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    for times, counts in (([499.0, 20.0], 20.0), ([501.0], 501.0)):
        left = list(times)
        monkeypatch.setattr(timing, "milliseconds", lambda run, left=left: run() or left.pop(0))
        calls: list[int] = []
        assert timing.clock(CPU)(lambda calls=calls: calls.append(1)) == counts
        assert not left and len(calls) == len(times)
    assert timing.settings(CPU) == {"clock": "perf_counter", "twice_ms": 500, "cudnn_benchmark": None}


def test_files_take_multiples_of_32() -> None:
    assert backends.input_size("eager", (240, 330)) == (240, 330)
    assert backends.input_size("onnxruntime", (240, 330)) == (256, 320)
    assert backends.input_size("tensorrt", (480, 640)) == (480, 640)


@pytest.mark.skipif(not memory.CLEAR.exists(), reason="only Linux tells of a resident set and its peak")
def test_peak_memory_is_that_of_the_call() -> None:
    taken = 256 << 20  # what other tests leave behind may be given back in between

    def call() -> None:
        np.ones(taken, np.uint8)

    call()
    gc.collect()
    for _ in range(2):  # the second time, too, although what was used is free to be used again
        before = memory.held(CPU)
        most = memory.peak(call, CPU)
        assert before is not None and most is not None
        assert most - before == pytest.approx(taken, rel=0.1)
    assert (memory.peak(lambda: None, CPU) or 0) - (memory.held(CPU) or 0) < taken / 10


def test_memory_that_nobody_tells_of_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "STATUS", tmp_path / "no" / "status")
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "no" / "clear_refs")
    assert memory.held(CPU) is None and memory.peak(lambda: None, CPU) is None
    assert prepare(Watched(), "eager", "fp32", SIZE, 1, CPU).peak_memory is None


def test_files_are_exported_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[str, Any]] = []

    def export(model: object, path: Path, **options: Any) -> None:
        made.append((options["precision"], options["data"]))
        path.write_text("onnx")

    monkeypatch.setattr(exported, "export_onnx", export)
    model, folder = create_model("unet_mobilenet_v3", weights=None), tmp_path / "new" / "onnx"
    first = exported.exported(model, "fp32", folder)
    assert first.parent == folder and first.name.startswith("unet_mobilenet_v3_fp32-")
    assert exported.exported(model, "fp32", folder) == first and made == [("fp32", None)]
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.json").write_text("{}")
    weights = tmp_path / "weights.safetensors"
    weights.write_text("1")
    files = {
        first,
        exported.exported(model, "int8", folder),
        exported.exported(model, "int8", folder, None, data),
        exported.exported(model, "fp32", folder, weights),
        exported.exported(create_model("unet_mobilenet_v3", weights=None, max_depth=20.0), "fp32", folder),
    }
    # Other data, other weights, another library or another source: another file.
    (data / "dataset.json").write_text('{"source": "other"}')
    files.add(exported.exported(model, "int8", folder, None, data))
    weights.write_text("2")
    files.add(exported.exported(model, "fp32", folder, weights))
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "9.9.9")
        files.add(exported.exported(model, "fp32", folder))
    monkeypatch.setattr(exported, "SOURCES", ("depthzoo/models/*.py",))
    files.add(exported.exported(model, "fp32", folder))
    assert len(files) == len(made) == 9
