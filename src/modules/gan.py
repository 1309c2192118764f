"""The LightningModule of a generative adversarial network: two networks, two optimizers.

Batches are `(images, labels)`: images float (B, C, S, S) in [-1, 1], labels int64 (B,), -1 for a padding image that
counts nowhere. Scores are float (B,), positive for what the discriminator takes for real.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from src.modules.averaging import real_numbers, warmed_up_average
from src.modules.base import Step, Task


def hinge_loss(real: Tensor, fake: Tensor) -> Tensor:
    """The discriminator's loss (B,) of the scores of images and of samples (Miyato et al. 2018, equation 16)."""
    return torch.relu(1 - real) + torch.relu(1 + fake)


class Sampler(nn.Module):
    """noise (B, Z), labels (B,) -> images, uint8 (B, C, S, S)."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        return ((self.generator(noise, labels).float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class GAN(Task):
    """Trains a discriminator on every batch, and a generator on the samples that the discriminator has just seen.

    Logs of each stage `loss_d` and `loss_g`, the hinge losses of discriminator and generator before the step, their sum
    `loss`, and `acc_real` and `acc_fake`, the shares of images and samples that the discriminator tells. Samples have
    the labels of the batch; in validation and test they are those of the averaged generator.

    A step, wherever steps are counted (`global_step`, `trainer.max_steps`, schedules), is one of the discriminator.

    Args:
        network: has the parts `generator`, from noise (B, Z) and labels to images, with its `noise_size` Z, and
            `discriminator`, from images and labels to scores.
        optimizer: a factory for each of the two.
        discriminator_steps: steps of the discriminator to one of the generator.
        decay: of the moving average of the generator's weights, in the long run (`warmed_up_average`).
        options: those of `Task`.

    Raises:
        ValueError: an optimizer is missing, or images are not in [-1, 1].
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Mapping[str, Any],
        *,
        discriminator_steps: int = 1,
        decay: float = 0.999,
        **options: Any,
    ) -> None:
        if not isinstance(optimizer, Mapping) or set(optimizer) != {"generator", "discriminator"}:
            raise ValueError("a GAN has two optimizers: model.optimizer.generator and model.optimizer.discriminator.")
        super().__init__(network, optimizer, **options)
        self.discriminator_steps, self.average = discriminator_steps, warmed_up_average(decay)
        self.averaged: Any = deepcopy(self.network.generator).requires_grad_(False)

    def setup(self, stage: str) -> None:
        spec = self.trainer.datamodule.preprocess.spec  # type: ignore[attr-defined]
        if {*spec["mean"], *spec["std"]} != {0.5}:
            raise ValueError("a GAN's images are in [-1, 1]: set data.mean=half data.std=half.")
        if isinstance(strategy := self.trainer.strategy, DDPStrategy):
            # Each backward leaves one network out. Otherwise only the strategy's name in the config can say so.
            strategy._ddp_kwargs["find_unused_parameters"] = True

    def step(self, batch: tuple[Tensor, Tensor], stage: str) -> Step:
        images, labels = batch
        if labels.ndim != 1:
            raise ValueError("a GAN takes no mixed labels: leave MixUp and CutMix out of data.augment.")
        images = images.contiguous(memory_format=self.memory_format)
        if stage == "train":
            return self._train(images, labels)
        there, labels = labels >= 0, labels.clamp(min=0)
        samples = self.averaged(self._fixed_noise(len(labels), seed=0), labels)
        return _measured(*self._scores(images, samples, labels), there)

    def _train(self, images: Tensor, labels: Tensor) -> Step:
        optimizers: dict[str, Any] = dict(zip(self.parts, self.optimizers(), strict=True))
        generator, discriminator, steps = self.network.generator, self.network.discriminator, self.global_step
        trains_generator = steps % self.discriminator_steps == 0
        noise = torch.randn(len(labels), generator.noise_size, device=self.device).to(images.dtype)
        with torch.set_grad_enabled(trains_generator):
            samples = generator(noise, labels)
        real, fake = self._scores(images, samples.detach(), labels)
        self._update(optimizers["discriminator"], hinge_loss(real, fake).mean())
        if trains_generator:
            # Lightning counts the steps of every optimizer (Lightning #17958); these shall not count.
            optimizers["generator"]._on_before_step = optimizers["generator"]._on_after_step = lambda: None
            discriminator.requires_grad_(False)
            self._update(optimizers["generator"], -discriminator(samples, labels).float().mean())
            discriminator.requires_grad_(True)
            averaged, current = (list(real_numbers(each).values()) for each in (self.averaged, generator))
            self.average(averaged, current, steps)
        self._step_schedules("step", steps + 1)
        return _measured(real.detach(), fake.detach(), labels >= 0)

    def _scores(self, images: Tensor, samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.network.discriminator(torch.cat([images, samples.to(images.dtype)]), labels.repeat(2))
        real, fake = scores.float().chunk(2)
        return real, fake

    def _update(self, optimizer: Any, loss: Tensor) -> None:
        optimizer.zero_grad()
        with torch.autocast(self.device.type, enabled=False):  # Lightning's is for the whole step, torch's for forwards
            self.manual_backward(loss)
        optimizer.step()

    def _step_schedules(self, interval: str, done: int) -> None:
        """Moves the schedules of that interval; Lightning does so only where it optimises automatically."""
        plan = self.scheduler or {"interval": None}
        if plan["interval"] == interval and done % plan.get("frequency", 1) == 0:
            watched: Any = [self.trainer.callback_metrics[plan["monitor"]]] if "monitor" in plan else []
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step(*watched)

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self._step_schedules("epoch", self.current_epoch + 1)

    def _fixed_noise(self, size: int, seed: int) -> Tensor:
        """(size, Z), of a generator of its own: the training's random numbers stay as they are."""
        noise = torch.randn(size, self.averaged.noise_size, generator=torch.Generator().manual_seed(seed))
        return noise.to(next(self.averaged.parameters()))

    @torch.no_grad()
    def sample(self, labels: Tensor, seed: int = 0, batch_size: int = 256) -> Tensor:
        """What the averaged generator makes of labels (N,): uint8 (N, C, S, S), on the CPU; the same for a seed."""
        sampler = Sampler(self.averaged).eval()
        noise = self._fixed_noise(len(labels), seed)
        parts = zip(noise.split(batch_size), labels.to(self.device).split(batch_size), strict=True)
        return torch.cat([sampler(*part).cpu() for part in parts])


def _measured(real: Tensor, fake: Tensor, there: Tensor) -> Step:
    """What is logged of scores of images and samples (B,), where `there` (B,) says which count."""
    found = {"loss_d": hinge_loss(real, fake), "loss_g": -fake, "acc_real": real > 0, "acc_fake": fake < 0}
    sums = {name: (value * there).sum() for name, value in found.items()}
    items = there.sum()
    return Step((sums["loss_d"] + sums["loss_g"]) / items.clamp(min=1), items, sums)
