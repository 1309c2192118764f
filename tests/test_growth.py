"""Nothing grows with the epochs: neither the memory of a training, nor its open files, nor those of its workers."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning import Callback
from PIL import Image
from torch.utils.data import Dataset

from tests.conftest import QUICK, SILENT, run_well

MEGABYTE = 2**20


class Squares(Dataset):
    """Images that are made when they are read."""

    def __len__(self) -> int:
        return 600

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.random.default_rng(index).integers(0, 256, (32, 32, 3), dtype=np.uint8), index % 10


class Watch(Callback):
    """Writes, at the end of every epoch, the memory in bytes, the most that a worker had, open files and threads."""

    def __init__(self, path: str) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen = [
            pages * os.sysconf("SC_PAGE_SIZE"),
            1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
            len(os.listdir("/proc/self/fd")),
            len(os.listdir("/proc/self/task")),
        ]
        with open(self.path, "a") as file:
            file.write(json.dumps(seen) + "\n")


def seen_by_watch(path: Path) -> np.ndarray:
    """What a `Watch` wrote: a row for each of its numbers, a column for each epoch."""
    return np.array([json.loads(line) for line in path.read_text().splitlines()]).T


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("data", ["digits", "dataset", "folder", "shards"])
def test_memory_and_open_files_are_flat_over_thirty_epochs(tmp_path: Path, data: str) -> None:
    more = [] if data == "digits" else ["data.num_workers=2"]
    if data == "dataset":
        more += ["data.mode=stream", "data.source._target_=tests.test_growth.Squares"]
    if data == "folder":
        squares = Squares()
        for number in range(len(squares)):
            pixels, label = squares[number]
            (tmp_path / f"images/{label}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f"images/{label}/{number}.png")
        more += ["data.mode=stream", f"data.root={tmp_path}/images", f"data.cache_dir={tmp_path}/cache"]
        more += ["data.image_size=32"]
    if data == "shards":
        pytest.importorskip("litdata", reason="litdata is an optional extra: pip install -e .[shards]")
        run_well("-m", "src.shards", "data=digits", f"out={tmp_path}/shards")
        # as if it were a storage, so that files are fetched, kept and let go
        more += [f"data.root=local:{tmp_path}/shards", f"data.cache_dir={tmp_path}/cache", "data.image_size=32"]
    watch = ["+callbacks.watch._target_=tests.test_growth.Watch", f"+callbacks.watch.path={tmp_path}/seen"]
    options = [*QUICK, *SILENT, "data.limit=500", "trainer.max_epochs=30", f"hydra.run.dir={tmp_path}/run"]
    run_well("-m", "src.train", f"data={data}", *options, *more, *watch, timeout=800)
    memory, workers, files, threads = seen_by_watch(tmp_path / "seen")
    assert len(memory) == 30
    early, late = memory[5:15].max(), memory[15:].max()
    assert late - early < 8 * MEGABYTE, memory.tolist()
    assert workers[-1] - workers[5] < 8 * MEGABYTE, workers.tolist()
    for counts in (files, threads):  # the fewest: those of a worker that is just ending come and go
        assert counts[15:].min() == counts[5:15].min(), counts.tolist()
