"""The norms of gradients against the steps that plain SGD makes of them."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from src.callbacks.gradients import GradientNorms
from src.train import train
from tests.conftest import QUICK, SILENT, train_here

GRADIENTS = ["callbacks=gradients", "callbacks.gradients.parts=[features.0,classifier]"]
LR = 0.01


class Steps(Callback):
    """How far each step of an epoch moves two layers."""

    moved: list[dict[str, list[torch.Tensor]]]

    def on_train_start(self, trainer, pl_module) -> None:
        type(self).moved = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.moved.append({"features.0": [], "classifier": []})

    def _weights(self, pl_module, name: str) -> torch.Tensor:
        layer = pl_module.network.get_submodule(name)
        return torch.cat([layer.weight.flatten(), layer.bias]).detach().clone()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.before = {name: self._weights(pl_module, name) for name in self.moved[-1]}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        for name, moves in self.moved[-1].items():
            moves.append((self._weights(pl_module, name) - self.before[name]).norm())


def test_the_norm_of_a_gradient_is_that_of_the_step_by_the_learning_rate(config) -> None:
    sgd = ["optimizer=sgd", f"optimizer.lr={LR}", *(f"optimizer.{name}=0" for name in ("momentum", "weight_decay"))]
    plain = [*sgd, "optimizer.nesterov=false", "scheduler=none", "trainer.max_epochs=2", "trainer.precision=32-true"]
    metrics, *_ = train_here(
        config(*QUICK, *SILENT, *GRADIENTS, *plain, "+callbacks.s._target_=tests.test_gradients.Steps")
    )
    for name, moves in Steps.moved[-1].items():
        assert metrics[f"train/grad_norm_{name}"] == pytest.approx(float(torch.stack(moves).mean()) / LR, rel=1e-3)


def test_a_part_that_the_network_lacks_is_refused_and_those_it_has_are_named(config) -> None:
    with pytest.raises(ValueError, match=r"parts=conv1: no weights of the network; it has those of features, class"):
        train(config(*QUICK, *SILENT, *GRADIENTS[:1], "callbacks.gradients.parts=[conv1]"))


def test_a_step_that_16_mixed_skips_does_not_count() -> None:
    logged: dict[str, torch.Tensor] = {}
    norms = GradientNorms(["conv"])
    norms.norms["conv"] = [torch.tensor(1.0), torch.tensor(torch.inf), torch.tensor(3.0)]
    norms.on_train_epoch_end(None, SimpleNamespace(log=logged.__setitem__))  # type: ignore[arg-type]
    assert logged == {"train/grad_norm_conv": 2}
