"""The examples as a reader runs them, compared with run_onnx.py, and the page that shows them."""

import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

import depthzoo
from export import run_onnx, to_onnx
from export.run_onnx import OnnxDepth, size_warning
from export.to_onnx import describe
from tests.export.noise import noise

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "export" / "examples"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with PYTHONPATH=export."""
    monkeypatch.syspath_prepend(ROOT / "export")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def refused(module: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the last line on stderr of a command that must fail."""
    try:
        code = module.main(arguments)
    except SystemExit as exit_:
        code = exit_.code
    line = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and line.startswith(f"{module.__name__}: error: ")
    return line


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of two shapes in turn, one of them turned by EXIF, and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(60, 80, 0).save(folder / "a.png")
    noise(80, 60, 1).save(folder / "b.png")
    noise(120, 160, 2).save(folder / "c.JPG")
    noise(60, 80, 3).save(folder / "d.png", exif=exif)
    noise(30, 40, 4).save(folder / "e.webp", lossless=True)
    (folder / "notes.txt").write_text("not a picture by its name")
    return folder


@pytest.mark.parametrize("kind", ["float32", "uint8"])
def test_a_folder_in_batches(
    kind: str,
    tiny_file: Path,
    uint8_file: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = load("folder")
    file = {"float32": tiny_file, "uint8": uint8_file}[kind]
    batches: list[int] = []
    run = folder.OnnxDepth.run

    def counted(model: OnnxDepth, images: np.ndarray) -> np.ndarray:
        batches.append(len(images))
        depth: np.ndarray = run(model, images)
        return depth

    monkeypatch.setattr(folder.OnnxDepth, "run", counted)
    assert folder.main([str(file), str(photos), "--out", str(tmp_path / "out"), "--batch", "2"]) == 0
    assert sorted(batches) == {"float32": [1, 2, 2], "uint8": [1, 1, 1, 2]}[kind]
    model = OnnxDepth(file)
    for path in sorted(photos.iterdir()):
        if path.suffix != ".txt":
            saved = np.asarray(Image.open(tmp_path / "out" / f"{path.stem}.depth.png"))
            expected = model.predict(Image.open(path))
            # A batch may round another way than a picture alone.
            assert saved.shape == expected.shape
            assert np.abs(saved - expected * 1000).max() <= 1
    assert len(list((tmp_path / "out").iterdir())) == 10


def test_a_bad_picture_does_not_stop_a_folder(
    tiny_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "bad.jpg").write_text("hello")
    assert load("folder").main([str(tiny_file), str(photos), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("folder: error: ") and "bad.jpg" in error and error.count("\n") == 1
    assert len(list((tmp_path / "out").iterdir())) == 10


def test_an_example_copied_beside_run_onnx(tiny_file: Path, photos: Path, tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    for path in (ROOT / "export" / "run_onnx.py", EXAMPLES / "folder.py"):
        shutil.copy(path, project)
    command = [sys.executable, "-I", "-c", "import runpy, sys; sys.argv = sys.argv[1:]\n"]
    command[-1] += "sys.path.insert(0, 'project'); runpy.run_path(sys.argv[0], run_name='__main__')"
    command += ["project/folder.py", str(tiny_file), "photos", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 10


def test_no_ffmpeg(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install ffmpeg" in refused(load("video"), [str(tiny_file), "a.mp4", "b.mp4"], capsys)


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Seven frames of odd size, ten a second, by ffmpeg."""
    if not (shutil.which("ffmpeg") and shutil.which("ffprobe")):
        pytest.skip("no ffmpeg and ffprobe on the PATH")
    for index in range(7):
        noise(41, 61, index).save(tmp_path / f"{index}.png")
    command = ["ffmpeg", "-v", "error", "-framerate", "10", "-i", str(tmp_path / "%d.png"), "-c:v", "ffv1"]
    subprocess.run([*command, str(tmp_path / "film.mkv")], check=True)
    return tmp_path / "film.mkv"


def test_a_video(tiny_file: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "depth.avi"
    assert load("video").main([str(tiny_file), str(film), str(target)]) == 0
    assert capsys.readouterr().out == f"7 frames -> {target}\n"
    command = ["ffprobe", "-v", "error", "-count_frames", "-of", "csv=p=0", "-show_entries"]
    command += ["stream=width,height,r_frame_rate,nb_read_frames", str(target)]
    probe = subprocess.run(command, capture_output=True, text=True, check=True)
    assert probe.stdout.strip() == "122,42,10/1,7"
    shown = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", target, "-frames:v", "1", "-f", "image2pipe", "-c:v", "ppm", "-"],
        capture_output=True,
        check=True,
    )
    left = np.asarray(Image.open(io.BytesIO(shown.stdout)))[:41, :61].astype(int)
    assert np.abs(left - np.asarray(noise(41, 61, 0))).mean() < 12
    assert not list(tmp_path.glob(".*"))


def test_videos_that_cannot_be_used(
    tiny_file: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, model = load("video"), str(tiny_file)
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "cut.mkv").write_bytes(film.read_bytes()[:600])
    for source, target, message in [
        ("missing.mp4", "out.avi", "missing.mp4"),
        ("film.mkv", "film.mkv", "both source and target"),
        ("text.mp4", "out.avi", "text.mp4"),
        ("cut.mkv", "out.avi", "cut.mkv"),
        ("film.mkv", "out.nothing", "ffmpeg: "),
        ("film.mkv", "missing/out.avi", "ffmpeg: "),
    ]:
        assert message in refused(video, [model, str(tmp_path / source), str(tmp_path / target)], capsys)
    assert not list(tmp_path.glob("out*")) and not list(tmp_path.glob(".*"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The C++ example, built."""
    if not os.environ.get("ONNXRUNTIME_ROOT"):
        pytest.skip("ONNXRUNTIME_ROOT is unset: no onnxruntime with C++ headers")
    if not shutil.which("cmake"):
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("build")
    for command in (
        ["cmake", "-S", str(EXAMPLES / "cpp"), "-B", str(build)],
        ["cmake", "--build", str(build)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "depth"


@pytest.mark.slow
def test_cpp(program: Path, tiny_file: Path, uint8_file: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True)  # type: ignore[list-item]

    for height, width in [(48, 64), (700, 500), (31, 90)]:
        noise(height, width).save(tmp_path / "image.ppm")
        content = (tmp_path / "image.ppm").read_bytes()
        (tmp_path / "image.ppm").write_bytes(b"P6\n# a comment\n" + content[3:])
        done = run(uint8_file, "image.ppm", "depth.pgm")
        assert done.returncode == 0, done.stderr
        saved = np.asarray(Image.open(tmp_path / "depth.pgm")).astype(np.float64)
        difference = np.abs(saved / 1000 - OnnxDepth(uint8_file).predict(noise(height, width)))
        assert saved.shape == (height, width) and difference.max() < 1e-3
    noise().save(tmp_path / "image.png")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "image.ppm").read_bytes()[:99])
    for arguments, message in [
        ([], "usage: depth MODEL.onnx"),
        ([uint8_file, "image.ppm", "out.pgm", "gpu"], "usage: depth MODEL.onnx"),
        ([uint8_file, "missing.ppm", "out.pgm"], "missing.ppm: cannot be read"),
        ([uint8_file, "image.png", "out.pgm"], "image.png: not a binary PPM"),
        ([uint8_file, "cut.ppm", "out.pgm"], "cut.ppm: cut off"),
        (["missing.onnx", "image.ppm", "out.pgm"], "missing.onnx"),
        ([tiny_file, "image.ppm", "out.pgm"], "not made by export/to_onnx.py --uint8"),
    ]:
        done = run(*arguments)
        assert done.returncode == 2 and message in done.stderr, arguments


def test_the_readme(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python runs, and the options of its commands exist."""
    text = (ROOT / "export" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_file, "unet_mobilenet_v3.onnx")
    noise(60, 80).save("photo.jpg")
    names: dict[str, Any] = {"images": np.zeros((2, 3, 64, 96), np.float32)}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert names["depth"].shape == (60, 80) and names["depths"].shape == (2, 1, 64, 96)
    scripts = {"to_onnx.py": to_onnx, "run_onnx.py": run_onnx, "folder.py": load("folder")}
    for script, module in scripts.items():
        with pytest.raises(SystemExit):
            module.main(["--help"])
        options = set(re.findall(r"--[a-z0-9-]+", capsys.readouterr().out))
        used = set(re.findall(rf"{re.escape(script)}.*?(--[a-z0-9-]+)", text))
        assert used and used <= options


def test_the_page_puts_no_two_onnxruntimes_into_one_environment() -> None:
    text = (ROOT / "export" / "README.md").read_text()
    installed: dict[str, str] = {}
    for pip, packages in re.findall(r"^(\S*pip) install ([^#\n]*)", text, re.MULTILINE):
        installed[pip] = f"{installed.get(pip, '')} {packages}"
    assert len(installed) == 2
    assert not [words for words in installed.values() if "[export]" in words and "onnxruntime" in words]


def test_the_sizes_that_the_page_shows_work() -> None:
    """They are near those that the weights were trained at."""
    text = (ROOT / "export" / "README.md").read_text()
    shown = re.findall(r"(?:--size |size=\()(\d+)(?:x|, )(\d+)", text)
    facts = describe(depthzoo.create_model("unet_mobilenet_v3"))
    assert shown and facts["trained_sizes"]
    for height, width in shown:
        assert not size_warning(facts, (int(height), int(width))), (height, width)
