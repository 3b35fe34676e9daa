import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from depthzoo.models import DepthModel
from depthzoo.registry import create_model, list_models
from export import graph, to_onnx
from export.graph import ExportError
from export.parity import shapes_to_compare
from export.to_onnx import export_onnx, main

ROOT = Path(__file__).resolve().parents[2]
QUICK = {"unet_mobilenet_v3"}
OPERATORS = {
    *("Conv", "ConvTranspose", "Relu", "LeakyRelu", "HardSwish", "HardSigmoid", "MaxPool", "ReduceMean"),
    *("Resize", "Concat", "Sub", "Div", "Add", "Mul", "Sigmoid"),
}


def difference(model: DepthModel, path: Path, shape: tuple[int, ...], seed: int = 7) -> float:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    (got,) = session.run(["depth"], {"image": images.numpy()})
    assert got.shape == expected.shape and got.dtype == np.float32
    return float(np.abs(got - expected).max())


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in list_models()]
)
def test_every_model_matches_at_sizes_never_traced(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name == "unet_mobilenet_v3":
        model, path = request.getfixturevalue("mobilenet"), request.getfixturevalue("mobilenet_file")
    else:
        torch.manual_seed(0)
        model, path = create_model(name, weights=None).eval(), tmp_path / f"{name}.onnx"
        assert export_onnx(model, path).holds
    counts = operators(path)
    assert not counts.keys() - OPERATORS, counts
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # The bare network's depth varies by millimetres: this is some forty float32 roundings at 2.4 m.
    for shape in [(1, 3, 32, 64), (2, 3, 96, 160)]:
        assert difference(model, path, shape) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model_exports_at_a_fixed_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, path = create_model(name, weights=None).eval(), tmp_path / "fixed.onnx"
    assert export_onnx(model, path, size=(64, 96)).holds
    assert not operators(path).keys() - OPERATORS
    assert dims(onnx.load(path).graph.input[0]) == ["batch", 3, 64, 96]


def test_parity_is_measured_where_nothing_was_traced() -> None:
    assert len(shapes_to_compare(None)) == 3
    assert graph.TRACED_SHAPE not in shapes_to_compare(None)
    assert all(shape[2:] != graph.TRACED_SHAPE[2:] for shape in shapes_to_compare(None))
    assert shapes_to_compare((480, 640)) == ((1, 3, 480, 640), (1, 3, 480, 640), (3, 3, 480, 640))


def test_the_file_says_what_it_is(tiny_file: Path) -> None:
    model = onnx.load(tiny_file)
    onnx.checker.check_model(model, full_check=True)
    assert dims(model.graph.input[0]) == ["batch", 3, "height", "width"]
    assert dims(model.graph.output[0]) == ["batch", 1, "height", "width"]
    assert model.opset_import[0].version == 18
    facts = metadata(tiny_file)
    assert facts["name"] == "tiny" and facts["unit"] == "m" and facts["weights"] == "random"
    assert json.loads(facts["input"])["range"] == [0, 1]
    assert json.loads(facts["input"])["multiple_of"] == 32
    assert json.loads(facts["depth_range"]) == [0.001, 10.0]
    assert json.loads(facts["size"]) == [480, 640]
    assert json.loads(facts["parity"])["max"] < 1e-4
    assert set(json.loads(facts["versions"])) == {"depthzoo", "torch", "onnx", "onnxruntime"}


def test_the_file_does_not_say_where_it_was_made(mobilenet_file: Path) -> None:
    content = mobilenet_file.read_bytes()
    for trace in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "stack_trace"):
        assert trace.encode() not in content, trace


def test_exporting_twice_gives_the_same_bytes(tiny: DepthModel, tiny_file: Path, tmp_path: Path) -> None:
    export_onnx(tiny, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny_file.read_bytes()


def test_a_fixed_size_leaves_the_batch_open(tiny: DepthModel, tiny_fixed_file: Path) -> None:
    assert dims(onnx.load(tiny_fixed_file).graph.output[0]) == ["batch", 1, 64, 96]
    assert difference(tiny, tiny_fixed_file, (5, 3, 64, 96)) < 1e-4


def test_opset_25(tiny: DepthModel, tmp_path: Path) -> None:
    export_onnx(tiny, tmp_path / "tiny.onnx", opset=25)
    assert onnx.load(tmp_path / "tiny.onnx").opset_import[0].version == 25
    assert difference(tiny, tmp_path / "tiny.onnx", (1, 3, 96, 32)) < 1e-4


def test_the_model_is_left_as_it_was(tiny: DepthModel, tmp_path: Path) -> None:
    tiny.train()
    before = {key: value.clone() for key, value in tiny.state_dict().items()}
    export_onnx(tiny, tmp_path / "tiny.onnx")
    assert tiny.training
    tiny.eval()
    assert all(torch.equal(value, before[key]) for key, value in tiny.state_dict().items())


def test_trained_weights_bring_their_card_and_the_strict_bound(
    tiny: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {
        "tag": "nyu",
        "size": [224, 288],
        "camera": {"name": "Kinect v1", "focal_px": 518.86, "at_width": 640},
        "metrics": {"per_image": {"abs_rel": 0.2}},
        "terms": "research only",
    }
    monkeypatch.setattr(tiny, "card", card)
    (tmp_path / "weights.safetensors").write_bytes(b"tensors")
    path = tmp_path / "tiny.onnx"
    parity = export_onnx(tiny, path, weights_file=tmp_path / "weights.safetensors")
    assert parity.bound == {"max": 1e-4} and parity.max < 1e-4
    facts = metadata(path)
    assert facts["weights"] == "nyu" and facts["terms"] == "research only"
    assert facts["weights_sha256"] == hashlib.sha256(b"tensors").hexdigest()
    assert json.loads(facts["size"]) == [224, 288]
    assert json.loads(facts["camera"])["focal_px"] == 518.86
    assert json.loads(facts["metrics"])["per_image"]["abs_rel"] == 0.2


def test_an_export_that_differs_is_not_kept(
    tiny: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = to_onnx.trace

    def damage(*args: object) -> onnx.ModelProto:
        model = trace(*args)  # type: ignore[arg-type]
        bias = next(i for i in model.graph.initializer if i.name == "head.conv.bias")
        bias.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name)
        )
        return model

    monkeypatch.setattr(to_onnx, "trace", damage)
    (tmp_path / "tiny.onnx").write_bytes(b"the old one")
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_onnx(tiny, tmp_path / "tiny.onnx")
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"the old one"]


def test_a_graph_that_asks_for_shapes_is_refused(unguarded: DepthModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Shape"):
        export_onnx(unguarded, tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


def test_nothing_half_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        graph.write(b"content", tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_the_command(
    tiny: DepthModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(to_onnx, "create_model", lambda name, weights: tiny)
    assert main(["unet", "--weights", "none", "--size", "64x96"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == "unet (random weights), 64x96, opset 18, fp32"
    assert lines[1].startswith("parity with PyTorch: max ")
    assert lines[2].startswith("unet_64x96.onnx: ")
    assert len(lines) == 4 and "run_onnx.py unet_64x96.onnx" in lines[3]
    assert [p.name for p in tmp_path.iterdir()] == ["unet_64x96.onnx"]


def test_ctrl_c_leaves_nothing(
    tiny: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(to_onnx, "create_model", lambda name, weights: tiny)
    monkeypatch.setattr(to_onnx, "compare", interrupt)
    assert main(["unet", "--weights", "none", "--out", str(tmp_path / "unet.onnx")]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet_resnet"], "unknown model 'unet_resnet': did you mean"),
        (["unet", "--size", "480"], "HEIGHTxWIDTH"),
        (["unet", "--size", "480x"], "HEIGHTxWIDTH"),
        (["unet", "--size", "100x96"], "multiples of 32"),
        (["unet", "--size", "0x64"], "multiples of 32"),
        (["unet", "--opset", "17"], "opset must be 18 to 25, not 17"),
        (["unet", "--opset", "26"], "opset must be 18 to 25, not 26"),
        (["unet", "--precision", "fp12"], "fp12"),
        (["unet", "--out", "missing/unet.onnx"], "the folder missing does not exist"),
        (["unet", "--out", "."], "is a folder"),
        (["unet", "--weights", "missing.safetensors"], "missing.safetensors"),
        (["unet", "--weights", "nosuchtag"], "nosuchtag"),
        ([], "NAME"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("to_onnx: error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "export" / "to_onnx.py"), "unet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not installed: run `make setup` or `pip install -e" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "export.to_onnx"], [str(ROOT / "export" / "to_onnx.py")]])
def test_both_ways_to_start_it(start: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *start, "unet_mobilenet_v3", "--weights", "none", "--out", "m.onnx"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "parity" in done.stdout
