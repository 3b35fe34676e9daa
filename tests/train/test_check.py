"""What ``verify`` finds, and the contact sheet."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.check import problems
from train.codec import encode_depth, encode_image
from train.prepare import prepare
from train.shards import ShardDataset, ShardWriter, write_dataset
from train.sources.rooms import Rooms

Run = Callable[..., int]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10 train, 1 val and 1 test room of 48x64."""
    out = tmp_path_factory.mktemp("verify") / "set"
    prepare(Rooms(12, size=(48, 64), varied=False), out, (48, 64))
    return out


def test_a_good_set(made: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_prepare("verify", made, "--full", "--workers", 2) == 0
    assert capsys.readouterr().out == f"{made}: no problem found\n"


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    edit(info)
    (folder / "dataset.json").write_text(json.dumps(info))


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / "train-000000.tar").read_bytes())
    content[-20] ^= 1  # in the padding: decoding cannot see it
    (folder / "train-000000.tar").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_bit, "train-000000.tar: sha256 is"),
        (lambda f: (f / "train-000000.tar").unlink(), "train-000000.tar is missing"),
        (
            lambda f: change(f, lambda info: info["splits"]["train"].update(count=23)),
            "has 10 samples, dataset.json says 23",
        ),
        (
            lambda f: change(f, lambda info: info["splits"]["train"].update(size=[48, 48])),
            "is [48, 64], dataset.json says [48, 48]",
        ),
        (lambda f: (f / "dataset.json").unlink(), "dataset.json is missing"),
        (lambda f: change(f, lambda info: info.update(splits={})), "dataset.json has no splits"),
    ],
)
def test_damage_is_named(
    made: Path, tmp_path: Path, run_prepare: Run, capsys: Any, damage: Any, says: str
) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "set"))
    damage(folder)
    assert run_prepare("verify", folder, "--workers", 1) == 2
    said = capsys.readouterr()
    assert not said.out and str(folder) in said.err and says in said.err and "Traceback" not in said.err


def build(folder: Path, **samples: tuple[bytes, bytes]) -> Path:
    with ShardWriter(folder, "train") as writer:
        for key, (image, depth) in samples.items():
            writer.write(key, "png", image, depth)
    write_dataset(folder, {"train": {**writer.entry, "size": [8, 8], "focal_px": 9.0}}, source="x")
    return folder


def sample(metres: float = 2.0, size: tuple[int, int] = (8, 8)) -> tuple[bytes, bytes]:
    return encode_image(np.zeros((8, 8, 3), np.uint8))[1], encode_depth(np.full(size, metres))


def test_each_bad_sample_is_one_line_and_full_looks_at_every_one(
    tmp_path: Path, picture_bytes: Callable[..., bytes]
) -> None:
    samples = {f"s{number:02d}": sample() for number in range(40)}
    image, depth = sample()
    samples |= {"s01": (b"nothing", depth), "s02": sample(size=(8, 9)), "s03": sample(0.0)}
    samples["s04"] = (image, picture_bytes(np.full((8, 8), 9, np.uint8)))
    folder = build(tmp_path / "set", **samples)
    found = list(problems(folder, full=True))
    bad = [key for key in samples if any(f"sample {key!r}" in line for line in found)]
    assert bad == ["s01", "s02", "s03", "s04"] and len(found) == 4
    assert any("has no depth from 0.001 to 10 m" in line for line in found)
    assert len(list(problems(folder))) < 4


def test_wrong_unit(tmp_path: Path) -> None:
    (line,) = problems(build(tmp_path / "set", a=sample(0.002), b=sample(0.003)))
    assert "median depth 0.0025 is not in metres" in line and line.endswith("the likely scale is 1000")


def test_sheet_is_made_with_the_set_and_shows_the_picture_upright(made: Path) -> None:
    """The only val room's picture, enlarged by nearest, is somewhere in it, pixel for pixel."""
    page = np.asarray(Image.open(made / "samples.png").convert("RGB"))
    image, _ = ShardDataset(made, "val")[0]
    tall, wide = 210, 280
    enlarged = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.NEAREST))
    views = np.lib.stride_tricks.sliding_window_view(page[..., 0], (1, wide))[:, :, 0]
    top = np.argwhere((views == enlarged[0, :, 0]).all(axis=-1))
    assert any(np.array_equal(page[y : y + tall, x : x + wide], enlarged) for y, x in top)
