"""Trains a model.

python -m train --recipe train/recipes/unet_mobilenet_v3.toml --data DIR --out RUN
python -m train --resume --out RUN
torchrun --nproc-per-node 8 -m train --recipe ... --data DIR --out RUN
"""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

import torch

from depthzoo.predictor import select_device
from train.arguments import add_settings, command
from train.config import TrainConfig, load_recipe
from train.distributed import joined
from train.engine import Run, RunOptions, check_writable
from train.feed import SOURCES, Sources


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="python -m train",
        usage="%(prog)s --recipe FILE --data DIR --out RUN [flags] | --resume --out RUN [flags] | --help",
        description=__doc__.splitlines()[0],
    )
    main.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a TOML file of train/recipes (with --resume by default the run's own)",
    )
    main.add_argument("--data", metavar="DIR|URL", help="shards made by train.prepare")
    main.add_argument("--mix-data", type=Path, metavar="DIR", help="a second data set, for a recipe with mix")
    main.add_argument(
        "--pictures",
        type=Path,
        nargs="+",
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
    main.add_argument("--resume", action="store_true", help="go on from the checkpoint in RUN, with its data")
    main.add_argument("--deterministic", action="store_true", help="the same bits each time, slower")
    main.add_argument("--compile", action="store_true", help="torch.compile the network")
    main.add_argument("--no-report", action="store_true", help="no report.html and report.png at the end")
    settings = main.add_argument_group("instead of the recipe's values")
    add_settings(settings, TrainConfig)
    settings.add_argument(
        "--teacher", dest="teacher_model", metavar="NAME|RUN|FILE", help="short for --set teacher.model="
    )
    return main


def find_sources(args: argparse.Namespace) -> Sources:
    """Where the data are: as the flags say, else as the run that is resumed has recorded.

    Raises:
        ValueError: neither says it.
    """
    record, known = args.out / SOURCES, {}
    if args.resume and record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
    data, mix_data = args.data or known.get("data"), args.mix_data or known.get("mix_data")
    if not data:
        raise ValueError(f"--data DIR is needed{f'; there is no {record}' if args.resume else ''}")
    pictures = args.pictures or known.get("pictures") or ()
    return Sources(data, mix_data and Path(mix_data), tuple(map(Path, pictures)), args.cache, args.workers)


def run(args: argparse.Namespace) -> int:
    overrides = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(TrainConfig)}
    # Who asks for one size wants no others.
    sizes = () if args.size else None
    overrides |= {"teacher.model": args.teacher_model, "sizes": sizes, **dict(args.set)}
    if args.recipe is None and not args.resume:
        raise ValueError("--recipe FILE is needed for a new run; there are some in train/recipes")
    if args.max_steps < 0:
        raise ValueError(f"--max-steps {args.max_steps}: expected 0 or more")
    config = load_recipe(args.recipe or args.out / "config.toml", **overrides)
    device = select_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    if not args.resume:
        check_writable(args.out)
    sources = find_sources(args)
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
