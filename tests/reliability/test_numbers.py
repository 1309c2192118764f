"""The same numbers another way: what may change how a training is computed, and not what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from omegaconf import DictConfig

from tests.conftest import SILENT, train_here

pytestmark = pytest.mark.tried("numbers")
SMALL = [
    *("data.limit=360", "data.val_size=40", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=1"),
    *("model.network.hidden_units=8", "optimizer.lr=0.002", "data/augment=none", "test=false", *SILENT),
]


def test_accumulated_gradients_train_as_a_larger_batch_does(config: Callable[..., DictConfig]) -> None:
    weights = []
    for batches, size in ((1, 32), (4, 8)):
        options = [f"data.batch_size={size}", f"trainer.accumulate_grad_batches={batches}"]
        _, objects, _ = train_here(config(*SMALL, *options, f"paths.output_dir=${{paths.log_dir}}/{size}"))
        assert objects["trainer"].global_step == 10
        weights.append(objects["model"].state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-3, atol=1e-5)
