"""Runs what a machine with an NVIDIA GPU should run, in stages.

    benchmarks/gpu.sh --data DIR [--mat FILE] [--out DIR]    everything that is not done yet
    benchmarks/gpu.sh STAGE... ['latency-*']                 some stages
    benchmarks/gpu.sh --list | --missing                     what there is, what is owed
    benchmarks/gpu.sh --rehearse                             every stage at a tiny setting on the CPU; no result

A stage that is done on this GPU is skipped. Each has a time limit: after 7 minutes it gets SIGINT, after 8 SIGKILL. A
training saves at SIGINT, and goes on in the next part until it is done. Ctrl-C keeps what is done. Results go into one
folder, with trainings in runs/ below it. Trained weights and cards go into the checkout's weights/, or, with --out,
into weights/ below that.
"""

import argparse
import fnmatch
import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; a benchmark also needs the checkout's train.
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.measure.record import RESULTS  # noqa: E402
from benchmarks.stages.journal import Journal  # noqa: E402
from benchmarks.stages.limited import GRACE, run_limited  # noqa: E402
from benchmarks.stages.owed import owed  # noqa: E402
from benchmarks.stages.plan import FULL, LIMIT, Plan, Stage  # noqa: E402
from depthzoo.errors import suggest  # noqa: E402
from train.arguments import command  # noqa: E402
from train.pictures import find_pictures  # noqa: E402
from train.shards import read_dataset  # noqa: E402

LEAST = 120.0  # seconds that must be left for a stage to start


@dataclass
class Runner:
    """Runs stages one after the other.

    Attributes:
        plan: the stages.
        journal: what is done.
        again: run what is done, too.
        until: nothing runs after this, on the clock of ``time.monotonic``.
        part_steps: steps of a part of a training; 0: as many as its time allows.
        limit: seconds of a stage, ``grace`` included.
        grace: of them, those between asking it to stop and stopping it.
    """

    plan: Plan
    journal: Journal
    again: bool = False
    until: float = float("inf")
    part_steps: int = 0
    limit: float = LIMIT
    grace: float = GRACE

    def run(self, stages: Sequence[Stage]) -> dict[str, str]:
        """Runs them; those that failed or could not run, with the reason."""
        failed = {}
        for number, stage in enumerate(stages, start=1):
            done = None if self.again else self.journal.done(stage)
            if done:
                print(f"[{number}/{len(stages)}] {stage.name}: done on {done}", flush=True)
                continue
            lacking = self.lacking(stage)
            if lacking:
                failed[stage.name] = lacking
                continue
            if self.left() < LEAST:
                failed[stage.name] = "no time left; run again"
                continue
            print(f"[{number}/{len(stages)}] {stage.name}: {stage.about}", flush=True)
            started = time.monotonic()
            reason = self.train(stage, stage.run) if stage.run else self.once(stage)
            if reason:
                failed[stage.name] = reason
                print(f"{stage.name}: {reason}", file=sys.stderr, flush=True)
            else:
                self.journal.note(stage, time.monotonic() - started)
        return failed

    def lacking(self, stage: Stage) -> str:
        """What a stage needs and has not got."""
        if stage.after and not self.journal.knows(stage.after):
            return f"waits for {stage.after}"
        for need in stage.needs:
            if isinstance(need, Path):
                if not need.is_file():
                    inside = need.is_relative_to(self.plan.out)
                    return f"waits for {need.relative_to(self.plan.out) if inside else need}"
            elif getattr(self.plan, need) is None:
                return f"needs --{need}"
        return ""

    def once(self, stage: Stage) -> str:
        """Runs a command; why it failed."""
        code, late = self.limited(stage.words)
        if late:
            return "stopped: its time was up"
        return f"exit code {code}" if code else ""

    def train(self, stage: Stage, folder: Path) -> str:
        """Runs a training in parts; why it is not finished."""
        while True:
            if self.left() < LEAST:
                return "no time left; run again to go on"
            before = self.steps(folder)[0]
            words = list(stage.words)
            words += ["--resume"] if (folder / "checkpoint.safetensors").is_file() else []
            words += ["--max-steps", str(before + self.part_steps)] if self.part_steps else []
            code, late = self.limited(words)
            if code and not late:
                return f"exit code {code}"
            step, total = self.steps(folder)
            if step >= total > 0 or (code == 0 and not self.part_steps):
                return ""
            if step <= before:
                return f"no further than step {step} in one part"
            print(f"{stage.name}: {step} of {total} steps, goes on", flush=True)

    def left(self) -> float:
        """Seconds until nothing runs any more."""
        return self.until - time.monotonic()

    def limited(self, words: Sequence[str]) -> tuple[int, bool]:
        """Runs a command of this Python's; its exit code, and whether its time was up."""
        seconds = min(self.limit, self.left()) - self.grace
        return run_limited([sys.executable, *words], seconds, ROOT, self.grace)

    @staticmethod
    def steps(folder: Path) -> tuple[int, int]:
        """Steps of a run, done and in all; zeros before its first checkpoint."""
        path = folder / "metrics.json"
        if not path.is_file():
            return 0, 0
        metrics = json.loads(path.read_text(encoding="utf-8"))
        return int(metrics["step"]), int(metrics["steps"])


def chosen(plan: Plan, names: Sequence[str]) -> list[Stage]:
    """The stages of these names or patterns, in their order; all of them without a name.

    Raises:
        ValueError: nothing has such a name.
    """
    stages = list(plan.stages())
    if not names:
        return stages
    for name in names:
        if not fnmatch.filter([stage.name for stage in stages], name):
            raise ValueError(f"unknown stage {name!r}: {suggest(name, [stage.name for stage in stages])}")
    return [stage for stage in stages if any(fnmatch.fnmatchcase(stage.name, name) for name in names)]


def still_owed(plan: Plan, stages: Sequence[Stage]) -> list[Stage]:
    """Without training and evaluation of weights that are there already."""
    todo = {one.name for one in owed(plan.manifests, plan.scale.wanted)}
    about = {
        f"{what}-{one.name}": one.name
        for one in plan.scale.wanted
        for what in ("train", "student", "evaluate")
    }
    return [stage for stage in stages if stage.name not in about or about[stage.name] in todo]


def missing(plan: Plan, journal: Journal) -> list[str]:
    """A line for each stage and each file of weights that is still to do."""
    stages = [stage for stage in still_owed(plan, list(plan.stages())) if not journal.done(stage)]
    lines = [f"stage    {stage.name:<38} {stage.about}" for stage in stages]
    lines += [
        f"weights  {one.model + ' ' + one.tag:<38} {reason}; {one.recipe}.toml"
        for one, reason in owed(plan.manifests, plan.scale.wanted).items()
    ]
    return lines


def this_gpu() -> str | None:
    """Name of the GPU of this machine."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(
        prog="gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    main.add_argument("stages", nargs="*", metavar="STAGE", help="names or patterns (default: all)")
    main.add_argument("--list", action="store_true", help="the stages, and whether they are done")
    main.add_argument("--missing", action="store_true", help="the stages and the weights still to do")
    main.add_argument(
        "--rehearse", action="store_true", help="every stage on the CPU, tiny, into a temporary folder"
    )
    main.add_argument("--data", type=Path, metavar="DIR", help="NYU Depth V2 as shards of train.prepare")
    main.add_argument(
        "--mat",
        type=Path,
        metavar="FILE",
        help="nyu_depth_v2_labeled.mat, for loading: against reading it at random",
    )
    main.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results")
    main.add_argument("--again", action="store_true", help="run stages that are done, too")
    main.add_argument("--minutes", type=float, metavar="M", help="be done by then; what is left is said")
    main.add_argument(
        "--part-steps", type=int, default=0, metavar="N", help="of a training (default: by time)"
    )
    main.add_argument("--encoder-weights", metavar="imagenet|none|PATH", help="instead of the recipes'")
    main.add_argument(
        "--pictures",
        type=Path,
        nargs="+",
        default=[],
        metavar="TAR|DIR",
        help="without depth: the first two models then learn from what they say of them",
    )
    return main


def check(args: argparse.Namespace, plan: Plan) -> None:
    """Refuses what cannot work, before the first stage.

    Raises:
        ValueError: in one line.
    """
    if args.data is not None:
        read_dataset(args.data)
    if args.mat is not None and not args.mat.is_file():
        raise ValueError(f"{args.mat}: no such file; expected nyu_depth_v2_labeled.mat")
    if args.pictures:
        find_pictures(args.pictures)
    for name, least in (("minutes", 0.0), ("part_steps", -1)):
        value = getattr(args, name)
        if value is not None and value <= least:
            raise ValueError(f"--{name.replace('_', '-')} {value:g}: expected more than {least:g}")
    needy = [stage.name for stage in chosen(plan, args.stages) if "data" in stage.needs]
    if args.list or args.missing:
        return
    if this_gpu() is None:
        raise ValueError("no NVIDIA GPU that PyTorch can use; --rehearse tries every stage on the CPU")
    if args.data is None and needy:
        raise ValueError(f"--data DIR is needed by {', '.join(needy[:2])}...; or name other stages")


def run(args: argparse.Namespace) -> int:
    """Lists, or runs."""
    if args.rehearse:
        from benchmarks.stages.rehearsal import rehearse

        return rehearse()
    out = Path(args.out).resolve()
    data, mat = (path and path.resolve() for path in (args.data, args.mat))
    pictures = tuple(path.resolve() for path in args.pictures)
    plan = Plan(out, FULL, data, mat, args.encoder_weights, pictures)
    check(args, plan)
    journal = Journal(out, this_gpu())
    if args.missing:
        print("\n".join(missing(plan, journal)) or "nothing is missing")
        return 0
    if args.list:
        for stage in chosen(plan, args.stages):
            done = journal.done(stage)
            print(f"{stage.name:<38} {'done on ' + done if done else 'to do':<28} {stage.about}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    stages = chosen(plan, args.stages)
    stages = stages if args.stages else still_owed(plan, stages)
    until = float("inf") if args.minutes is None else time.monotonic() + 60 * args.minutes
    failed = Runner(plan, journal, args.again, until, args.part_steps).run(stages)
    print(f"{len(stages) - len(failed)} of {len(stages)} stages are done, results in {out}")
    for name, reason in failed.items():
        print(f"not done: {name}: {reason}")
    print("next: python benchmarks/plot.py and make readme, with the results in benchmarks/results")
    return int(bool(failed))


def interrupted(number: int, frame: object) -> None:
    """SIGTERM is Ctrl-C: the stage ends in good order."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    sys.exit(command(parser(), run))
