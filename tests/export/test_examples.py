"""The examples as a reader would run them, and what they give against run_onnx.py."""

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

from depthzoo.models import create_model
from export.facts import describe
from export.run_onnx import OnnxDepth, size_warning

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "export" / "examples"


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an example appends to it is gone after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def refused(module: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command that is refused."""
    with pytest.raises(SystemExit) as exit_info:
        module.main(arguments)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert error.startswith(f"{module.__name__}: error: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.*")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    if path.suffix in (".py", ".cpp", ".txt"):
        assert path.read_text().count("\n") <= 100


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five pictures of two shapes in turn, one of them turned by EXIF, and a text."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(60, 80, 0).save(folder / "a.png")
    picture(80, 60, 1).save(folder / "b.png")
    picture(120, 160, 2).save(folder / "c.JPG")
    picture(60, 80, 3).save(folder / "d.png", exif=exif)
    picture(30, 40, 4).save(folder / "e.webp", lossless=True)
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


def test_folders_that_cannot_be_used(
    tiny_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = load("folder")
    (tmp_path / "empty").mkdir()
    shutil.copy(photos / "a.png", photos / "a.jpeg")
    model = str(tiny_file)
    assert "no such folder" in refused(folder, [model, str(tmp_path / "missing")], capsys)
    assert "no picture" in refused(folder, [model, str(tmp_path / "empty")], capsys)
    assert "overwrite each other" in refused(folder, [model, str(photos)], capsys)
    (photos / "a.jpeg").unlink()
    assert "--batch" in refused(folder, [model, str(photos), "--batch", "0"], capsys)
    assert "no such file" in refused(folder, ["missing.onnx", str(photos)], capsys)
    assert "a.png" in refused(folder, [model, str(photos), "--out", str(photos / "a.png")], capsys)


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


def test_frames_of_a_stream() -> None:
    images = [picture(3, 5, seed) for seed in range(3)]
    stream = io.BytesIO()
    for image in images:
        image.save(stream, "PPM")
    stream.seek(0)
    got = list(load("video").frames(stream))
    assert len(got) == 3
    assert all(np.array_equal(a, np.asarray(b)) for a, b in zip(got, images, strict=True))


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
        picture(41, 61, index).save(tmp_path / f"{index}.png")
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
    assert np.abs(left - np.asarray(picture(41, 61, 0))).mean() < 12
    assert not list(tmp_path.glob(".*"))


def test_videos_that_cannot_be_used(
    tiny_file: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, model = load("video"), str(tiny_file)
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "cut.mkv").write_bytes(film.read_bytes()[:600])
    for source, target, message in [
        ("missing.mp4", "out.avi", "no such file"),
        ("film.mkv", "film.mkv", "the target too"),
        ("text.mp4", "out.avi", "text.mp4"),
        ("cut.mkv", "out.avi", "cut.mkv"),
        ("film.mkv", "out.nothing", "out.nothing"),
        ("film.mkv", "missing/out.avi", "out.avi"),
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
def test_cpp_gives_the_same_metres(
    program: Path, tiny_file: Path, tiny_fixed_file: Path, uint8_file: Path, tmp_path: Path
) -> None:
    for file in (tiny_file, tiny_fixed_file, uint8_file):
        for height, width in [(48, 64), (700, 500), (31, 90)]:
            image = picture(height, width)
            image.save(tmp_path / "picture.ppm")
            command = [program, file, tmp_path / "picture.ppm", tmp_path / "depth.pgm"]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            saved = np.asarray(Image.open(tmp_path / "depth.pgm")).astype(np.float64)
            expected = OnnxDepth(file).predict(image)
            assert saved.shape == (height, width)
            difference = np.abs(saved / 1000 - expected)
            # Half a millimetre is the file's; a picture's bytes may round another way once in a while.
            assert np.median(difference) < 1e-3 and difference.max() < 2e-2, (file.name, height, width)


@pytest.mark.slow
def test_cpp_says_in_one_line_what_is_wrong(program: Path, tiny_file: Path, tmp_path: Path) -> None:
    picture(48, 64).save(tmp_path / "picture.ppm")
    picture(48, 64).save(tmp_path / "picture.png")
    (tmp_path / "cut.ppm").write_bytes((tmp_path / "picture.ppm").read_bytes()[:99])
    (tmp_path / "cut.onnx").write_bytes(tiny_file.read_bytes()[:999])
    model = str(tiny_file)
    for arguments, message in [
        ([], "usage: depth MODEL.onnx"),
        ([model, "missing.ppm", "out.pgm"], "missing.ppm: cannot be read"),
        ([model, "picture.png", "out.pgm"], "picture.png: not a binary PPM"),
        ([model, "cut.ppm", "out.pgm"], "cut.ppm: cut off"),
        (["missing.onnx", "picture.ppm", "out.pgm"], "missing.onnx"),
        (["cut.onnx", "picture.ppm", "out.pgm"], "cut.onnx"),
        ([model, "picture.ppm", "missing/out.pgm"], "missing/out.pgm: cannot be written"),
    ]:
        done = subprocess.run([program, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2 and message in done.stderr, arguments
        assert done.stderr.startswith("depth: error: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out.pgm").exists()


def test_the_readme(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its Python runs, and the options of its commands exist."""
    text = (ROOT / "export" / "README.md").read_text()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "export"), *sys.path])
    shutil.copy(tiny_file, "unet_mobilenet_v3.onnx")
    picture(60, 80).save("photo.jpg")
    names: dict[str, Any] = {"images": np.zeros((2, 3, 64, 96), np.float32)}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(block, names)
    assert names["depths"].shape == names["depth"].numpy().shape == (2, 1, 64, 96)
    used = {name: set(re.findall(rf"{name}.*?(--[a-z]+)", text)) for name in ("run_onnx.py", "folder.py")}
    assert used == {"run_onnx.py": {"--out", "--info", "--benchmark"}, "folder.py": {"--out"}}


def test_the_page_puts_no_two_onnxruntimes_into_one_environment() -> None:
    text = (ROOT / "export" / "README.md").read_text()
    installed: dict[str, str] = {}
    for pip, packages in re.findall(r"^(\S*pip) install ([^#\n]*)", text, re.MULTILINE):
        installed[pip] = f"{installed.get(pip, '')} {packages}"
    assert len(installed) == 2
    assert not [words for words in installed.values() if "[export]" in words and "onnxruntime" in words]


def test_the_sizes_that_the_page_shows_work() -> None:
    """A picture's depth at them is not warned of; a benchmark may take any size."""
    text = (ROOT / "export" / "README.md").read_text()
    lines = "\n".join(line for line in text.splitlines() if "latency.py" not in line)
    shown = re.findall(r"(?:--size |size=\()(\d+)(?:x|, )(\d+)", lines)
    facts = describe(create_model("unet_mobilenet_v3"))
    assert shown and facts["trained_sizes"]
    for height, width in shown:
        assert not size_warning(facts, (int(height), int(width))), (height, width)
