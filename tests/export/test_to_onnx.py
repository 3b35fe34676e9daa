"""Exporting: the graph, the file and its metadata, the parity check, and the command."""

import copy
import hashlib
import os
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper

import depthzoo
from depthzoo.models import DepthModel
from export import graph as graphs
from export import int8, to_onnx
from export.fp16 import simulate_fp16, to_fp16
from export.graph import ExportError, initializers
from export.int8 import Reader, quantize
from export.parity import RANDOM, compare, compared_shapes, eager
from export.pictures import load_pictures, network_input
from export.run_onnx import OnnxDepth
from export.to_onnx import check, convert, export_onnx, main
from tests.export.noise import noise

ROOT = Path(__file__).resolve().parents[2]
Export = Callable[..., tuple[Path, Any]]


def difference(model: DepthModel, file: bytes | Path, shape: tuple[int, ...]) -> float:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(7))
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = model(images).numpy()
    (depth,) = session.run(["depth"], {"image": images.numpy()})
    assert depth.shape == expected.shape and depth.dtype == np.float32
    return float(np.abs(depth - expected).max())


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("name", depthzoo.list_models())
def test_every_model_agrees_with_pytorch(name: str) -> None:
    """In float precisions, of dynamic and fixed size, at sizes that were not traced."""
    torch.manual_seed(0)
    model = depthzoo.create_model(name, weights=None).eval()
    traced = graphs.trace(model)
    assert not {"Shape", "BatchNormalization"} & set(operators(traced))
    pictures = load_pictures(None, 3)
    for precision, metres in (("fp32", 1e-5), ("fp16", 1e-3)):
        for size in (None, (64, 96)):
            file = convert(copied(traced), size or (480, 640), precision, False, size is not None, [])
            assert dims(file.graph.input[0]) == ["batch", 3, *(size or ("height", "width"))]
            to_onnx.write_metadata(file, to_onnx.describe(model, size, precision))
            parity, _ = check(file, model, size, precision, False, pictures)
            assert parity.holds, parity
            assert difference(model, file.SerializeToString(), (1, 3, *(size or (96, 32)))) < metres


@pytest.mark.slow
def test_a_real_model_in_int8() -> None:
    torch.manual_seed(0)
    model = depthzoo.create_model("unet_mobilenet_v3", weights=None).eval()
    traced = graphs.trace(model)
    quantized = convert(copied(traced), (64, 96), "int8", False, True, load_pictures(None, 3))
    counts, before = operators(quantized), operators(traced)
    assert counts["Conv"] == before["Conv"] and counts["QuantizeLinear"] > 80
    assert counts["HardSwish"] == before["HardSwish"]  # not decomposed


# -- the file ---------------------------------------------------------------------------------------------


def test_the_metadata_describes_the_file(tiny_file: Path) -> None:
    model = onnx.load(tiny_file)
    onnx.checker.check_model(model, full_check=True)
    assert dims(model.graph.input[0]) == ["batch", 3, "height", "width"]
    assert dims(model.graph.output[0]) == ["batch", 1, "height", "width"]
    assert model.opset_import[0].version == 18
    metadata = OnnxDepth(tiny_file).metadata
    assert (metadata["name"], metadata["unit"], metadata["weights"]) == ("tiny", "m", "random")
    assert metadata["input"]["range"] == [0, 1] and metadata["input"]["multiple_of"] == 32
    assert metadata["depth_range"] == [0.001, 10.0] and metadata["size"] == [480, 640]
    assert metadata["parity"]["max"] < 1e-4
    assert {"depthzoo", "torch", "onnx", "onnxruntime"} <= metadata["versions"].keys()


def test_a_fixed_size_leaves_only_the_batch_dynamic(fixed_file: Path) -> None:
    named = {dim for value in onnx.load(fixed_file).graph.value_info for dim in dims(value)}
    assert {name for name in named if isinstance(name, str)} == {"batch"}


def test_nodes_are_named_by_module(tiny_graph: onnx.ModelProto) -> None:
    modules = {node.name.rpartition("/")[0] for node in tiny_graph.graph.node if node.op_type == "Conv"}
    assert modules == {"fine.0", "coarse.0", "merge.0", "head.conv"}
    assert len({node.name for node in tiny_graph.graph.node}) == len(tiny_graph.graph.node)


def test_the_file_does_not_say_where_it_was_made(tiny_file: Path) -> None:
    content = tiny_file.read_bytes()
    for trace in (str(ROOT), str(Path.home()), sys.prefix, "site-packages", ".py", "stack_trace"):
        assert trace.encode() not in content, trace


def test_the_same_model_gives_the_same_bytes(tiny: DepthModel, tiny_file: Path, tmp_path: Path) -> None:
    """Traced again, and with the weights in channels_last as Predictor leaves them."""
    model = depthzoo.Predictor(copy.deepcopy(tiny), device="cpu").model
    export_onnx(model, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == tiny_file.read_bytes()


@pytest.mark.slow
def test_the_newest_opset(tiny: DepthModel, tmp_path: Path) -> None:
    export_onnx(tiny, tmp_path / "m.onnx", opset=25)
    assert onnx.load(tmp_path / "m.onnx").opset_import[0].version == 25
    assert difference(tiny, tmp_path / "m.onnx", (1, 3, 96, 32)) < 1e-5


def test_a_card_goes_into_the_metadata(
    tiny: DepthModel, export_tiny: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = {"tag": "nyu", "size": [224, 288], "terms": "research only", "camera": {"focal_px": 518.86}}
    monkeypatch.setattr(tiny, "card", card)
    (tmp_path / "weights.safetensors").write_bytes(b"tensors")
    path, parity = export_tiny(weights_file=tmp_path / "weights.safetensors")
    assert parity.bound == {"max": 1e-4} and parity.max < 1e-4
    metadata = OnnxDepth(path).metadata
    assert metadata["weights"] == "nyu" and metadata["terms"] == "research only"
    assert metadata["weights_sha256"] == hashlib.sha256(b"tensors").hexdigest()
    assert metadata["size"] == [224, 288] and metadata["camera"]["focal_px"] == 518.86


def test_a_size_far_from_the_trained_ones_warns(
    tiny: DepthModel, export_tiny: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    card: dict[str, Any] = {"tag": "nyu", "size": [64, 96]}
    monkeypatch.setattr(tiny, "card", card)
    with pytest.warns(UserWarning, match="size 160x192 is far from 64x96, which tiny is trained for"):
        export_tiny(size=(160, 192))
    # A size whose AbsRel in the card is about that of the best one is as good.
    card["sizes"] = {"64x96": {"abs_rel": 0.2}, "160x192": {"abs_rel": 0.21}, "480x640": {"abs_rel": 0.35}}
    path, _ = export_tiny(size=(160, 192))
    assert OnnxDepth(path).metadata["trained_sizes"] == [[64, 96], [160, 192]]


def test_an_export_that_differs_is_not_kept(
    tiny: DepthModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_graph: onnx.ModelProto
) -> None:
    def damaged(*_: object) -> onnx.ModelProto:
        model = copied(tiny_graph)
        scale(model, "head.conv.bias", 1.5)
        return model

    monkeypatch.setattr(to_onnx, "trace", damaged)
    (tmp_path / "tiny.onnx").write_bytes(b"the old one")
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_onnx(tiny, tmp_path / "tiny.onnx")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"the old one"]


def test_a_graph_with_shape_nodes_is_refused(unguarded: DepthModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="Shape"):
        export_onnx(unguarded, tmp_path / "tiny.onnx")
    assert not list(tmp_path.iterdir())


def test_the_head_leaves_the_blocked_layout(tiny_file: Path, tmp_path: Path) -> None:
    """onnxruntime's own optimized graph resizes one channel of logits, not a block of them."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(tiny_file, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
    producers = {name: node for node in nodes for name in node.output}
    (sigmoid,) = (node for node in nodes if node.op_type == "Sigmoid")
    resize = producers[producers[sigmoid.input[0]].input[0]]
    assert (resize.op_type, producers[resize.input[0]].op_type) == ("Resize", "Unsqueeze")


# -- fp16 -------------------------------------------------------------------------------------------------


def run(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["depth"], {"image": images})[0])


def scale(model: onnx.ModelProto, name: str, factor: float) -> None:
    tensor = initializers(model)[name]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(factor), name))


@pytest.fixture
def images() -> np.ndarray:
    return np.concatenate([network_input(picture, (64, 96), True) for picture in load_pictures(None, 2)])


def test_the_body_is_float16_and_the_ends_are_not(graph: onnx.ModelProto, images: np.ndarray) -> None:
    exact = run(graph, images)
    to_fp16(graph)
    onnx.checker.check_model(graph, full_check=True)
    types = {name.removesuffix("_fp16"): tensor.data_type for name, tensor in initializers(graph).items()}
    assert types["merge.0.weight"] == types["coarse.0.bias"] == TensorProto.FLOAT16
    assert types["head.conv.weight"] == types["head.conv.bias"] == TensorProto.FLOAT
    ends = [graph.graph.input[0], graph.graph.output[0]]
    assert [value.type.tensor_type.elem_type for value in ends] == [TensorProto.FLOAT] * 2
    assert operators(graph)["Cast"] == 2
    # The CPU provider computes it in float32; the simulation rounds every stored tensor.
    simulated = run(simulate_fp16(graph), images)
    assert 0 < np.abs(simulated - exact).max() < 0.02
    assert not np.array_equal(run(graph, images), simulated)


def test_an_fp16_file_that_overflows_on_a_gpu_is_refused(
    tiny: DepthModel, graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Features of some 1e5 between layers that undo each other: harmless in float32, infinite in float16.
    for name, factor in (("fine.0.weight", 100), ("fine.0.bias", 100), ("coarse.0.weight", 8e2)):
        scale(graph, name, factor)
    scale(graph, "coarse.0.bias", 8e4)
    weight = initializers(graph)["merge.0.weight"]
    values = numpy_helper.to_array(weight) / np.repeat(np.float32([8e4, 100]), 4)[:, None, None]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    monkeypatch.setattr(to_onnx, "trace", lambda *_: copied(graph))
    assert export_onnx(tiny, tmp_path / "fp32.onnx").holds
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export_onnx(tiny, tmp_path / "fp16.onnx", precision="fp16")
    scale(graph, "merge.0.weight", 1e9)
    with pytest.raises(ExportError, match="merge.0.weight has values beyond 65504"):
        to_fp16(graph)


@pytest.mark.parametrize("size", [None, (64, 96)])
def test_an_fp16_export(export_tiny: Export, size: tuple[int, int] | None) -> None:
    path, parity = export_tiny(precision="fp16", size=size)
    model = OnnxDepth(path)
    assert parity.holds and parity.max > 0 and model.fixed == size
    assert model.metadata["precision"] == "fp16" and "rounded to float16" in model.metadata["verified_on"]


# -- int8 -------------------------------------------------------------------------------------------------


def test_convolutions_become_int8_and_the_head_does_not(
    tiny_graph: onnx.ModelProto, images: np.ndarray
) -> None:
    quantized = quantize(tiny_graph, [images[:1], images[1:]])
    onnx.checker.check_model(quantized, full_check=True)
    weights = initializers(quantized)
    in_float = [
        node.input[1] for node in quantized.graph.node if node.op_type == "Conv" and node.input[1] in weights
    ]
    assert in_float == ["head.conv.weight"]
    types = Counter(tensor.data_type for tensor in weights.values() if tensor.dims)
    assert types[TensorProto.INT8] >= 3 and types[TensorProto.INT32] >= 3
    producers = {name: node for node in quantized.graph.node for name in node.output}
    node = producers["depth"]
    while node.op_type != "Conv":  # nothing between the head and the depth is rounded to 256 levels
        assert node.op_type in {"Add", "Mul", "Sigmoid", "Resize"}
        node = producers[node.input[0]]
    assert 0 < np.abs(run(quantized, images) - run(tiny_graph, images)).mean() < 0.1


def test_int8_is_calibrated_on_all_images(
    tiny_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []

    class Watched(Reader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            item = super().get_next()
            seen.extend((item or {}).values())
            return item

    monkeypatch.setattr(int8, "Reader", Watched)
    # A count that is not a multiple of what onnxruntime takes at once.
    images = [np.full((1, 3, 32, 64), value, np.float32) for value in np.linspace(0, 1, 11)]
    quantize(tiny_graph, images)
    assert len({image.tobytes() for image in seen}) == 11


@pytest.mark.parametrize("size", [None, (64, 96)])
def test_an_int8_export(export_tiny: Export, tmp_path: Path, size: tuple[int, int] | None) -> None:
    for index in range(4):
        noise(48, 64, index).save(tmp_path / f"{index}.png")
    contents = []
    for data in (tmp_path, None, None):
        path, parity = export_tiny(precision="int8", size=size, data=data)
        model = OnnxDepth(path)
        assert parity.holds and parity.max > 0 and model.fixed == size
        assert model.metadata["calibration"]["frames"] == (4 if data else 3)
        shape = (3, 3, *(size or (32, 96)))
        assert model.run(np.zeros(shape, np.float32)).shape == (3, 1, *shape[2:])
        contents.append(path.read_bytes())
    assert contents[1] == contents[2] != contents[0]


# -- pictures and parity ----------------------------------------------------------------------------------


def test_pictures_come_from_folders_and_tars(tmp_path: Path) -> None:
    folder, tars = tmp_path / "photos", tmp_path / "shards"
    folder.mkdir()
    tars.mkdir()
    for index in range(6):
        noise(40 + index, 50, index).save(folder / f"{index}.png")
    noise(9, 9).save(folder / "0.depth.png")
    (folder / "notes.txt").write_text("no picture")
    for name, first in (("train-0.tar", 0), ("train-1.tar", 2), ("test-0.tar", 4)):
        with tarfile.open(tars / name, "w") as tar:
            for index in (first, first + 1):
                tar.add(folder / f"{index}.png", f"{index}.png")
    heights = {path: [len(picture) for picture in load_pictures(path, 9)] for path in (folder, tars)}
    assert heights == {folder: [40, 41, 42, 43, 44, 45], tars: [40, 41, 42, 43]}  # without the test split
    assert [len(picture) for picture in load_pictures(folder, 3)] == [40, 42, 44]
    assert [len(picture) for picture in load_pictures(tars / "train-1.tar", 1)] == [42]
    for path, message in ((tmp_path / "none", "no pictures at"), (folder / "notes.txt", "not a tar")):
        with pytest.raises(ValueError, match=message):
            load_pictures(path, 1)


SMALL = ((1, 3, 32, 64), (2, 3, 64, 32))


def test_parity_of_a_known_difference(tiny: DepthModel) -> None:
    reference, pictures = eager(tiny, (64, 96)), load_pictures(None, 3)

    def shifted(images: np.ndarray) -> np.ndarray:
        depth = reference(images)
        depth[0, 0, 0, 0] += 0.5
        return depth + 0.25

    parity = compare(reference, [reference, shifted], SMALL, pictures, trained=False)
    pixels = 32 * 64 + 2 * 64 * 32
    assert parity.max == pytest.approx(0.75, abs=1e-5)
    assert parity.mean == pytest.approx(0.25 + 2 * 0.5 / pixels, abs=1e-5)
    assert parity.p999 == pytest.approx(0.25, abs=1e-5)
    assert parity.max / parity.max_rel == pytest.approx(parity.mean / parity.mean_rel)
    assert not parity.holds and parity.bound == RANDOM["fp32"]
    broken = compare(reference, [lambda images: reference(images) * np.nan], SMALL, pictures)
    assert np.isnan(broken.max) and not broken.holds
    with pytest.raises(ValueError, match="expected"):
        compare(reference, [lambda images: reference(images)[:, :, ::2]], SMALL, pictures)


def test_parity_is_measured_where_nothing_was_traced() -> None:
    assert all(shape[2:] != graphs.TRACED_SHAPE[2:] for shape in compared_shapes(None))
    assert compared_shapes((480, 640)) == ((1, 3, 480, 640), (3, 3, 480, 640))
    assert all(shape[-1] == 3 for shape in compared_shapes(None, uint8=True))


# -- the command ------------------------------------------------------------------------------------------


def test_the_command(
    tiny: DepthModel,
    tiny_graph: onnx.ModelProto,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(to_onnx, "trace", lambda *_: copied(tiny_graph))
    monkeypatch.setattr(depthzoo, "create_model", lambda name, weights: tiny)
    words = ["unet", "--weights", "none", "--size", "64x96", "--precision", "fp16", "--uint8"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.startswith("parity with PyTorch: ") and "run_onnx.py unet_64x96" in out
    assert [path.name for path in tmp_path.iterdir()] == ["unet_64x96_fp16_uint8.onnx"]


def test_a_run_is_exported_by_its_folder(
    tiny_graph: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or by its file; both name the model and its options."""
    monkeypatch.chdir(tmp_path)
    exported: list[tuple[DepthModel, Path, str]] = []

    def export(model: DepthModel, path: Path, *_: object, weights_file: Path, **__: object) -> Any:
        path.touch()
        exported.append((model, path, weights_file.name))

    monkeypatch.setattr(to_onnx, "export_onnx", export)
    trained = depthzoo.create_model("unet_mobilenet_v3", weights=None, max_depth=20.0)
    Path("mine").mkdir()
    trained.save("mine/model.safetensors")
    assert main(["mine"]) == main(["mine/model.safetensors", "--out", "m.onnx"]) == 0
    for model, path, file in exported:
        assert (model.max_depth, file) == (20.0, "model.safetensors")
        assert path.name in ("unet_mobilenet_v3.onnx", "m.onnx")


def test_other_channels_are_refused(tmp_path: Path) -> None:
    model = depthzoo.create_model("unet_mobilenet_v3", weights=None, out_channels=2)
    with pytest.raises(ExportError, match="unet_mobilenet_v3 predicts 2 channels"):
        export_onnx(model, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unet_resnet", "--weights", "none"], "unknown model 'unet_resnet': did you mean"),
        (["unet_resnet"], "unknown model 'unet_resnet': did you mean"),
        (["unet", "--size", "480"], "HEIGHTxWIDTH"),
        (["unet", "--size", "100x96"], "multiples of 32"),
        (["unet", "--size", "0x64"], "multiples of 32"),
        (["unet", "--size", "96000x96000"], "multiples of 32 up to 4096, not 96000x96000"),
        (["unet", "--opset", "17"], "opset must be 18 to 25, not 17"),
        (["unet", "--precision", "fp12"], "fp12"),
        (["unet", "--out", "missing/unet.onnx"], "the folder missing does not exist"),
        (["unet", "--out", "."], "is a folder"),
        (["unet", "--weights", "missing.safetensors"], "missing.safetensors"),
        (["unet_mobilenet_v3", "--data", "nowhere"], "no pictures at nowhere"),
        (["unet"], "unet: no trained weights"),
        (["missing.safetensors"], "missing.safetensors"),
        (["a/run", "--weights", "nyu"], "a/run has its own weights"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code: object = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith("to_onnx: error: ") and message in line
    assert "weights=None" not in line  # advice for Python
    assert not list(tmp_path.iterdir())


def test_without_the_packages_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "export" / "to_onnx.py"), "unet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "is not installed: run `make setup` or `pip install -e" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "export.to_onnx"], [str(ROOT / "export" / "to_onnx.py")]])
def test_both_ways_to_start_it_give_the_same_bytes(start: list[str], tmp_path: Path) -> None:
    """Nothing depends on the process: not random weights, not the order of a set."""
    contents = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        path = tmp_path / f"{seed}.onnx"
        words = [
            "unet_mobilenet_v3",
            "--weights",
            "none",
            "--size",
            "32x64",
            "--precision",
            "int8",
            "--uint8",
        ]
        command = [sys.executable, *start, *words, "--out", str(path)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
