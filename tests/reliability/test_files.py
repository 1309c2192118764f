"""Files as they can be: full disks, names of any bytes, images of other depths, pipes, malformed records."""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src.callbacks.checkpoint import AtomicCheckpointIO
from src.data.decode import square
from src.data.folder import ImageFolder
from src.errors import explain
from src.predict import predict
from src.runs.folder import write_whole
from src.runs.run import load_checkpoint
from tests.conftest import QUICK, SILENT, composed, run_command
from tests.test_eval import evaluated
from tests.warm import Command

pytestmark = pytest.mark.tried("files")


@pytest.fixture
def small_files():
    """No file may grow over 100 kB, which fails in the midst of writing as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_and_says_where(run: Path, small_files) -> None:
    last = run / "checkpoints/last.ckpt"
    before = last.read_bytes()
    checkpoint = {**load_checkpoint(last), "more": torch.zeros(1_000_000)}
    with pytest.raises(OSError, match="File too large") as error:
        AtomicCheckpointIO().save_checkpoint(checkpoint, last)
    assert explain(error.value, "train") == f"{last}: file too large"
    assert last.read_bytes() == before
    assert not list(run.glob("**/*.partial*"))


def test_a_log_that_cannot_be_written_ends_the_command_with_its_name(run: Path) -> None:
    (run / "train.log").unlink()
    (run / "train.log").mkdir()
    done = run_command("-m", "src.train", f"resume={run}", "trainer.max_epochs=7")
    assert (done.returncode, done.stderr) == (1, f"error: {run}/train.log: is a directory\n")


def test_a_run_whose_folder_is_deleted_ends_without_a_traceback(tmp_path: Path) -> None:
    options = [*QUICK, *SILENT, "trainer.max_epochs=200", f"hydra.run.dir={tmp_path}/run"]
    command = Command("-m", "src.train", *options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    next(line for line in command.stdout if line.startswith("epoch   1 "))
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    printed = command.stdout.read()
    assert command.wait() == 1
    assert re.search(rf"error: {tmp_path}/run/.*: no such file or directory", printed), printed
    assert "Traceback" not in printed


def test_text_that_cannot_be_written_leaves_the_file_before(tmp_path: Path, small_files) -> None:
    write_whole(tmp_path / "results.json", "{}")
    with pytest.raises(OSError, match="File too large"):
        write_whole(tmp_path / "results.json", "x" * 200_000)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("results.json", "{}")]


def test_names_that_are_no_unicode_train_and_are_predicted_under_printable_ones(run: Path, tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "images")
    for name in (b"caf\xe9", b"tea"):
        os.makedirs(os.path.join(root, name))
        for number in range(20):
            path = os.path.join(root, name, b"\xff%d.png" % number)
            Image.new("L", (20, 20), 10 * number).save(os.fsdecode(path), format="png")
    options = {"image_size": 32, "batch_size": 4, "cache_dir": str(tmp_path / "cache"), "num_classes": 2}
    data = ImageFolder(root=os.fsdecode(root), **options)
    data.setup("fit")
    assert data.classes == ["caf\\xe9", "tea"]
    options = [f"run={run}", f"input={tmp_path}/images", f"paths.output_dir={tmp_path}/out"]
    metrics, objects = predict(composed(*options, name="predict"))
    assert metrics["images"] == 40
    assert f"{tmp_path}/images/caf\\xe9/\\xff0.png" in [row["file"] for row in objects["predictions"]]
    assert "\\xff0.png" in (tmp_path / "out/predictions.csv").read_text()


RAMP = np.linspace(0, 1, 64).reshape(8, 8)
DEPTHS = {
    "8 bits": (RAMP * 255).astype(np.uint8),
    "12 bits of 16": (RAMP * 4095).astype(np.uint16),
    "16 bits": (RAMP * 65535).astype(np.uint16),
    "16 bits of 32": (RAMP * 65535).astype(np.int32),
    "floats": RAMP.astype(np.float32),
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_of_any_depth_is_the_same_picture(depth: str, channels: int) -> None:
    pixels = square(Image.fromarray(DEPTHS[depth]), 8, channels).astype(int)
    assert pixels.shape == (channels, 8, 8)
    assert abs(pixels - (RAMP * 255).astype(int)).max() <= 1


@pytest.mark.parametrize("values", [RAMP * 2, RAMP - 1, (RAMP * 100_000).astype(np.int32), -DEPTHS["16 bits of 32"]])
def test_grey_of_another_range_is_refused(values: np.ndarray) -> None:
    kept = values.astype(np.float32) if values.dtype.kind == "f" else values
    with pytest.raises(ValueError, match=r"its values are .* not 0 to"):
        square(Image.fromarray(kept), 8, 3)


def test_a_pipe_among_the_images_is_not_waited_for(run: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("L", (20, 20)).save(tmp_path / "images/good.png")
    os.mkfifo(tmp_path / "images/pipe.png")
    os.mkfifo(run / "results2.json")
    options = [f"run={run}", f"input={tmp_path}/images", f"paths.output_dir={tmp_path}/out"]
    assert predict(composed(*options, name="predict"))[0]["images"] == 1


def test_an_evaluation_goes_into_a_folder_that_is_new(run: Path, tmp_path: Path) -> None:
    _, objects = evaluated(f"run={run}", f"paths.output_dir={tmp_path}/new/one")
    assert all(path.is_relative_to(tmp_path / "new/one") for path in objects["files"])
    assert not (run / "evaluation.json").exists()


def test_an_evaluation_of_fewer_images_stands_beside_the_whole_one(run: Path) -> None:
    evaluated(f"run={run}")
    before = (run / "predictions.csv").read_bytes()
    evaluated(f"run={run}", "data.limit=50")
    assert (run / "predictions.csv").read_bytes() == before
    assert (run / "evaluation_limit50.json").is_file()


@pytest.mark.parametrize("option", ["split_seed=3", "val_size=0.2", "limit=100", "folds=5"])
def test_a_validation_never_takes_images_of_the_training(option: str, run: Path) -> None:
    with pytest.raises(ValueError, match="would mix images that the network was trained on"):
        evaluated(f"run={run}", "split=val", f"data.{option}")
