"""How far a run is: the part of a checkpoint that is no tensor, and what ``metrics.json`` holds."""

import math
from dataclasses import dataclass, field, fields
from typing import Any


class TrainingError(ValueError):
    """A run that cannot start or go on; one line."""


@dataclass
class Progress:
    """What a run knows of itself.

    Attributes:
        step: optimiser steps done.
        loss: running mean of the loss, not a number before the first.
        best: lowest AbsRel on the validation split at the final size; infinite before the first.
        since_best: validations since then.
        skipped: batches left out because their loss was not finite.
        history: a row for each validation.
        resumed_from: the steps at which the run was taken up again.
    """

    step: int = 0
    loss: float = math.nan
    best: float = math.inf
    since_best: int = 0
    skipped: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    resumed_from: list[int] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        """JSON-able, for a checkpoint: None for what is not finite."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return values | {key: values[key] if math.isfinite(values[key]) else None for key in ("loss", "best")}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> "Progress":
        """From a checkpoint's state, with the step noted as one that the run was resumed from."""
        values = {entry.name: state[entry.name] for entry in fields(cls) if state.get(entry.name) is not None}
        return cls(**values | {"resumed_from": [*values["resumed_from"], values["step"]]})

    def count(self, loss: float) -> None:
        """Counts a step with its loss; one that is not finite is of a batch that was skipped."""
        self.step += 1
        if not math.isfinite(loss):
            self.skipped += 1
        else:
            self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss

    def note(self, figures: dict[str, float], counts: bool) -> bool:
        """Adds a validation's figures; whether they are the best so far.

        Args:
            figures: with "abs_rel".
            counts: False for figures that cannot be compared, of a smaller size than the final one.
        """
        self.history.append(figures)
        better = counts and figures["abs_rel"] < self.best
        if better:
            self.best, self.since_best = figures["abs_rel"], 0
        elif counts:
            self.since_best += 1
        return better

    def summary(self, steps: int) -> dict[str, Any]:
        """Content of ``metrics.json``; ``steps`` is where the schedule ends."""
        state = self.state()
        best = state.pop("best")
        del state["since_best"], state["loss"]
        return {**state, "steps": steps, "best_val_abs_rel": best}
