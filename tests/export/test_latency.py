import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from depthzoo.models import DepthModel
from export import latency, to_onnx
from export.latency import compare, main, table
from export.run_onnx import OnnxError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def only_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "VARIANTS", {"cpu": latency.VARIANTS["cpu"]})


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tiny: DepthModel) -> list[Any]:
    """The registry knows the tiny model; what it was asked for."""
    asked: list[Any] = []

    def create(name: str, **arguments: Any) -> DepthModel:
        asked.append((name, arguments))
        return tiny

    monkeypatch.setattr(latency, "create_model", create)
    return asked


def test_files_take_turns_with_eager_torch(
    tiny: DepthModel, tiny_file: Path, uint8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    interleave = latency.interleave

    def watched(runs: Any, *arguments: Any, **options: Any) -> Any:
        seen["runs"], seen["threads"] = len(runs), torch.get_num_threads()
        return interleave(runs, *arguments, **options)

    monkeypatch.setattr(latency, "interleave", watched)
    monkeypatch.setattr(latency, "VARIANTS", {"cpu": latency.VARIANTS["cpu"]})
    before = torch.get_num_threads()
    tiny.train()
    report = compare([tiny_file, uint8_file], tiny, batch=2, size=(64, 96), threads=1, rounds=4)
    assert tiny.training and torch.get_num_threads() == before
    tiny.eval()
    assert seen == {"runs": 3, "threads": 1}
    assert report["model"] == "tiny" and report["batch"] == 2 and report["size"] == [64, 96]
    rows = report["rows"]
    assert [(row["runs_in"], row["file"]) for row in rows] == [
        ("eager torch", None),
        ("onnxruntime", tiny_file.name),
        ("onnxruntime", uint8_file.name),
    ]
    for row in rows:
        assert 0 < row["quickest"] <= row["median"] <= row["slowest"] and row["first"] > 0
        assert row["runs"] == 4 and row["device"] == "cpu" and row["precision"] == "fp32"
        assert row["times_eager"] == round(rows[0]["median"] / row["median"], 2)
        assert (row["ready"] or 0) > 0 or row["file"] is None
    assert report["machine"]["threads"] == 1 and report["machine"]["processor"]
    assert set(report["versions"]) == {"depthzoo", "torch", "onnxruntime", "python"}
    assert json.loads(json.dumps(report)) == report
    head, versions, *lines = table(report).splitlines()
    assert "tiny, 2x64x96" in head and torch.__version__ in versions
    assert (
        len(lines) == 3
        and "x" not in lines[0].split("ms")[1]
        and f"{rows[1]['times_eager']:.2f}x" in lines[1]
    )


def test_float32_is_float32_and_cudnn_searches_as_onnxruntime_does(
    tiny: DepthModel, tiny_file: Path, only_cpu: None
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    seen: set[tuple[bool, ...]] = set()
    hook = tiny.register_forward_pre_hook(
        lambda *_: seen.add((cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark))
    )
    report = compare([tiny_file], tiny, size=(32, 64), threads=1, rounds=3, seconds=0)
    hook.remove()
    assert seen == {(False, False, True)}
    assert (report["tf32"], report["cudnn_benchmark"]) == (False, True)
    assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == before


def test_files_are_float32_on_cuda_and_tensorrt_says_tf32(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    class Elsewhere(latency.OnnxDepth):
        def __init__(
            self, path: Path, provider: str, size: Any, threads: int, options: dict[str, Any]
        ) -> None:
            asked.append((provider, options))
            super().__init__(path, "cpu", size)

    monkeypatch.setattr(latency, "OnnxDepth", Elsewhere)
    found = list(latency.in_onnxruntime({tiny_file: "fp32"}, "cuda", 1, (32, 64), 1, {}))
    assert [candidate.precision for candidate in found] == ["fp32", "fp32", "tf32"]
    assert [options.get("use_tf32") for provider, options in asked if provider == "cuda"] == [0, 0]


def test_what_does_not_work_is_said_once(
    tiny: DepthModel, tiny_file: Path, uint8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Picky(latency.OnnxDepth):
        def __init__(self, path: Path, provider: str = "cpu", *arguments: Any) -> None:
            if provider == "tensorrt":
                raise OnnxError("tensorrt does not work here: no driver")
            if "enable_cuda_graph" in arguments[2] and path == uint8_file:
                raise OnnxError("no graph of this one")
            super().__init__(path, "cpu", arguments[0])

    monkeypatch.setattr(latency, "OnnxDepth", Picky)
    missing: dict[str, str] = {}
    precisions = {tiny_file: "fp32", uint8_file: "fp32"}
    found = list(latency.in_onnxruntime(precisions, "cuda", 1, (64, 96), 1, missing))
    assert [(candidate.runs_in, candidate.file) for candidate in found] == [
        ("onnxruntime", tiny_file.name),
        ("onnxruntime", uint8_file.name),
        ("onnxruntime, CUDA graph", tiny_file.name),
    ]
    assert missing == {
        f"{uint8_file.name}, onnxruntime, CUDA graph, cuda": "no graph of this one",
        "tensorrt": "tensorrt does not work here: no driver",
    }
    if not torch.cuda.is_available():
        assert not list(latency.in_eager(tiny, "cuda", 1, (64, 96), half=True))


def test_the_command(
    tiny_file: Path,
    tmp_path: Path,
    known: list[Any],
    only_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tiny.v1.onnx"
    file.write_bytes(tiny_file.read_bytes())
    monkeypatch.setattr(sys, "argv", ["latency.py", "tiny.v1.onnx", "--size", "32x64"])
    assert main([str(file), "--size", "32x64", "--seconds", "0"]) == 0
    assert known == [("tiny", {"weights": None})]
    out = capsys.readouterr().out.splitlines()
    assert (
        out[0].startswith("latency of tiny, 1x32x64")
        and out[-1] == f"-> {tmp_path / 'tiny.v1.benchmark.json'}"
    )
    stored = json.loads((tmp_path / "tiny.v1.benchmark.json").read_text())
    assert stored["command"] == "python latency.py tiny.v1.onnx --size 32x64"
    assert [row["runs"] for row in stored["rows"]] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx: no such file"),
        (["text.onnx"], "text.onnx: onnxruntime cannot load it"),
        (["tiny.onnx", "other.onnx"], "other.onnx is of other, tiny.onnx of tiny"),
        (["other.onnx"], "unknown model 'other'"),
        (["tiny.onnx", "--size", "30x64"], "multiples of 32"),
        (["tiny.onnx", "--size", "64"], "HEIGHTxWIDTH"),
        (["tiny.onnx", "--batch", "0"], "--batch"),
        (["tiny.onnx", "--threads", "-1"], "--threads"),
        ([], "FILE"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tiny_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.onnx").write_bytes(tiny_file.read_bytes())
    Path("text.onnx").write_text("hello")
    other = onnx.load("tiny.onnx")
    next(entry for entry in other.metadata_props if entry.key == "name").value = "other"
    onnx.save(other, "other.onnx")
    if "tiny.onnx" in arguments:
        monkeypatch.setattr(latency, "create_model", lambda name, **_: None)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("latency: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.glob("*.json"))


def test_ctrl_c_writes_nothing(
    tiny_file: Path,
    tmp_path: Path,
    known: list[Any],
    only_cpu: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "tiny.onnx").write_bytes(tiny_file.read_bytes())
    monkeypatch.setattr(latency, "interleave", interrupt)
    assert main([str(tmp_path / "tiny.onnx")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.json"))


def test_it_follows_an_export(
    tiny: DepthModel,
    only_cpu: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(to_onnx, "create_model", lambda name, weights: tiny)
    arguments = ["unet", "--weights", "none", "--size", "64x96", "--out", str(tmp_path / "m.onnx")]
    assert to_onnx.main([*arguments, "--benchmark"]) == 0
    out = capsys.readouterr().out
    assert "parity" in out and "latency of tiny, 1x64x96" in out and "eager torch" in out
    assert json.loads((tmp_path / "m.benchmark.json").read_text())["size"] == [64, 96]

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "m.benchmark.json").unlink()
    monkeypatch.setattr(latency, "interleave", interrupt)
    assert to_onnx.main([*arguments, "--benchmark"]) == 130
    assert "nothing written" not in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_without_the_packages_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "export" / "latency.py"), "m.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not installed: run `make setup` or `pip install -e" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_from_another_directory(mobilenet_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(mobilenet_file.read_bytes())
    command = [
        sys.executable,
        str(ROOT / "export" / "latency.py"),
        "m.onnx",
        "--size",
        "32x64",
        "--seconds",
        "0",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    report = json.loads((tmp_path / "m.benchmark.json").read_text())
    assert report["model"] == "unet_mobilenet_v3" and len(report["rows"]) >= 2
    assert torch.cuda.is_available() or "cuda" in report["missing"]
