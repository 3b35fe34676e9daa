"""How gpu.sh runs its stages: what is skipped, how one ends, what the command says. No GPU is needed."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from benchmarks.gpu import Runner
from benchmarks.stages.journal import JOURNAL, Journal
from benchmarks.stages.limited import run_limited
from benchmarks.stages.plan import TINY, Plan, Stage
from train.arguments import command

VOODOO = "Voodoo 2"


def call(*arguments: str) -> int:
    return command(gpu.parser(), gpu.run, list(arguments))


def python(name: str, code: str, **others: Any) -> Stage:
    """A stage that runs some code."""
    return Stage(name, "a test", ("-c", code), f"{name}.txt", **others)


def leave(path: Path) -> str:
    """Code that leaves a file."""
    return f"import pathlib; pathlib.Path({str(path)!r}).touch()"


def test_a_stage_is_skipped_when_its_result_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stage = python("one", leave(tmp_path / "one.txt") + "; print('ran')")
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO))
    assert runner.run([stage]) == {} and "ran" in capfd.readouterr().out
    assert runner.run([stage]) == {}
    assert capfd.readouterr().out == f"[1/1] one: done on {VOODOO}\n"
    assert Runner(Plan(tmp_path), Journal(tmp_path, VOODOO), again=True).run([stage]) == {}
    assert "ran" in capfd.readouterr().out
    assert Journal(tmp_path, "Voodoo 3").done(stage) is None
    (tmp_path / "one.txt").unlink()
    assert Journal(tmp_path, VOODOO).done(stage) is None


def test_a_result_file_must_have_a_run_of_that_gpu(tmp_path: Path) -> None:
    stage = Stage("one", "a test", ("-c", ""), "latency.cuda.json")
    journal = Journal(tmp_path, VOODOO)
    journal.note(stage, 1.0)
    assert journal.done(stage) is None
    for name, found in (("Voodoo 3", None), (VOODOO, VOODOO)):
        run = {"machine": {"device": "cuda", "gpu": name}}
        (tmp_path / "latency.cuda.json").write_text(json.dumps({"runs": [run]}))
        assert journal.done(stage) == found


def test_one_that_fails_keeps_no_other_from_running(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO))
    data_stage = python("two", "", needs=("data",))
    failed = runner.run(
        [python("one", "raise SystemExit(3)"), data_stage, python("three", leave(tmp_path / "three.txt"))]
    )
    assert failed == {"one": "exit code 3", "two": "needs --data"}
    assert set(runner.journal.read()[VOODOO]) == {"three"}
    assert "one: exit code 3" in capfd.readouterr().err


def test_a_stage_whose_time_is_up_is_stopped_with_its_children(tmp_path: Path) -> None:
    child = "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    code = (
        "import signal, subprocess, sys, pathlib\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, text=True)\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(child.stdout.readline())\n"
        "signal.pause()\n"
    )
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO), limit=4.0, grace=1.0)
    assert runner.run([python("one", code)]) == {"one": "stopped: its time was up"}
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "zombie" in Path(f"/proc/{pid}/status").read_text()
    assert not runner.journal.read()


def test_ctrl_c_lets_a_stage_save_and_keeps_what_is_done(tmp_path: Path) -> None:
    code = (
        "import os, signal, pathlib\n"
        "try:\n"
        "    os.kill(os.getppid(), signal.SIGINT)\n"
        "    signal.pause()\n"
        "except KeyboardInterrupt:\n"
        f"    pathlib.Path({str(tmp_path / 'saved')!r}).touch()\n"
    )
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO))
    with pytest.raises(KeyboardInterrupt):
        runner.run([python("one", leave(tmp_path / "one.txt")), python("two", code)])
    assert (tmp_path / "saved").exists() and set(runner.journal.read()[VOODOO]) == {"one"}


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
    flags: list[str], settings: dict[str, Any], parts: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stage = Stage("train-x", "a test", ("-c", FAKE_TRAIN, str(run), *flags), "runs/x", run=run)
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO), **settings)
    assert runner.run([stage]) == {}
    assert (run / "parts").read_text() == parts
    assert runner.journal.done(stage) == VOODOO


def test_a_training_that_gets_nowhere_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stage = Stage("train-x", "a test", ("-c", "import signal; signal.pause()"), "runs/x", run=run)
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO), limit=2.0, grace=1.0)
    assert runner.run([stage]) == {"train-x": "no further than step 0 in one part"}


def test_nothing_starts_when_too_little_time_is_left(tmp_path: Path) -> None:
    runner = Runner(Plan(tmp_path), Journal(tmp_path, VOODOO), until=0.0)
    assert runner.run([python("one", leave(tmp_path / "one.txt"))]) == {"one": "no time left; run again"}
    assert not (tmp_path / "one.txt").exists()


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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(gpu, "this_gpu", lambda: VOODOO)
    assert call(*arguments, "--out", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gpu.sh: error: {says}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_it_stops_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "this_gpu", lambda: None)
    assert call("environment", "--out", str(tmp_path)) == 2
    expected = "gpu.sh: error: no NVIDIA GPU that PyTorch can use; --rehearse tries every stage on the CPU\n"
    assert capsys.readouterr().err == expected and not list(tmp_path.iterdir())


def test_a_broken_journal_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / JOURNAL).write_text("[]")
    assert call("--list", "--out", str(tmp_path)) == 2
    assert capsys.readouterr().err == f'gpu.sh: error: {tmp_path / JOURNAL}: expected JSON with "stages"\n'


@pytest.fixture
def script(root: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The shell script, from another folder."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        words = [str(root / "benchmarks" / "gpu.sh"), *arguments]
        known = {**os.environ, "PYTHON": sys.executable, **environment}
        return subprocess.run(words, cwd="/", env=known, capture_output=True, text=True)

    return run


def test_the_script_lists_stages(script: Callable[..., Any], tmp_path: Path) -> None:
    done = script("--list", "largest-unet_b*", "tests", "--out", str(tmp_path))
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
    count = len(list(Plan(scale=TINY, pictures=(root,)).stages()))
    assert f"rehearsed {count} stages in " in done.stdout
    assert done.stdout.endswith("0 failed; nothing of this is a result\n")
    assert {path: path.stat().st_mtime_ns for path in results.iterdir()} == before
