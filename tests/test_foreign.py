"""A LightningModule that knows nothing of this project, and nothing of accuracies: trained, killed, resumed, opened."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import torch
from lightning import LightningModule

from src.report import report
from src.runs.record import read_results
from src.runs.run import open_run
from tests.conftest import QUICK, run_well
from tests.warm import Command


class Score(LightningModule):
    """Learns the mean pixel; all that it logs is a score. It has no `forward`: Lightning asks for none."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.rate, self.guess = rate, torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        images, _ = batch
        error = (images - self.guess).square().mean()
        self.log("train/score", -error, on_step=False, on_epoch=True, batch_size=len(images))
        return error

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), self.rate)


DATA = [option for option in QUICK if not option.startswith("model.")]
MODEL = ["~model", "+model._target_=tests.test_foreign.Score", "optimized_metric=train/score", "trusted=[tests]"]
MODEL += ["scheduler=null"]  # which it does not take either


def test_it_goes_through_training_kill_resume_opening_and_report(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = ["-m", "src.train", *DATA, *MODEL, "data.limit=1000", "trainer.max_epochs=300", f"hydra.run.dir={folder}"]
    process = Command(*command, stdout=subprocess.PIPE)
    for line in process.stdout:
        if line.startswith("epoch   1 "):
            assert " train score -" in line
            process.send_signal(signal.SIGKILL)
    process.wait()
    assert not read_results(folder)

    output = run_well("-m", "src.train", f"resume={folder}", "trainer.max_epochs=4", "trusted=[tests]")
    assert "score" in output.partition("parameters, 4 epochs")[2]
    best = read_results(folder)["best"]
    assert (best["metric"], best["mode"]) == ("train/score", "max")

    run = open_run(folder, trusted=["tests"])
    assert list(run.metrics.index) == [0, 1, 2, 3]
    assert best["value"] == run.metrics["train/score"].max()
    assert isinstance(run.model, Score)
    assert run.model.guess != 0
    _, _, files = report([folder], tmp_path / "report")
    assert any("train/score" in path.read_text() for path in files if path.suffix == ".md")
