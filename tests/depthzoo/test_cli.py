"""The command: in-process with a model whose depth is known, and a few times for real."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from depthzoo import Prediction, __version__, cli, unet_mobilenet_v3
from depthzoo.predictor import Predictor


class Red(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return 1 + 2 * image[:, :1]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, where every model is Red."""

    def fake(model: str, weights: Any, device: Any, **options: Any) -> Predictor:
        options["size"] = options["size"] or (64, 96)
        return Predictor(Red(), "cpu", **options)

    monkeypatch.setattr(cli, "predictor", fake)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path: str, red: float = 0.0, size: tuple[int, int] = (48, 32)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (round(255 * red), 0, 0)).save(path)


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The only line on stderr, which is the command's."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("depthzoo: error: "), lines
    return lines[0]


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_predict_writes_every_kind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save("photo.png", red=1)
    assert cli.main(["predict", "photo.png", "--out", "a/b", "--save", "depth16,npy,color,panel,ply"]) == 0
    suffixes = [".color.png", ".depth.png", ".npy", ".panel.png", ".ply"]
    assert names(folder / "a/b") == [f"photo{suffix}" for suffix in suffixes]
    with Image.open("a/b/photo.depth.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.full((32, 48), 3000))
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("photo.png: 48x32, near 3.00 m, median 3.00 m, far 3.00 m, focal length 39 px")
    assert os.path.join("a/b", "photo.depth.png") in first
    assert last == f"1 picture: depth16, npy, color, panel, ply in a/b{os.sep}"


def test_options_reach_the_predictor(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("a.png")
    seen: list[Any] = []

    def fake(*args: Any, **options: Any) -> Predictor:
        seen.append((args, options))
        return Predictor(Red(), "cpu", (64, 96))

    monkeypatch.setattr(cli, "predictor", fake)
    line = (
        "predict a.png --save npy --model unet --weights nyu --device cpu --batch-size 3 --flip --size 64x128"
    )
    assert cli.main(line.split()) == 0
    expected = ("unet", "nyu", torch.device("cpu")), {"size": (64, 128), "batch_size": 3, "flip": True}
    assert seen == [expected]


def test_unreadable_pictures_are_told_and_the_rest_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.png", "c.png"):
        save(name)
    Path("b.png").write_bytes(b"no picture")
    assert cli.main(["predict", ".", "absent.png", "--save", "npy", "--batch-size", "2"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "depthzoo: absent.png: no such file or folder",
        "depthzoo: b.png: not a picture in a known format"
        + captured.err.split("known format")[1].splitlines()[0],
        "depthzoo: 2 of 4 could not be read",
    ]
    assert names(folder / "out") == ["a.npy", "c.npy"]


@pytest.mark.parametrize("terminal", [False, True])
def test_many_pictures_have_a_bar_instead_of_lines(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    for index in range(cli.FEW + 1):
        save(f"in/{index:02}.png")
    Path("in/05.png").write_bytes(b"")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert cli.main(["predict", "in", "--save", "npy"]) == 1
    captured = capsys.readouterr()
    assert captured.out == f"{cli.FEW} pictures: npy in out{os.sep}\n"
    assert f"{os.path.join('in', '05.png')}: empty file" in captured.err
    assert ("11/11" in captured.err) == terminal
    assert len(names(folder / "out")) == cli.FEW


def test_same_stems_do_not_overwrite_each_other(folder: Path) -> None:
    for index, name in enumerate(("a/photo.png", "b/photo.png", "b/photo-2.png", "c/PHOTO.png")):
        save(name, red=index / 3)
    assert cli.main(["predict", "-r", ".", "a/photo.png", "--save", "npy"]) == 0
    depths = {p.name: float(np.load(p)[0, 0]) for p in (folder / "out").iterdir()}
    # Alphabetical: a/photo, b/photo-2, b/photo, c/PHOTO.
    expected = {"photo.npy": 1, "photo-2.npy": 1 + 4 / 3, "photo-3.npy": 1 + 2 / 3, "PHOTO-4.npy": 3}
    assert depths == pytest.approx(expected, abs=0.01)


def test_existing_outputs_are_replaced_and_not_predicted(folder: Path) -> None:
    save("a.png", red=0)
    for red in (0, 1):
        save("a.png", red=red)
        assert cli.main(["predict", ".", "--out", ".", "--save", "depth16,npy,color,panel"]) == 0
        assert names(folder) == ["a.color.png", "a.depth.png", "a.npy", "a.panel.png", "a.png"]
        assert np.load("a.npy")[0, 0] == 1 + 2 * red


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.png"], "absent.png: no such file or folder"),
        (["*.webp"], "*.webp: matches no file"),
        (["empty"], "empty: no pictures in this folder itself (--recursive"),
        (["a.png", "--save", "colour"], "unknown kind 'colour': did you mean 'color'?"),
        (["a.png", "--save", ","], "expected some of depth16, npy"),
        (["a.png", "--colormap", "turboo"], "unknown colour map 'turboo': did you mean 'turbo'"),
        (["a.png", "--device", "gpu"], "unknown device 'gpu'"),
        (["a.png", "--device", "cuda:99"], "is not there"),
        (["a.png", "--fov", "180"], "expected degrees between 1 and 179, not '180'"),
        (["a.png", "--fov", "wide"], "expected degrees between 1 and 179, not 'wide'"),
        (["a.png", "--focal", "0"], "expected pixels above 0, or canonical, not '0'"),
        (["a.png", "--focal", "kinect"], "expected pixels above 0, or canonical, not 'kinect'"),
        (["a.png", "--focal", "50", "--fov", "60"], "not allowed with"),
        (["a.png", "--size", "480"], "expected HEIGHTxWIDTH"),
        (["a.png", "--size", "16x640"], "expected HEIGHTxWIDTH"),
        (["a.png", "--batch-size", "0"], "expected a whole number from 1, not '0'"),
        (["a.png", "--out", "a.png"], "--out a.png: is a file"),
        ([], "required"),
    ],
)
def test_wrong_usage(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    save("a.png")
    Path("empty").mkdir()
    assert cli.main(["predict", *arguments]) == 2
    assert message in error_of(capsys)
    assert not Path("out").exists()


def test_unknown_model_and_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save("a.png")
    for arguments, message in (
        (["--model", "unet_resnet"], "unknown model 'unet_resnet': did you mean 'unet_resnet50'"),
        (["--model", "unet", "--weights", "nyuu"], "unet: "),
        (["--model", "unet", "--weights", "absent.safetensors"], "absent.safetensors"),
    ):
        assert cli.main(["predict", "a.png", "--save", "npy", *arguments]) == 2
        assert message in error_of(capsys)


def test_weights_of_a_file_or_a_run_bring_their_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save("a.png")
    Path("run").mkdir()
    from train.cards import write_weights

    write_weights(unet_mobilenet_v3(weights=None), Path("run/model.safetensors"), {"size": [32, 64]})
    for path in ("run", "run/model.safetensors"):
        assert cli.main(["predict", "a.png", "--weights", path, "--save", "npy", "--device", "cpu"]) == 0
        assert np.load("out/a.npy").mean() == pytest.approx(2.54, abs=0.5)
        Path("out/a.npy").unlink()
        capsys.readouterr()
        assert cli.main(["predict", "a.png", "--model", "unet_resnet50", "--weights", path]) == 2
        message = error_of(capsys)
        assert message.endswith("model.safetensors: holds weights of unet_mobilenet_v3, not of unet_resnet50")
    assert cli.main(["predict", "a.png", "--weights", "absent.safetensors"]) == 2
    assert "absent.safetensors: weights file does not exist" in error_of(capsys)


def test_every_kind_without_matplotlib(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    save("a.png")
    assert cli.main(["predict", "a.png"]) == 0
    assert cli.main(["predict", "a.png", "--save", "color,panel", "--colormap", "gray"]) == 0
    run = Predictor(Red(), "cpu", (64, 96))("a.png")
    run.save_panel("truth.png", truth=run.depth)
    assert names(folder / "out") == ["a.color.png", "a.depth.png", "a.panel.png"]


def test_version_help_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"depthzoo {__version__}\n"
    assert cli.main(["predict", "--help"]) == 0
    assert "--colormap" in capsys.readouterr().out
    assert cli.main([]) == 2
    error_of(capsys)
    assert cli.main(["lisst"]) == 2
    error_of(capsys)


def test_interrupt(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        save(name)

    def interrupted(self: Prediction, path: Path) -> None:
        if Path(path).stem == "b":
            raise KeyboardInterrupt
        Prediction.save_depth16(self, path.with_suffix(".png"))

    monkeypatch.setattr(Prediction, "save_npy", interrupted)
    assert cli.main(["predict", ".", "--save", "npy"]) == 130
    assert capsys.readouterr().err.splitlines() == ["depthzoo: interrupted; what has been written is whole"]
    assert names(folder / "out") == ["a.png"]


def test_full_disk_and_full_memory(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save("a.png")
    for raised, message in (
        (OSError(28, "No space left on device"), "No space"),
        (torch.OutOfMemoryError(), "memory"),
    ):

        def fail(*args: Any, raised: Exception = raised) -> None:
            raise raised

        monkeypatch.setattr(np, "save", fail)
        assert cli.main(["predict", "a.png", "--save", "npy"]) == 2
        assert message in error_of(capsys)
        assert names(folder / "out") == []


def test_the_command_for_real(tmp_path: Path) -> None:
    """``python -m depthzoo`` from another directory, with weights from a file."""
    path = save(unet_mobilenet_v3(weights=None), tmp_path, "test", {"size": [32, 64], "arguments": {}})
    save(str(tmp_path / "a.png"))
    command = [sys.executable, "-m", "depthzoo", "predict", "a.png", "--save", "depth16,ply"]
    command += ["--model", "unet_mobilenet_v3", "--weights", path.name, "--device", "cpu"]
    root = Path(cli.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"1 picture: depth16, ply in out{os.sep}"
    with Image.open(tmp_path / "out" / "a.depth.png") as image:
        assert image.size == (48, 32)
        # A fresh model predicts about its mean depth.
        assert abs(np.asarray(image).mean() - 2390) < 500


@pytest.mark.skipif(sys.platform == "win32", reason="pipes break otherwise there")
def test_reader_that_goes_away() -> None:
    root = Path(cli.__file__).parent.parent
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "depthzoo", "list"]
    done = subprocess.run(
        command,
        cwd=root.parent,
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
