"""Throughput over one thing that varies, and the exponent with which cost grows."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Curve:
    """What is measured over one thing.

    Attributes:
        over: what varies.
        model: that works, or "loader".
        what: it does.
        batch, size: where they do not vary.
        asked: the values.
        rows: "value", "images_per_s", "lowest", "highest", and more.
        missing: values that could not be measured, with the reason.
        more: what else is known.
    """

    over: str
    model: str
    what: str
    batch: int | None
    size: tuple[int, int] | None
    asked: Sequence[int]
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """What is stored."""
        found = {key: value for key, value in vars(self).items() if key not in ("more", "size", "asked")}
        known = [(row["value"], 1 / row["images_per_s"]) for row in self.rows if row["value"] > 0]
        exponents = {"exponent": power(known), "exponent_at_the_end": power(known[-2:])}
        size = None if self.size is None else list(self.size)
        return found | {"size": size, "asked": list(self.asked)} | exponents | self.more

    def lines(self) -> list[str]:
        """To be read."""
        where = "" if self.size is None else " at {}x{}".format(*self.size)
        each = "" if self.batch is None else f", batch {self.batch}"
        known = self.facts()
        slopes = [known[key] for key in ("exponent", "exponent_at_the_end")]
        ending = ""
        if None not in slopes:
            ending = ": cost of a picture grows with power {:+.2f}, {:+.2f} at the end".format(*slopes)
        lines = [f"{self.model}, {self.what}{where}{each}, over {self.over}{ending}"]
        for row in self.rows:
            note = "".join(f"  {name} {row[name]:.2f}" for name in ("efficiency",) if name in row)
            lines.append(
                f"{row.get('label', row['value']):>12}{row['images_per_s']:>12.2f} images/s"
                f"   ({row['lowest']:.2f} to {row['highest']:.2f}){note}"
            )
        lines += [
            f"{name:>12}{value:>12.2f} images/s"
            for name, value in self.more.items()
            if isinstance(value, float)
        ]
        return lines + [f"{'':>4}not measured: {what}: {reason}" for what, reason in self.missing.items()]


def power(points: Sequence[tuple[float, float]]) -> float | None:
    """The exponent b of y = a x^b through points (x, y), by least squares in the logarithms; None for less than two."""
    if len({x for x, _ in points}) < 2:
        return None
    x, y = np.log(np.array(points, np.float64).T)
    return round(float(np.polyfit(x, y, 1)[0]), 3)


def row(value: int, images: float, times: Iterable[float], **more: Any) -> dict[str, Any]:
    """From the seconds that so many images took, each time."""
    rates = sorted(images / seconds for seconds in times)
    return {
        "value": value,
        "images_per_s": round(statistics.median(rates), 3),
        "lowest": round(rates[0], 3),
        "highest": round(rates[-1], 3),
    } | more
