"""The command: in-process with a model whose depth is known, and a few times for real."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from depthzoo import Prediction, __version__, cli, unet_mobilenet_v3, weights
from depthzoo.prediction import Predictor


class Red(nn.Module):
    """1 m without red, 3 m with all of it."""

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


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with weights of a fresh model."""
    path = tmp_path / "run"
    card = {"model": "unet_mobilenet_v3", "size": [32, 64]}
    weights.save_weights(path / "model.safetensors", unet_mobilenet_v3(weights=None).state_dict(), card)
    return path


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


class TestPredict:
    def test_every_kind(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)  # not in the base install
        save("photo.png", red=1)
        assert (
            cli.main(["predict", "photo.png", "--out", "a/b", "--save", "depth16,npy,color,panel,ply"]) == 0
        )
        suffixes = [".color.png", ".depth.png", ".npy", ".panel.png", ".ply"]
        assert names(folder / "a/b") == [f"photo{suffix}" for suffix in suffixes]
        with Image.open("a/b/photo.depth.png") as image:
            np.testing.assert_array_equal(np.asarray(image), np.full((32, 48), 3000))
        first, last = capsys.readouterr().out.splitlines()
        assert first.startswith(
            "photo.png: 48x32, near 3.00 m, median 3.00 m, far 3.00 m, focal length 39 px"
        )
        assert os.path.join("a/b", "photo.depth.png") in first
        assert last == f"1 image: depth16, npy, color, panel, ply in a/b{os.sep}"

    def test_options_reach_the_predictor(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save("a.png")
        seen: list[Any] = []

        def fake(*args: Any, **options: Any) -> Predictor:
            seen.append((args, options))
            return Predictor(Red(), "cpu", (64, 96))

        monkeypatch.setattr(cli, "predictor", fake)
        line = "predict a.png --save npy --model unet --weights nyu --device cpu --batch-size 3 --flip --size 64x128"
        assert cli.main(line.split()) == 0
        expected = ("unet", "nyu", torch.device("cpu")), {"size": (64, 128), "batch_size": 3, "flip": True}
        assert seen == [expected]

    @pytest.mark.parametrize("batch_size", ["1", "2"])
    def test_unreadable_images_are_reported_and_skipped(
        self, folder: Path, capsys: pytest.CaptureFixture[str], batch_size: str
    ) -> None:
        for index, name in enumerate(("a.png", "c.png")):
            save(name, red=index)
        Path("b.png").write_bytes(b"not an image")
        arguments = ["predict", ".", "absent.png", "--save", "npy", "--batch-size", batch_size]
        assert cli.main(arguments) == 1
        absent, broken, summary = capsys.readouterr().err.splitlines()
        assert absent == "depthzoo: absent.png: no such file or folder"
        assert broken.startswith("depthzoo: b.png: not an image in a known format")
        assert summary == "depthzoo: 2 of 4 could not be read"
        assert {p.name: np.load(p).mean() for p in (folder / "out").iterdir()} == {"a.npy": 1, "c.npy": 3}

    @pytest.mark.parametrize("terminal", [False, True])
    def test_many_images_get_a_bar_instead_of_lines(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        terminal: bool,
    ) -> None:
        for index in range(cli.FEW + 1):
            save(f"in/{index:02}.png")
        Path("in/05.png").write_bytes(b"")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        assert cli.main(["predict", "in", "--save", "npy"]) == 1
        captured = capsys.readouterr()
        assert captured.out == f"{cli.FEW} images: npy in out{os.sep}\n"
        assert f"{os.path.join('in', '05.png')}: empty file" in captured.err
        assert ("11/11" in captured.err) == terminal
        assert len(names(folder / "out")) == cli.FEW

    def test_outputs_of_equal_stems_do_not_overwrite_each_other(self, folder: Path) -> None:
        for index, name in enumerate(("a/photo.png", "b/photo.png", "b/photo-2.png", "c/PHOTO.png")):
            save(name, red=index / 3)
        assert cli.main(["predict", "-r", ".", "a/photo.png", "--save", "npy"]) == 0
        depths = sorted(float(np.load(p)[0, 0]) for p in (folder / "out").iterdir())
        assert depths == pytest.approx([1, 1 + 2 / 3, 1 + 4 / 3, 3], abs=0.01)
        assert len({name.casefold() for name in names(folder / "out")}) == 4

    def test_existing_outputs_are_replaced_and_not_predicted(self, folder: Path) -> None:
        for red in (0, 1):
            save("a.png", red=red)
            assert cli.main(["predict", ".", "--out", ".", "--save", "depth16,npy,color,panel"]) == 0
            assert names(folder) == ["a.color.png", "a.depth.png", "a.npy", "a.panel.png", "a.png"]
            assert np.load("a.npy")[0, 0] == 1 + 2 * red

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["absent.png"], "absent.png: no such file or folder"),
            (["empty"], "empty: no images in this folder itself (--recursive"),
            (["a.png", "--save", "colour"], "unknown kind 'colour': did you mean 'color'?"),
            (["a.png", "--save", ","], "expected some of depth16, npy"),
            (["a.png", "--colormap", "turboo"], "invalid choice: 'turboo'"),
            (["a.png", "--device", "gpu"], "unknown device 'gpu'"),
            (["a.png", "--device", "cuda:99"], "is not available"),
            (["a.png", "--fov", "180"], "fov must be between 1 and 179 degrees, got 180"),
            (["a.png", "--fov", "wide"], "invalid float value: 'wide'"),
            (["a.png", "--focal", "0"], "expected pixels above 0, or canonical, not '0'"),
            (["a.png", "--focal", "kinect"], "expected pixels above 0, or canonical, not 'kinect'"),
            (["a.png", "--focal", "50", "--fov", "60"], "not allowed with"),
            (["a.png", "--size", "480"], "expected HEIGHTxWIDTH"),
            (["a.png", "--size", "16x640"], "expected HEIGHTxWIDTH"),
            (["a.png", "--batch-size", "0"], "batch_size must be at least 1, got 0"),
            (["a.png", "--out", "a.png"], "--out a.png: is a file"),
            ([], "required"),
        ],
    )
    def test_wrong_usage(
        self, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        save("a.png")
        Path("empty").mkdir()
        assert cli.main(["predict", *arguments]) == 2
        assert message in error_of(capsys)
        assert not Path("out").exists()

    def test_weights_bring_their_model(
        self, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(run)
        save("a.png")
        command = ["predict", "a.png", "--save", "npy", "--device", "cpu"]
        for path in (".", "model.safetensors"):
            assert cli.main([*command, "--weights", path]) == 0
            assert np.load("out/a.npy").mean() == pytest.approx(2.54, abs=0.5)
            capsys.readouterr()
        for arguments, message in (
            (
                ["--model", "unet_resnet50", "--weights", "."],
                "holds weights of unet_mobilenet_v3, not of unet_resnet",
            ),
            (["--weights", "absent.safetensors"], "absent.safetensors: weights file does not exist"),
            (["--model", "unet_resnet"], "unknown model 'unet_resnet': did you mean 'unet_resnet50'"),
            (["--model", "unet", "--weights", "nyuu"], "unet: "),
        ):
            assert cli.main([*command, *arguments]) == 2
            assert message in error_of(capsys)

    def test_interrupt(
        self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("a.png", "b.png"):
            save(name)

        def interrupted(self: Prediction, path: Path) -> None:
            if Path(path).stem == "b":
                raise KeyboardInterrupt
            Prediction.save_depth16(self, path.with_suffix(".png"))

        monkeypatch.setattr(Prediction, "save_npy", interrupted)
        assert cli.main(["predict", ".", "--save", "npy"]) == 130
        assert capsys.readouterr().err == "depthzoo: interrupted; all files written so far are complete\n"
        assert names(folder / "out") == ["a.png"]

    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), torch.OutOfMemoryError()])
    def test_full_disk_and_full_memory(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
    ) -> None:
        def fail(*args: Any) -> None:
            raise error

        save("a.png")
        monkeypatch.setattr(np, "save", fail)
        assert cli.main(["predict", "a.png", "--save", "npy"]) == 2
        assert ("No space" if isinstance(error, OSError) else "out of memory") in error_of(capsys)
        assert names(folder / "out") == []


CARD = {
    "bytes": 7_100_000,
    "file": "unet_mobilenet_v3_nyu-1a2b3c4d.safetensors",
    "size": [224, 288],
    "camera": {"focal_px": 518.86},
    "metrics": {"protocol": "654 frames", "per_image": {"abs_rel": 0.2214, "d1": 0.6543}},
    "terms": "research use",
}


class TestListAndInfo:
    @pytest.fixture
    def two_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """unet_mobilenet_v3 has weights "nyu" (default) and "old"; nothing else has any."""
        monkeypatch.setattr(weights, "tags", lambda model: ("nyu", "old") if "mobile" in model else ())
        monkeypatch.setattr(weights, "card", lambda model, tag="DEFAULT": CARD)

    def test_list(self, capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
        assert cli.main(["list"]) == 0
        rows = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert rows[0] == ["NAME", "PARAMETERS", "FILE", "SIZE", "ABSREL", "D1", "WEIGHTS"]
        assert ["unet_mobilenet_v3", "3.5M", "7.1", "MB", "224x288", "0.221", "0.654", "nyu,", "old"] in rows
        assert ["unet", "31.0M", "-", "-", "-", "-", "-"] in rows and len(rows) == 7
        assert cli.main(["list", "*resnet*"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == [
            "unet_resnet50",
            "unet_resnet50_heavy",
        ]
        assert cli.main(["list", "unet_resnet"]) == 2
        assert "no model matches 'unet_resnet': did you mean 'unet_resnet50'" in error_of(capsys)

    def test_info(self, capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
        assert cli.main(["info", "unet_mobilenet_v3"]) == 0
        text = capsys.readouterr().out
        for part in (
            "MobileNetV3-Large",
            "nyu (default)",
            "old",
            "224x288",
            "518.86",
            "research use",
            "0.2214",
        ):
            assert part in text
        assert "Args:" not in text
        assert cli.main(["info", "unet"]) == 0
        text = capsys.readouterr().out
        assert "none yet" in text and "31,037,633" in text
        assert cli.main(["info", "unet_mobilnet"]) == 2
        assert "unknown model 'unet_mobilnet': did you mean 'unet_mobilenet_v3'" in error_of(capsys)

    def test_info_of_a_file_and_of_a_run(self, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for path in (run, run / "model.safetensors"):
            assert cli.main(["info", str(path)]) == 0
            text = capsys.readouterr().out
            assert text.startswith("unet_mobilenet_v3\n") and "MobileNetV3-Large" in text
            assert str(run / "model.safetensors") in text and "32x64" in text and "MB" in text
        safetensors.torch.save_file({"a": torch.zeros(1)}, run / "plain.safetensors")
        for name, message in (
            ("plain.safetensors", "does not say which model it is for"),
            ("absent.safetensors", "weights file does not exist"),
        ):
            assert cli.main(["info", str(run / name)]) == 2
            assert message in error_of(capsys)


def test_version_help_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"depthzoo {__version__}\n"
    assert cli.main(["predict", "--help"]) == 0
    assert "--colormap" in capsys.readouterr().out
    for arguments in ([], ["lisst"]):
        assert cli.main(arguments) == 2
        error_of(capsys)


def test_the_command_for_real(run: Path, root: Path) -> None:
    """``python -m depthzoo`` from another folder; and with a reader that goes away."""
    save(str(run / "a.png"))
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "depthzoo"]
    predict = [*command, "predict", "a.png", "--save", "depth16,ply", "--weights", ".", "--device", "cpu"]
    done = subprocess.run(predict, cwd=run, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"1 image: depth16, ply in out{os.sep}"
    with Image.open(run / "out" / "a.depth.png") as image:
        assert image.size == (48, 32)
        assert abs(np.asarray(image).mean() - 2540) < 500
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*command, "list"], cwd=run, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
