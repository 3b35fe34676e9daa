"""The protocol end to end: a prediction that is known gives figures that are known."""

import json
from pathlib import Path

import pytest
import torch

from depthzoo import weights as zoo_weights
from depthzoo.data.shards import ShardDataset
from depthzoo.metrics import METRICS
from depthzoo.registry import create_model
from train.arguments import command
from train.cards import load_any, make_card, store_weights
from train.evaluate import evaluate, parser, run, torch_predict


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


def test_a_constant_on_real_frames(real_set: Path) -> None:
    dataset = ShardDataset(real_set, "test")
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


@pytest.fixture
def weights_file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = create_model("unet_mobilenet_v3", weights=None)
    path = tmp_path / "some.safetensors"
    card = {"model": model.name, "tag": "nyu", "arguments": {}, "size": [64, 96], "terms": "none"}
    zoo_weights.write_weights(model, path, card)
    return path


def test_the_command_evaluates_a_file_and_writes_json(
    real_set: Path, weights_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    arguments = [str(weights_file), "--data", str(real_set), "--split", "val", "--json", str(out)]
    assert command(parser(), run, arguments) == 0
    printed = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert report["truth"] == "filled" and report["protocol"] == "eigen"
    assert f"{report['plain']['per_image']['abs_rel']:.3f}" in printed and "pooled" in printed


def test_a_card_is_written_beside_the_weights(real_set: Path, weights_file: Path, tmp_path: Path) -> None:
    model = load_any(str(weights_file))
    results, _ = evaluate(
        torch_predict(model.eval(), torch.device("cpu")), ShardDataset(real_set, "val"), (64, 96)
    )
    report = {"count": 3, "truth": "filled", "plain": results, "flip": results}
    card = make_card(model, report, {"terms": "research use"})
    path = store_weights(model, card, tmp_path / "zoo", "nyu")
    stored = json.loads(path.with_suffix(".json").read_text())
    assert stored["file"] == path.name and path.name.startswith("unet_mobilenet_v3_nyu-")
    assert stored["metrics"]["per_image"] == results["per_image"] and stored["terms"] == "research use"
    assert zoo_weights.read_metadata(path)["metrics"] == stored["metrics"]
    table = json.loads((tmp_path / "zoo" / "manifest.json").read_text())
    assert table["unet_mobilenet_v3"]["tags"]["nyu"]["sha256"] == stored["sha256"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["unet_mobilenet"], "did you mean 'unet_mobilenet_v3'"),
        (["nowhere.safetensors"], "nowhere.safetensors"),
        (["unet", "--card", "x", "--split", "val"], "--card states the test split"),
    ],
)
def test_bad_arguments(
    real_set: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert command(parser(), run, [*arguments, "--data", str(real_set)]) == 2
    error = capsys.readouterr().err
    assert says in error and error.strip().count("\n") == 0


def test_a_folder_that_is_no_run(real_set: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(parser(), run, [str(tmp_path), "--data", str(real_set)]) == 2
    assert "without model.safetensors" in capsys.readouterr().err
