"""Which stages of gpu.sh are done, kept in the folder of their results."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.measured import collect, place
from benchmarks.stages.plan import Stage
from train.cards import commit
from train.shards import write_json

JOURNAL = "stages.json"


@dataclass
class Journal:
    """Which stages are done, on which GPU, in the output folder.

    Attributes:
        out: the folder.
        gpu: name of this machine's, or None.
    """

    out: Path
    gpu: str | None

    def read(self) -> dict[str, dict[str, Any]]:
        """By GPU and stage.

        Raises:
            ValueError: a file that is something else.
        """
        path = self.out / JOURNAL
        try:
            known: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["stages"]
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: expected JSON with "stages"') from error
        return known

    def done(self, stage: Stage) -> str | None:
        """On which GPU a stage is done, its result still there; on any, where this machine has none."""
        for gpu, known in self.read().items():
            if stage.name in known and self.gpu in (None, gpu) and self.holds(stage, gpu):
                return gpu
        return None

    def knows(self, name: str) -> bool:
        """Whether a stage has been done on this machine's GPU, or on any, where it has none."""
        return any(name in known for gpu, known in self.read().items() if self.gpu in (None, gpu))

    def holds(self, stage: Stage, gpu: str) -> bool:
        """Whether the result of a stage is there; in a result file, of that GPU. A run that has gone has been used."""
        path = self.out / stage.product
        question, _, ending = stage.product.partition(".")
        if ending == "cuda.json":
            return any(place(run)[1] == gpu for run in collect(self.out, question))
        return path.is_file() or stage.product.startswith("runs/")

    def note(self, stage: Stage, seconds: float) -> None:
        """Enters a stage."""
        known = self.read()
        about = {"seconds": round(seconds, 1), "commit": commit()}
        known.setdefault(self.gpu or "CPU", {})[stage.name] = about
        write_json(self.out / JOURNAL, {"stages": known})
