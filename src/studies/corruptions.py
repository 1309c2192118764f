"""How a classifier does on corrupted images: a test of the module for each corruption and severity."""

import logging
import sys
from itertools import product
from typing import Any

import pandas as pd
from omegaconf import DictConfig
from rich import print as rich_print
from rich.progress import track

from src import figures
from src.callbacks.processor import Processor
from src.evaluation.corruptions import ALL, GROUPS, Corruption, chosen
from src.runs.build import build
from src.runs.run import Run
from src.runs.table import rich_table, shown
from src.studies import Evaluation

log = logging.getLogger(__name__)
SEVERITIES = [1, 2, 3, 4, 5]


class Corruptions:
    """Adds a table and a figure of the accuracies, and the mean over what each word of the option means.

    That of all is `corruption_acc`, that of a group or a single one `<its name>_acc`: without test-time augmentation.
    """

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        self.chosen = chosen(cfg.corruptions)

    def __call__(self, evaluation: Evaluation) -> None:
        run, main = evaluation.run, evaluation.trainer.is_global_zero
        data: Any = evaluation.datamodule
        place = evaluation.cfg.seed, evaluation.trainer.global_rank, evaluation.trainer.world_size
        trainer = build(run.config.trainer, callbacks=[Processor()], logger=False, enable_checkpointing=False)
        names = list(dict.fromkeys(name for names in self.chosen.values() for name in names))
        frame = pd.DataFrame(index=pd.Index(names, name="corruption"))
        for name, severity in track([*product(names, SEVERITIES)], "corruptions", transient=True, disable=not main):
            data.corrupts = Corruption(name, severity, *place)
            (means,) = trainer.test(run.model, datamodule=data, verbose=False)
            frame.loc[name, severity] = means["test/acc"]
            if main and severity == SEVERITIES[-1] and not sys.stdout.isatty():  # where no bar moves
                log.info("%s: %s", name, shown("acc", frame.loc[name].to_numpy().mean()))
        data.corrupts = None
        frame["mean"] = frame[SEVERITIES].mean(axis=1)
        for word, its in self.chosen.items():
            evaluation.metrics[f"{'corruption' if word == 'all' else word}_acc"] = frame.loc[its, "mean"].mean()
        evaluation.tables["corruptions"] = frame.reset_index().rename(columns=str)
        if not main:
            return
        rows = {group: frame.loc[frame.index.isin(names), SEVERITIES] for group, names in GROUPS.items()}
        panels = {group: dict(part.iterrows()) for group, part in rows.items() if len(part)}
        title = f"{evaluation.title}, corruptions regenerated after Hendrycks and Dietterich (2019)"
        evaluation.figures["corruptions"] = figures.corruption_curves(panels, evaluation.metrics["acc"], title)
        percent = (100 * frame).round(2).astype(str).reset_index()
        held = f"; all are {len(ALL)} of their 15, without frost" if "all" in self.chosen else ""
        source = f"regenerated after Hendrycks and Dietterich (2019){held}"
        rich_print(rich_table(percent, "accuracy in % by severity", source))
