"""Checkpoints that open from the file alone, survive a kill, and can move with their run folder."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from src.runs.folder import moved, whole
from src.runs.run import load_checkpoint


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file of the final name is always whole; reads data, no code."""

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        return load_checkpoint(Path(path))

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        with whole(Path(path)) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # of torch's writer, which hides that the disk is full
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.flush()
            os.fsync(file.fileno())


class RunCheckpoint(ModelCheckpoint):
    """ModelCheckpoint that writes `last.ckpt` after every epoch, and whose folder can move.

    Lightning's `save_last` writes it only after an epoch that was among the best, and its state names files
    by their absolute paths (Lightning #15705).

    Raises:
        ValueError: in the first epoch, if the module does not log what names the best checkpoint.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(enable_version_counter=False, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and str(self.monitor).startswith("val/"):
            self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.enable_validation and str(self.monitor).startswith("val/")):
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(Path(str(self.dirpath), "last.ckpt"))

    def _check_monitor(self, trainer: Trainer) -> None:
        if self.monitor is not None and self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if not name.startswith("lr-")))
            choose = "choose one of them, or null, which keeps the last epoch"
            raise ValueError(f"optimized_metric={self.monitor} was not logged; what is logged: {known}; {choose}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(moved(state_dict, str(state_dict["dirpath"]), str(self.dirpath)))


def check_names(state: dict[str, Any], folder: str) -> None:
    """Refuses the state of a ModelCheckpoint that names files elsewhere than in its folder: it deletes what it names.

    Raises:
        ValueError: there is one.
    """
    state = moved(state, str(state["dirpath"]), folder)
    named = {*state["best_k_models"], *(state[f"{kind}_model_path"] for kind in ("best", "kth_best", "last"))}
    if any(path and os.path.dirname(os.path.normpath(path)) != os.path.normpath(folder) for path in named):
        raise ValueError(f"the checkpoint names files outside {folder}, which is refused: {sorted(named)}")


class RunRecord(Callback):
    """Puts into each checkpoint what rebuilds the run, and makes a stopped run go on as if it had not stopped.

    The random numbers of dropout are drawn from a seed of their own each epoch, and their state travels in
    the checkpoint. SIGTERM and the first Ctrl-C end the run after the current step, once `last.ckpt` is saved
    (in the middle of a validation, the one of the epoch before stays); a second Ctrl-C ends it at once. SIGUSR1,
    SLURM's warning before the time limit (`--signal=SIGUSR1@90`), does the same and has the job requeued.

    Args:
        folder: where `last.ckpt` goes.
        seed: of the run.
        started: called once the training has begun, or gone on from a checkpoint; pickled by ddp_spawn.
    """

    def __init__(self, folder: str | Path, seed: int, started: Callable[[], None] | None = None) -> None:
        self.folder, self.seed, self.started = Path(folder), seed, started
        self.contents: dict[str, Any] = {}  # plain containers: config, classes, preprocess
        self.metrics: dict[str, float] = {}  # as last logged before the checkpoint that the run went on from
        self._earlier_seconds = 0.0  # that the run had taken until that checkpoint
        self._random_state: dict[str, Any] = {}
        self._old_handler: Any = None
        self._requeue = False
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the run has taken, with what it took before it was stopped."""
        return self._earlier_seconds + time.perf_counter() - self._start

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        cuda = torch.cuda.get_rng_state() if pl_module.device.type == "cuda" else None
        random_state = {"cpu": torch.get_rng_state(), "cuda": cuda}
        metrics = self.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint.update(self.contents, metrics=metrics, seconds=self.seconds, random_state=random_state)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # the test loads the best checkpoint, which is no place to go on from
            self._random_state = checkpoint.get("random_state", {})
            self.metrics = checkpoint.get("metrics", {})
            self._earlier_seconds = checkpoint.get("seconds", 0.0)
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.state_key in checkpoint["callbacks"]:
                    check_names(checkpoint["callbacks"][callback.state_key], str(callback.dirpath))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        source = random.Random(f"{self.seed} {trainer.current_epoch} {trainer.global_rank}")
        torch.manual_seed(source.getrandbits(63))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.started is not None:
            self.started()
        # Counts only where the run goes on in mid-epoch: then on_train_epoch_start is not called.
        for kind, state in self._random_state.items():
            if state is not None:
                {"cpu": torch, "cuda": torch.cuda}[kind].set_rng_state(state.cpu())

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        def warned(signum: int, frame: Any) -> None:
            self._requeue = True
            os.kill(os.getpid(), signal.SIGTERM)

        # Lightning's own handler comes later and stays away where there is one: it knows nothing of `last.ckpt`.
        if stage == "fit" and "SLURM_JOB_ID" in os.environ and signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:
            signal.signal(signal.SIGUSR1, warned)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def stop(signum: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if trainer.is_global_zero:
                print("\nStopping after this step; once more stops at once.", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)  # Lightning ends the step, then raises SIGTERMException

        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._old_handler = signal.signal(signal.SIGINT, stop)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGINT, self._old_handler)
            self._old_handler = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        stopped = isinstance(exception, SIGTERMException)
        if stopped and trainer.training:
            trainer.save_checkpoint(self.folder / "last.ckpt")
        if stopped and self._requeue and trainer.is_global_zero:
            subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
