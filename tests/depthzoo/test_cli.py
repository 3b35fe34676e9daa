"""The command: in-process with a model whose depth is known, and a few times for real."""

import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from depthzoo import (
    Prediction,
    __version__,
    cli,
    cli_info,
    cli_predict,
    colormaps,
    images,
    unet_mobilenet_v3,
    weights,
)
from depthzoo.errors import WeightsError
from depthzoo.prediction import DEFAULT_MODEL, Predictor


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

    monkeypatch.setattr(cli_predict, "predictor", fake)
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
        arguments = [
            "predict",
            "photo.png",
            "--out",
            "a/b",
            "--save",
            "depth16,npy,color",
            "--save",
            "panel,ply",
        ]
        assert cli.main(arguments) == 0
        suffixes = [".color.png", ".depth.png", ".npy", ".panel.png", ".ply"]
        assert names(folder / "a/b") == [f"photo{suffix}" for suffix in suffixes]
        with Image.open("a/b/photo.depth.png") as image:
            np.testing.assert_array_equal(np.asarray(image), np.full((32, 48), 3000))
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(
            "photo.png: 48x32, near 3.00 m, median 3.00 m, far 3.00 m, focal length 39 px (canonical) -> "
        )
        assert os.path.join("a/b", "photo.depth.png") in line

    @pytest.mark.parametrize(
        ("name", "kind"),
        [
            ("x.depth.png", "depth16"),
            ("X.PANEL.PNG", "panel"),
            ("x.color.png", "color"),
            ("x.png", "color"),
            ("x.jpg", "color"),
            ("new/x.npy", "npy"),
            ("x.ply", "ply"),
            ("x.glb", "glb"),
        ],
    )
    def test_a_file_as_output(
        self,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        name: str,
        kind: str,
    ) -> None:
        save("a.png")
        wrote: list[tuple[str, Path]] = []
        for each in cli_predict.WRITERS:
            monkeypatch.setitem(cli_predict.WRITERS, each, lambda p, path, _, k=each: wrote.append((k, path)))
        assert cli.main(["predict", "a.png", "-o", name]) == 0
        assert wrote == [(kind, Path(name))]
        assert capsys.readouterr().out.endswith(f" -> {Path(name)} ({kind})\n")

    def test_a_folder_with_a_dot(self, folder: Path) -> None:
        save("a.png")
        assert cli.main(["predict", "a.png", "-o", "v1.5/", "--save", "npy"]) == 0
        assert cli.main(["predict", "a.png", "-o", "v1.5", "--save", "ply"]) == 0
        assert names(folder / "v1.5") == ["a.npy", "a.ply"]

    def test_options_of_the_drawing(self, folder: Path) -> None:
        save("a.png", red=1)  # 3 m
        line = "predict a.png --save color,ply --near 3 --far 4 --colormap gray --stride 2 --y-up"
        assert cli.main(line.split()) == 0
        with Image.open("out/a.color.png") as image:
            assert np.asarray(image).max() == 0 and image.size == (48, 32)
        header, _, points = Path("out/a.ply").read_bytes().partition(b"end_header\n")
        assert b"element vertex 384\n" in header
        xyz = np.frombuffer(points, [("xyz", "<f4", 3), ("rgb", "u1", 3)])["xyz"]
        assert (xyz[:, 2] < 0).all() and xyz[0, 1] > 0  # z backward, the upper left pixel up
        assert cli.main([*line.split(), "--legend"]) == 0
        with Image.open("out/a.color.png") as image:
            assert image.height > 32

    def test_json(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save("a.png", red=1)
        Path("b.png").write_bytes(b"not an image")
        for _ in range(2):
            arguments = ["predict", "a.png", "b.png", "--json", "--save", "npy,ply", "--focal", "50"]
            assert cli.main([*arguments, "--skip-existing"]) == 1
        captured = capsys.readouterr()
        first, failed, skipped, _ = (json.loads(line) for line in captured.out.splitlines())
        outputs = {kind: str(Path("out", f"a.{kind}")) for kind in ("npy", "ply")}
        metres = round(3 * 50 / (518.86 / 640 * 48), 4)
        assert first == {
            "input": "a.png",
            "outputs": outputs,
            "width": 48,
            "height": 32,
            "near": metres,
            "median": metres,
            "far": metres,
            "focal_px": 50,
            "focal_source": "given",
        }
        assert failed["input"] == "b.png" and "not an image" in failed["error"]
        assert skipped == {"input": "a.png", "outputs": outputs, "skipped": True}
        assert "b.png: not an image" in captured.err

    def test_quiet(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        save("a.png")
        assert cli.main(["predict", "a.png", "-q"]) == 0
        assert capsys.readouterr() == ("", "")
        assert cli.main(["predict", "a.png", "-q", "--json"]) == 0
        captured = capsys.readouterr()
        assert json.loads(captured.out)["input"] == "a.png" and captured.err == ""

    def test_skip_existing(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a", "b"):
            save(f"{name}.png")
        assert cli.main(["predict", "a.png", "--save", "npy,ply"]) == 0
        Path("out/a.ply").unlink()  # so that a lacks one
        Path("out/b.npy").write_bytes(b"")
        Path("out/b.ply").write_bytes(b"")
        capsys.readouterr()
        assert cli.main(["predict", "a.png", "b.png", "--save", "npy,ply", "--skip-existing"]) == 0
        line, summary = capsys.readouterr().out.splitlines()
        assert line.startswith("a.png: ") and Path("out/a.ply").is_file()
        assert Path("out/b.npy").read_bytes() == b""
        assert summary == f"1 of 2 predicted, 1 skipped, whose outputs exist: out{os.sep}"

    @pytest.mark.parametrize("existing", [False, True])
    def test_nothing_left_to_do_needs_no_model(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
    ) -> None:
        save("a.png")
        save("out/a.depth.png")
        save("out/a.color.png")
        monkeypatch.setattr(cli_predict, "predictor", None)
        assert cli.main(["predict", "a.png", "--skip-existing"]) == 0

    def test_standard_input(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save("a.png", red=1)
        for content, code in ((Path("a.png").read_bytes(), 0), (b"", 2), (b"not an image", 2)):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
            assert cli.main(["predict", "-", "--save", "npy"]) == code
        assert np.load("out/stdin.npy").mean() == 3
        assert capsys.readouterr().out.startswith("-: 48x32, near 3.00 m")

    def test_videos(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        calls: list[Any] = []

        def fake(predictor: Predictor, source: Path, target: Path, **options: Any) -> int:
            if source.name == "bad.mp4":
                raise ValueError("bad.mp4: not a video")
            calls.append((source, target, options))
            return 7

        monkeypatch.setattr("depthzoo.video.predict_video", fake)
        for name in ("a.png", "clip.MP4", "bad.mp4"):
            save(f"{name}.png")
            Path(f"{name}.png").rename(name)
        options = ["--near", "1", "--far", "4", "--focal", "500", "--colormap", "magma", "-q"]
        inputs = ["./clip.MP4", "a.png", "bad.mp4"]
        assert cli.main(["predict", *inputs, "--save", "npy,color,panel", *options]) == 1
        assert names(folder / "out") == ["a.color.png", "a.npy", "a.panel.png"]
        expected = {"near": 1, "far": 4, "focal_px": 500, "fov": None, "colormap": "magma", "progress": False}
        assert calls == [
            (Path("clip.MP4"), Path(f"out/clip.{kind}.mp4"), {**expected, "side_by_side": kind == "panel"})
            for kind in ("color", "panel")
        ]
        assert capsys.readouterr().err.splitlines()[0] == "depthzoo: bad.mp4: not a video"
        assert cli.main(["predict", "clip.MP4", "--json"]) == 0
        line = json.loads(capsys.readouterr().out)
        assert line == {
            "input": "clip.MP4",
            "outputs": {"color": str(Path("out/clip.color.mp4"))},
            "frames": 7,
        }
        assert cli.main(["predict", "clip.MP4", "-o", "deep/x.mov"]) == 0
        assert calls[-1][1] == Path("deep/x.mov")

    def test_options_reach_the_predictor(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save("a.png")
        seen: list[Any] = []

        def fake(*args: Any, **options: Any) -> Predictor:
            seen.append((args, options))
            return Predictor(Red(), "cpu", (64, 96))

        monkeypatch.setattr(cli_predict, "predictor", fake)
        line = "predict a.png --save npy --model unet --weights nyu --device cpu --batch-size 3 --flip --size 64x128"
        assert cli.main(line.split()) == 0
        expected = ("unet", "nyu", torch.device("cpu")), {"size": (64, 128), "batch_size": 3, "flip": True}
        assert cli.main(["predict", "a.png", "--save", "npy"]) == 0
        default = (None, "DEFAULT", seen[1][0][2]), {"size": None, "batch_size": None, "flip": False}
        assert seen == [expected, default]

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
        assert summary == "depthzoo: 2 of 4 failed"
        assert {p.name: np.load(p).mean() for p in (folder / "out").iterdir()} == {"a.npy": 1, "c.npy": 3}

    def test_nothing_could_be_read(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a.png", "b.png"):
            Path(name).write_bytes(b"not an image")
        assert cli.main(["predict", "a.png"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert cli.main(["predict", "a.png", "b.png"]) == 2
        captured = capsys.readouterr()
        assert captured.err.endswith("depthzoo: 2 of 2 failed\n")
        assert not Path("out").exists()

    @pytest.mark.parametrize("terminal", [False, True])
    def test_many_images_get_a_bar(
        self,
        folder: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        terminal: bool,
    ) -> None:
        few = cli_predict.FEW
        for index in range(few + 1):
            save(f"in/{index:02}.png")
        Path("in/05.png").write_bytes(b"")
        monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
        assert cli.main(["predict", "in", "--save", "npy"]) == 1
        captured = capsys.readouterr()
        *lines, summary = captured.out.splitlines()
        assert summary == f"{few} of {few + 1} predicted: out{os.sep}"
        assert len(lines) == few and all(line.startswith("in") and ".npy" in line for line in lines)
        assert f"{os.path.join('in', '05.png')}: empty file" in captured.err
        assert ("11/11" in captured.err) == terminal
        assert len(names(folder / "out")) == few

    @pytest.mark.parametrize(
        ("inputs", "expected"),
        [
            (["in", "-r"], ["a/x.png.npy", "a/x.jpg.npy", "b/c/x.npy", "y.npy"]),
            (["in"], ["y.npy"]),
            (["in/a/x.png"], ["x.npy"]),
            (["in/a/x.png", "in/a/x.png", "in/a"], ["x.jpg.npy", "x.png.npy"]),
            (["in/a/x.png", "in/b/c/x.png"], ["a/x.npy", "b/c/x.npy"]),
            (["in/b", "in/a", "-r"], ["a/x.png.npy", "a/x.jpg.npy", "b/c/x.npy"]),
            (["in/b/../y.png", "-r"], ["y.npy"]),
        ],
    )
    def test_outputs_mirror_the_folders(self, folder: Path, inputs: list[str], expected: list[str]) -> None:
        for name in ("in/a/x.png", "in/a/x.jpg", "in/b/c/x.png", "in/y.png"):
            save(name)
        assert cli.main(["predict", *inputs, "--save", "npy", "-q"]) == 0
        assert sorted(p.relative_to("out").as_posix() for p in Path("out").rglob("*.npy")) == sorted(expected)

    def test_names_that_differ_in_case_only(self) -> None:
        paths = [Path("x/a.png"), Path("x/A.jpg"), Path("x/b.png")]
        found = cli_predict.output_names(dict.fromkeys(paths, Path("x")))
        assert list(found.values()) == ["a.png", "A.jpg", "b"]

    def test_a_scale_that_does_not_fit_fails_one_image(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save("a.png", red=0)
        save("b.png", red=1)
        assert cli.main(["predict", "a.png", "b.png", "--near", "2"]) == 1  # a is all at 1 m
        first, summary = capsys.readouterr().err.splitlines()
        assert first.startswith("depthzoo: a.png: near must be below far") and "1 of 2 failed" in summary
        assert Path("out/b.color.png").is_file()

    def test_names_that_the_terminal_cannot_show(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save("caf\u00e9.png")
        stream = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stream, "ascii"))
        assert cli.main(["predict", ".", "--save", "npy"]) == 0
        assert b"caf\\xe9.png: 48x32" in stream.getvalue()

    def test_other_errors_are_not_hidden(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        save("a.png")
        monkeypatch.setattr(Red, "forward", lambda self, image: image.view(-7))
        with pytest.raises(RuntimeError, match="shape"):
            cli.main(["predict", "a.png"])

    def test_warnings_are_lines_of_the_command(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def forward(self: Red, image: Tensor) -> Tensor:
            warnings.warn("unet: weights work at 192x256; depthzoo.Predictor(model) resizes", stacklevel=2)
            return image[:, :1] + 1

        save("a.png")
        monkeypatch.setattr(Red, "forward", forward)
        assert cli.main(["predict", "a.png"]) == 0
        assert capsys.readouterr().err == "depthzoo: warning: unet: weights work at 192x256\n"

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
            (["https://x.org/a.png"], "https://x.org/a.png: URLs are not read; try: curl"),
            (["a.png", "--save", "colour"], "unknown kind 'colour': there are depth16, npy, color, panel"),
            (["a.png", "--save", ","], "expected some of depth16, npy"),
            (["a.png", "--colormap", "turboo"], "invalid choice: 'turboo'"),
            (["a.png", "--device", "gpu"], "unknown device 'gpu'"),
            (["a.png", "--device", "cuda:99"], "is not available"),
            (["a.png", "--fov", "180"], "expected degrees between 1 and 179, not '180'"),
            (["a.png", "--fov", "wide"], "expected degrees between 1 and 179, not 'wide'"),
            (["a.png", "--focal", "0"], "expected pixels above 0, or canonical, not '0'"),
            (["a.png", "--focal", "kinect"], "expected pixels above 0, or canonical, not 'kinect'"),
            (["a.png", "--focal", "50", "--fov", "60"], "not allowed with"),
            (["a.png", "--size", "480"], "expected HEIGHTxWIDTH"),
            (["a.png", "--size", "16x640"], "expected HEIGHTxWIDTH"),
            (["a.png", "--batch-size", "0"], "expected a whole number from 1, not '0'"),
            (["a.png", "--near", "3", "--far", "3"], "--near 3 must be below --far 3"),
            (["a.png", "--near", "-1"], "expected metres, not '-1'"),
            (["a.png", "--stride", "1.5"], "expected a whole number from 1, not '1.5'"),
            (["a.png", "--bogus"], "unrecognized arguments: --bogus"),
            (["a.png", "--out", "a.png"], "--out a.png: is the input itself"),
            (
                ["a.png", "--out", "a.exr"],
                "--out a.exr: expected a folder (a new one with a dot ends in /), or",
            ),
            (["a.png", "--out", "plain"], "--out plain: expected a folder"),
            (["a.png", "a.png", "--out", "b.png"], "--out b.png: is a file, which takes one image"),
            (["empty", "--out", "b.png"], "--out b.png: is a file, which takes one image"),
            (["a.png", "--out", "b.npy", "--save", "npy"], "leave out --save"),
            (["a.mp4", "--save", "npy,ply"], "a.mp4: a video is saved as color or panel, not as npy, ply"),
            (["a.mp4", "--out", "b.png"], "or a file in .panel.mp4, .mp4, .mov, .mkv"),
            (["a.png", "--model", "empty", "--weights", "nyu"], "--model empty: is weights itself"),
            ([], "required"),
        ],
    )
    def test_wrong_usage(
        self, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        save("a.png")
        Path("empty").mkdir()
        Path("a.mp4").touch()
        Path("plain").touch()
        assert cli.main(["predict", *arguments]) == 2
        assert message in error_of(capsys)
        assert not Path("out").exists()

    def test_weights_bring_their_model(
        self, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(run)
        save("a.png")
        command = ["predict", "a.png", "--save", "npy", "--device", "cpu"]
        for option, path in (("--weights", "."), ("--model", "."), ("--weights", "model.safetensors")):
            assert cli.main([*command, option, path]) == 0
            assert np.load("out/a.npy").mean() == pytest.approx(2.54, abs=0.5)
            capsys.readouterr()
        for arguments, message in (
            (
                ["--model", "unet_resnet50", "--weights", "."],
                "holds weights of unet_mobilenet_v3, not of unet_resnet",
            ),
            (["--weights", "absent.safetensors"], "absent.safetensors: weights file does not exist"),
            (["--model", "unet_resnet"], "no model and no file 'unet_resnet': did you mean 'unet_resnet50'"),
            (
                ["--model", "unet_mobilenet_v3", "--weights", "nyuu"],
                "unknown weights 'nyuu': did you mean 'nyu'",
            ),
            (["--model", "unet"], "unet: no trained weights"),
        ):
            assert cli.main([*command, *arguments]) == 2
            line = error_of(capsys)
            assert message in line and "weights=None" not in line

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
        assert (
            capsys.readouterr().err == "depthzoo: interrupted after 1 of 2; all files written are complete\n"
        )
        assert names(folder / "out") == ["a.png"]

    @pytest.mark.parametrize(
        "error",
        [
            OSError(28, "No space left on device"),
            MemoryError(),
            torch.OutOfMemoryError("CUDA out of memory."),
            RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ],
    )
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


NYU = "NYU: research use; cite Silberman et al."
CARD = {
    "bytes": 7_100_000,
    "file": "unet_mobilenet_v3_nyu-1a2b3c4d.safetensors",
    "parameters": 3_480_000,
    "size": [224, 288],
    "camera": {"name": "Kinect v1", "focal_px": 518.86, "at_width": 640},
    "depth_range": [0.001, 10.0],
    "metrics": {
        "protocol": "654 frames of NYU",
        "per_image": {"abs_rel": 0.2214, "rmse": 0.7123, "d1": 0.6543},
        "flip": {"per_image": {"abs_rel": 0.2011, "rmse": 0.7, "d1": 0.66}},
    },
    "sizes": {"192x256": {"abs_rel": 0.2345}},
    "failures": {
        "by_distance": [{"metres": [0.0, 1.0], "share": 0.0275, "abs_rel": 0.749, "bias": 0.7489}],
        "abs_rel": {"best_tenth": 0.1005, "median": 0.1846, "worst_tenth": 0.331},
        "worst": [{"frame": "nyu-0196", "abs_rel": 1.1247}],
    },
    "dataset": {"source": "nyu-labelled"},
    "mixed_with": [{"source": "pseudo-labels", "teacher": {"model": "unet_teacher"}}],
    "trained_on": {"images": 1000, "steps": 10, "device": "CPU"},
    "initialised_from": {"dataset": {"source": "rooms"}, "trained_on": {"images": 500, "device": "H200"}},
    "recipe": "lr = 1",
    "limits": ["Rooms only.", "One camera, Kinect v1.", f"Terms of the training data: {NYU}"],
    "terms": f"{NYU}; pictures: Places; depth by a teacher with these terms: {NYU}",
    "versions": {"depthzoo": "0.1.0", "torch": "2.15.0"},
    "commit": "19ef4eaf",
}


class TestListAndInfo:
    @pytest.fixture
    def two_weights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """unet_mobilenet_v3 has weights "nyu" (default) and "old"; nothing else has any."""
        monkeypatch.setattr(weights, "tags", lambda model: ("nyu", "old") if "mobile" in model else ())
        monkeypatch.setattr(weights, "card", lambda model, tag="DEFAULT": CARD)

    def test_list(self, capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
        assert cli.main(["list"]) == 0
        text = capsys.readouterr().out
        rows = [line.removeprefix("*").split() for line in text.splitlines()]
        columns = ["model", "weights", "parameters", "file", "size", "AbsRel", "d1"]
        trained = ["unet_mobilenet_v3", "nyu,", "old", "3.5M", "7.1", "MB", "224x288", "0.221", "0.654"]
        assert rows[:2] == [columns, trained]
        assert ["unet", "-", "31.0M", "-", "-", "-", "-"] in rows
        marked = [line.split()[1] for line in text.splitlines() if line.startswith("* ")]
        assert marked[0] == DEFAULT_MODEL and "unet" not in marked
        for column in ("size  ", "AbsRel  ", "d1  "):  # explained below
            assert f"\n{column}" in text
        assert text.endswith("654 frames of NYU.\n")
        assert cli.main(["list", "*resnet*"]) == 0
        table = capsys.readouterr().out.split("\n\n")[0].splitlines()
        assert [line.lstrip("* ").split()[0] for line in table[1:]] == [
            "unet_resnet50",
            "unet_resnet50_heavy",
        ]
        assert cli.main(["list", "unet_resnet"]) == 2
        assert "no model matches 'unet_resnet': did you mean 'unet_resnet50'" in error_of(capsys)

    def test_info(self, capsys: pytest.CaptureFixture[str], two_weights: None) -> None:
        assert cli.main(["info", "unet_mobilenet_v3"]) == 0
        text = " ".join(capsys.readouterr().out.split())
        for part in (
            "MobileNetV3-Large",
            "nyu (the default), unet_mobilenet_v3_nyu-1a2b3c4d.safetensors, 7.1 MB",
            "weights old, ",
            "parameters 3,480,000",
            "made with depthzoo 0.1.0, torch 2.15.0, commit 19ef4eaf",
            "trained on nyu-labelled, pseudo-labels by unet_teacher, rooms; 1,500 images seen in 2 runs, on CPU, H200",
            "works at 224x288",
            "depth in m, 0.001 to 10",
            "Kinect v1, focal length 518.86 px at a width of 640 px (63 degrees wide)",
            "accuracy AbsRel 0.221, RMSE 0.712 m, d1 0.654 with --flip AbsRel 0.201",
            "measured on 654 frames of NYU by size 192x256 AbsRel 0.234",
            "0 to 1 m 3% 0.749 +75%",
            "half below 0.185",
            "nyu-0196 (AbsRel 1.12)",
            "limits - Rooms only. terms",
        ):
            assert part in text, part
        assert text.count("Silberman") == 2  # once for each of the two weights
        assert "Args:" not in text and "lr = 1" not in text
        assert cli.main(["info", "unet_mobilenet_v3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == [CARD, CARD]
        assert cli.main(["info", "unet"]) == 0
        assert "31,037,633 parameters; no trained weights yet" in capsys.readouterr().out
        assert cli.main(["info", "unet_mobilnet"]) == 2
        assert "unknown model 'unet_mobilnet': did you mean 'unet_mobilenet_v3'" in error_of(capsys)

    @pytest.mark.parametrize("key", [key for key in CARD if key not in ("bytes", "file", "size")])
    def test_info_of_cards_that_lack_something_or_are_odd(
        self, key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(weights, "tags", lambda model: ("nyu",))
        for card in ({k: v for k, v in CARD.items() if k != key}, CARD | {key: ["odd"]}):
            monkeypatch.setattr(weights, "card", lambda model, tag, card=card: card)
            assert cli.main(["info", "unet"]) == 0
            assert "7.1 MB" in " ".join(capsys.readouterr().out.split())

    def test_info_without_a_checkout(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The manifest's entry only; and once the file is in the cache, its whole card."""
        short = {"file": "unet_nyu-1a2b3c4d.safetensors", "sha256": "1a2b3c4d", "bytes": 7_100_000}
        monkeypatch.setattr(weights, "tags", lambda model: ("nyu",))
        monkeypatch.setattr(weights, "card", lambda model, tag: short)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        assert cli.main(["info", "unet"]) == 0
        assert "once predict has downloaded the file" in " ".join(capsys.readouterr().out.split())
        weights.save_weights(tmp_path / "checkpoints" / short["file"], {"a": torch.zeros(1)}, CARD)
        assert cli.main(["info", "unet"]) == 0
        assert NYU in " ".join(capsys.readouterr().out.split())

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


@pytest.fixture
def shell(root: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts Python in a process of its own, in the test's folder."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        options = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
        return subprocess.Popen([sys.executable, *arguments], env=environment, text=True, **options)

    return start


@pytest.mark.parametrize(
    ("line", "code", "text"),
    [
        ("", 0, "usage: depthzoo"),
        ("--help", 0, "usage: depthzoo"),
        ("--version", 0, f"depthzoo {__version__}"),
        ("predict --help", 0, "--colormap"),
        ("info --help", 0, "--json"),
        ("lisst", 2, "invalid choice: 'lisst'"),
        ("predict absent.png", 2, "no such file"),
        ("predict . --size 3", 2, "expected HEIGHTxWIDTH"),
        ("predict . --near 2 --far 1", 2, "must be below"),
        ("predict a.png --out b.exr", 2, "no such file"),
    ],
)
def test_help_and_wrong_usage_import_nothing_slow(
    shell: Callable[..., subprocess.Popen[str]], line: str, code: int, text: str
) -> None:
    program = (
        "import sys; from depthzoo.cli import main; code = main(sys.argv[1:]); "
        "slow = sys.modules.keys() & {'torch', 'torchvision', 'numpy', 'PIL', 'tqdm', 'safetensors'}; "
        "sys.exit(f'imports {slow}' if slow else code)"
    )
    process = shell("-c", program, *line.split())
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert text in (err if code else out)


def test_constants_of_the_library() -> None:
    """Those that the parser repeats, since importing them would be slow."""
    assert set(cli.COLORMAPS) == set(colormaps.COLORMAPS)
    assert set(cli.KINDS) == set(cli_predict.WRITERS)
    assert {end for end in cli.KINDS.values() if end.endswith(".png")} == set(images.OUTPUTS)


def test_errors_of_weights_are_without_advice_for_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise WeightsError("cannot download", "weights=None builds it")

    monkeypatch.setattr(cli_info, "print_models", fail)
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err == "depthzoo: error: cannot download\n"


def test_export_is_the_exporter_of_the_checkout(
    shell: Callable[..., subprocess.Popen[str]], tmp_path: Path, root: Path
) -> None:
    shutil.copytree(root / "depthzoo", tmp_path / "depthzoo", ignore=shutil.ignore_patterns("__pycache__"))
    command = ["-m", "depthzoo", "export"]
    _, err = shell(*command, "unet").communicate(timeout=60)
    assert (
        err.startswith("depthzoo: error: only a clone has the exporter: git clone") and err.count("\n") == 1
    )
    script = tmp_path / "export" / "to_onnx.py"
    script.parent.mkdir()
    script.write_text("import os, sys; print(sys.argv[1:], flush=True); eval(sys.argv[-1])")
    options = ["--uint8", "unet", "--help", "-q"]
    for last, code in (("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 128 + 9), ("0", 0)):
        process = shell(*command, *options, last)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (code, f"{[*options, last]}\n", "")


@pytest.mark.parametrize("command", ["list", "predict ."])
def test_interrupt_while_packages_are_imported(
    shell: Callable[..., subprocess.Popen[str]], tmp_path: Path, command: str
) -> None:
    """Ctrl-C arrives when NumPy is imported, within a module that swallows KeyboardInterrupt."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    process = shell("-m", "depthzoo", *command.split())
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "depthzoo: interrupted\n")


def test_the_command_for_real(run: Path, shell: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """From another folder; with the image on stdin; and with a reader that goes away."""
    save(str(run / "a.png"))
    command = ["-m", "depthzoo"]
    with open(run / "a.png", "rb") as image:
        process = shell(
            *command, "predict", "-", "a.png", "--save", "depth16,ply", "--weights", ".", cwd=run, stdin=image
        )
        out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert out.splitlines()[-1] == f"2 of 2 predicted: out{os.sep}"
    for name in ("a", "stdin"):
        with Image.open(run / "out" / f"{name}.depth.png") as depth:
            assert depth.size == (48, 32)
            assert abs(np.asarray(depth).mean() - 2540) < 500
    reading, writing = os.pipe()
    os.close(reading)
    process = shell(*command, "list", stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (141, "")
