"""Predictor and Prediction, on models whose depth is known."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depthzoo.models import create_model
from depthzoo.prediction import (
    Prediction,
    Predictor,
    predictor,
    resize_depth,
    resize_image,
    select_device,
    working_size,
)

SIZE = (64, 96)


class Constant(nn.Module):
    """2.5 m everywhere; remembers the shapes that it is given."""

    card: dict[str, Any] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Tensor:
        assert not self.training and torch.is_inference_mode_enabled()
        assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
        self.shapes.append(tuple(image.shape))
        return torch.full_like(image[:, :1], 2.5)


class Red(nn.Module):
    """1 m where there is no red, 3 m where there is all of it."""

    def forward(self, image: Tensor) -> Tensor:
        return 1 + 2 * image[:, :1]


class Columns(nn.Module):
    """Metres grow from left to right, whatever the picture."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.linspace(1, 3, image.shape[-1]).expand(image.shape[0], 1, *image.shape[-2:])


def picture(height: int, width: int, red: float = 0.0) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = round(255 * red)
    return image


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (37, 53), (64, 96), (200, 100), (333, 1)])
def test_constant_depth_at_the_pictures_own_size(shape: tuple[int, int]) -> None:
    prediction = Predictor(Constant(), "cpu", SIZE)(picture(*shape))
    assert prediction.depth.shape == shape and prediction.depth.dtype == np.float32
    assert prediction.image.shape == (*shape, 3)
    np.testing.assert_allclose(prediction.depth, 2.5, rtol=1e-6)


def test_channels_are_red_first_and_values_are_kept() -> None:
    image = picture(*SIZE)
    image[:, 48:, 0] = 255
    image[:, :48, 2] = 255
    depth = Predictor(Red(), "cpu", SIZE)(image).depth
    np.testing.assert_allclose(depth[:, :48], 1)
    np.testing.assert_allclose(depth[:, 48:], 3)


def test_exif_turned_file(tmp_path: Path) -> None:
    stored = picture(64, 96)
    stored[:, :48, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half becomes the upper half
    Image.fromarray(stored).save(tmp_path / "a.png", exif=exif)
    depth = Predictor(Red(), "cpu", SIZE)(tmp_path / "a.png").depth
    assert depth.shape == (96, 64)
    np.testing.assert_allclose(depth[:48], 3)
    np.testing.assert_allclose(depth[48:], 1)


def test_one_gives_one_and_several_give_a_list() -> None:
    run = Predictor(Red(), "cpu", SIZE)
    tensor = torch.zeros(2, 3, 40, 50)
    tensor[1] = 1
    assert isinstance(run(tensor[0]), Prediction)
    for several in (tensor, list(tensor), tuple(tensor)):
        assert [float(p.depth.mean()) for p in run(several)] == [1, 3]
    assert len(run(tensor[:1])) == 1
    assert run([]) == []


def test_batches_of_one_working_size_keep_the_order() -> None:
    model = Constant()
    run = Predictor(model, "cpu", SIZE, batch_size=2)
    shapes = [(64, 96), (96, 64), (128, 192), (32, 48), (100, 66)]
    predictions = run([picture(*s) for s in shapes])
    assert [p.depth.shape for p in predictions] == shapes
    assert sorted(model.shapes) == [(1, 3, 64, 96), (2, 3, 64, 96), (2, 3, 96, 64)]


def test_flip_averages_with_the_mirrored_picture() -> None:
    plain = Predictor(Columns(), "cpu", SIZE)(picture(*SIZE)).depth
    np.testing.assert_allclose(plain[0], np.linspace(1, 3, 96), rtol=1e-6)
    np.testing.assert_allclose(
        Predictor(Columns(), "cpu", SIZE, flip=True)(picture(*SIZE)).depth, 2, rtol=1e-6
    )
    # A model that looks at the picture only is not changed by it.
    image = np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)
    once, twice = (Predictor(Red(), "cpu", SIZE, flip=flip)(image).depth for flip in (False, True))
    np.testing.assert_allclose(once, twice, rtol=1e-6)


def test_card_gives_the_size() -> None:
    model = Constant()
    model.card = {"size": [96, 128]}
    run = Predictor(model, "cpu")
    assert run.size == (96, 128)
    run(picture(96, 128))
    assert model.shapes == [(1, 3, 96, 128)]
    assert Predictor(Constant(), "cpu").size == (480, 640)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "is not available"),
        ({"device": "meta"}, "is not available"),
        ({"device": "cpu", "size": (16, 640)}, "at least 32x32, got 16x640"),
        ({"device": "cpu", "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Predictor(Constant(), **options)


def test_channels_last_on_a_cpu_changes_no_depth() -> None:
    torch.manual_seed(0)
    model = create_model("unet_mobilenet_v3", weights=None).eval()
    images = [np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)]
    with torch.inference_mode():
        before = model(torch.from_numpy(images[0]).permute(2, 0, 1)[None] / 255)[0, 0].numpy()
    found = Predictor(model, "cpu", SIZE)
    weights = [p for p in model.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1 and p.shape[-1] > 1]
    assert weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    np.testing.assert_allclose(found(images)[0].depth, before, atol=1e-5)


def test_model_that_predicts_no_depth() -> None:
    class Other(nn.Module):
        def __init__(self, output: Any) -> None:
            super().__init__()
            self.output = output

        def forward(self, image: Tensor) -> Any:
            return self.output

    for output, said in (
        (torch.ones(1, 2, 8, 8), r"\(1, 2, 8, 8\)"),
        (torch.ones(8, 8), r"\(8, 8\)"),
        ({}, "dict"),
    ):
        with pytest.raises(ValueError, match=f"the model returned {said}, expected a tensor"):
            Predictor(Other(output), "cpu", SIZE)(picture(*SIZE))


def test_default_device() -> None:
    assert select_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_bad_picture_in_a_list_is_told_by_its_index(tmp_path: Path) -> None:
    run = Predictor(Constant(), "cpu", SIZE)
    with pytest.raises(ValueError, match="^image 1: array: expected "):
        run([picture(4, 4), np.zeros((3, 4, 4, 4), np.uint8)])
    with pytest.raises(FileNotFoundError, match="^image 0: .*no such file$"):
        run([tmp_path / "absent.png"])
    # A name that no file can have is an error of five arguments, whose kind takes no text alone.
    with pytest.raises(ValueError, match="^image 0: "):
        run(["\ud800.png"])


def test_model_by_name_file_or_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("unet_mobilenet_v3", weights=None, max_depth=20.0)
    model.save(tmp_path / "run" / "model.safetensors", size=[32, 64])
    image = np.random.default_rng(0).integers(0, 256, (20, 40, 3), np.uint8)
    found = []
    for source in (tmp_path / "run" / "model.safetensors", str(tmp_path / "run")):
        for run in (
            Predictor(source, "cpu"),
            predictor(weights=source, device="cpu"),
            predictor(source, device="cpu"),
        ):
            assert run.size == (32, 64)
            found.append(run(image).depth)
    assert all(np.array_equal(depth, found[0]) for depth in found)
    with pytest.raises(ValueError, match="did you mean 'unet_mobilenet_v3'"):
        Predictor("unet_mobilenet", "cpu")


def test_hub_entry_builds_by_name() -> None:
    run = predictor("unet_mobilenet_v3", weights=None, device="cpu", size=(32, 64), head="linear")
    depth = run(picture(20, 40)).depth
    assert depth.shape == (20, 40) and np.isfinite(depth).all()
    with pytest.raises(ValueError, match="did you mean 'unet_mobilenet_v3'"):
        predictor("unet_mobilenet", device="cpu")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((480, 640), (480, 640)),
        ((960, 1280), (480, 640)),
        ((640, 480), (640, 480)),
        ((1, 1), (544, 544)),
        ((1, 10**6), (32, 9600)),
        ((10**6, 1), (9600, 32)),
    ],
)
def test_working_size(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    assert working_size(*shape, (480, 640)) == expected


def test_working_size_keeps_aspect_and_area() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(100, 5000, (200, 2)):
        if not 0.2 < height / width < 5:
            continue
        h, w = working_size(int(height), int(width), (480, 640))
        assert h % 32 == w % 32 == 0
        assert abs(h * w / (480 * 640) - 1) < 0.12
        assert abs(np.log(h / w) - np.log(height / width)) < 0.12


def test_resize_image_is_antialiased_and_depth_is_plain() -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::4] = 1
    # Stripes of one pixel become grey in all of the inside; sampled plainly they would not.
    small = resize_image(stripes, (16, 16))
    torch.testing.assert_close(small[..., 2:-2], torch.full((1, 3, 16, 12), 0.25))
    as_bytes = resize_image((stripes * 255).byte(), (16, 16))
    assert as_bytes.dtype == torch.uint8
    assert (as_bytes.float() / 255 - small).abs().max() < 1.5 / 255
    ramp = torch.tensor([[[[1.0, 3.0]]]])
    torch.testing.assert_close(resize_depth(ramp, (1, 4)), torch.tensor([[[[1.0, 1.5, 2.5, 3.0]]]]))


def test_summary_is_one_short_line_over_the_valid_depths() -> None:
    depth = np.full((480, 640), 2, np.float32)
    depth[0, :4] = 0, np.nan, 0.5, 4
    image = np.zeros((480, 640, 3), np.uint8)
    prediction = Prediction(depth, image)
    assert (prediction.near, prediction.median, prediction.far) == (0.5, 2, 4)
    text = "640x480, near 0.50 m, median 2.00 m, far 4.00 m, focal length 519 px (canonical)"
    assert repr(prediction) == f"Prediction({text})"
    assert prediction.focal_px == pytest.approx(518.86)
    assert Prediction(depth, image, 721.4).focal_source == "given"
    assert repr(Prediction(depth, image, 721.4, "EXIF")).endswith("focal length 721 px (EXIF))")
    assert "near nan m" in repr(Prediction(depth * 0, image))


def test_notebooks_show_the_panel() -> None:
    prediction = Predictor(Columns(), "cpu", SIZE)(picture(*SIZE))
    with Image.open(io.BytesIO(prediction._repr_png_())) as image:
        assert image.format == "PNG"
        np.testing.assert_array_equal(np.asarray(image), prediction.panel())


def test_depth_as_tensor_and_as_pil_image() -> None:
    prediction = Predictor(Columns(), "cpu", SIZE)(picture(*SIZE))
    assert prediction.tensor.shape == (1, *SIZE) and prediction.tensor.dtype == torch.float32
    np.testing.assert_array_equal(prediction.tensor[0].numpy(), prediction.depth)
    image = prediction.to_pil("gray", near=1, far=3)
    assert image.mode == "RGB" and image.size == SIZE[::-1]
    np.testing.assert_allclose(np.asarray(image)[0, :, 0], (prediction.depth[0] - 1) * 127.5, atol=0.6)
    assert prediction.to_pil(legend=True).height > image.height


DEPTH = np.array([[0.0004, 0.0006, 1.2346], [65.535, 70.0, np.nan]], np.float32)


def test_depth16_round_trip(tmp_path: Path) -> None:
    prediction = Prediction(DEPTH, np.zeros((2, 3, 3), np.uint8))
    prediction.save_depth16(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        values = np.asarray(image)
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, [[0, 1, 1235], [65535, 65535, 0]])
    Prediction(np.array([[-1, np.inf]], np.float32), np.zeros((1, 2, 3), np.uint8)).save_depth16(
        tmp_path / "a.png"
    )
    with Image.open(tmp_path / "a.png") as image:
        np.testing.assert_array_equal(np.asarray(image), [[0, 65535]])


def test_npy_round_trip(tmp_path: Path) -> None:
    Prediction(DEPTH, np.zeros((2, 3, 3), np.uint8)).save_npy(str(tmp_path / "a.npy"))
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, DEPTH)


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG"])
def test_color_and_panel_files(tmp_path: Path, suffix: str) -> None:
    prediction = Predictor(Columns(), "cpu", SIZE)(picture(*SIZE))
    prediction.save_color(tmp_path / f"c.{suffix}", "magma")
    prediction.save_panel(tmp_path / f"p.{suffix}", target=prediction.depth)
    colored = np.asarray(prediction.to_pil("magma"))
    for name, pixels in (("c", colored), ("p", prediction.panel(prediction.depth))):
        with Image.open(tmp_path / f"{name}.{suffix}") as image:
            assert image.format == ("PNG" if suffix == "png" else "JPEG")
            assert image.size == pixels.shape[1::-1]
            if suffix == "png":
                np.testing.assert_array_equal(np.asarray(image), pixels)


def test_wrong_suffix_and_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prediction = Prediction(DEPTH, np.zeros((2, 3, 3), np.uint8))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    prediction.save_npy("~/home.npy")
    assert (tmp_path / "home.npy").is_file()
    for save, name in (
        ("depth16", "a.jpg"),
        ("npy", "a"),
        ("color", "a.gif"),
        ("panel", "a.npy"),
        ("ply", "a.png"),
        ("glb", "a.gltf"),
    ):
        with pytest.raises(ValueError, match=r"the name must end in \."):
            getattr(prediction, f"save_{save}")(tmp_path / name)
    prediction.save_npy(tmp_path / "new" / "a.npy")
    assert (tmp_path / "new" / "a.npy").is_file()
    (tmp_path / "b.npy").mkdir()
    with pytest.raises(OSError, match=r"b\.npy: "):
        prediction.save_npy(tmp_path / "b.npy")


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction = Prediction(DEPTH, np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "a.npy").write_bytes(b"old")

    def full(file: Any, array: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(OSError, match=r"a\.npy: No space left on device"):
        prediction.save_npy(tmp_path / "a.npy")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == b"old"
