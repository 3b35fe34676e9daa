"""What a machine with a GPU should run, as stages that each take less than ``LIMIT``: see benchmarks/gpu.sh."""

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure.claims import ROWS
from benchmarks.measure.record import RESULTS
from benchmarks.stages.owed import RECIPES, WANTED, Wanted, first, length
from depthzoo import weights as zoo_weights
from train.config import load_recipe
from train.shards import read_dataset

LIMIT = 480.0  # seconds, those between asking a stage to stop and stopping it included


@dataclass(frozen=True)
class Stage:
    """One command.

    Attributes:
        name: of the stage.
        about: what it answers.
        words: of the command, after Python.
        product: file below the output folder that it leaves.
        needs: what must be there: "data", or a file.
        run: folder of a training, which goes on from its checkpoint when its time was up; else None.
        after: name of the stage that must be done before, or "".
    """

    name: str
    about: str
    words: tuple[str, ...]
    product: str
    needs: tuple[str | Path, ...] = ()
    run: Path | None = None
    after: str = ""


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        device: "cuda", or "cpu" for a rehearsal.
        models: of the zoo.
        sizes, batches: of latency, a stage for each; peers have sizes of their own.
        over: what scaling varies, a stage for each.
        rows, seeds: of the reproduction, a stage for each of both.
        flags: of each kind of stage.
        wanted: weights.
    """

    device: str
    models: tuple[str, ...]
    sizes: tuple[str, ...]
    peer_sizes: tuple[str, ...]
    batches: tuple[str, ...]
    over: tuple[str, ...]
    rows: tuple[str, ...]
    seeds: tuple[str, ...]
    flags: Mapping[str, str]
    wanted: tuple[Wanted, ...]


FULL = Scale(
    device="cuda",
    models=tuple(dict.fromkeys(one.model for one in WANTED)),
    sizes=("240x320", "480x640"),
    peer_sizes=("240x320", "480x640", "native"),
    batches=("1", "16"),
    over=("pixels", "batch", "workers", "processes"),
    rows=ROWS,
    seeds=("0", "1", "2"),
    flags={
        "tests": "-k '(cuda or gpu) and not gpu_stages' tests",
        "latency": "--precisions fp32 tf32 fp16 --seconds 90",
        "peers": "--models unet_resnet50 unet_mobilenet_v3 --peers all --precisions fp32 fp16 --seconds 120 "
        "--backends eager onnxruntime onnxruntime-cuda-graph",
        "predictor": "--seconds 20",
        "training": "--stages speed --seconds 90",
        "largest": "--stages largest --cards 16 24 80",
    },
    wanted=WANTED,
)
# Every stage, as small as it goes: whether the commands work, and no result.
TINY = Scale(
    device="cpu",
    models=("unet_mobilenet_v3",),
    sizes=("64x96",),
    peer_sizes=("native",),
    batches=("2",),
    over=("batch",),
    rows=("mse", "combined"),
    seeds=("0",),
    flags={
        "tests": "-k cuda tests/export/test_run_onnx.py",
        "latency": "--backends eager onnxruntime --precisions fp32 --rounds 3 --seconds 1",
        "peers": "--models unet_mobilenet_v3 --peers lraspp_mobilenet_v3_large --backends eager --rounds 3 --seconds 1",
        "predictor": "unet_mobilenet_v3 --sizes 64x96 --rounds 3 --seconds 1",
        "training": "--stages speed --ways ours --precision fp32 --size 64x96 --frames 4 --batches 2 --seconds 1",
        "largest": "--stages largest --precision fp32 --size 64x96 --frames 4 --cards 16",
        "scaling": "--models unet_mobilenet_v3 --batches 1 2 --size 64x96 --frames 4 --seconds 1",
        "loading": "--frames 2 --batch 2 --rounds 1 --processes 1 --size 64x96",
        "reproduce": "--size 32x64 --width 4 --batch-size 2 --frames 2 --epochs 1",
        "train": "--size 64x96 --batch-size 2 --steps 4 --validate-every 2 --checkpoint-every 2 --precision fp32 "
        "--no-report",
    },
    wanted=(Wanted("unet_mobilenet_v3", "nyu", "unet_mobilenet_v3", student="unet_mobilenet_v3_student"),),
)


@dataclass(frozen=True)
class Plan:
    """The stages, for given folders.

    Attributes:
        out: folder of the results.
        scale: how much is done.
        data: shards of NYU Depth V2, or None.
        mat: the .mat of the same frames, or None.
        encoder_weights: instead of those that a recipe names.
        pictures: tars and folders without depth, for students.
    """

    out: Path = RESULTS
    scale: Scale = field(default=FULL)
    data: Path | None = None
    mat: Path | None = None
    encoder_weights: str | None = None
    pictures: tuple[Path, ...] = ()

    @property
    def weights(self) -> Path:
        """Where trained weights go: into the checkout's own folder, or below another one for results."""
        return zoo_weights.BUNDLED if self.out.resolve() == RESULTS.resolve() else self.out / "weights"

    @property
    def manifests(self) -> tuple[Path, ...]:
        """Tables of the weights that there are."""
        return zoo_weights.MANIFEST, self.weights / "manifest.json"

    def stages(self) -> Iterator[Stage]:
        """All, in the order in which they should run."""
        scale = self.scale
        yield self.script("environment", "what this machine has, and what works on it", "environment")
        tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider", *self.flags("tests"))
        report = f"--junit-xml={self.out / 'runs' / 'tests.xml'}"  # names the machine: not for a repository
        yield Stage("tests", "the tests that need a GPU", (*tests, report), "runs/tests.xml")
        for model in scale.models:
            for size in scale.sizes:
                for batch in scale.batches:
                    name = f"latency-{model}-{size}-{batch}"
                    about = f"latency of {model} at {size}, batch {batch}"
                    given = ("--models", model, "--sizes", size, "--batches", batch)
                    yield self.script(name, about, "latency", *given)
        for size in scale.peer_sizes:
            for batch in scale.batches:
                about = f"peers at {size}, batch {batch}"
                at = ("--sizes", size, "--batches", batch)
                yield self.script(f"peers-{size}-{batch}", about, "latency", *at, kind="peers")
        yield self.script("predictor", "what Predictor adds to the network", "predictor")
        for model in scale.models:
            about = f"throughput and memory of training {model}"
            yield self.script(f"training-{model}", about, "training", "--models", model)
        for model in scale.models:
            about = f"largest batch of {model} in 16, 24 and 80 GB"
            yield self.script(f"largest-{model}", about, "training", "--models", model, kind="largest")
        for over in scale.over:
            yield self.script(f"scaling-{over}", f"throughput over {over}", "scaling", "--over", over)
        about = "augmented frames per second, the device cache too"
        frames = ("--data", str(self.data), *(("--mat", str(self.mat)) if self.mat else ()))
        yield self.script("loading", about, "loading", *frames, needs=("data",))
        for one in scale.wanted:
            yield from self.trained(one)
        for seed in scale.seeds:
            for row in scale.rows:
                yield self.reproduced(row, seed)

    def flags(self, kind: str) -> list[str]:
        """Of a kind of stage."""
        return shlex.split(self.scale.flags.get(kind, ""))

    def script(
        self,
        name: str,
        about: str,
        script: str,
        *given: str,
        kind: str = "",
        needs: tuple[str | Path, ...] = (),
    ) -> Stage:
        """A stage that runs one of the benchmarks."""
        device = self.scale.device
        product = f"{script}.{device}.json"
        words = (f"benchmarks/{script}.py", *given, *self.flags(kind or script), "--device", device)
        return Stage(name, about, (*words, "--out", str(self.out / product)), product, needs)

    def reproduced(self, row: str, seed: str) -> Stage:
        """Training and figures of a row of the reproduction; one that was stopped goes on when it is run again."""
        product = f"reproduction.{self.scale.device}.json"
        given = ("--data", str(self.data), "--rows", row, "--seeds", seed, *self.flags("reproduce"))
        given += ("--runs", str(self.out / "runs" / "reproduction"), "--device", self.scale.device)
        words = ("benchmarks/reproduce.py", *given, "--out", str(self.out / product))
        start = Path(load_recipe(RECIPES / "reproduction" / f"{row}.toml").init).parent.name
        after = f"reproduce-{start}-{seed}" if start else ""
        about = f"row {row} of the reproduction, seed {seed}"
        return Stage(f"reproduce-{row}-{seed}", about, words, product, ("data",), after=after)

    def trained(self, one: Wanted) -> Iterator[Stage]:
        """Training of some weights, where there are pictures as their own student too, and evaluation with a card."""
        run = self.out / "runs" / one.name
        words: list[str] = []
        needs: tuple[str | Path, ...] = ("data",)
        after = ""
        if self.encoder_weights:
            words += ["--encoder-weights", self.encoder_weights]
        if self.data is not None and not self.flags("train"):
            shards = read_dataset(self.data)["splits"].get("train", {}).get("shards", [])
            words += length(one, sum(shard["count"] for shard in shards))
        if one.after:
            start = self.start(one)
            words, needs = [*words, "--init", str(start)], (*needs, start)
            after = f"train-{first(one).name}" if start.is_relative_to(self.out) else ""
        about = f"training of {one.model}, {one.tag}, by {one.recipe}.toml"
        product, name = f"runs/{one.name}/model.safetensors", f"train-{one.name}"
        yield Stage(name, about, self.training(one.recipe, run, one.tag, *words), product, needs, run, after)
        best = run / "model.safetensors"
        if self.pictures and one.student:
            run = self.out / "runs" / f"{one.name}-student"
            student = self.student(one, run, best, name)
            yield student
            best, name = run / "model.safetensors", student.name
        words = ["-m", "train.evaluate", str(best), "--data", str(self.data), "--device", self.scale.device]
        words += ["--json", str(run / "test.json"), "--card", str(self.weights), "--tag", one.tag]
        about = f"figures and card of {one.model}, {one.tag}"
        product, needs = f"runs/{run.name}/test.json", ("data", best)
        yield Stage(f"evaluate-{one.name}", about, tuple(words), product, needs, after=name)

    def training(self, recipe: str, run: Path, tag: str, *given: str) -> tuple[str, ...]:
        """The command that trains by a recipe; the scale's flags come last, and win."""
        words = ["-m", "train", "--recipe", str(RECIPES / f"{recipe}.toml"), "--data", str(self.data)]
        words += ["--out", str(run), "--device", self.scale.device, "--tag", tag]
        return (*words, *given, *self.flags("train"))

    def student(self, one: Wanted, run: Path, start: Path, after: str) -> Stage:
        """Training into ``run`` that goes on from weights, on what they say of pictures without depth."""
        height, width = load_recipe(RECIPES / f"{one.recipe}.toml").size
        given = ("--size", f"{height}x{width}", "--init", str(start), "--teacher", str(start))
        words = self.training(one.student, run, one.tag, *given, "--pictures", *map(str, self.pictures))
        about = f"{one.model}, {one.tag}, taught by itself by {one.student}.toml"
        product = f"runs/{run.name}/model.safetensors"
        return Stage(f"student-{one.name}", about, words, product, ("data", start), run, after)

    def start(self, one: Wanted) -> Path:
        """The file that a training starts from: of this folder's run, else of the zoo."""
        run = self.out / "runs" / first(one).name / "model.safetensors"
        if not run.is_file() and one.after in zoo_weights.tags(one.model):
            return zoo_weights.BUNDLED / zoo_weights.card(one.model, one.after)["file"]
        return run
