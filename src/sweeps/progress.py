"""What a run folder tells from outside: the epochs of a job that runs, its results, why it ended."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

LOG = "output.log"
MEMORY = ("outofmemory", "out of memory", "memoryerror", "allocate memory", "bad_alloc")


class MetricsFile:
    """Follows csv/metrics.csv of a run folder, which need not exist yet, and in it one column."""

    def __init__(self, folder: Path, metric: str | None) -> None:
        self.path = folder / "csv" / "metrics.csv"
        self.metric = metric
        self._seen = -1  # the last epoch given
        self._stamp = (0, 0)

    def new(self) -> list[tuple[int, float]]:
        """(epoch, value) of the epochs that were written since the last call, in order."""
        if self.metric is None or not self.path.is_file():
            return []
        status = self.path.stat()
        stamp = (status.st_mtime_ns, status.st_size)
        if stamp == self._stamp:
            return []
        self._stamp = stamp
        text = self.path.read_text()
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())  # the last line may be half written
        found = {
            int(row["epoch"]): float(row[self.metric]) for row in rows if row.get("epoch") and row.get(self.metric)
        }
        fresh = [(epoch, found[epoch]) for epoch in sorted(found) if epoch > self._seen]
        self._seen = max(found, default=self._seen)
        return fresh


def read_numbers(folder: Path) -> dict[str, float] | None:
    """All numbers of a run that came to its end, by name; None for any other run.

    A metric by which the best checkpoint was chosen counts as it was there, any other one as it was at the end;
    `parameters`, `seconds`, `images_per_s` and `epochs` stand beside the metrics.
    """
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if results.get("status") != "done":
        return None
    numbers = {name: results.get(name) for name in ("parameters", "seconds", "images_per_s", "epochs")}
    numbers |= results["metrics"]
    if best := results.get("best"):
        numbers[best["metric"]] = best["value"]
    return {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}


def why(code: int, log: Path) -> tuple[str, str]:
    """Status and one-line reason of a job that failed with this exit code (minus the signal that killed it)."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    tail = [line for line in lines if line and "HYDRA_FULL_ERROR" not in line][-5:] or [f"exit code {code}"]
    if any(word in line.lower() for word in MEMORY for line in tail):
        return "out of memory", tail[-1]
    number = -code if code < 0 else code - 128  # a process that handles signal n leaves with 128 + n
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return "killed", f"by {name}" + (", often sent when the machine's memory runs out" if name == "SIGKILL" else "")
    return "failed", tail[-1]
