"""The protocol end to end: a prediction that is known gives figures that are known."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.errors import DatasetError
from depthzoo.metrics import METRICS, EvalProtocol
from train.arguments import command
from train.codec import encode_depth, encode_image
from train.evaluate import parser, run
from train.evaluation import ErrorByDistance, evaluate, evaluate_sizes, predict_frames, ranked, torch_predict
from train.published_results import is_nyu_test, results_table
from train.shards import ShardDataset, ShardWriter, write_dataset


def launch(model: object, data: Path, *flags: object) -> int:
    """``python -m train.evaluate`` on the validation frames, whole; its exit code."""
    usual = ["--data", data, "--split", "val", "--protocol", "full", "--device", "cpu"]
    return command(parser(), run, [str(argument) for argument in (model, *usual, *flags)])


class Constant(torch.nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_full((len(image), 1, *image.shape[-2:]), self.value)


class LeftHalf(torch.nn.Module):
    """1 m on the left, 3 m on the right."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        depth = image.new_full((len(image), 1, *image.shape[-2:]), 3.0)
        depth[..., : image.shape[-1] // 2] = 1.0
        return depth


def test_a_constant_by_the_eigen_protocol(nyu_set: Path) -> None:
    dataset = ShardDataset(nyu_set, "test")
    predict = torch_predict(Constant(2.0), torch.device("cpu"))
    results, rows = evaluate(predict, dataset, (192, 256))
    truths = [
        torch.from_numpy(dataset[i][1][45:471, 41:601].astype("float64")) / 1000 for i in range(len(dataset))
    ]
    expected = [float(((truth - 2).abs() / truth).mean()) for truth in truths]
    assert results["per_image"]["abs_rel"] == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    assert rows.shape == (len(dataset), len(METRICS))


def test_flip_averages_with_the_mirrored_picture() -> None:
    image = torch.rand(1, 3, 32, 64)
    assert (torch_predict(LeftHalf(), torch.device("cpu"), flip=True)(image) == 2).all()


def test_the_command_evaluates_a_file_and_writes_json(
    nyu_set: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "metrics.json"
    arguments = [str(weights_file), "--data", str(nyu_set), "--split", "val", "--json", str(out)]
    assert command(parser(), run, arguments) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["truth"] == "filled" and report["protocol"] == "eigen"
    assert f"{report['plain']['per_image']['abs_rel']:.3f}" in printed and "pooled" in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["unet_mobilenet"], "did you mean 'unet_mobilenet_v3'"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["unet", "--card", "x", "--split", "val"], "--card states the test split"),
        (["unet", "--card", "x", "--median-scaling"], "--card states the test split"),
        ([str(Path(__file__).parent)], "without model.safetensors"),
    ],
)
def test_bad_arguments(
    nyu_set: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(parser(), run, [*arguments, "--data", str(nyu_set)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0


# -- frames whose figures are known: grey pictures, constant truth, and a network that gives 10 m times the grey ------

GREYS = (51, 102, 153, 204)  # 2, 4, 6, 8 m
TRUTHS = (2.5, 4.0, 3.0, 6.4)  # m
ABS_RELS = (0.2, 0.0, 1.0, 0.25)


class Grey(torch.nn.Module):
    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return 10 * image.mean(1, keepdim=True)


def grey_onnx(
    path: Path, size: tuple[str | int, str | int] = ("height", "width"), channels: int = 3, **metadata: str
) -> Path:
    """The same as an ONNX file with the contract of ``export/to_onnx.py``."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["image", "axis"], ["mean"], keepdims=1),
            helper.make_node("Mul", ["mean", "ten"], ["depth"]),
        ],
        "grey",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, *size])],
        [helper.make_tensor_value_info("depth", TensorProto.FLOAT, ["batch", 1, *size])],
        [
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("ten", TensorProto.FLOAT, [], [10.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    ours = {"format": "depthzoo/1", "name": "grey", "size": "[64, 96]"} if channels == 3 else {}
    helper.set_model_props(model, ours | metadata)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def write_greys(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    with ShardWriter(folder, "val") as writer:
        for i, (grey, truth, size) in enumerate(zip(GREYS, TRUTHS, sizes, strict=True)):
            image = np.full((*size, 3), grey, np.uint8)
            writer.write(f"grey{i}", *encode_image(image), encode_depth(np.full(size, truth)))
    entry = {**writer.entry, "size": list(sizes[0]), "focal_px": CANONICAL_FOCAL * sizes[0][1]}
    write_dataset(folder, {"val": entry}, source="greys", truth="exact", terms="none")
    return folder


@pytest.fixture
def grey_set(tmp_path: Path) -> Path:
    return write_greys(tmp_path / "greys", [(48, 64)] * 4)


def check_figures(results: dict[str, dict[str, float]]) -> None:
    assert results["per_image"]["abs_rel"] == pytest.approx(sum(ABS_RELS) / 4, abs=1e-6)
    assert results["per_image"]["rmse"] == pytest.approx((0.5 + 0 + 3 + 1.6) / 4, abs=1e-6)
    assert results["pooled"]["rmse"] == pytest.approx(((0.5**2 + 3**2 + 1.6**2) / 4) ** 0.5, abs=1e-6)
    assert results["per_image"]["d2"] == 0.75  # ratios 1.25, 1, 2, 1.25


def test_torch_gives_the_known_figures(grey_set: Path) -> None:
    predict = torch_predict(Grey(), torch.device("cpu"), flip=True)
    results, rows = evaluate(predict, ShardDataset(grey_set, "val"), (64, 96), "full")
    check_figures(results)
    assert rows[:, 0].tolist() == pytest.approx(ABS_RELS, abs=1e-6)


@pytest.mark.parametrize("size", [("height", "width"), (32, 96)], ids=["dynamic", "fixed to another aspect"])
def test_onnx_gives_the_same_figures_and_the_worst_frames(
    grey_set: Path, tmp_path: Path, size: tuple[str | int, str | int], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    model, out = grey_onnx(tmp_path / "grey.onnx", size), tmp_path / "new" / "metrics.json"
    assert launch(model, grey_set, "--json", out, "--worst", 2) == 0
    report = json.loads(out.read_text())
    check_figures(report["plain"])
    assert report["size"] == ([32, 96] if size == (32, 96) else [64, 96]) and report["model"] == "grey"
    assert [(frame["key"], round(frame["abs_rel"], 6)) for frame in report["worst"]] == [
        ("grey2", 1.0),
        ("grey3", 0.25),
    ]
    panel = Image.open(tmp_path / "new" / "metrics.worst.png")
    assert panel.width > 4 * 320 and panel.height % 2 == 0 and panel.height > 2 * 240
    printed = capsys.readouterr().out
    assert "metrics.worst.png" in printed and "BTS" not in printed  # these are not the frames of the anchors


def test_an_onnx_file_of_others_and_the_metrics_of_each_frame(grey_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, out, frames = (
        grey_onnx(tmp_path / "x.onnx", format="other"),
        tmp_path / "x.json",
        tmp_path / "x.csv",
    )
    assert launch(model, grey_set, "--size", "32x64", "--json", out, "--per-frame", frames) == 0
    report = json.loads(out.read_text())
    check_figures(report["plain"])
    assert report["model"] == "x" and report["size"] == [32, 64]
    rows = list(csv.DictReader(frames.open()))
    assert [row["key"] for row in rows] == ["grey0", "grey1", "grey2", "grey3"]
    assert [float(row["abs_rel"]) for row in rows] == pytest.approx(ABS_RELS, abs=1e-6)


def test_a_folder_of_predictions(grey_set: Path, tmp_path: Path) -> None:
    """In metres or millimetres, of the frame's size or another, scaled by the median or not."""
    folder, out = tmp_path / "predictions", tmp_path / "metrics.json"
    folder.mkdir()
    for number, grey in enumerate(GREYS):
        metres = np.full((24, 32) if number else (48, 64), grey / 25.5, np.float32)
        if number % 2:
            Image.fromarray(np.rint(metres * 1000).astype(np.uint16)).save(folder / f"grey{number}.depth.png")
        else:
            np.save(folder / f"grey{number}.npy", metres)
    assert launch(folder, grey_set, "--json", out, "--worst", 1) == 0
    check_figures(json.loads(out.read_text())["plain"])
    assert launch(folder, grey_set, "--json", out, "--median-scaling") == 0
    assert json.loads(out.read_text())["plain"]["per_image"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    Image.fromarray(np.zeros((48, 64), np.uint8)).save(folder / "grey0.png")
    (folder / "grey0.npy").unlink()
    assert launch(folder, grey_set) == 2


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    """One camera, turned for the portrait: its scale of depth stays."""
    dataset = ShardDataset(write_greys(tmp_path / "sizes", [(48, 64), (48, 64), (64, 48), (48, 64)]), "val")
    seen = []
    results, _ = evaluate(
        lambda image: seen.append(tuple(image.shape)) or Grey()(image), dataset, (64, 64), "full"
    )
    check_figures(results)
    assert seen == [(2, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["{onnx}", "--protocol", "eigen"], "use --protocol full"),
        (["{onnx}", "--worst", "-1"], "--worst must be 0 or more"),
        (["{onnx}", "--worst", "1", "--median-scaling"], "drop --median-scaling"),
        (["{fixed}", "--size", "64x64"], "takes (32, 96) only, not (64, 64)"),
        (
            ["{grey}"],
            "takes image tensor(float) ['batch', 1, 'height', 'width']; expected float32 (N, 3, H, W)",
        ),
        (["{folder}", "--flip"], "a folder of predictions has none"),
        (["{folder}"], "has no prediction grey0.npy or grey0.png"),
        (["{json}"], "onnxruntime cannot load it"),
        (["nowhere.onnx"], "nowhere.onnx: no such file"),
        (["{onnx}", "--card", "x", "--split", "test"], "--card stores weights"),
        (["{onnx}", "--split", "test"], "no split 'test'"),
    ],
)
def test_bad_arguments_with_onnx(
    grey_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    pytest.importorskip("onnxruntime")
    files = {
        "onnx": grey_onnx(tmp_path / "grey.onnx"),
        "fixed": grey_onnx(tmp_path / "fixed.onnx", (32, 96)),
        "grey": grey_onnx(tmp_path / "one.onnx", channels=1),
        "folder": tmp_path / "folder",
        "json": tmp_path / "text.onnx",
    }
    files["json"].write_text("{}")
    files["folder"].mkdir()
    np.save(files["folder"] / "other.npy", np.ones((48, 64)))
    if "--card" in arguments:
        (grey_set / "dataset.json").write_text(
            (grey_set / "dataset.json").read_text().replace('"val"', '"test"')
        )
    chosen = [argument.format(**files) for argument in arguments]
    assert launch(chosen[0], grey_set, *chosen[1:]) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0


def test_without_onnxruntime(
    grey_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = grey_onnx(tmp_path / "grey.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert launch(model, grey_set) == 2
    error = capsys.readouterr().err
    assert "onnxruntime, which is not installed: pip install" in error and error.strip().count("\n") == 0


def test_a_frame_that_cannot_be_decoded_is_named(grey_set: Path) -> None:
    shard = grey_set / "val-000000.tar"
    rows = json.loads((grey_set / "val-000000.index.json").read_text())
    with open(shard, "r+b") as file:
        file.seek(rows[2][2])
        file.write(b"no picture")
    predict = torch_predict(Grey(), torch.device("cpu"))
    with pytest.raises(DatasetError, match="'grey2': cannot be decoded"):
        evaluate(predict, ShardDataset(grey_set, "val"), (64, 96), "full")


def test_a_prediction_that_is_not_finite_is_named(grey_set: Path) -> None:
    def predict(image: torch.Tensor) -> torch.Tensor:
        depth = Grey()(image)
        depth[3, 0, 0, 0] = torch.nan
        return depth

    with pytest.raises(ValueError, match="'grey3' is not finite"):
        evaluate(predict, ShardDataset(grey_set, "val"), (64, 96), "full")


# -- cameras and ranges ----------------------------------------------------------------------------------------------


def change(folder: Path, **entries: object) -> ShardDataset:
    """The greys with other entries in ``dataset.json``; "focal_px" is its split's."""
    path = folder / "dataset.json"
    info = json.loads(path.read_text())
    if "focal_px" in entries:
        info["splits"]["val"]["focal_px"] = entries.pop("focal_px")
    path.write_text(json.dumps(info | entries))
    return ShardDataset(folder, "val")


def test_predictions_are_scaled_to_the_camera_of_the_data_set(grey_set: Path) -> None:
    dataset = change(grey_set, focal_px=1.5 * CANONICAL_FOCAL * 64)
    predict = torch_predict(Grey(), torch.device("cpu"))
    _, rows = evaluate(predict, dataset, (64, 96), "full")
    # 3, 6, 9 and 10 m (12 are clipped) for 2.5, 4, 3 and 6.4 m.
    assert rows[:, 0].tolist() == pytest.approx([0.5 / 2.5, 0.5, 2.0, 3.6 / 6.4], abs=1e-6)


def test_truth_counts_in_the_range_of_the_data_set(grey_set: Path) -> None:
    """The stored steps are read in the unit that is stated: 25, 40, 30 and 64 m. Predicted are 20, 40, 60 and 80 m."""
    dataset = change(grey_set, depth_unit=0.01, depth_range=[0.5, 50.0], focal_px=10 * CANONICAL_FOCAL * 64)
    predict = torch_predict(Grey(), torch.device("cpu"))
    results, rows = evaluate(predict, dataset, (64, 96), "full")
    assert rows[:3, 0].tolist() == pytest.approx([0.2, 0.0, 2 / 3], abs=1e-6)  # 60 m are clipped to 50
    assert rows[3].isnan().all()
    assert results["per_image"]["abs_rel"] == pytest.approx((0.2 + 2 / 3) / 3, abs=1e-6)


def test_the_range_and_the_frames_that_count_are_said(
    grey_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "metrics.json"
    model = grey_onnx(tmp_path / "grey.onnx")
    assert launch(model, grey_set, "--json", out, "--min-depth", 2.7, "--max-depth", 5) == 0
    report = json.loads(out.read_text())
    assert report["count"] == 2 and report["depth_range"] == [2.7, 5.0]
    # 4 m, right, and 3 m, for which 6 m are predicted and clipped to 5.
    assert report["plain"]["per_image"]["abs_rel"] == pytest.approx((0 + 2 / 3) / 2, abs=1e-6)
    assert [band["metres"] for band in report["failures"]["by_distance"]] == [[3, 5]]
    printed = capsys.readouterr().out
    assert "2 frames, 2 more have no valid depth, exact truth from 2.7 to 5 m" in printed
    assert launch(model, grey_set, "--min-depth", 12) == 2
    assert "--min-depth 12, --max-depth 10: expected" in capsys.readouterr().err


# -- working sizes ---------------------------------------------------------------------------------------------------


class Narrow(torch.nn.Module):
    """Metres that depend on the size that it is fed: its width / 100."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.new_full((len(image), 1, *image.shape[-2:]), image.shape[-1] / 100)


def test_a_table_over_working_sizes(grey_set: Path) -> None:
    dataset = ShardDataset(grey_set, "val")
    sizes = evaluate_sizes(torch_predict(Narrow(), torch.device("cpu")), dataset, "full")
    assert list(sizes) == ["192x256", "240x320", "480x640"]
    for size, metres in (("192x256", 2.56), ("240x320", 3.2), ("480x640", 6.4)):
        errors = [abs(metres - truth) / truth for truth in TRUTHS]
        assert sizes[size].keys() == {"abs_rel", "rmse", "d1"}
        assert sizes[size]["abs_rel"] == pytest.approx(sum(errors) / 4, abs=1e-6)


def test_at_480x640_a_whole_frame_goes_through_the_bare_network(tmp_path: Path) -> None:
    """Bit by bit what a caller gives it and gets."""
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with ShardWriter(tmp_path, "test") as writer:
        writer.write("a", *encode_image(image), encode_depth(np.full((480, 640), 2.0)))
    write_dataset(tmp_path, {"test": {**writer.entry, "size": [480, 640], "focal_px": 518.86}})
    fed = []

    def network(image: torch.Tensor) -> torch.Tensor:
        fed.append(image)
        return image.mean(1, keepdim=True)

    (frames,) = predict_frames(network, ShardDataset(tmp_path, "test"), (480, 640))
    bare = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(fed[0], bare) and torch.equal(frames.depth, bare.mean(1, keepdim=True))


def test_the_table_is_printed_and_stored(
    grey_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "metrics.json"
    model = grey_onnx(tmp_path / "grey.onnx")
    assert launch(model, grey_set, "--sizes", "--json", out) == 0
    sizes = json.loads(out.read_text())["sizes"]
    assert all(row["abs_rel"] == pytest.approx(sum(ABS_RELS) / 4, abs=1e-6) for row in sizes.values())
    printed = capsys.readouterr().out
    assert f"480x640     {sum(ABS_RELS) / 4:9.3f}" in printed
    assert launch(grey_onnx(tmp_path / "fixed.onnx", (32, 96)), grey_set, "--sizes") == 2
    assert "--sizes: this file takes 32x96 only" in capsys.readouterr().err


def test_frames_without_truth_are_not_ranked() -> None:
    rows = torch.tensor([[0.3], [torch.nan], [0.1], [0.2]]).expand(4, len(METRICS))
    assert ranked(rows) == [2, 3, 0]


def test_published_results_are_for_the_654_only() -> None:
    info = {"source": "nyu-labelled", "splits": {"test": {"count": 654}, "val": {"count": 95}}}
    assert is_nyu_test(info, "test", "eigen")
    assert not is_nyu_test(info, "val", "eigen") and not is_nyu_test(info, "test", "full")
    assert not is_nyu_test({**info, "source": "rooms"}, "test", "eigen")
    lines = {line.strip().split("  ")[0]: line.split()[-3:] for line in results_table().splitlines()}
    assert lines["a constant"] == [".481", "-", ".371"]
    assert lines["the train set's log-mean depth map"] == [".362", "1.072", ".427"]
    assert lines["BTS, ResNet-50"] == [".119", ".419", ".865"]


# -- errors by distance ------------------------------------------------------------------------------------------------

WHOLE = EvalProtocol(crop=None)


def test_errors_by_true_distance() -> None:
    target = torch.tensor([0.5, 1.0, 1.5, 4.0, 9.0, 0.0, 12.0]).reshape(
        1, 1, 1, 7
    )  # the last two do not count
    depth = torch.tensor([1.0, 0.5, 1.5, 6.0, 99.0, 1.0, 1.0]).reshape(1, 1, 1, 7)
    by_distance = ErrorByDistance(WHOLE)
    by_distance.update(depth, target)
    by_distance.update(depth[..., :1], target[..., :1])
    found = {tuple(band["metres"]): band for band in by_distance.compute()}
    assert list(found) == [(0, 1), (1, 2), (3, 5), (5, 10)]  # nothing is between 2 and 3 m
    assert found[0, 1] == {"metres": [0, 1], "share": 0.3333, "abs_rel": 1.0, "bias": 1.0}
    assert found[1, 2] == {"metres": [1, 2], "share": 0.3333, "abs_rel": 0.25, "bias": -0.25}  # 1 m is in it
    assert found[3, 5]["bias"] == 0.5
    assert found[5, 10]["abs_rel"] == pytest.approx(1 / 9, abs=1e-4)  # clipped to 10 m, as the protocol does


def test_errors_of_all_bands_are_the_pooled_figure() -> None:
    generator = torch.Generator().manual_seed(0)
    target, depth = (10 * torch.rand(3, 1, 20, 20, generator=generator) + 0.01 for _ in range(2))
    by_distance = ErrorByDistance(WHOLE)
    by_distance.update(depth, target)
    counted = (target < 10) & (target > 1e-3)
    expected = ((depth.clamp(max=10) - target).abs() / target)[counted].mean()
    bands = by_distance.compute()
    assert sum(band["share"] * band["abs_rel"] for band in bands) == pytest.approx(float(expected), rel=1e-3)


def test_bands_end_where_the_range_does() -> None:
    by_distance = ErrorByDistance(EvalProtocol(crop=None, max_depth=50.0))
    by_distance.update(torch.full((1, 1, 1, 2), 30.0), torch.tensor([30.0, 45.0]).reshape(1, 1, 1, 2))
    assert [band["metres"] for band in by_distance.compute()] == [[20, 40], [40, 50]]
