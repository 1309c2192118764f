"""What several tests share: composed configs, and the one place of the real CIFAR-10."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

ROOT = Path(__file__).resolve().parent.parent
DATASETS = ROOT.parent / "shared" / "datasets"

needs_cifar10 = pytest.mark.skipif(
    not (DATASETS / "cifar-10-batches-py").is_dir(), reason="CIFAR-10 is not there: ../shared/datasets"
)

# A network and an amount of data that train in a second.
QUICK = [
    *("data.limit=200", "data.batch_size=32", "model.network.hidden_units=4"),
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2"),
]
SILENT = ["callbacks.model_summary=null", "callbacks.tensorboard_pictures=null"]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Composes `conf/train.yaml` with overrides, its run folder in the test's own folder."""

    def composed(*overrides: str, name: str = "train") -> DictConfig:
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            return compose(name, [f"paths.output_dir={tmp_path}/run", f"paths.log_dir={tmp_path}/logs", *overrides])

    return composed


def run_command(*arguments: str, cwd: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` as a user would, from the project's folder or from `cwd`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd or ROOT, env=environment, timeout=timeout
    )


def hear_interrupts() -> None:
    """For `preexec_fn`: a shell's background process ignores Ctrl-C, and so do its children, unless told."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
