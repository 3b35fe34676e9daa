"""An exported ONNX file as a network, for the evaluation that a PyTorch model goes through."""

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
        device: where to run it; one that does not work here is an error, never a fallback.

    Attributes:
        metadata: what the file says of itself, JSON decoded.
        fixed: it takes ``size`` only.
        size: (H, W) working size.
        name: of the model.

    Raises:
        ValueError: onnxruntime is not installed or cannot load the file on the device; another kind of file.
    """

    def __init__(self, path: Path, device: torch.device | None = None) -> None:
        self.session = open_session(path, device or torch.device("cpu"))
        raw = self.session.get_modelmeta().custom_metadata_map
        self.metadata: dict[str, Any] = {key: decode(text) for key, text in raw.items()}
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        ours = str(self.metadata.get("format", "")).startswith("depthzoo/")
        if not ours or [t.name for t in inputs] != ["image"] or [t.name for t in outputs] != ["depth"]:
            raise ValueError(
                f"{path} is an ONNX file, but not one made by export/to_onnx.py, or it is cut short"
            )
        if inputs[0].type != "tensor(float)" or outputs[0].type != "tensor(float)":
            raise ValueError(
                f"{path} takes {inputs[0].type} and gives {outputs[0].type}; expected the variant with float32"
            )
        height, width = inputs[0].shape[2:]
        self.fixed = isinstance(height, int) and isinstance(width, int)
        stated = (height, width) if self.fixed else self.metadata.get("size", (480, 640))
        self.size: tuple[int, int] = (int(stated[0]), int(stated[1]))
        self.name = str(self.metadata.get("name", path.stem))

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 3, H, W) float32 to (N, 1, H, W) float32, on the CPU."""
        (depth,) = self.session.run(["depth"], {"image": image.cpu().contiguous().numpy()})
        return torch.from_numpy(depth)

    def working_size(self, asked: tuple[int, int] | None) -> tuple[int, int]:
        """The size to work at.

        Raises:
            ValueError: ``asked`` is one that the file does not take.
        """
        if asked is None or asked == self.size:
            return self.size
        if self.fixed:
            raise ValueError(f"this file takes {self.size[0]}x{self.size[1]} only, not {asked[0]}x{asked[1]}")
        return asked


def decode(text: str) -> Any:
    """JSON where it is any."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def runs_on(device: torch.device) -> bool:
    """Whether the installed onnxruntime, if any, was built for ``device``."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return False
    return PROVIDERS.get(device.type) in onnxruntime.get_available_providers()


def open_session(path: Path, device: torch.device) -> Any:
    """An ``onnxruntime.InferenceSession`` that runs on ``device``, or a ValueError of one line."""
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise ValueError(
            f'{path} needs onnxruntime, which is not installed: pip install "depthzoo[export]"'
        ) from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if not runs_on(device):
        raise ValueError(f"this onnxruntime does not run on {device.type}; use --device cpu")
    provider = PROVIDERS[device.type]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and said in one line below
    providers: list[Any] = [provider]
    if device.type == "cuda":
        # Without this, nodes that the GPU lacks run on the CPU and nobody is told.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        onnxruntime.set_default_logger_severity(4)
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()
        providers = [(provider, {"device_id": device.index or 0})]
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's errors share no base of their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: onnxruntime cannot load it on {device.type}: {reason}") from None
    if session.get_providers()[0] != provider:
        raise ValueError(f"{path}: onnxruntime fell back from {device.type} to the CPU; use --device cpu")
    return session
