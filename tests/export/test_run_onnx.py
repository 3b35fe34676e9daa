import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from depthzoo.models import DepthModel
from depthzoo.predictor import Predictor, working_size
from depthzoo.visualize import colorize
from export import run_onnx
from export.run_onnx import OnnxDepth, OnnxError, fit, main, to_rgb

ROOT = Path(__file__).resolve().parents[2]


def picture(height: int = 50, width: int = 70) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 3, y * 4, (x + y) * 2], axis=-1).clip(0, 255).astype(np.uint8))


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    picture().save(path)
    return path


@pytest.fixture(scope="session")
def session(tiny_file: Path) -> OnnxDepth:
    return OnnxDepth(tiny_file, size=(64, 96))


def test_it_runs_without_torch(tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as exit: assert exit.code == 0, exit.code\n"
        "print(sorted({'torch', 'depthzoo', 'onnx', 'matplotlib'} & sys.modules.keys()))\n"
    )
    arguments = [str(ROOT / "export" / "run_onnx.py"), str(tiny_file), str(photo), "--out", "out"]
    command = [sys.executable, "-I", "-c", code, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and done.stdout.endswith("[]\n")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo.depth.png", "photo.preview.png"]


def test_same_metres_as_pytorch(tiny: DepthModel, session: OnnxDepth) -> None:
    image = picture(64, 96)
    with torch.inference_mode():
        expected = tiny(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255)[0, 0].numpy()
    depth = session.predict(image)
    assert depth.shape == (64, 96) and depth.dtype == np.float32
    assert np.abs(depth - expected).max() < 1e-4


@pytest.mark.parametrize("shape", [(50, 70), (131, 200), (200, 64)])
def test_same_metres_as_the_predictor(tiny: DepthModel, session: OnnxDepth, shape: tuple[int, int]) -> None:
    """Resizing included, of pictures larger and smaller than the working size."""
    expected = Predictor(tiny, device="cpu", size=(64, 96)).predict(picture(*shape)).depth
    # A picture's bytes may round another way once in a while, a 255th.
    assert np.abs(session.predict(picture(*shape)) - expected).max() < 2e-3


def test_depth_has_the_size_of_the_picture(session: OnnxDepth, tiny_fixed_file: Path) -> None:
    assert session.predict(picture(50, 71)).shape == (50, 71)
    assert session.predict(picture(1, 1)).shape == (1, 1)
    fixed = OnnxDepth(tiny_fixed_file)
    assert fixed.fixed == (64, 96)
    assert fixed.predict(picture(90, 40)).shape == (90, 40)


def test_the_working_size_is_the_predictors() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in np.exp(draw.uniform(0, 9, 2)).round())
        size = (int(draw.integers(1, 20)) * 32, int(draw.integers(1, 20)) * 32)
        assert fit(height, width, size, 32) == working_size(height, width, size), (height, width, size)
    assert fit(480, 640, (480, 640), 32) == (480, 640)
    assert fit(640, 480, (480, 640), 32) == (640, 480)


def test_files_written(session: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    assert main([str(tiny_file), str(photo), "--size", "64x96", "--out", str(tmp_path / "a" / "b")]) == 0
    saved = Image.open(tmp_path / "a" / "b" / "photo.depth.png")
    assert saved.mode == "I;16" and saved.size == (70, 50)
    expected = np.round(session.predict(picture()) * 1000)
    assert np.array_equal(np.asarray(saved), expected)
    preview = Image.open(tmp_path / "a" / "b" / "photo.preview.png")
    assert preview.mode == "RGB" and preview.size == (70, 50)


def test_the_preview_looks_like_the_librarys(tmp_path: Path) -> None:
    depth = np.linspace(1, 5, 100, dtype=np.float32)[None].repeat(20, axis=0)
    _, path = run_onnx.save(depth, tmp_path / "ramp")
    preview = np.asarray(Image.open(path)).astype(int)
    assert np.abs(preview - colorize(depth)).mean() < 5
    assert preview[0, 0, 0] > preview[0, 0, 2] and preview[0, -1, 0] < preview[0, -1, 2]


def test_a_flat_or_far_depth_can_be_saved(tmp_path: Path) -> None:
    path, _ = run_onnx.save(np.full((4, 4), 100, np.float32), tmp_path / "flat")
    assert np.asarray(Image.open(path)).max() == 65535


def test_exif_orientation(session: OnnxDepth, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned = run_onnx.open_picture(tmp_path / "turned.png")
    assert turned.size == (50, 70)
    assert np.array_equal(session.predict(turned), session.predict(picture()))


def test_every_kind_of_picture_becomes_rgb() -> None:
    grey = Image.new("L", (3, 2), 100)
    wide = Image.fromarray(np.full((2, 3), 100 * 257, np.uint16))
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    half = Image.new("LA", (3, 2), (100, 255))
    for image, colour in [(grey, 100), (wide, 100), (wide.convert("I"), 100), (half, 100), (clear, 255)]:
        rgb = to_rgb(image)
        assert rgb.mode == "RGB" and rgb.size == (3, 2)
        assert (np.asarray(rgb) == colour).all(), image.mode
    for mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LAB"):
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_info(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_file), "--info"]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["name"] == "tiny" and facts["unit"] == "m"
    assert facts["input.multiple_of"] == "32"
    assert float(facts["parity.max"]) < 1e-4


def test_line_per_picture(tiny_file: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_file), str(photo), "--out", str(photo.parent / "out")]) == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "min " in out and "median " in out and "photo.depth.png" in out


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 64, 96)), "must be float32"),
        (np.zeros((1, 3, 64, 96), np.uint8), "must be float32"),
        (np.zeros((1, 64, 96, 3), np.float32), "must be float32"),
        (np.zeros((3, 64, 96), np.float32), "must be float32"),
        (np.zeros((1, 3, 64, 100), np.float32), "multiples of 32"),
        (np.zeros((1, 3, 0, 64), np.float32), "multiples of 32"),
    ],
)
def test_arrays_that_it_does_not_take(session: OnnxDepth, images: np.ndarray, message: str) -> None:
    with pytest.raises(OnnxError, match=message):
        session.run(images)


def test_a_fixed_size_takes_no_other(tiny_fixed_file: Path) -> None:
    with pytest.raises(OnnxError, match="takes 64x96 only"):
        OnnxDepth(tiny_fixed_file).run(np.zeros((1, 3, 96, 64), np.float32))
    with pytest.raises(OnnxError, match="takes 64x96 only, not 96x64"):
        OnnxDepth(tiny_fixed_file, size=(96, 64))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that is refused."""
    try:
        code: object = main(arguments)
    except SystemExit as error:
        code = error.code
    error_text = capsys.readouterr().err
    assert code == 2 and error_text.startswith("run_onnx: error: ") and error_text.count("\n") == 1
    return error_text


def test_files_that_are_no_model_of_ours(
    tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.onnx"
    for content in (b"", b"hello", tiny_file.read_bytes()[:3000]):
        bad.write_bytes(content)
        assert "bad.onnx: onnxruntime cannot load it" in refused([str(bad), str(photo)], capsys)
    foreign = onnx.load(tiny_file)
    del foreign.metadata_props[:]
    onnx.save(foreign, bad)
    assert "not one made by depthzoo" in refused([str(bad), str(photo)], capsys)
    assert "no such file" in refused([str(tmp_path / "missing.onnx"), str(photo)], capsys)
    assert "no such file" in refused([str(tmp_path), str(photo)], capsys)


def test_bad_pictures_do_not_stop_the_others(
    tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    for name in ("text.jpg", "empty.jpg", "cut.png", "missing.jpg"):
        arguments = [str(tiny_file), str(tmp_path / name), str(photo), "--out", str(tmp_path / name[:3])]
        assert name in refused(arguments, capsys)
        assert (tmp_path / name[:3] / "photo.depth.png").exists()


def test_too_large_a_picture(
    tiny_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "too large" in refused([str(tiny_file), str(photo)], capsys)


def test_bad_arguments(
    tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, image = str(tiny_file), str(photo)
    assert "no picture" in refused([model], capsys)
    assert "'photo'" in refused([model, image, str(tmp_path / "other" / "photo.jpg")], capsys)
    assert "HEIGHTxWIDTH" in refused([model, image, "--size", "64"], capsys)
    assert "multiples of 32" in refused([model, image, "--size", "64x100"], capsys)
    assert "gpu" in refused([model, image, "--provider", "gpu"], capsys)
    assert "photo.png" in refused([model, image, "--out", image], capsys)


def test_onnxruntime_without_cuda(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for provider in ("cuda", "tensorrt"):
        line = refused([str(tiny_file), "--info", "--provider", provider], capsys)
        assert f"has no {provider}" in line and "onnxruntime-gpu" in line


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_that_does_not_work_is_an_error(tiny_file: Path, provider: str, tmp_path: Path) -> None:
    """In a process of its own: what is tried stays loaded."""
    if run_onnx.PROVIDERS[provider] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    script = str(ROOT / "export" / "run_onnx.py")
    command = [sys.executable, script, str(tiny_file), "--info", "--provider", provider]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip(f"{provider} works here")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{provider} does not work here: " in done.stderr


def test_metadata_is_decoded(session: OnnxDepth) -> None:
    assert session.metadata["depth_range"] == [0.001, 10.0]
    assert session.metadata["name"] == "tiny"
    assert json.dumps(session.metadata)
