"""Two folders and a scale; and how frames are held out."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from train.shards import ShardDataset
from train.sources.frames import SourceError
from train.sources.pairs import Pairs
from train.sources.scenes import hold_out

Run = Callable[..., int]
Encode = Callable[..., bytes]
Noise = Callable[..., np.ndarray]


def fill(root: Path, names: list[str], picture_bytes: Encode, noise: Noise) -> tuple[Path, Path]:
    """JPEGs, and 16-bit depth of 2000 + its number."""
    for number, name in enumerate(names):
        for kind in ("rgb", "depth"):
            (root / kind / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "rgb" / f"{name}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
        depth = np.full((32, 48), 2000 + number, np.uint16)
        (root / "depth" / f"{name}.png").write_bytes(picture_bytes(depth))
    return root / "rgb", root / "depth"


@pytest.fixture
def flat(tmp_path: Path, picture_bytes: Encode, noise: Noise) -> tuple[Path, Path]:
    return fill(tmp_path, [f"{number:03d}" for number in range(6)], picture_bytes, noise)


def test_values_and_bytes(flat: tuple[Path, Path], tmp_path: Path, run_prepare: Run) -> None:
    out = tmp_path / "set"
    assert run_prepare("pairs", *flat, "--scale", 0.001, "--focal", 50, "--out", out, "--workers", 1) == 0
    train, val, test = (ShardDataset(out, split) for split in ("train", "val", "test"))
    # No folders: the last ones by name.
    assert train.keys == ["000", "001", "002", "003"] and val.keys == ["004"] and test.keys == ["005"]
    assert train.focal_px == 50.0
    assert (train[2][1] == 2002).all()
    assert train.encoded(2) == ((flat[0] / "002.jpg").read_bytes(), (flat[1] / "002.png").read_bytes())


@pytest.mark.parametrize(
    ("depth", "scale", "millimetres"),
    [
        (np.full((32, 48), 5000, np.uint16), 0.0002, 1000),
        (np.full((32, 48), 51, np.uint8), 10 / 255, 2000),
        (np.full((32, 48), 1.25, np.float32), 1, 1250),
        (np.full((32, 48), 125, np.int64), 0.01, 1250),
    ],
)
def test_scales_and_forms(
    flat: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    picture_bytes: Encode,
    depth: np.ndarray,
    scale: float,
    millimetres: int,
) -> None:
    for path in flat[1].iterdir():
        if depth.dtype in (np.uint8, np.uint16):
            path.write_bytes(picture_bytes(depth))
        else:
            np.save(path.with_suffix(".npy"), depth)
            path.unlink()
    assert run_prepare("pairs", *flat, "--scale", scale, "--out", tmp_path / "set", "--workers", 1) == 0
    data = ShardDataset(tmp_path / "set", "train")
    assert (data[0][1] == millimetres).all()
    assert data.focal_px == pytest.approx(518.86 * 48 / 640)


def test_folders_named_after_splits(tmp_path: Path, picture_bytes: Encode, noise: Noise) -> None:
    names = ["train/a/1", "train/b.c/2", "val/1", "test/1"]
    items = Pairs(*fill(tmp_path, names, picture_bytes, noise), 0.001).items()
    assert [(item.split, item.key) for item in items] == [
        ("train", "a-1"),
        ("train", "b_c-2"),
        ("val", "1"),
        ("test", "1"),
    ]


def test_the_whole_result_of_one_wrong_scale(
    flat: tuple[Path, Path], tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_prepare("pairs", *flat, "--scale", 1, "--out", tmp_path / "set", "--workers", 1) == 2
    assert capsys.readouterr().err.strip().endswith("the likely scale is 0.001")
    assert run_prepare("pairs", *flat, "--scale", 0.00001, "--out", tmp_path / "set", "--workers", 1) == 2
    assert capsys.readouterr().err.strip().endswith("the likely scale is 0.001")


def test_one_close_up_is_no_wrong_unit(
    flat: tuple[Path, Path], tmp_path: Path, run_prepare: Run, picture_bytes: Encode
) -> None:
    (flat[1] / "000.png").write_bytes(picture_bytes(np.full((32, 48), 150, np.uint16)))
    assert run_prepare("pairs", *flat, "--scale", 0.001, "--out", tmp_path / "set", "--workers", 1) == 0


def far_depth(folder: Path, picture_bytes: Encode) -> None:
    """Steps of 1/256 m: half of each frame without, a quarter at 40 m, a quarter at 90 m."""
    steps = np.zeros((32, 48), np.uint16)
    steps[:16, :24], steps[:16, 24:] = 40 * 256, 90 * 256
    for path in folder.iterdir():
        path.write_bytes(picture_bytes(steps))


def test_far_depth_is_kept_and_what_is_farther_is_invalid(
    flat: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    picture_bytes: Encode,
    capsys: pytest.CaptureFixture[str],
) -> None:
    far_depth(flat[1], picture_bytes)
    source = ["pairs", *flat, "--scale", 1 / 256, "--workers", 1, "--camera", "car"]
    assert run_prepare(*source, "--max-depth", 80, "--out", tmp_path / "80") == 0
    assert "50.00% of the pixels with depth lie outside 0.001 to 80 m" in capsys.readouterr().err
    data = ShardDataset(tmp_path / "80", "train")
    assert (data.depth_unit, data.depth_range) == (1 / 256, (0.001, 80.0))
    assert data.info["camera"] == "car" and data.info["outside_range"] == 0.5
    assert np.unique(data[0][1]).tolist() == [0, 40 * 256]

    assert run_prepare(*source, "--max-depth", 100, "--out", tmp_path / "100") == 0
    assert "outside" not in capsys.readouterr().err
    data = ShardDataset(tmp_path / "100", "train")
    assert data.encoded(0)[1] == (flat[1] / "000.png").read_bytes() and "outside_range" not in data.info

    assert run_prepare(*source, "--max-depth", 60, "--out", tmp_path / "60") == 0  # millimetres reach
    data = ShardDataset(tmp_path / "60", "train")
    assert data.depth_unit == 0.001 and data[0][1].max() == 40_000
    unit = ["--max-depth", 60, "--depth-unit", 1 / 256, "--out", tmp_path / "chosen"]
    assert run_prepare(*source, *unit) == 0
    data = ShardDataset(tmp_path / "chosen", "train")
    assert data.depth_unit == 1 / 256 and data[0][1].max() == 40 * 256
    assert run_prepare("verify", tmp_path / "80", "--full", "--workers", 1) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--max-depth", 300),
            "--max-depth 300: 16 bits of 0.00390625 m reach 256 m; --depth-unit 0.0048 reaches it",
        ),
        (("--max-depth", 80, "--depth-unit", "mm"), "reach 65.53 m"),
        (("--min-depth", 12), "--min-depth 12, --max-depth 10: expected a range"),
        (("--max-depth", "nan"), "--max-depth nan: expected a positive number"),
    ],
)
def test_bad_range(
    flat: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[object, ...],
    says: str,
) -> None:
    assert run_prepare("pairs", *flat, "--scale", 0.001, *arguments, "--out", tmp_path / "set") == 2
    assert says in capsys.readouterr().err


def test_a_frame_without_valid_depth_is_skipped_and_named(
    flat: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    picture_bytes: Encode,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (flat[1] / "001.png").write_bytes(picture_bytes(np.zeros((32, 48), np.uint16)))
    (flat[1] / "004.png").write_bytes(picture_bytes(np.full((32, 48), 12_000, np.uint16)))
    source = ["pairs", *flat, "--scale", 0.001, "--workers", 1]
    assert run_prepare(*source, "--out", tmp_path / "set") == 2
    assert "train sample '001': no valid depth: none from 0.001 to 10 m (1 of 6" in capsys.readouterr().err
    # The only val frame is the second one.
    (flat[1] / "004.png").write_bytes(picture_bytes(np.full((32, 48), 9_000, np.uint16)))
    assert run_prepare(*source, "--out", tmp_path / "set", "--max-bad", 0.2) == 0
    error = capsys.readouterr().err
    assert "skipped train sample '001': no valid depth" in error and "set: 1 frames were skipped" in error
    assert ShardDataset(tmp_path / "set", "train").keys == ["000", "002", "003"]


def test_a_size_of_another_aspect_is_refused_before_anything_is_written(
    flat: tuple[Path, Path], tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--scale", 0.001, "--size", "32x32", "--max-bad", 0.9, "--out", tmp_path / "set"]
    assert run_prepare("pairs", *flat, *arguments, "--workers", 1) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.endswith("--size 32x32 cuts 33% off a picture of 32x48; --size 26x39 keeps it whole\n")
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.part").exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("size", "train sample '001': picture of 32x48, depth of 32x40; expected one size"),
        ("no depth", "has no depth map of this name"),
        ("no picture", "has no picture of this name"),
        ("colour", "001.png: depth of mode RGB; expected one channel"),
        ("cut", "001.jpg: cannot be decoded"),
        ("npy", "001.npy: expected a numeric array (H, W)"),
        ("pickle", "001.npy: not a .npy array"),
        ("twice", "have the same name"),
        ("empty", "is empty: no .png, .npy"),
        ("others", "no picture in"),
        ("scale", "--scale 0.0: expected a positive number"),
        ("long", "a key has 1 to 80 bytes"),
        ("same key", "two train frames have the key 'a_b'"),
    ],
)
def test_bad_source(
    flat: tuple[Path, Path],
    tmp_path: Path,
    run_prepare: Run,
    capsys: pytest.CaptureFixture[str],
    picture_bytes: Encode,
    how: str,
    says: str,
) -> None:
    pictures, depths = flat
    picture, depth = pictures / "001.jpg", depths / "001.png"
    if how == "size":
        depth.write_bytes(picture_bytes(np.full((32, 40), 2000, np.uint16)))
    elif how == "no depth":
        depth.unlink()
    elif how == "no picture":
        picture.unlink()
    elif how == "colour":
        depth.write_bytes(picture_bytes(np.zeros((32, 48, 3), np.uint8)))
    elif how == "cut":
        picture.write_bytes(picture.read_bytes()[:600])
    elif how in ("npy", "pickle"):
        depth.unlink()
        array = np.ones((2, 2, 2)) if how == "npy" else np.array([{}], dtype=object)
        np.save(depth.with_suffix(".npy"), array, allow_pickle=True)
    elif how == "twice":
        np.save(depth.with_suffix(".npy"), np.ones((32, 48)))
    elif how == "empty":
        for path in depths.iterdir():
            path.unlink()
    elif how == "others":
        for path in depths.iterdir():
            path.rename(path.with_stem(f"x{path.stem}"))
    elif how == "long":
        picture.rename(picture.with_stem("n" * 81))
        depth.rename(depth.with_stem("n" * 81))
    elif how == "same key":
        for old, new in (("001", "a.b"), ("002", "a_b")):
            (pictures / f"{old}.jpg").rename(pictures / f"{new}.jpg")
            (depths / f"{old}.png").rename(depths / f"{new}.png")
        for folder, suffix in ((pictures, "jpg"), (depths, "png")):
            for number in (4, 5):  # the last by name are held out
                (folder / f"00{number}.{suffix}").rename(folder / f"z{number}.{suffix}")
    scale = 0.0 if how == "scale" else 0.001
    assert run_prepare("pairs", *flat, "--scale", scale, "--out", tmp_path / "set", "--workers", 1) == 2
    error = capsys.readouterr().err
    assert says in error.splitlines()[-1] and "Traceback" not in error
    assert not (tmp_path / "set").exists() and not (tmp_path / "set.part").exists()


# Holding out.


def test_held_out_scenes_are_whole_and_have_their_share() -> None:
    scenes = [f"scene{number % 40}" for number in range(1000)]
    splits = hold_out(scenes, {"val": 0.05, "test": 0.1})
    by_scene: dict[str, set[str]] = {}
    for scene, split in zip(scenes, splits, strict=True):
        by_scene.setdefault(scene, set()).add(split)
    assert all(len(found) == 1 for found in by_scene.values())
    assert Counter(splits) == {"train": 850, "val": 50, "test": 100}


def test_the_choice_depends_on_names_alone() -> None:
    """Known answer, so that a data set made again has the same split."""
    scenes = ["a", "b", "c", "d"]
    assert hold_out(scenes, {"val": 0.25}) == hold_out(scenes, {"val": 0.25})
    # SHA-256: a ca97..., b 3e23..., c 2e7d..., d 18ac...: the smallest is held out.
    assert hold_out(scenes, {"val": 0.25}).index("val") == 3
    assert hold_out(scenes[::-1], {"val": 0.25}).index("val") == 0


@pytest.mark.parametrize("scenes", [["a", "b", "c"], ["a"] * 3, ["a", "a", "b"]])
def test_every_split_has_a_frame(scenes: list[str]) -> None:
    assert set(hold_out(scenes, {"val": 0.01, "test": 0.01})) == {"train", "val", "test"}


def test_too_few_frames() -> None:
    with pytest.raises(SourceError, match="2 frames cannot be split"):
        hold_out(["a", "b"], {"val": 0.1, "test": 0.1})
