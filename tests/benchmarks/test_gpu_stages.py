"""The stages of gpu.sh: their commands, what is skipped, what is owed, and how one ends. No GPU is needed."""

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Runner
from benchmarks.measure.claims import ROWS
from benchmarks.stages import owed, plan
from benchmarks.stages.journal import JOURNAL, Journal
from benchmarks.stages.limited import run_limited
from benchmarks.stages.owed import WANTED, Wanted
from benchmarks.stages.plan import FULL, TINY, Plan, Stage
from depthzoo import weights
from depthzoo.data.shards import write_dataset
from train.arguments import command

VOODOO = "Voodoo 2"


def call(*arguments: str) -> int:
    return command(gpu.parser(), gpu.run, list(arguments))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set by name, with 700 train frames."""
    folder = tmp_path / "data"
    folder.mkdir()
    shard = {"file": "train-000000.tar", "count": 350, "bytes": 1, "sha256": ""}
    write_dataset(folder, {"train": {"shards": [shard, shard], "size": [288, 384], "focal_px": 311.0}})
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def python(name: str, code: str, **others: Any) -> Stage:
    """A stage that runs some code."""
    return Stage(name, "a test", ("-c", code), f"{name}.txt", **others)


def leave(path: Path) -> str:
    """Code that leaves a file."""
    return f"import pathlib; pathlib.Path({str(path)!r}).touch()"


# -- what there is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [FULL, TINY], ids=["full", "tiny"])
def test_every_command_is_one_that_its_script_takes(
    scale: plan.Scale, data: Path, out: Path, root: Path
) -> None:
    names = set()
    for stage in Plan(out, scale, data, data / "frames.mat", "none", (data,)).stages():
        names.add(stage.name)
        words = list(stage.words)
        if words[0] == "-m" and words[1] != "pytest":
            module = {"train": "train.__main__", "train.evaluate": "train.evaluate"}[words[1]]
            args = importlib.import_module(module).parser().parse_args(words[2:])
            assert str(out) in " ".join(words) and args.device == scale.device
        elif words[0] != "-m":
            script = root / words[0]
            assert script.is_file()
            args = importlib.import_module(f"benchmarks.{script.stem}").parser().parse_args(words[1:])
            assert args.out == out / stage.product and args.device == scale.device
            # Names of models, peers and backends are looked up later.
            if script.stem == "latency":
                importlib.import_module("benchmarks.latency").check(args, torch.device(scale.device))
    assert len(names) == len(list(Plan(out, scale, data, pictures=(data,)).stages()))


def test_the_stages_are_what_a_gpu_is_asked_for(data: Path) -> None:
    names = [stage.name for stage in Plan(data=data).stages()]
    models = (
        "unet_resnet50",
        "unet_mobilenet_v3",
        "unet",
        "dispnet_vgg16",
        "unet_bilinear",
        "unet_resnet50_wide",
    )
    for model in models:
        for size in ("240x320", "480x640"):
            assert {f"latency-{model}-{size}-1", f"latency-{model}-{size}-16"} <= set(names)
        assert {f"training-{model}", f"largest-{model}"} <= set(names)
    assert {"environment", "tests", "peers-native-1", "predictor", "scaling-processes", "loading"} <= set(
        names
    )
    weights_last = names.index("evaluate-unet_resnet50_wide-nyu")
    assert names[weights_last - 1] == "train-unet_resnet50_wide-nyu"
    assert names[weights_last + 1 :] == [f"reproduce-{row}-{seed}" for seed in range(3) for row in ROWS]
    assert names.index("train-unet-nyu-mse") < names.index("train-unet-nyu-combined")


def test_the_second_stage_of_the_seed_starts_from_the_first(data: Path, out: Path) -> None:
    by_name = {stage.name: stage for stage in Plan(out, FULL, data).stages()}
    stage = by_name["train-unet-nyu-combined"]
    start = out / "runs" / "unet-nyu-mse" / "model.safetensors"
    assert start in stage.needs and stage.words[stage.words.index("--init") + 1] == str(start)
    runner = Runner(Plan(out, FULL, data), Journal(out, VOODOO))
    assert runner.lacking(stage) == "waits for train-unet-nyu-mse"
    # A training that is not finished has left weights, too.
    start.parent.mkdir(parents=True)
    start.touch()
    assert (
        runner.lacking(stage)
        == runner.lacking(by_name["evaluate-unet-nyu-mse"])
        == "waits for train-unet-nyu-mse"
    )
    runner.journal.note(by_name["train-unet-nyu-mse"], 1.0)
    assert runner.lacking(stage) == runner.lacking(by_name["evaluate-unet-nyu-mse"]) == ""
    start.unlink()
    assert runner.lacking(stage) == "waits for runs/unet-nyu-mse/model.safetensors"


def test_where_there_are_pictures_a_model_becomes_its_own_student(data: Path, out: Path) -> None:
    by_name = {
        stage.name: stage for stage in Plan(out, FULL, data, pictures=(data / "a.tar", data / "b")).stages()
    }
    stage = by_name["student-unet_resnet50-nyu"]
    first = out / "runs" / "unet_resnet50-nyu" / "model.safetensors"
    args = importlib.import_module("train.__main__").parser().parse_args(stage.words[2:])
    assert args.init == args.teacher_model == str(first) and args.size == (288, 384)
    assert args.pictures == [data / "a.tar", data / "b"]
    assert stage.after == "train-unet_resnet50-nyu" and first in stage.needs
    # What is measured is the student.
    measured = by_name["evaluate-unet_resnet50-nyu"]
    assert measured.after == stage.name and measured.words[2] == str(out / stage.product)
    assert "student-unet-nyu-mse" not in by_name
    assert not [stage for stage in Plan(out, FULL, data).stages() if stage.name.startswith("student-")]


def test_a_row_that_goes_on_from_another_waits_for_it(data: Path, out: Path) -> None:
    by_name = {stage.name: stage for stage in Plan(out, FULL, data).stages()}
    for seed in "012":
        assert by_name[f"reproduce-combined-{seed}"].after == f"reproduce-mse-{seed}"
        assert by_name[f"reproduce-bilinear-{seed}"].after == ""


def test_the_seeds_recipes_are_fitted_to_fewer_frames() -> None:
    mse, combined = (one for one in WANTED if one.model == "unet")
    # 160,000 images are 229 times 700, in batches of 2; the second stage is a tenth of that.
    assert owed.length(mse, 700) == ["--frames", "0", "--epochs", "229", "--validate-every", "4007"]
    assert owed.length(combined, 700) == ["--frames", "0", "--epochs", "23", "--validate-every", "402"]
    assert owed.length(mse, 50_000) == owed.length(WANTED[0], 700) == []


# -- what is owed -----------------------------------------------------------------------------------------


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of weights in which one is of a GPU and one of a CPU."""
    path = tmp_path / "manifest.json"

    def entry(device: str) -> dict[str, Any]:
        return {"default": "nyu", "tags": {"nyu": {"trained_on": {"device": device}}}}

    path.write_text(json.dumps({"unet_resnet50": entry(VOODOO), "unet_mobilenet_v3": entry("CPU")}))
    monkeypatch.setattr(weights, "MANIFEST", path)
    return path


def test_weights_without_a_card_or_from_a_cpu_are_owed(table: Path, out: Path) -> None:
    found = owed.owed([table, out / "no such file"])
    assert {(one.model, one.tag): reason for one, reason in found.items()} == {
        ("unet_mobilenet_v3", "nyu"): "trained on a CPU",
        ("unet", "nyu-mse"): "no card",
        ("unet", "nyu-combined"): "no card",
        ("dispnet_vgg16", "nyu"): "no card",
        ("unet_bilinear", "nyu"): "no card",
        ("unet_resnet50_wide", "nyu"): "no card",
    }


def test_missing_lists_exactly_what_is_missing(
    table: Path, out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    everything = list(Plan(out, FULL, data).stages())
    left = {"tests", "latency-unet-480x640-16"}
    journal = {stage.name: {"seconds": 1, "commit": "0"} for stage in everything if stage.name not in left}
    (out / JOURNAL).write_text(json.dumps({"stages": {VOODOO: journal}}))
    for stage in everything:
        if stage.product.endswith(".cuda.json"):
            run = {"machine": {"device": "cuda", "gpu": VOODOO}}
            (out / stage.product).write_text(json.dumps({"runs": [run]}))
    monkeypatch.setattr(gpu, "this_gpu", lambda: VOODOO)
    assert call("--missing", "--out", str(out), "--data", str(data)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(line[:9].strip(), line[9:].split("  ")[0]) for line in lines] == [
        ("stage", "tests"),
        ("stage", "latency-unet-480x640-16"),
        ("weights", "unet_mobilenet_v3 nyu"),
        ("weights", "unet nyu-mse"),
        ("weights", "unet nyu-combined"),
        ("weights", "dispnet_vgg16 nyu"),
        ("weights", "unet_bilinear nyu"),
        ("weights", "unet_resnet50_wide nyu"),
    ]
    # On another GPU nothing has been measured.
    monkeypatch.setattr(gpu, "this_gpu", lambda: "Voodoo 3")
    assert call("--missing", "--out", str(out)) == 0
    other = capsys.readouterr().out
    # The weights of unet_resnet50 are there, whichever GPU made them.
    owing = [stage.name for stage in everything if not stage.name.endswith("-unet_resnet50-nyu")]
    assert [line.split()[1] for line in other.splitlines() if line.startswith("stage")] == owing


# -- how stages run ---------------------------------------------------------------------------------------


def test_a_stage_is_skipped_when_its_result_is_there(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stage = python("one", leave(out / "one.txt") + "; print('ran')")
    runner = Runner(Plan(out), Journal(out, VOODOO))
    assert runner.run([stage]) == {} and "ran" in capfd.readouterr().out
    assert runner.run([stage]) == {}
    assert capfd.readouterr().out == f"[1/1] one: done on {VOODOO}\n"
    assert Runner(Plan(out), Journal(out, VOODOO), again=True).run([stage]) == {}
    assert "ran" in capfd.readouterr().out
    assert Journal(out, "Voodoo 3").done(stage) is None
    (out / "one.txt").unlink()
    assert Journal(out, VOODOO).done(stage) is None


def test_a_result_file_must_have_a_run_of_that_gpu(out: Path) -> None:
    stage = Stage("one", "a test", ("-c", ""), "latency.cuda.json")
    journal = Journal(out, VOODOO)
    journal.note(stage, 1.0)
    assert journal.done(stage) is None
    for name, found in (("Voodoo 3", None), (VOODOO, VOODOO)):
        run = {"machine": {"device": "cuda", "gpu": name}}
        (out / "latency.cuda.json").write_text(json.dumps({"runs": [run]}))
        assert journal.done(stage) == found


def test_one_that_fails_keeps_no_other_from_running(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    runner = Runner(Plan(out), Journal(out, VOODOO))
    data_stage = python("two", "", needs=("data",))
    failed = runner.run(
        [python("one", "raise SystemExit(3)"), data_stage, python("three", leave(out / "three.txt"))]
    )
    assert failed == {"one": "exit code 3", "two": "needs --data"}
    assert set(runner.journal.read()[VOODOO]) == {"three"}
    assert "one: exit code 3" in capfd.readouterr().err


def test_a_stage_whose_time_is_up_is_stopped_with_its_children(out: Path) -> None:
    child = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    code = (
        "import signal, subprocess, sys, pathlib\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        f"pathlib.Path({str(out / 'pid')!r}).write_text(child.stdout.readline())\n"
        "signal.pause()\n"
    )
    runner = Runner(Plan(out), Journal(out, VOODOO), limit=4.0, grace=1.0)
    assert runner.run([python("one", code)]) == {"one": "stopped: its time was up"}
    pid = int((out / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text()
    assert not runner.journal.read()


def test_ctrl_c_lets_a_stage_save_and_keeps_what_is_done(out: Path) -> None:
    code = (
        "import os, signal, pathlib\n"
        "try:\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        f"    pathlib.Path({str(out / 'saved')!r}).touch()\n"
    )
    runner = Runner(Plan(out), Journal(out, VOODOO))
    with pytest.raises(KeyboardInterrupt):
        runner.run([python("one", leave(out / "one.txt")), python("two", code)])
    assert (out / "saved").exists() and set(runner.journal.read()[VOODOO]) == {"one"}


FAKE_TRAIN = """
import json, pathlib, signal, sys
folder, most = pathlib.Path(sys.argv[1]), 6
folder.mkdir(exist_ok=True)
metrics = folder / "metrics.json"
step = json.loads(metrics.read_text())["step"] if "--resume" in sys.argv else 0
last = int(sys.argv[sys.argv.index("--max-steps") + 1]) if "--max-steps" in sys.argv else most
def save(step):
    metrics.write_text(json.dumps({"step": step, "steps": most}))
    (folder / "checkpoint.safetensors").touch()
    with open(folder / "parts", "a") as file:
        file.write(f"{step} ")
if "--slow" in sys.argv and step < 4:
    try:
        signal.pause()
    except KeyboardInterrupt:
        save(step + 2)
        sys.exit(130)
save(min(last, most))
"""


@pytest.mark.parametrize(
    ("flags", "settings", "parts"),
    [
        ([], {"part_steps": 4}, "4 6 "),
        ([], {}, "6 "),
        (["--slow"], {"limit": 5.0, "grace": 2.0}, "2 4 6 "),
    ],
    ids=["by steps", "at once", "by time"],
)
def test_a_training_goes_on_in_parts(
    flags: list[str], settings: dict[str, Any], parts: str, out: Path
) -> None:
    run = out / "run"
    stage = Stage("train-x", "a test", ("-c", FAKE_TRAIN, str(run), *flags), "runs/x", run=run)
    runner = Runner(Plan(out), Journal(out, VOODOO), **settings)
    assert runner.run([stage]) == {}
    assert (run / "parts").read_text() == parts
    assert runner.journal.done(stage) == VOODOO


def test_a_training_that_gets_nowhere_ends(out: Path) -> None:
    run = out / "run"
    stage = Stage("train-x", "a test", ("-c", "import signal; signal.pause()"), "runs/x", run=run)
    runner = Runner(Plan(out), Journal(out, VOODOO), limit=2.0, grace=1.0)
    assert runner.run([stage]) == {"train-x": "no further than step 0 in one part"}


def test_nothing_starts_when_too_little_time_is_left(out: Path) -> None:
    runner = Runner(Plan(out), Journal(out, VOODOO), until=0.0)
    assert runner.run([python("one", leave(out / "one.txt"))]) == {"one": "no time left; run again"}
    assert not (out / "one.txt").exists()


def test_the_exit_code_of_a_command(tmp_path: Path) -> None:
    assert run_limited([sys.executable, "-c", "raise SystemExit(5)"], 60, tmp_path) == (5, False)


# -- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["latency-unet"], "unknown stage 'latency-unet': did you mean"),
        (["--data", "nowhere"], "no data set at nowhere: no such folder"),
        (["--mat", "nowhere.mat"], "nowhere.mat: no such file; expected nyu_depth_v2_labeled.mat"),
        (["--minutes", "0"], "--minutes 0: expected more than 0"),
        ([], "--data DIR is needed by loading, train-unet_resnet50-nyu...; or name other stages"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    says: str,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "this_gpu", lambda: VOODOO)
    assert call(*arguments, "--out", str(out)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpu.sh: error: {says}") and error.count("\n") == 1
    assert not list(out.iterdir())


def test_without_a_gpu_it_stops_with_one_line(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "this_gpu", lambda: None)
    assert call("environment", "--out", str(out)) == 2
    expected = "gpu.sh: error: no NVIDIA GPU that PyTorch can use; --rehearse tries every stage on the CPU\n"
    assert capsys.readouterr().err == expected and not list(out.iterdir())


def test_a_broken_journal_is_named(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (out / JOURNAL).write_text("[]")
    assert call("--list", "--out", str(out)) == 2
    assert capsys.readouterr().err == f'gpu.sh: error: {out / JOURNAL}: expected JSON with "stages"\n'


@pytest.fixture
def script(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The shell script, from another folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(root / "benchmarks" / "gpu.sh"), *arguments]
        known = {**os.environ, "PYTHON": sys.executable, **environment}
        return subprocess.run(words, cwd="/", env=known, capture_output=True, text=True)

    return run


def test_the_script_lists_stages(script: Callable[..., Any], out: Path) -> None:
    done = script("--list", "largest-unet_b*", "tests", "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["tests", "to", "do"],
        ["largest-unet_bilinear", "to", "do"],
    ]


def test_the_script_without_a_python_says_so(script: Callable[..., Any]) -> None:
    done = script(PYTHON="/nowhere/python")
    assert done.returncode == 2
    assert done.stderr == "gpu.sh: error: no /nowhere/python; run make setup, or set PYTHON\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean(root: Path) -> None:
    done = subprocess.run(["shellcheck", str(root / "benchmarks" / "gpu.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_rehearsal(script: Callable[..., Any], root: Path) -> None:
    results = root / "benchmarks" / "results"
    before = {path: path.stat().st_mtime_ns for path in results.iterdir()}
    done = script("--rehearse")
    assert done.returncode == 0, done.stderr
    count = len(list(Plan(scale=TINY).stages()))
    assert f"rehearsed {count} stages in " in done.stdout
    assert done.stdout.endswith("0 failed; nothing of this is a result\n")
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before


def test_wanted_weights_have_recipes(root: Path) -> None:
    for one in (*WANTED, *TINY.wanted):
        assert isinstance(one, Wanted) and (root / "train" / "recipes" / f"{one.recipe}.toml").is_file()
