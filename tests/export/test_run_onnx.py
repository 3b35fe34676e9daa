import ast
import ctypes
import json
import os
import re
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from depthzoo.camera import CANONICAL_FOCAL, depth_scale
from depthzoo.models import DepthModel
from depthzoo.predictor import Predictor, working_size
from depthzoo.visualize import colorize
from export import run_onnx
from export.run_onnx import Latency, OnnxDepth, OnnxError, fit, main, to_rgb

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
    expected = Predictor(tiny, device="cpu", size=(64, 96))(picture(*shape)).depth
    far = np.abs(session.predict(picture(*shape)) - expected)
    # A picture's bytes may round another way once in a while, a 255th; the depth of this network spans metres.
    assert far.max() < 1e-2 and far.mean() < 5e-4


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
    assert "multiple_of 32" in facts["input"]


def test_info_rounds_figures_and_groups_them() -> None:
    flip = {"per_image": {"abs_rel": 0.22567761173557574, "d1": 0.6365310812376809}}
    facts = {"name": "x", "metrics": {"protocol": "654 frames", "flip": flip}, "range": [0, 1.5]}
    assert sorted(run_onnx.info(facts)) == [
        ("metrics", "protocol 654 frames"),
        ("metrics.flip.per_image", "abs_rel 0.2257, d1 0.6365"),
        ("name", "x"),
        ("range", "[0, 1.5]"),
    ]


def test_pictures_may_follow_the_flags(tiny_file: Path, photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main([str(tiny_file), "--threads", "1", "--out", str(out), str(photo)]) == 0
    assert len(list(out.iterdir())) == 2


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
        (np.zeros((1, 3, 0, 64), np.float32), "must be float32"),
        (np.zeros((0, 3, 64, 64), np.float32), "must be float32"),
        (np.full((1, 3, 64, 64), 255, np.float32), "RGB in 0..1, got values up to 255"),
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
    for keep in ({}, {"format": "depthzoo/1"}, {"format": "other/1", "input": "{}", "size": "[1, 1]"}):
        del foreign.metadata_props[:]
        onnx.helper.set_model_props(foreign, keep)
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
        assert f"has no {provider}: pip uninstall -y onnxruntime onnxruntime-gpu, then pip install" in line


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


def test_what_is_left_of_two_onnxruntimes_says_how_to_mend_it(tmp_path: Path) -> None:
    """Both install into one folder; taking one away leaves the other without its modules."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").touch()
    command = [sys.executable, str(ROOT / "export" / "run_onnx.py"), "m.onnx", "--info"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "."}
    )
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("run_onnx: error: ")
    )
    assert "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install one of them" in done.stderr


def test_a_focal_length_scales_the_depth(
    session: OnnxDepth, tiny_file: Path, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = session.predict(picture())
    canonical = CANONICAL_FOCAL * 70
    assert np.array_equal(session.predict(picture(), canonical), plain)
    np.testing.assert_allclose(session.predict(picture(), 2 * canonical), 2 * plain, rtol=1e-6)
    # The width is that of the upright picture.
    turned = picture().rotate(90, expand=True)
    turned.getexif()[0x0112] = 6
    np.testing.assert_allclose(session.predict(turned, 2 * canonical), 2 * plain, rtol=1e-6)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OnnxError, match="focal length must be a number of pixels above 0"):
            session.predict(picture(), wrong)
    # 90 degrees across 70 pixels are 35 pixels of focal length.
    for name, words in (("a", ["--focal", "35"]), ("b", ["--fov", "90"])):
        assert (
            main([str(tiny_file), str(photo), "--size", "64x96", "--out", str(tmp_path / name), *words]) == 0
        )
        saved = np.asarray(Image.open(tmp_path / name / "photo.depth.png"))
        assert np.abs(saved - plain * 35 / canonical * 1000).max() <= 1
    # A file that was made for another camera says so.
    monkeypatch.setitem(session.metadata, "canonical_focal", CANONICAL_FOCAL / 2)
    np.testing.assert_allclose(session.predict(picture(), canonical), 2 * plain, rtol=1e-6)
    monkeypatch.delitem(session.metadata, "canonical_focal")
    assert np.array_equal(session.predict(picture(), canonical), plain)


def test_the_scale_is_the_librarys(session: OnnxDepth) -> None:
    assert session.metadata["canonical_focal"] == run_onnx.CANONICAL_FOCAL == CANONICAL_FOCAL
    for focal_px, width in ((721.5, 1242), (300.0, 640)):
        assert run_onnx.depth_scale({}, focal_px, width) == pytest.approx(
            depth_scale(focal_px, width), rel=1e-6
        )


def test_bad_cameras(tiny_file: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--focal", "0"], ["--focal", "nan"], ["--fov", "180"], ["--fov", "0"], ["--fov", "nan"]):
        assert words[0] in refused([str(tiny_file), str(photo), *words], capsys)
    assert "not allowed with" in refused(
        [str(tiny_file), str(photo), "--fov", "60", "--focal", "500"], capsys
    )


def test_a_size_far_from_the_trained_ones_warns(
    session: OnnxDepth,
    tiny_file: Path,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = onnx.load(tiny_file)
    model.metadata_props.add(key="trained_sizes", value="[[64, 96]]")
    file = tmp_path / "trained.onnx"
    onnx.save(model, file)
    arguments = [str(file), str(photo), "--out", str(tmp_path)]
    line = "run_onnx: warning: size 160x192 is far from 64x96, which tiny is trained for: depth will be off\n"
    for size, expected in (("64x96", ""), ("96x64", ""), ("160x192", line), ("32x32", "size 32x32 is far")):
        assert main([*arguments, "--size", size]) == 0
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == bool(expected)
    assert main([str(file), "--size", "160x192", "--benchmark", "1"]) == 0 and not capsys.readouterr().err
    with pytest.warns(UserWarning, match="size 160x192 is far from 64x96") as caught:
        OnnxDepth(file, size=(160, 192)).predict(picture())
    assert caught[0].filename == __file__
    # Between two that are known to be good, and where nothing is known, there is nothing to say.
    assert not run_onnx.size_warning({"trained_sizes": [[64, 96], [480, 640]], "name": "x"}, (192, 256))
    assert not session.warning


def test_the_reference_stays_short() -> None:
    tree = ast.parse((ROOT / "export" / "run_onnx.py").read_text())
    (reference,) = (part for part in tree.body if isinstance(part, ast.ClassDef) and part.name == "OnnxDepth")
    assert (reference.end_lineno or 0) - reference.lineno < 100


def test_bound_buffers_give_the_same_and_are_reused(session: OnnxDepth) -> None:
    images = np.random.default_rng(0).random((2, 3, 64, 96), np.float32)
    first = session.bind(images)
    assert np.array_equal(first.run().numpy(), session.run(images))
    again = session.bind(images[::-1])  # and not contiguous
    assert again is first
    assert np.array_equal(again.run().numpy(), session.run(np.ascontiguousarray(images[::-1])))
    for width in range(32, 32 * 12, 32):
        assert session.bind(np.zeros((1, 3, 32, width), np.float32)).run().shape() == [1, 1, 32, width]
        assert len(session.buffers) <= run_onnx.KEPT_SHAPES


def test_uint8_input(uint8_file: Path, tiny_file: Path) -> None:
    model = OnnxDepth(uint8_file)
    assert model.uint8 and model.size == (64, 96) and model.fixed is None
    image = picture(131, 200)
    depth = model.predict(image)
    assert depth.shape == (131, 200) and depth.dtype == np.float32
    # Resized inside without rounding to bytes, so not equal to the last digit.
    assert np.abs(depth - OnnxDepth(tiny_file, size=(64, 96)).predict(image)).mean() < 5e-3
    batch = np.stack([np.asarray(image)] * 2)
    # A batch may be computed in another order than a picture alone.
    np.testing.assert_allclose(model.run(batch)[1, 0], depth, rtol=0, atol=1e-4)
    assert np.array_equal(model.bind(batch).run().numpy(), model.run(batch))
    assert model.blank(3).shape == (3, 64, 96, 3)
    for wrong in (batch.astype(np.float32), batch.transpose(0, 3, 1, 2), batch[0], batch[..., :1]):
        with pytest.raises(OnnxError, match=r"must be uint8 \(N, H, W, 3\), got "):
            model.run(wrong)
    with pytest.raises(OnnxError, match="takes 64x96 only, not 96x128"):
        OnnxDepth(uint8_file, size=(96, 128))


def test_an_error_inside_onnxruntime_is_one_line(session: OnnxDepth, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : no memory\nat line 3")

    images = session.blank()
    monkeypatch.setattr(session.session, "run", fail)
    with pytest.raises(OnnxError, match=r"onnxruntime cannot run it on cpu: \[ONNX.* no memory$"):
        session.run(images)


def test_options_of_the_session(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = "session.intra_op.allow_spinning"
    for options, expected in [({}, "0"), ({key: 1}, "1")]:
        chosen = OnnxDepth(tiny_file, threads=1, options=options).session.get_session_options()
        assert chosen.get_session_config_entry(key) == expected and chosen.intra_op_num_threads == 1
    with pytest.raises(OnnxError, match="the cpu provider has no option 'use_tf32'"):
        OnnxDepth(tiny_file, options={"use_tf32": 0})
    for text in ("use_tf32", "=1", "use_tf32="):
        assert "KEY=VALUE" in refused([str(tiny_file), "--info", "--option", text], capsys)
    assert "--threads" in refused([str(tiny_file), "--info", "--threads", "-1"], capsys)


Part = namedtuple("Part", "ep_name get_nodes")
Node = namedtuple("Node", "op_type")


class Pretender(onnxruntime.InferenceSession):  # type: ignore[misc]
    """Runs on the CPU, whatever is asked for, and says that it runs on a GPU."""

    asked: ClassVar[list[Any]] = []
    ran: ClassVar[list[str]] = []
    providers: ClassVar[list[str]] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    parts: ClassVar[list[Part]] = []

    def __init__(self, path: str, settings: Any, providers: list[Any], **_: object) -> None:
        self.asked.append(providers)
        super().__init__(path, settings, providers=["CPUExecutionProvider"])

    def get_providers(self) -> list[str]:
        return self.providers

    def get_provider_graph_assignment_info(self) -> list[Part]:
        return self.parts

    def run_with_iobinding(self, binding: Any, options: Any = None) -> None:
        self.ran.append(options.get_run_config_entry("gpu_graph_id"))
        super().run_with_iobinding(binding, options)


@pytest.fixture
def pretender(monkeypatch: pytest.MonkeyPatch) -> type[Pretender]:
    for name in ("asked", "ran", "parts"):
        monkeypatch.setattr(Pretender, name, [])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Pretender)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(run_onnx.PROVIDERS.values()))
    monkeypatch.setattr(onnxruntime, "set_default_logger_severity", lambda _: None)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: print("what it says is not for the user"))
    monkeypatch.setattr(run_onnx, "missing_library", lambda _: None)
    return Pretender


def test_a_gpu_runs_bound_buffers(
    pretender: type[Pretender],
    tiny_file: Path,
    session: OnnxDepth,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    devices = []
    allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type

    def on_the_cpu(shape: Any, dtype: Any, *device: object) -> Any:
        devices.append(device)
        return allocate(shape, dtype)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_shape_and_type", on_the_cpu)
    options = {"device_id": 1, "enable_cuda_graph": 1, "session.intra_op.allow_spinning": "1"}
    model = OnnxDepth(tiny_file, "cuda", size=(64, 96), options=options)
    assert pretender.asked == [[("CUDAExecutionProvider", {"device_id": "1", "enable_cuda_graph": "1"})]]
    assert set(devices) == {("cuda", 1)}
    # It has warmed up at the working size; every shape has a graph of its own.
    assert pretender.ran == ["1"]
    assert np.array_equal(model.predict(picture(64, 96)), session.predict(picture(64, 96)))
    assert model.run(model.blank(2)).shape == (2, 1, 64, 96)
    model.run(model.blank(1))
    assert pretender.ran == ["1", "1", "2", "1"]
    assert capsys.readouterr().out == ""


def test_tensorrt_leaves_to_cuda_what_it_lacks(
    pretender: type[Pretender], tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pretender, "providers", ["TensorrtExecutionProvider"])
    run_onnx.open_session(tiny_file, "tensorrt", options={"device_id": 1, "trt_fp16_enable": True})
    assert pretender.asked == [
        [
            ("TensorrtExecutionProvider", {"device_id": "1", "trt_fp16_enable": "True"}),
            ("CUDAExecutionProvider", {"device_id": "1"}),
        ]
    ]


def test_a_silent_fallback_is_an_error(
    pretender: type[Pretender], tiny_file: Path, uint8_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [Part("CUDAExecutionProvider", lambda: [Node("Conv")])]
    parts.append(Part("CPUExecutionProvider", lambda: [Node("Slice"), Node("Slice"), Node("Resize")]))
    monkeypatch.setattr(Pretender, "parts", parts)
    with pytest.raises(OnnxError, match=r"cuda leaves operators to the CPU: {'Slice': 2, 'Resize': 1}"):
        run_onnx.open_session(tiny_file, "cuda")
    # A file that resizes computes sizes, which belong on the CPU; its pixels do not.
    with pytest.raises(OnnxError, match=r"cuda leaves operators to the CPU: {'Resize': 1}"):
        run_onnx.open_session(uint8_file, "cuda")
    monkeypatch.setattr(Pretender, "providers", ["CPUExecutionProvider"])
    with pytest.raises(OnnxError, match="cuda does not work here: it fell back to the CPU"):
        run_onnx.open_session(tiny_file, "cuda")


def test_where_onnxruntime_put_the_operators(tiny_file: Path) -> None:
    settings = onnxruntime.SessionOptions()
    settings.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(tiny_file, settings, providers=["CPUExecutionProvider"])
    left = run_onnx.left_on_cpu(session)
    assert left["Conv"] == 4 and left["Concat"] == 1 and left["Resize"] >= 3


class Driver:
    """What libcuda answers."""

    def __init__(self, code: int = 0, version: int = 13000) -> None:
        self.code, self.version = code, version

    def cuInit(self, _: int) -> int:
        return self.code

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"no CUDA-capable device is detected"
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.version
        return 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks at Linux libraries")
@pytest.mark.parametrize(
    ("driver", "missing", "reason"),
    [
        (None, "", "no NVIDIA driver (libcuda.so.1 is not found)"),
        (Driver(code=100), "", "the NVIDIA driver says: no CUDA-capable device is detected (100)"),
        (Driver(version=12040), "", "the NVIDIA driver is for CUDA 12.4, this onnxruntime needs CUDA 13.0"),
        (Driver(), "providers_cuda", "libx.so: cannot open (pip install 'onnxruntime-gpu[cuda,cudnn]')"),
        (Driver(), "cudnn", "libx.so: cannot open (pip install 'onnxruntime-gpu[cuda,cudnn]')"),
        (Driver(), "nothing", None),
    ],
)
def test_what_is_missing_is_named(
    driver: Driver | None, missing: str, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> object:
        if "libcuda" in name and driver:
            return driver
        if "libcuda" in name or missing in name:
            raise OSError("libx.so: cannot open\nand more")
        return object()

    monkeypatch.setattr(ctypes, "CDLL", load)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0", raising=False)
    assert run_onnx.missing_library("cuda") == reason


def test_the_runs_take_turns_and_the_first_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    order: list[str] = []
    costs = {"a": iter([7.0, 9.0, 1.0, 3.0, 2.0]), "b": iter([8.0, 9.0, 10.0, 10.0, 40.0])}

    def run(name: str) -> None:
        order.append(name)
        clock[0] += next(costs[name])

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    runs = {"a": lambda: run("a"), "b": lambda: run("b")}
    # Already the first round is over the time: three are made nevertheless, and no fourth.
    latency = run_onnx.interleave(runs, rounds=9, seconds=1)
    assert order == ["a", "b"] * 5
    assert latency["a"] == Latency(first=7000, median=2000, quickest=1000, slowest=3000, runs=3)
    assert latency["b"] == Latency(first=8000, median=10000, quickest=10000, slowest=40000, runs=3)


def test_a_first_run_that_came_before(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    latency = run_onnx.interleave({"a": lambda: calls.append(1)}, rounds=4, first={"a": 5.0})
    assert latency["a"].first == 5 and latency["a"].runs == 4 and len(calls) == 5
    assert latency["a"].quickest <= latency["a"].median <= latency["a"].slowest


def test_the_benchmark(tiny_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tiny_file), "--size", "64x96", "--benchmark", "2", "--threads", "1"]) == 0
    where, figures = capsys.readouterr().out.splitlines()
    assert where.startswith(f"{tiny_file}: cpu, 2x64x96, ready after ")
    assert re.fullmatch(r" *[\d.]+ ms \([\d.]+ to [\d.]+, 30 runs\); first run [\d.]+ ms", figures)
    assert "--benchmark 1 or more" in refused([str(tiny_file), "--benchmark", "0"], capsys)


def test_too_little_memory(
    tiny_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(run_onnx, "fit", fail)
    assert "not enough memory" in refused([str(tiny_file), str(photo)], capsys)


def test_ctrl_c_leaves_no_half_picture(
    tiny_file: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(image: Image.Image, path: Path, kind: str) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupt)
    assert main([str(tiny_file), str(photo), "--out", str(photo.parent / "out")]) == 130
    assert capsys.readouterr().err == "run_onnx: interrupted\n"
    assert not list((photo.parent / "out").iterdir())
