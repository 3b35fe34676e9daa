"""Data that cannot be trained on: one line that says where, or samples that are named and left out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.__main__ import parser, run
from train.arguments import command
from train.codec import encode_depth, encode_image
from train.shards import ShardDataset, ShardWriter, write_dataset

CHECKPOINT = "checkpoint.safetensors"


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def data(small_shards: Path, tmp_path: Path) -> Path:
    """Rooms in shards of five, to be broken."""
    return Path(shutil.copytree(small_shards, tmp_path / "data"))


def train(*arguments: object) -> int:
    """``python -m train`` in this process; its exit code."""
    return command(parser(), run, [str(argument) for argument in (*arguments, "--no-report")])


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The error, which is the one line on stderr that is no sample left out."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("python -m train: error: "), lines
    return lines[0]


def corrupt(folder: Path, *keys: str) -> None:
    """Overwrites the pictures of some samples with zeros; sizes and index stay as they are."""
    for shard in sorted(folder.glob("*.tar")):
        content = bytearray(shard.read_bytes())
        for key, _, at, size, *_ in json.loads(shard.with_suffix(".index.json").read_text()):
            if key in keys:
                content[at : at + size] = bytes(size)
        shard.write_bytes(content)


@pytest.mark.parametrize("cache", ["ram", "none"])
def test_corrupt_samples_are_named_and_left_out_up_to_a_share(
    data: Path, sixty_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: str
) -> None:
    keys = ShardDataset(data, "train").keys
    corrupt(data, keys[3], keys[7])
    text = sixty_steps.read_text()
    given = ["--data", data, "--cache", cache, "--max-steps", 12, "--recipe"]
    for share, allowed in ((0.0, 0), (0.06, 1)):  # of 22
        strict = tmp_path / f"{allowed}.toml"
        strict.write_text(f"max_bad = {share}\n{text}")
        assert train(*given, strict, "--out", tmp_path / str(allowed)) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert f" bad samples of 22, {allowed} allowed (max_bad); " in lines[-1]
        named = [line for line in lines[:-1] if line.startswith("left out: ")]
        assert len(named) == len(lines) - 1 > allowed
        assert any(
            f"sample {key!r} cannot be decoded: not a picture" in named[0] for key in (keys[3], keys[7])
        )
    tolerant = tmp_path / "tolerant.toml"
    tolerant.write_text(f"max_bad = 0.1\n{text}")
    out = tmp_path / "run"
    assert train(*given, tolerant, "--out", out) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(named) == 2 and all(any(key in line for line in named) for key in (keys[3], keys[7]))
    assert json.loads((out / "metrics.json").read_text())["step"] == 12


def test_a_corrupt_validation_frame_is_found_before_the_first_step(
    data: Path, sixty_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever share of train samples may be bad."""
    (key,) = ShardDataset(data, "val").keys
    corrupt(data, key)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f"max_bad = 0.5\n{sixty_steps.read_text()}")
    out = tmp_path / "run"
    given = ["--recipe", recipe, "--data", data, "--out", out, "--max-steps", 2, "--checkpoint-every", 1]
    assert train(*given) == 2
    assert f"sample {key!r} cannot be decoded" in one_line(capsys)
    assert not (out / CHECKPOINT).exists()


def eight_bit(folder: Path) -> None:
    """The last train sample has 8-bit depth."""
    rewrite(folder, lambda image, depth: encode_image(image[..., 0])[1])


def mismatched(folder: Path) -> None:
    """The last train sample's depth is 8 rows short."""
    rewrite(folder, lambda image, depth: encode_depth(depth[:-8] / 1000))


def another_size(folder: Path) -> None:
    """The val frames as train frames too: 22 of 48x64 and one of 32x32."""
    rewrite(folder, None)


def rewrite(folder: Path, last: Callable[[np.ndarray, np.ndarray], bytes] | None) -> None:
    """The train split in one shard, its last sample with other depth, or with a small frame behind it."""
    dataset = ShardDataset(folder, "train")
    samples = [(*dataset[index], dataset.keys[index]) for index in range(len(dataset))]
    for path in folder.glob("train-*"):
        path.unlink()
    with ShardWriter(folder, "train") as writer:
        for image, depth, key in samples:
            changed = last is not None and key == samples[-1][2]
            content = last(image, depth) if changed and last else encode_depth(depth / 1000)
            writer.write(key, *encode_image(image), content)
        if last is None:
            writer.write("small", *encode_image(samples[0][0][:32, :32]), encode_depth(np.ones((32, 32))))
    splits = dataset.info["splits"]
    splits["train"] |= writer.entry
    write_dataset(folder, splits, source="rooms")


def cut_short(folder: Path) -> None:
    path = folder / "train-000002.tar"
    path.write_bytes(path.read_bytes()[:-3000])


def without_a_shard(folder: Path) -> None:
    (folder / "train-000001.tar").unlink()


def empty(folder: Path, split: str = "train") -> None:
    path = folder / "dataset.json"
    info = json.loads(path.read_text())
    info["splits"][split] |= {"count": 0, "shards": []}
    path.write_text(json.dumps(info))


def without_validation(folder: Path) -> None:
    path = folder / "dataset.json"
    info = json.loads(path.read_text())
    del info["splits"]["val"]
    path.write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "no data set at {data}: no such folder"),
        (
            lambda folder: (folder / "dataset.json").unlink(),
            "dataset.json is missing; run python -m train.prepare",
        ),
        (cut_short, "{data}/train-000002.tar has"),
        (without_a_shard, "{data}/train-000001.tar is missing; dataset.json names it"),
        (empty, "{data}: split 'train' is empty"),
        (lambda folder: empty(folder, "val"), "{data}: split 'val' is empty"),
        (without_validation, "{data} has no split 'val'; it has: train"),
        (eight_bit, "depth of sample '{last}' is not a 16-bit PNG but mode L"),
        (mismatched, "sample '{last}' has an image of 48x64 and depth of 40x64"),
        (another_size, "sample 'small' is 32x32, others 48x64; prepare the data with --size"),
    ],
)
def test_data_that_are_broken_are_one_line(
    damage: Callable[[Path], None],
    says: str,
    data: Path,
    sixty_steps: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = says.format(data=data, last=ShardDataset(data, "train").keys[-1])
    damage(data)
    out = tmp_path / "run"
    assert train("--recipe", sixty_steps, "--data", data, "--out", out, "--max-steps", 1) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("python -m train: error: ") and expected in error
    assert not (out / CHECKPOINT).exists() and not (out / "last.safetensors").exists()


def test_data_that_have_changed_since_the_checkpoint_are_one_line(
    data: Path, sixty_steps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    given = ["--recipe", sixty_steps, "--data", data, "--out", out, "--max-steps"]
    assert train(*given, 2) == 0
    kept, original = (out / CHECKPOINT).read_bytes(), tmp_path / "original"
    shutil.copytree(data, original)
    capsys.readouterr()
    # One sample's depth, with all else as it was: the digest of its shard is another.
    rewrite(data, lambda image, depth: encode_depth(depth / 999))
    assert train(*given, 4, "--resume") == 2
    assert f"{out / CHECKPOINT} was made with other data: dataset.json has changed" in one_line(capsys)
    assert (out / CHECKPOINT).read_bytes() == kept
    # The same data elsewhere are the same data.
    assert train(*given, 4, "--resume", "--data", original) == 0
