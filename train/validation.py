"""What a run measures of itself: figures and panels of the validation split, and the report at its end."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from depthzoo.visualize import Pixels
from train.evaluate import default_protocol, evaluate
from train.inference import torch_predict
from train.report import report_run, write_report
from train.samples import make_samples, strip
from train.shards import ShardDataset

# Frames whose panels go to TensorBoard, spread over the split.
PANELS = 3


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode while this is entered; then each module is in its own again, frozen ones too."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def validate(
    model: nn.Module, dataset: ShardDataset, size: tuple[int, int], device: torch.device
) -> dict[str, float]:
    """Figures of a model on a split, the mean over its pictures, by the names of ``METRICS``."""
    with evaluating(model):
        predict = torch_predict(model, device)
        results, _ = evaluate(predict, dataset, size, default_protocol(dataset), progress=False)
    return results["per_image"]


def panels(
    model: nn.Module, dataset: ShardDataset, size: tuple[int, int], device: torch.device
) -> dict[str, Pixels]:
    """Picture | truth | prediction | error of some frames, always the same, by their keys."""
    count = min(PANELS, len(dataset))
    indices = [i * len(dataset) // count for i in range(count)]
    with evaluating(model):
        predict = torch_predict(model, device)
        samples = make_samples(predict, dataset, indices, size, default_protocol(dataset))
    return {sample.key: strip(sample) for sample in samples}


def final_report(run: Path, dataset: ShardDataset, device: torch.device) -> tuple[Path, Path]:
    """The report of a finished run: with frames of its best weights where it has any, else with curves alone.

    Raises:
        ValueError, OSError: it cannot be made; the run itself is not touched.
    """
    if (run / "model.safetensors").is_file():
        return report_run(run, dataset, device, progress=False)
    return write_report(run)


def figures_line(figures: dict[str, Any]) -> str:
    """ "step 500: loss 0.312, val AbsRel 0.251, RMSE 0.812, d1 0.601, 12.3 images/s"."""
    return (
        f"step {figures['step']}: loss {figures['loss']:.3f}, val AbsRel {figures['abs_rel']:.3f}, "
        f"RMSE {figures['rmse']:.3f}, d1 {figures['d1']:.3f}, {figures['images_per_s']:.1f} images/s"
    )
