"""The curves: what they are fitted to, what they hold, and what stops them."""

import json
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import scaling
from benchmarks.measure import processes, sample_set
from benchmarks.measure.curve import Curve, power, row
from benchmarks.measure.ways import Step
from train.arguments import command

CPU = torch.device("cpu")
MODEL = "unet_mobilenet_v3"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def rooms() -> Iterator[Path]:
    with sample_set.frames_of(None, 6, (48, 64)) as folder:
        yield folder


# Fits.


@pytest.mark.parametrize("exponent", [-1.0, 0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law(exponent: float) -> None:
    assert power([(x, 3.7 * x**exponent) for x in (12288, 49152, 110592, 307200)]) == pytest.approx(exponent)


def test_the_exponent_of_noisy_points_is_least_squares() -> None:
    # By hand: logarithms to base 2 are (0, 0), (1, 2), (2, 1): slope 1/2.
    assert power([(1, 1), (2, 4), (4, 2)]) == 0.5
    assert power([(4, 1)]) is None and power([]) is None and power([(4, 1), (4, 2)]) is None


def test_a_curve_knows_its_cost_at_all_and_at_the_end() -> None:
    curve = Curve("pixels", MODEL, "inference", 2, None, [100, 200, 400])
    # Seconds for two pictures: 1, 1, then twice that for twice the pixels.
    for value, seconds in ((100, 1.0), (200, 1.0), (400, 2.0)):
        curve.rows.append(row(value, 2, [seconds], label=f"{value} px"))
    known = curve.facts()
    assert known["exponent"] == 0.5 and known["exponent_at_the_end"] == 1
    assert [one["images_per_s"] for one in known["rows"]] == [2, 2, 1]
    assert json.loads(json.dumps(known)) == known and known["asked"] == [100, 200, 400]
    text = curve.lines()
    assert (
        text[0].startswith(f"{MODEL}, inference, batch 2, over pixels")
        and "+0.50, +1.00 at the end" in text[0]
    )
    # A loader without threads of its own has no place on a logarithmic axis.
    workers = Curve("workers", "loader", "batches", 2, (32, 32), [0, 1, 2])
    workers.rows += [row(value, 1, [1 / rate]) for value, rate in ((0, 7.0), (1, 10.0), (2, 20.0))]
    assert workers.facts()["exponent"] == -1


def test_rates_are_ordered() -> None:
    assert row(1, 6, [3.0, 1.0, 2.0]) == {"value": 1, "images_per_s": 3, "lowest": 2, "highest": 6}


# Curves.


def points(*values: int) -> list[tuple[int, str, int]]:
    return [(value, str(value), value) for value in values]


def test_a_point_that_would_take_too_long_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def make(number: int) -> Step:
        def step() -> None:
            clock[0] += 10.0**number

        return step

    def timed(step: Step) -> float:
        before = clock[0]
        step()
        return clock[0] - before

    monkeypatch.setattr(scaling, "elapsed", timed)
    curve = scaling.by_turns(
        Curve("batch", MODEL, "inference", None, (32, 32), [1, 2, 4, 8]), points(1, 2, 4, 8), make, CPU, 50
    )
    # 4 * (1 + 10) fits into 50 s, 4 * (1 + 10 + 100) does not.
    assert [one["value"] for one in curve.rows] == [1, 2]
    assert curve.missing == {"4": "takes more than --seconds 50", "8": "takes more than --seconds 50"}


def test_a_point_without_memory_is_named_and_other_errors_are_not_hidden() -> None:
    def make(number: int) -> Step:
        def step() -> None:
            if number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return step

    curve = Curve("batch", MODEL, "inference", None, (32, 32), [1, 2])
    scaling.by_turns(curve, points(1, 2), make, CPU, 1)
    assert [one["value"] for one in curve.rows] == [1] and curve.missing == {"2": "out of memory"}

    def broken(number: int) -> Step:
        raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        scaling.by_turns(curve, points(1), broken, CPU, 1)


def test_steps_of_both_kinds_have_the_size_and_batch(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    infer = scaling.stepper("inference", MODEL, (32, 64), 3, rooms, 6, tmp_path, CPU)
    depth = infer()
    assert isinstance(depth, torch.Tensor) and depth.shape == (3, 1, 32, 64) and depth.is_inference()
    seen: list[torch.Size] = []
    learn = scaling.start_run

    def noticed(*arguments: object) -> object:
        run = learn(*arguments)  # type: ignore[arg-type]
        run.learner.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
        return run

    monkeypatch.setattr(scaling, "start_run", noticed)
    scaling.stepper("training", MODEL, (32, 64), 3, rooms, 6, tmp_path / "run", CPU)()
    assert seen == [(3, 3, 32, 64)]


@pytest.mark.parametrize(("what", "tf32"), [("inference", False), ("training", True)])
def test_the_arithmetic_is_set_and_stored(
    what: str, tf32: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    seen: set[tuple[bool, ...]] = set()
    monkeypatch.setattr(
        scaling,
        "stepper",
        lambda *_: lambda: seen.add((cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark)),
    )
    args = Namespace(sizes=[(32, 64)], batch=1, frames=6, seconds=0.01)
    monkeypatch.setattr(cudnn, "allow_tf32", not tf32)
    curve = scaling.fill(Curve("pixels", MODEL, what, 1, None, [2048]), args, tmp_path, CPU)
    assert seen == {(tf32, tf32, True)} and curve.facts()["tf32"] is tf32
    assert cudnn.allow_tf32 is not tf32


def test_more_processes_than_cores_are_not_started(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []

    def train(count: int, *rest: object) -> list[float]:
        started.append(count)
        return [1.0, 1.25] if count == 1 else [1.25, 1.25]

    monkeypatch.setattr(scaling, "train_together", train)
    monkeypatch.setattr(scaling, "cores", lambda: 2)
    curve = Curve("processes", MODEL, "training", 4, (32, 32), [1, 2, 4])
    scaling.over_processes(curve, rooms, CPU, 6, 1)
    assert started == [1, 2, 1, 2] and curve.missing == {"4 processes": "2 cores"}
    one, two = curve.rows
    assert one["turns"] == 4 and one["images_per_s"] == 3.6 and two["images_per_s"] == 6.4
    assert one["efficiency"] == 1 and two["efficiency"] == pytest.approx(6.4 / 7.2, abs=1e-3)


@pytest.mark.slow
def test_two_processes_train_together(rooms: Path) -> None:
    times = processes.train_together(2, MODEL, (32, 32), 2, rooms, 6, "cpu", 0.01)
    assert len(times) >= 3 and min(times) > 0
    with pytest.raises(ChildProcessError, match=r"^RecipeError: .*size = \[16, 16\]"):
        processes.train_together(2, MODEL, (16, 16), 2, rooms, 6, "cpu", 0.01)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_one_process_trains(rooms: Path) -> None:
    assert len(processes.train_together(1, MODEL, (64, 64), 2, rooms, 6, "cuda", 0.01)) >= 3


# The command.


def run(*arguments: object) -> int:
    return command(scaling.parser(), scaling.run, [str(argument) for argument in arguments])


@pytest.fixture
def small(rooms: Path, tmp_path: Path) -> list[object]:
    """Arguments of a call that takes seconds."""
    flags = [
        "--device",
        "cpu",
        "--data",
        rooms,
        "--frames",
        4,
        "--models",
        MODEL,
        "--size",
        "32x32",
        "--batch",
        2,
    ]
    return [*flags, "--seconds", 0.5, "--rounds", 1, "--out", tmp_path / "scaling.json"]


def stored(tmp_path: Path) -> list[dict]:
    return json.loads((tmp_path / "scaling.json").read_text())["runs"]


def test_all_that_is_stored(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.loading.PAUSE_SECONDS", 0)
    values = ["--sizes", "32x64", "32x32", "--batches", 4, 2, "--workers", 0, 2]
    assert run(*small, *values, "--over", "pixels", "batch", "workers") == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 120
    runs = stored(tmp_path)
    assert [(one["over"], one["what"]) for one in runs] == [
        ("pixels", "inference"), ("pixels", "training"), ("batch", "inference"), ("batch", "training"),
        ("workers", "augmented batches"),
    ]  # fmt: skip
    found = {"pixels": [1024, 2048], "batch": [2, 4], "workers": [0, 2]}
    for one in runs:
        assert {"machine", "versions", "commit", "command", "model", "missing"} <= set(one)
        values = [each["value"] for each in one["rows"]] + [
            int(name) for name in one["missing"] if name.isdigit()
        ]
        # On a busy machine the second value may take more than its time.
        assert values == found[one["over"]][: len(values)] and one["rows"][0]["value"] == values[0]
        for each in one["rows"]:
            assert 0 < each["lowest"] <= each["images_per_s"] <= each["highest"]
    assert runs[0]["rows"][0]["label"] == "32x32" and runs[-1]["from memory"] > 0


def test_what_is_stored_is_left_out_and_ctrl_c_keeps_what_is_done(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled: list[str] = []

    def fill(curve: Curve, *rest: object) -> Curve:
        if curve.what == "training" and not filled[1:]:
            filled.append("stopped")
            raise KeyboardInterrupt
        filled.append(curve.what)
        return curve

    monkeypatch.setattr(scaling, "fill", fill)
    assert run(*small, "--over", "pixels") == 130
    assert capsys.readouterr().err == "scaling.py: interrupted\n"
    assert [one["what"] for one in stored(tmp_path)] == ["inference"]
    assert run(*small, "--over", "pixels", "--missing-only") == 0
    assert filled == ["inference", "stopped", "training"] and len(stored(tmp_path)) == 2
    assert "inference, over pixels: stored already" in capsys.readouterr().out
    # Other sizes are another question.
    assert run(*small, "--over", "pixels", "--missing-only", "--sizes", "32x32") == 0
    assert len(filled) == 5 and len(stored(tmp_path)) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--models", "unet_mobilenet"], "unknown model 'unet_mobilenet'"),
        (["--data", "nowhere"], "no data set at nowhere: no such folder"),
        (["--batches", "0"], "--batches 0: expected at least 1"),
        (["--workers", "-1"], "--workers -1: expected at least 0"),
        (["--seconds", "0"], "--seconds 0.0: expected more than 0"),
        (["--out", "nowhere/scaling.json"], "nowhere/scaling.json: the folder nowhere does not exist"),
        (["--device", "cuda:99"], "device 'cuda:99' is not available"),
    ],
)
def test_bad_input_is_one_line(
    small: list[object], change: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*small, *change) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1
