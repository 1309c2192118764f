"""How many images a second the training takes in, and how much of the machine that needs."""

import time
import warnings
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.flop_counter import FlopCounterMode

from src.modules.looking import looking_at
from src.modules.precision import emulates

KEPT = ("images", "train_seconds", "flops", "peak")
# The numbers of a `trainer.precision`, by its name up to a hyphen; others are those of torch.float32.
NUMBERS = {"bf16": torch.bfloat16, "16": torch.half, "64": torch.double}


class Throughput(Callback):
    """Logs `train/images_per_s`: images of all processes by the time spent in training steps of the epoch.

    Attributes:
        images, train_seconds: of all epochs; they count on where a resumed run went on.
        flops: of all these steps: for each image, at the size that the network saw at the end of its epoch, three times
            those of the network's forward pass, as is usual for model FLOPs utilisation (Chowdhery et al. 2022, PaLM,
            appendix B). 0 where they are not known.
        peak: FLOP/s of a matrix product in the precision of the training, on one device: as measured when the training
            begins or when it ends, whichever is more, since a moment's work of others halves it. 0 where the FLOPs are
            not known, or the precision is one that the processor only emulates.
    """

    def __init__(self) -> None:
        self.train_seconds = 0.0
        self.images = self.flops = 0
        self.peak = 0.0
        self._start = 0.0  # of the epoch, later by what its validations took
        self._forward: dict[tuple[int, ...], int] = {}  # FLOPs by the shape of an image

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._done = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        self._start = now(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._shape = getattr(pl_module.example_input_array, "shape", ())[1:]  # (C, H, W)
        precision = str(trainer.precision)
        if self._flops(pl_module) and not emulates(precision, pl_module.device):
            self.peak = matmul_speed(pl_module.device, precision)
        self.on_train_epoch_start(trainer, pl_module)  # Lightning leaves it out when a run goes on in mid-epoch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if isinstance(batch, list | tuple) and isinstance(batch[0], torch.Tensor):
            self._shape = batch[0].shape[1:]

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._validation_start = now(pl_module.device)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start += now(pl_module.device) - self._validation_start

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        seconds = now(pl_module.device) - self._start
        steps = trainer.fit_loop.epoch_loop.batch_progress.total.ready - self._done
        images = steps * trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        self.images += images
        self.train_seconds += seconds
        self.flops += 3 * images * self._flops(pl_module)
        pl_module.log("train/images_per_s", images / seconds)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.peak:
            self.peak = max(self.peak, matmul_speed(pl_module.device, str(trainer.precision)))

    def _flops(self, pl_module: LightningModule) -> int:
        """Of the forward pass of an image as the training sees them now; 0 where they are not known."""
        example = pl_module.example_input_array
        if not is_overridden("forward", pl_module) or not isinstance(example, torch.Tensor):
            return 0
        if self._shape not in self._forward:
            self._forward[self._shape] = 0
            try:
                with looking_at(pl_module), FlopCounterMode(display=False) as counter:
                    pl_module(example.new_zeros(1, *self._shape, device=pl_module.device))
                self._forward[self._shape] = counter.get_total_flops()
            except Exception as error:  # it is any network's code; the run is worth more than this number
                warnings.warn(f"the FLOPs of this network are not known: {error}", stacklevel=1)
        return self._forward[self._shape]

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in KEPT:
            setattr(self, name, state_dict.get(name, 0))


def now(device: torch.device) -> float:
    """The clock in seconds, read once the device has done what it was given: a GPU is steps behind the processor."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def matmul_speed(device: torch.device, precision: str) -> float:
    """FLOP/s of a product of two square matrices, as `trainer.precision` computes it; the best of five."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = NUMBERS.get(precision.partition("-")[0], torch.float32)
    matrix = torch.ones(side, side, device=device, dtype=dtype)
    seconds = []
    for _ in range(6):
        start = now(device)
        torch.mm(matrix, matrix)
        seconds.append(now(device) - start)
    return 2 * side**3 / min(seconds[1:])
