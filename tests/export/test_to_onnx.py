import copy
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from depthzoo.models import DepthModel, create_model, list_models
from depthzoo.predictor import Predictor
from export import graph, to_onnx
from export.graph import ExportError
from export.parity import Parity, shapes_to_compare
from export.to_onnx import export_onnx, finish, main

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("unet_mobilenet_v3",)
ENDS = {"Sub": 1, "Div": 1, "Sigmoid": 1}  # of the normalisation and the head, with a Mul and an Add
# Heads that are resized: a float32 file has a Squeeze and an Unsqueeze behind each.
RESIZED = {"unet_resnet50": 1, "dispnet_vgg16": 3, "unet_mobilenet_v3": 1}
# The operators of a file of open size, all of them: no Shape, no BatchNormalization.
COUNTS: dict[str, dict[str, int]] = {
    "unet": {"Conv": 19, "ConvTranspose": 4, "Relu": 18, "MaxPool": 4, "Concat": 4, "Mul": 1, "Add": 1},
    "unet_bilinear": {"Conv": 23, "Resize": 4, "Relu": 22, "MaxPool": 4, "Concat": 4, "Mul": 1, "Add": 1},
    "unet_resnet50_heavy": {
        **{"Conv": 66, "ConvTranspose": 5, "Relu": 61, "MaxPool": 1, "Concat": 5, "Mul": 1, "Add": 17}
    },
    "unet_resnet50": {
        **{"Conv": 63, "Resize": 5, "Relu": 58, "MaxPool": 1, "Concat": 4, "Mul": 1, "Add": 17},
    },
    "dispnet_vgg16": {
        **{"Conv": 22, "ConvTranspose": 5, "Relu": 13, "LeakyRelu": 10, "Resize": 3, "MaxPool": 5},
        **{"Concat": 5, "Mul": 1, "Add": 1},
    },
    "unet_mobilenet_v3": {
        **{"Conv": 80, "Relu": 36, "HardSwish": 20, "HardSigmoid": 8, "ReduceMean": 8, "Resize": 5},
        **{"Concat": 4, "Mul": 9, "Add": 11},
    },
}


def difference(model: DepthModel, file: Path | bytes, shape: tuple[int, ...], seed: int = 7) -> float:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    (got,) = session.run(["depth"], {"image": images.numpy()})
    assert got.shape == expected.shape and got.dtype == np.float32
    return float(np.abs(got - expected).max())


def expected(name: str, parted: bool = True) -> Counter[str]:
    counts = Counter(COUNTS[name] | ENDS)
    if parted:
        counts += Counter(dict.fromkeys(("Squeeze", "Unsqueeze"), RESIZED.get(name, 0)))
    return counts


def operators(file: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in file.graph.node)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_the_small_model_matches_at_sizes_never_traced(mobilenet: DepthModel, mobilenet_file: Path) -> None:
    assert operators(onnx.load(mobilenet_file)) == expected("unet_mobilenet_v3")
    assert [p.name for p in mobilenet_file.parent.iterdir()] == [mobilenet_file.name]
    # The bare network's depth varies by millimetres: this is some forty float32 roundings at 2.4 m.
    for shape in [(1, 3, 32, 64), (2, 3, 96, 160)]:
        assert difference(mobilenet, mobilenet_file.read_bytes(), shape) < 1e-5


def test_blocks_of_channels_end_at_the_head(mobilenet_file: Path, tmp_path: Path) -> None:
    """onnxruntime's own optimised graph resizes one channel of logits, not a block of them."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(mobilenet_file, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimised.onnx").graph.node
    producers = {name: node for node in nodes for name in node.output}
    (sigmoid,) = (node for node in nodes if node.op_type == "Sigmoid")
    resize = producers[sigmoid.input[0]]
    assert (resize.op_type, producers[resize.input[0]].op_type) == ("Resize", "Unsqueeze")


@pytest.mark.slow
@pytest.mark.parametrize("name", list_models())
def test_every_model_in_both_float_precisions_of_any_and_of_one_size(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, weights=None).eval()
    traced = graph.trace(model)
    assert operators(traced) == expected(name, parted=False)
    for precision, metres in (("fp32", 1e-5), ("fp16", 1e-3)):
        for size in (None, (64, 96)):
            copy = onnx.ModelProto()
            copy.CopyFrom(traced)
            file, parity = finish(copy, model, size, precision)
            assert parity.holds
            assert operators(file) - Counter({"Cast": 9}) == expected(name, parted=precision == "fp32")
            assert dims(file.graph.input[0]) == ["batch", 3, *(size or ("height", "width"))]
            assert difference(model, file.SerializeToString(), (1, 3, *(size or (96, 32)))) < metres


@pytest.mark.slow
@pytest.mark.parametrize("name", QUICK)
@pytest.mark.usefixtures("few_frames")
def test_quick_models_in_int8(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, weights=None).eval()
    file, parity = finish(graph.trace(model), model, (64, 96), "int8")
    assert parity.holds
    counts = operators(file)
    assert counts["Conv"] == COUNTS[name]["Conv"] and counts["QuantizeLinear"] > 80
    assert counts["HardSwish"] == COUNTS[name]["HardSwish"]  # not taken apart


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


def test_weights_in_channels_last_give_the_same_bytes(
    mobilenet: DepthModel, mobilenet_file: Path, tmp_path: Path
) -> None:
    model = copy.deepcopy(mobilenet)
    Predictor(model, device="cpu")
    assert any(not parameter.is_contiguous() for parameter in model.parameters())
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == mobilenet_file.read_bytes()
    assert any(
        not parameter.is_contiguous() for parameter in model.parameters()
    )  # the caller's stay as they are


def test_names_do_not_depend_on_the_exporters_counters(tiny: DepthModel) -> None:
    first = graph.trace(tiny)
    other = onnx.ModelProto()
    other.CopyFrom(first)
    kept = {"", "image", "depth", *(t.name for t in first.graph.initializer if "." in t.name)}
    for node in other.graph.node:
        node.name = f"other_{node.name}"
        for names in (node.input, node.output):
            names[:] = [name if name in kept else f"other_{name}" for name in names]
    for part in (*other.graph.initializer, *other.graph.value_info):
        part.name = part.name if part.name in kept else f"other_{part.name}"
    onnx.checker.check_model(other, full_check=True)
    assert other != first
    graph.number(other)
    assert other == first


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


@pytest.mark.usefixtures("traced")
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


@pytest.mark.usefixtures("traced")
def test_a_size_far_from_the_trained_one_warns(
    tiny: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    card: dict[str, Any] = {"tag": "nyu", "size": [64, 96]}
    monkeypatch.setattr(tiny, "card", card)
    monkeypatch.setattr(to_onnx, "create_model", lambda *_, **__: tiny)
    monkeypatch.setattr(to_onnx, "weights_files", lambda names, *_: {names[0]: None})
    arguments = ["unet", "--out", str(tmp_path / "m.onnx")]
    far = "to_onnx: warning: size 160x192 is far from 64x96, which tiny is trained for: depth will be off\n"
    for words, expected in ((["--size", "160x192"], far), (["--size", "64x96"], ""), ([], "")):
        assert main([*arguments, *words]) == 0
        assert capsys.readouterr().err == expected
        assert json.loads(metadata(tmp_path / "m.onnx")["trained_sizes"]) == [[64, 96]]
    # A size that the card shows to be about as exact is as good; one that it shows to be worse is not.
    card["sizes"] = {"64x96": {"abs_rel": 0.2}, "160x192": {"abs_rel": 0.21}, "480x640": {"abs_rel": 0.35}}
    assert main([*arguments, "--size", "160x192"]) == 0
    assert capsys.readouterr().err == ""
    assert json.loads(metadata(tmp_path / "m.onnx")["trained_sizes"]) == [[64, 96], [160, 192]]
    with pytest.warns(UserWarning, match="size 320x384 is far from 64x96, 160x192, which") as caught:
        export_onnx(tiny, tmp_path / "m.onnx", (320, 384))
    assert caught[0].filename == __file__


@pytest.mark.usefixtures("traced")
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


@pytest.mark.usefixtures("traced")
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


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch, tiny: DepthModel) -> list[tuple[str, Path | None]]:
    """Every model is the tiny one; what was asked for."""
    asked: list[tuple[str, Path | None]] = []

    def create(name: str, weights: Path | None) -> DepthModel:
        asked.append((name, weights))
        return tiny

    monkeypatch.setattr(to_onnx, "create_model", create)
    return asked


@pytest.mark.usefixtures("traced")
def test_several_models_go_into_a_folder(
    untrained: list[tuple[str, Path | None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["unet", "dispnet_vgg16", "--weights", "none", "--out", str(tmp_path)]
    assert main([*arguments, "--size", "64x96", "--precision", "fp16", "--uint8"]) == 0
    assert untrained == [("unet", None), ("dispnet_vgg16", None)]
    names = {f"{name}_64x96_fp16_uint8.onnx" for name in ("unet", "dispnet_vgg16")}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "unet (random weights), 64x96, opset 18, fp16, uint8 input\n" in capsys.readouterr().out


def test_all_means_those_that_have_weights(
    untrained: list[tuple[str, Path | None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def export(model: DepthModel, path: Path, *_: object, weights_file: Path, **__: object) -> Parity:
        path.write_bytes(b"model")
        if weights_file and weights_file.name.startswith("unet_mobilenet_v3"):
            raise ExportError("too far from PyTorch")
        return Parity(0, 0, 0, 0, 0, {}, "", (), "")

    monkeypatch.setattr(to_onnx, "export_onnx", export)
    have = list_models(pretrained=True)
    assert main(["--all", "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert err == "to_onnx: error: too far from PyTorch\n"
    assert sorted(name for name, _ in untrained) == sorted(have)
    assert "unet_resnet50.onnx: 0.0 MB" in out  # those after a failure are exported all the same
    skipped = next(line for line in out.splitlines() if line.startswith("skipped"))
    assert all((name in skipped.split(": ")[1].split(", ")) == (name not in have) for name in list_models())
    untrained.clear()
    assert main(["--all", "--weights", "none", "--out", str(tmp_path)]) == 0
    assert untrained == [(name, None) for name in list_models()]


@pytest.mark.usefixtures("traced")
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
        (["unet", "--size", "100x96", "--uint8"], "multiples of 32"),
        (["unet", "--opset", "17"], "opset must be 18 to 25, not 17"),
        (["unet", "--opset", "26"], "opset must be 18 to 25, not 26"),
        (["unet", "--precision", "fp12"], "fp12"),
        (["unet", "--out", "missing/unet.onnx"], "the folder missing does not exist"),
        (["unet", "--out", "."], "is a folder"),
        (["unet", "--weights", "missing.safetensors"], "missing.safetensors"),
        (["unet", "--weights", "nosuchtag"], "nosuchtag"),
        (["unet_mobilenet_v3", "--data", "nowhere"], "no data set at nowhere"),
        (["unet", "--weights", "DEFAULT"], "unet: no trained weights"),
        (["unet", "dispnet_vgg16"], "unet: no trained weights"),
        (["unet", "unet_bilinear", "--out", "nowhere"], "nowhere: this folder does not exist"),
        (["--all", "--out", "nowhere"], "nowhere: this folder does not exist"),
        (["--all", "--weights", "nosuchtag"], "no model has the weights 'nosuchtag'"),
        (["--all", "unet"], "not both"),
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


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    """Random weights, too, are the same each time; and nothing hangs on the order of a set."""
    command = [sys.executable, str(ROOT / "export" / "to_onnx.py"), "unet_mobilenet_v3", "--weights", "none"]
    command += ["--size", "32x64", "--precision", "int8", "--uint8", "--out"]
    contents = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        path = tmp_path / f"{seed}.onnx"
        subprocess.run([*command, str(path)], env=environment, check=True, capture_output=True)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
