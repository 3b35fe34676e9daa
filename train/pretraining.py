"""The loop that pre-trains an encoder, and the folder that it leaves."""

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from depthzoo.models import DepthModel, create_model
from depthzoo.weights import save_weights
from train.cards import commit, versions
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.interruption import Interruption
from train.pictures import Unreadable, find_pictures, fingerprint
from train.precision import report_precision, usable_precision
from train.pretext import Classify, Pretext, SimSiam
from train.pretrain_config import PretrainConfig, PretrainError, learning_rate, make_optimizer
from train.shards import write_json
from train.views import ViewBatch, Views, batches, centre, hold_out

HELD_OUT = 0.05
# Below this spread the embeddings of different pictures are nearly one (1 is evenly spread).
COLLAPSED = 0.1


def write_encoder(model: DepthModel, path: Path, card: dict[str, Any]) -> None:
    """Writes the backbone's tensors in full precision, under its own names (``encoder.body``), atomically.

    Raises:
        PretrainError: for tensors that are not finite.
    """
    body: Any = model.encoder.body
    state: dict[str, Tensor] = {
        key: value.detach().cpu().contiguous().clone() for key, value in body.state_dict().items()
    }
    for key, value in state.items():
        if not value.isfinite().all():
            raise PretrainError(f"{path}: not written, {key} is not finite")
    save_weights(path, state, card, half=False)


class Pretraining:
    """One pre-training and its folder.

    Args:
        config: of the run.
        data: tars and folders of pictures.
        out: the run's folder; must hold no run, or a checkpoint if ``resume``.
        device: where to train.
        terms: of the pictures, for the encoder's card.
        max_steps: stop after so many steps, without changing the schedule.
        workers: processes that decode; 0 decodes between the steps. No influence on the result.
        resume: go on from the checkpoint.

    Raises:
        ValueError: one line: an unknown model, pictures that are missing, a single kind, a run in the way.
    """

    def __init__(
        self,
        config: PretrainConfig,
        data: list[Path],
        out: Path,
        device: torch.device | None = None,
        terms: str = "",
        max_steps: int = 0,
        workers: int = 0,
        resume: bool = False,
    ) -> None:
        self.config = config = config.resolved()
        self.out, self.terms, self.workers = out, terms, workers
        self.device = device or torch.device("cpu")
        self.checkpoint_path = out / "checkpoint.safetensors"
        if self.checkpoint_path.exists() != resume:
            raise PretrainError(
                f"{out} holds no checkpoint to resume from"
                if resume
                else f"{out} holds a run already; --resume goes on with it, or give another --out"
            )
        self.precision = usable_precision(config.precision, self.device)
        report_precision(config.precision, self.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = create_model(config.model, weights=None)
        self.data = [path.name for path in data]
        pictures = find_pictures(data)
        self.kinds = sorted({picture.kind for picture in pictures}) if config.method == "class" else []
        if config.method == "class" and len(self.kinds) < 2:
            raise PretrainError(
                f"--method class: all {len(pictures)} pictures are in one folder, {self.kinds[0]!r}; expected "
                "<kind>/NNNNN.webp of two kinds or more, or --method simsiam"
            )
        self.fingerprint, self.unreadable = fingerprint(pictures), Unreadable(len(pictures))
        pretext = (
            Classify(self.model, len(self.kinds), config.smoothing) if self.kinds else SimSiam(self.model)
        )
        self.pretext: Pretext = pretext.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.pretext, config)
        train, held_out = hold_out(pictures, HELD_OUT) if self.kinds else (list(range(len(pictures))), [])
        labels = [self.kinds.index(picture.kind) if self.kinds else 0 for picture in pictures]
        self.views = Views(
            [pictures[i] for i in train],
            [labels[i] for i in train],
            self.pretext.transform(config.size),
            self.pretext.views,
            config.seed,
        )
        self.held_out = Views(
            [pictures[i] for i in held_out], [labels[i] for i in held_out], centre(config.size)
        )
        self.per_epoch = max(1, math.ceil(len(train) / config.batch_size))
        self.total = config.epochs * self.per_epoch
        self.last_step = min(self.total, max_steps) if max_steps else self.total
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.resumed_from: list[int] = []
        if resume:
            self._restore(load_checkpoint(self.checkpoint_path))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.toml").write_text(config.to_toml(), encoding="utf-8")

    def _on_device(self, batch: ViewBatch) -> tuple[Tensor, Tensor]:
        image = batch.image.to(self.device, non_blocking=True).float() / 255
        return image.contiguous(memory_format=torch.channels_last), batch.labels.to(self.device)

    def _note(self, batch: ViewBatch, bar: Any) -> None:
        for name, message in batch.unreadable.items():
            if self.unreadable.add(name, message):
                bar.write(f"skipped: {message}", file=sys.stderr)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def train_step(self, batch: ViewBatch) -> tuple[float, dict[str, float]]:
        """One optimiser step; the loss, and what else is to be logged."""
        rate = learning_rate(self.config, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr if group["fixed"] else rate
        image, labels = self._on_device(batch)
        with self._autocast():
            loss, figures = self.pretext(image, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise PretrainError(
                f"the loss is {value} at step {self.step}; pictures: {', '.join(batch.names)}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return value, figures

    def train(self) -> dict[str, Any]:
        """Trains to the last step; what ``metrics.json`` holds."""
        config, interruption = self.config, Interruption()
        self.pretext.train()
        first, losses, started = self.step, list[float](), time.monotonic()
        positions = (self.step * config.batch_size, self.last_step * config.batch_size)
        with (
            interruption.watched(),
            tqdm(total=self.last_step, initial=self.step, unit="step", disable=None) as bar,
        ):
            for batch in batches(self.views, *positions, config.batch_size, self.workers):
                self._note(batch, bar)
                value, figures = self.train_step(batch)
                losses.append(value)
                mean = sum(losses) / len(losses)  # since the epoch began, or the run went on
                speed = (self.step - first) * config.batch_size / (time.monotonic() - started)
                bar.update()
                bar.set_postfix_str(f"loss {mean:.3f}, {speed:.1f} images/s", refresh=False)
                whole = self.step % self.per_epoch == 0 or self.step == self.last_step
                if whole:
                    epoch = self.step / self.per_epoch
                    row = {
                        "step": self.step,
                        "epoch": epoch,
                        "loss": mean,
                        "images_per_s": speed,
                        **figures,
                    }
                    self.history.append(row | self.measure(bar))
                    losses.clear()
                    bar.write(", ".join(f"{key} {value:.4g}" for key, value in self.history[-1].items()))
                    if figures.get("spread", 1.0) < COLLAPSED:
                        bar.write(
                            "the embeddings have nearly collapsed into one; lower --lr", file=sys.stderr
                        )
                if whole or self.step % config.checkpoint_every == 0 or interruption.signal is not None:
                    self.save()
                if interruption.signal is not None:
                    bar.write(f"{interruption.name}: saved at step {self.step}; --resume goes on from there")
                    break
        return self.summary()

    @torch.inference_mode()
    def measure(self, bar: Any) -> dict[str, float]:
        """Accuracy on the held-out pictures; empty where there are no kinds."""
        if not isinstance(self.pretext, Classify):
            return {}
        self.pretext.eval()
        right = count = 0
        for batch in batches(self.held_out, 0, len(self.held_out), self.config.batch_size, self.workers):
            self._note(batch, bar)
            image, labels = self._on_device(batch)
            with self._autocast():
                right += int((self.pretext.logits(image).argmax(1) == labels).sum())
            count += len(labels)
        self.pretext.train()
        return {"held_out_accuracy": right / count}

    def card(self) -> dict[str, Any]:
        """What the encoder's file says of itself."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return {
            "model": self.model.name,
            "part": "encoder",
            "recipe": "python -m train.pretrain\n" + self.config.to_toml(),
            "dataset": {"source": self.data, "pictures": len(self.views), "terms": self.terms},
            "terms": self.terms,
            "kinds": self.kinds,
            "metrics": self.history[-1] if self.history else {},
            "trained_on": {
                "device": device,
                "steps": self.step,
                "images": self.step * self.config.batch_size,
                "precision": self.precision,
            },
            "commit": commit(),
            "versions": versions(),
        }

    def summary(self) -> dict[str, Any]:
        """Content of ``metrics.json``."""
        return {
            "step": self.step,
            "steps": self.total,
            "pictures": len(self.views),
            "held_out": len(self.held_out),
            "kinds": self.kinds,
            "skipped": sorted(self.unreadable.found),
            "resumed_from": self.resumed_from,
            "history": self.history,
        }

    def save(self) -> None:
        """Writes the checkpoint, the encoder and the metrics, each whole or not at all."""
        state = {
            "step": self.step,
            "history": self.history,
            "resumed_from": self.resumed_from,
            "fingerprint": self.fingerprint,
            "unreadable": self.unreadable.found,
        }
        model, optimizer = self.pretext.state_dict(), self.optimizer.state_dict()
        save_checkpoint(
            self.checkpoint_path, Checkpoint(model, None, optimizer, state, self.config.to_toml())
        )
        write_encoder(self.model, self.out / "encoder.safetensors", self.card())
        write_json(self.out / "metrics.json", self.summary())

    def _restore(self, checkpoint: Checkpoint) -> None:
        state, path = checkpoint.state, self.checkpoint_path
        if checkpoint.config != self.config.to_toml():
            raise PretrainError(f"{path} was made with other values; they are in {self.out / 'config.toml'}")
        if state.get("fingerprint") != self.fingerprint:
            raise PretrainError(
                f"{path} was made with other pictures; give the same --data in the same order"
            )
        self.pretext.load_state_dict(checkpoint.model)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.step, self.history = state["step"], state["history"]
        self.unreadable.found = state["unreadable"]
        self.resumed_from = [*state["resumed_from"], self.step]
