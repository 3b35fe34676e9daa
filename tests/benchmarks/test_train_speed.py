"""The plain loop is plain, and the rows of the command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import depthzoo
from benchmarks import train_speed
from benchmarks.train_speed import PairFiles, plain_loop, write_pairs
from train import records
from train.arguments import command
from train.shards import ShardDataset

SIZE = (32, 64)


@pytest.fixture(scope="module")
def pairs(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> PairFiles:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(ShardDataset(rooms, "train", 6), folder, SIZE)
    return PairFiles(folder)


def test_files_are_the_frames(rooms: Path, pairs: PairFiles) -> None:
    image, depth = pairs[2]
    stored, millimetres = ShardDataset(rooms, "train", 6)[2]
    assert len(pairs) == 6 and image.shape == (3, *SIZE) and depth.shape == (1, *SIZE)
    assert abs(image.mean() - stored.mean() / 255) < 0.02
    # Nearest: each depth is one of the frame's.
    assert set((depth * 1000).round().int().flatten().tolist()) <= set(millimetres.flatten().tolist())


def test_the_plain_loop_is_plain(pairs: PairFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """float32, NCHW, an unbounded output, and one step of Adam on the mean squared error."""
    built: list[nn.Module] = []
    seen: list[Tensor] = []
    create = depthzoo.create_model

    def watched(name: str, **options: Any) -> nn.Module:
        assert options == {"weights": None, "head": "linear"}
        model = create(name, **options)
        model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        built.append(model)
        return model

    monkeypatch.setattr(depthzoo, "create_model", watched)
    step = plain_loop("unet_mobilenet_v3", pairs, 2, torch.device("cpu"))
    before = [parameter.clone() for parameter in built[0].parameters()]
    losses = [step() for _ in range(3)]
    assert all(isinstance(loss, float) and loss > 0 for loss in losses)
    assert seen[0].shape == (2, 3, *SIZE) and seen[0].dtype == torch.float32 and seen[0].is_contiguous()
    assert any(not torch.equal(a, b) for a, b in zip(before, built[0].parameters(), strict=True))


def test_rows(rooms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train_speed.jsonl"
    words = ["--models", "unet_mobilenet_v3", "--data", str(rooms), "--size", "32x64", "--batches", "2"]
    words += ["--precision", "fp32", "--rounds", "3", "--seconds", "0", "--device", "cpu", "--out", str(out)]
    assert command(train_speed.parser(), train_speed.run, words) == 0
    assert command(train_speed.parser(), train_speed.run, [*words, "--loader-only"]) == 0
    rows = records.load(out)
    assert [row["backend"] for row in rows] == ["plain", "plain_in_memory", "train", "loader"]
    for row in rows:
        assert row["images_per_s_min"] <= row["images_per_s"] <= row["images_per_s_max"]
        assert (row["height"], row["width"], row["batch"], row["data"]) == (32, 64, 2, "rooms")
    capsys.readouterr()
    assert command(train_speed.parser(), train_speed.run, [*words, "--skip-existing"]) == 0
    assert capsys.readouterr().out == "" and records.load(out) == rows
