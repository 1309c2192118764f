"""Checkpoints that open from the file alone, survive a kill, and can move with their run folder."""

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException

from src.modules.base import of_each_process
from src.runs.folder import METRICS, moved, whole
from src.runs.run import load_checkpoint

SPAWNED = ".temp.ckpt"  # Lightning's: the weights alone, which a process of ddp_spawn hands to the one that started it


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and renames, so that a file of the final name is always whole; reads data, no code."""

    def load_checkpoint(self, path: Any, *_: Any, **__: Any) -> dict[str, Any]:
        if Path(path).name == SPAWNED:
            return torch.load(path, weights_only=True)
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
    """ModelCheckpoint whose folder can move: the state of Lightning's names files by absolute paths (Lightning #15705).

    Raises:
        ValueError: in the first epoch, if the module does not log what names the best checkpoint.
    """

    def __init__(self, monitor: str | None = None, **kwargs: Any) -> None:
        if str(monitor).startswith("train/"):  # else Lightning looks for it at validations, where they come otherwise
            kwargs.setdefault("save_on_train_epoch_end", True)
        super().__init__(monitor=monitor, enable_version_counter=False, **kwargs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and str(self.monitor).startswith("val/"):
            self._check_monitor(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.enable_validation and str(self.monitor).startswith("val/")):
            self._check_monitor(trainer)
        super().on_train_epoch_end(trainer, pl_module)

    def _check_monitor(self, trainer: Trainer) -> None:
        if self.monitor is not None and self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if not name.startswith("lr-")))
            choose = "choose one of them, or null, which keeps the last epoch"
            raise ValueError(f"optimized_metric={self.monitor} was not logged; what is logged: {known}; {choose}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        state = moved(state_dict, str(state_dict["dirpath"]), str(self.dirpath))
        if any(map(os.path.isfile, state["best_k_models"])):  # else it is of a run that this one only starts from
            super().load_state_dict(state)


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
    """Writes `last.ckpt` after each epoch, with what rebuilds the run, so that it goes on as if it had not stopped.

    It must be the first callback: it saves what an epoch leaves once all of it is done, schedule and curves included,
    and before another callback begins the next epoch or ends the training.

    The random numbers of dropout are drawn from a seed of their own each epoch, and their state travels in
    the checkpoint. SIGTERM and the first Ctrl-C, on whichever process, end all of them after the same step, once
    `last.ckpt` is saved; the exit code is 143 or 130. A second Ctrl-C ends the run at once. A step that an
    accumulation of gradients, a validation or the end of an epoch belongs to is first followed by what is due. SIGUSR1,
    SLURM's warning before the time limit (`--signal=SIGUSR1@90`), does the same and has the job requeued.

    Args:
        folder: where `last.ckpt` goes, unless no checkpoint is kept.
        seed: of the run.
        started: called once the training has begun, or gone on from a checkpoint; pickled by ddp_spawn.
    """

    def __init__(self, folder: str | Path, seed: int, started: Callable[[], None] | None = None) -> None:
        self.folder, self.seed, self.started = Path(folder), seed, started
        self.contents: dict[str, Any] = {}  # plain containers: config, classes, preprocess
        self.stepped = False  # whether a batch has been trained on
        self._metrics: dict[str, float] = {}  # as last logged before the checkpoint that the run went on from
        self._earlier_seconds = 0.0  # that the run had taken until that checkpoint
        self._random_state: dict[str, Any] = {}
        self._unsaved = False  # whether an epoch has ended since `last.ckpt` was written
        self._cut: dict[str, Any] | None = None  # what is to be written of an epoch that ended before its last step
        self._asked, self._asked_at = 0, 0.0  # the signal that asked this process to stop, and when
        self._agreed = 0  # the signal for which all processes stop
        self._old_handlers: dict[int, Any] = {}
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the run has taken, with what it took before it was stopped."""
        return self._earlier_seconds + time.perf_counter() - self._start

    # What is saved, and when

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        cuda = torch.cuda.get_rng_state() if pl_module.device.type == "cuda" else None
        random_state = of_each_process({"cpu": torch.get_rng_state(), "cuda": cuda})
        checkpoint.update(self.contents, **self._logged(trainer), random_state=random_state)
        loops = checkpoint["loops"]["fit_loop"]
        checkpoint["epoch"] = loops["epoch_progress"]["current"]["started"] - 1  # that the weights are of
        if loops["epoch_loop.batch_progress"]["is_last_batch"]:  # an epoch of which no step is left counts as done
            for count in loops["epoch_progress"].values():
                count.update(dict.fromkeys(count, count["started"]))
            loops["epoch_loop.state_dict"]["_batches_that_stepped"] += trainer.validating
        else:  # also at the end of an epoch that max_steps cut short, which Lightning has counted by then
            for count in loops["epoch_progress"].values():
                count["processed"] = count["completed"]

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == "fit":  # the test loads the best checkpoint, which is no place to go on from
            self._random_state = dict(enumerate(checkpoint.get("random_state", []))).get(trainer.global_rank, {})
            self._metrics = checkpoint.get("metrics", {})
            self._earlier_seconds = checkpoint.get("seconds", 0.0)
            for callback in trainer.checkpoint_callbacks:
                if isinstance(callback, ModelCheckpoint) and callback.state_key in checkpoint["callbacks"]:
                    check_names(checkpoint["callbacks"][callback.state_key], str(callback.dirpath))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in self._metrics.items()})
        if trainer.is_global_zero:
            for folder in (self.folder, (self.folder.parent / METRICS).parent):
                for partial in folder.glob(".*.partial.*"):  # of a save that was killed
                    partial.unlink()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop: Any = trainer.fit_loop
        loop._restarting = False  # else the first epoch leaves a plateau schedule as it is
        if loop.epoch_progress.current.ready == loop.epoch_progress.current.processed:
            loop.epoch_loop.restarting = False  # else, with max_steps, an epoch without a step comes first
        trainer.should_stop = any(callback.stopped_epoch > 0 for callback in trainer.early_stopping_callbacks)
        # Counts only where the run goes on in mid-epoch: then on_train_epoch_start is not called.
        for kind, state in self._random_state.items():
            if state is not None:
                {"cpu": torch, "cuda": torch.cuda}[kind].set_rng_state(state.cpu())
        if self.started is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self.started()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_epoch(trainer)
        source = random.Random(f"{self.seed} {trainer.current_epoch} {trainer.global_rank}")
        torch.manual_seed(source.getrandbits(63))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save_epoch(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        progress: Any = trainer.fit_loop.epoch_progress.current
        progress.processed = progress.completed = progress.started  # also where no step was left of the last epoch

    def _save_epoch(self, trainer: Trainer) -> None:
        if self._unsaved and trainer.checkpoint_callback is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if self._cut is None:
                trainer.save_checkpoint(self.folder / "last.ckpt")
            else:
                self._cut.update(self._logged(trainer))
                trainer.strategy.save_checkpoint(self._cut, self.folder / "last.ckpt")
                trainer.strategy.barrier()
        self._unsaved, self._cut = False, None

    def _logged(self, trainer: Trainer) -> dict[str, Any]:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {"metrics": metrics, "seconds": self.seconds}

    # Stopping

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Lightning's own handler has rank 0 speak for all, and waits for the others while it handles the signal,
        # wherever they are (Lightning #21487): so it is never registered, and nothing is sent before each step.
        connector: Any = trainer._signal_connector
        connector.register_signal_handlers = lambda: None
        epoch_loop: Any = trainer.fit_loop.epoch_loop
        epoch_loop._broadcast_sigterm_tensor = lambda: None
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            self._pid, self._speaks = os.getpid(), trainer.is_global_zero
            for number in (signal.SIGINT, signal.SIGTERM, *[signal.SIGUSR1] * ("SLURM_JOB_ID" in os.environ)):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in the background of a shell
                    self._old_handlers[number] = signal.signal(number, self._hear)

    def _hear(self, number: int, frame: Any) -> None:
        if os.getpid() != self._pid:
            return  # a worker of the loader, which ends with the training
        if number == signal.SIGINT and self._asked and time.monotonic() > self._asked_at + 1:  # torchrun sends it twice
            signal.signal(number, signal.SIG_DFL)
            os.kill(self._pid, number)
        if not self._asked and number == signal.SIGINT and self._speaks:
            os.write(1, b"\nStopping after this step; once more stops at once.\n")  # `print` may be what it interrupts
        self._asked, self._asked_at = self._asked or number, self._asked_at or time.monotonic()

    def _agree(self, trainer: Trainer) -> None:
        self._agreed = self._asked
        if trainer.world_size > 1:
            asked = torch.tensor(self._asked, device=trainer.strategy.root_device)
            self._agreed = int(trainer.strategy.reduce(asked, reduce_op="max"))
        trainer._signal_connector.received_sigterm = self._agreed > 0  # Lightning ends the step, then raises for it

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stepped = True
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:  # gradients are in no checkpoint
            self._agree(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer._signal_connector.received_sigterm = False  # from here Lightning would go on with a step too many

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._unsaved = True
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            # By max_steps or max_time: with more of them it goes on from here, where its sums are not logged yet.
            self._cut = trainer._checkpoint_connector.dump_checkpoint()
        self._agree(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, SIGTERMException):
            self._unsaved = True
            self._save_epoch(trainer)
            strategy: Any = trainer.strategy
            started = trainer.local_rank > 0 and isinstance(strategy.cluster_environment, LightningEnvironment)
            # The process that started this one kills the others for any other exit code than 0.
            exception.code = 0 if started else 130 if self._agreed == signal.SIGINT else 143
            if self._agreed == signal.SIGUSR1 and trainer.is_global_zero:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        while self._old_handlers:
            signal.signal(*self._old_handlers.popitem())
