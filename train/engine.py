"""The training loop: a page that reads from top to bottom."""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

from depthzoo.data.shards import ShardDataset, write_json
from depthzoo.losses import MultiScale, combined
from depthzoo.models import DepthModel
from depthzoo.registry import create_model
from depthzoo.weights import load_into, write_weights
from train.augment import augment
from train.cards import KINECT, commit, versions
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.config import TrainConfig, to_toml
from train.evaluate import evaluate, torch_predict
from train.loading import DecodedSet, SampleStream

# Offset between the seeds of the two data sets' orders.
SECOND_SEED = 1_000_003
# Batches from which the averaged weights get their BatchNorm statistics.
CALIBRATION_BATCHES = 32


class TrainingError(ValueError):
    """A run that cannot start or go on; one line."""


def learning_rate(config: TrainConfig, step: int, total: int) -> float:
    """Learning rate of a step, 0 <= step < total.

    "onecycle" rises from lr/25 to lr over ``warmup`` of the steps and falls to lr/10000, by cosines (Smith and
    Topin, "Super-Convergence", 2018); "step" divides by ten after each third.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** min(2, 3 * step // total)
    rise = max(1, round(config.warmup * total))
    if step < rise:
        start, end, share = config.lr / 25, config.lr, step / rise
    else:
        start, end, share = config.lr, config.lr / 1e4, (step - rise) / max(1, total - rise)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def make_optimizer(model: DepthModel, config: TrainConfig) -> torch.optim.Optimizer:
    """Four groups: encoder and the rest, each with and without weight decay (none on vectors)."""
    encoder = {id(p) for p in model.encoder.parameters()}
    groups = []
    for in_encoder in (True, False):
        for decayed in (True, False):
            parameters = [
                p for p in model.parameters() if (id(p) in encoder) == in_encoder and (p.ndim > 1) == decayed
            ]
            if parameters:
                factor = config.encoder_lr if in_encoder else 1.0
                decay = config.weight_decay if decayed else 0.0
                groups.append(
                    {"params": parameters, "weight_decay": decay, "factor": factor, "lr": config.lr}
                )
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
    return kind(groups, lr=config.lr)


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
    """Notes SIGTERM and Ctrl-C so that the loop can save first; a second Ctrl-C stops at once."""

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
        out: the run's folder; must be empty, or hold a checkpoint if ``resume``.
        mix_data: folder of a second data set, for ``config.mix``.
        device: where to train.
        max_steps: stop after so many steps, without changing the schedule.
        resume: go on from the checkpoint.

    Raises:
        TrainingError, DatasetError, ValueError: one line each.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: Path,
        out: Path,
        mix_data: Path | None = None,
        device: torch.device | None = None,
        max_steps: int = 0,
        resume: bool = False,
    ) -> None:
        if (mix_data is None) != (config.mix == 0):
            raise TrainingError(
                "mix needs a second data set (--mix-data), and a second data set needs mix above 0"
            )
        self.config, self.out = config, out
        self.device = device = device or torch.device("cpu")
        self.checkpoint_path = out / "checkpoint.safetensors"
        if self.checkpoint_path.exists() and not resume:
            raise TrainingError(f"{out} holds a run already; --resume goes on with it, or give another --out")
        if resume and not self.checkpoint_path.exists():
            raise TrainingError(f"{out} holds no checkpoint to resume from")
        self.val = ShardDataset(data, "val")
        train_set = ShardDataset(data, "train")
        self.info = train_set.info
        self.model = build_model(config).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))
            if config.ema
            else None
        )
        terms = combined(config.loss, config.loss_options)
        self.loss: Callable[[Any, Tensor, Tensor], Tensor] = MultiScale(terms)
        self.optimizer = make_optimizer(self.model, config)
        self.total = config.steps or config.epochs * math.ceil(len(train_set) / config.batch_size)
        self.last_step = min(self.total, max_steps) if max_steps else self.total
        self.step = 0
        self._calibrated = -1
        self.best = math.inf
        self.history: list[dict[str, float]] = []
        self.resumed_from: list[int] = []
        if resume:
            self._restore(load_checkpoint(self.checkpoint_path))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.toml").write_text(to_toml(config), encoding="utf-8")
        self.stream = SampleStream(DecodedSet(train_set), config.seed)
        self.second = None
        if mix_data is not None:
            self.second = SampleStream(DecodedSet(ShardDataset(mix_data, "train")), config.seed + SECOND_SEED)

    # -- one step -----------------------------------------------------------------------------------------

    def size(self) -> tuple[int, int]:
        """(H, W) of the pictures of this step."""
        config = self.config
        return config.first_size if self.step < config.first_share * self.total else config.size

    def _batch(self, step: int | None = None) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        """Of this step, or of another: image (N, 3, H, W), depth and mask (N, 1, H, W), keys."""
        config = self.config
        extra = round(config.mix * config.batch_size)
        streams = [(self.stream, config.batch_size - extra)]
        if self.second is not None and extra:
            streams.append((self.second, extra))
        size = self.size()
        parts, keys = [], []
        for stream, count in streams:
            batch = stream.batch((self.step if step is None else step) * count, count)
            parts.append(augment(batch, size, config.augment, self.device))
            keys += batch.keys
        image, depth, mask = (torch.cat(column) for column in zip(*parts, strict=True))
        return image.contiguous(memory_format=torch.channels_last), depth, mask, keys

    def train_step(self) -> float:
        """One optimiser step; the loss."""
        rate = learning_rate(self.config, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        image, depth, mask, keys = self._batch()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            predictions = self.model(image, all_heads=True)
        loss = self.loss(predictions, depth, mask)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {self.step}; samples: {', '.join(keys)}")
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    # -- the run ------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Trains to the last step; what ``metrics.json`` holds."""
        interruption = Interruption()
        self.model.train()
        smooth, started = math.nan, time.monotonic()
        with (
            interruption.watched(),
            tqdm(total=self.last_step, initial=self.step, unit="step", disable=None, smoothing=0.05) as bar,
        ):
            first = self.step
            while self.step < self.last_step and interruption.signal is None:
                value = self.train_step()
                smooth = value if math.isnan(smooth) else 0.98 * smooth + 0.02 * value
                speed = (self.step - first) * self.config.batch_size / (time.monotonic() - started)
                bar.update()
                bar.set_postfix_str(f"loss {smooth:.3f}, {speed:.1f} images/s", refresh=False)
                last = self.step == self.last_step
                if self.step % self.config.validate_every == 0 or last:
                    figures = self.validate(smooth, speed)
                    bar.write(
                        f"step {self.step}: loss {smooth:.3f}, val AbsRel {figures['abs_rel']:.3f}, "
                        f"RMSE {figures['rmse']:.3f}, d1 {figures['d1']:.3f}, {speed:.1f} images/s"
                    )
                if self.step % self.config.checkpoint_every == 0 or last:
                    self.save()
            if interruption.signal is not None:
                self.save()
                name = signal.Signals(interruption.signal).name
                bar.write(f"{name}: saved at step {self.step}; --resume goes on from there")
        return self.summary()

    def trained(self) -> DepthModel:
        """The model whose weights count: the average where there is one."""
        model: Any = self.model if self.average is None else self.average.module
        return model  # type: ignore[no-any-return]

    def calibrate(self) -> None:
        """Gives the averaged weights BatchNorm statistics of their own, from the last batches.

        Those of the trained model are of other weights, and an average of them lags behind by far: a network
        that predicts well on the statistics of its batch is then off by a factor.
        """
        if self.average is None or self._calibrated == self.step:
            return
        self._calibrated = last = self.step
        images = (self._batch(step)[0] for step in range(max(0, last - CALIBRATION_BATCHES), last))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            update_bn(images, self.average.module)

    def validate(self, loss: float, speed: float) -> dict[str, float]:
        """Evaluates on the validation split; keeps the weights if they are the best so far."""
        self.calibrate()
        model = self.trained().eval()
        protocol = "eigen" if self.val.info["splits"]["val"]["size"] == [480, 640] else "full"
        results, _ = evaluate(
            torch_predict(model, self.device), self.val, self.size(), protocol, progress=False
        )
        self.model.train()
        figures = results["per_image"]
        self.history.append({"step": self.step, "loss": loss, "images_per_s": speed, **figures})
        if figures["abs_rel"] < self.best:
            self.best = figures["abs_rel"]
            write_weights(model, self.out / "model.safetensors", self.card())
        write_json(self.out / "metrics.json", self.summary())
        return figures

    def card(self) -> dict[str, Any]:
        """What is known of the weights before they are evaluated."""
        model, config = self.model, self.config
        per_step = config.batch_size
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return {
            "model": model.name,
            "tag": config.tag,
            "arguments": model.arguments,
            "size": list(config.size),
            "dataset": {key: self.info.get(key) for key in ("source", "truth", "terms")},
            "recipe": to_toml(config),
            "depth_range": [model.min_depth, model.max_depth],
            "unit": "m",
            "camera": KINECT,
            "parameters": sum(p.numel() for p in model.parameters()),
            "terms": self.info.get("terms", ""),
            "trained_on": {"device": device, "steps": self.step, "images": self.step * per_step},
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
            "history": self.history,
        }

    # -- checkpoints --------------------------------------------------------------------------------------

    def save(self) -> None:
        """Writes the checkpoint, the last weights and the metrics, each whole or not at all."""
        state = {
            "step": self.step,
            "best": self.best,
            "history": self.history,
            "resumed_from": self.resumed_from,
        }
        self.calibrate()
        average = None if self.average is None else self.average.state_dict()
        save_checkpoint(
            self.checkpoint_path,
            Checkpoint(
                self.model.state_dict(), average, self.optimizer.state_dict(), state, to_toml(self.config)
            ),
        )
        write_weights(self.trained(), self.out / "last.safetensors", self.card())
        write_json(self.out / "metrics.json", self.summary())

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.config != to_toml(self.config):
            raise TrainingError(
                f"{self.checkpoint_path} was made with another configuration; resume with {self.out / 'config.toml'}"
            )
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        state = checkpoint.state
        self.step, self.best, self.history = state["step"], state["best"], state["history"]
        self.resumed_from = [*state["resumed_from"], self.step]
