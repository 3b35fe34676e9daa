"""The plain loop against the trainer: what each of them is, what is stored, what a second call leaves out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import training
from benchmarks.measure import largest_batch, memory, sample_set, ways
from benchmarks.measure.ceiling import Ceiling
from benchmarks.measure.children import in_children
from benchmarks.measure.live_tensors import LiveTensors, counted_peak
from benchmarks.measure.seed_loop import InMemory, PictureFiles, SeedLoop, write_files
from depthzoo.models import list_models
from train.arguments import command
from train.engine import Run
from train.shards import ShardDataset

CPU = torch.device("cpu")
MODEL, SIZE, FRAMES = "unet_mobilenet_v3", (32, 32), 6
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, small rooms, and a ceiling that nobody has to measure."""
    threads, found = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(1)
    monkeypatch.setattr(training, "ceiling_of", lambda device: Ceiling({"fp32": 10.0}, 10.0, {}))
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = found


@pytest.fixture(scope="module")
def rooms() -> Iterator[Path]:
    with sample_set.frames_of(None, FRAMES, (48, 64)) as folder:
        yield folder


@pytest.fixture(scope="module")
def files(rooms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files") / "seed"
    write_files(ShardDataset(rooms, "train", FRAMES), folder, SIZE)
    return folder


@pytest.fixture
def work(rooms: Path, files: Path) -> ways.Work:
    return ways.Work(MODEL, "ours", 2, SIZE, rooms, files, FRAMES, "cpu")


# What is held against each other.


def test_rooms_have_the_frames_asked_for_and_a_folder_stands_in_for_them(rooms: Path) -> None:
    assert len(ShardDataset(rooms, "train")) == FRAMES
    assert sample_set.about(None, rooms, 4) == {"source": "synthetic rooms", "frames": 4, "stored": [48, 64]}
    with sample_set.frames_of(rooms, 99) as folder:
        assert folder == rooms


def test_files_are_the_stored_frames(rooms: Path, files: Path) -> None:
    frames, pairs = ShardDataset(rooms, "train", FRAMES), PictureFiles(files)
    assert len(pairs) == FRAMES
    image, depth = pairs[2]
    assert image.shape == (3, *SIZE) and image.dtype == torch.float32 and 0 <= image.min() <= image.max() <= 1
    stored_image, millimetres = frames[2]
    assert abs(image.mean() - stored_image.mean() / 255) < 0.02
    # Nearest: each depth is one of the frame's.
    assert set((depth * 1000).round().int().flatten().tolist()) <= set(millimetres.flatten().tolist())
    assert torch.equal(InMemory(pairs)[2][1], depth)


def test_the_plain_loop_is_plain(files: Path) -> None:
    loop = SeedLoop(MODEL, PictureFiles(files), 2, CPU)
    seen: list[torch.Tensor] = []
    loop.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    depths: list[torch.Tensor] = []
    loop.model.register_forward_hook(lambda _, given, depth: depths.append(depth))
    before = [parameter.detach().clone() for parameter in loop.model.parameters()]
    losses = [loop.step() for _ in range(5)]  # more than an epoch
    assert all(image.is_contiguous() and image.dtype == torch.float32 for image in seen)
    assert {tuple(image.shape) for image in seen} == {(2, 3, *SIZE)}
    assert all(p.is_contiguous() and p.dtype == torch.float32 for p in loop.model.parameters())
    assert all(not torch.equal(a, b) for a, b in zip(before, loop.model.parameters(), strict=True))
    assert loop.model.head.kind == "linear" and type(loop.optimizer) is torch.optim.Adam
    assert len(set(losses)) == 5 and all(depth.dtype == torch.float32 for depth in depths)


def test_its_loss_is_the_mean_square_over_all_pixels_and_falls(files: Path) -> None:
    class Four(PictureFiles):
        def __len__(self) -> int:
            return 4

    loop, targets = SeedLoop(MODEL, Four(files), 4, CPU), torch.stack([Four(files)[i][1] for i in range(4)])
    depths: list[torch.Tensor] = []
    loop.model.register_forward_hook(lambda _, given, depth: depths.append(depth.detach()))
    first = loop.step()
    # The order is random, the multiset of squares is not; a fresh model predicts about one depth everywhere.
    assert first == pytest.approx(float((targets - depths[0].mean()).square().mean()), rel=0.05)
    loop.optimizer.param_groups[0]["lr"] = 2e-3  # a few steps are to be enough
    assert min(loop.step() for _ in range(12)) < 0.7 * first


def test_ours_is_the_step_of_the_trainer_with_the_recipe(
    work: ways.Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[Run] = []
    taken = Run.train_step

    def noticed(run: Run) -> float:
        runs.append(run)
        return taken(run)

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(Run, "train_step", noticed)
    step = ways.start(work, tmp_path / "run")
    step()
    step()
    (run,) = set(runs)
    assert run.progress.step == 2 and run.learner.average is not None and work.arithmetic() == "bf16"
    assert run.precision == "bf16"
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert work.arithmetic() == "fp32"
    known = sample_set.recipe(MODEL)
    assert (run.config.loss, run.config.augment, run.config.ema) == (known.loss, known.augment, known.ema)
    assert (run.config.size, run.config.batch_size, run.config.encoder_weights) == (SIZE, 2, "none")


def test_cudnn_is_set_as_each_loop_has_it(work: ways.Work, tmp_path: Path) -> None:
    ours = ways.start(work, tmp_path / "run")
    seed = ways.start(training.replace(work, way="seed"), tmp_path)
    for step, searches in ((ours, True), (seed, False), (ours, True)):
        step()
        assert torch.backends.cudnn.benchmark is searches


@pytest.mark.parametrize("name", list_models())
def test_every_model_has_a_recipe_that_needs_no_download(name: str) -> None:
    config = sample_set.recipe(name, batch_size=4)
    assert config.model == name and config.encoder_weights == "none" and config.batch_size == 4


def test_operations_are_three_times_those_on_the_way_forward() -> None:
    image, full = torch.rand(2, 4, 8, 8), torch.nn.Conv2d(4, 6, 3, padding=1)
    depthwise = torch.nn.Conv2d(4, 4, 3, padding=1, groups=4)
    # A pixel takes 2 * 9 * 4 * 6 operations, 2 * 9 * 4 where each channel is by itself.
    for layer, each in ((full, 432), (depthwise, 72)):

        def step(layer: torch.nn.Module = layer) -> None:
            layer(image).sum().backward()

        assert training.count_flop(step) == 3 * 2 * 64 * each


# Memory.


@pytest.mark.parametrize("most", [0, 1, 5, 15, 16, 37, 700, 5000])
@pytest.mark.parametrize("start", [1, 3, 64, 2000])
def test_the_search_finds_the_largest_batch(most: int, start: int) -> None:
    asked: list[int] = []

    def fits(batch: int) -> bool:
        asked.append(batch)
        return batch <= most

    found = largest_batch.largest(fits, start)
    assert len(asked) == len(set(asked)) <= 20
    if most < 16:
        assert found == most
    else:
        assert found <= most and min(most, largest_batch.MOST) - found <= max(1, found // 16)


def test_a_batch_that_runs_out_of_memory_is_forgotten(
    work: ways.Work, monkeypatch: pytest.MonkeyPatch
) -> None:
    with largest_batch.a_run(training.replace(work, size=(64, 64)), again=False) as run:
        learn = run.learner.learn

        def small_memory(image: torch.Tensor, *rest: object, **named: object) -> float:
            value = learn(image, *rest, **named)  # type: ignore[arg-type]
            if len(image) > 5:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return value

        monkeypatch.setattr(run.learner, "learn", small_memory)
        assert largest_batch.largest(lambda batch: largest_batch.fits_in_memory(run, batch)) == 5
        assert not largest_batch.fits_in_memory(run, 6)
        assert all(parameter.grad is None for parameter in run.learner.model.parameters())
        monkeypatch.setattr(run, "train_step", lambda: (_ for _ in ()).throw(RuntimeError("another error")))
        with pytest.raises(RuntimeError, match="another error"):
            largest_batch.fits_in_memory(run, 1)


def test_live_tensors_are_counted_while_they_live() -> None:
    one = torch.zeros(1000)

    def step() -> None:
        a = one + 1
        b = a * 2
        del a
        b.add_(1).view(10, 100).sum()  # in place, a view, and four bytes
        del b
        torch.zeros(250)

    assert counted_peak(step) == 8000
    with LiveTensors() as tensors:
        kept = one + 1
        step()
    assert tensors.live == kept.nbytes and tensors.peak == 12000


@pytest.mark.slow
def test_counted_batches_follow_from_what_a_picture_takes(work: ways.Work) -> None:
    missing: dict[str, str] = {}
    work = training.replace(work, size=(96, 128))
    rows = list(largest_batch.largest_rows(work, [16, 24, 80], missing))
    assert not missing and [(row["memory"] >> 30, row["recompute"]) for row in rows] == [
        (16, False), (24, False), (80, False), (16, True), (24, True), (80, True),
    ]  # fmt: skip
    assert all(row["by"] == "counted" for row in rows)
    for again in (False, True):
        a, _, c = (row for row in rows if row["recompute"] == again)
        assert (c["batch"] - a["batch"]) * a["bytes_per_image"] == pytest.approx(64 * 2**30, rel=1e-4)
        # Weights, two moments and the average; not all gradients are there when most activations are.
        with largest_batch.a_run(work, again) as run:
            assert a["bytes_always"] > 4 * sum(p.nbytes for p in run.learner.model.parameters())
    assert rows[3]["bytes_per_image"] < 0.7 * rows[0]["bytes_per_image"]


def grow(megabytes: int) -> int:
    before = memory.held(CPU)
    peak = memory.peak(lambda: torch.ones(megabytes << 18), CPU)
    return -1 if before is None or peak is None else peak - before


def fail(text: str) -> None:
    raise ValueError(text)


@pytest.mark.slow
def test_a_new_process_grows_by_what_it_takes_and_its_errors_come_back() -> None:
    small, large = in_children(grow, [(50,), (90,)])
    if small == -1:
        pytest.skip("this system tells no peak of a process")
    assert 50 << 20 <= small < 75 << 20 and 85 << 20 <= large < 115 << 20
    with pytest.raises(ChildProcessError, match="^ValueError: not this$"):
        in_children(fail, [("not this\nsecond line",)])


@pytest.mark.slow
def test_peak_memory_of_a_loop(work: ways.Work) -> None:
    grown = training.peak_of(work, lambda: None, 0, CPU)
    if grown == (None, None):
        pytest.skip("this system tells no peak of a process")
    # Five times the weights, 13 MB.
    assert grown[1] == "resident set" and grown[0] is not None and 65e6 < grown[0] < 600e6


# The command.


def run(*arguments: object) -> int:
    return command(training.parser(), training.run, [str(argument) for argument in arguments])


@pytest.fixture
def small(rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Arguments of a call that takes seconds."""
    # Any CPU does bfloat16, if slowly.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(training, "WARM_STEPS", 0)
    monkeypatch.setattr(training, "peak_of", lambda work, *rest: (1000 * work.batch, "resident set"))
    flags = ["--device", "cpu", "--data", rooms, "--frames", 4, "--size", "32x32", "--batches", 2]
    return [*flags, "--rounds", 3, "--seconds", 0.01, "--out", tmp_path / "training.json", "--models", MODEL]


def test_all_that_is_stored(small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*small) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:-1])) <= 120 and printed.count(MODEL) == 5
    speed, largest = json.loads((tmp_path / "training.json").read_text())["runs"]
    for one in (speed, largest):
        assert {"machine", "versions", "commit", "command"} <= set(one)
        assert one["size"] == [32, 32] and one["data"]["frames"] == 4 and one["missing"] == {}
    assert [(row["way"], row["batch"]) for row in speed["rows"]] == [(way, 2) for way in ways.WAYS]
    seed, _, ours = speed["rows"]
    for row in speed["rows"]:
        assert 0 < row["lowest"] <= row["images_per_s"] <= row["highest"] and row["turns"] == 3
        assert row["times_seed"] == pytest.approx(row["images_per_s"] / seed["images_per_s"], abs=1e-3)
        assert row["memory_of_seed"] == 1 and row["memory_by"] == "resident set" and row["gflop"] > 0.1
    assert (seed["precision"], ours["precision"]) == ("fp32", "bf16")
    # 10 GFLOP/s in fp32; bf16 has no ceiling.
    assert seed["floor"] == pytest.approx(100 * seed["gflop"], rel=0.05) and ours["floor"] is None
    took = 2000 / seed["images_per_s"]
    # It is stored to a tenth of a percent, which is much of it on a slow processor.
    assert seed["percent_of_floor"] == pytest.approx(100 * seed["floor"] / took, rel=0.02, abs=0.06)
    assert len(largest["largest_batch"]) == 6 and largest["rows"] == []


def test_what_is_stored_is_left_out_and_the_rest_is_added(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure(stage: str, work: ways.Work, args: object) -> dict:
        measured.append(work.model)
        return {"rows": [], "largest_batch": [], "missing": {}}

    monkeypatch.setattr(training, "measure", measure)
    again = [*small, "--stages", "speed", "--missing-only"]
    assert run(*again) == 0 and measured == [MODEL]
    assert run(*again[:-1], "--missing-only", "--models", "unet", MODEL) == 0
    assert measured == [MODEL, "unet"] and f"{MODEL}   speed is stored already" in capsys.readouterr().out
    # Another size, and a call that wants all, measure.
    assert run(*again, "--size", "32x64") == 0 and run(*again[:-1]) == 0 and len(measured) == 4
    assert len(json.loads((tmp_path / "training.json").read_text())["runs"]) == 3


def test_ctrl_c_keeps_what_is_done(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(stage: str, work: ways.Work, args: object) -> dict:
        if work.model == "unet":
            raise KeyboardInterrupt
        return {"rows": [], "largest_batch": [], "missing": {}}

    monkeypatch.setattr(training, "measure", measure)
    assert run(*small, "--models", MODEL, "unet") == 130
    assert capsys.readouterr().err == "training.py: interrupted\n"
    assert [one["model"] for one in json.loads((tmp_path / "training.json").read_text())["runs"]] == [MODEL]


def test_a_loop_that_finds_no_memory_is_named(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(work: ways.Work, out: Path) -> ways.Step:
        if work.way == "seed":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return ways.start(work, out)

    monkeypatch.setattr(training, "start", start)
    assert run(*small, "--stages", "speed", "--ways", "seed", "ours") == 0
    assert f"not measured: {MODEL}, seed, batch 2: out of memory" in capsys.readouterr().out
    (stored,) = json.loads((tmp_path / "training.json").read_text())["runs"]
    assert stored["missing"] == {f"{MODEL}, seed, batch 2": "out of memory"}
    assert [(row["way"], row["times_seed"]) for row in stored["rows"]] == [("ours", None)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--models", "unet_mobilenet"], "unknown model 'unet_mobilenet'"),
        (["--data", "nowhere"], "no data set at nowhere: no such folder"),
        (["--batches", "0"], "--batches 0: expected at least 1"),
        (["--seconds", "0"], "--seconds 0.0: expected more than 0"),
        (["--out", "nowhere/training.json"], "nowhere/training.json: the folder nowhere does not exist"),
        (["--device", "mps0"], "unknown device 'mps0'"),
    ],
)
def test_bad_input_is_one_line(
    small: list[object], change: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*small, *change) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_file_of_something_else_is_not_written_over(
    small: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training.json").write_text("{}")
    assert run(*small) == 2
    assert 'not a result file: expected JSON with "runs"' in capsys.readouterr().err
    assert (tmp_path / "training.json").read_text() == "{}"


# On a GPU.


@needs_cuda
def test_cuda_a_smaller_card_holds_a_smaller_batch(work: ways.Work) -> None:
    device = torch.device("cuda", 0)
    with largest_batch.card_of(3 << 30, device), pytest.raises(torch.OutOfMemoryError):
        torch.empty(4 << 30, dtype=torch.uint8, device=device)
    torch.empty(4 << 30, dtype=torch.uint8, device=device)
    there = training.replace(work, device="cuda", size=(96, 128))
    missing: dict[str, str] = {}
    small, large = largest_batch.tried_rows(there, False, [2, 3], missing)
    assert 0 < small["batch"] < large["batch"] and large["by"] == "measured" and not missing
    assert not list(largest_batch.tried_rows(there, False, [100_000], missing)) and missing


@needs_cuda
def test_cuda_peak_memory_is_the_allocators(work: ways.Work, tmp_path: Path) -> None:
    device = torch.device("cuda", 0)
    before = memory.held(device)
    assert before is not None
    step = ways.start(training.replace(work, device="cuda"), tmp_path / "run")
    step()
    peak, by = training.peak_of(training.replace(work, device="cuda"), step, before, device)
    assert by == "cuda allocator" and peak is not None and 65e6 < peak < 2e9
