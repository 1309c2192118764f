"""A live bar on terminals, and one line for each epoch everywhere."""

import logging
import shutil
import sys
import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from src.runs.table import shown

log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """Shows batches, images/s and time left while an epoch runs, and logs what the module logged when it ends.

    Args:
        refresh_every: seconds between two updates of the bar; between them a step costs one look at the clock.
    """

    def __init__(self, refresh_every: float = 0.25) -> None:
        self.refresh_every = refresh_every
        self._bar: Progress | None = None
        self._epoch: tuple[int, float] | None = None  # an epoch that ended and its seconds, not yet printed

    def _show(self, trainer: Trainer, text: str, batches: float) -> None:
        if not (trainer.is_global_zero and sys.stdout.isatty()):
            return
        rate = TextColumn("{task.fields[rate]:,.0f} images/s")
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(), auto_refresh=False, transient=True)
        self._task = self._bar.add_task(text, total=None if batches == float("inf") else batches, rate=0.0)
        self._bar.start()
        self._since = time.monotonic()
        self._next = self._since + self.refresh_every

    def _move(self, trainer: Trainer, batch_idx: int) -> None:
        if self._bar is None or (now := time.monotonic()) < self._next:
            return
        images = (batch_idx + 1) * trainer.datamodule.batch_size * trainer.world_size  # type: ignore[attr-defined]
        self._bar.update(self._task, completed=batch_idx + 1, rate=images / (now - self._since), refresh=True)
        self._next = now + self.refresh_every

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print_epoch(self, trainer: Trainer) -> None:
        # Metrics of an epoch are complete only after every hook of its end.
        if self._epoch is None:
            return
        epoch, seconds = self._epoch
        self._epoch = None
        if trainer.is_global_zero:
            width = shutil.get_terminal_size().columns if sys.stdout.isatty() else float("inf")
            log.info(described(epoch, seconds, trainer.callback_metrics, width))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._epoch_start = time.monotonic()  # for a run that goes on in mid-epoch: its epoch has no start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print_epoch(trainer)
        last = "" if trainer.max_epochs in (None, -1) else f"/{trainer.max_epochs - 1}"
        self._epoch_start = time.monotonic()
        self._show(trainer, f"epoch {trainer.current_epoch}{last}", trainer.num_training_batches)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._move(trainer, batch_idx)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        self._epoch = (trainer.current_epoch, time.monotonic() - self._epoch_start)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        self._print_epoch(trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(trainer, "test", trainer.num_test_batches[0])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._move(trainer, batch_idx)

    on_test_end = on_validation_start

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()


def described(epoch: int, seconds: float, metrics: Any, width: float) -> str:
    """What was logged in an epoch: its number, "train loss 0.1234 acc 98.76 %", "val ...", the speed and the seconds.

    On one line, or in a terminal of fewer than its characters, `width`, on one for each of train and val.
    """
    stages: dict[str, str] = {}
    for name, value in metrics.items():
        stage, _, rest = name.partition("/")
        if stage in ("train", "val") and rest != "images_per_s":
            stages[stage] = f"{stages.get(stage, stage)} {rest} {shown(name, float(value))}"
    texts = [stages[stage] for stage in ("train", "val") if stage in stages]
    speed = [f"{float(metrics['train/images_per_s']):,.0f} images/s"] if "train/images_per_s" in metrics else []
    speed += [f"{seconds:.1f} s"]
    number = f"epoch {epoch:3d}"
    line = "  ".join([number, *texts, *speed])
    if len(line) <= width:
        return line
    indent = "\n" + " " * len(f"{number}  ")
    return indent.join(["  ".join([number, *texts[:1], *speed]), *texts[1:]])
