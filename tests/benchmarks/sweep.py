"""What a sweep adds to its jobs, and what pruning saves."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from src.runs.record import read_metrics
from tests.benchmarks.table import Row, Setting
from tests.conftest import run_well
from tests.test_launcher import Standin

JOBS = 10
SEARCH = [
    "-m", "src.train", "-m", "hydra/sweeper/sampler=random", "data=digits", "trainer=cpu", "hydra.sweeper.n_trials=20",
    "trainer.max_epochs=12", "model.network.hidden_units=8", "test=false",
    "optimizer.lr=tag(log,interval(1e-4,1e-1))", "optimizer.weight_decay=tag(log,interval(1e-4,1))",
    "callbacks.model_summary=null", "callbacks.tensorboard_pictures=null", "hydra.launcher.n_jobs=2",
]  # fmt: skip


def sweep_rows(setting: Setting) -> list[Row]:
    """Seconds a job of a sweep with n_jobs=1 beyond the same commands one after another; its start is shared out."""

    def alone() -> float:
        standin = Standin(Path(tempfile.mkdtemp(prefix="bench")))
        start = time.perf_counter()
        for seed in range(JOBS):
            folder = standin.folder / str(seed)
            folder.mkdir()
            command = [sys.executable, "-m", "standin", f"seed={seed}", f"hydra.run.dir={folder}"]
            subprocess.run(command, cwd=standin.folder, check=True, capture_output=True)
        return time.perf_counter() - start

    def swept() -> float:
        standin = Standin(Path(tempfile.mkdtemp(prefix="bench")))
        start = time.perf_counter()
        code, output = standin.sweep(f"seed=range({JOBS})")
        assert code == 0, output
        return time.perf_counter() - start

    pairs = [(swept(), alone()) for _ in range(setting.repeats)]
    added = median(a - b for a, b in pairs) / JOBS
    detail = f"{JOBS} jobs, start and summary included"
    return [Row("sweep with n_jobs=1: added to each job", added, "s", at_most=0.3, detail=detail)]


def search_rows(setting: Setting, seeds: int = 3) -> list[Row]:
    """Epochs of a search that prunes by the median as a share of one that does not, and how near its best comes."""
    shares, gaps = [], []
    for seed in range(seeds):
        epochs, best = zip(*(_search(seed, pruner) for pruner in ("median", "none")), strict=True)
        shares.append(epochs[0] / epochs[1])
        gaps.append(best[1] - best[0])
    detail = ", ".join(f"{share:.2f}" for share in shares)
    return [
        Row("search: epochs, pruned / not", max(shares), "", at_most=0.6, detail=f"by seed {detail}"),
        Row("search: best val/acc lost", max(gaps), "", at_most=0.0, detail="by the worst of the seeds"),
    ]


def _search(seed: int, pruner: str) -> tuple[int, float]:
    """Epochs that the jobs ran, and the best value."""
    logs = Path(tempfile.mkdtemp(prefix="bench"))
    own = [f"hydra.sweeper.seed={seed}", f"hydra/sweeper/pruner={pruner}", f"paths.log_dir={logs}"]
    run_well(*SEARCH, *own, timeout=1800)
    (path,) = logs.glob("train/multiruns/*/study.json")
    study = json.loads(path.read_text())
    epochs = sum(len(read_metrics(metrics.parent.parent)) for metrics in path.parent.glob("*/csv/metrics.csv"))
    return epochs, max(trial["values"][0] for trial in study["trials"] if trial["state"] == "complete")
