"""Pre-train the encoder of a model on pictures without depth, for when no ImageNet weights can be had.

python -m train.pretrain --model unet_resnet50 --data PICTURES.tar ... --out RUN

The encoder learns to tell the kinds of picture apart: the pictures lie in tars or folders as <kind>/NNNNN.webp, .jpg or
.png. ``RUN/encoder.safetensors`` is what ``python -m train --encoder-weights`` takes. It is written after each epoch,
as is a checkpoint, from which --resume continues.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from train.arguments import command
from train.cards import commit, versions
from train.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from train.optim import report_precision, usable_precision
from train.pictures import Picture, find_pictures, fingerprint

HELD_OUT = 0.05  # fraction of the pictures that accuracy is measured on
WARMUP = 0.05  # fraction of the steps in which the learning rate rises
# Flags that decide the result: default, least value, description.
SETTINGS: dict[str, tuple[Any, float, str]] = {
    "size": (128, 32, "side of the square pictures, pixels"),
    "epochs": (20, 1, "passes over the pictures"),
    "batch_size": (64, 2, "pictures in a step"),
    "lr": (1e-3, 0, "peak learning rate of AdamW"),
    "weight_decay": (0.05, 0, "of tensors with two or more dimensions"),
    "smoothing": (0.1, 0, "label smoothing"),
    "seed": (0, 0, "of initialization, order and augmentation"),
}


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


class Kinds(Dataset[tuple[Tensor, int]]):
    """Pictures, uint8 (3, S, S), and the indices of their kinds; in place of one that cannot be read, the next."""

    def __init__(
        self, pictures: Sequence[Picture], kinds: list[str], transform: Callable[[Tensor], Tensor]
    ) -> None:
        self.pictures, self.kinds, self.transform = pictures, kinds, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        for place in range(index, index + 10):
            picture = self.pictures[place % len(self)]
            try:
                image = torch.from_numpy(picture.read()).permute(2, 0, 1)
            except DatasetError as error:
                problem = error
                print(f"skipped: {problem}", file=sys.stderr)
                continue
            return self.transform(image), self.kinds.index(picture.kind)
        raise problem


def pretrain(args: argparse.Namespace) -> dict[str, Any]:
    """Train an encoder; return the content of ``metrics.json``.

    Raises:
        ValueError: for an unknown model, missing pictures, pictures of one kind, a run in the way, ten unreadable
            pictures in a row, or a loss that is not finite.
    """
    settings = {key: getattr(args, key) for key in ("model", "precision", *SETTINGS)}
    for key, (_, least, _) in SETTINGS.items():
        if not least <= settings[key] < math.inf:
            raise ValueError(f"--{key.replace('_', '-')} {settings[key]}: expected at least {least}")
    checkpoint_path, device = args.out / "checkpoint.safetensors", select_device(args.device)
    if checkpoint_path.exists() != args.resume:
        problem = "no checkpoint to resume from" if args.resume else "a run already; --resume continues it"
        raise ValueError(f"{args.out} holds {problem}")
    precision = usable_precision(args.precision, device)
    report_precision(args.precision, precision, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")

    pictures = find_pictures(args.data)
    settings["pictures"] = fingerprint(pictures)
    kinds = sorted({picture.kind for picture in pictures})
    if len(kinds) < 2:
        raise ValueError(
            f"all {len(pictures)} pictures are in one folder, {kinds[0]!r}; expected two kinds or more"
        )
    order, count = (
        np.random.default_rng(0).permutation(len(pictures)),
        max(1, round(HELD_OUT * len(pictures))),
    )
    held_out, train = ([pictures[i] for i in sorted(part)] for part in (order[:count], order[count:]))
    crop = v2.RandomResizedCrop(args.size, scale=(0.3, 1.0), antialias=True)
    augment = v2.Compose([crop, v2.RandomHorizontalFlip(), v2.ColorJitter(0.3, 0.3, 0.3)])
    middle = v2.Compose([v2.Resize(args.size, antialias=True), v2.CenterCrop(args.size)])
    training, measuring = (
        DataLoader(Kinds(part, kinds, change), args.batch_size, shuffle, num_workers=args.workers)
        for part, change, shuffle in ((train, augment, True), (held_out, middle, False))
    )
    total = args.epochs * len(training)

    torch.manual_seed(args.seed)
    model = create_model(args.model, weights=None)
    classifier = Classifier(model, len(kinds))
    classifier.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [p for p in classifier.parameters() if p.ndim > 1]
    others = [p for p in classifier.parameters() if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, weight_decay=args.weight_decay)
    state: dict[str, Any] = {"step": 0, "steps": total, "history": [], "resumed_from": []}
    config = json.dumps(settings, sort_keys=True)
    if args.resume:
        checkpoint = load_checkpoint(checkpoint_path)
        if checkpoint.config != config:
            raise ValueError(f"{checkpoint_path} was made with other flags or pictures: {checkpoint.config}")
        classifier.load_state_dict(checkpoint.model)
        optimizer.load_state_dict(checkpoint.optimizer)
        state = checkpoint.state
        state["resumed_from"].append(state["step"])

    def on_device(image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        image = image.to(device, non_blocking=True).float() / 255
        return image.contiguous(memory_format=torch.channels_last), label.to(device)

    @torch.inference_mode()
    def accuracy() -> float:
        classifier.eval()
        right = 0
        for image, label in (on_device(*batch) for batch in measuring):
            with autocast:
                right += int((classifier(image).argmax(1) == label).sum())
        return right / count

    def save() -> None:
        parts = classifier.state_dict(), None, optimizer.state_dict(), state, config
        save_checkpoint(checkpoint_path, Checkpoint(*parts))
        card = {
            "model": model.name,
            "part": "encoder",
            "recipe": f"python -m train.pretrain {config}",
            "dataset": {
                "source": [path.name for path in args.data],
                "pictures": len(train),
                "terms": args.terms,
            },
            "terms": args.terms,
            "kinds": kinds,
            "metrics": state["history"][-1],
            "trained_on": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
                "steps": state["step"],
                "images": state["step"] * args.batch_size,
                "precision": precision,
            },
            "commit": commit(),
            "versions": versions(),
        }
        body: Any = model.encoder.body  # under the backbone's own names
        encoder = {key: value.detach().cpu().contiguous() for key, value in body.state_dict().items()}
        with atomic_write(args.out / "encoder.safetensors") as temporary:
            header = {HEADER_KEY: json.dumps(card, sort_keys=True)}
            temporary.write_bytes(safetensors.torch.save(encoder, header))
        write_json(args.out / "metrics.json", state | {"pictures": len(train), "kinds": kinds})

    for epoch in range(state["step"] // len(training), args.epochs):
        torch.manual_seed((args.seed << 20) + epoch)  # a resumed run draws what an uninterrupted one does
        classifier.train()
        losses, started = list[float](), time.monotonic()
        for batch in tqdm(training, f"epoch {epoch + 1} of {args.epochs}", unit="step", disable=None):
            image, label = on_device(*batch)
            done = state["step"] / total  # a linear rise, then half a cosine
            for group in optimizer.param_groups:
                group["lr"] = args.lr * min(done / WARMUP + 1 / total, (1 + math.cos(math.pi * done)) / 2)
            with autocast:
                loss = F.cross_entropy(classifier(image), label, label_smoothing=args.smoothing)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise ValueError(f"the loss is {losses[-1]} at step {state['step']}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state["step"] += 1
        speed = len(train) / (time.monotonic() - started)
        row = {"step": state["step"], "loss": sum(losses) / len(losses), "images_per_s": speed}
        state["history"].append(row | {"held_out_accuracy": accuracy()})
        print(", ".join(f"{key} {value:.4g}" for key, value in state["history"][-1].items()), flush=True)
        save()
    return state


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.pretrain", description=__doc__.splitlines()[0])
    main.add_argument("--model", required=True, metavar="NAME", help="model whose encoder is trained")
    main.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="TAR|DIR", help="<kind>/NNNNN.webp"
    )
    main.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    main.add_argument("--workers", type=int, default=0, metavar="N", help="processes that decode")
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--terms", default="not stated", help="license of the pictures, for the encoder's card")
    main.add_argument("--resume", action="store_true", help="continue after the last epoch in RUN")
    main.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    for key, (default, _, text) in SETTINGS.items():
        flag = f"--{key.replace('_', '-')}"
        main.add_argument(flag, type=type(default), default=default, metavar="N", help=f"{text} ({default})")
    return main


def run(args: argparse.Namespace) -> int:
    state = pretrain(args)
    print(f"{args.out}: held-out accuracy {state['history'][-1]['held_out_accuracy']:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
