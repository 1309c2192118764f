"""What a training shows in a terminal: the table of layers before it, a line for each epoch."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.callbacks.progress import described
from src.callbacks.summary import Summary
from src.runs.build import build_model, compose
from src.runs.told import print_results, too_late, unheeded
from tests.conftest import composed


def test_it_fits_eighty_columns_and_its_sums_are_those_of_the_network(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    model = build_model(composed("model=googlenet", "data=digits"))
    for parameter in model.network.fc.parameters():
        parameter.requires_grad_(False)
    model.example_input_array = torch.zeros(1, 3, 32, 32)
    trainer = SimpleNamespace(is_global_zero=True, strategy=None)
    Summary(max_depth=2).on_fit_start(trainer, model)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("loss_function" in line for line in lines), "it has no parameters"
    parameters = list(model.parameters())
    count, trained = (sum(p.numel() for p in parameters if p.requires_grad or all_) for all_ in (True, False))
    assert lines[-1].startswith(f"{count:,} parameters, {trained:,} of them trained; ")


METRICS = {
    "train/loss": 2.2758, "train/acc": 0.1422, "val/loss": 2.0007, "val/acc": 0.2639, "val/acc_top5": 0.8889,
    "train/images_per_s": 1189.3, "lr-SGD": 0.1,
}  # fmt: skip


def test_an_epoch_is_a_line_or_where_that_is_wider_than_the_terminal_two() -> None:
    train, val, speed = (
        "train loss 2.2758 acc 14.22 %", "val loss 2.0007 acc 26.39 % acc_top5 88.89 %", "1,189 images/s  7.2 s",
    )  # fmt: skip
    whole = f"epoch   3  {train}  {val}  {speed}"
    assert described(3, 7.21, METRICS, float("inf")) == described(3, 7.21, METRICS, len(whole)) == whole
    assert described(3, 7.21, METRICS, 80).splitlines() == [f"epoch   3  {train}  {speed}", f"           {val}"]


def test_the_table_at_the_end_has_the_metrics_in_the_order_in_which_they_were_logged(capsys, tmp_path: Path) -> None:
    metrics = {"val/loss": 0.5, "val/acc": 0.75, "train/images_per_s": 1234.0, "train/loss": 0.25, "lr-SGD": 0.1}
    results = {"metrics": metrics, "epochs": 1, "seconds": 2.0, "parameters": 3, "utilisation": None, "best": None}
    print_results(results, tmp_path)
    rows = [line.strip("│ ").split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["loss", "0.2500", "0.5000"], ["acc", "", "75.00 %"], ["images_per_s", "1,234"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "idle"),
    [
        (["model=vgg11", "loss=focal", "optimizer.lr=0.1", "+metrics.f1._target_=torchmetrics.F1Score"], []),
        (["model=sngan", "scheduler=none", "seed=1"], []),
        (["model=sngan", *(words := ["loss=focal", "metrics=macro", "optimizer.lr=0.1"])], words),
    ],
)  # fmt: skip
def test_what_a_model_does_not_take_is_told(given: list[str], idle: list[str], monkeypatch) -> None:
    command = SimpleNamespace(overrides=SimpleNamespace(task=given))
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.initialized", lambda: True)
    monkeypatch.setattr("hydra.core.hydra_config.HydraConfig.get", lambda: command)
    assert unheeded(compose("train", [*given, "paths.output_dir=run"])) == idle


@pytest.mark.parametrize(
    ("given", "first"),
    [(["scheduler=multistep"], 60), (["scheduler=multistep", "trainer.max_epochs=61"], None),
     (["scheduler=step"], None), (["scheduler=step", "trainer.max_epochs=10"], 10),
     (["scheduler=step", "trainer.max_epochs=-1", "trainer.max_steps=5"], None), (["scheduler=cosine"], None),
     (["scheduler=[]"], None)],
)  # fmt: skip
def test_a_schedule_that_would_begin_after_the_end_is_told_of(given: list[str], first: int | None) -> None:
    told = too_late(compose("train", given))
    assert f"change after {first} epochs" in told if first else told == ""
