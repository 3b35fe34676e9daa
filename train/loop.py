"""The training loop.

``Run.step`` is one optimizer step: batch, forward, loss, backward, clip, step, average. ``Run.train`` repeats it, logs,
validates and saves. Everything is a function of the configuration and the step, so a resumed run continues exactly.
"""

import contextlib
import dataclasses
import functools
import math
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from depthzoo.files import write_json
from depthzoo.losses import CombinedLoss, MultiScaleLoss
from depthzoo.models import DepthModel
from depthzoo.weights import read_metadata
from train.arguments import import_modules
from train.cards import commit, find_any, start_card, write_weights
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import CHANGEABLE, TrainConfig, parse_config, to_toml
from train.data import Sources, TrainData
from train.distributed import World
from train.evaluation import default_protocol, evaluate, evaluating, torch_predict
from train.log import Interruption, Log, peak_memory
from train.model import (
    add_stochastic_depth,
    build_model,
    checkpoint_activations,
    depth_range,
    make_gradients_dense,
    set_train_mode,
)
from train.optim import (
    AUTOCAST,
    calibrate_batchnorm,
    learning_rate,
    make_average,
    make_optimizer,
    report_precision,
    usable_precision,
)
from train.order import draw_integer
from train.samples import make_samples, strip

# Batches from which averaged weights get their BatchNorm statistics.
CALIBRATION_BATCHES = 32
# Steps between scalars in TensorBoard, and frames of which it gets a panel.
LOG_EVERY, PANELS = 10, 3


@dataclass(frozen=True)
class RunOptions:
    """What does not change the result of a run, or only where it stops."""

    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    world: World = World()  # noqa: RUF009 - frozen
    max_steps: int = 0  # stop after this many steps without changing the schedule; 0 is off
    resume: bool = False  # continue from the checkpoint
    deterministic: bool = False  # use only algorithms that give the same bits each time
    compile: bool = False  # compile the network with torch.compile


@dataclass
class State:
    """The progress of a run, JSON-serializable: stored in checkpoints, and most of it in ``metrics.json``."""

    step: int = 0  # optimizer steps done
    loss: float | None = None  # running mean
    best_val_abs_rel: float | None = None  # lowest on the validation split at the final size
    skipped: int = 0  # batches whose loss or gradient was not finite
    history: list[dict[str, Any]] = field(default_factory=list)  # a row for each validation
    resumed_from: list[int] = field(default_factory=list)  # steps


class Run:
    """One training run and its folder.

    Args:
        config: the resolved configuration.
        sources: of the data.
        out: folder of the run. It must not hold a run, or hold a checkpoint if ``options.resume``.
        options: see :class:`RunOptions`.

    Attributes:
        state: progress of the run.
        steps: of the whole schedule.
        last_step: at which this process stops.

    Raises:
        ValueError: a configuration, data or a checkpoint that do not go together.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, config: TrainConfig, sources: Sources, out: Path, options: RunOptions | None = None
    ) -> None:
        self.config, self.out, self.options = config, out, options or RunOptions()
        self.device, self.world = self.options.device, self.options.world
        self.checkpoint_path = out / "checkpoint.safetensors"
        if self.checkpoint_path.exists() and not self.options.resume:
            raise ValueError(f"{out} already holds a run; continue it with --resume, or give another --out")
        import_modules(config.imports)
        # Now, since the checkout may change before weights are written.
        self.commit = commit()
        torch.use_deterministic_algorithms(self.options.deterministic)
        torch.backends.cudnn.benchmark = not self.options.deterministic
        self.precision = usable_precision(config.precision, self.device)
        if self.world.writes:
            report_precision(config.precision, self.precision, self.device)

        self.data = TrainData(config, sources, out, self.device, self.world)
        self.steps = config.steps or config.epochs * self.data.epoch_steps
        self.last_step = min(self.steps, self.options.max_steps or self.steps)

        model: Any = build_model(config, self.data.sets[0].info)
        self.model: DepthModel = model.to(device=self.device, memory_format=torch.channels_last)
        self.average = make_average(self.model, config.ema) if config.ema else None
        add_stochastic_depth(self.model, config.stochastic_depth)
        if config.checkpoint_activations:
            checkpoint_activations(self.model)
        if self.device.type == "cpu" and not self.options.compile:
            make_gradients_dense(self.model)
        set_train_mode(self.model, config.freeze_batchnorm)
        self.network: Any = torch.compile(self.model) if self.options.compile else self.model
        self.network = self.world.wrap(self.network, self.device)
        loss = CombinedLoss(config.loss, config.loss_options)
        self.loss = MultiScaleLoss(loss)
        self.terms: dict[str, Tensor] = {}  # of the last step's loss: its first part, at the finest head
        for name, term in loss.terms.items():
            term.register_forward_hook(functools.partial(self._note_term, name))
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

        self.gradient_norm = math.nan  # of the last step, before clipping
        self.state = State()
        self.validated = 0  # step of the last validation
        if self.options.resume:
            self.restore(load_checkpoint(self.checkpoint_path))
        if self.world.writes:
            for unfinished in out.glob(".*.part"):  # of a process that was killed
                unfinished.unlink()
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.toml").write_text(to_toml(config), encoding="utf-8")
            write_json(out / "sources.json", sources.record())
        self.world.barrier()
        self.data.open(self.state.step)

    def size(self, step: int) -> tuple[int, int]:
        """Return (H, W) of the images of a step."""
        config = self.config
        if step < config.warmup_size_fraction * self.steps:
            return config.warmup_size
        if config.sizes:
            return config.sizes[draw_integer(config.seed, step, len(config.sizes))]
        return config.size

    def rate(self) -> float:
        """Return the learning rate of the last step."""
        return learning_rate(self.config, self.state.step - 1, self.steps)

    def autocast(self) -> torch.autocast:
        """Return the context in which the network runs."""
        return torch.autocast(self.device.type, AUTOCAST[self.precision], enabled=self.precision != "fp32")

    def _note_term(self, name: str, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.terms.setdefault(name, output.detach())

    def device_name(self) -> str:
        """Return "CPU" or the name of the GPU, after "8 x " for eight processes."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return name if self.world.size == 1 else f"{self.world.size} x {name}"

    def banner(self) -> str:
        """Return what is trained, on what, and for how long, in one line."""
        config, parameters = self.config, sum(p.numel() for p in self.model.parameters())
        frames = " + ".join(str(len(split)) for split in self.data.sets)
        passes = self.steps * self.data.counts[0] / len(self.data.sets[0])
        return (
            f"{self.model.name}, {parameters / 1e6:.2f}M parameters, on {self.device_name()} in {self.precision}; "
            f"{frames} train and {len(self.data.validation)} validation frames; {self.steps} steps of "
            f"{config.batch_size} images, {passes:.3g} passes"
        )

    # -- one step ---------------------------------------------------------------------------------------------

    def step(self) -> float:
        """Take one optimizer step, unless the loss or the gradient is not finite and the batch is to be skipped.

        Returns:
            The loss, the mean over all processes.

        Raises:
            ValueError: the loss or the norm of the gradient is not finite; names the samples.
        """
        config, step, parts = self.config, self.state.step, self.config.accumulate
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, step, self.steps) * group["factor"]
        if config.stochastic_depth:
            torch.manual_seed((config.seed << 40) + step * self.world.size + self.world.rank)

        # Batch: image (N, 3, H, W) in [0, 1]; canonical depth (N, 1, H, W) in metres; mask (N, 1, H, W).
        image, depth, mask, keys = self.data.batch(step, self.size(step), depth_range(self.model))
        # BatchNorm has seen a batch by the time its loss is known.
        buffers = [(b, b.clone()) for b in self.model.buffers()] if config.nonfinite == "skip" else []

        # Forward, loss and backward, in parts to save memory.
        self.terms.clear()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for part in range(parts):
            picked = slice(part, None, parts)  # strided, so that each part has its fraction of every data set
            share_gradients = part == parts - 1 or self.world.size == 1
            with contextlib.nullcontext() if share_gradients else self.network.no_sync():
                with self.autocast():
                    predictions = self.network(image[picked], all_heads=True)
                loss = self.loss(predictions, depth[picked], mask[picked]) / parts
                self.scaler.scale(loss).backward()
            total += loss.detach()
        value = self.world.mean(float(total), self.device)

        # Clip. All processes have the same gradient. GradScaler itself skips a step that overflows float16.
        problem = "" if math.isfinite(value) else f"the loss is {value}"
        if not problem:
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
            self.gradient_norm = float(norm)
            if not math.isfinite(self.gradient_norm) and not self.scaler.is_enabled():
                problem = f"the gradient's norm is {self.gradient_norm}"
        if problem and config.nonfinite == "stop":
            raise ValueError(f"{problem} at step {step}; samples: {', '.join(keys)}")

        # Step and average.
        self.state.step += 1
        if problem:
            self.state.skipped += 1
            for buffer, before in buffers:
                buffer.copy_(before)
            return value
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        mean = self.state.loss
        self.state.loss = value if mean is None else 0.98 * mean + 0.02 * value
        return value

    # -- the run ----------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Train to the last step; return the content of ``metrics.json``."""
        config, state, interruption = self.config, self.state, Interruption()
        images, seconds, stop = 0, 0.0, False
        with interruption.watched(), Log(self.out, state.step, self.last_step, self.world.writes) as log:
            if self.world.writes:
                log.line(self.banner())
                log.text("config", to_toml(config))
            while True:
                if self.validation_is_due():
                    self.validate(log, images / seconds if seconds else 0.0)
                    self.save()
                    images, seconds = 0, 0.0
                if stop or state.step >= self.last_step:
                    break

                started = time.monotonic()
                loss = self.step()
                seconds += time.monotonic() - started
                images += config.batch_size

                speed = images / seconds
                memory = peak_memory(self.device)
                log.advance(f"loss {state.loss or math.nan:.3f}, {speed:.1f} images/s, {memory:.1f} GiB")
                if state.step % LOG_EVERY == 0 or self.validation_is_due():
                    scalars = {"loss": loss, "lr": self.rate(), "images_per_s": speed}
                    scalars["gradient_norm"] = self.gradient_norm
                    for name, term in self.terms.items():
                        scalars[f"loss_{name}"] = self.world.mean(float(term), self.device)
                    log.scalars(state.step, {f"train/{key}": value for key, value in scalars.items()})
                # Also before a validation, so that its failure loses no step.
                if state.step % config.checkpoint_every == 0 or self.validation_is_due():
                    self.save()
                stop = self.world.any(interruption.signal is not None, self.device)
            if state.step < self.last_step:
                self.save()
                if self.validated != state.step:
                    self.write_last()
                name = interruption.name or "another process"
                log.line(f"{name}: saved at step {state.step}; continue with --resume", error=True)
        return self.metrics()

    def validation_is_due(self) -> bool:
        """Whether the weights of this step are to be validated and have not been."""
        step = self.state.step
        return self.validated != step and (step % self.config.validate_every == 0 or step == self.last_step)

    def validate(self, log: Log, images_per_s: float) -> None:
        """Evaluate on the validation split; keep the weights if they are the best so far."""
        self.write_last()
        self.validated = self.state.step
        if not self.world.writes:
            return
        config, state, model, split = self.config, self.state, self.trained(), self.data.validation
        warming = state.step < config.warmup_size_fraction * self.steps
        size, protocol = config.warmup_size if warming else config.size, default_protocol(split)
        predict = torch_predict(model, self.device)
        with evaluating(model):
            results, _ = evaluate(predict, split, size, protocol)
            chosen = sorted({i * len(split) // PANELS for i in range(PANELS)})
            samples = make_samples(predict, split, chosen, size, protocol) if log.writer else []
        metrics, known = results["per_image"], {"step": state.step, "loss": state.loss, "lr": self.rate()}
        state.history.append({**known, "images_per_s": images_per_s, **metrics})
        # Metrics at the smaller size of the warm-up say nothing about the final one.
        best = state.best_val_abs_rel
        if not warming and (best is None or metrics["abs_rel"] < best):
            state.best_val_abs_rel = metrics["abs_rel"]
            write_weights(model, self.out / "model.safetensors", self.card())
        log.line(
            f"step {state.step}: loss {state.loss or math.nan:.3f}, val AbsRel {metrics['abs_rel']:.3f}, "
            f"RMSE {metrics['rmse']:.3f}, d1 {metrics['d1']:.3f}, {images_per_s:.1f} images/s"
            + (f", {state.skipped} batches skipped" if state.skipped else "")
        )
        log.scalars(state.step, {f"val/{key}": value for key, value in metrics.items()})
        log.scalars(
            state.step, {"train/memory_gib": peak_memory(self.device), "train/skipped": state.skipped}
        )
        log.images(state.step, {f"val/{sample.key}": strip(sample) for sample in samples})

    def trained(self) -> DepthModel:
        """Return the model whose weights count: the average if there is one."""
        model: Any = self.model if self.average is None else self.average.module
        return model  # type: ignore[no-any-return]

    @torch.no_grad()
    def calibrate(self) -> None:
        """Give averaged weights BatchNorm statistics of their own, from the last batches."""
        last = self.state.step
        steps = range(max(self.data.first_step, last - CALIBRATION_BATCHES), last)
        if self.average is not None and steps and not self.config.freeze_batchnorm:
            with self.autocast():
                images = (self.data.batch(step, self.size(step))[0] for step in steps)
                calibrate_batchnorm(self.average, images, self.world)

    def write_last(self) -> None:
        """Write ``last.safetensors``."""
        self.calibrate()
        if self.world.writes:
            write_weights(self.trained(), self.out / "last.safetensors", self.card())

    def card(self) -> dict[str, Any]:
        """Return what is known of the weights before their evaluation."""
        trained_on = {
            "device": self.device_name(),
            "steps": self.state.step,
            "images": self.state.step * self.config.batch_size,
            "precision": self.precision,
        }
        origin = read_metadata(find_any(self.config.init)) if self.config.init else {}
        return start_card(self.model, self.config, self.data.describe(), origin, trained_on, self.commit)

    def metrics(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``."""
        metrics = dataclasses.asdict(self.state) | {"steps": self.steps}
        del metrics["loss"]
        return metrics

    # -- checkpoints ------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint and ``metrics.json``, each atomically."""
        if self.world.writes:
            average: dict[str, Tensor] | None = None if self.average is None else self.average.state_dict()
            state = dataclasses.asdict(self.state)
            state |= {"data": self.data.digest, "scaler": self.scaler.state_dict()}
            checkpoint = Checkpoint(
                self.model.state_dict(), average, self.optimizer.state_dict(), state, to_toml(self.config)
            )
            save_checkpoint(self.checkpoint_path, checkpoint)
            write_json(self.out / "metrics.json", self.metrics())
        self.world.barrier()

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it was made with another configuration or other data.
        """
        before, now = vars(parse_config(checkpoint.config)), vars(self.config)
        changed = [key for key in now if before[key] != now[key]]
        if fixed := [key for key in changed if key not in CHANGEABLE]:
            raise ValueError(
                f"{self.checkpoint_path} was made with another {', '.join(fixed)}; resume with "
                f"{self.out / 'config.toml'}, of which {', '.join(CHANGEABLE)} may be changed"
            )
        state = checkpoint.state
        if self.steps < state["step"]:
            raise ValueError(f"{self.steps} steps in all: {self.out} has already taken {state['step']}")
        if changed and self.world.writes:
            text = ", ".join(f"{key} {now[key]} (so far {before[key]})" for key in changed)
            print(f"{self.out}: resumed with {text}", file=sys.stderr)
        if state.pop("data") != self.data.digest:
            raise ValueError(
                f"{self.checkpoint_path} was made with other data: dataset.json has changed since"
            )
        if scaler := state.pop("scaler"):
            self.scaler.load_state_dict(scaler)
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.state = State(**state)
        self.state.resumed_from.append(self.state.step)
        self.validated = int(self.state.history[-1]["step"]) if self.state.history else 0
