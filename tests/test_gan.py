"""The GAN: both networks learn as a hand-written loop has them, and its samples are measured as the papers say."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import scipy.linalg
import torch
from hydra.errors import InstantiationException
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torchmetrics.image.kid import poly_mmd

from src.evaluation.generative import frechet_distance, kernel_distance, penultimate, precision_and_recall
from src.export import export
from src.modules.gan import GAN, hinge_loss
from src.networks.sngan import SNGAN
from src.networks.tinyvgg import TinyVGG
from src.runs.build import build, build_model
from src.runs.folder import events_folder
from src.runs.record import read_results
from src.runs.run import open_run
from src.sample import sample
from tests.conftest import FEW, SILENT, composed, run_well, train_here
from tests.test_eval import evaluated

# 6 steps an epoch of 16 images, of which 4 are left out.
SMALL = [
    *("model=sngan", "data=digits", "model.network.width=2", "model.network.noise_size=8", "data.image_size=16"),
    *("data.limit=112", "data.batch_size=16", "trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2"),
]
QUIET = [*SMALL, *SILENT, "test=false"]


def gan(**options: Any) -> GAN:
    torch.manual_seed(0)
    adam = {part: lambda p: torch.optim.Adam(p, lr=2e-4, betas=(0, 0.9)) for part in ("generator", "discriminator")}
    return GAN(SNGAN(width=2, noise_size=8, image_size=16), adam, **options)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, float], dict[str, Any], Path]:
    """One short training with everything on: (metrics, objects, run folder)."""
    return train_here(composed(*SMALL, folder=tmp_path_factory.mktemp("gan")))


# The networks


@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_networks_fit_themselves_to_the_image_size(size: int) -> None:
    network = SNGAN(width=2, noise_size=8, num_classes=3, image_size=size, channels=1)
    images = network.generator(torch.randn(2, 8), torch.tensor([0, 2]))
    assert images.shape == (2, 1, size, size)
    assert images.abs().max() <= 1
    assert network.discriminator(images, torch.tensor([0, 2])).shape == (2,)
    assert network(images).shape == (4,)


def test_the_networks_are_those_of_the_paper() -> None:
    network = SNGAN(num_classes=1)
    sizes = [tuple(p.shape) for p in network.discriminator.features.parameters() if p.ndim == 4]
    paper = [(64, 3, 3, 3), (64, 64, 4, 4), (128, 64, 3, 3), (128, 128, 4, 4), (256, 128, 3, 3), (256, 256, 4, 4)]
    assert sizes == [*paper, (512, 256, 3, 3)]
    sizes = [tuple(p.shape) for p in network.generator.parameters() if p.ndim == 4]
    assert sizes == [(512, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (3, 64, 3, 3)]


@pytest.mark.parametrize("size", [8, 36])
def test_an_image_size_that_does_not_fit_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"image_size={size} does not fit.*multiple of 8"):
        SNGAN(image_size=size)


def test_every_weight_of_the_discriminator_has_the_spectral_norm_1() -> None:
    torch.manual_seed(0)
    network = SNGAN(width=4, image_size=16).discriminator
    for _ in range(300):  # an iteration of the power method each
        network(torch.zeros(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64))
    network.eval()
    layers = [layer for layer in network.modules() if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding))]
    norms = torch.stack([torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2) for layer in layers])
    torch.testing.assert_close(norms, torch.ones(9), atol=1e-2, rtol=0)


def test_the_class_says_what_is_drawn_and_how_it_is_judged() -> None:
    torch.manual_seed(0)
    network = gan().network
    tables = [network.generator.blocks[0].norm.shift, network.discriminator.projection]
    nn.init.normal_(tables[0].weight)
    noise, labels = torch.randn(1, 8).repeat(2, 1), torch.tensor([0, 1])
    first, second = network.generator.eval()(noise, labels)
    assert (first - second).norm() > 0.1 * first.norm()
    scores = network.discriminator.eval()(torch.stack([first, first]), labels)
    assert scores[0] != scores[1]


# The step


def test_the_hinge_loss_is_that_worked_out_by_hand() -> None:
    losses = hinge_loss(torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.25, 1.0]))
    torch.testing.assert_close(losses, torch.tensor([0.0, 0.5 + 1.25, 2.0 + 2.0]))


def plain_loop(cfg: Any, discriminator_steps: int) -> dict[str, list[torch.Tensor]]:
    """What the training that a careful person writes makes of the batches and the noise of a run's first epoch."""
    torch.manual_seed(0)
    data, network = build(cfg.data), build_model(cfg).network
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(0)
    batches = [data.augment(*batch, 0, number) for number, batch in enumerate(loader)]
    torch.manual_seed(random.Random("0 0 0").getrandbits(63))  # as RunRecord does
    generator, discriminator = network.generator, network.discriminator
    averaged = [value.clone() for value in floats(generator)]
    of_g, of_d = (torch.optim.Adam(n.parameters(), lr=2e-4, betas=(0.0, 0.9)) for n in (generator, discriminator))
    for number, (images, labels) in enumerate(batches):
        samples = generator(torch.randn(len(images), 8), labels)
        real, fake = discriminator(torch.cat([images, samples.detach()]), torch.cat([labels, labels])).chunk(2)
        loss = (1 - real).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
        of_d.zero_grad()
        loss.backward()
        of_d.step()
        if number % discriminator_steps == 0:
            loss = -discriminator(samples, labels).mean()
            of_g.zero_grad()
            loss.backward()
            of_g.step()
            kept = min(0.999, (1 + number) / (10 + number))
            for mean, value in zip(averaged, floats(generator), strict=True):
                mean.copy_(kept * mean + (1 - kept) * value)
    return {"generator": floats(generator), "discriminator": floats(discriminator), "averaged": averaged}


def floats(module: nn.Module) -> list[torch.Tensor]:
    return [value for value in module.state_dict().values() if value.is_floating_point()]


@pytest.mark.parametrize("discriminator_steps", [1, 2])
def test_an_epoch_gives_the_weights_of_a_hand_written_loop(config, discriminator_steps: int) -> None:
    options = ["scheduler=none", "trainer.max_epochs=1", f"model.discriminator_steps={discriminator_steps}"]
    _, objects, _ = train_here(config(*QUIET, *options))
    model = objects["model"]
    ours = {"generator": model.network.generator, "discriminator": model.network.discriminator}
    expected = plain_loop(config(*QUIET, *options), discriminator_steps)
    before = [value.clone() for value in floats(gan_of(config(*QUIET)).network.generator)]
    for name, part in {**ours, "averaged": model.averaged}.items():
        for value, other in zip(floats(part), expected[name], strict=True):
            torch.testing.assert_close(value, other, atol=2e-5, rtol=1e-4)
    assert max((a - b).abs().max() for a, b in zip(before, expected["generator"], strict=True)) > 1e-3
    steps = {name: optimizer.state_dict()["state"][0]["step"] for name, optimizer in optimizers(objects).items()}
    assert steps == {"generator": 6 / discriminator_steps, "discriminator": 6}


def gan_of(cfg: Any) -> Any:
    torch.manual_seed(0)
    return build_model(cfg)


def optimizers(objects: dict[str, Any]) -> dict[str, torch.optim.Optimizer]:
    return dict(zip(objects["model"].parts, objects["trainer"].optimizers, strict=True))


def test_each_loss_reaches_its_own_network_alone(config) -> None:
    cfg = config(*QUIET, "trainer.max_epochs=1", "trainer.limit_train_batches=1")
    module, updates = gan_of(cfg), []

    def update(optimizer: Any, loss: torch.Tensor) -> None:
        module.zero_grad()
        loss.backward()
        parts = (module.network.generator, module.network.discriminator)
        updates.append([{p.grad is not None for p in part.parameters()} for part in parts])

    module._update = update
    build(cfg.trainer, logger=False, enable_checkpointing=False).fit(module, build(cfg.data))
    assert updates == [[{False}, {True}], [{True}, {False}]]
    assert all(p.requires_grad for p in module.network.parameters())


def test_a_step_is_one_of_the_discriminator_wherever_steps_are_counted(config) -> None:
    options = ["trainer.max_steps=9", "trainer.max_epochs=20", "model.discriminator_steps=2"]
    _, objects, _ = train_here(config(*QUIET, "scheduler=triangle", *options))
    trainer = objects["trainer"]
    assert trainer.global_step == trainer.fit_loop.epoch_loop.batch_progress.total.completed == 9
    end = objects["cfg"].scheduler.factory.end * 2e-4
    for name, optimizer in optimizers(objects).items():
        assert optimizer.state_dict()["state"][0]["step"] == {"generator": 5, "discriminator": 9}[name]
        assert optimizer.param_groups[0]["lr"] == pytest.approx(end)


@pytest.mark.parametrize("scheduler", ["step", "plateau"])
def test_a_schedule_of_epochs_moves_both_rates(config, scheduler: str) -> None:
    options = {
        "step": ["scheduler.factory.step_size=1"],
        "plateau": ["scheduler.factory.patience=0", "+scheduler.factory.threshold=10", "optimized_metric=val/loss_d"],
    }
    _, objects, folder = train_here(config(*QUIET, f"scheduler={scheduler}", *options[scheduler]))
    for part, optimizer in optimizers(objects).items():
        assert optimizer.param_groups[0]["lr"] < 2e-4
        assert f"lr-{part}" in open_run(folder).metrics


def test_bfloat16_gives_nearly_the_losses_of_32_bits(config) -> None:
    full, half = (train_here(config(*QUIET, *FEW, *more))[0] for more in ([], ["trainer.precision=bf16-mixed"]))
    for name in ("train/loss_d", "train/loss_g", "val/loss_d", "val/loss_g"):
        assert half[name] == pytest.approx(full[name], abs=0.05)
    assert half != full


# The run


def test_both_losses_and_what_the_discriminator_tells_are_logged(trained) -> None:
    metrics, objects, folder = trained
    names = ("loss", "loss_d", "loss_g", "acc_real", "acc_fake")
    assert {f"{stage}/{name}" for stage in ("train", "val", "test") for name in names} <= set(metrics)
    assert metrics["train/loss"] == pytest.approx(metrics["train/loss_d"] + metrics["train/loss_g"], abs=1e-5)
    assert 0 <= metrics["val/acc_real"] <= 1
    results, network = read_results(folder), objects["model"].network
    assert results["parameters"] == sum(p.numel() for p in network.parameters()), "the average is no part of it"
    assert results["best"] is None
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["last.ckpt"]


def test_validation_measures_scores_as_worked_out_by_hand() -> None:
    module = gan()
    scores = torch.tensor([2.0, -0.5, 9.0, -2.0, 0.5, 9.0])  # images, then samples; the last of each is padding
    module.network.discriminator.forward = lambda images, labels: scores
    step = module.step((torch.zeros(3, 3, 16, 16), torch.tensor([1, 2, -1])), "val")
    assert int(step.items) == 2
    sums = {name: float(value) for name, value in step.sums.items()}
    assert sums == {"loss_d": 1.5 + 1.5, "loss_g": 2.0 - 0.5, "acc_real": 1.0, "acc_fake": 1.0}
    assert float(step.loss) == (3.0 + 1.5) / 2


def test_samples_of_the_same_noise_are_drawn_after_each_epoch(trained) -> None:
    _, objects, folder = trained
    sheets = sorted((folder / "figures").glob("samples_*"))
    assert [path.name for path in sheets] == ["samples_epoch_000.png", "samples_epoch_001.png"]
    drawn = np.asarray(Image.open(sheets[1]).convert("RGB"))
    assert drawn.shape == (10 * 16, 10 * 16, 3)
    images = objects["model"].sample(torch.arange(10).repeat_interleave(10))
    np.testing.assert_array_equal(drawn[16:32, 32:48].transpose(2, 0, 1), images[12])
    events = EventAccumulator(str(events_folder(folder))).Reload()
    assert len(events.Images("samples")) == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_train_one_pair_of_networks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_well("-m", "src.train", *QUIET, "trainer=ddp_cpu", "data.batch_size=8", f"hydra.run.dir={folder}")
    assert read_results(folder)["status"] == "done"


MISTAKES = {
    "data.mean=[0.5,0.5,0.4]": "data.mean=half data.std=half",
    "data.image_size=20": "multiple of 8",
    "model.optimizer=${optimizer}": "model.optimizer.generator",
    "+data.augment.mixup._target_=src.data.mixing.MixUp": "MixUp",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(config, override: str) -> None:
    with pytest.raises((ValueError, InstantiationException), match=MISTAKES[override]):
        train_here(config(*QUIET, override))


def test_a_classifier_has_no_samples_to_draw(config) -> None:
    with pytest.raises(ValueError, match="callbacks=samples is for a GAN: ImageClassifier"):
        train_here(config("data.limit=200", "trainer=cpu", "trainer.precision=32-true", "callbacks=samples"))


# Samples, export, evaluation


def test_samples_are_the_averaged_generators_and_depend_on_the_seed_alone() -> None:
    module = gan()
    nn.init.normal_(module.averaged.colour.weight)
    before, labels = torch.get_rng_state(), torch.tensor([0, 3, 3])
    images = module.sample(labels, batch_size=2)
    assert images.dtype == torch.uint8
    assert torch.equal(images, module.sample(labels, batch_size=2))
    assert not torch.equal(images, module.sample(labels, seed=1))
    assert torch.equal(before, torch.get_rng_state())
    noise = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    expected = (module.averaged(noise, labels) / 2 + 0.5) * 255
    torch.testing.assert_close(images.float(), expected.detach(), atol=0.502, rtol=0)


def test_a_run_gives_a_sheet_and_its_samples_as_files(trained, tmp_path: Path) -> None:
    sample(composed(f"run={trained[2]}", "classes=[3,8]", "count=4", name="sample", folder=tmp_path))
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == ["images", "sample_sheet.png", "samples.npz"]
    archive = np.load(tmp_path / "run/samples.npz")
    assert archive["labels"].tolist() == [3] * 4 + [8] * 4
    drawn = np.asarray(Image.open(tmp_path / "run/images/8/00001.png").convert("RGB"))
    np.testing.assert_array_equal(drawn.transpose(2, 0, 1), archive["images"][5])
    assert len(list((tmp_path / "run/images").rglob("*.png"))) == 8


def test_classes_whose_names_are_alike_as_folders_have_folders_of_their_own(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ["c/d", "c:d", *map(str, range(2, 10))]
    monkeypatch.setattr("src.runs.run.Run.classes", named)
    sample(composed(f"run={trained[2]}", "count=2", name="sample", folder=tmp_path))
    found = sorted(path.name for path in (tmp_path / "run/images").iterdir())
    assert found == sorted(["c_d (0)", "c_d (1)", *named[2:]])


def test_what_cannot_be_sampled_is_told(trained, trained_run: Path, tmp_path: Path) -> None:
    for given, message in {
        "classes=[cat]": "no cat; it knows 0, 1",
        "count=0": "count=0 must be a whole number from 1 to 1000000",
        "classes=[]": "must be a list of names or null",
        f"run={trained_run}": "no run of a GAN",
    }.items():
        with pytest.raises(ValueError, match=message):
            sample(composed(f"run={trained[2]}", given, name="sample", folder=tmp_path))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("form", [pytest.param("onnx", marks=pytest.mark.slow), "torch"])
def test_the_generator_is_exported(trained, form: str, tmp_path: Path) -> None:
    path = tmp_path / "generator"
    metrics, _ = export(composed(f"run={trained[2]}", f"format={form}", f"path={path}", name="export"))
    assert metrics["max_error"] <= 1
    noise, labels = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 7, 7])
    if form == "onnx":
        session = onnxruntime.InferenceSession(path)
        (images,) = session.run(["images"], {"noise": noise.numpy(), "labels": labels.numpy()})
    else:
        images = torch.export.load(path).module()(noise, labels).numpy()
    expected: Any = open_run(trained[2]).model
    assert images.dtype == np.uint8
    assert np.abs(images.astype(int) - expected.sample(labels).numpy()).max() <= 1


@pytest.mark.slow
def test_an_evaluation_compares_samples_with_real_images(trained, trained_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(trained[2], tmp_path / "gan")
    with pytest.raises(ValueError, match=r"has other data\.image_size than the GAN: 32 and 16"):
        evaluated(f"run={folder}", f"features={trained_run}")
    with pytest.raises(ValueError, match="a classifier's run judges the samples of a GAN's run"):
        evaluated(f"run={trained_run}", f"features={folder}")
    judge = tmp_path / "judge"
    few = [*SILENT, "data.limit=200", "trainer.max_epochs=1", "trainer=cpu", "trainer.precision=32-true", "test=false"]
    run_well("-m", "src.train", *few, "data.image_size=16", f"hydra.run.dir={judge}")
    metrics, _ = evaluated(f"run={folder}", f"features={judge}")
    names = ["frechet_distance", "kid", "precision", "recall", "frechet_distance_floor", "kid_floor", "cas"]
    assert {f"test/{name}" for name in names} < set(metrics)
    assert metrics["test/frechet_distance"] > metrics["test/frechet_distance_floor"] > 0
    assert 0 <= metrics["test/cas"] <= 1
    assert json.loads((folder / "evaluation.json").read_text())["metrics"] == metrics


@pytest.mark.slow
def test_grey_samples_are_judged_by_a_classifier_of_grey_images(tmp_path: Path) -> None:
    judge = ["data.image_size=16", "data.limit=200", "trainer.max_epochs=1", "trainer=cpu", "trainer.precision=32-true"]
    for name, options in {"gan": SMALL, "judge": judge}.items():
        given = [*options, *SILENT, "test=false", "data.channels=1", f"hydra.run.dir={tmp_path / name}"]
        run_well("-m", "src.train", *given)
    metrics, _ = evaluated(f"run={tmp_path / 'gan'}", f"features={tmp_path / 'judge'}")
    assert 0 <= metrics["test/cas"] <= 1


# The distances


def gaussian(rows: int, mean: torch.Tensor, root: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Rows whose own mean is `mean` and whose own covariance is `root @ root.T`."""
    drawn = torch.randn(rows, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    drawn = drawn - drawn.mean(dim=0)
    whitened = drawn @ torch.linalg.inv(torch.linalg.cholesky(drawn.T.cov())).T
    return whitened @ root.T + mean


def test_the_frechet_distance_of_gaussians_is_the_closed_form() -> None:
    deviations = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([3.0, 1.0, 0.5])
    first = gaussian(50, torch.zeros(3), torch.diag(deviations[0]).double())
    second = gaussian(70, torch.tensor([1.0, 0.0, -2.0]), torch.diag(deviations[1]).double(), seed=1)
    expected = 5 + float((deviations[0] - deviations[1]).square().sum())
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(first, first.flip(0)) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_is_that_of_scipys_matrix_root_with_fewer_rows_than_features_too() -> None:
    generator = torch.Generator().manual_seed(0)
    for rows in (40, 6):
        first, second = (torch.randn(rows, 12, generator=generator) * scale for scale in (1.0, 2.0))
        one, other = (np.cov(features.double().numpy(), rowvar=False) for features in (first, second))
        root = scipy.linalg.sqrtm((one + 1e-13 * np.eye(12)) @ (other + 1e-13 * np.eye(12))).real
        means = (first.double().mean(0) - second.double().mean(0)).square().sum()
        expected = float(means) + np.trace(one + other - 2 * root)
        assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_the_kernel_distance_is_torchmetrics_and_about_zero_within_one_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 8, generator=generator).double() * scale for scale in (1.0, 2.0))
    assert kernel_distance(first, second) == pytest.approx(float(poly_mmd(first, second)))
    same = [torch.randn(2500, 8, generator=generator) for _ in range(2)]
    assert abs(kernel_distance(*same)) < 0.02


def test_precision_and_recall_count_who_is_within_a_members_reach() -> None:
    real = torch.arange(10.0).view(10, 1)  # each reaches as far as its second neighbour: 1, at the ends 2
    assert precision_and_recall(real, real, neighbours=2) == (1, 1)
    assert precision_and_recall(real, real + 100, neighbours=2) == (0, 0)
    fake = torch.tensor([[4.0], [5.0], [6.0], [20.0]])  # they reach 2, 1, 2 and 15
    assert precision_and_recall(real, fake, neighbours=2) == (0.75, pytest.approx(0.8))


def test_the_features_are_what_the_last_layer_sees() -> None:
    network = TinyVGG(hidden_units=4, num_classes=5, image_size=32).eval()
    images = torch.randn(5, 3, 32, 32)
    features = penultimate(network, images.split(2))
    with torch.no_grad():
        torch.testing.assert_close(network.classifier(features), network(images))
