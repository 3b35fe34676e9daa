"""The forms in which data circulate: values, splits, kept bytes, and every way of being wrong."""

import io
import json
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from depthzoo.errors import DatasetError
from train.shards import ShardDataset
from train.sources.base import Item, hold_out
from train.sources.nyu_h5 import NyuH5
from train.sources.nyu_lists import Nyu50k
from train.sources.pairs import Pairs

Run = Callable[..., int]
Encode = Callable[..., bytes]
Noise = Callable[..., np.ndarray]
SIZE = (32, 48)
LISTS = {split: f"nyudepthv2_{split}_files_with_gt.txt" for split in ("train", "test")}


@pytest.fixture
def refused(tmp_path: Path, run_prepare: Run, capsys: Any) -> Callable[..., None]:
    """Check that a command ends with exit code 2 and one line, and makes no data set."""

    def check(says: str, *arguments: object) -> None:
        assert run_prepare(*arguments, "--out", tmp_path / "set", "--workers", 1) == 2
        error = capsys.readouterr().err
        assert says in error.splitlines()[-1] and "Traceback" not in error
        assert not (tmp_path / "set").exists()

    return check


def scenes(items: list[Item], part: int) -> dict[str, set[str]]:
    """The scenes of each split, without the letter of their parts."""
    found: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for item in items:
        found[item.split].add(item.key.split("-")[part].removesuffix("_out").rstrip("ab"))
    return found


class TestNyu50k:
    @pytest.fixture
    def folder(self, tmp_path: Path, picture_bytes: Encode, noise: Noise) -> Path:
        """3 frames in each of 4 folders (3 scenes), and 2 test frames."""
        root, rows = tmp_path / "nyu", {"train": list[str](), "test": list[str]()}
        for place, scene in enumerate(
            ("kitchen_0001a_out", "kitchen_0001b_out", "bedroom_0002_out", "study_0003_out")
        ):
            for number in range(1, 4):
                path = f"data/nyu2_train/{scene}/{number}"
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / f"{path}.jpg").write_bytes(picture_bytes(noise(10 * place + number), "JPEG"))
                depth = np.full(SIZE, 51, np.uint8)  # 2 m
                depth[0, 0], depth[0, 1], depth[31, 47] = 0, 255, 100 + number
                (root / f"{path}.png").write_bytes(picture_bytes(depth))
                rows["train"].append(f"{path}.jpg,{path}.png")
        for number in (0, 8):
            path = f"data/nyu2_test/{number:05d}"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / f"{path}_colors.png").write_bytes(picture_bytes(noise(100 + number)))
            (root / f"{path}_depth.png").write_bytes(picture_bytes(np.full(SIZE, 2345 + number, np.uint16)))
            rows["test"].append(f"{path}_colors.png,{path}_depth.png")
        for split, lines in rows.items():
            (root / "data" / f"nyu2_{split}.csv").write_text("\n".join(lines) + "\n")
        return root

    def pack(self, folder: Path) -> Path:
        path = folder.parent / "nyu_data.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(folder.rglob("*.*")):
                archive.write(file, file.relative_to(folder).as_posix())
        return path

    def test_depth_and_bytes_from_a_zip_and_folders(
        self, folder: Path, tmp_path: Path, run_prepare: Run
    ) -> None:
        for name, path in (("a", self.pack(folder)), ("b", folder), ("c", folder / "data")):
            assert run_prepare("nyu-50k", path, "--out", tmp_path / name, "--workers", 1) == 0
        a, b, c = (json.loads((tmp_path / n / "dataset.json").read_text())["splits"] for n in "abc")
        assert a == b == c
        train, test = ShardDataset(tmp_path / "a", "train"), ShardDataset(tmp_path / "a", "test")
        index = train.keys.index("nyu2_train-study_0003_out-2")
        depth = train[index][1]
        assert depth[5, 5] == 2000 and depth[0, 0] == 0 and depth[0, 1] == 10000
        assert depth[31, 47] == 4000  # 102 / 255 * 10 m
        assert train.encoded(index)[0] == (folder / "data/nyu2_train/study_0003_out/2.jpg").read_bytes()
        assert test.keys == ["nyu2_test-00000", "nyu2_test-00008"] and (test[1][1] == 2353).all()
        stored = folder / "data/nyu2_test/00008_colors.png", folder / "data/nyu2_test/00008_depth.png"
        assert test.encoded(1) == tuple(path.read_bytes() for path in stored)
        assert train.focal_px == pytest.approx(518.86 * 48 / 640)

    def test_val_is_whole_scenes_and_parts_of_a_scene_stay_together(self, folder: Path) -> None:
        items = Nyu50k(folder).items()
        found = scenes(items, 1)
        assert len(found["val"]) == 1 and len(found["train"]) == 2 and not found["val"] & found["train"]
        assert items == Nyu50k(folder).items()

    def test_border_of_full_frames_has_no_depth(
        self, folder: Path, tmp_path: Path, run_prepare: Run, picture_bytes: Encode
    ) -> None:
        """Train frames keep their bytes, or are cropped if they are resized; test frames stay whole."""
        for path in folder.rglob("*.*"):
            if "_depth" in path.name:
                path.write_bytes(picture_bytes(np.full((480, 640), 2000, np.uint16)))
            elif path.suffix == ".jpg" or "_colors" in path.name:
                path.write_bytes(picture_bytes(np.zeros((480, 640, 3), np.uint8), "JPEG"))
            elif path.suffix == ".png":
                path.write_bytes(picture_bytes(np.full((480, 640), 51, np.uint8)))
        assert run_prepare("nyu-50k", folder, "--out", tmp_path / "set", "--workers", 1) == 0
        image, depth = ShardDataset(tmp_path / "set", "train")[0]
        rows, columns = np.nonzero(depth)
        assert image.shape == (480, 640, 3)
        assert (rows.min(), rows.max(), columns.min(), columns.max()) == (8, 471, 9, 630)
        assert all((ShardDataset(tmp_path / "set", split)[0][1] == 2000).all() for split in ("val", "test"))
        small = ["--out", tmp_path / "small", "--size", "48x64", "--workers", 1]
        assert run_prepare("nyu-50k", folder, *small) == 0
        train = ShardDataset(tmp_path / "small", "train")
        assert (train[0][1] == 2000).all() and train.focal_px == pytest.approx(518.86 * 48 / 464)

    @pytest.mark.parametrize(
        ("damage", "says"),
        [
            (lambda f: (f / "data/nyu2_train.csv").unlink(), "has no data/nyu2_train.csv"),
            (lambda f: (f / "data/nyu2_test.csv").write_text(""), "nyu2_test.csv is empty: no test frames"),
            (
                lambda f: (f / "data/nyu2_train.csv").write_text("data/a.jpg\n"),
                "row 1: 1 columns; expected picture,depth",
            ),
            (lambda f: (f / "data/nyu2_train/study_0003_out/2.jpg").unlink(), "study_0003_out/2.jpg"),
            (lambda f: f.rename(f.with_name("moved")), "no such file or folder; expected nyu_data.zip"),
        ],
    )
    def test_folders_that_are_refused(
        self, folder: Path, refused: Callable[..., None], damage: Callable[[Path], object], says: str
    ) -> None:
        damage(folder)
        refused(says, "nyu-50k", folder)

    def test_files_that_are_refused(
        self, folder: Path, refused: Callable[..., None], picture_bytes: Encode
    ) -> None:
        path = self.pack(folder)
        whole = path.read_bytes()
        path.write_bytes(whole[:-200])
        refused("not a zip file, or truncated", "nyu-50k", path)
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            at = archive.getinfo("data/nyu2_train/study_0003_out/2.jpg").header_offset + 120
        path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
        refused("study_0003_out/2.jpg", "nyu-50k", path)
        depth = folder / "data/nyu2_train/study_0003_out/2.png"
        depth.write_bytes(picture_bytes(np.full(SIZE, 2000, np.uint16)))
        refused("depth of 16 bits; expected 8 bits of train frames", "nyu-50k", folder)


class TestNyuH5:
    NAMES = (
        *(f"train/{s}/{n:05d}.h5" for s in ("attic_1a", "attic_1b", "cafe_0002", "den_0003") for n in (1, 2)),
        *(f"val/official/{n:05d}.h5" for n in (1, 2)),
    )  # fmt: skip

    @staticmethod
    def frame(number: int, **arrays: np.ndarray | None) -> bytes:
        rgb = np.random.default_rng(number).integers(0, 256, (3, *SIZE), dtype=np.uint8)
        depth = np.full(SIZE, 1 + number / 8, np.float32)
        depth[3, 7] = np.nan
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            for name, array in ({"rgb": rgb, "depth": depth} | arrays).items():
                if array is not None:
                    file[name] = array
        return buffer.getvalue()

    @pytest.fixture
    def loose(self, tmp_path: Path) -> Path:
        root = tmp_path / "nyudepthv2"
        for number, name in enumerate(self.NAMES):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(self.frame(number))
        return root

    def pack(self, root: Path, out: Path, flat: bool = False) -> Path:
        """Two tars of train and one of val."""
        out.mkdir()
        parts = {
            "train-000000": self.NAMES[:4],
            "train-000001": self.NAMES[4:8],
            "val-000000": self.NAMES[8:],
        }
        for name, members in parts.items():
            with tarfile.open(out / f"{name}.tar", "w") as tar:
                for number, member in enumerate(members):
                    tar.add(root / member, f"{number:05d}.h5" if flat else member)
        return out

    def test_values_from_files_and_tars(self, loose: Path, tmp_path: Path, run_prepare: Run) -> None:
        for name, path in (("a", loose), ("b", self.pack(loose, tmp_path / "tars"))):
            assert run_prepare("nyu-h5", path, "--out", tmp_path / name, "--workers", 1) == 0
        a, b = (json.loads((tmp_path / name / "dataset.json").read_text())["splits"] for name in "ab")
        assert a == b
        test = ShardDataset(tmp_path / "a", "test")
        assert test.keys == ["official-00001", "official-00002"]
        image, depth = test[1]  # frame 9
        expected = np.random.default_rng(9).integers(0, 256, (3, *SIZE), dtype=np.uint8)
        np.testing.assert_array_equal(image, expected.transpose(1, 2, 0))
        assert depth[3, 7] == 0 and depth[0, 0] == 2125

    @pytest.mark.parametrize("flat", [False, True])
    def test_val_is_whole_scenes_or_whole_tars(self, loose: Path, tmp_path: Path, flat: bool) -> None:
        items = NyuH5(self.pack(loose, tmp_path / "tars", flat)).items()
        groups: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
        for item in items:
            groups[item.split].add(item.key.rsplit("-", 1)[0].rstrip("ab"))
        assert groups["train"] and groups["val"] and not groups["train"] & groups["val"]
        assert groups["test"] == {"val-000000" if flat else "official"}

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("train/cafe_0002/00001.h5", b"no HDF5", "'cafe_0002-00001': "),
            ("train/cafe_0002/00001.h5", b"no HDF5", "not an HDF5 file"),
            ("train/cafe_0002/00001.h5", frame(1)[:2000], "not an HDF5 file, or truncated"),
            ("train/cafe_0002/00001.h5", frame(1, depth=None), "has no array 'depth'; it has rgb"),
            (
                "train/cafe_0002/00001.h5",
                frame(1, depth=np.ones((48, 32))),
                "expected (3, H, W) uint8, (H, W)",
            ),
            ("more/2.h5", frame(1), "more/2.h5 is neither in train nor in val"),
            ("train.tar.gz", b"", "unpack it first"),
            ("train.tar", b"not a tar at all" * 100, "not an uncompressed tar, or truncated"),
        ],
    )
    def test_refusals(
        self, loose: Path, refused: Callable[..., None], name: str, content: bytes, says: str
    ) -> None:
        (loose / name).parent.mkdir(exist_ok=True)
        (loose / name).write_bytes(content)
        refused(says, "nyu-h5", loose)

    def test_other_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DatasetError, match="no such file or folder"):
            NyuH5(tmp_path / "gone").items()
        with pytest.raises(DatasetError, match=r"has no \.h5 files; expected folders train/ and val/"):
            NyuH5(tmp_path).items()
        (tmp_path / "val").mkdir()
        (tmp_path / "val" / "1.h5").write_bytes(self.frame(1))
        with pytest.raises(DatasetError, match="has no train frames"):
            NyuH5(tmp_path).items()


class TestNyuSync:
    @pytest.fixture
    def folder(self, tmp_path: Path, picture_bytes: Encode, noise: Noise) -> Path:
        """4 frames in 2 scenes (3 folders), 1 test frame; the lists where BTS has them."""
        root, rows = tmp_path / "nyu_depth_v2", {"train": list[str](), "test": list[str]()}
        parts = ("kitchen_0028a", "kitchen_0028b", "office_0001")
        frames = [("sync", scene, frame) for scene in parts for frame in (0, 45)]
        for number, (base, scene, frame) in enumerate([*frames, ("official_splits/test", "bathroom", 45)]):
            place = root / base / scene
            place.mkdir(parents=True, exist_ok=True)
            (place / f"rgb_{frame:05d}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
            depth = np.full(SIZE, 1500 + number, np.uint16)
            depth[2, 3] = 0
            (place / f"sync_depth_{frame:05d}.png").write_bytes(picture_bytes(depth))
            row = f"/{scene}/rgb_{frame:05d}.jpg /{scene}/sync_depth_{frame:05d}.png 518.8579"
            rows["train" if base == "sync" else "test"].append(row)
        for split, lines in rows.items():
            (root / LISTS[split]).write_text("\n".join(lines) + "\n\n")
        return root

    def test_values_and_bytes(self, folder: Path, tmp_path: Path, run_prepare: Run) -> None:
        assert run_prepare("nyu-sync", folder, "--out", tmp_path / "set", "--workers", 1) == 0
        test = ShardDataset(tmp_path / "set", "test")
        assert test.keys == ["bathroom-rgb_00045"] and test.focal_px == 518.8579
        assert test[0][1][2, 3] == 0 and test[0][1][0, 0] == 1506 and test.info["truth"] == "raw"
        place = folder / "official_splits/test/bathroom"
        names = ("rgb_00045.jpg", "sync_depth_00045.png")
        assert test.encoded(0) == tuple((place / name).read_bytes() for name in names)
        val, train = (
            {key.split("_00")[0] for key in ShardDataset(tmp_path / "set", split).keys}
            for split in ("val", "train")
        )
        assert len(val) == len(train) == 1 and val | train == {"kitchen", "office"}

    def test_given_lists_and_no_test_list(
        self, folder: Path, tmp_path: Path, run_prepare: Run, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / LISTS["test"]).unlink()
        (folder / LISTS["train"]).rename(tmp_path / "mine.txt")
        more = ["--train-list", tmp_path / "mine.txt", "--out", tmp_path / "set", "--workers", 1]
        assert run_prepare("nyu-sync", folder, *more) == 0
        assert "no test split" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("\n", "is empty: no train frames"),
            ("a b 1\na.jpg b.png\n", "line 2: 'a.jpg b.png'; expected: rgb depth focal"),
            ("a.jpg b.png far\n", "line 1: 'a.jpg b.png far'; expected: rgb depth focal"),
            ("/attic/1.jpg /attic/1.png 518.8579\n" * 4, "two train frames have the key 'attic-1'"),
            ("/attic/1.jpg /attic/1.png 1\n/attic/2.jpg /attic/2.png 1\n", "/attic/1.jpg is not in"),
            (b"\xff\xfe\x00", "not a text file"),
            (None, "give --train-list FILE"),
        ],
    )
    def test_lists_that_are_refused(
        self, folder: Path, refused: Callable[..., None], text: str | bytes | None, says: str
    ) -> None:
        path = folder / LISTS["train"]
        path.unlink()
        if text is not None:
            path.write_bytes(text.encode() if isinstance(text, str) else text)
        refused(says, "nyu-sync", folder)

    def test_depth_of_8_bits_and_no_folder(
        self, folder: Path, refused: Callable[..., None], picture_bytes: Encode
    ) -> None:
        depth = folder / "sync/office_0001/sync_depth_00000.png"
        depth.write_bytes(picture_bytes(np.full(SIZE, 9, np.uint8)))
        refused("no 16-bit PNG", "nyu-sync", folder)
        refused("no such folder", "nyu-sync", folder / "gone")


class TestPairs:
    @pytest.fixture
    def fill(self, tmp_path: Path, picture_bytes: Encode, noise: Noise) -> Callable[..., tuple[Path, Path]]:
        """Write JPEGs, and 16-bit depth of 2000 + the number."""

        def write(*names: str) -> tuple[Path, Path]:
            for number, name in enumerate(names):
                for kind in ("rgb", "depth"):
                    (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / "rgb" / f"{name}.jpg").write_bytes(picture_bytes(noise(number), "JPEG"))
                depth = picture_bytes(np.full(SIZE, 2000 + number, np.uint16))
                (tmp_path / "depth" / f"{name}.png").write_bytes(depth)
            return tmp_path / "rgb", tmp_path / "depth"

        return write

    @pytest.fixture
    def flat(self, fill: Callable[..., tuple[Path, Path]]) -> tuple[Path, Path]:
        return fill(*(f"{number:03d}" for number in range(6)))

    @pytest.fixture
    def made(self, flat: tuple[Path, Path], tmp_path: Path, run_prepare: Run) -> Callable[..., ShardDataset]:
        """Prepare the folders and return the train split."""

        def make(scale: float, *more: object) -> ShardDataset:
            out = tmp_path / f"set{len(list(tmp_path.iterdir()))}"
            assert run_prepare("pairs", *flat, "--scale", scale, *more, "--workers", 1, "--out", out) == 0
            return ShardDataset(out, "train")

        return make

    def test_values_and_bytes(self, flat: tuple[Path, Path], made: Callable[..., ShardDataset]) -> None:
        train = made(0.001, "--focal", 50)
        val, test = (ShardDataset(train.folder, split) for split in ("val", "test"))
        # Without folders: the last ones by name.
        assert train.keys == ["000", "001", "002", "003"] and val.keys == ["004"] and test.keys == ["005"]
        assert train.focal_px == 50.0 and (train[2][1] == 2002).all()
        assert train.encoded(2) == ((flat[0] / "002.jpg").read_bytes(), (flat[1] / "002.png").read_bytes())

    @pytest.mark.parametrize(
        ("depth", "scale", "millimetres"),
        [
            (np.full(SIZE, 5000, np.uint16), 0.0002, 1000),
            (np.full(SIZE, 51, np.uint8), 10 / 255, 2000),
            (np.full(SIZE, 1.25, np.float32), 1, 1250),
            (np.full(SIZE, 125, np.int64), 0.01, 1250),
        ],
    )
    def test_scales_and_forms(
        self, flat: Any, made: Any, picture_bytes: Encode, depth: np.ndarray, scale: float, millimetres: int
    ) -> None:
        for path in flat[1].iterdir():
            if depth.dtype in (np.uint8, np.uint16):
                path.write_bytes(picture_bytes(depth))
            else:
                np.save(path.with_suffix(".npy"), depth)
                path.unlink()
        data = made(scale)
        assert (data[0][1] == millimetres).all() and data.focal_px == pytest.approx(518.86 * 48 / 640)

    def test_folders_named_after_splits(self, fill: Callable[..., tuple[Path, Path]]) -> None:
        items = Pairs(*fill("train/a/1", "train/b.c/2", "val/1", "test/1"), 0.001).items()
        assert {(item.split, item.key) for item in items} == {
            ("train", "a-1"),
            ("train", "b_c-2"),
            ("val", "1"),
            ("test", "1"),
        }

    def test_one_close_up_is_no_wrong_unit(self, flat: Any, made: Any, picture_bytes: Encode) -> None:
        (flat[1] / "000.png").write_bytes(picture_bytes(np.full(SIZE, 150, np.uint16)))
        assert len(made(0.001)) == 4

    def test_far_depth_is_kept_and_what_is_farther_is_invalid(
        self, flat: Any, made: Any, picture_bytes: Encode, run_prepare: Run, capsys: Any
    ) -> None:
        """Steps of 1/256 m: half of each frame without, a quarter at 40 m, a quarter at 90 m."""
        steps = np.zeros(SIZE, np.uint16)
        steps[:16, :24], steps[:16, 24:] = 40 * 256, 90 * 256
        for path in flat[1].iterdir():
            path.write_bytes(picture_bytes(steps))
        data = made(1 / 256, "--max-depth", 80, "--camera", "car")
        assert "50.00% of the depth is outside 0.001 to 80 m" in capsys.readouterr().err
        assert (data.depth_unit, data.depth_range) == (1 / 256, (0.001, 80.0))
        assert data.info["camera"] == "car" and data.info["outside_range"] == 0.5
        assert np.unique(data[0][1]).tolist() == [0, 40 * 256]
        assert run_prepare("verify", data.folder, "--full", "--workers", 1) == 0

        data = made(1 / 256, "--max-depth", 100)
        assert data.encoded(0)[1] == (flat[1] / "000.png").read_bytes() and "outside_range" not in data.info
        data = made(1 / 256, "--max-depth", 60)  # millimetres reach
        assert data.depth_unit == 0.001 and data[0][1].max() == 40_000
        data = made(1 / 256, "--max-depth", 60, "--depth-unit", 1 / 256)
        assert data.depth_unit == 1 / 256 and data[0][1].max() == 40 * 256

    def test_a_frame_that_cannot_be_used_is_skipped_and_named(
        self, flat: Any, made: Any, picture_bytes: Encode, capsys: Any
    ) -> None:
        (flat[1] / "001.png").write_bytes(picture_bytes(np.zeros(SIZE, np.uint16)))
        (flat[0] / "002.jpg").unlink()
        data = made(0.001, "--max-bad", 0.4)
        error = capsys.readouterr().err
        assert "skipped train sample '001': no valid depth: none from 0.001 to 10 m" in error
        assert "2 frames were skipped" in error and data.keys == ["000", "003"]

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--max-depth", 300), "16 bits of 0.00390625 m reach 256 m; --depth-unit 0.0048 reaches it"),
            (("--max-depth", 80, "--depth-unit", "mm"), "reach 65.53 m"),
            (("--min-depth", 12), "--min-depth 12, --max-depth 10: expected a range"),
            (("--max-depth", "nan"), "--max-depth nan: expected a positive number"),
            (("--scale", 0), "--scale 0.0: expected a positive number"),
            (("--scale", 1), "the likely scale is 0.001"),
            (("--scale", 0.0001), "the likely scale is 0.001"),
            (("--size", "32x32"), "cuts 33% off a picture of 32x48; --size 26x39 keeps it whole"),
        ],
    )
    def test_bad_arguments(self, flat: Any, refused: Any, arguments: tuple[object, ...], says: str) -> None:
        refused(says, "pairs", *flat, "--scale", 0.001, *arguments)

    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("size", "train sample '001': picture of 32x48, depth of 32x40; expected one size"),
            ("no depth", "has no depth map of this name"),
            ("no picture", "has no picture of this name"),
            ("colour", "001.png: depth of mode RGB; expected one channel"),
            ("truncated", "001.jpg: cannot be decoded"),
            ("npy", "001.npy: expected a numeric array (H, W)"),
            ("pickle", "001.npy: not a .npy array"),
            ("twice", "have the same name"),
            ("empty", "is empty: no .png, .npy"),
            ("others", "no picture in"),
            ("long", "a key has 1 to 80 bytes"),
            ("same key", "two train frames have the key 'a_b'"),
        ],
    )
    def test_bad_folders(self, flat: Any, refused: Any, picture_bytes: Encode, how: str, says: str) -> None:
        pictures, depths = flat
        picture, depth = pictures / "001.jpg", depths / "001.png"
        if how == "size":
            depth.write_bytes(picture_bytes(np.full((32, 40), 2000, np.uint16)))
        elif how == "no depth":
            depth.unlink()
        elif how == "no picture":
            picture.unlink()
        elif how == "colour":
            depth.write_bytes(picture_bytes(np.zeros((*SIZE, 3), np.uint8)))
        elif how == "truncated":
            picture.write_bytes(picture.read_bytes()[:600])
        elif how in ("npy", "pickle"):
            depth.unlink()
            array = np.ones((2, 2, 2)) if how == "npy" else np.array([{}], dtype=object)
            np.save(depth.with_suffix(".npy"), array, allow_pickle=True)
        elif how == "twice":
            np.save(depth.with_suffix(".npy"), np.ones(SIZE))
        elif how == "empty":
            for path in depths.iterdir():
                path.unlink()
        elif how == "others":
            for path in depths.iterdir():
                path.rename(path.with_stem(f"x{path.stem}"))
        else:
            names = (
                {"001": "n" * 81} if how == "long" else {"001": "a.b", "002": "a_b", "004": "z4", "005": "z5"}
            )
            for old, new in names.items():
                (pictures / f"{old}.jpg").rename(pictures / f"{new}.jpg")
                (depths / f"{old}.png").rename(depths / f"{new}.png")
        refused(says, "pairs", *flat, "--scale", 0.001)


@pytest.mark.parametrize("content", [None, b"not an HDF5 file"])
def test_bad_mat(tmp_path: Path, refused: Callable[..., None], content: bytes | None) -> None:
    path = tmp_path / "nyu.mat"
    if content is not None:
        path.write_bytes(content)
    refused(f"{path}: " + ("no such file" if content is None else "not an HDF5"), "nyu-labelled", path)


def test_raw_depth_that_is_not_there(real_mat: Path, refused: Callable[..., None]) -> None:
    refused("has no array 'rawDepths'", "nyu-labelled", real_mat, "--depth", "raw")


# Holding out.


def split_of(scenes: list[str], **fractions: float) -> list[str]:
    items = [Item("train", str(number), None) for number in range(len(scenes))]
    return [item.split for item in hold_out(items, scenes, **fractions)]


def test_held_out_scenes_are_whole_and_have_their_fraction() -> None:
    scenes = [f"scene{number % 40}" for number in range(1000)]
    splits = split_of(scenes, val=0.05, test=0.1)
    assert len(set(zip(scenes, splits, strict=True))) == 40
    assert Counter(splits) == {"train": 850, "val": 50, "test": 100}


def test_the_choice_depends_on_names_alone() -> None:
    """Known answer, so that a data set made again has the same split."""
    # SHA-256: a ca97..., b 3e23..., c 2e7d..., d 18ac...: the smallest is held out.
    assert split_of(["a", "b", "c", "d"], val=0.25).index("val") == 3
    assert split_of(["d", "c", "b", "a"], val=0.25).index("val") == 0


@pytest.mark.parametrize("scenes", [["a", "b", "c"], ["a"] * 3, ["a", "a", "b"]])
def test_every_split_has_a_frame(scenes: list[str]) -> None:
    assert set(split_of(scenes, val=0.01, test=0.01)) == {"train", "val", "test"}


def test_too_few_frames() -> None:
    with pytest.raises(DatasetError, match="2 frames cannot be split"):
        split_of(["a", "b"], val=0.1, test=0.1)
