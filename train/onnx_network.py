"""An ONNX file as a network, for the same evaluation as a PyTorch model."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxNetwork:
    """A file of ``export/to_onnx.py``, or any other with the same input and output.

    The first input is (N, 3, H, W) float32 RGB in [0, 1], the first output (N, 1, H, W) or (N, H, W) metres.

    Args:
        path: the file.
        device: where to run it. There is no fallback to another device.

    Attributes:
        fixed: whether it takes ``size`` only.
        size: (H, W) working size.
        name: of the model.

    Raises:
        ValueError: onnxruntime is not installed or cannot load the file on the device; another input or output.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.session = open_session(path, device or torch.device("cpu"))
        metadata = self.session.get_modelmeta().custom_metadata_map
        ours = metadata.get("format", "").startswith("depthzoo/")
        image, depth = self.session.get_inputs()[0], self.session.get_outputs()[0]
        shape = list(image.shape)
        if image.type != "tensor(float)" or len(shape) != 4 or (shape[1] not in (3, None) and not ours):
            raise ValueError(
                f"{path} takes {image.name} {image.type} {shape}; expected float32 (N, 3, H, W) in [0, 1]"
            )
        self.names = image.name, depth.name
        height, width = shape[2:]
        self.fixed = isinstance(height, int) and isinstance(width, int)
        stated = (height, width) if self.fixed else json.loads(metadata["size"]) if ours else (480, 640)
        self.size: tuple[int, int] = (int(stated[0]), int(stated[1]))
        self.name = metadata.get("name", path.stem) if ours else path.stem

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 to (N, 1, h, w) float32, on the CPU."""
        (depth,) = self.session.run([self.names[1]], {self.names[0]: image.cpu().contiguous().numpy()})
        if depth.ndim not in (3, 4) or (depth.ndim == 4 and depth.shape[1] != 1):
            raise ValueError(f"{self.name} gives {depth.shape}; expected (N, 1, H, W) metres")
        return torch.from_numpy(depth).float().reshape(len(depth), 1, *depth.shape[-2:])

    def working_size(self, requested: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size to work at; a ValueError if the file does not take the requested one."""
        if self.fixed and requested not in (None, self.size):
            raise ValueError(f"this file takes {self.size} only, not {requested}")
        return self.size if requested is None else requested


def runs_on(device: torch.device) -> bool:
    """Whether onnxruntime is installed and was built for ``device``."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return False
    return PROVIDERS.get(device.type) in onnxruntime.get_available_providers()


def open_session(path: Path, device: torch.device) -> Any:
    """Return an ``onnxruntime.InferenceSession`` that runs on ``device``; a ValueError if there can be none."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        hint = 'pip install "depthzoo[export]"'
        raise ValueError(f"{path} needs onnxruntime, which is not installed: {hint}") from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not runs_on(device):
        raise ValueError(f"this onnxruntime does not run on {device.type}; use --device cpu")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised, and worded below
    provider: Any = PROVIDERS[device.type]
    if device.type == "cuda":
        # Without this, operators that the GPU lacks silently run on the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        onnxruntime.set_default_logger_severity(4)
        onnxruntime.preload_dlls()
        provider = (provider, {"device_id": device.index or 0})
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no base class
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: onnxruntime cannot load it on {device.type}: {reason}") from None
    if session.get_providers()[0] != PROVIDERS[device.type]:
        raise ValueError(f"{path}: onnxruntime fell back from {device.type} to the CPU; use --device cpu")
    return session
