"""Pre-train the encoder of a model on pictures without depth, for when no ImageNet weights can be had.

python -m train.pretrain --model unet_resnet50 --data PICTURES.tar ... --out RUN

The encoder learns to tell the kinds of picture apart: the pictures lie in tars or folders as <kind>/NNNNN.webp, .jpg or
.png. ``RUN/encoder.safetensors`` is what ``python -m train --encoder-weights`` takes.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

from depthzoo.errors import DatasetError
from depthzoo.files import atomic_write, write_json
from depthzoo.models import DepthModel, create_model
from depthzoo.prediction import select_device
from depthzoo.weights import HEADER_KEY
from train.arguments import add_settings, command
from train.cards import commit, versions
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.interruption import Interruption, ignore_interrupt
from train.pictures import Picture, find_pictures, fingerprint
from train.precision import report_precision, usable_precision

HELD_OUT = 0.05  # fraction of the pictures that accuracy is measured on
MAX_UNREADABLE = 0.01  # fraction of the pictures that may be skipped


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides a pre-training.

    Attributes:
        model: name of the model whose encoder is trained.
        size: side of the square pictures in pixels.
        epochs: passes over the pictures.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of all tensors with two or more dimensions.
        warmup: fraction of the steps in which the learning rate rises.
        smoothing: label smoothing.
        precision: "bf16" (autocast) or "fp32".
        seed: seed of initialization, order and augmentation.
        checkpoint_every: steps between checkpoints; there is also one after each epoch.
    """

    model: str = ""
    size: int = 128
    epochs: int = 20
    batch_size: int = 64
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    smoothing: float = 0.1
    precision: str = "bf16"
    seed: int = 0
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("--model is required")
        if self.precision not in ("bf16", "fp32"):
            raise ValueError(f"--precision {self.precision}: expected bf16 or fp32")
        lowest = {"size": 32, "batch_size": 2, "epochs": 1, "checkpoint_every": 1, "lr": 0, "seed": 0}
        for key, low in lowest.items():
            if not low <= getattr(self, key) < math.inf:
                raise ValueError(f"--{key.replace('_', '-')} {getattr(self, key)}: expected at least {low}")

    def to_toml(self) -> str:
        # JSON's strings and numbers are also TOML's.
        return "".join(f"{key} = {json.dumps(value)}\n" for key, value in dataclasses.asdict(self).items())


class Classifier(nn.Module):
    """Global average pooling over a model's deepest features, and a linear layer: (N, 3, H, W) in [0, 1] to (N, kinds).

    It has the encoder's parameters and not the decoder's.
    """

    def __init__(self, model: DepthModel, kinds: int) -> None:
        super().__init__()
        self.normalize, self.encoder = model.normalize, model.encoder
        self.linear = nn.Linear(model.encoder.out_channels[-1], kinds)

    def forward(self, image: Tensor) -> Tensor:
        deepest: Tensor = self.encoder(self.normalize(image))[-1]
        logits: Tensor = self.linear(deepest.float().mean((2, 3)))
        return logits.float()


class Batch(NamedTuple):
    """Pictures for the network; those that cannot be read are missing and named."""

    image: Tensor  # (N, 3, S, S) uint8
    label: Tensor  # (N,) int64, index of the kind
    unreadable: dict[str, str]


class Batches(Dataset[Batch]):
    """The batch of each step of an endless sequence of shuffled epochs.

    Order and augmentation are functions of (seed, epoch, picture), so that a resumed run continues exactly.

    Args:
        pictures: the pictures.
        kinds: names of the kinds.
        transform: uint8 (3, h, w) to (3, S, S).
        batch_size: pictures per step.
        seed: if None, the pictures keep their order and there is one epoch.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        kinds: list[str],
        transform: Callable[[Tensor], Tensor],
        batch_size: int,
        seed: int | None = None,
    ) -> None:
        self.pictures, self.kinds, self.transform = pictures, kinds, transform
        self.batch_size, self.seed = batch_size, seed
        self.epoch_steps = max(1, math.ceil(len(pictures) / batch_size))

    def __getitem__(self, step: int) -> Batch:
        images, labels, unreadable = list[Tensor](), list[int](), dict[str, str]()
        for position in range(step * self.batch_size, (step + 1) * self.batch_size):
            epoch, index = divmod(position, len(self.pictures))
            if self.seed is None and epoch:
                break
            if self.seed is not None:
                index = int(shuffled(self.seed, epoch, len(self.pictures))[index])
            picture = self.pictures[index]
            try:
                image = torch.from_numpy(picture.read()).permute(2, 0, 1)
            except DatasetError as error:
                unreadable[str(picture)] = str(error)
                continue
            seed = np.random.SeedSequence((self.seed or 0, epoch, index)).generate_state(1, np.uint64)[0]
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(int(seed))
                images.append(self.transform(image))
            labels.append(self.kinds.index(picture.kind))
        return Batch(torch.stack(images) if images else torch.empty(0), torch.tensor(labels), unreadable)

    def steps(self, first: int, last: int, workers: int) -> Iterator[Batch]:
        """Yield the batches of the steps from ``first`` to before ``last``."""
        steps, generator = range(first, last), torch.Generator()  # otherwise it draws from the global one
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=steps,
            num_workers=workers,
            worker_init_fn=ignore_interrupt,
            generator=generator,
        )
        return iter(loader)


def shuffled(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def learning_rate(config: PretrainConfig, step: int, total: int) -> float:
    """Rise linearly in the warm-up, then fall to 0 by a half cosine."""
    rise = round(config.warmup * total)
    if step < rise:
        return config.lr * (step + 1) / rise
    return config.lr * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2


def pretrain(
    config: PretrainConfig,
    data: list[Path],
    out: Path,
    device: torch.device,
    *,
    terms: str = "not stated",
    max_steps: int = 0,
    workers: int = 0,
    resume: bool = False,
) -> dict[str, Any]:
    """Train an encoder.

    Args:
        config: settings of the run.
        data: tars and folders of pictures.
        out: the run's folder. It must hold a checkpoint if ``resume``, otherwise no run.
        device: where to train.
        terms: license of the pictures, for the encoder's card.
        max_steps: stop after this step without changing the schedule. If 0, train to the end.
        workers: processes that decode. The result does not depend on it.
        resume: continue from the checkpoint.

    Returns:
        What ``metrics.json`` holds. "step" is less than "last_step" after an interruption.

    Raises:
        ValueError: for an unknown model, missing pictures, pictures of one kind, a run in the way, too many unreadable
            pictures, or a loss that is not finite.
    """
    checkpoint_path = out / "checkpoint.safetensors"
    if resume and not checkpoint_path.exists():
        raise ValueError(f"{out} holds no checkpoint to resume from")
    if checkpoint_path.exists() and not resume:
        raise ValueError(f"{out} holds a run already; --resume continues it, or give another --out")
    precision = usable_precision(config.precision, device)
    report_precision(config.precision, precision, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    pictures = find_pictures(data)
    kinds = sorted({picture.kind for picture in pictures})
    if len(kinds) < 2:
        raise ValueError(
            f"all {len(pictures)} pictures are in one folder, {kinds[0]!r}; expected <kind>/NNNNN.webp of two kinds "
            "or more"
        )
    order = shuffled(0, 0, len(pictures))
    count = max(1, round(HELD_OUT * len(pictures)))
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(config.size, scale=(0.3, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.3, 0.3, 0.3),
        ]
    )
    middle = v2.Compose([v2.Resize(config.size, antialias=True), v2.CenterCrop(config.size)])

    held_out, train = ([pictures[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    training = Batches(train, kinds, augment, config.batch_size, config.seed)
    measuring = Batches(held_out, kinds, middle, config.batch_size)
    total = config.epochs * training.epoch_steps
    last_step = min(total, max_steps) if max_steps else total

    torch.manual_seed(config.seed)
    model = create_model(config.model, weights=None)
    classifier = Classifier(model, len(kinds))
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in classifier.parameters() if p.ndim > 1]
    others = [p for p in classifier.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    state: dict[str, Any] = {
        "step": 0,
        "history": [],
        "resumed_from": [],
        "skipped": {},
        "fingerprint": fingerprint(pictures),
    }
    if resume:
        checkpoint = load_checkpoint(checkpoint_path)
        if checkpoint.config != config.to_toml():
            raise ValueError(
                f"{checkpoint_path} was made with other values; they are in {out / 'config.toml'}"
            )
        if checkpoint.state.get("fingerprint") != state["fingerprint"]:
            raise ValueError(
                f"{checkpoint_path} was made with other pictures; give the same --data in the same order"
            )
        classifier.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
        state = checkpoint.state
        state["resumed_from"].append(state["step"])
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.toml").write_text(config.to_toml(), encoding="utf-8")
    summary = {"steps": total, "last_step": last_step, "pictures": len(train), "held_out": len(held_out)}

    def on_device(batch: Batch) -> tuple[Tensor, Tensor]:
        for name, problem in batch.unreadable.items():
            if name not in state["skipped"]:
                tqdm.write(f"skipped: {problem}", file=sys.stderr)
                state["skipped"][name] = problem
            if len(state["skipped"]) > MAX_UNREADABLE * len(pictures):
                bad = f"{len(state['skipped'])} of {len(pictures)} pictures are unreadable"
                raise DatasetError(f"{bad}, more than {MAX_UNREADABLE:.0%}; the last: {problem}")
        image = batch.image.to(device, non_blocking=True).float() / 255
        return image.contiguous(memory_format=torch.channels_last), batch.label.to(device)

    @torch.inference_mode()
    def accuracy() -> float:
        classifier.eval()
        right = seen = 0
        for batch in measuring.steps(0, measuring.epoch_steps, workers):
            image, label = on_device(batch)
            with autocast:
                right += int((classifier(image).argmax(1) == label).sum())
            seen += len(label)
        classifier.train()
        return right / max(seen, 1)

    def save() -> None:
        save_checkpoint(
            checkpoint_path,
            Checkpoint(classifier.state_dict(), None, optimizer.state_dict(), state, config.to_toml()),
        )
        card = {
            "model": model.name,
            "part": "encoder",
            "recipe": "python -m train.pretrain\n" + config.to_toml(),
            "dataset": {"source": [path.name for path in data], "pictures": len(train), "terms": terms},
            "terms": terms,
            "kinds": kinds,
            "metrics": state["history"][-1] if state["history"] else {},
            "trained_on": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
                "steps": state["step"],
                "images": state["step"] * config.batch_size,
                "precision": precision,
            },
            "commit": commit(),
            "versions": versions(),
        }
        body: Any = model.encoder.body  # under the backbone's own names
        encoder = {key: value.detach().cpu().contiguous() for key, value in body.state_dict().items()}
        with atomic_write(out / "encoder.safetensors") as temporary:
            header = {HEADER_KEY: json.dumps(card, sort_keys=True)}
            temporary.write_bytes(safetensors.torch.save(encoder, header))
        write_json(
            out / "metrics.json", {**state, **summary, "kinds": kinds, "skipped": sorted(state["skipped"])}
        )

    classifier.train()
    interruption, first, losses, started = Interruption(), state["step"], list[float](), time.monotonic()
    with (
        interruption.watched(),
        tqdm(total=last_step, initial=first, unit="step", disable=None) as bar,
    ):
        for batch in training.steps(first, last_step, workers):
            image, label = on_device(batch)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state["step"], total)
            with autocast:
                loss = F.cross_entropy(classifier(image), label, label_smoothing=config.smoothing)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {state['step']}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["step"] += 1

            mean = sum(losses) / len(losses)  # since the epoch began, or the run was resumed
            speed = (state["step"] - first) * config.batch_size / (time.monotonic() - started)
            bar.update()
            bar.set_postfix_str(f"loss {mean:.3f}, {speed:.1f} images/s", refresh=False)
            epoch_ends = state["step"] % training.epoch_steps == 0 or state["step"] == last_step
            if epoch_ends:
                row = {"step": state["step"], "epoch": state["step"] / training.epoch_steps, "loss": mean}
                state["history"].append({**row, "images_per_s": speed, "held_out_accuracy": accuracy()})
                losses.clear()
                bar.write(", ".join(f"{key} {value:.4g}" for key, value in state["history"][-1].items()))
            if epoch_ends or state["step"] % config.checkpoint_every == 0 or interruption.signal is not None:
                save()
            if interruption.signal is not None:
                bar.write(f"{interruption.name}: saved at step {state['step']}; --resume goes on from there")
                break
    return {**state, **summary}


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.pretrain", description=__doc__.splitlines()[0])
    main.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="TAR|DIR", help="<kind>/NNNNN.webp"
    )
    main.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    main.add_argument("--max-steps", type=int, default=0, metavar="N", help="stop early; the schedule stays")
    main.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode (default: by the device)"
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--terms", default="not stated", help="license of the pictures, for the encoder's card")
    main.add_argument("--resume", action="store_true", help="continue from the checkpoint in RUN")
    add_settings(main.add_argument_group("settings"), PretrainConfig)
    return main


def run(args: argparse.Namespace) -> int:
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(PretrainConfig)}
    given = {key: value for key, value in given.items() if value is not None}
    config = PretrainConfig(**(given | dict(args.set)))
    device = select_device(args.device)
    workers = args.workers
    if workers is None:
        # On a CPU decoding is a few percent of a step, and the cores are busy.
        workers = min(8, os.cpu_count() or 1) if device.type != "cpu" else 0
    result = pretrain(
        config,
        args.data,
        args.out,
        device,
        terms=args.terms,
        max_steps=args.max_steps,
        workers=workers,
        resume=args.resume,
    )
    accuracy = "".join(
        f", held-out accuracy {row['held_out_accuracy']:.3f}" for row in result["history"][-1:]
    )
    print(f"{args.out}: step {result['step']} of {result['steps']}{accuracy}")
    return 0 if result["step"] >= result["last_step"] else 130


if __name__ == "__main__":
    sys.exit(command(parser(), run))
