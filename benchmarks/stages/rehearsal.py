"""Every stage of gpu.sh on the CPU, as small as it goes, in a temporary folder: whether it works, and no result."""

import sys
import tempfile
import time
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from benchmarks.gpu import ROOT, Runner
from benchmarks.stages.journal import Journal
from benchmarks.stages.limited import run_limited
from benchmarks.stages.plan import LIMIT, TINY, Plan
from train.rooms import render

ROOMS, FRAMES = 4, 3
SIZE = (480, 640)


def rehearse() -> int:
    """Runs all stages, trainings in two parts, then finds them all done, then draws; the exit code."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, mat, out = folder / "data", folder / "frames.mat", folder / "results"
        out.mkdir()
        prepare = ["-m", "train.prepare", "rooms", "--count", str(ROOMS), "--size", "{}x{}".format(*SIZE)]
        code, _ = run_limited([sys.executable, *prepare, "--out", str(data), "--workers", "1"], LIMIT, ROOT)
        if code:
            raise ValueError(f"the rooms to rehearse on could not be made: exit code {code}")
        write_mat(mat)
        pictures = folder / "pictures" / "room"
        pictures.mkdir(parents=True)
        for seed in range(FRAMES):
            Image.fromarray(render(seed, SIZE).image).save(pictures / f"{seed}.jpg")
        plan = Plan(out, TINY, data, mat, "none", (pictures.parent,))
        runner = Runner(plan, Journal(out, None), part_steps=2)
        stages = list(plan.stages())
        failed = runner.run(stages)
        failed |= {
            stage.name: "not found done" for stage in stages if not runner.journal.done(stage)
        } | failed
        code, _ = run_limited([sys.executable, "benchmarks/plot.py", "--results", str(out)], LIMIT, ROOT)
        failed |= {"plot": f"exit code {code}"} if code else {}
        for stage, about in runner.journal.read().get("CPU", {}).items():
            print(f"{stage:<38} {about['seconds']:.0f} s")
    for what, reason in failed.items():
        print(f"failed: {what}: {reason}", file=sys.stderr)
    seconds = time.monotonic() - started
    print(
        f"rehearsed {len(stages)} stages in {seconds:.0f} s, {len(failed)} failed; nothing of this is a result"
    )
    return int(bool(failed))


def write_mat(path: Path) -> None:
    """A few rooms in the layout of nyu_depth_v2_labeled.mat."""
    rooms = [render(seed, SIZE) for seed in range(FRAMES)]
    with h5py.File(path, "w") as file:
        file["images"] = np.stack([room.image.transpose(2, 1, 0) for room in rooms])
        file["depths"] = np.stack([room.depth.astype(np.float32).T for room in rooms])
