"""Trains a model.

python -m train --recipe train/recipes/unet_mobilenet_v3.toml --data DIR --out RUN
python -m train --resume --data DIR --out RUN
torchrun --nproc-per-node 8 -m train --recipe ... --data DIR --out RUN
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

import torch

from depthzoo.predictor import select_device
from train.arguments import command, parse_size
from train.config import TrainConfig, load_recipe
from train.distributed import joined
from train.engine import Run, RunOptions, check_writable
from train.feed import Sources


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train", description=__doc__.splitlines()[0])
    main.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a TOML file of train/recipes (with --resume by default the run's own)",
    )
    main.add_argument("--data", required=True, metavar="DIR|URL", help="shards made by train.prepare")
    main.add_argument("--mix-data", type=Path, metavar="DIR", help="a second data set, for a recipe with mix")
    main.add_argument(
        "--pictures",
        type=Path,
        nargs="+",
        default=[],
        metavar="TAR|DIR",
        help="pictures without depth, for a recipe with a [teacher]",
    )
    main.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument(
        "--cache", choices=("auto", "device", "ram", "none"), default="auto", help="decoded frames"
    )
    main.add_argument("--workers", type=int, default=4, metavar="N", help="decoding threads of --cache none")
    main.add_argument("--max-steps", type=int, default=0, metavar="N", help="stop early; the schedule stays")
    main.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN")
    main.add_argument("--deterministic", action="store_true", help="the same bits each time, slower")
    main.add_argument("--compile", action="store_true", help="torch.compile the network")
    main.add_argument("--no-report", action="store_true", help="no report.html and report.png at the end")
    settings = main.add_argument_group("instead of the recipe's values")
    settings.add_argument("--size", type=parse_size, metavar="HxW")
    settings.add_argument("--batch-size", type=int, metavar="N", help="over all processes")
    settings.add_argument("--accumulate", type=int, metavar="N")
    settings.add_argument("--steps", type=int, metavar="N")
    settings.add_argument("--epochs", type=int, metavar="N")
    settings.add_argument("--frames", type=int, metavar="N", help="of the train split, evenly spread")
    settings.add_argument("--lr", type=float)
    settings.add_argument("--seed", type=int)
    settings.add_argument("--mix", type=float, metavar="SHARE")
    settings.add_argument("--precision", choices=("bf16", "fp16", "fp32"))
    settings.add_argument("--nonfinite", choices=("stop", "skip"))
    settings.add_argument("--recompute", action="store_true", default=None)
    settings.add_argument("--encoder-weights", metavar="imagenet|none|PATH")
    settings.add_argument("--init", metavar="FILE.safetensors")
    settings.add_argument(
        "--teacher",
        dest="teacher_model",
        metavar="NAME|RUN|FILE",
        help="of the [teacher], the model that labels --pictures",
    )
    settings.add_argument("--tag")
    settings.add_argument("--checkpoint-every", type=int, metavar="N")
    settings.add_argument("--validate-every", type=int, metavar="N")
    return main


def run(args: argparse.Namespace) -> int:
    overrides = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(TrainConfig)}
    if args.recipe is None and not args.resume:
        raise ValueError("--recipe FILE is needed for a new run; there are some in train/recipes")
    if args.max_steps < 0:
        raise ValueError(f"--max-steps {args.max_steps}: expected 0 or more")
    config = load_recipe(args.recipe or args.out / "config.toml", **overrides)
    if args.teacher_model is not None:
        config = dataclasses.replace(
            config, teacher=dataclasses.replace(config.teacher, model=args.teacher_model)
        )
    device = select_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    if not args.resume:
        check_writable(args.out)
    sources = Sources(args.data, args.mix_data, tuple(args.pictures), args.cache, args.workers)
    with joined(device) as world:
        options = RunOptions(
            device=device,
            world=world,
            max_steps=args.max_steps,
            resume=args.resume,
            deterministic=args.deterministic,
            compile=args.compile,
            report=not args.no_report,
        )
        training = Run(config, sources, args.out, options)
        summary = training.train()
        if world.writes:
            best = summary["best_val_abs_rel"]
            figure = f", best val AbsRel {best:.3f}" if best else ""
            print(f"{args.out}: step {summary['step']} of {summary['steps']}{figure}")
        return 0 if summary["step"] >= training.last_step else 130


if __name__ == "__main__":
    sys.exit(command(parser(), run))
