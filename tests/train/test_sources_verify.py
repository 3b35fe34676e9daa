"""``verify`` and ``sheet``."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.codec import encode_depth, encode_image
from train.shards import ShardDataset, ShardWriter, write_dataset
from train.verify import problems, quick_problems

Run = Callable[..., int]


@pytest.fixture
def folder(rooms_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rooms_set, tmp_path / "set"))


def test_a_good_set(folder: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_prepare("verify", folder, "--full", "--workers", 2) == 0
    assert capsys.readouterr().out == f"{folder}: no problem found\n"
    assert run_prepare("verify", folder, "--workers", 1) == 0


def change(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    info = json.loads((folder / "dataset.json").read_text())
    edit(info)
    (folder / "dataset.json").write_text(json.dumps(info))


def damage(folder: Path, how: str) -> None:
    tar = folder / "train-000000.tar"
    index = folder / "train-000000.index.json"
    if how == "bit":
        content = bytearray(tar.read_bytes())
        content[-20] ^= 1  # in the padding: decoding cannot see it
        tar.write_bytes(content)
    elif how == "cut":
        tar.write_bytes(tar.read_bytes()[:-512])
    elif how == "gone":
        tar.unlink()
    elif how == "no index":
        index.unlink()
    elif how == "index":
        rows = json.loads(index.read_text())
        index.write_text(json.dumps([*rows[:3], rows[4], rows[3], *rows[5:]]))
    elif how == "count":
        change(folder, lambda info: info["splits"]["train"].update(count=23))
    elif how == "extra":
        shutil.copy(tar, folder / "train-000001.tar")
    elif how == "size":
        change(folder, lambda info: info["splits"]["train"].update(size=[48, 48]))
    elif how == "no dataset":
        (folder / "dataset.json").unlink()
    elif how == "no splits":
        change(folder, lambda info: info.update(splits={}))


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("bit", "train-000000.tar: sha256 is"),
        ("cut", "bytes, dataset.json says"),
        ("gone", "train-000000.tar is missing"),
        ("no index", "train-000000.index.json is missing"),
        ("index", "the tar has 'room-0000005.jpg'"),
        ("count", "split 'train' has 22 samples, dataset.json says 23"),
        ("extra", "train-000001.tar is not named in dataset.json"),
        ("size", "is 48x64, dataset.json says [48, 48]"),
        ("no dataset", "dataset.json is missing"),
        ("no splits", "dataset.json has no splits"),
    ],
)
def test_damage_is_named(
    folder: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    damage(folder, how)
    assert run_prepare("verify", folder, "--workers", 1) == 2
    said = capsys.readouterr()
    assert not said.out and str(folder) in said.err
    assert says in said.err and "Traceback" not in said.err


def build(folder: Path, **samples: tuple[bytes, bytes]) -> Path:
    with ShardWriter(folder, "train") as writer:
        for key, (image, depth) in samples.items():
            writer.write(key, "png", image, depth)
    write_dataset(folder, {"train": {**writer.entry, "size": [8, 8], "focal_px": 9.0}}, source="x")
    return folder


def sample(metres: float = 2.0, size: tuple[int, int] = (8, 8)) -> tuple[bytes, bytes]:
    return encode_image(np.zeros((8, 8, 3), np.uint8))[1], encode_depth(np.full(size, metres))


def test_each_bad_sample_is_one_line(tmp_path: Path, picture_bytes: Callable[..., bytes]) -> None:
    image, depth = sample()
    byte_depth = picture_bytes(np.full((8, 8), 9, np.uint8))
    folder = build(
        tmp_path / "set",
        a=sample(),
        b=(b"nothing", depth),
        c=(image, byte_depth),
        d=sample(size=(8, 9)),
        e=sample(),
    )
    found = list(problems(folder, full=True))
    assert [key for key in "abcde" if any(f"sample {key!r}" in line for line in found)] == ["b", "c", "d"]
    assert len(found) == 3
    assert not list(quick_problems(folder))


def test_full_looks_at_every_sample(tmp_path: Path) -> None:
    samples = {f"s{number:02d}": sample() for number in range(40)}
    samples["s01"] = (b"nothing", samples["s01"][1])
    folder = build(tmp_path / "set", **samples)
    assert not list(problems(folder))
    assert ["'s01'" in line for line in problems(folder, full=True, workers=2)] == [True]


def test_wrong_unit(tmp_path: Path) -> None:
    folder = build(tmp_path / "set", a=sample(0.002), b=sample(0.003))
    assert [line[line.index("median") :] for line in problems(folder)] == [
        "median depth 0.0025 is not in metres (0.3 to 20 expected of depth up to 10 m); if that range (--max-depth) "
        "is right, the likely scale is 1000"
    ]


def test_a_frame_without_valid_depth_is_named(tmp_path: Path) -> None:
    folder = build(tmp_path / "set", a=sample(), b=sample(0.0), c=sample(30.0), d=sample(3.0))
    found = list(problems(folder, full=True))
    assert len(found) == 2
    assert "sample 'b' has no depth from 0.001 to 10 m" in found[0] and "'c'" in found[1]


def test_a_digest_that_was_edited(folder: Path) -> None:
    other = hashlib.sha256(b"").hexdigest()
    change(folder, lambda info: info["splits"]["val"]["shards"][0].update(sha256=other))
    assert [line.split(": ")[0] for line in problems(folder)] == [str(folder / "val-000000.tar")]


def test_sheet(folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert run_prepare("sheet", folder, "--out", out, "--count", 6) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = np.asarray(Image.open(out).convert("RGB"))
    assert page.shape[1] > page.shape[0] > 280
    again = tmp_path / "again.png"
    assert run_prepare("sheet", folder, "--out", again, "--count", 6) == 0
    assert again.read_bytes() == out.read_bytes()


def test_sheet_is_made_with_the_set_and_shows_the_picture_upright(rooms_set: Path) -> None:
    """The only val room's picture, enlarged by nearest, is somewhere in it, pixel for pixel."""
    page = np.asarray(Image.open(rooms_set / "samples.png").convert("RGB"))
    image, _ = ShardDataset(rooms_set, "val")[0]
    tall, wide = 210, 280
    enlarged = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.NEAREST))
    views = np.lib.stride_tricks.sliding_window_view(page[..., 0], (1, wide))[:, :, 0]
    top = np.argwhere((views == enlarged[0, :, 0]).all(axis=-1))
    assert any(np.array_equal(page[y : y + tall, x : x + wide], enlarged) for y, x in top)


@pytest.mark.parametrize(("out", "says"), [("sheet.jpg", "ends in .png"), ("gone/sheet.png", "No such file")])
def test_sheet_that_cannot_be_written(
    folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str], out: str, says: str
) -> None:
    assert run_prepare("sheet", folder, "--out", tmp_path / out) == 2
    assert says in capsys.readouterr().err
