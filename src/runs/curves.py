"""The curves of a run as a table, `csv/metrics.csv`, whole at any moment for whoever reads it."""

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import loggers
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment

from src.runs.folder import whole


class CSVLogger(loggers.CSVLogger):
    """Lightning's, but for a file that a kill or a reader in the midst of a new column finds as it was before.

    Lightning's empties the file to write its rows under a new header, and deletes that of an earlier training at once.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = Writer(self.log_dir)
        return self._experiment


class Writer(ExperimentWriter):
    """Takes the place of an earlier training's file with its first rows."""

    columns: list[str] | None = None  # of the file, once it is this training's

    def _check_log_dir_exists(self) -> None:
        pass

    def save(self) -> None:
        path = Path(self.metrics_file_path)
        self._record_new_keys()
        if self.metrics and self.columns != self.metrics_keys:
            rows: list[dict[str, Any]] = []
            if self.columns is not None:
                with path.open(newline="") as file:
                    rows = list(csv.DictReader(file))
            with whole(path) as partial, partial.open("w", newline="") as file:
                table = csv.DictWriter(file, self.metrics_keys)
                table.writeheader()
                table.writerows([*rows, *self.metrics])
            self.columns, self.metrics = list(self.metrics_keys), []
        super().save()  # appends what is left
