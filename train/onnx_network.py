"""An exported ONNX file as a network, for the same evaluation as a PyTorch model."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxNetwork:
    """A file made by ``export/to_onnx.py``: (N, 3, H, W) float32 in [0, 1] to (N, 1, H, W) metres.

    Args:
        path: the file.
        device: where to run it. There is no fallback to another device.

    Attributes:
        metadata: of the file, JSON decoded.
        fixed: whether it takes ``size`` only.
        size: (H, W) working size.
        name: of the model.

    Raises:
        ValueError: onnxruntime is not installed or cannot load the file on the device; another kind of file.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.session = open_session(path, device or torch.device("cpu"))
        raw = self.session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {key: _decode(text) for key, text in raw.items()}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        ours = str(self.metadata.get("format", "")).startswith("depthzoo/")
        if not ours or [t.name for t in inputs] != ["image"] or [t.name for t in outputs] != ["depth"]:
            raise ValueError(
                f"{path} is an ONNX file, but not one made by export/to_onnx.py, or it is truncated"
            )
        types = inputs[0].type, outputs[0].type
        if types != ("tensor(float)", "tensor(float)"):
            raise ValueError(f"{path} takes {types[0]} and gives {types[1]}; expected the float32 variant")
        height, width = inputs[0].shape[2:]
        self.fixed = isinstance(height, int) and isinstance(width, int)
        stated = (height, width) if self.fixed else self.metadata.get("size", (480, 640))
        self.size: tuple[int, int] = (int(stated[0]), int(stated[1]))
        self.name = str(self.metadata.get("name", path.stem))

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 to (N, 1, H, W) float32, on the CPU."""
        (depth,) = self.session.run(["depth"], {"image": image.cpu().contiguous().numpy()})
        return torch.from_numpy(depth)

    def working_size(self, requested: tuple[int, int] | None) -> tuple[int, int]:
        """Return the size to work at; a ValueError if the file does not take the requested one."""
        if self.fixed and requested not in (None, self.size):
            raise ValueError(f"this file takes {self.size} only, not {requested}")
        return self.size if requested is None else requested


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


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
