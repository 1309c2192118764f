"""One temperature for a classifier, fitted on the run's own validation images."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from src import figures
from src.callbacks.progress import ProgressBar
from src.evaluation.calibration import fit_temperature
from src.evaluation.metrics import measure
from src.runs.build import SPLITTING, build
from src.runs.folder import CALIBRATION, write_json
from src.runs.run import Run
from src.studies import Evaluation
from src.studies.classifier import Predictions

MEASURES = ("nll", "brier", "ece")
log = logging.getLogger(__name__)


class Calibration:
    """Writes calibration.json, and adds the temperature, and nll, brier, ece and the reliability diagram with it.

    The test images, or those of another data set, take no part in the fit: they show what it is worth. The predictions,
    and all other measures, stay those of the network as it is.
    """

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        saved: Any = OmegaConf.to_container(run.config.data)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        given = plain.get("data") or saved
        own = saved if given.get("mean") is None else given  # another data set's mean is not known
        self.datamodule = build({**own, **{key: saved[key] for key in SPLITTING["val"] if key in saved}})
        self.datamodule.prepare_data()
        self.datamodule.setup("validate")
        if not self.datamodule.size("val"):
            why = "it trained on all (data.val_size=0), and a temperature is never fitted on what it is tested on"
            raise ValueError(f"calibrate=true: {run.folder} has no validation images: {why}.")
        self.datamodule.eval_split = "val"

    def __call__(self, evaluation: Evaluation) -> None:
        run, held = evaluation.run, Predictions(evaluation.run.classes, "none")
        trainer = build(run.config.trainer, callbacks=[ProgressBar(), held], logger=False, enable_checkpointing=False)
        trainer.test(run.model, self.datamodule, verbose=False)
        temperature = fit_temperature(held.logs, held.labels)
        if temperature is None:
            why = f"the {len(held.labels)} validation images are all right, or all chance"
            log.warning("no temperature was fitted: %s", why)
            return
        evaluated = next(each for each in evaluation.trainer.callbacks if isinstance(each, Predictions))
        logs = scaled(evaluated.logs, temperature)
        after = measure(logs, evaluated.labels, run.classes)[0]
        evaluation.metrics["temperature"] = temperature
        evaluation.metrics |= {f"{name}_calibrated": after[name] for name in MEASURES}
        if not evaluation.trainer.is_global_zero:
            return
        confidence, guess = logs.exp().max(dim=1)
        title = f"{evaluation.title.partition(', tta=')[0]}, temperature {temperature:.3f}"
        figure = figures.reliability(confidence, guess == evaluated.labels, title=title)
        evaluation.figures["reliability_calibrated"] = figure
        record = {**run.origin, "temperature": temperature, "split": "val", "images": len(held.labels)}
        for name, value in (("before", 1.0), ("after", temperature)):
            measured = measure(scaled(held.logs, value), held.labels, run.classes)[0]
            record[name] = {each: measured[each] for each in MEASURES}
        evaluation.files.append(Path(evaluation.cfg.paths.output_dir or run.folder) / CALIBRATION)
        write_json(evaluation.files[-1], record)


def scaled(log_probabilities: Tensor, temperature: float) -> Tensor:
    """The log-probabilities (N, K) of logits divided by a temperature, in double precision."""
    return torch.log_softmax(log_probabilities.double() / temperature, dim=1)
