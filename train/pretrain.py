"""Pre-trains the encoder of a model on pictures without depth, for where no ImageNet weights can be had.

python -m train.pretrain --model unet_resnet50 --data PICTURES.tar ... --out RUN [--method class|simsiam]

The pictures lie in tars or folders as <kind>/NNNNN.webp, .jpg or .png. RUN/encoder.safetensors is what
python -m train --encoder-weights takes, under the backbone's own names.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from depthzoo.predictor import select_device
from train.arguments import command
from train.pretrain_config import PretrainConfig
from train.pretraining import Pretraining


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.pretrain", description=__doc__.splitlines()[0])
    default = {field.name: field.default for field in dataclasses.fields(PretrainConfig)}
    main.add_argument("--model", required=True, help="whose encoder")
    main.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="TAR|DIR", help="<kind>/NNNNN.webp"
    )
    main.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    main.add_argument("--method", choices=("class", "simsiam"), default=default["method"])
    main.add_argument("--size", type=int, default=default["size"], metavar="N", help="side of the pictures")
    for name in ("epochs", "batch_size", "seed", "checkpoint_every"):
        main.add_argument(f"--{name.replace('_', '-')}", type=int, default=default[name], metavar="N")
    main.add_argument("--lr", type=float, default=default["lr"], help="default: the method's own")
    main.add_argument("--precision", choices=("bf16", "fp32"), default=default["precision"])
    main.add_argument("--max-steps", type=int, default=0, metavar="N", help="stop early; the schedule stays")
    main.add_argument(
        "--workers", type=int, metavar="N", help="processes that decode (default: by the device)"
    )
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument("--terms", default="not stated", help="of the pictures, kept in the encoder's file")
    main.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN")
    return main


RUN_ARGUMENTS = ("data", "out", "max_steps", "workers", "device", "terms", "resume")


def run(args: argparse.Namespace) -> int:
    config = PretrainConfig(**{key: value for key, value in vars(args).items() if key not in RUN_ARGUMENTS})
    device = select_device(args.device)
    workers = args.workers
    if workers is None:
        # On a CPU decoding is a few percent of a step, and the cores are taken.
        workers = min(8, os.cpu_count() or 1) if device.type != "cpu" else 0
    run = Pretraining(config, args.data, args.out, device, args.terms, args.max_steps, workers, args.resume)
    summary = run.train()
    last = summary["history"][-1] if summary["history"] else {}
    figures = ", ".join(f"{key} {last[key]:.3f}" for key in ("held_out_accuracy", "spread") if key in last)
    print(f"{args.out}: step {summary['step']} of {summary['steps']}" + (figures and f", {figures}"))
    return 0 if summary["step"] >= run.last_step else 130


if __name__ == "__main__":
    sys.exit(command(parser(), run))
