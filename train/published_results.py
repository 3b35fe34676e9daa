"""Results on the 654 test frames of NYU Depth V2 to compare with: baselines, and published ones."""

from typing import Any

COLUMNS = {"abs_rel": "AbsRel", "rmse": "RMSE", "d1": "d1"}
# Per-image AbsRel, RMSE and d1 by section; a pair is a range, None is not stated.
Metric = float | tuple[float, float] | None
RESULTS: dict[str, dict[str, tuple[Metric, Metric, Metric]]] = {
    "baselines, on the filled depth": {
        "a constant": (0.481, None, 0.371),
        "the train set's log-mean depth map": (0.362, 1.072, 0.427),
    },
    "published, 795 train frames": {
        "Liu et al. 2015": (0.213, 0.759, 0.650),
        "Roy & Todorovic 2016": (0.187, 0.744, None),
        "ResNet-34 FPN, ImageNet": (0.181, 0.647, 0.725),
        "ResNet-50 hybrid, ImageNet": (0.167, 0.614, 0.757),
    },
    "published, 24,000 to 50,000 train frames": {
        "without ImageNet weights": ((0.175, 0.207), (0.60, 0.71), (0.67, 0.74)),
        "Hu et al. 2019, ResNet-50": (0.126, 0.555, 0.843),
        "DenseDepth": (0.123, 0.465, 0.846),
        "BTS, ResNet-50": (0.119, 0.419, 0.865),
    },
}


def is_nyu_test(info: dict[str, Any], split: str, protocol: str) -> bool:
    """Whether metrics are of the 654 official frames with the Eigen protocol, so that they compare with these.

    Args:
        info: the content of ``dataset.json``.
        split: of the data set.
        protocol: "eigen" or "full".
    """
    official = info["splits"].get(split, {}).get("count") == 654 and protocol == "eigen"
    return split == "test" and official and str(info.get("source", "")).startswith("nyu")


def format_metric(metric: Metric) -> str:
    """Return ".481", ".175-.207" or "-"."""
    if metric is None:
        return "-"
    parts = metric if isinstance(metric, tuple) else (metric,)
    return "-".join(f"{part:.3f}".removeprefix("0") for part in parts)


def results_table() -> str:
    """Return all results as lines of text."""
    lines = [" " * 38 + "".join(f"{name:>12}" for name in COLUMNS.values())]
    for section, results in RESULTS.items():
        lines.append(section)
        for name, metrics in results.items():
            lines.append(f"  {name:<36}" + "".join(f"{format_metric(metric):>12}" for metric in metrics))
    return "\n".join(lines)
