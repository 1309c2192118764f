"""The GAN's training through `train(cfg)` against a hand-written loop over the same networks and batches."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from src.runs.build import build_model
from tests.benchmarks.table import Row, Setting
from tests.benchmarks.training import beside_hand_written


class GanStep:
    """A step of both networks and of the generator's average, as a careful person writes it."""

    def __init__(self, cfg: DictConfig, device: torch.device) -> None:
        model: Any = build_model(cfg).to(device)
        self.memory_format, self.network = model.memory_format, model.network.train()
        self.optimizers = [make(self.network.get_submodule(part).parameters()) for part, make in model.parts.items()]
        self.average = AveragedModel(self.network.generator, multi_avg_fn=get_ema_multi_avg_fn(0.999), use_buffers=True)
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed")

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        images = images.contiguous(memory_format=self.memory_format)
        generator, discriminator = self.network.generator, self.network.discriminator
        of_generator, of_discriminator = self.optimizers
        with self.autocast:
            samples = generator(torch.randn(len(labels), generator.noise_size, device=labels.device), labels)
            both = torch.cat([images, samples.detach().to(images.dtype)])
            real, fake = discriminator(both, labels.repeat(2)).float().chunk(2)
            loss = torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
        of_discriminator.zero_grad()
        loss.backward()
        of_discriminator.step()
        discriminator.requires_grad_(False)
        with self.autocast:
            loss = -discriminator(samples, labels).float().mean()
        of_generator.zero_grad()
        loss.backward()
        of_generator.step()
        discriminator.requires_grad_(True)
        self.average.update_parameters(generator)


def gan_rows(setting: Setting) -> list[Row]:
    """One epoch of the SN-GAN, a third as wide on a CPU; a part of it is timed and scaled up."""
    steps, width = (200, 64) if setting.gpu else (20, 24)
    overrides = ["model=sngan", f"model.network.width={width}"]
    ratio, seconds = beside_hand_written(setting, steps, 3, *overrides, make=GanStep)
    name = f"epoch of sngan, width {width}, batch 128: train(cfg) / hand-written loop"
    return [Row(name, ratio, "x", at_most=1.05, detail=f"{seconds[0]:.1f} s / {seconds[1]:.1f} s")]
