"""What one optimiser step does: the network, its loss, its optimiser and its moving average."""

import contextlib
import functools
import inspect
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from depthzoo.camera import depth_scale
from depthzoo.losses import CombinedLoss, MultiScaleLoss
from depthzoo.models import DepthModel, create_model
from depthzoo.weights import load_into
from train.checkpoint import Checkpoint
from train.config import TrainConfig
from train.distributed import World
from train.optimize import (
    add_stochastic_depth,
    dense_gradients,
    make_optimizer,
    recompute_activations,
    set_modes,
)
from train.precision import AUTOCAST
from train.progress import TrainingError
from train.shards import DEFAULT_RANGE, depth_facts

# BatchNorm's statistics are each process's own. torch has two names for it; the older one warns where there is a newer.
_PARAMETERS = inspect.signature(DistributedDataParallel).parameters
OWN_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _PARAMETERS else "broadcast_buffers": False
}


def head_bounds(info: dict[str, Any]) -> dict[str, float]:
    """Options of the head for a data set's depth range, canonical metres; none where the usual ones do.

    Args:
        info: the content of ``dataset.json``.
    """
    (_, stated), train = depth_facts(info), info["splits"]["train"]
    far = round(stated[1] / depth_scale(train["focal_px"], max(train["size"])), 3)
    if stated == DEFAULT_RANGE and far <= DEFAULT_RANGE[1]:
        return {}
    # A fresh head starts at a quarter of its range, as with NYU Depth V2.
    return {"max_depth": far, "mean_depth": round(far / 4, 3)}


def build_model(config: TrainConfig, info: dict[str, Any] | None = None) -> DepthModel:
    """A fresh model, from ``init`` or else ``encoder_weights`` where given.

    Args:
        config: of the run.
        info: the content of the data set's ``dataset.json``, whose depth range the head takes where ``model_options``
            state none.

    Raises:
        ValueError: for an option that the model does not take, and whatever its builder raises.
    """
    torch.manual_seed(config.seed)
    # Those of ``init`` replace them anyway.
    encoder = None if config.init or config.encoder_weights == "none" else config.encoder_weights
    bounds = head_bounds(info) if info and "max_depth" not in config.model_options else {}
    options = {"head": config.head} | bounds | config.model_options
    try:
        model = create_model(config.model, weights=None, encoder_weights=encoder, **options)
    except TypeError as error:
        raise ValueError(f"model_options of {config.model}: {error}") from None
    if config.init:
        load_into(model, config.init)
    return model


def move_average(decay: float, averages: list[Tensor], values: list[Tensor], count: Any) -> None:
    """Moves averages towards ``values``; ``count`` is how many updates they have had.

    The decay is at most (1 + count) / (10 + count): the average of a short run would else be its first weights.
    """
    get_ema_multi_avg_fn(min(decay, (1 + int(count)) / (10 + int(count))))(averages, values, count)


class Learner:
    """A model that learns from one batch after the other.

    Args:
        config: of the run.
        device: where it is.
        world: the processes.
        compile: let ``torch.compile`` speed up the network.
        info: the content of the data set's ``dataset.json``; see :func:`build_model`.

    Attributes:
        model: what the optimiser changes.
        average: its moving average, or None.
    """

    def __init__(
        self,
        config: TrainConfig,
        device: torch.device,
        world: World,
        compile: bool = False,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.device, self.world, self.compile = config, device, world, compile
        self.model = build_model(config, info).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.sync_batchnorm:
            self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
        average = functools.partial(move_average, config.ema)
        self.average = AveragedModel(self.model, multi_avg_fn=average) if config.ema else None
        add_stochastic_depth(self.model, config.stochastic_depth)
        if config.recompute:
            recompute_activations(self.model)
        if device.type == "cpu" and not compile:
            dense_gradients(self.model)
        self.loss = MultiScaleLoss(CombinedLoss(config.loss, config.loss_options))
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._network: tuple[bool, Any] | None = None

    def autocast(self) -> torch.autocast:
        """The configuration's precision."""
        precision = self.config.precision
        return torch.autocast(self.device.type, AUTOCAST[precision], enabled=precision != "fp32")

    def network(self, frozen: bool) -> Any:
        """What a step runs: the model, compiled if asked, inside DistributedDataParallel if there are others.

        Made anew when the encoder thaws, since both look at what is to be trained.
        """
        if self._network is None or self._network[0] != frozen:
            set_modes(self.model, self.config, frozen)
            network: Any = torch.compile(self.model) if self.compile else self.model
            if self.world.size > 1:
                index = [self.device.index] if self.device.index is not None else None
                network = DistributedDataParallel(network, device_ids=index, **OWN_BUFFERS)
            self._network = frozen, network
        return self._network[1]

    def depth_range(self) -> tuple[float, float]:
        """Canonical metres that the network can give."""
        bounded = self.model.head.kind == "sigmoid"
        return (self.model.min_depth, self.model.max_depth) if bounded else (0.0, math.inf)

    def learn(
        self, image: Tensor, depth: Tensor, mask: Tensor, rate: float, frozen: bool, step: int = 0
    ) -> float:
        """One optimiser step, unless the loss or the gradient's norm is not finite: then nothing changes.

        In float16 a gradient that overflows is left to the scaler, which leaves out the step and lowers its scale.

        Args:
            image: (N, 3, H, W) float in [0, 1], this process's part of the batch.
            depth: (N, 1, H, W) metres.
            mask: (N, 1, H, W) bool.
            rate: learning rate.
            frozen: keep the encoder as it is.
            step: number of the step, which decides the blocks that stochastic depth leaves out.

        Returns:
            The loss, over all processes; not finite if it or the gradient is so in any of them.

        Raises:
            TrainingError: either is not finite and the configuration wants to stop.
        """
        config, network, parts = self.config, self.network(frozen), self.config.accumulate
        total = torch.zeros((), device=self.device)
        if config.stochastic_depth:
            torch.manual_seed((config.seed << 40) + step * self.world.size + self.world.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.zero_grad(set_to_none=True)
        # BatchNorm has seen a batch by the time that its loss is known.
        buffers = list(self.model.buffers()) if config.nonfinite == "skip" else []
        before = [buffer.clone() for buffer in buffers]
        for part in range(parts):
            # Strided, so that each part has its share of every data set.
            picked = slice(part, None, parts)
            last = part == parts - 1
            with contextlib.nullcontext() if last or self.world.size == 1 else network.no_sync():
                with self.autocast():
                    predictions = network(image[picked], all_heads=True)
                loss = self.loss(predictions, depth[picked], mask[picked]) / parts
                total += loss.detach()
                self.scaler.scale(loss).backward()
        what, value = "loss", self.world.mean(float(total), self.device)
        if math.isfinite(value):
            self.scaler.unscale_(self.optimizer)
            # The same in all processes, which have shared their gradients.
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip or math.inf)
            if not self.scaler.is_enabled() and not norm.isfinite():
                what, value = "gradient's norm", float(norm)
        if not math.isfinite(value):
            if config.nonfinite == "stop":
                raise TrainingError(f"the {what} is {value}")
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
            return value
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return value

    def trained(self) -> DepthModel:
        """The model whose weights count: the average where there is one."""
        model: Any = self.model if self.average is None else self.average.module
        return model  # type: ignore[no-any-return]

    @torch.no_grad()
    def calibrate(self, images: Iterable[Tensor], frozen: bool) -> None:
        """Gives the averaged weights BatchNorm statistics of their own: the mean over these batches, of all processes.

        Those of the trained model are of other weights, and an average of them lags behind by far: a network
        that predicts well on the statistics of its batch is then off by a factor. Frozen BatchNorm stays as it is.

        Args:
            images: (N, 3, H, W) each; as many in every process.
            frozen: as in :meth:`learn`.
        """
        if self.average is None:
            return
        network = self.trained()
        set_modes(network, self.config, frozen)
        layers: list[Any] = [
            m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
        ]
        if not layers:
            return
        network.eval()
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # a cumulative average
            layer.train()
        with self.autocast():
            for image in images:
                network(image)
        network.eval()
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            self.world.average(layer.running_mean)  # type: ignore[arg-type]
            self.world.average(layer.running_var)  # type: ignore[arg-type]

    def checkpoint(self, state: dict[str, Any], config: str) -> Checkpoint:
        """All of it, with the run's own ``state`` and its configuration as TOML."""
        average = None if self.average is None else self.average.state_dict()
        state = {**state, "scaler": self.scaler.state_dict()}
        return Checkpoint(self.model.state_dict(), average, self.optimizer.state_dict(), state, config)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Goes back to a checkpoint of the same configuration."""
        self.model.load_state_dict(checkpoint.model)
        if self.average is not None and checkpoint.average is not None:
            self.average.load_state_dict(checkpoint.average)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        if checkpoint.state["scaler"]:
            self.scaler.load_state_dict(checkpoint.state["scaler"])
