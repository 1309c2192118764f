"""What is long or large: epochs, images, classes, readers."""

from __future__ import annotations

import json
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import Dataset

from src.runs.folder import LAST
from src.runs.record import read_metrics, read_results
from src.runs.run import load_checkpoint, open_run
from tests.conftest import QUICK, SILENT, run_well
from tests.test_growth import MEGABYTE, seen_by_watch
from tests.warm import Command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.tried("long")]


class Noise(Dataset):
    """Square images of noise, a draw for each, their labels by turns."""

    def __init__(self, images: int, classes: int, size: int = 16) -> None:
        self.images, self.classes, self.size = images, [str(number) for number in range(classes)], size

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        pixels = np.random.default_rng(index).integers(0, 256, (self.size, self.size, 3), dtype=np.uint8)
        return pixels, index % len(self.classes)


def noise(name: str, images: int, classes: int) -> list[str]:
    place = f"++data.{name}"
    return [
        f"{place}._target_=tests.reliability.test_long.Noise",
        f"{place}.images={images}",
        f"{place}.classes={classes}",
    ]


def test_a_thousand_epochs_grow_nothing(tmp_path: Path) -> None:
    watch = ["+callbacks.watch._target_=tests.test_growth.Watch", f"+callbacks.watch.path={tmp_path}/seen"]
    options = [
        *QUICK,
        "data.limit=80",
        "trainer.max_epochs=1000",
        "callbacks.early_stopping=null",
        f"hydra.run.dir={tmp_path}/run",
    ]
    run_well("-m", "src.train", *options, *SILENT, *watch, timeout=1000)
    memory, _, files, threads = seen_by_watch(tmp_path / "seen")
    assert len(read_metrics(tmp_path / "run")) == len(memory) == 1000
    assert memory[800:].max() - memory[100:200].max() < 16 * MEGABYTE, memory[::50].tolist()
    assert files[5:].max() == files[5:].min()
    assert threads[5:].max() == threads[5:].min()


@pytest.mark.parametrize(("images", "classes"), [(100_000, 10), (20_000, 10_000)])
def test_many_images_and_many_classes_are_trained_on_and_evaluated(images: int, classes: int, tmp_path: Path) -> None:
    sources = [*noise("source", images, classes), *noise("test_source", images // 10, classes)]
    options = ["data=dataset", *sources, "data.image_size=16", "data.batch_size=1000", "data.augment.crop=null"]
    network = ["model.network.hidden_units=4", "trainer=cpu", "trainer.max_epochs=1", "data.val_size=0.1"]
    run_well("-m", "src.train", *options, *network, f"hydra.run.dir={tmp_path}/run", timeout=600)
    run_well("-m", "src.eval", f"run={tmp_path}/run", "trusted=[tests]", timeout=600)
    frame = open_run(tmp_path / "run", trusted=["tests"]).predictions
    assert len(frame) == images // 10
    assert len(frame.filter(like="p_").columns) == classes
    accuracy = (frame["label"] == frame["prediction"]).mean()
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert evaluation["metrics"]["test/acc"] == pytest.approx(accuracy, abs=1e-6)


def test_two_hundred_readers_find_whole_files_while_it_trains(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = [*QUICK, *SILENT, "trainer.max_epochs=30", f"hydra.run.dir={folder}"]
    command = Command("-m", "src.train", *options, stdout=subprocess.PIPE)
    next(line for line in command.stdout if line.startswith("epoch   0 "))
    ended = threading.Event()

    def read(_: int) -> list[int]:
        epochs = []
        while not ended.is_set():
            frame = read_metrics(folder)
            assert frame["val/acc"].notna().all()
            # an epoch's row comes before its checkpoint
            assert load_checkpoint(folder / LAST)["epoch"] >= (epochs or [0])[-1] - 2
            assert read_results(folder).get("status") in (None, "trained", "done")
            epochs.append(len(frame))
        return epochs

    with ThreadPoolExecutor(200) as pool:
        reading = [pool.submit(read, number) for number in range(200)]
        assert command.wait(600) == 0
        ended.set()
        seen = [future.result() for future in reading]
    assert all(epochs == sorted(epochs) for epochs in seen), "no epoch is lost again"
    assert len(read_metrics(folder)) == 30
