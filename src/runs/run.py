"""A run, opened: its config, network, data, metrics and predictions.

    run = open_run("latest")
    run.metrics, run.network, run.datamodule

The folder may have been moved or come from somebody else. Opening it runs none of its code: checkpoints are read by
torch's safe loader, and its config builds, and has written, only what `src.runs.trust` lets it.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Collection, Iterable
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from src.runs.build import build, build_model, register_resolvers
from src.runs.evaluated import read_answers, read_temperature
from src.runs.folder import CHECKPOINTS, LAST, LOGS, RunError, find_run, moved
from src.runs.record import read_metrics, read_results
from src.runs.trust import PREPROCESS, check_config, check_links, check_places, walk

if TYPE_CHECKING:
    import pandas as pd
    from lightning import LightningDataModule, LightningModule
    from torch import nn

    from src.data.preprocess import Preprocess


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU; runs no code from it.

    Raises:
        RunError: missing, truncated, or something else than tensors and plain containers inside.
    """
    if not path.is_file():
        raise RunError(f"there is no checkpoint {path}")
    state = path.stat()
    return dict(_read(path, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=1)  # a command looks at a run's config before it is composed, and at its weights later
def _read(path: Path, size: int, mtime_ns: int) -> dict[str, Any]:
    import torch

    if (problem := _damage(path)) is None:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
            problem = str(error).splitlines()[0][:120]
    if problem is not None:
        others = sorted(path.parent.glob("*.ckpt"), key=lambda other: other.stat().st_mtime_ns, reverse=True)
        good = next((other.name for other in others if other != path and _damage(other) is None), None)
        hint = f"; the newest whole one beside it is {good}" if good else ""
        raise RunError(f"{path} is damaged or no checkpoint ({problem}){hint}")
    if not isinstance(checkpoint, dict) or not {"state_dict", "config", "classes", "preprocess"} <= set(checkpoint):
        raise RunError(f"{path} is no checkpoint of a run of this project")
    classes, parts = checkpoint["classes"], [checkpoint[name] for name in ("state_dict", "config", "preprocess")]
    if not all(isinstance(part, dict) for part in parts) or not all(isinstance(name, str) for name in classes):
        raise RunError(f"{path} is no checkpoint of a run of this project: its parts are of other kinds")
    return checkpoint


def _damage(path: Path) -> str | None:
    """What is wrong with the archive that a checkpoint is: torch does not compare the checksums in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                return "it is compressed, as torch's files are not"
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return str(error)
    return damaged and f"the checksum of {damaged} in it does not match"


def saved_config(
    folder: Path,
    checkpoint: dict[str, Any],
    trusted: Iterable[str] = (),
    logs: str | Path = LOGS,
    given: Collection[str] = (),
) -> dict[str, Any]:
    """The config in a checkpoint, checked, its paths led to where the run's folder and the logs are now.

    It downloads nothing: that is switched on again with data.download=true.

    Args:
        given: options that the command line sets, which are not taken from the config.

    Raises:
        RunError: it asks for what no saved config may build, or have written.
    """
    config, here = checkpoint["config"], str(folder.resolve())
    known = all(isinstance(config.get(name), dict) for name in ("paths", "data", "model", "trainer"))
    if not known or not all(isinstance(config["paths"].get(name), str) for name in ("output_dir", "log_dir")):
        raise RunError(f"{folder} has a checkpoint whose config is none of this project's")
    preprocess = checkpoint["preprocess"]
    check_config({**config, "data": {**config["data"], **preprocess}}, trusted)
    if more := set(preprocess) - PREPROCESS:
        raise RunError(f"the saved config's data would be joined by {sorted(more)[0]!r}; a run's own is not")
    config = moved(config, config["paths"]["log_dir"], str(logs))
    config = moved(config, config["paths"]["output_dir"], here)
    config["trainer"]["default_root_dir"] = config["trainer"].get("default_root_dir") or here
    check_places(config, [folder, Path(logs)], given)
    check_links(folder)
    for place, value in walk({"data": config["data"]}):
        if isinstance(value, dict):
            off = {"download": False, "mirror": None}
            value |= {key: off[key] for key in off if key in value and f"{place}.{key}" not in given}
    return config


def resumed_config(
    name: str, logs: str | Path = LOGS, trusted: Iterable[str] = (), given: Collection[str] = ()
) -> dict[str, Any]:
    """The config of a run that is to go on, `resume` set to its folder.

    One that was killed between the first checkpoint of all, its best one, and `last.ckpt` begins again.

    Args:
        given: options that the command line sets.

    Raises:
        RunError: no such run, no checkpoint in it, or a config that is refused.
    """
    folder = find_run(name, logs).resolve()
    found = [path for path in (folder / LAST, *folder.glob(f"{CHECKPOINTS}/epoch_*.ckpt")) if path.is_file()]
    if not found:
        raise RunError(f"{folder} has no {LAST} to resume from: start the run again")
    config = saved_config(folder, load_checkpoint(found[0]), trusted, logs, given)
    weights = config["model"].get("weights")
    if found[0] != folder / LAST and weights in ("imagenet", "pretrained") and "model.weights" not in given:
        raise RunError(
            f"{folder} begins again, from weights that may have to be downloaded: add model.weights={weights}"
        )
    return {**config, "resume": str(folder)}


class Run:
    """A run opened from its folder. Everything is read when it is first asked for.

    Args:
        folder: the run folder.
        checkpoint_path: the checkpoint to take weights from; by default the best, else the last.
        trusted: packages, beside those of conf/train.yaml, whose classes its config may build.
        logs: where this machine's logs lie.
    """

    def __init__(
        self, folder: Path, checkpoint_path: Path | None = None, trusted: Iterable[str] = (), logs: str | Path = LOGS
    ) -> None:
        self.folder, self._checkpoint_path, self._trusted, self._logs = folder, checkpoint_path, trusted, logs

    @cached_property
    def results(self) -> dict[str, Any]:
        """What `results.json` says; empty while the run has not ended."""
        return read_results(self.folder)

    @cached_property
    def checkpoint_path(self) -> Path:
        """The best checkpoint by the run's metric, the last where there is no best."""
        if self._checkpoint_path is not None:
            return self._checkpoint_path
        checkpoints = self.folder / CHECKPOINTS
        best = (self.results.get("best") or {}).get("path") or self._best_so_far()
        if best is not None and Path(best).parent == Path(CHECKPOINTS) and (self.folder / best).is_file():
            return self.folder / best
        found = [*sorted(checkpoints.glob("epoch_*.ckpt"), reverse=True), *checkpoints.glob("last.ckpt")]
        if not found:
            why = "it was stopped before the end of its first epoch, or callbacks.model_checkpoint was off"
            raise RunError(f"{self.folder} has no checkpoint: {why}")
        return found[0]

    def _best_so_far(self) -> str | None:
        """Which of several the last checkpoint calls the best, where the run has not ended."""
        if self.results or len([*self.folder.glob(f"{CHECKPOINTS}/epoch_*.ckpt")]) < 2:
            return None
        try:
            states = load_checkpoint(self.folder / LAST)["callbacks"]
            named = (state["best_model_path"] for key, state in states.items() if key.startswith("RunCheckpoint"))
            return next((f"{CHECKPOINTS}/{Path(path).name}" for path in named if path), None)
        except (RunError, KeyError, TypeError, AttributeError):  # there is no last one, or it is damaged
            return None

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint's contents: `state_dict`, `config`, `classes`, `preprocess`, `epoch`, ..."""
        return load_checkpoint(self.checkpoint_path)

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config; `run.config.data.root` and the like may be changed before the data is asked for."""
        config = saved_config(self.folder, self.checkpoint, self._trusted, self._logs)
        config["data"] |= self.checkpoint["preprocess"]  # the mean and deviation that were measured
        return OmegaConf.create(config)

    @property
    def preprocess(self) -> Preprocess:
        """What the network was validated with: uint8 images (B, 3, H, W) -> normalised images (B, 3, S, S)."""
        from src.data.preprocess import Preprocess

        return Preprocess(**self.checkpoint["preprocess"])

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return self.checkpoint["classes"]

    @cached_property
    def model(self) -> LightningModule:
        """The LightningModule with the checkpoint's weights, in eval mode.

        Raises:
            RunError: they do not fit, or are no numbers.
        """
        if "compile" in self.config.model:
            self.config.model.compile = False  # to look at, export or predict with; training compiles again
        model = build_model(self.config)
        try:
            model.load_state_dict(self.checkpoint["state_dict"])
        except RuntimeError as error:
            raise RunError(f"{self.checkpoint_path} has other weights than its config asks for: {error}") from error
        if broken := [name for name, tensor in model.state_dict().items() if not tensor.isfinite().all()]:
            raise RunError(f"{self.checkpoint_path} has weights that are no numbers, {broken[0]} among {len(broken)}")
        return model.eval()

    @property
    def network(self) -> nn.Module:
        """The network with the checkpoint's weights, in eval mode: normalised images (B, 3, S, S) -> logits (B, K)."""
        return self.model.network  # type: ignore[return-value]

    @property
    def origin(self) -> dict[str, Any]:
        """What tells the checkpoint from the run's others: its file's name, its epoch and its step."""
        place = {"epoch": self.checkpoint["epoch"], "step": self.checkpoint["global_step"]}
        return {"checkpoint": self.checkpoint_path.name, **place}

    @property
    def temperature(self) -> float:
        """What `python -m src.eval run=RUN calibrate=true` fitted for this checkpoint, to divide the logits by.

        Raises:
            RunError: it fitted none, or for another checkpoint.
        """
        return read_temperature(self.folder, self.origin)

    def link(self, calibrated: bool = False) -> nn.Module:
        """From the network's logits (B, K) to probabilities (B, K), at its `temperature` if `calibrated`."""
        import torch

        from src.evaluation.calibration import Temperature

        link = getattr(self.model, "link", torch.nn.Softmax(dim=1))
        return torch.nn.Sequential(Temperature(self.temperature), link) if calibrated else link

    @cached_property
    def datamodule(self) -> LightningDataModule:
        """The run's data module, not yet set up, normalising as in training."""
        return build(self.config.data)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`csv/metrics.csv` with one row an epoch, indexed by epoch."""
        frame = read_metrics(self.folder)
        if frame.empty:
            raise RunError(f"{self.folder} has no metrics in csv/: no epoch ended, or logger.csv was off")
        return frame

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """`predictions.csv` as `python -m src.eval` writes it: label, prediction and probabilities of each image."""
        return read_answers(self.folder, complete=True)


def open_run(name: str | Path | None, logs: str | Path = LOGS, trusted: Iterable[str] = ()) -> Run:
    """Opens a run folder ("latest" for the newest under `logs`), or the run around a checkpoint file.

    Raises:
        RunError: no run there, or none named.
    """
    if name is None:
        raise RunError("say which run: run=logs/train/runs/RUN, run=latest or ckpt_path=FILE.ckpt")
    register_resolvers()
    path = Path(name)
    if path.suffix != ".ckpt":
        return Run(find_run(name, logs), trusted=trusted, logs=logs)
    if not path.is_file():
        raise RunError(f"there is no checkpoint {path}")
    return Run(path.parent.parent if path.parent.name == CHECKPOINTS else path.parent, path, trusted, logs)
