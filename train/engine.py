"""The training loop: a page that reads from top to bottom."""

import contextlib
import dataclasses
import math
import os
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from depthzoo.weights import read_metadata
from train.cards import commit, start_card, write_weights
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import TrainConfig, to_toml
from train.distributed import World
from train.feed import Feed, Sources
from train.interruption import Interruption
from train.learner import Learner
from train.loading import draw_integer
from train.optimize import learning_rate
from train.precision import report_precision, usable_precision
from train.progress import Progress, TrainingError
from train.shards import write_json
from train.tracking import Tracker
from train.validation import figures_line, final_report, panels, validate

# Batches from which the averaged weights get their BatchNorm statistics.
CALIBRATION_BATCHES = 32
# Steps between scalars in TensorBoard.
LOG_EVERY = 10


@dataclass(frozen=True)
class RunOptions:
    """What does not change the result of a run, or only where it stops.

    Attributes:
        device: where to train.
        world: the processes.
        max_steps: stop after so many steps, without changing the schedule; 0 is off.
        resume: go on from the checkpoint.
        deterministic: only algorithms that give the same bits each time.
        compile: let ``torch.compile`` speed up the network.
        report: write ``report.html`` and ``report.png`` at the end.
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    world: World = World()  # noqa: RUF009 - frozen
    max_steps: int = 0
    resume: bool = False
    deterministic: bool = False
    compile: bool = False
    report: bool = True


class Run:
    """One training run and its folder.

    Args:
        config: the resolved configuration.
        sources: of the data.
        out: the run's folder; must hold no run, or a checkpoint if ``options.resume``.
        options: see :class:`RunOptions`.

    Attributes:
        progress: how far it is.
        precision: that it computes in; the recipe's, where the device can.
        total: steps of the whole schedule.
        last_step: where this process stops.

    Raises:
        TrainingError, DatasetError, ValueError: one line each.
    """

    def __init__(
        self, config: TrainConfig, sources: Sources, out: Path, options: RunOptions | None = None
    ) -> None:
        self.config, self.out, self.options = config, out, options or RunOptions()
        self.device, self.world = self.options.device, self.options.world
        self.checkpoint_path = out / "checkpoint.safetensors"
        self._check()
        # Now: the checkout may have moved on when weights are written.
        self.code = commit()
        torch.use_deterministic_algorithms(self.options.deterministic)
        torch.backends.cudnn.benchmark = not self.options.deterministic
        self.origin = read_metadata(config.init) if config.init else {}
        self.precision = usable_precision(config.precision, self.device)
        if self.world.writes:
            report_precision(config.precision, self.precision, self.device)
        settings = dataclasses.replace(config, precision=self.precision)
        self.feed = Feed(config, sources, out, self.device, self.world)
        info = self.feed.about["data"]
        self.learner = Learner(settings, self.device, self.world, self.options.compile, info)
        per_epoch = math.ceil(self.feed.frames / self.feed.shares["data"])
        self.total = config.steps or config.epochs * per_epoch
        self.frozen_steps = round(config.frozen_encoder_epochs * per_epoch)
        self.last_step = min(self.total, self.options.max_steps) if self.options.max_steps else self.total

        self.progress = Progress()
        self._validated = 0  # the step of the last validation
        if self.options.resume:
            self._restore(load_checkpoint(self.checkpoint_path))
        if self.world.writes:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.toml").write_text(to_toml(config), encoding="utf-8")
            sources.record(out)
        self.feed.open()

    def _check(self) -> None:
        config, resume = self.config, self.options.resume
        if config.sync_batchnorm and self.device.type != "cuda":
            raise TrainingError("sync_batchnorm works on CUDA only; use freeze_batchnorm on the CPU")
        if self.checkpoint_path.exists() and not resume:
            raise TrainingError(
                f"{self.out} holds a run already; --resume goes on with it, or give another --out"
            )
        if resume and not self.checkpoint_path.exists():
            raise TrainingError(f"{self.out} holds no checkpoint to resume from")

    # -- one step -----------------------------------------------------------------------------------------

    def size(self, step: int) -> tuple[int, int]:
        """(H, W) of the pictures of a step: a function of the seed and the step."""
        config = self.config
        if step < config.first_share * self.total:
            return config.first_size
        return (
            config.sizes[draw_integer(config.seed, step, len(config.sizes))] if config.sizes else config.size
        )

    def validation_size(self) -> tuple[int, int]:
        """(H, W) that validation works at."""
        config = self.config
        return config.first_size if self.progress.step < config.first_share * self.total else config.size

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        return learning_rate(self.config, step, self.total)

    def train_step(self) -> float:
        """One optimiser step; the loss, over all processes.

        Raises:
            TrainingError: for a loss that is not finite, with the samples' keys, unless it is to be skipped.
        """
        step = self.progress.step
        image, depth, mask, keys = self.feed.batch(step, self.size(step), self.learner.depth_range())
        try:
            value = self.learner.learn(image, depth, mask, self.rate(step), step < self.frozen_steps, step)
        except TrainingError as error:
            raise TrainingError(f"{error} at step {step}; samples: {', '.join(keys)}") from None
        self.progress.count(value)
        return value

    # -- the run ------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Trains to the last step; what ``metrics.json`` holds."""
        config, progress, interruption = self.config, self.progress, Interruption()
        images, busy = 0, 0.0
        resumed_at = progress.step if progress.resumed_from else None
        with (
            self._bar() as bar,
            interruption.watched(),
            Tracker(self.out, self.world.writes, resumed_at) as log,
        ):
            stop = early = False
            while True:
                if self._validation_is_due():
                    early = self.validate(images / busy if busy else 0.0, bar, log)
                    self.save()
                    images, busy = 0, 0.0
                if stop or early or progress.step >= self.last_step:
                    break
                started = time.monotonic()
                value = self.train_step()
                busy += time.monotonic() - started
                images += config.batch_size
                bar.update()
                bar.set_postfix_str(
                    f"loss {progress.loss:.3f}, {images / busy:.1f} images/s, {self.memory():.1f} GiB",
                    refresh=False,
                )
                step = progress.step
                if step % LOG_EVERY == 0:
                    figures = {"loss": value, "lr": self.rate(step - 1), "images_per_s": images / busy}
                    log.scalars(step, {f"train/{key}": figure for key, figure in figures.items()})
                # Also before a validation, so that its failure loses no step.
                if step % config.checkpoint_every == 0 or self._validation_is_due():
                    self.save()
                stop = self.world.any(interruption.signal is not None, self.device)
            if early:
                self.last_step = progress.step
                bar.write(f"no better for {progress.since_best} validations: stopped early")
            if progress.step < self.last_step:
                self.save()
                name = interruption.name or "another process"
                bar.write(
                    f"{name}: saved at step {progress.step}; --resume goes on from there", file=sys.stderr
                )
                if self._validated != progress.step:
                    self.write_last()
        if progress.step == self.last_step and self.options.report:
            self._write_report()
        return self.summary()

    @contextlib.contextmanager
    def _bar(self) -> Iterator[Any]:
        silent = None if self.world.writes else True  # None: only on a terminal
        with tqdm(
            total=self.last_step, initial=self.progress.step, unit="step", disable=silent, smoothing=0.05
        ) as bar:
            yield bar

    def memory(self) -> float:
        """Peak memory in GiB: of the GPU, or of the process."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**30
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

    def write_last(self) -> None:
        """Writes ``last.safetensors``, averaged weights with BatchNorm statistics from the last batches."""
        last = self.progress.step
        steps = range(max(0, last - CALIBRATION_BATCHES), last)
        images = (self.feed.batch(step, self.size(step))[0] for step in steps)
        self.learner.calibrate(images, frozen=last - 1 < self.frozen_steps)
        if self.world.writes:
            write_weights(self.learner.trained(), self.out / "last.safetensors", self.card())

    def _validation_is_due(self) -> bool:
        step = self.progress.step
        return self._validated != step and (step % self.config.validate_every == 0 or step == self.last_step)

    def validate(self, speed: float, bar: Any, log: Tracker) -> bool:
        """Evaluates on the validation split, in the first process; keeps the weights if they are the best so far.

        Args:
            speed: images/s since the last validation.
            bar: of the run.
            log: of the run.

        Returns:
            Whether the run has had enough, by its ``patience``; the same in all processes.
        """
        self.write_last()
        progress, enough = self.progress, False
        if self.world.writes:
            model, split, size = self.learner.trained(), self.feed.validation, self.validation_size()
            known = {
                "step": progress.step,
                "loss": progress.loss,
                "images_per_s": speed,
                "lr": self.rate(progress.step - 1),
            }
            measured = validate(model, split, size, self.device)
            # Small pictures first: their weights are not yet those of the final size.
            if progress.note(known | measured, counts=size == self.config.size):
                write_weights(model, self.out / "model.safetensors", self.card())
            skipped = f", {progress.skipped} batches skipped" if progress.skipped else ""
            bar.write(figures_line(progress.history[-1]) + skipped)
            log.scalars(progress.step, {f"val/{key}": figure for key, figure in measured.items()})
            log.scalars(progress.step, {"train/memory_gib": self.memory(), "train/skipped": progress.skipped})
            if log.writes:
                for key, panel in panels(model, split, size, self.device).items():
                    log.panel(progress.step, f"val/{key}", panel)
            enough = 0 < self.config.patience <= progress.since_best
        self._validated = progress.step
        return self.world.any(enough, self.device)

    def card(self) -> dict[str, Any]:
        """What is known of the weights before they are evaluated."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        step, config = self.progress.step, self.config
        trained_on = {
            "device": device if self.world.size == 1 else f"{self.world.size} x {device}",
            "steps": step,
            "images": step * config.batch_size,
            "precision": self.precision,
        }
        return start_card(
            self.learner.model, config, self.feed.describe(), self.origin, trained_on, self.code
        )

    def summary(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        return self.progress.summary(self.total)

    def _write_report(self) -> None:
        if self.world.writes:
            try:
                final_report(self.out, self.feed.validation, self.device)
            except (ValueError, OSError) as error:  # a picture is no reason to fail a run that is done
                print(f"no report: {error}", file=sys.stderr)
        self.world.barrier()

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint and the metrics, each whole or not at all."""
        if self.world.writes:
            state = {**self.progress.state(), "data": self.feed.digest}
            checkpoint = self.learner.checkpoint(state, to_toml(self.config))
            save_checkpoint(self.checkpoint_path, checkpoint)
            write_json(self.out / "metrics.json", self.summary())
        self.world.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if checkpoint.config != to_toml(self.config):
            raise TrainingError(
                f"{self.checkpoint_path} was made with another configuration; resume with {self.out / 'config.toml'}"
            )
        if state["data"] != self.feed.digest:
            raise TrainingError(
                f"{self.checkpoint_path} was made with other data: dataset.json has changed since"
            )
        self.learner.restore(checkpoint)
        self.progress = Progress.restored(state)
        self._validated = max((int(row["step"]) for row in self.progress.history), default=0)


def check_writable(out: Path) -> None:
    """Finds out before the first step that nothing can be written.

    Raises:
        OSError: naming the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    trial = out / f".writable-{os.getpid()}"
    trial.touch()
    trial.unlink()
