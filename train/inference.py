"""Running a network over stored frames: whole pictures in, metres at the truth's own size out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthzoo.camera import depth_scale
from depthzoo.metrics import PROTOCOLS, EvalProtocol
from depthzoo.predictor import resize_depth, resize_image, working_size
from train.shards import ShardDataset

Network = Callable[[Tensor], Tensor]
Predict = Callable[[Tensor], Tensor]
BATCH = 4


@dataclass(frozen=True, eq=False)
class Frames:
    """Some frames of one size.

    Attributes:
        indices: their places in the data set.
        images: (N, 3, H, W) uint8 RGB.
        truth, depth: (N, 1, H, W) float32 metres; 0 is no truth.
    """

    indices: list[int]
    images: Tensor
    truth: Tensor
    depth: Tensor


def rules(dataset: ShardDataset, protocol: str) -> EvalProtocol:
    """The protocol "eigen" or "full" with the depth range of the data set."""
    near, far = dataset.depth_range
    return replace(PROTOCOLS[protocol], min_depth=near, max_depth=far)


def torch_predict(model: Network, device: torch.device, flip: bool = False) -> Predict:
    """(N, 3, h, w) float in [0, 1] to (N, 1, h, w) metres; with ``flip`` the mean with the mirrored picture's.

    Args:
        model: a module, or a ``train.onnx_network.OnnxNetwork``.
        device: where ``model`` takes its input.
        flip: average with the mirrored picture.
    """

    def predict(image: Tensor) -> Tensor:
        image = image.to(device)
        depth = model(image)
        if flip:
            depth = (depth + model(image.flip(-1)).flip(-1)) / 2
        return depth.float().cpu()

    return predict


@torch.inference_mode()
def predict_frames(
    predict: Predict,
    dataset: ShardDataset,
    size: tuple[int, int],
    indices: Sequence[int] | None = None,
    exact: bool = False,
) -> Iterator[Frames]:
    """Predicts whole frames, a few at a time, in metres of the data set's camera.

    Args:
        predict: see :func:`torch_predict`; it gives depth of the canonical camera.
        dataset: the split.
        size: working size (H, W); a picture of another aspect gets about its area.
        indices: of the frames; by default all.
        exact: squeeze every picture to ``size`` itself, for a network of one fixed size.

    Raises:
        DatasetError: naming a frame that cannot be decoded.
        ValueError: naming a frame whose prediction is not finite.
    """
    waiting = list(range(len(dataset)) if indices is None else indices)
    while waiting:
        batch: list[int] = []
        images: list[Tensor] = []
        truths: list[Tensor] = []
        while waiting and len(batch) < BATCH:
            image, steps = dataset[waiting[0]]
            if images and images[0].shape[-2:] != image.shape[:2]:
                break  # frames of another size make the next batch
            batch.append(waiting.pop(0))
            images.append(torch.from_numpy(image.copy()).permute(2, 0, 1).unsqueeze(0))
            # Divided: in float32 a thousandth is not exact, a thousand is.
            truths.append(torch.from_numpy(steps.astype("float32"))[None, None] / (1 / dataset.depth_unit))
        height, width = images[0].shape[-2:]
        fed = size if exact else working_size(height, width, size)
        small = torch.cat([resize_image(image, fed) for image in images]).float() / 255
        depth = resize_depth(predict(small), (height, width)) * depth_scale(
            dataset.focal_px, max(height, width)
        )
        for index, finite in zip(batch, depth.isfinite().flatten(1).all(1), strict=True):
            if not finite:
                raise ValueError(
                    f"the prediction for {dataset.split} frame {dataset.keys[index]!r} is not finite"
                )
        yield Frames(batch, torch.cat(images), torch.cat(truths), depth)
