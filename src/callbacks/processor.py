"""What makes a training on the processor fast: memory, threads and precision."""

import ctypes
import math
import sys
import time

import joblib
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from src.modules.precision import emulates

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
FASTER = 1.2  # bfloat16 must be so much faster to be chosen: native instructions give more, emulation less than 1


class Processor(Callback):
    """Keeps freed memory in the process, and starts no more threads than its container may run.

    glibc maps each large tensor anew and unmaps it when it is freed, so that a step on the CPU spends its time on
    page faults: 10 to 15 % of it for the networks of a few layers here. The peak stays the same. A container's share
    of the processors is not what torch counts: with more threads than that, most of them wait.

    Nothing to do on a GPU.

    Warns:
        Before a training in bfloat16 on a processor that only emulates it.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type != "cpu":
            return
        if emulates(str(trainer.precision), trainer.strategy.root_device):
            rank_zero_warn(
                f"This processor has no instructions for bfloat16: trainer.precision={trainer.precision} is many times "
                "slower here than 32-true."
            )
        if sys.platform != "linux":
            return
        torch.set_num_threads(min(torch.get_num_threads(), joblib.cpu_count()))
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(M_MMAP_MAX, 0)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def fastest_precision() -> str:
    """The `trainer.precision` for this processor: "bf16-mixed" where that makes convolutions much faster, or "32-true".

    Timed in turn, forwards and backwards, half a second in all; the fastest of each counts. Where bfloat16 is emulated
    nothing is timed: a single pass may take a second.
    """
    if emulates("bf16-mixed", torch.device("cpu")):
        return "32-true"
    with torch.random.fork_rng(devices=[]):  # the training's random numbers stay what its seed makes them
        network = nn.Sequential(nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3))
    network.to(memory_format=torch.channels_last)
    images = torch.zeros(32, 32, 32, 32).contiguous(memory_format=torch.channels_last)
    fastest = {torch.float32: math.inf, torch.bfloat16: math.inf}
    for repeat in range(12):
        for dtype in fastest:
            start = time.perf_counter()
            with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
                network(images).sum().backward()
            if repeat:
                fastest[dtype] = min(fastest[dtype], time.perf_counter() - start)
    return "bf16-mixed" if fastest[torch.float32] > FASTER * fastest[torch.bfloat16] else "32-true"
