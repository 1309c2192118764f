"""`train(cfg)`: what it returns, what it leaves in the run folder, and that it says the same twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.run import open_run
from src.train import train
from tests.conftest import DATASETS, QUICK, ROOT, SILENT, needs_cifar10


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """One short training with everything on: (metrics, objects, run folder)."""
    from hydra import compose, initialize_config_dir

    from tests.conftest import ROOT

    folder = tmp_path_factory.mktemp("trained") / "run"
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*QUICK, f"paths.output_dir={folder}"])
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(cfg, folder / ".hydra/config.yaml")
    metrics, objects = train(cfg)
    return metrics, objects, folder


def test_it_returns_flat_floats_and_the_objects(trained) -> None:
    metrics, objects, _ = trained
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/acc_top5", "test/loss", "test/acc"} <= set(metrics)
    assert all(isinstance(value, float) for value in metrics.values())
    assert set(objects) == {"cfg", "datamodule", "model", "callbacks", "logger", "trainer"}


def test_the_run_folder_is_complete(trained) -> None:
    metrics, _, folder = trained
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"] == pytest.approx(metrics)
    assert results["status"] == "done"
    assert results["epochs"] == 2
    assert results["parameters"] == 4 * 27 + 4 + 3 * (4 * 36 + 4) + 10 * (4 * 25 + 1)
    assert (folder / results["best"]["path"]).is_file()
    assert {"torch", "lightning", "python"} <= set(results["versions"])
    frame = open_run(folder).metrics
    assert list(frame.index) == [0, 1]
    assert frame["train/images_per_s"].min() > 0
    assert frame["lr-AdamW"].notna().all()
    assert not list(folder.glob("**/*.partial"))


def test_the_checkpoint_opens_with_the_safe_loader_and_rebuilds_the_network(trained) -> None:
    metrics, objects, folder = trained
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["classes"] == [str(digit) for digit in range(10)]
    assert checkpoint["config"]["model"]["network"]["hidden_units"] == 4
    run = open_run(folder)
    data = objects["datamodule"]
    with torch.no_grad():
        predicted = run.network(data.preprocess(data.test_set.images)).argmax(dim=1)
    assert (predicted == data.test_set.labels).float().mean().item() == pytest.approx(metrics["test/acc"])


def test_tensorboard_has_curves_pictures_the_graph_and_hyperparameters(trained) -> None:
    _, _, folder = trained
    tags = {"scalars": set(), "images": set(), "graph": False}
    for part in [folder / "tensorboard", *(folder / "tensorboard").glob("*/")]:
        events = EventAccumulator(str(part)).Reload()
        tags["scalars"] |= set(events.Tags()["scalars"])
        tags["images"] |= {name.split("/image")[0] for name in events.Tags()["images"]}
        tags["graph"] |= events.Tags()["graph"]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr-AdamW", "train/images_per_s"} <= tags["scalars"]
    assert "hp/test/acc" in tags["scalars"]
    assert {"train/augmented", "val/predictions"} <= tags["images"]
    assert tags["graph"]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(config) -> None:
    def weights(seed: int) -> list[torch.Tensor]:
        _, objects = train(config(*QUICK, *SILENT, f"seed={seed}", "test=false"))
        return list(objects["model"].state_dict().values())

    first, second, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_without_a_validation_set_the_last_epoch_is_tested(config, tmp_path: Path) -> None:
    metrics, _ = train(config(*QUICK, *SILENT, "data.val_size=0"))
    assert "val/acc" not in metrics
    assert "test/acc" in metrics
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["last.ckpt"]


class Counter(Callback):
    """Counts the calls of the one hook of a step that it has."""

    count = 0

    def on_train_batch_end(self, *arguments: object) -> None:
        self.count += 1


def test_a_callback_is_called_in_each_step_at_the_hooks_that_it_has(config) -> None:
    _, objects = train(config(*QUICK, *SILENT, "+callbacks.counter._target_=tests.test_train.Counter"))
    counter = next(callback for callback in objects["callbacks"] if isinstance(callback, Counter))
    assert counter.count == objects["trainer"].global_step == 2 * 5
    assert counter.on_before_backward is None, "Lightning passes over a hook that is left empty"


def test_bfloat16_mixed_precision_works_on_the_cpu(config) -> None:
    metrics, _ = train(config(*QUICK, *SILENT, "trainer.precision=bf16-mixed"))
    assert metrics["test/loss"] < 10


def test_overfitting_one_batch_takes_the_loss_to_nothing(config) -> None:
    metrics, _ = train(
        config(
            *SILENT, "debug=overfit", "trainer.max_epochs=40", "data.batch_size=16", "trainer=cpu", "optimizer.lr=3e-3"
        )
    )
    assert metrics["train/loss"] < 0.01


def test_a_moving_average_of_the_weights_can_be_kept(config) -> None:
    metrics, _ = train(config(*QUICK, *SILENT, "callbacks=ema"))
    assert metrics["test/loss"] < 10


@needs_cifar10
def test_tinyvgg_learns_on_real_cifar10(config) -> None:
    overrides = [
        "data=cifar10",
        f"data.root={DATASETS}",
        "data.limit=2000",
        "trainer=cpu",
        "trainer.max_epochs=3",
        "optimizer.lr=3e-3",
    ]
    metrics, _ = train(config(*overrides, *SILENT))
    assert metrics["test/acc"] > 0.3  # chance is 0.1


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml")))
def test_every_model_file_goes_through_training_and_test(name: str, config) -> None:
    overrides = [f"model={name}", "trainer=cpu", "debug=fast_dev_run", "data.batch_size=4", "data.limit=40"]
    metrics, _ = train(config(*overrides, *SILENT))
    assert {"train/loss", "val/loss", "test/loss"} <= set(metrics)
