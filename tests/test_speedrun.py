"""The fast recipes' own parts: network, whitening, Muon, triangle, Lookahead, kept memory."""

from __future__ import annotations

import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule
from torch import nn

from src.callbacks.lookahead import Lookahead
from src.modules.optimizers import Muon, orthogonalise
from src.modules.schedules import triangle
from src.networks.speedrun import SpeedrunNet
from src.train import train
from tests.conftest import SILENT

FEW = [
    "data=digits",
    "data.limit=120",
    "data.batch_size=20",
    "model.network.widths=[8,8,8]",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "trainer.precision=32-true",
]


def filters(*shape: int, seed: int = 0) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)))


# Network


def test_the_network_has_the_parameters_of_the_paper() -> None:
    count = sum(p.numel() for p in SpeedrunNet().parameters())
    convolutions = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    assert count == (24 * 3 * 4 + 24) + convolutions + 2 * 2 * (64 + 256 + 256) + 256 * 10


@pytest.mark.parametrize("size", [9, 32, 33, 96])
def test_the_network_takes_images_of_any_size_from_9(size: int) -> None:
    assert SpeedrunNet((8, 8, 8), num_classes=7, image_size=size)(torch.rand(2, 3, size, size)).shape == (2, 7)


def test_smaller_images_and_other_numbers_of_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 9 px"):
        SpeedrunNet(image_size=8)
    with pytest.raises(ValueError, match="three"):
        SpeedrunNet((8, 8))


def test_dirac_filters_hand_their_input_on() -> None:
    first = next(m for m in SpeedrunNet((32, 32, 32)).groups.modules() if isinstance(m, nn.Conv2d))
    x = torch.randn(2, 24, 5, 5)
    assert torch.equal(first(x)[:, :24], x)
    assert not torch.allclose(first(x)[:, 24:32], x[:, :8])
    first = next(m for m in SpeedrunNet((32, 32, 32), dirac=False).groups.modules() if isinstance(m, nn.Conv2d))
    assert not torch.allclose(first(x)[:, :24], x)


def test_whitened_patches_have_unit_covariance_and_come_with_both_signs() -> None:
    images = torch.randn(40, 3, 16, 16)
    images = images + 2 * images.roll(1, 3) + images.mean(1, keepdim=True)  # correlated in space and colour
    network = SpeedrunNet((8, 8, 8))
    network.whiten(images, epsilon=1e-9)
    out = network.whitening(images)  # (40, 24, 15, 15)
    rows = out.transpose(0, 1).flatten(1)[:12]
    assert torch.allclose(rows @ rows.T / rows.shape[1], torch.eye(12), atol=1e-3)
    assert torch.equal(out[:, :12], -out[:, 12:])
    assert not any(p.requires_grad for p in network.whitening.parameters())


# Muon


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((16, 72), (72, 16)):
        values = torch.linalg.svdvals(orthogonalise(filters(*shape).detach(), iterations=5))
        assert values.min() > 0.6
        assert values.max() < 1.3


def test_filters_are_stepped_as_torch_steps_the_flattened_matrix() -> None:
    mine, theirs = filters(32, 3, 3, 3), nn.Parameter(filters(32, 3, 3, 3).detach().flatten(1))
    one = Muon([mine], lr=0.1, momentum=0.6, fixed_norm=False, weight_decay=0.01, iterations=3)
    other = torch.optim.Muon([theirs], lr=0.1, momentum=0.6, weight_decay=0.01, ns_steps=3)
    for seed in range(3):
        mine.grad = filters(32, 3, 3, 3, seed=seed + 1).detach()
        theirs.grad = mine.grad.flatten(1).clone()
        one.step()
        other.step()
    moved = (theirs - filters(32, 3, 3, 3).flatten(1)).norm()
    assert (mine.flatten(1) - theirs).norm() < 0.02 * moved  # bfloat16 inside


def test_other_parameters_are_stepped_as_sgd_does_and_those_of_one_dimension_faster() -> None:
    matrix, bias = filters(4, 3), filters(4)
    copies = [nn.Parameter(p.detach().clone()) for p in (matrix, bias)]
    one = Muon([matrix, bias], sgd_lr=0.1, sgd_momentum=0.85, bias_factor=64, weight_decay=0)
    groups = [{"params": copies[:1], "lr": 0.1}, {"params": copies[1:], "lr": 6.4}]
    other = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    for seed in range(3):
        for p, copy in zip((matrix, bias), copies, strict=True):
            p.grad = filters(*p.shape, seed=seed + 1).detach()
            copy.grad = p.grad.clone()
        one.step()
        other.step()
    assert torch.allclose(matrix, copies[0])
    assert torch.allclose(bias, copies[1], rtol=1e-4)


def test_filters_of_fixed_norm_stay_there_and_move_by_the_learning_rate() -> None:
    weight = filters(16, 8, 3, 3)
    weight.data *= 7
    optimizer = Muon([weight], lr=1e-9, weight_decay=0)
    weight.grad = filters(16, 8, 3, 3, seed=1).detach()
    optimizer.step()
    assert weight.norm().item() == pytest.approx(4)  # the root of 16
    before = weight.detach().clone()
    optimizer.param_groups[0]["lr"] = 0.24
    optimizer.step()
    assert (weight - before).norm().item() / before.norm().item() == pytest.approx(0.24, rel=0.25)


def test_the_schedule_moves_both_parts_of_the_optimizer() -> None:
    bias = nn.Parameter(torch.zeros(2))
    optimizer = Muon([bias], lr=0.2, sgd_lr=1.0, sgd_momentum=0.0, bias_factor=10, weight_decay=0)
    optimizer.param_groups[0]["lr"] = 0.1
    bias.grad = torch.ones(2)
    optimizer.step()
    assert bias.tolist() == pytest.approx([-5, -5])


def test_the_state_of_the_optimizer_is_plain_and_goes_on_where_it_was() -> None:
    def steps(optimizer: Muon, weight: nn.Parameter, seeds: range) -> None:
        for seed in seeds:
            weight.grad = filters(8, 2, 3, 3, seed=seed).detach()
            optimizer.step()

    weight = filters(8, 2, 3, 3)
    optimizer = Muon([weight])
    steps(optimizer, weight, range(2))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = nn.Parameter(weight.detach().clone())
    other = Muon([resumed])
    other.load_state_dict(torch.load(file, weights_only=True))
    steps(optimizer, weight, range(2, 4))
    steps(other, resumed, range(2, 4))
    assert torch.equal(weight, resumed)


@pytest.mark.parametrize(("name", "value"), [("lr", 0), ("sgd_lr", -1), ("momentum", 1), ("sgd_momentum", -0.1)])
def test_impossible_rates_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"optimizer.{name}={value}"):
        Muon([filters(4)], **{name: value})


# Schedule


def test_the_triangle_rises_to_its_peak_and_falls_to_its_end() -> None:
    optimizer = torch.optim.SGD([filters(1)], lr=10)
    schedule = triangle(optimizer, total_steps=10, start=0.2, peak=0.4, end=0.1)
    rates = []
    for _ in range(11):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([2, 4, 6, 8, 10, 8.5, 7, 5.5, 4, 2.5, 1])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1)  # it stays there


def test_a_triangle_whose_peak_is_at_the_start_only_falls() -> None:
    optimizer = torch.optim.SGD([filters(1)], lr=1)
    assert triangle(optimizer, total_steps=4, peak=0, end=0).get_last_lr() == [1]
    with pytest.raises(ValueError, match="part of the training"):
        triangle(optimizer, total_steps=4, peak=1)


# Lookahead


def pulled(steps: int, **options: Any) -> tuple[list[float], Lookahead]:
    """A weight that each step adds 1 to, after each step."""
    module = LightningModule()
    module.weight = nn.Parameter(torch.zeros(()))
    callback = Lookahead(**options)
    trainer = SimpleNamespace(estimated_stepping_batches=steps, global_step=0, max_epochs=1, max_steps=-1)
    callback.on_train_start(trainer, module)  # type: ignore[arg-type]
    values = []
    for batch in range(steps):
        module.weight.data += 1
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, None, None, batch)  # type: ignore[arg-type]
        values.append(module.weight.item())
    return values, callback


def test_lookahead_pulls_back_more_and_more_and_ends_on_the_slow_weights() -> None:
    values, _ = pulled(6, every=2, decay=0.5, power=1)
    # after 2: 0 + (2 - 0)(1 - 0.25 / 3); after 4 from there: 2 more, times 1 - 0.25 * 2 / 3; the last takes the slow
    first = 2 * (1 - 0.25 / 3)
    second = first + 2 * (1 - 0.25 * 2 / 3)
    assert values == pytest.approx([1, first, first + 1, second, second + 1, second])


def test_the_slow_weights_travel_in_the_checkpoint() -> None:
    _, callback = pulled(4, every=2)
    file = io.BytesIO()
    torch.save(callback.state_dict(), file)
    file.seek(0)
    other = Lookahead()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert {name: value.item() for name, value in other.slow.items()} == {
        name: value.item() for name, value in callback.slow.items()
    }


# Together


def test_the_first_layer_is_made_from_the_training_images(config) -> None:
    _, objects = train(config("model=speedrun", *FEW, *SILENT, "callbacks=whitening", "callbacks.whitening.images=50"))
    network, data = objects["model"].network, objects["datamodule"]
    reference = SpeedrunNet((8, 8, 8))
    count = len(data.train_set)
    reference.whiten(data.preprocess(data.train_set.images[[i * count // 50 for i in range(50)]]))
    assert torch.equal(network.whitening.weight, reference.whitening.weight)
    assert not network.whitening.weight.requires_grad


def test_all_tricks_together_go_on_from_a_checkpoint_to_the_same_bits(config, tmp_path: Path) -> None:
    recipe = ["experiment=cifar10_speedrun", *FEW, *SILENT, "model.compile=false", "data.val_size=20", "test=false"]
    recipe += ["trainer.max_epochs=3", "callbacks.lookahead.every=2", "callbacks.model_checkpoint.save_top_k=-1"]
    _, objects = train(config(*recipe))
    expected = {name: value.clone() for name, value in objects["model"].state_dict().items()}
    first = tmp_path / "run/checkpoints/epoch_000.ckpt"
    _, objects = train(config(*recipe, f"ckpt_path={first}", f"paths.output_dir={tmp_path}/other"))
    assert all(torch.equal(value, expected[name]) for name, value in objects["model"].state_dict().items())


def test_whitening_says_which_network_it_needs(config) -> None:
    with pytest.raises(ValueError, match="choose model=speedrun"):
        train(config("data.limit=120", "trainer=cpu", *SILENT, "callbacks=whitening"))


@pytest.mark.parametrize("name", ["cifar10_speedrun", "cifar10_cpu"])
def test_a_fast_recipe_trains_with_all_its_tricks(config, name: str) -> None:
    metrics, objects = train(config(f"experiment={name}", *FEW, *SILENT, "model.compile=false"))
    assert metrics["test/loss"] < 10
    assert isinstance(objects["trainer"].optimizers[0], Muon)


def test_the_fast_resnet_recipe_trains_with_all_its_tricks(config) -> None:
    few = [override for override in FEW if "widths" not in override]
    small = ["data.limit=40", "data.image_size=8", "trainer.max_epochs=1", "model.compile=false", "test=false"]
    metrics, _ = train(config("experiment=cifar10_resnet18_94", *few, *SILENT, *small))
    assert math.isfinite(metrics["train/loss"])


def test_kept_memory_changes_no_result(config) -> None:
    without = "callbacks.processor=null"
    runs = [train(config("model=speedrun", *FEW, *SILENT, *more, "test=false"))[0] for more in ([without], [])]
    assert runs[0]["val/loss"] == runs[1]["val/loss"]
