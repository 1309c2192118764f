"""What an evaluation looks into: one file a study, which adds to what is written of the evaluation.

A study is built before the test, where it may refuse, and called after it, on every process.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src.runs.run import Run

EXTRAS = {"cam": "pytorch_grad_cam", "audit": "cleanlab"}  # what the extra of an option's name brings


@dataclass
class Evaluation:
    """The test of a run on one split, and what is to be written of it.

    Attributes:
        cfg: of the command.
        run: its `config` has the data and the trainer as they were used.
        datamodule, trainer: which tested the run's model.
        title: network, data set and split, for figures.
        metrics: numbers by name, without the split's.
        tables: data frames by the name of their file, NAME.csv.
        figures: by the name of their file, figures/NAME.png.
        pages: HTML by the name of their file, NAME.html.
        files: what a study has written itself.
    """

    cfg: DictConfig
    run: Run
    datamodule: Any
    trainer: Any
    title: str
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    pages: dict[str, str] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)


def asked_for(run: Run, cfg: DictConfig) -> list[Callable[[Evaluation], None]]:
    """The studies that the config asks for, in order; all but that of a GAN's samples are of a classifier.

    Raises:
        ModuleNotFoundError: an extra is missing.
        ValueError, RunError: one of them cannot be made of this run.
    """
    from src.modules.classifier import ImageClassifier
    from src.studies.audit import Audit
    from src.studies.calibration import Calibration
    from src.studies.corruptions import Corruptions
    from src.studies.generative import Samples
    from src.studies.looks import Looks

    if cfg.samples is not None and cfg.features is None:
        raise ValueError(f"samples={cfg.samples}: a GAN draws them to be judged by a classifier's run, features=RUN.")
    studies: dict[str, Any] = {"calibrate": Calibration, "corruptions": Corruptions, "cam": Looks, "audit": Audit}
    studies["features"] = Samples
    asked = [option for option in studies if cfg[option]]
    for option in asked:
        if option in EXTRAS and find_spec(EXTRAS[option]) is None:
            raise ModuleNotFoundError(f"{option} needs {EXTRAS[option]}: pip install -e '.[{option}]'")
        if option != "features" and not isinstance(run.model, ImageClassifier):
            raise ValueError(f"{option} is for a classifier to one label an image, not for {type(run.model).__name__}.")
    return [studies[option](run, cfg) for option in asked]
