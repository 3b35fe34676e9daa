"""Takes home what gpu.sh left in a folder: results, what is done, trained weights and their cards.

    python benchmarks/adopt.py DIR

Runs go into the result files of benchmarks/results, where they take the place of older ones of the same settings on the
same device; weights and cards go into weights/ and the zoo's table. Then: python benchmarks/plot.py, make readme.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if not __package__:
    # Only depthzoo is installed; this also needs the checkout's benchmarks.
    sys.path.insert(0, str(ROOT))

from benchmarks import latency, loading, reproduce, scaling, training  # noqa: E402
from benchmarks.measure.record import RESULTS, read_runs, store_run  # noqa: E402
from benchmarks.stages.journal import JOURNAL, Journal  # noqa: E402
from depthzoo import weights as zoo_weights  # noqa: E402
from train.arguments import command  # noqa: E402
from train.cards import publish, store_output  # noqa: E402
from train.shards import write_json  # noqa: E402

# What tells one run from another, by question.
SETTINGS = {
    "latency": latency.KEYS,
    "training": training.SETTINGS,
    "scaling": scaling.SETTINGS,
    "loading": loading.SETTINGS,
    "predictor": ("picture", "names"),
    "environment": (),
    "reproduction": reproduce.SETTINGS,
}
LARGE = 70e6  # bytes of a file that a repository does not take


def adopt_results(folder: Path) -> list[str]:
    """Stores the runs of a folder's result files, with their pictures; a line for each file.

    Raises:
        ValueError: naming a file that is no result file.
    """
    said = []
    for question, keys in SETTINGS.items():
        path = folder / f"{question}.cuda.json"
        runs = read_runs(path)
        for run in runs:
            store_run(RESULTS / path.name, run, keys)
        said += [f"{path.name}: {len(runs)} runs"] if runs else []
        picture = path.with_suffix(".png")
        if runs and picture.is_file():
            shutil.copyfile(picture, RESULTS / picture.name)
    return said


def adopt_journal(folder: Path) -> list[str]:
    """Adds what is done there to what is done here."""
    known = {where: stages_of(where / JOURNAL) for where in (RESULTS, folder)}
    merged = known[RESULTS]
    for gpu, stages in known[folder].items():
        merged[gpu] = merged.get(gpu, {}) | stages
    if not known[folder]:
        return []
    write_json(RESULTS / JOURNAL, {"stages": merged})
    return [f"{JOURNAL}: {sum(map(len, known[folder].values()))} stages"]


def stages_of(path: Path) -> dict[str, dict[str, Any]]:
    """The content of a journal."""
    return Journal(path.parent, None).read()


def adopt_weights(folder: Path) -> list[str]:
    """Enters the weights of a folder into the zoo; a line for each file, and for what it replaces.

    A file of more than ``LARGE`` bytes stays where it is, with its card in the zoo: it belongs into a release.
    """
    manifest = folder / "weights" / "manifest.json"
    if not manifest.is_file():
        return []
    said = []
    for model, entries in json.loads(manifest.read_text(encoding="utf-8")).items():
        for tag, entry in entries.items():
            card = json.loads(
                (folder / "weights" / entry["file"]).with_suffix(".json").read_text(encoding="utf-8")
            )
            before = zoo_weights.card(model, tag)["file"] if tag in zoo_weights.tags(model) else None
            home, file = zoo_weights.BUNDLED, folder / "weights" / card["file"]
            publish(file, card, home, zoo_weights.MANIFEST, default=tag == next(iter(entries)))
            said.append(f"{card['file']}: AbsRel {card['metrics']['per_image']['abs_rel']:.3f}")
            if card["bytes"] > LARGE:
                (home / card["file"]).unlink()
                said.append(
                    f"{card['file']} is too large for a repository: only its card is here, release {file}"
                )
            else:
                store_output(home / card["file"])
            if before not in (None, card["file"]):
                said.append(
                    f"{before} is no longer in the zoo's table: remove it and what has its name from {home.name}/"
                )
    return said


def parser() -> argparse.ArgumentParser:
    main = argparse.ArgumentParser(prog="adopt.py", description=(__doc__ or "").splitlines()[0])
    main.add_argument("folder", type=Path, metavar="DIR", help="the --out of gpu.sh")
    return main


def run(args: argparse.Namespace) -> int:
    """Takes all of it."""
    if not args.folder.is_dir():
        raise ValueError(f"{args.folder}: no such folder; expected the --out of gpu.sh")
    said = adopt_results(args.folder) + adopt_weights(args.folder)
    if not said:
        raise ValueError(f"{args.folder} has no results and no weights; expected the --out of gpu.sh")
    print("\n".join(said + adopt_journal(args.folder)))
    return 0


if __name__ == "__main__":
    sys.exit(command(parser(), run))
