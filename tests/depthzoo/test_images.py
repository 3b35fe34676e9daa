"""load_image: known pixels in every form, and every way to be refused."""

import io
import struct
import sys
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from depthzoo.images import find_images, load_image, load_with_focal

# Red left, blue right; 2 rows, 4 columns.
SCENE = np.zeros((2, 4, 3), np.uint8)
SCENE[:, :2, 0] = 255
SCENE[:, 2:, 2] = 255


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.webp", "a.gif", "a.tif", "A.PPM"])
def test_files_give_their_pixels(tmp_path: Path, name: str) -> None:
    Image.fromarray(SCENE).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    for source in (tmp_path / name, str(tmp_path / name), Image.open(tmp_path / name)):
        np.testing.assert_array_equal(load_image(source), SCENE)


class Stream:
    """As a response of urllib: bytes that can be read once."""

    def __init__(self, data: object) -> None:
        self.data = data

    def read(self) -> object:
        return self.data


def test_bytes_and_file_objects(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    exif.get_ifd(0x8769)[0xA405] = 27
    path = tmp_path / "a.png"
    Image.fromarray(SCENE).save(path, exif=exif)
    data = path.read_bytes()
    with path.open("rb") as file:
        sources: list[Any] = [data, bytearray(data), io.BytesIO(data), file, Stream(data)]
        for source in sources:
            pixels, focal = load_with_focal(source)
            np.testing.assert_array_equal(pixels, SCENE)
            assert focal == load_with_focal(path)[1] == pytest.approx(4 * 27 / 36)
        with pytest.raises(ValueError, match=r"a\.png: empty, or already read to its end") as error:
            load_image(file)
        one_line(error)


def test_bytes_that_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with (tmp_path / "a.png").open() as text:
        cases: list[tuple[Any, type[Exception], str]] = [
            (b"", ValueError, "^bytes: empty"),
            (b"hello", ValueError, "^bytes: not an image in a known format"),
            (io.BytesIO(b"hello"), ValueError, "^file object: not an image"),
            (text, TypeError, r"a\.png: read\(\) returned str, expected bytes: open it in mode 'rb'"),
            (Stream(None), TypeError, "returned NoneType"),
        ]
        for source, kind, message in cases:
            with pytest.raises(kind, match=message) as error:
                load_image(source)
            one_line(error)


def test_home_folder_and_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    Image.fromarray(SCENE).save(tmp_path / "a.png")
    for source in ("~/a.png", Path("~/a.png")):
        np.testing.assert_array_equal(load_image(source), SCENE)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_image("~nobody-of-this-name/a.png")
    with pytest.raises(ValueError, match=r"^https://host/a\.png: is a URL; .*urlopen") as error:
        load_image("https://host/a.png")
    one_line(error)


def heic(path: Path, **options: Any) -> Path:
    pillow_heif = pytest.importorskip("pillow_heif")
    pixels = np.zeros((64, 96, 3), np.uint8)
    pixels[:, :48, 0], pixels[:, 48:, 2] = 255, 255
    try:
        pillow_heif.from_pillow(Image.fromarray(pixels)).save(path, quality=95, **options)
    except RuntimeError as error:
        pytest.skip(f"this pillow_heif writes no HEIC: {error}")
    return path


def test_heic_needs_no_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a phone writes it: turned, and with a focal length."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0xA405] = 27
    path = heic(tmp_path / "a.heic", exif=exif.tobytes())
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # as before pillow_heif is registered
    for source in (path, path.read_bytes()):
        pixels, focal = load_with_focal(source)
        assert pixels.shape == (96, 64, 3) and focal == pytest.approx(96 * 27 / 36)
        assert (pixels[:40, :, 0] > 200).all() and (pixels[56:, :, 2] > 200).all()


def test_heic_names_the_package_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = heic(tmp_path / "a.heic").read_bytes()
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)  # as before pillow_heif is registered
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a\.heic: is HEIC, which needs: pip install pillow-heif$"):
        load_image(tmp_path / "a.heic")
    # AVIF may begin in the same way, and needs nothing.
    Image.fromarray(SCENE).save(tmp_path / "a.avif")
    (tmp_path / "b.avif").write_bytes((tmp_path / "a.avif").read_bytes().replace(b"ftypavif", b"ftypmif1", 1))
    for name in ("a.avif", "b.avif"):
        assert load_image(tmp_path / name).shape == SCENE.shape
    with pytest.raises(ValueError, match="cannot be decoded|not an image|pillow-heif"):
        load_image(data[:40])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, suffix: str, orientation: int) -> None:
    # What each value means, as numpy operations on the stored pixels.
    turns = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a),
    }
    stored = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    np.testing.assert_allclose(load_image(path), turns[orientation](stored), atol=12)
    with Image.open(path) as image:
        np.testing.assert_allclose(load_image(image), turns[orientation](stored), atol=12)


def test_unreadable_exif_counts_as_none(tmp_path: Path) -> None:
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), SCENE)


def raw_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """EXIF of (tag, type, count, four bytes) as they are, valid or not."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4)


@pytest.mark.parametrize(
    "odd",
    [(0x010F, 11, 1, b"\1\0\0\0"), (0x011A, 2, 1, b"a\0\0\0"), (0x0128, 1, 1, b"\1\0\0\0")],
    ids=["maker as float", "resolution as text", "unit as bytes"],
)
def test_odd_tags_beside_the_orientation(tmp_path: Path, odd: tuple[int, int, int, bytes]) -> None:
    """Pillow's exif_transpose writes all tags again, and raises AttributeError, TypeError and struct.error on these."""
    entries = sorted([(0x0112, 3, 1, b"\6\0\0\0"), odd])
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=raw_exif(*entries))
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), np.rot90(SCENE, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("turned", [False, True])
def test_focal_length_of_exif(tmp_path: Path, orientation: int, turned: bool) -> None:
    """36 mm are the longer side, however the camera was held and the picture is stored."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = 27
    Image.new("RGB", (30, 40) if turned else (40, 30)).save(tmp_path / "a.jpg", exif=exif)
    image, focal = load_with_focal(tmp_path / "a.jpg")
    assert max(image.shape) == 40 and focal == pytest.approx(40 * 27 / 36)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert load_with_focal(opened)[1] == focal


@pytest.mark.parametrize("film", [None, 0, 65535, "wide"])
def test_focal_length_that_exif_does_not_state(tmp_path: Path, film: object) -> None:
    exif = Image.Exif()
    if film is not None:
        exif.get_ifd(0x8769)[0xA405] = film
    Image.fromarray(SCENE).save(tmp_path / "a.png", exif=exif)
    for source in (tmp_path / "a.png", SCENE, torch.from_numpy(SCENE).permute(2, 0, 1)):
        assert load_with_focal(source)[1] is None


def test_modes_of_pillow() -> None:
    picture = Image.fromarray(SCENE)
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(load_image(picture.convert("L")), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(load_image(picture.convert("P")), SCENE)
    np.testing.assert_array_equal(load_image(picture.convert("CMYK")), SCENE)
    np.testing.assert_array_equal(load_image(Image.new("1", (3, 2), 1)), np.full((2, 3, 3), 255))
    np.testing.assert_array_equal(load_image(Image.new("LA", (1, 1), (0, 0))), np.full((1, 1, 3), 255))
    assert load_image(picture.convert("YCbCr")).shape == SCENE.shape
    np.testing.assert_array_equal(load_image(Image.new("F", (1, 1), 0.5)), np.full((1, 1, 3), 128))


def test_cmyk_jpeg(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    np.testing.assert_allclose(load_image(tmp_path / "a.jpg"), np.full((32, 32, 3), (255, 0, 0)), atol=4)


def test_transparent_is_white_and_half_is_half(tmp_path: Path) -> None:
    rgba = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    expected = np.array([[[255, 255, 255], [255, 0, 0], [127, 127, 127]]])
    Image.fromarray(rgba).save(tmp_path / "a.png")
    np.testing.assert_allclose(load_image(tmp_path / "a.png"), expected, atol=1)
    np.testing.assert_allclose(load_image(rgba), expected, atol=1)
    np.testing.assert_allclose(load_image(rgba / np.float32(255)), expected, atol=1)
    palette = Image.fromarray(SCENE).convert("P")
    palette.save(tmp_path / "p.png", transparency=palette.getpixel((0, 0)))
    np.testing.assert_array_equal(load_image(tmp_path / "p.png")[0, :, 1], [255, 255, 0, 0])


def test_sixteen_bits(tmp_path: Path) -> None:
    values = np.array([[0, 257, 65535, 128 * 257]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    for source in (
        tmp_path / "a.png",
        values,
        values.astype(">u2"),
        Image.fromarray(values.astype(np.int32)),
    ):
        np.testing.assert_array_equal(load_image(source)[..., 1], [[0, 1, 255, 128]])
    with pytest.raises(ValueError, match="do not fit 16 bits"):
        load_image(Image.fromarray(np.array([[70000]], np.int32)))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(load_image(tmp_path / "a.gif"), np.full((3, 4, 3), (255, 0, 0)))


def test_arrays_and_tensors() -> None:
    floats = SCENE.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    sources: list[Any] = [SCENE, floats, floats.astype(np.float64), floats.astype(np.float16)]
    sources += [tensor, tensor[None], tensor.bfloat16(), (tensor * 255).byte(), tensor.requires_grad_()]
    for source in sources:
        np.testing.assert_array_equal(load_image(source), SCENE)
    grey = SCENE[..., 0]
    for source in (grey, grey[..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        np.testing.assert_array_equal(load_image(source), np.stack([grey] * 3, -1))
    np.testing.assert_array_equal(load_image(SCENE[:, ::-1]), SCENE[:, ::-1])


def test_is_a_copy() -> None:
    frame = SCENE.copy()
    loaded = load_image(frame)
    frame[:] = 7
    np.testing.assert_array_equal(loaded, SCENE)
    assert loaded.flags.writeable and loaded.flags.c_contiguous


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 8, 9), np.uint8), r"array: .* come last: \(H, W, 3\); got \(3, 8, 9\)"),
        (torch.zeros(8, 9, 3), r"tensor: .* come first: \(3, H, W\); got \(8, 9, 3\)"),
        (torch.zeros(2, 3, 8, 9), r"got \(2, 3, 8, 9\)"),
        (np.zeros((2, 8, 9, 3), np.uint8), "as a list"),
        (np.zeros((8, 9, 2), np.uint8), r"got \(8, 9, 2\)"),
        (np.zeros(8, np.uint8), r"got \(8,\)"),
        (np.zeros((0, 9, 3), np.uint8), "no pixels"),
        (np.zeros((8, 9, 3), np.int64), "got int64"),
        (np.zeros((8, 9, 3), bool), "got bool"),
        (np.zeros((8, 9, 3), complex), "got complex128"),
        (np.full((8, 9, 3), 200.0), "200 to 200; divide by 255"),
        (np.full((8, 9, 3), -0.5), r"must be in \[0, 1\]"),
        (np.full((8, 9, 3), np.nan), "NaN"),
        (np.full((8, 9, 3), np.inf), "infinite"),
        (torch.full((3, 8, 9), torch.nan), "NaN"),
        (Image.new("F", (2, 2), 9.0), "divide by 255"),
    ],
)
def test_bad_arrays_are_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_image(source)
    one_line(error)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="not NoneType"):
        load_image(None)  # type: ignore[arg-type]


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [10_000, 141_422])
def test_bombs_are_refused_undecoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="more than 89 megapixels") as error:
            load_image(path)
    assert "bomb.png" in one_line(error)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole)
    data = whole.read_bytes()
    files = {
        "empty.jpg": (b"", "empty file"),
        "text.jpg": (b"not a picture at all", "not an image in a known format"),
        "truncated.jpg": (data[: len(data) // 2], "cannot be decoded: .*truncated"),
        "cut.png": (png_header(64, 64), "cannot be decoded"),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load_image(tmp_path / name)
        assert name in one_line(error)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"])
def test_damaged_files_give_pixels_or_one_line(tmp_path: Path, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(tmp_path / "whole", kind, exif=exif)
    data = (tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged"
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(1, len(data) + 1)])
        for position in rng.integers(0, len(damaged), 4):
            damaged[position if rng.random() < 0.5 else position % min(100, len(damaged))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            assert load_image(path).dtype == np.uint8
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg: no such file$"):
        load_image(tmp_path / "absent.jpg")
    with pytest.raises(IsADirectoryError, match="is a folder, not an image$"):
        load_image(tmp_path)
    with pytest.raises(OSError, match="File name too long") as error:
        load_image(tmp_path / ("x" * 300))
    one_line(error)


def test_files_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "sub/c.png", "sub/.hidden.png", ".git/d.png", "e[1].png"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(name)
    Path("notes.txt").write_text("not an image")
    Path("nothing").mkdir()

    def found(*texts: str, recursive: bool = False) -> list[str]:
        return [path.as_posix() for path in find_images(texts, recursive)[0]]

    assert found(".") == ["a.png", "b.JPG", "e[1].png"]
    assert found(".", recursive=True) == ["a.png", "b.JPG", "e[1].png", "sub/c.png"]
    assert found("e[1].png", "./e[1].png", "sub") == ["e[1].png", "sub/c.png"]
    assert found("notes.txt") == ["notes.txt"]
    assert find_images(["x.png", ".git", "nothing"])[1] == [
        "x.png: no such file or folder",
        "nothing: no images in this folder itself (--recursive descends into the folders in it)",
    ]
