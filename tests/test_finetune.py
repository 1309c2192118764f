"""Fine-tuning: exactly the backbone is frozen, and it trains when told, at its own rate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from src.callbacks.finetune import Finetune, head_of, in_head
from src.modules.classifier import ImageClassifier
from src.modules.schedules import CosineWithWarmup, OneCycle, Triangle
from src.runs.build import build
from src.train import check_network


class Small(nn.Sequential):
    """A convolution, a batch norm in the backbone, and a head with a batch norm of its own."""

    head = ("fc",)

    def __init__(self) -> None:
        backbone = {"conv": nn.Conv2d(3, 4, 4, bias=False), "bn": nn.BatchNorm2d(4), "relu": nn.ReLU()}
        head = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3))
        super().__init__(OrderedDict(**backbone, fc=head))


class Watch(Callback):
    """The network's tensors, and the learning rates of its optimizer, at each epoch's end."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []
        self.rates: list[list[float]] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states.append({n: t.clone() for n, t in pl_module.network.state_dict().items()})
        self.rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])


def fit(
    *callbacks: Callback, epochs: int = 4, ckpt_path: Path | None = None, network: Small | None = None,
    schedule: Callable[..., Any] = CosineWithWarmup, **options: Any,
) -> Watch:  # fmt: skip
    """Trains Small, or `network`, with a validation after each epoch; the first watched tensors are from before."""
    torch.manual_seed(0)
    scheduler = {"factory": schedule, "interval": "step", "needs_total_steps": True}
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, fused=True)
    module = ImageClassifier(network or Small(), optimizer, scheduler=scheduler, **options)
    watch = Watch()
    watch.states.append({n: t.clone() for n, t in module.network.state_dict().items()})
    loader = DataLoader(TensorDataset(torch.randn(12, 3, 6, 6), torch.arange(12) % 3), 4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, callbacks=[*callbacks, watch], logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=len(callbacks) > 1,
    )  # fmt: skip
    trainer.fit(module, loader, loader, ckpt_path=ckpt_path)
    return watch


def changed(a: dict[str, Tensor], b: dict[str, Tensor]) -> set[str]:
    return {name for name in a if not torch.equal(a[name], b[name])}


ALL = set(Small().state_dict())
HEAD = {name for name in ALL if name.startswith("fc")}


def test_the_backbone_is_frozen_with_its_statistics_until_it_is_told_to_train(
    config: Callable[..., DictConfig],
) -> None:
    cfg = config("callbacks=finetune", "callbacks.finetune.unfreeze_at=2")
    before, first, second, third, fourth = fit(build(cfg.callbacks.finetune)).states
    assert changed(before, first) == changed(first, second) == HEAD
    assert changed(second, third) == changed(third, fourth) == ALL


def test_what_the_network_itself_keeps_fixed_stays_fixed() -> None:
    network = Small()
    network.bn.weight.requires_grad_(False)  # type: ignore[operator,union-attr]
    states = fit(Finetune(unfreeze_at=1), epochs=2, network=network).states
    assert changed(states[1], states[2]) == ALL - {"bn.weight"}


def test_a_linear_probe_never_trains_the_backbone(config: Callable[..., DictConfig]) -> None:
    states = fit(build(config("callbacks=linear_probe").callbacks.finetune)).states
    assert changed(states[0], states[-1]) == HEAD


@pytest.mark.parametrize("schedule", [CosineWithWarmup, Triangle, OneCycle])
@pytest.mark.parametrize("decays", [True, False])
def test_the_schedule_moves_both_rates_and_the_backbones_is_a_tenth(schedule: Any, decays: bool) -> None:
    rates = fit(Finetune(unfreeze_at=1), decay_norms_and_biases=decays, epochs=3, schedule=schedule).rates
    for each in rates:
        half = len(each) // 2
        assert each[half:] == pytest.approx([0.1 * rate for rate in each[:half]])
    assert rates[0][0] > rates[1][0] > rates[2][0]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    whole = fit(Finetune(unfreeze_at=1), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    for epoch in (0, 2):  # before and after the unfreezing
        resumed = fit(Finetune(unfreeze_at=1), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert changed(whole.states[-1], resumed.states[-1]) == set()
        assert resumed.rates[-1] == whole.rates[-1]


@pytest.mark.parametrize(
    ("words", "warns"),
    [(["callbacks=finetune"], True), (["callbacks=finetune", "model.weights=imagenet"], False), ([], False)],
)
def test_random_weights_are_warned_of(config: Callable[..., DictConfig], words: list[str], warns: bool, caplog) -> None:
    check_network(config("model=resnet18", *words))
    assert ("freezes a backbone of random weights" in caplog.text) == warns


def test_a_late_epoch_is_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"unfreeze_at=5 comes after the last epoch \(trainer.max_epochs=1\)"):
        fit(Finetune(unfreeze_at=5), epochs=1)


def test_a_network_that_does_not_say_what_its_head_is_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "head", ())
    with pytest.raises(ValueError, match="Small does not say which that is"):
        fit(Finetune())


def test_the_head_of_ones_own_network_may_be_the_layer_of_that_name_or_one_name() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3))

    assert [in_head(name, Own()) for name, _ in Own().named_parameters()] == [False, False, True, True]
    assert head_of(SimpleNamespace(head="fc")) == ("fc",)
    assert head_of(SimpleNamespace(head=None)) == ()


def test_a_module_of_ones_own_without_a_network_is_refused_in_one_message() -> None:
    class Foreign(LightningModule):
        pass

    with pytest.raises(ValueError, match=r'Foreign does not say which that is: give it .* head = \("fc",\)'):
        Finetune().setup(Trainer(logger=False, accelerator="cpu"), Foreign(), "fit")


class Whole(LightningModule):
    """A LightningModule that is its own network."""

    head = ("fc",)

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(2, 2), nn.Linear(2, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.fc(self.body(batch[0])), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def test_a_module_of_ones_own_may_be_the_network_and_is_told_that_it_sets_the_rates_itself() -> None:
    module, states = Whole(), []
    loader = DataLoader(TensorDataset(torch.randn(6, 2), torch.arange(6) % 3), 3)
    for unfreeze_at in (None, 0):
        states.append({name: tensor.clone() for name, tensor in module.state_dict().items()})
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, callbacks=[Finetune(unfreeze_at)], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        with pytest.warns(UserWarning, match=r"backbone_lr=0.1 is left to Whole"):
            trainer.fit(module, loader)
    assert changed(*states) == {"fc.weight", "fc.bias"}
    assert changed(states[1], module.state_dict()) == set(states[0])
