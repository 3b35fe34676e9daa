"""The command that turns a float32 file into an INT8 one."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from export import quantize
from export.graph import ExportError
from export.quantize import main, quantize_file, read
from export.run_onnx import OnnxDepth

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(
    tiny_fixed_file: Path, shards: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(tiny_fixed_file), "--data", str(shards), "--frames", "3", "--float", "fine.0"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == "" and len(lines) == 3
    assert lines[0] == "calibrating on 3 frames of kitchens, train"
    assert lines[1].startswith(f"parity with {tiny_fixed_file}: max ")
    assert lines[2].startswith("tiny_64x96_int8.onnx: ")
    before, after = OnnxDepth(tiny_fixed_file), OnnxDepth(here / "tiny_64x96_int8.onnx")
    assert after.fixed == before.fixed == (64, 96)
    changed = {"precision", "calibration", "parity"}
    assert after.metadata["precision"] == "int8"
    assert after.metadata["parity"]["with"] == "the fp32 file"
    assert after.metadata["calibration"]["float"] == ["normalize", "head.conv", "fine.0"]
    assert {key: after.metadata[key] for key in before.metadata if key not in changed} == {
        key: value for key, value in before.metadata.items() if key not in changed
    }
    first = (here / "tiny_64x96_int8.onnx").read_bytes()
    assert main(arguments) == 0
    assert (here / "tiny_64x96_int8.onnx").read_bytes() == first


def test_sensitivity_is_a_table_worst_first(
    tiny_fixed_file: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tiny_fixed_file), "--frames", "2", "--sensitivity"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert {layer for _, _, layer in rows} == {"fine.0", "coarse.0", "merge.0"}
    means = [float(mean) for mean, _, _ in rows]
    assert means == sorted(means, reverse=True) and means[0] > 0
    assert not list(here.iterdir())


def test_too_far_from_the_float32_file_is_not_kept(
    tiny_fixed_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated = quantize.calibrated

    def damaged(*args: object, **options: object) -> tuple[onnx.ModelProto, dict[str, object]]:
        model, facts = calibrated(*args, **options)  # type: ignore[arg-type]
        bias = next(i for i in model.graph.initializer if i.name == "head.conv.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 5, bias.name))
        return model, facts

    monkeypatch.setattr(quantize, "calibrated", damaged)
    with pytest.raises(ExportError, match="differs too far"):
        quantize_file(tiny_fixed_file, here / "int8.onnx", frames=2)
    assert not list(here.iterdir())


def test_ctrl_c_leaves_nothing(
    tiny_fixed_file: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(quantize, "compare", interrupt)
    assert main([str(tiny_fixed_file), "--frames", "2"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not list(here.iterdir())


@pytest.fixture
def files(tiny_file: Path, uint8_file: Path, here: Path) -> Path:
    """Everything that is no float32 file of ours."""
    content = tiny_file.read_bytes()
    (here / "good.onnx").write_bytes(content)
    (here / "text.onnx").write_text("this is no model\n")
    (here / "empty.onnx").write_bytes(b"")
    (here / "cut.onnx").write_bytes(content[: len(content) // 2])
    (here / "bytes.onnx").write_bytes(uint8_file.read_bytes())
    model = onnx.load_from_string(content)
    next(entry for entry in model.metadata_props if entry.key == "precision").value = "fp16"
    onnx.save(model, here / "half.onnx")
    del model.metadata_props[:]
    onnx.save(model, here / "foreign.onnx")
    (here / "folder").mkdir()
    return here


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx: no such file"),
        (["folder"], "folder: no such file"),
        (["text.onnx"], "text.onnx is no ONNX file, or one cut short"),
        (["empty.onnx"], "empty.onnx is no ONNX file, or one cut short"),
        (["cut.onnx"], "cut.onnx is no ONNX file, or one cut short"),
        (["foreign.onnx"], "not one made by export/to_onnx.py"),
        (["half.onnx"], "half.onnx is fp16 already"),
        (["bytes.onnx"], "to_onnx.py --precision int8 --uint8"),
        (["text.onnx", "--sensitivity"], "text.onnx is no ONNX file"),
        (["good.onnx", "--out", "nowhere/int8.onnx"], "the folder nowhere does not exist"),
        (["good.onnx", "--out", "folder"], "folder is a folder"),
        (["good.onnx", "--data", "nowhere"], "no data set at nowhere: no such folder"),
        (["good.onnx", "--data", "folder"], "dataset.json is missing"),
        (["good.onnx", "--frames", "0"], "--frames must be 1 or more"),
        (["good.onnx", "--percentile", "101"], "--percentile must be over 50 and at most 100"),
        (["good.onnx", "--frames", "1", "--float", "fine"], "no layer 'fine' in tiny: there are fine.0"),
        ([], "FILE"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(files.iterdir())
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("quantize: error: ") and message in error and error.count("\n") == 1
    assert sorted(files.iterdir()) == before


def test_wherever_the_file_is_cut(files: Path) -> None:
    content = (files / "good.onnx").read_bytes()
    size = len(content)
    for at in (1, 10, size // 10, size // 3, size // 2, 9 * size // 10, size - 100, size - 1):
        (files / "cut.onnx").write_bytes(content[:at])
        with pytest.raises(ExportError, match="cut.onnx"):
            read(files / "cut.onnx")


def test_without_the_packages_it_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", str(ROOT / "export" / "quantize.py"), "m.onnx"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not installed: run `make setup` or `pip install -e" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("start", [["-m", "export.quantize"], [str(ROOT / "export" / "quantize.py")]])
def test_both_ways_to_start_it(start: list[str], tiny_fixed_file: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} if start[0] == "-m" else None
    command = [sys.executable, *start, str(tiny_fixed_file), "--frames", "2", "--out", "m.onnx"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" and "parity" in done.stdout
    assert OnnxDepth(tmp_path / "m.onnx").metadata["precision"] == "int8"
