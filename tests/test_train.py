"""`train(cfg)`: what it returns, what it leaves in the run folder, and that it says the same twice."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import parse_experiment_plugin_data

from src.callbacks.throughput import Throughput
from src.data.base import ImageDataModule
from src.eval import evaluate
from src.figures import Figure
from src.networks.cost import describe
from src.runs.build import build_model
from src.runs.folder import CONF, LAST, RESULTS, events_folder
from src.runs.record import read_numbers, read_results
from src.runs.run import open_run, resumed_config
from src.train import train
from tests.conftest import DATASETS, FEW, QUICK, ROOT, SILENT, composed, needs_cifar10, slow_if_alike, train_here


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """One short training with everything on: (metrics, objects, run folder)."""
    return train_here(composed(*QUICK, folder=tmp_path_factory.mktemp("trained")))


def measured(objects: dict[str, Any]) -> Throughput:
    return next(callback for callback in objects["callbacks"] if isinstance(callback, Throughput))


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
    assert frame["lr-SGD"].notna().all()
    assert not list(folder.glob("**/*.partial"))


def test_the_utilisation_is_the_share_of_a_matrix_product_s_speed_that_the_multiply_adds_need(trained) -> None:
    _, objects, folder = trained
    throughput = measured(objects)
    multiply_adds = (
        4 * (27 * 30**2 + 36 * (28**2 + 12**2 + 10**2)) + 10 * 4 * 25
    )  # of TinyVGG, whose convolutions do not pad
    assert throughput.flops == throughput.images * 3 * 2 * multiply_adds
    results = json.loads((folder / "results.json").read_text())
    share = throughput.flops / throughput.images * results["images_per_s"] / (results["matmul_gflops"] * 1e9)
    assert results["utilisation"] == pytest.approx(share, rel=0.01, abs=1e-4)


def test_the_utilisation_counts_images_at_the_size_that_the_network_sees(tmp_path: Path) -> None:
    smaller = "{_target_: src.data.augment.ProgressiveResizing, size: 8, until: 1}"
    options = [*QUICK[:2], *QUICK[3:], *SILENT, "model=nin", "test=false", f"+data.augment.small={smaller}"]
    _, objects, _ = train_here(composed(*options, folder=tmp_path))
    costs = (describe(objects["model"].network, size, 3).multiply_adds for size in (8, 32))
    assert measured(objects).flops == 160 * 3 * 2 * sum(costs)


def test_the_machine_s_speed_is_the_better_of_two_measures(tmp_path: Path, monkeypatch) -> None:
    measures = [1e9, 3e9]  # the first while something else was running
    monkeypatch.setattr("src.callbacks.throughput.matmul_speed", lambda *_: measures.pop(0))
    _, objects, folder = train_here(composed(*QUICK, *SILENT, "test=false", folder=tmp_path))
    assert measured(objects).peak == 3e9
    assert json.loads((folder / "results.json").read_text())["matmul_gflops"] == 3.0


def test_a_training_whose_time_is_up_has_been_measured(config) -> None:
    limit = "+trainer.max_time={microseconds: 1}"
    metrics, objects = train(config(*QUICK, *SILENT, limit, "trainer.max_epochs=3", "test=false"))
    assert objects["trainer"].global_step == 1
    assert metrics["train/images_per_s"] > 0


def test_no_speed_is_measured_in_a_precision_that_is_emulated(config, monkeypatch) -> None:
    monkeypatch.setattr("src.callbacks.throughput.emulates", lambda *_: True)
    monkeypatch.setattr("src.callbacks.throughput.matmul_speed", lambda *_: pytest.fail("it may take a minute"))
    _, objects, folder = train_here(config(*QUICK, *SILENT, "test=false"))
    assert measured(objects).peak == 0
    results = json.loads((folder / "results.json").read_text())
    assert results["matmul_gflops"] is results["utilisation"] is None


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_network_may_be_kept_in_other_numbers_than_of_32_bits(config, precision: str) -> None:
    cfg = config(*QUICK, f"trainer.precision={precision}", "trainer.max_epochs=1")
    metrics, objects, folder = train_here(cfg)
    assert next(objects["model"].parameters()).dtype == {"b": torch.bfloat16, "6": torch.float64}[precision[0]]
    assert metrics["test/acc"] == pytest.approx(evaluate(config(f"run={folder}", name="eval"))[0]["test/acc"])
    assert measured(objects).flops > 0


def test_images_that_cannot_be_read_are_in_no_picture_of_the_validation(config, monkeypatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("src.figures.examples", lambda *shown: given.append(shown) or Figure(1, 1))
    examples = ImageDataModule.examples

    def one_is_broken(self: Any, split: str, chosen: int) -> Any:
        images, labels = examples(self, split, chosen)
        return images, labels.index_fill(0, torch.tensor([2]), -1) if split == "val" else labels

    monkeypatch.setattr(ImageDataModule, "examples", one_is_broken)
    train_here(config(*QUICK, "trainer.max_epochs=1", "callbacks.tensorboard_pictures.images=5"))
    (images, labels, probabilities, *_) = given[-1]
    assert len(images) == len(labels) == len(probabilities) == 4
    assert min(labels) >= 0


def test_the_pictures_of_the_validation_show_what_the_average_of_the_weights_says(config, monkeypatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("src.figures.examples", lambda *shown: given.append(shown) or Figure(1, 1))
    _, _, folder = train_here(config(*QUICK, "callbacks=ema", "callbacks.ema.decay=0.9999", "optimizer.lr=0.1"))
    run = open_run(folder / LAST)
    (images, _, probabilities, *_) = given[-1]
    said = run.network(run.preprocess(torch.from_numpy(images))).softmax(dim=1)
    assert probabilities == pytest.approx(said.detach().numpy(), abs=1e-6)


def test_the_clock_is_read_once_the_device_has_done_what_it_was_given(monkeypatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)

    class OnGPU(LightningModule):
        device = gpu = torch.device("cuda", 0)
        log = lambda *_: None  # noqa: E731

    datamodule = SimpleNamespace(batch_size=5)
    progress = SimpleNamespace(total=SimpleNamespace(ready=0))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
    trainer: Any = SimpleNamespace(fit_loop=loop, datamodule=datamodule, world_size=1)
    throughput = Throughput()
    hooks = ["train_epoch_start", "validation_start", "validation_end", "train_epoch_end"]
    for count, hook in enumerate(hooks, 1):
        getattr(throughput, f"on_{hook}")(trainer, OnGPU())
        assert waited == [OnGPU.gpu] * count


def test_the_checkpoint_opens_with_the_safe_loader_and_rebuilds_the_network(trained) -> None:
    metrics, objects, folder = trained
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["classes"] == [str(digit) for digit in range(10)]
    assert checkpoint["config"]["model"]["network"]["hidden_units"] == 4
    run = open_run(folder)
    data = objects["datamodule"]
    images, labels = data.examples("test", data.size("test"))
    with torch.no_grad():
        predicted = run.network(data.preprocess(images)).argmax(dim=1)
    assert (predicted == labels).float().mean().item() == pytest.approx(metrics["test/acc"])


def test_tensorboard_has_curves_pictures_the_graph_and_hyperparameters(trained) -> None:
    _, _, folder = trained
    tags = {"scalars": set(), "images": set(), "tensors": set(), "graph": False}
    compared = []
    place = events_folder(folder)
    for part in [place, *filter(Path.is_dir, place.iterdir())]:
        events = EventAccumulator(str(part)).Reload()
        tags["scalars"] |= set(events.Tags()["scalars"])
        tags["tensors"] |= set(events.Tags()["tensors"])
        tags["images"] |= {name.split("/image")[0] for name in events.Tags()["images"]}
        tags["graph"] |= events.Tags()["graph"]
        if "hp/test/acc" in events.Tags()["scalars"]:
            plugin = events.SummaryMetadata("_hparams_/experiment").plugin_data
            compared += [info.name.tag for info in parse_experiment_plugin_data(plugin.content).metric_infos]
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "lr-SGD", "train/images_per_s"} <= tags["scalars"]
    assert {"hp/val/acc", "hp/test/loss", "hp/test/acc"} <= set(compared)
    assert compared == sorted(compared, key=lambda tag: tag.startswith("hp/train/")), "five are shown at first"
    assert {"train/augmented", "val/predictions"} <= tags["images"]
    assert "custom_scalars__config__" in tags["tensors"]
    assert tags["graph"]
    assert (folder / "figures/curves.png").read_bytes()[:4] == b"\x89PNG"


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


def test_bfloat16_mixed_precision_gives_nearly_the_losses_of_32_bits(config) -> None:
    full, half = (train(config(*QUICK, *FEW, *SILENT, *more))[0] for more in ([], ["trainer.precision=bf16-mixed"]))
    assert 0 < abs(full["test/loss"] - half["test/loss"]) < 0.05


def test_overfitting_one_batch_takes_the_loss_to_nothing(config) -> None:
    metrics, _ = train(
        config(
            *SILENT,
            "debug=overfit",
            "trainer.max_epochs=40",
            "data.batch_size=16",
            "trainer=cpu",
            "optimizer=adamw",
            "optimizer.lr=3e-3",
        )
    )
    assert metrics["train/loss"] < 0.01


def test_a_loss_that_names_the_best_checkpoint_is_minimised(config) -> None:
    _, _, folder = train_here(config(*QUICK, *SILENT, "optimized_metric=val/loss", "trainer.max_epochs=3"))
    run = open_run(folder)
    assert run.results["best"]["value"] == pytest.approx(run.metrics["val/loss"].min())
    assert run.metrics["val/loss"].nunique() == 3
    assert run.config.callbacks.early_stopping.mode == run.config.optimized_mode == "min"


def test_the_best_of_several_checkpoints_is_known_before_the_run_has_ended(config) -> None:
    first = ["optimized_metric=train/loss", "optimized_mode=max"]
    options = [*first, "callbacks.model_checkpoint.save_top_k=-1", "trainer.max_epochs=4", "test=false"]
    _, _, folder = train_here(config(*QUICK, *SILENT, *options))
    best = folder / read_results(folder)["best"]["path"]
    assert best.name != "epoch_003.ckpt", "the latest"
    (folder / RESULTS).unlink()
    assert open_run(folder).checkpoint_path == best
    last = torch.load(folder / LAST, weights_only=True)
    torch.save({**last, "callbacks": [1]}, folder / LAST)  # as from somebody else
    assert open_run(folder).checkpoint_path.name == "epoch_003.ckpt"


@pytest.mark.parametrize("when", ["+trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=2"])
def test_a_metric_of_the_training_names_the_best_epoch_whenever_there_is_a_validation(when: str, config) -> None:
    options = ["optimized_metric=train/loss", "trainer.max_epochs=5", "optimizer.lr=0.3", "test=false", when]
    _, _, folder = train_here(config(*QUICK, *SILENT, *options))
    run = open_run(folder)
    losses = run.metrics["train/loss"]
    assert run.results["best"]["epoch"] == run.checkpoint["epoch"] == losses.idxmin()
    assert run.results["best"]["value"] == pytest.approx(losses.min())


SETS = sorted(
    {path.stem for path in (CONF / "callbacks").glob("*.yaml") if "- default" in path.read_text()} - {"samples"}
)


@pytest.mark.tried("numbers")
@pytest.mark.parametrize("name", ["default", *sorted(SETS)])
def test_training_tests_what_evaluation_finds_in_its_checkpoint(name: str, config, tmp_path: Path) -> None:
    options = [f"callbacks={name}", "trainer.max_epochs=4", "loss.label_smoothing=0.2", "optimizer.lr=0.02"]
    metrics, _, folder = train_here(config(*QUICK, *SILENT, *options))
    evaluated, _ = evaluate(config(f"run={folder}", name="eval"))
    for metric in ("test/loss", "test/acc", "test/acc_top5"):
        assert evaluated[metric] == pytest.approx(metrics[metric], abs=1e-6), metric


def test_the_average_is_what_is_validated_and_a_short_runs_does_not_hang_on_its_initial_weights(config) -> None:
    _, objects, folder = train_here(config(*QUICK, *SILENT, "callbacks=ema", "callbacks.ema.decay=0.9999"))
    last = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    averaged, current = (list(last[name].values()) for name in ("state_dict", "current_model_state"))
    assert not any(torch.equal(a, b) for a, b in zip(averaged, current, strict=True))
    start = list(build_model(objects["cfg"]).state_dict().values())  # other random numbers, but as far away
    moved = sum((a - b).norm() for a, b in zip(averaged, current, strict=True))
    assert moved < 0.2 * sum((a - b).norm() for a, b in zip(start, current, strict=True))
    model = objects["model"]
    model.load_state_dict(last["state_dict"])
    [again] = objects["trainer"].validate(model, objects["datamodule"], verbose=False)
    assert again["val/loss"] == pytest.approx(open_run(folder).metrics["val/loss"].iloc[-1], abs=1e-6)


WATCHING = ["tensorboard_pictures", "progress_bar", "throughput", "learning_rate_monitor", "model_summary", "processor"]
DYNAMICS = "+callbacks.dynamics={_target_: src.callbacks.dynamics.Dynamics, folder: '${paths.output_dir}'}"


@pytest.mark.tried("numbers")
def test_callbacks_that_watch_change_no_bit(config) -> None:
    frozen = ["model=resnet20_cifar", "callbacks=linear_probe", "model.network.depth=8", "optimizer.lr=0.02", DYNAMICS]
    few = ["data.limit=120", "data.batch_size=32", "trainer=cpu", "trainer.max_epochs=2", "trainer.precision=32-true"]
    weights = []
    for left_out in ([], [f"callbacks.{name}=null" for name in [*WATCHING, "dynamics"]]):
        metrics, objects = train(config(*frozen, *few, *left_out, "test=false"))
        weights.append([*objects["model"].state_dict().values(), torch.tensor(metrics["val/loss"])])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


class Breaks(Callback):
    """Fails when the test begins."""

    def on_test_start(self, trainer, pl_module) -> None:
        raise OSError("no space left")


def test_what_fails_after_the_training_does_not_lose_its_result(config, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no space left"):
        train(config(*QUICK, *SILENT, "+callbacks.breaks._target_=tests.test_train.Breaks"))
    results = read_results(tmp_path / "run")
    assert results["status"] == "trained"
    assert results["metrics"]["val/acc"] > 0
    assert read_numbers(tmp_path / "run") is None, "it has not come to its end"


def test_the_seconds_of_a_run_are_those_that_passed(config) -> None:
    start = time.perf_counter()
    _, _, folder = train_here(config(*QUICK, *SILENT, "trainer.max_epochs=30"))
    assert read_results(folder)["seconds"] <= time.perf_counter() - start


def test_the_precision_is_decided_once(config, monkeypatch) -> None:
    monkeypatch.setattr("src.callbacks.processor.fastest_precision", lambda: "bf16-mixed")
    few = [option for option in (*QUICK, *FEW) if "precision" not in option]
    _, objects, folder = train_here(config(*few, *SILENT, "test=false"))
    assert objects["trainer"].precision == "bf16-mixed"
    assert resumed_config(str(folder))["trainer"]["precision"] == "bf16-mixed"


def test_a_one_cycle_schedule_follows_the_new_length_of_a_resumed_run(config, tmp_path: Path, caplog) -> None:
    options = [*QUICK, *SILENT, "scheduler=onecycle", "optimizer=sgd", "test=false"]
    train(config(*options))
    last = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    _, objects = train(config(*options, last, "trainer.max_epochs=4", f"paths.output_dir={tmp_path}/more"))
    assert objects["trainer"].lr_scheduler_configs[0].scheduler.total_steps == 4 * 5
    assert objects["trainer"].global_step == 4 * 5
    assert "no step was left" not in caplog.text
    train(config(*options, last, f"paths.output_dir={tmp_path}/none"))
    assert "no step was left to train" in caplog.text
    best = read_results(tmp_path / "more")["best"]
    assert best is None or (tmp_path / "more" / best["path"]).is_file()


@pytest.mark.parametrize(("given", "mean"), [([], 0.5), (["data.mean=[0.4]", "data.std=[0.3]"], 0.4)])
def test_a_run_that_begins_from_a_checkpoint_normalises_as_that_did_unless_it_says_how(
    given: list[str], mean: float, config, tmp_path: Path
) -> None:
    options = [*QUICK, *SILENT, "test=false"]
    train(config(*options, "data.mean=half", "trainer.max_epochs=1"))
    last = f"ckpt_path={tmp_path}/run/checkpoints/last.ckpt"
    _, objects, folder = train_here(config(*options, last, f"paths.output_dir={tmp_path}/next", *given))
    assert objects["datamodule"].mean == open_run(folder).preprocess.spec["mean"] == [mean] * 3


def test_what_cannot_be_opened_later_is_said_before_the_training(config, caplog) -> None:
    breaks = "+callbacks.breaks._target_=tests.test_train.Breaks"
    train(config(*QUICK, *SILENT, breaks, "test=false"))
    assert "nothing will open or resume it" in caplog.text
    assert "tests is not among the packages trusted" in caplog.text
    caplog.clear()
    train(config(*QUICK, *SILENT, breaks, "test=false", "trusted=[tests]"))
    assert "nothing will open" not in caplog.text


@pytest.mark.slow
@needs_cifar10
def test_tinyvgg_learns_on_real_cifar10(config) -> None:
    overrides = [
        "data=cifar10",
        f"data.root={DATASETS}",
        "data.limit=2000",
        "trainer=cpu",
        "trainer.max_epochs=6",
        "optimizer=adamw",
        "optimizer.lr=3e-3",
    ]
    metrics, _ = train(config(*overrides, *SILENT))
    assert metrics["test/acc"] > 0.3  # chance is 0.1


@pytest.mark.parametrize("name", slow_if_alike(*sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml"))))
def test_every_model_file_goes_through_training_and_test(name: str, config) -> None:
    overrides = [f"model={name}", "trainer=cpu", "debug=fast_dev_run", "data.batch_size=4", "data.limit=40"]
    metrics, _ = train(config(*overrides, *SILENT))
    assert {"train/loss", "val/loss", "test/loss"} <= set(metrics)
