"""The examples as a reader runs them, compared with run_onnx.py, and the page that shows them."""

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
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


COUNT = 200


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Pictures of two shapes in three folders, one of them turned by EXIF, a broken one and a text."""
    folder = tmp_path / "photos"
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(COUNT):
        path = folder / str(index % 3) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(*((48, 64) if index % 2 else (64, 48)), index).save(path, exif=exif if index == 5 else None)
    (folder / "bad.jpg").write_text("hello")
    (folder / "notes.txt").write_text("not a picture by its name")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_on_a_folder(
    tiny_file: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A worker that is killed within a batch loses nothing, and a second run predicts only what is missing."""
    from ray import cloudpickle

    ray_folder = load("ray_folder")
    out, killed = tmp_path / "depths", tmp_path / "killed"

    class Dying(ray_folder.Depth):  # type: ignore[misc, name-defined]
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            if len(list(out.rglob("*.png"))) > 20 and not killed.exists():
                killed.touch()
                super().__call__({key: values[:3] for key, values in batch.items()})
                os.kill(os.getpid(), signal.SIGKILL)
            return dict(super().__call__(batch))

    monkeypatch.setitem(sys.modules, "ray_folder", ray_folder)
    cloudpickle.register_pickle_by_value(ray_folder)  # as the classes of a script are
    monkeypatch.setattr(ray_folder, "Depth", Dying)
    command = [str(tiny_file), str(photos), str(out)]
    for _ in range(2):
        assert "bad.jpg: not an image" in refused(ray_folder, command, capsys)
        written = {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("*.*")}
        assert len(written) == COUNT and killed.exists()
    model = OnnxDepth(tiny_file)
    for name in ("0/0.png", "1/1.png", "2/5.png", "1/199.png"):
        saved = np.asarray(Image.open(out / f"{name}.depth.png"))
        expected = model.predict(Image.open(photos / name))
        assert saved.shape == expected.shape and np.abs(saved - expected * 1000).max() <= 1
    (photos / "bad.jpg").unlink()
    (out / "0" / "0.png.depth.png").unlink()
    finished = {name: time for name, time in written.items() if name != "0/0.png.depth.png"}
    for words in (["0/0.png.depth.png"], []):
        with pytest.raises(SystemExit) as exit_:
            ray_folder.main(command)
        assert exit_.value.code == 0
        again = {path.relative_to(out).as_posix(): path.stat().st_mtime_ns for path in out.rglob("*.*")}
        assert finished.items() <= again.items() and len(again) == COUNT, words
    assert f"all {COUNT} images have a depth" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_ray_on_parquet(
    tiny_file: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images as bytes, and as structs with bytes."""
    import pyarrow
    from pyarrow import parquet

    ray_folder = load("ray_folder")
    files = sorted((photos / "1").iterdir())[:20]
    contents = [file.read_bytes() for file in files]
    columns: dict[str, list[Any]] = {"id": [f"row/{file.stem}" for file in files], "plain": contents}
    columns["struct"] = [{"bytes": content, "path": None} for content in contents]
    parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    for column in ("plain", "struct"):
        command = [str(tiny_file), str(tmp_path / "rows.parquet"), str(tmp_path / column), "--columns", "id"]
        with pytest.raises(SystemExit) as exit_:
            ray_folder.main([*command, column])
        assert exit_.value.code == 0
        assert len(list((tmp_path / column / "row").iterdir())) == 20
    assert "Column missing not found" in refused(ray_folder, [*command, "missing"], capsys)


def test_ray_arguments(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("ray")
    ray_folder = load("ray_folder")
    for arguments, message in [
        (["missing.onnx", str(tmp_path), "out"], "missing.onnx: no such file"),
        ([str(tiny_file), str(tmp_path / "nowhere"), str(tmp_path / "out")], "nowhere"),
        ([str(tiny_file), "nosuch://bucket", str(tmp_path / "out")], "nosuch"),
    ]:
        assert message in refused(ray_folder, arguments, capsys)


def test_the_ray_example_fits_on_a_page() -> None:
    assert len((EXAMPLES / "ray_folder.py").read_text().splitlines()) <= 80


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
    names: dict[str, Any] = {"images": np.zeros((2, 3, 64, 96), np.float32), "paths": ["photo.jpg"]}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    for block in blocks:
        exec(block, names)
    assert names["depth"].shape == (60, 80) and names["depths"].shape == (2, 1, 64, 96)
    scripts = {"to_onnx.py": to_onnx, "run_onnx.py": run_onnx, "ray_folder.py": load("ray_folder")}
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
    assert len(installed) == 3
    for words in installed.values():
        assert len(re.findall(r"\[export\]|\[gpu\]|onnxruntime(?:-gpu)?", words)) == 1


def test_the_sizes_that_the_page_shows_work() -> None:
    """They are near those that the weights were trained at."""
    text = (ROOT / "export" / "README.md").read_text()
    shown = re.findall(r"(?:--size |size=\()(\d+)(?:x|, )(\d+)", text)
    facts = describe(depthzoo.create_model("unet_mobilenet_v3"))
    assert shown and facts["trained_sizes"]
    for height, width in shown:
        assert not size_warning(facts, (int(height), int(width))), (height, width)
