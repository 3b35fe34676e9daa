"""The reference consumer: metres, images, errors and the command; and that it needs no PyTorch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

import depthzoo
from depthzoo.camera import CANONICAL_FOCAL
from depthzoo.models import DepthModel
from depthzoo.prediction import working_size
from depthzoo.visualize import colorize
from export import run_onnx
from export.run_onnx import OnnxDepth, OnnxError, fit, main, open_image, size_warning, to_rgb
from tests.export.noise import noise

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "export" / "run_onnx.py"


@pytest.fixture(scope="session")
def model(tiny_file: Path) -> OnnxDepth:
    return OnnxDepth(tiny_file, size=(64, 96))


# -- depth ------------------------------------------------------------------------------------------------


def test_same_metres_as_pytorch(tiny: DepthModel, model: OnnxDepth) -> None:
    image = noise(64, 96)
    with torch.inference_mode():
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
        expected = tiny(tensor)[0, 0].numpy()
    depth = model.predict(image)
    assert depth.shape == (64, 96) and depth.dtype == np.float32
    assert np.abs(depth - expected).max() < 1e-4


@pytest.mark.parametrize("shape", [(50, 70), (131, 200), (200, 64), (1, 1)])
def test_same_metres_as_the_predictor(tiny: DepthModel, model: OnnxDepth, shape: tuple[int, int]) -> None:
    """Including the resizing of images larger and smaller than the working size."""
    expected = depthzoo.Predictor(tiny, device="cpu", size=(64, 96))(noise(*shape)).depth
    difference = np.abs(model.predict(noise(*shape)) - expected)
    assert expected.shape == shape
    # An image's bytes may round differently once in a while; the depth of this network spans metres.
    assert difference.max() < 1e-2 and difference.mean() < 5e-4


def test_the_working_size_is_the_predictors() -> None:
    draw = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in np.exp(draw.uniform(0, 9, 2)).round())
        size = (int(draw.integers(1, 20)) * 32, int(draw.integers(1, 20)) * 32)
        assert fit(height, width, size, 32) == working_size(height, width, size), (height, width, size)


def test_exif_orientation(model: OnnxDepth, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise().rotate(90, expand=True).save(tmp_path / "turned.png", exif=exif)
    turned = open_image(tmp_path / "turned.png")
    assert turned.size == (50, 70)
    assert np.array_equal(model.predict(turned), model.predict(noise()))


def test_every_image_mode_becomes_rgb() -> None:
    grey = Image.new("L", (3, 2), 100)
    wide = Image.fromarray(np.full((2, 3), 100 * 257, np.uint16))
    clear = Image.new("RGBA", (3, 2), (10, 20, 30, 0))
    half = Image.new("LA", (3, 2), (100, 255))
    for image, color in [(grey, 100), (wide, 100), (wide.convert("I"), 100), (half, 100), (clear, 255)]:
        rgb = to_rgb(image)
        assert rgb.mode == "RGB" and rgb.size == (3, 2)
        assert (np.asarray(rgb) == color).all(), image.mode
    for mode in ("1", "P", "CMYK", "YCbCr", "HSV", "LAB"):
        assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


def test_a_focal_length_scales_the_depth(
    model: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path
) -> None:
    plain, canonical = model.predict(noise()), CANONICAL_FOCAL * 70
    assert model.metadata["canonical_focal"] == run_onnx.CANONICAL_FOCAL == CANONICAL_FOCAL
    assert np.array_equal(model.predict(noise(), canonical), plain)
    np.testing.assert_allclose(model.predict(noise(), 2 * canonical), 2 * plain, rtol=1e-6)
    portrait = noise().transpose(Image.Transpose.ROTATE_90)
    assert portrait.size[1] == 70
    np.testing.assert_allclose(
        model.predict(portrait, 2 * canonical), 2 * model.predict(portrait, canonical), rtol=1e-6
    )
    assert np.array_equal(model.predict(portrait, canonical), model.predict(portrait))
    for wrong in (0.0, -1.0, float("nan"), float("inf"), "35"):
        with pytest.raises(OnnxError, match="focal length must be a number of pixels above 0"):
            model.predict(noise(), wrong)  # type: ignore[call-overload]
    # 90 degrees across 70 pixels are 35 pixels of focal length.
    for name, words in (("a", ["--focal", "35"]), ("b", ["--fov", "90"])):
        arguments = [str(tiny_file), str(photo), "--size", "64x96", "--out", str(tmp_path / name)]
        assert main([*arguments, *words]) == 0
        saved = np.asarray(Image.open(tmp_path / name / "photo.depth.png"))
        assert np.abs(saved - plain * 35 / canonical * 1000).max() <= 1


@pytest.mark.parametrize("orientation", [1, 6])
def test_the_focal_length_of_exif(
    tiny: DepthModel,
    model: OnnxDepth,
    tiny_file: Path,
    orientation: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As the library does it; a portrait keeps the focal length of its camera."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0xA405] = 50
    noise().save(tmp_path / "photo.jpg", exif=exif, quality=100)
    image = open_image(tmp_path / "photo.jpg")
    assert model.focal(image) == (pytest.approx(50 / 36 * 70), "EXIF")
    predictor = depthzoo.Predictor(tiny, device="cpu", size=(64, 96))
    np.testing.assert_allclose(
        model.predict(image), predictor(tmp_path / "photo.jpg").depth, rtol=1e-2, atol=1e-3
    )
    factor = 50 / 36 / CANONICAL_FOCAL
    canonical = model.predict(image, "canonical")
    np.testing.assert_allclose(model.predict(image), canonical * factor, rtol=1e-5)
    command = [str(tiny_file), str(tmp_path / "photo.jpg"), "--out", str(tmp_path)]
    for words, source in (([], "97 px (EXIF)"), (["--focal", "canonical"], "57 px (canonical)")):
        assert main([*command, *words]) == 0
        assert f"focal length {source}" in capsys.readouterr().out
    for film in (0, 1, 60000):
        exif.get_ifd(0x8769)[0xA405] = film
        noise().save(tmp_path / "photo.jpg", exif=exif)
        assert model.focal(open_image(tmp_path / "photo.jpg"))[1] == "canonical"


def test_several_images(model: OnnxDepth, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in one batch per shape, and come back in order."""
    images = [noise(50, 70, 0), noise(70, 50, 1), noise(100, 140, 2), noise(70, 50, 3)]
    batches: list[int] = []
    run = OnnxDepth.run
    monkeypatch.setattr(
        OnnxDepth, "run", lambda self, arrays: (batches.append(len(arrays)), run(self, arrays))[1]
    )
    depths = model.predict(images)
    assert batches == [2, 2]
    scaled = model.predict(images, [100, None, "canonical", 60])
    for index, image in enumerate(images):
        np.testing.assert_allclose(depths[index], model.predict(image), rtol=0, atol=1e-4)
    np.testing.assert_allclose(scaled[0], depths[0] * 100 / model.canonical(images[0]), rtol=1e-5)
    assert np.array_equal(scaled[1], depths[1]) and np.array_equal(scaled[2], depths[2])
    assert model.predict([]) == []
    with pytest.raises(OnnxError, match="1 focal lengths for 2 images"):
        model.predict(images[:2], [50])


def test_uint8_input(uint8_file: Path, tiny_file: Path) -> None:
    model = OnnxDepth(uint8_file)
    assert model.uint8 and model.size == (64, 96) and model.fixed is None
    image = noise(131, 200)
    depth = model.predict(image)
    assert depth.shape == (131, 200) and depth.dtype == np.float32
    assert np.abs(depth - OnnxDepth(tiny_file, size=(64, 96)).predict(image)).mean() < 5e-3
    batch = np.stack([np.asarray(image)] * 2)
    np.testing.assert_allclose(model.run(batch)[1, 0], depth, rtol=0, atol=1e-4)
    for wrong in (batch.astype(np.float32), batch.transpose(0, 3, 1, 2), batch[0], batch[..., :1]):
        with pytest.raises(OnnxError, match=r"must be uint8 \(N, H, W, 3\), got "):
            model.run(wrong)
    with pytest.raises(OnnxError, match="takes 64x96 only, not 96x128"):
        OnnxDepth(uint8_file, size=(96, 128))


def test_sizes_far_from_the_trained_ones_warn(tiny_file: Path, tmp_path: Path) -> None:
    file = onnx.load(tiny_file)
    file.metadata_props.add(key="trained_sizes", value="[[64, 96]]")
    onnx.save(file, tmp_path / "trained.onnx")
    with pytest.warns(UserWarning, match="size 160x192 is far from 64x96, which tiny is trained for"):
        OnnxDepth(tmp_path / "trained.onnx", size=(160, 192))
    known = {"trained_sizes": [[64, 96], [480, 640]], "name": "x"}
    assert (
        not size_warning(known, (192, 256)) and size_warning(known, (32, 32)) and not size_warning({}, (1, 1))
    )


# -- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 64, 96)), "must be float32"),
        (np.zeros((1, 64, 96, 3), np.float32), "must be float32"),
        (np.zeros((3, 64, 96), np.float32), "must be float32"),
        (np.zeros((0, 3, 64, 64), np.float32), "must be float32"),
        (np.zeros((1, 3, 64, 100), np.float32), "multiples of 32"),
        (np.full((1, 3, 64, 64), 255, np.float32), r"RGB in \[0, 1\], got values up to 255"),
    ],
)
def test_arrays_that_it_does_not_take(model: OnnxDepth, images: np.ndarray, message: str) -> None:
    with pytest.raises(OnnxError, match=message):
        model.run(images)


def test_a_fixed_size_takes_no_other(fixed_file: Path) -> None:
    assert OnnxDepth(fixed_file).predict(noise(90, 40)).shape == (90, 40)
    with pytest.raises(OnnxError, match="takes 64x96 only"):
        OnnxDepth(fixed_file).run(np.zeros((1, 3, 96, 64), np.float32))
    with pytest.raises(OnnxError, match="takes 64x96 only, not 96x64"):
        OnnxDepth(fixed_file, size=(96, 64))


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on stderr of a command that must fail."""
    try:
        code: object = main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith("run_onnx: error: ")
    return line


def test_files_that_are_not_ours(
    tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.onnx"
    for content in (b"", b"hello", tiny_file.read_bytes()[:3000]):
        bad.write_bytes(content)
        assert "bad.onnx: onnxruntime cannot load it" in refused([str(bad), str(photo)], capsys)
    foreign = onnx.load(tiny_file)
    for keep in ({}, {"format": "depthzoo/1"}, {"format": "other/1", "input": "{}", "size": "[1, 1]"}):
        del foreign.metadata_props[:]
        onnx.helper.set_model_props(foreign, keep)
        onnx.save(foreign, bad)
        assert "not one made by depthzoo" in refused([str(bad), str(photo)], capsys)
    assert "no such file" in refused([str(tmp_path / "missing.onnx"), str(photo)], capsys)


def test_bad_images_do_not_stop_the_others(
    tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])
    for name in ("text.jpg", "cut.png", "missing.jpg"):
        out = tmp_path / name[:3]
        assert name in refused([str(tiny_file), str(tmp_path / name), str(photo), "--out", str(out)], capsys)
        assert (out / "photo.depth.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no image"),
        (["PHOTO", "other/photo.jpg"], "photo.png and other/photo.jpg have the same name"),
        (["PHOTO", "--size", "64"], "HEIGHTxWIDTH"),
        (["PHOTO", "--size", "64x100"], "multiples of 32"),
        (["PHOTO", "--size", "96000x96000"], "multiples of 32 up to 4096, not 96000x96000"),
        (["PHOTO", "--provider", "gpu"], "gpu"),
        (["PHOTO", "--out", "PHOTO"], "photo.png is a file; name a folder"),
        (["PHOTO", "--focal", "0"], "a focal length is a number of pixels above 0, or canonical, not '0'"),
        (["PHOTO", "--batch", "0"], "--batch"),
        (["PHOTO", "--fov", "180"], "--fov"),
        (["PHOTO", "--fov", "60", "--focal", "500"], "not allowed with"),
        (["--info", "--option", "use_tf32"], "KEY=VALUE"),
        (["--info", "--option", "use_tf32=0"], "the cpu provider has no option 'use_tf32'"),
        (["--info", "--threads", "-1"], "--threads"),
    ],
)
def test_bad_arguments(
    words: list[str], message: str, tiny_file: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(photo) if word == "PHOTO" else word for word in words]
    assert message in refused([str(tiny_file), *arguments], capsys)


def test_an_error_inside_onnxruntime_is_one_line(model: OnnxDepth, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no memory\nat line 3")

    monkeypatch.setattr(model, "session", type("Session", (), {"run": fail})())
    with pytest.raises(OnnxError, match=r"onnxruntime cannot run the model: \[ONNX.* no memory$"):
        model.run(np.zeros((1, 3, 64, 96), np.float32))


# -- providers --------------------------------------------------------------------------------------------


def test_session_options(tiny_file: Path) -> None:
    key = "session.intra_op.allow_spinning"
    for options, expected in [({}, "0"), ({key: 1}, "1")]:
        chosen = OnnxDepth(tiny_file, threads=1, options=options).session.get_session_options()
        assert chosen.get_session_config_entry(key) == expected and chosen.intra_op_num_threads == 1


def test_onnxruntime_without_cuda(
    tiny_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for provider in ("cuda", "tensorrt"):
        line = refused([str(tiny_file), "--info", "--provider", provider], capsys)
        assert f"has no {provider}: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in line


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_gpu_provider_that_does_not_work_is_an_error(
    tiny_file: Path, provider: str, tmp_path: Path
) -> None:
    """In its own process: libraries that were tried stay loaded."""
    if run_onnx.PROVIDERS[provider] not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {provider}")
    command = [sys.executable, str(SCRIPT), str(tiny_file), "--info", "--provider", provider]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    if done.returncode == 0:
        pytest.skip(f"{provider} works here")
    assert done.returncode == 2
    assert "run_onnx: error: " in done.stderr.splitlines()[-1] and provider in done.stderr


def test_what_a_gpu_session_asks_for(tiny_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fallback to the CPU, options where they belong, CUDA behind TensorRT; a silent fallback is an error."""
    asked: list[Any] = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, path: str, settings: Any, providers: list[Any], **_: object) -> None:
            asked.append((settings.get_session_config_entry("session.disable_cpu_ep_fallback"), providers))
            super().__init__(path, onnxruntime.SessionOptions(), providers=["CPUExecutionProvider"])

        def get_providers(self) -> list[str]:
            return [asked[-1][1][0][0], "CPUExecutionProvider"]

    monkeypatch.setattr(run_onnx, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(run_onnx.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    OnnxDepth(tiny_file, "cuda", options={"use_tf32": 0, "session.intra_op.allow_spinning": 1})
    OnnxDepth(tiny_file, "tensorrt", options={"device_id": 1})
    cuda, tensorrt = "CUDAExecutionProvider", "TensorrtExecutionProvider"
    assert asked == [
        ("1", [(cuda, {"use_tf32": "0"})]),
        ("1", [(tensorrt, {"device_id": "1"}), (cuda, {"device_id": "1"})]),
    ]
    monkeypatch.setattr(Session, "get_providers", lambda _: ["CPUExecutionProvider"])
    with pytest.raises(OnnxError, match="cuda does not work here: onnxruntime fell back to the CPU"):
        OnnxDepth(tiny_file, "cuda")


# -- the command ------------------------------------------------------------------------------------------


def test_the_command(
    model: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    # Images may follow the flags.
    assert main([str(tiny_file), "--size", "64x96", "--threads", "1", "--out", str(out), str(photo)]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and "min " in line and "median " in line and "photo.depth.png" in line
    saved = Image.open(out / "photo.depth.png")
    assert saved.mode == "I;16" and saved.size == (70, 50)
    assert np.array_equal(np.asarray(saved), np.round(model.predict(noise()) * 1000))
    color = Image.open(out / "photo.color.png")
    assert color.mode == "RGB" and color.size == (70, 50)
    assert len(list(out.iterdir())) == 2


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_folder_in_batches(
    kind: str, tiny_file: Path, uint8_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad images are reported and skipped, results of earlier runs and other files ignored."""
    file = {"float32": tiny_file, "uint8": uint8_file}[kind]
    for name, image in [("a.png", noise(60, 80)), ("b.PNG", noise(80, 60, 1)), ("c.webp", noise(60, 80, 2))]:
        image.save(tmp_path / name, lossless=True)
    (tmp_path / "bad.jpg").write_text("hello")
    (tmp_path / "notes.txt").write_text("no image")
    for _ in range(2):
        assert main([str(file), str(tmp_path), "--out", str(tmp_path), "--batch", "2"]) == 2
        out, error = capsys.readouterr()
        assert out.count("\n") == 3 and error.count("\n") == 1 and "bad.jpg: not an image" in error
    assert len(list(tmp_path.iterdir())) == 5 + 2 * 3
    for name in ("a.png", "b.PNG", "c.webp"):
        saved = np.asarray(Image.open(tmp_path / f"{name[0]}.depth.png"))
        expected = OnnxDepth(file).predict(open_image(tmp_path / name))
        # A batch may round another way than an image alone.
        assert saved.shape == expected.shape and np.abs(saved - expected * 1000).max() <= 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty: no images in this folder" in refused([str(file), str(empty)], capsys)


def test_info(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = onnx.load(tiny_file)
    file.metadata_props.insert(0, onnx.StringStringEntryProto(key="recipe", value="pages of TOML"))
    onnx.save(file, tmp_path / "m.onnx")
    assert main([str(tmp_path / "m.onnx"), "--info"]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["name"] == "tiny" and "recipe" not in text
    assert len(text.splitlines()) == len(json.loads(text)) + 2  # a line each


def test_colors_look_like_the_librarys(tmp_path: Path) -> None:
    depth = np.linspace(1, 5, 100, dtype=np.float32)[None].repeat(20, axis=0)
    run_onnx.save(depth, tmp_path / "ramp")
    color = np.asarray(Image.open(tmp_path / "ramp.color.png")).astype(int)
    assert np.abs(color - colorize(depth)).mean() < 5
    far = run_onnx.save(np.full((4, 4), 100, np.float32), tmp_path / "far")
    assert np.asarray(Image.open(far)).max() == 65535


def test_ctrl_c_leaves_no_half_image(
    tiny_file: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(image: Image.Image, path: Path, kind: str) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert main([str(tiny_file), str(photo), "--out", str(tmp_path / "out")]) == 130
    assert not list((tmp_path / "out").iterdir())


# Runs a script with its arguments; importing anything but what a deployer has is an error.
WITHOUT_TORCH = """
import runpy, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "depthzoo", "onnx", "matplotlib", "scipy", "tqdm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_imports_no_torch(model: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    words = [str(SCRIPT), str(tiny_file), str(photo), "--size", "64x96", "--out", "out"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    saved = np.asarray(Image.open(tmp_path / "out" / "photo.depth.png"))
    assert np.abs(saved / 1000 - model.predict(noise())).max() < 1e-3


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    """Also where onnxruntime and onnxruntime-gpu were installed together and one was removed."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "m.onnx", "--info"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("run_onnx: error: cannot import name 'InferenceSession'")
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in done.stderr


@pytest.mark.slow
def test_an_environment_without_torch(model: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    """A virtual environment with numpy, pillow and onnxruntime, and a project that copied run_onnx.py."""
    python = str(tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python")
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    install = [python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"]
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    if done.returncode and not os.environ.get("CI"):
        pytest.skip(f"pip cannot install onnxruntime here: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    shutil.copy(SCRIPT, tmp_path)
    code = "import sys, numpy; from PIL import Image; from run_onnx import OnnxDepth\n"
    code += "model = OnnxDepth(sys.argv[1], size=(64, 96))\n"
    code += "numpy.save('depth.npy', model.predict(Image.open(sys.argv[2])))"
    command = [python, "-c", code, str(tiny_file), str(photo)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    assert np.abs(np.load(tmp_path / "depth.npy") - model.predict(noise())).max() < 1e-4
