"""Fine-tuning: exactly the backbone is frozen, and it trains when told, at its own rate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.callbacks.finetune import Finetune
from src.modules.classifier import ImageClassifier
from src.modules.schedules import cosine_with_warmup


def _groups(self):
    p = list(self.network.parameters())
    if self.decay_norms_and_biases:
        return p
    return [{"params": [q for q in p if q.ndim > 1]}, {"params": [q for q in p if q.ndim <= 1], "weight_decay": 0.0}]


ImageClassifier._parameter_groups = _groups


class Small(nn.Module):
    """A convolution, a batch norm in the backbone, and a head with a batch norm of its own."""

    head = ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(torch.relu(self.bn(self.conv(images))).mean((2, 3)))


class Watch(Callback):
    """The network's tensors, and the learning rates of its optimizer, at each epoch's end."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append({n: t.clone() for n, t in pl_module.network.state_dict().items()})
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def fit(
    *callbacks: Callback, epochs: int = 4, ckpt_path: Path | None = None, loader: Any = None, **options: Any
) -> tuple[Watch, dict[str, Tensor], ImageClassifier]:
    """Trains Small; returns what was watched, the tensors before the training, and the module."""
    torch.manual_seed(0)
    scheduler = {"factory": cosine_with_warmup, "interval": "step"}
    module = ImageClassifier(Small(), partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True), scheduler, **options)
    before = {n: t.clone() for n, t in module.network.state_dict().items()}
    data = TensorDataset(torch.randn(12, 3, 6, 6), torch.arange(12) % 3)
    watch = Watch()
    checkpointing = any(isinstance(c, ModelCheckpoint) for c in callbacks)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[*callbacks, watch], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=checkpointing,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, 4), DataLoader(data, 4), ckpt_path=ckpt_path)
    return watch, before, module


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


BACKBONE = {name for name in Small().state_dict() if not name.startswith("fc")}
HEAD = {name for name in Small().state_dict() if name.startswith("fc")}


def test_the_backbone_is_frozen_with_its_statistics_until_it_is_told_to_train() -> None:
    watch, before, _ = fit(Finetune(unfreeze_at=2))
    first, second, third, fourth = watch.states
    assert changed(before, first) == HEAD
    assert changed(before, second) == HEAD
    assert changed(second, third) == HEAD | BACKBONE
    assert changed(third, fourth) == HEAD | BACKBONE


def test_frozen_batch_norms_use_their_statistics_and_not_the_batchs() -> None:
    modes: dict[str, bool] = {}

    class Modes(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            modes.update({name: module.training for name, module in pl_module.network.named_modules()})

    fit(Finetune(), Modes(), epochs=2)  # the second epoch follows a validation
    assert modes == {"": True, "conv": True, "bn": False, "fc": True, "fc.0": True, "fc.1": True}


def test_a_linear_probe_never_trains_the_backbone() -> None:
    watch, before, _ = fit(Finetune(unfreeze_at=None))
    assert changed(before, watch.states[-1]) == HEAD


@pytest.mark.parametrize("decay_norms_and_biases", [True, False])
def test_the_schedule_moves_both_rates_and_the_backbones_is_a_tenth(decay_norms_and_biases: bool) -> None:
    watch, _, module = fit(
        Finetune(unfreeze_at=1, backbone_lr=0.1), decay_norms_and_biases=decay_norms_and_biases, epochs=3
    )
    for rates in watch.rates:
        half = len(rates) // 2
        assert rates[half:] == pytest.approx([0.1 * rate for rate in rates[:half]])
    assert watch.rates[0][0] > watch.rates[1][0] > watch.rates[2][0]
    assert not isinstance(module.optimizer_factory.func, type(fit))  # the module is as it was


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole, _, _ = fit(Finetune(unfreeze_at=1), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    for epoch in (0, 2):  # before and after the unfreezing
        resumed, _, _ = fit(Finetune(unfreeze_at=1), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert changed(whole.states[-1], resumed.states[-1]) == set()
        assert resumed.rates[-1] == whole.rates[-1]


def test_impossible_settings_are_refused_and_a_late_epoch_is_warned_of() -> None:
    with pytest.raises(ValueError, match="unfreeze_at is an epoch from 0 on, or null, not -1"):
        Finetune(unfreeze_at=-1)
    with pytest.raises(ValueError, match=r"backbone_lr is a positive factor, not 0"):
        Finetune(backbone_lr=0)
    with pytest.warns(UserWarning, match=r"unfreeze_at=5 comes after the last epoch \(trainer.max_epochs=1\)"):
        fit(Finetune(unfreeze_at=5), epochs=1)


def test_the_configs_build_the_callback(config: Callable[..., DictConfig]) -> None:
    cfg = config("callbacks=finetune", "callbacks.finetune.unfreeze_at=7")
    assert "model_checkpoint" in cfg.callbacks
    assert instantiate(cfg.callbacks.finetune).unfreeze_at == 7
    assert instantiate(config("callbacks=linear_probe").callbacks.finetune).unfreeze_at is None
