"""The training loop: a page that reads from top to bottom."""

import contextlib
import dataclasses
import hashlib
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from depthzoo.data.shards import ShardDataset, write_json
from depthzoo.losses import MultiScale, combined
from depthzoo.models import DepthModel
from depthzoo.registry import create_model
from depthzoo.weights import load_into, read_metadata, write_weights
from train.augment import augment
from train.cards import KINECT, commit, versions
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import TrainConfig, to_toml
from train.distributed import World
from train.evaluate import evaluate, torch_predict
from train.loading import SampleStream, open_frames
from train.optimize import learning_rate, make_optimizer, recompute_activations, set_modes

# Offset between the seeds of the two data sets' orders.
SECOND_SEED = 1_000_003
# Batches from which the averaged weights get their BatchNorm statistics.
CALIBRATION_BATCHES = 32
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TrainingError(ValueError):
    """A run that cannot start or go on; one line."""


@dataclass(frozen=True)
class RunOptions:
    """What does not change the result of a run, or only where it stops.

    Attributes:
        mix_data: folder of a second data set, for a recipe with ``mix``.
        device: where to train.
        world: the processes.
        cache: where decoded frames are kept: "auto", "device", "ram" or "none".
        workers: threads that decode with ``cache="none"``.
        max_steps: stop after so many steps, without changing the schedule; 0 is off.
        resume: go on from the checkpoint.
        deterministic: only algorithms that give the same bits each time.
        compile: let ``torch.compile`` speed up the network.
    """

    mix_data: Path | None = None
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    world: World = World()  # noqa: RUF009 - frozen
    cache: str = "auto"
    workers: int = 4
    max_steps: int = 0
    resume: bool = False
    deterministic: bool = False
    compile: bool = False


def build_model(config: TrainConfig) -> DepthModel:
    """A fresh model, from ``encoder_weights`` or ``init`` where given."""
    torch.manual_seed(config.seed)
    encoder = None if config.encoder_weights == "none" else config.encoder_weights
    head: Any = config.head
    model = create_model(config.model, weights=None, encoder_weights=encoder, head=head)
    if config.init:
        load_into(model, config.init)
    return model


class Interruption:
    """Notes SIGTERM and Ctrl-C so that the loop can save first; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Run:
    """One training run and its folder.

    Args:
        config: the resolved configuration.
        data: folder of the data set, with "train" and "val".
        out: the run's folder; must hold no run, or a checkpoint if ``options.resume``.
        options: see :class:`RunOptions`.

    Raises:
        TrainingError, DatasetError, ValueError: one line each.
    """

    def __init__(self, config: TrainConfig, data: Path, out: Path, options: RunOptions | None = None) -> None:
        self.config, self.out, self.options = config, out, options or RunOptions()
        self.device, self.world = self.options.device, self.options.world
        self.checkpoint_path = out / "checkpoint.safetensors"
        self._check()
        train_set, self.val = ShardDataset(data, "train"), ShardDataset(data, "val")
        second_set = ShardDataset(self.options.mix_data, "train") if self.options.mix_data else None
        if self.world.size > len(train_set):
            raise TrainingError(f"{self.world.size} processes for {len(train_set)} train frames")
        self.info, self.mixed = train_set.info, second_set.info if second_set else {}
        digests = [
            Path(s.folder, "dataset.json").read_bytes() for s in (train_set, second_set) if s is not None
        ]
        self.data_digest = hashlib.sha256(b"".join(digests)).hexdigest()
        torch.use_deterministic_algorithms(self.options.deterministic)
        torch.backends.cudnn.benchmark = not self.options.deterministic

        self.origin = read_metadata(config.init) if config.init else {}
        self.model = build_model(config).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        average = get_ema_multi_avg_fn(config.ema)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.ema else None
        if config.recompute:
            recompute_activations(self.model)
        self.loss = MultiScale(combined(config.loss, config.loss_options))
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        per_epoch = math.ceil(len(train_set) / config.batch_size)
        self.total = config.steps or config.epochs * per_epoch
        self.frozen_steps = round(config.frozen_encoder_epochs * per_epoch)
        self.last_step = min(self.total, self.options.max_steps) if self.options.max_steps else self.total

        self.step = 0
        self.best, self.since_best = math.inf, 0
        self.skipped = 0
        self.history: list[dict[str, float]] = []
        self.resumed_from: list[int] = []
        self._calibrated = -1
        self._network: Any = None
        if self.options.resume:
            self._restore(load_checkpoint(self.checkpoint_path))
        if self.world.writes:
            out.mkdir(parents=True, exist_ok=True)
            (out / "config.toml").write_text(to_toml(config), encoding="utf-8")
        self.stream = self._open(train_set, config.seed, self._shares()[0])
        self.second = (
            self._open(second_set, config.seed + SECOND_SEED, self._shares()[1]) if second_set else None
        )

    def _check(self) -> None:
        config, options, world = self.config, self.options, self.world
        if (options.mix_data is None) != (config.mix == 0):
            raise TrainingError(
                "mix needs a second data set (--mix-data), and a second data set needs mix above 0"
            )
        if config.sync_batchnorm and self.device.type != "cuda":
            raise TrainingError("sync_batchnorm works on CUDA only; use freeze_batchnorm on the CPU")
        if any(share % (world.size * config.accumulate) for share in self._shares()):
            raise TrainingError(
                f"batch_size {config.batch_size} with mix {config.mix:g} gives {self._shares()} pictures a step, which "
                f"{world.size} processes with accumulate = {config.accumulate} cannot share evenly"
            )
        if self.checkpoint_path.exists() and not options.resume:
            raise TrainingError(
                f"{self.out} holds a run already; --resume goes on with it, or give another --out"
            )
        if options.resume and not self.checkpoint_path.exists():
            raise TrainingError(f"{self.out} holds no checkpoint to resume from")

    def _shares(self) -> tuple[int, int]:
        """Pictures per step of the first and of the second data set, over all processes."""
        extra = round(self.config.mix * self.config.batch_size)
        return self.config.batch_size - extra, extra

    def _open(self, dataset: ShardDataset, seed: int, share: int) -> SampleStream:
        options = self.options
        frames = open_frames(
            dataset, options.cache, self.device, options.workers, self.config.max_bad, self.world.writes
        )
        return SampleStream(frames, seed, ahead=share if options.cache == "none" else 0)

    # -- one step -----------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures of this step."""
        config = self.config
        return config.first_size if self.step < config.first_share * self.total else config.size

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """This process's part of a step: image (N, 3, H, W), depth and mask (N, 1, H, W), keys."""
        parts, keys = [], []
        for stream, share in zip((self.stream, self.second), self._shares(), strict=True):
            if stream is None or share == 0:
                continue
            mine = share // self.world.size
            batch = stream.batch(step * share + self.world.rank * mine, mine)
            parts.append(augment(batch, self.size(), self.config.augment, self.device))
            keys += batch.keys
        image, depth, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        return image.contiguous(memory_format=torch.channels_last), depth, mask, keys

    def network(self) -> Any:
        """What a step runs: the model, compiled if asked, inside DistributedDataParallel if there are others.

        Made anew when the encoder thaws, since both look at what is to be trained.
        """
        if self._network is None or self.step == self.frozen_steps:
            set_modes(self.model, self.config, self.step < self.frozen_steps)
            network: Any = torch.compile(self.model) if self.options.compile else self.model
            if self.world.size > 1:
                index = [self.device.index] if self.device.index is not None else None
                network = DistributedDataParallel(network, device_ids=index, broadcast_buffers=False)
            self._network = network
        return self._network

    def train_step(self) -> float:
        """One optimiser step; the loss, over all processes.

        Raises:
            TrainingError: for a loss that is not finite, with the samples' keys, unless it is to be skipped.
        """
        config, network = self.config, self.network()
        rate = learning_rate(config, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        image, depth, mask, keys = self.batch(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        parts, value = config.accumulate, 0.0
        for part in range(parts):
            # Strided, so that each part has its share of both data sets.
            picked = slice(part, None, parts)
            last = part == parts - 1
            with contextlib.nullcontext() if last or self.world.size == 1 else network.no_sync():
                with torch.autocast(
                    self.device.type, AUTOCAST[config.precision], enabled=config.precision != "fp32"
                ):
                    predictions = network(image[picked], all_heads=True)
                loss = self.loss(predictions, depth[picked], mask[picked]) / parts
                value += float(loss.detach())
                self.scaler.scale(loss).backward()
        bad = self.world.any(not math.isfinite(value), self.device)
        if bad and config.nonfinite == "stop":
            raise TrainingError(f"the loss is {value} at step {self.step}; samples: {', '.join(keys)}")
        if bad:
            self.skipped += 1
        else:
            if config.clip:
                self.scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.model.parameters(), config.clip)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.step += 1
        if self.average is not None and not bad:
            self.average.update_parameters(self.model)
        return self.world.mean(value, self.device)

    # -- the run ------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Trains to the last step; what ``metrics.json`` holds."""
        interruption = Interruption()
        smooth, images, busy = math.nan, 0, 0.0
        bar = tqdm(
            total=self.last_step,
            initial=self.step,
            unit="step",
            disable=None if self.world.writes else True,
            smoothing=0.05,
        )
        with interruption.watched(), bar:
            stop = False
            while self.step < self.last_step and not stop:
                started = time.monotonic()
                value = self.train_step()
                busy += time.monotonic() - started
                images += self.config.batch_size
                if math.isfinite(value):
                    smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
                bar.update()
                bar.set_postfix_str(
                    f"loss {smooth:.3f}, {images / busy:.1f} images/s, {self.memory()}", refresh=False
                )
                last = self.step == self.last_step
                if self.step % self.config.validate_every == 0 or last:
                    self._report(bar, self.validate(smooth, images / busy))
                    images, busy = 0, 0.0
                    if self.config.patience and self.since_best >= self.config.patience:
                        bar.write(f"no better for {self.since_best} validations: stopped early")
                        self.last_step, last = self.step, True
                if self.step % self.config.checkpoint_every == 0 or last:
                    self.save()
                stop = self.world.any(interruption.signal is not None, self.device)
            if stop and self.step < self.last_step:
                self.save()
                name = signal.Signals(interruption.signal).name if interruption.signal else "another process"
                bar.write(f"{name}: saved at step {self.step}; --resume goes on from there", file=sys.stderr)
        return self.summary()

    def _report(self, bar: Any, figures: dict[str, float]) -> None:
        if self.world.writes:
            skipped = f", {self.skipped} batches skipped" if self.skipped else ""
            bar.write(
                f"step {self.step}: loss {figures['loss']:.3f}, val AbsRel {figures['abs_rel']:.3f}, "
                f"RMSE {figures['rmse']:.3f}, d1 {figures['d1']:.3f}, {figures['images_per_s']:.1f} images/s{skipped}"
            )

    def memory(self) -> str:
        """Peak memory: of the GPU, or of the process."""
        if self.device.type == "cuda":
            return f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB"
        unit = 1 if sys.platform == "darwin" else 1024
        return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"

    def trained(self) -> DepthModel:
        """The model whose weights count: the average where there is one."""
        model: Any = self.model if self.average is None else self.average.module
        return model  # type: ignore[no-any-return]

    def calibrate(self) -> None:
        """Gives the averaged weights BatchNorm statistics of their own, from the last batches.

        Those of the trained model are of other weights, and an average of them lags behind by far: a network
        that predicts well on the statistics of its batch is then off by a factor.
        """
        if self.average is None or self._calibrated == self.step or self.config.freeze_batchnorm:
            return
        self._calibrated = last = self.step
        images = (self.batch(step)[0] for step in range(max(0, last - CALIBRATION_BATCHES), last))
        with torch.autocast(
            self.device.type, AUTOCAST[self.config.precision], enabled=self.config.precision != "fp32"
        ):
            update_bn(images, self.average.module)

    def validate(self, loss: float, speed: float) -> dict[str, float]:
        """Evaluates on the validation split, in the first process; keeps the weights if they are the best so far."""
        self.calibrate()
        figures = {"step": self.step, "loss": loss, "images_per_s": speed}
        figures["lr"] = learning_rate(self.config, max(0, self.step - 1), self.total)
        if self.world.writes:
            model = self.trained()
            modes = {module: module.training for module in model.modules()}
            model.eval()
            protocol = "eigen" if self.val.info["splits"]["val"]["size"] == [480, 640] else "full"
            results, _ = evaluate(
                torch_predict(model, self.device), self.val, self.size(), protocol, progress=False
            )
            for module, training in modes.items():
                module.training = training
            figures |= results["per_image"]
            # Small pictures first: their weights are not yet those of the final size.
            if figures["abs_rel"] < self.best and self.size() == self.config.size:
                self.best, self.since_best = figures["abs_rel"], 0
                write_weights(model, self.out / "model.safetensors", self.card())
            else:
                self.since_best += 1
            self.history.append(figures)
            write_json(self.out / "metrics.json", self.summary())
        if self.world.size > 1:
            # Early stopping must be everybody's decision.
            self.since_best = round(self.world.mean(float(self.since_best), self.device) * self.world.size)
        return figures

    def card(self) -> dict[str, Any]:
        """What is known of the weights before they are evaluated."""
        model, config = self.model, self.config
        # A path says nothing elsewhere; what an initial file says of itself does.
        names: dict[str, Any] = {key: Path(getattr(config, key)).name for key in ("init", "encoder_weights")}
        start = {
            key: self.origin[key]
            for key in ("recipe", "trained_on", "initialised_from")
            if key in self.origin
        }
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return {
            "model": model.name,
            "tag": config.tag,
            "arguments": model.arguments,
            "size": list(config.size),
            "dataset": {key: self.info.get(key) for key in ("source", "truth", "terms")},
            "mixed_with": {key: self.mixed.get(key) for key in ("source", "terms")} if self.mixed else None,
            "recipe": to_toml(dataclasses.replace(config, **names)),
            "initialised_from": start or None,
            "depth_range": [model.min_depth, model.max_depth],
            "unit": "m",
            "camera": KINECT,
            "parameters": sum(p.numel() for p in model.parameters()),
            "terms": self.info.get("terms", ""),
            "trained_on": {
                "device": device if self.world.size == 1 else f"{self.world.size} x {device}",
                "steps": self.step,
                "images": self.step * config.batch_size,
            },
            "commit": commit(),
            "versions": versions(),
        }

    def summary(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        return {
            "step": self.step,
            "steps": self.total,
            "best_val_abs_rel": self.best if math.isfinite(self.best) else None,
            "resumed_from": self.resumed_from,
            "skipped": self.skipped,
            "history": self.history,
        }

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, the last weights and the metrics, each whole or not at all."""
        self.calibrate()
        if self.world.writes:
            state = {
                "step": self.step,
                "best": self.best,
                "since_best": self.since_best,
                "skipped": self.skipped,
                "history": self.history,
                "resumed_from": self.resumed_from,
                "data": self.data_digest,
                "scaler": self.scaler.state_dict(),
            }
            average = None if self.average is None else self.average.state_dict()
            checkpoint = Checkpoint(
                self.model.state_dict(), average, self.optimizer.state_dict(), state, to_toml(self.config)
            )
            save_checkpoint(self.checkpoint_path, checkpoint)
            write_weights(self.trained(), self.out / "last.safetensors", self.card())
            write_json(self.out / "metrics.json", self.summary())
        self.world.barrier()

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        if checkpoint.config != to_toml(self.config):
            raise TrainingError(
                f"{self.checkpoint_path} was made with another configuration; resume with {self.out / 'config.toml'}"
            )
        if state["data"] != self.data_digest:
            raise TrainingError(
                f"{self.checkpoint_path} was made with other data: dataset.json has changed since"
            )
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.since_best, self.skipped = state["since_best"], state["skipped"]
        self.resumed_from = [*state["resumed_from"], self.step]


def check_writable(out: Path) -> None:
    """Finds out before the first step that nothing can be written.

    Raises:
        OSError: naming the folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    trial = out / f".writable-{os.getpid()}"
    trial.touch()
    trial.unlink()
