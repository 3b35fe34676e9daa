"""Draws what benchmarks/results and the weights' cards hold into benchmarks/results/*.png.

    python benchmarks/plot.py [--results DIR] [--check]

Only what was measured is drawn; a plot whose data are missing is named, and one of an earlier time is removed. Each
picture carries a digest of what it shows: --check draws nothing, and says which pictures are not of today's figures.
"""

import argparse
import hashlib
import importlib.util
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; the plots also need the checkout's benchmarks.
    sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from PIL.PngImagePlugin import PngInfo  # noqa: E402

from benchmarks.measure.record import RESULTS  # noqa: E402
from benchmarks.report import plot_data  # noqa: E402
from train.arguments import command  # noqa: E402

# The key of the digest in a picture.
DIGEST = "Shows"
DPI, SHADES = 110, 128


@dataclass(frozen=True)
class Plot:
    """A picture: its name without ending, of which kind, what it shows, or why it cannot be drawn."""

    name: str
    kind: str
    data: Any = None
    missing: str = ""

    def digest(self) -> str:
        """Of what it shows."""
        text = json.dumps(self.data, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def plots(results: Path) -> Iterator[Plot]:
    """All plots of a folder of results, those that cannot be drawn too."""
    for kind, gather in plot_data.GATHER.items():
        found, missing = gather(results)
        for name, data in found.items():
            yield Plot(f"{kind}.{name}", kind, data)
        for name, reason in missing.items():
            yield Plot(f"{kind}.{name}", kind, missing=reason)


def shown(path: Path) -> str | None:
    """The digest in a picture that this script drew; None for another picture."""
    with Image.open(path) as image:
        digest: str | None = getattr(image, "text", {}).get(DIGEST)
    return digest


def drawn(results: Path) -> dict[str, str]:
    """The pictures in a folder that this script drew, with their digests."""
    found = {path.stem: shown(path) for path in sorted(results.glob("*.png"))}
    return {name: digest for name, digest in found.items() if digest is not None}


def write(plot: Plot, results: Path) -> Path:
    """Draws one plot; the same figures give the same bytes."""
    from benchmarks.report.drawing import DRAW

    content = io.BytesIO()
    DRAW[plot.kind](plot.data).savefig(content, format="png", dpi=DPI)
    about = PngInfo()
    about.add_text(DIGEST, plot.digest())
    path = results / f"{plot.name}.png"
    # A palette takes a third of the bytes, and no more than these colours are in a plot.
    picture = Image.open(content).convert("RGB").quantize(SHADES, dither=Image.Dither.NONE)
    picture.save(path, pnginfo=about, optimize=True)
    return path


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="plot.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument(
        "--results", type=Path, default=RESULTS, metavar="DIR", help="default: benchmarks/results"
    )
    main.add_argument(
        "--check", action="store_true", help="draw nothing; exit code 1 where a picture is not current"
    )
    return main


def run(args: argparse.Namespace) -> int:
    """Draws all that can be drawn, or compares."""
    if not args.results.is_dir():
        raise ValueError(f"{args.results}: no such folder; expected one with result files")
    wanted = list(plots(args.results))
    can = {plot.name: plot for plot in wanted if not plot.missing}
    before = drawn(args.results)
    gone = sorted(set(before) - set(can))
    if args.check:
        old = [name for name, plot in can.items() if before.get(name) != plot.digest()]
        for name in old + gone:
            print(f"{name}.png is not of today's figures: run benchmarks/plot.py", file=sys.stderr)
        return int(bool(old + gone))
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError("matplotlib is not installed: pip install -e '.[viz]'")
    for plot in can.values():
        print(f"-> {write(plot, args.results)}")
    for name in gone:
        (args.results / f"{name}.png").unlink()
        print(f"{name}.png removed: what it showed is no longer there")
    for plot in wanted:
        if plot.missing:
            print(f"{plot.name} not drawn: {plot.missing}")
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
