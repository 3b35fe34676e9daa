"""Write the report of a run, RUN/report.html: curves, frames and metrics.

python -m train.report RUN [--data DIR]

Without --data the report is made from metrics.json and config.toml alone.
"""

import argparse
import sys
from pathlib import Path

from depthzoo.prediction import select_device
from train.arguments import command
from train.report_page import report_run, write_report
from train.shards import ShardDataset


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="python -m train.report", description=__doc__.splitlines()[0])
    main.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    main.add_argument("--data", type=Path, metavar="DIR", help="its data set, for frames and both averages")
    main.add_argument("--device", metavar="cpu|cuda")
    return main


def run(args: argparse.Namespace) -> int:
    if args.data:
        path = report_run(args.run, ShardDataset(args.data, "val"), select_device(args.device))
    else:
        path = write_report(args.run)
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
