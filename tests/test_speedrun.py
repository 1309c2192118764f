"""The fast recipes' own parts: Dirac filters, whitening, Muon, Lookahead; and all of them together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import LightningModule
from torch import Tensor, nn

from src.callbacks.lookahead import Lookahead
from src.modules.optimizers import QUINTIC, Muon, orthogonalise
from src.networks.speedrun import SpeedrunNet
from src.train import train
from tests.conftest import SILENT

FEW = [
    *("data=digits", "data.limit=120", "data.batch_size=20", "model.network.widths=[8,8,8]"),
    *("trainer=cpu", "trainer.max_epochs=2", "trainer.precision=32-true", "model.compile=false"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def descend(optimizer: torch.optim.Optimizer, seeds: Iterable[int]) -> None:
    """A step for each seed, with its random gradients."""
    for seed in seeds:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = normal(*parameter.shape, seed=seed)
        optimizer.step()


# Network


def test_dirac_filters_hand_their_input_on() -> None:
    x = torch.randn(2, 24, 5, 5)
    for dirac in (True, False):
        network = SpeedrunNet((32, 32, 32), dirac=dirac)
        first = next(m for m in network.groups.modules() if isinstance(m, nn.Conv2d))
        assert torch.equal(first(x)[:, :24], x) == dirac
        assert not torch.allclose(first(x)[:, 24:32], x[:, :8])


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_patches_have_unit_covariance_and_come_with_both_signs(channels: int) -> None:
    images, size = torch.randn(40, channels, 16, 16), 4 * channels  # of a patch
    images = images + 2 * images.roll(1, 3) + images.mean(1, keepdim=True)  # correlated in space and colour
    network = SpeedrunNet((8, 8, 8), channels=channels)
    network.whiten(images, epsilon=1e-9)
    out = network.whitening(images)  # (40, 2 size, 15, 15)
    rows = out.transpose(0, 1).flatten(1)[:size]
    assert torch.allclose(rows @ rows.T / rows.shape[1], torch.eye(size), atol=1e-3)
    assert torch.equal(out[:, :size], -out[:, size:])
    assert not any(p.requires_grad for p in network.whitening.parameters())


def test_the_first_layer_is_made_from_the_training_images(config) -> None:
    _, objects = train(config("model=speedrun", *FEW, *SILENT, "model.whitening_images=50"))
    network, data = objects["model"].network, objects["datamodule"]
    reference = SpeedrunNet((8, 8, 8))
    reference.whiten(data.preprocess(data.examples("train", 50)[0]))
    assert torch.equal(network.whitening.weight, reference.whitening.weight)
    _, objects = train(config("model=speedrun", *FEW, *SILENT, "model.whitening_images=0", "trainer.max_epochs=1"))
    assert objects["model"].network.whitening.weight.requires_grad


def test_a_first_layer_of_pretrained_weights_stays_what_it_was(config, tmp_path: Path) -> None:
    """Eigenvectors have no sign of their own: made anew of other images, they are nothing to the layers behind them."""
    pretrained = SpeedrunNet((8, 8, 8))
    pretrained.whiten(normal(50, 3, 32, 32))
    torch.save(pretrained.state_dict(), tmp_path / "weights.pt")
    options = ["model=speedrun", *FEW, *SILENT, f"model.weights={tmp_path}/weights.pt", "callbacks=finetune"]
    _, objects = train(config(*options, "callbacks.finetune.unfreeze_at=1", "test=false"))
    network = objects["model"].network
    assert torch.equal(network.whitening.weight, pretrained.whitening.weight)
    assert not torch.equal(network.groups[0][0].weight, pretrained.groups[0][0].weight), "the rest was trained"


# Muon


@pytest.mark.parametrize("shape", [(32, 3, 3, 3), (16, 8, 3, 3)], ids=["tall", "wide"])
def test_filters_are_stepped_as_torch_steps_the_flattened_matrix(shape: tuple[int, ...]) -> None:
    start = normal(*shape).flatten(1)
    mine, theirs = nn.Parameter(normal(*shape)), nn.Parameter(start.clone())
    options = {"lr": 0.1, "momentum": 0.6, "weight_decay": 0.01}
    descend(Muon([mine], **options, fixed_norm=False, iterations=3), range(1, 4))
    descend(torch.optim.Muon([theirs], **options, ns_steps=3), range(1, 4))
    assert (mine.flatten(1) - theirs).norm() < 0.02 * (theirs - start).norm()  # bfloat16 inside


@pytest.mark.parametrize(("emulated", "least", "most"), [(True, 0, 1e-5), (False, 3e-4, 0.03)])
def test_filters_are_made_orthogonal_in_numbers_that_the_processor_is_made_for(
    monkeypatch: pytest.MonkeyPatch, emulated: bool, least: float, most: float
) -> None:
    monkeypatch.setattr("src.modules.optimizers.emulates", lambda *_: emulated)
    matrix = normal(16, 27, 1, 1).flatten(1)
    found, singular = orthogonalise(matrix, 3), torch.linalg.svd(matrix.double(), full_matrices=False)
    values = singular.S / singular.S.norm()
    for _ in range(3):
        values = sum(factor * values**power for factor, power in zip(QUINTIC, (1, 3, 5), strict=True))
    exact = singular.U @ values.diag() @ singular.Vh
    assert least < (found - exact).norm() / exact.norm() < most


def test_other_parameters_are_stepped_as_sgd_does_and_those_of_one_dimension_faster_at_rates_that_move() -> None:
    mine, theirs = ([nn.Parameter(normal(4, 3)), nn.Parameter(normal(4))] for _ in range(2))
    one = Muon(mine, lr=0.2, sgd_lr=0.1, sgd_momentum=0.85, bias_factor=64, weight_decay=0)
    groups = [{"params": theirs[:1], "lr": 0.1}, {"params": theirs[1:], "lr": 6.4}]
    other = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for seed in range(1, 4):
        for optimizer in (one, other):
            descend(optimizer, [seed])
            for group in optimizer.param_groups:  # as a schedule does
                group["lr"] /= 2
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_filters_of_fixed_norm_stay_there_and_move_by_the_learning_rate() -> None:
    weight = nn.Parameter(7 * normal(16, 8, 3, 3))
    optimizer = Muon([weight], lr=1e-9, weight_decay=0)
    descend(optimizer, [1])
    assert weight.norm().item() == pytest.approx(4)  # the root of 16
    before = weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.24
    descend(optimizer, [1])
    assert (weight - before).norm().item() / before.norm().item() == pytest.approx(0.24, rel=0.25)


# Lookahead


def test_lookahead_pulls_back_more_and_more_and_ends_on_the_slow_weights() -> None:
    module = LightningModule()
    module.weight = nn.Parameter(torch.zeros(()))
    trainer = SimpleNamespace(global_step=0, estimated_stepping_batches=6)
    callback = Lookahead(every=2, decay=0.5, power=1)
    callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    values = []
    for batch in range(6):
        module.weight.data += 1
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, batch)  # type: ignore[arg-type]
        values.append(module.weight.item())
    # after 2: 0 + (2 - 0)(1 - 0.25 / 3); after 4 from there: 2 more, times 1 - 0.25 * 2 / 3; the last takes the slow
    first = 2 * (1 - 0.25 / 3)
    second = first + 2 * (1 - 0.25 * 2 / 3)
    assert values == pytest.approx([1, first, first + 1, second, second + 1, second])


# Together


def test_all_tricks_together_go_on_from_a_checkpoint_to_the_same_bits(config, tmp_path: Path) -> None:
    recipe = ["experiment=cifar10_speedrun", *FEW, *SILENT, "data.val_size=20", "test=false", "trainer.max_epochs=3"]
    recipe += ["callbacks.lookahead.every=2", "callbacks.model_checkpoint.save_top_k=-1"]
    _, objects = train(config(*recipe))
    expected = {name: value.clone() for name, value in objects["model"].state_dict().items()}
    first = tmp_path / "run/checkpoints/epoch_000.ckpt"
    _, objects = train(config(*recipe, f"ckpt_path={first}", f"paths.output_dir={tmp_path}/other"))
    assert all(torch.equal(value, expected[name]) for name, value in objects["model"].state_dict().items())


@pytest.mark.parametrize("name", ["cifar10_speedrun", "cifar10_cpu"])
def test_a_fast_recipe_trains_with_all_its_tricks(config, name: str) -> None:
    slow = ["optimizer.lr=0.05", "optimizer.sgd_lr=0.02", "trainer.max_epochs=20"]  # for batches of 20
    metrics, objects = train(config(f"experiment={name}", *FEW, *SILENT, *slow))
    assert metrics["test/acc"] > 0.3  # chance is 0.1
    assert isinstance(objects["trainer"].optimizers[0], Muon)


def test_the_fast_resnet_recipe_trains_with_all_its_tricks(config) -> None:
    few = [override for override in FEW if "widths" not in override]
    small = ["data.limit=40", "data.image_size=8", "trainer.max_epochs=1", "test=false"]
    metrics, _ = train(config("experiment=cifar10_resnet18_94", *few, *SILENT, *small))
    assert math.isfinite(metrics["train/loss"])
