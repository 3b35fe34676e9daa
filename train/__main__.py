"""Train a model.

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
from typing import Any

from train.arguments import add_settings, command
from train.config import TrainConfig, load_recipe


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
        help="a TOML file, as in train/recipes (default with --resume: the run's)",
    )
    main.add_argument("--data", metavar="DIR|URL", help="shards made by train.prepare")
    main.add_argument(
        "--mix-data",
        type=Path,
        nargs="+",
        action="extend",
        metavar="DIR",
        help="further data sets, one for each fraction of the recipe's mix",
    )
    main.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    main.add_argument("--device", metavar="cpu|cuda")
    main.add_argument(
        "--cache",
        choices=("auto", "device", "ram", "disk"),
        default="auto",
        help="where decoded frames are kept",
    )
    main.add_argument("--workers", type=int, default=4, metavar="N", help="threads that decode frames")
    main.add_argument("--max-steps", type=int, default=0, metavar="N", help="stop early; the schedule stays")
    main.add_argument(
        "--resume",
        action="store_true",
        help="continue from the checkpoint in RUN, with its data; a larger --steps extends the run",
    )
    main.add_argument("--deterministic", action="store_true", help="the same bits each time, slower")
    main.add_argument("--compile", action="store_true", help="compile the network with torch.compile")
    main.add_argument("--no-report", action="store_true", help="write no report.html at the end")
    add_settings(main.add_argument_group("instead of the recipe's values"), TrainConfig)
    return main


def find_sources(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``train.data.Sources``: from the flags, else as recorded in the run that is resumed.

    Raises:
        ValueError: neither says where the data are.
    """
    record, known = args.out / "sources.json", {}
    if args.resume and record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
    data = args.data or known.get("data")
    if not data:
        raise ValueError(f"--data DIR is needed{f'; there is no {record}' if args.resume else ''}")
    mix = args.mix_data or known.get("mix") or ()
    return {"data": data, "mix": tuple(map(Path, mix)), "cache": args.cache, "workers": args.workers}


def run(args: argparse.Namespace) -> int:
    overrides = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(TrainConfig)}
    if args.size and args.sizes is None:
        overrides["sizes"] = ()
    if args.recipe is None and not args.resume:
        raise ValueError("--recipe FILE is needed for a new run; there are some in train/recipes")
    if args.max_steps < 0:
        raise ValueError(f"--max-steps {args.max_steps}: expected 0 or more")
    config = load_recipe(args.recipe or args.out / "config.toml", **overrides | dict(args.set))
    given = find_sources(args)

    # Here, since they take seconds, for which --help and a wrong flag need not wait.
    import torch

    from depthzoo.prediction import select_device
    from train.data import Sources
    from train.distributed import joined
    from train.loop import Run, RunOptions
    from train.report import report_run

    device = select_device(args.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
    with joined(device) as world:
        options = RunOptions(device, world, args.max_steps, args.resume, args.deterministic, args.compile)
        training = Run(config, Sources(**given), args.out, options)
        metrics = training.train()
        finished = metrics["step"] >= training.last_step
        if world.writes:
            if finished and not args.no_report:
                try:
                    report_run(args.out, training.data.validation, device)
                except (ValueError, OSError) as error:  # a run that is done does not fail with its report
                    print(f"no report: {error}", file=sys.stderr)
            best = metrics["best_val_abs_rel"]
            text = f", best val AbsRel {best:.3f}" if best else ""
            print(f"{args.out}: step {metrics['step']} of {metrics['steps']}{text}")
        world.barrier()
        return 0 if finished else 130


if __name__ == "__main__":
    sys.exit(command(parser(), run))
