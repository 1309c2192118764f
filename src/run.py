"""A run folder: what is in it, and how to open, rebuild and resume it.

    .hydra/config.yaml   the config as composed            checkpoints/   last.ckpt and epoch_XXX.ckpt, the best
    train.log            the epochs as they were printed   csv/           metrics.csv
    results.json         metrics, times, versions          tensorboard/   for tensorboard --logdir

The folder may have been moved or come from somebody else. So nothing in it is trusted: checkpoints are read by
torch's safe loader, and a saved config builds only the classes that its sections are there for.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    import pandas as pd
    from lightning import LightningDataModule, LightningModule
    from torch import nn

LOGS = Path("logs")
CONF = Path(__file__).resolve().parent.parent / "conf"

# What the `_target_` of each section of a saved config may be; the longest section that fits counts.
EXPECTED = {
    "data": r"src\.data\.\w+\.\w+",
    "data.augment": r"(src\.data\.augment|torchvision\.transforms\.v2)\.\w+",
    "model": r"src\.modules\.\w+\.\w+",
    "model.network": r"src\.networks\.\w+\.\w+",
    "model.loss": r"(torch\.nn|src\.modules\.\w+)\.\w+",
    "model.optimizer": r"(torch\.optim|src\.modules\.\w+)\.\w+",
    "model.scheduler": r"(torch\.optim\.lr_scheduler|src\.modules\.schedules)\.\w+",
    "optimizer": r"(torch\.optim|src\.modules\.\w+)\.\w+",
    "scheduler": r"(torch\.optim\.lr_scheduler|src\.modules\.schedules)\.\w+",
    "callbacks": r"(lightning\.pytorch\.callbacks|src\.callbacks\.\w+)\.\w+",
    "logger": r"lightning\.pytorch\.loggers\.\w+",
    "trainer": r"lightning(\.pytorch\.(strategies|plugins|profilers))?\.\w+",
}


class RunError(Exception):
    """A run folder that cannot be used as asked; the message says why and what to do."""


def register_resolvers() -> None:
    """Makes the resolvers of `conf` known to OmegaConf: `${count_classes:FOLDER}`, `${fastest_cpu_precision:}`."""

    def count_classes(folder: str) -> int:
        from src.data.listing import count_classes as count

        return count(folder)

    def fastest_cpu_precision() -> str:
        from src.callbacks.processor import fastest_precision

        return fastest_precision()

    OmegaConf.register_new_resolver("count_classes", count_classes, replace=True)
    OmegaConf.register_new_resolver("fastest_cpu_precision", fastest_cpu_precision, replace=True)


def check_targets(config: Any, section: str = "") -> None:
    """Refuses, by name, any class in a saved config that its section is not there for.

    Raises:
        RunError: naming the class and where it stands.
    """
    if isinstance(config, list):
        for item in config:
            check_targets(item, section)
    elif isinstance(config, dict):
        for key, value in config.items():
            if key == "_target_":
                fitting = [s for s in EXPECTED if section == s or section.startswith(f"{s}.")]
                pattern = EXPECTED[max(fitting, key=len)] if fitting else r"(?!)"
                if not (isinstance(value, str) and re.fullmatch(pattern, value)):
                    raise RunError(
                        f"the saved config asks for {value!r} under {section!r}; that is refused, for it is no class "
                        "that belongs there"
                    )
            else:
                check_targets(value, f"{section}.{key}" if section else str(key))


def find_run(name: str | Path) -> Path:
    """The run folder of that name; "latest" is the newest under `logs` that has a checkpoint.

    Raises:
        RunError: there is none, or the folder is no run.
    """
    if str(name) == "latest":
        found = [path.parent.parent for path in LOGS.glob("**/checkpoints/last.ckpt")]
        if not found:
            raise RunError(f"there is no run with a checkpoint under {LOGS.resolve()}")
        return max(found, key=lambda run: (run / "checkpoints/last.ckpt").stat().st_mtime_ns)
    folder = Path(name)
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}")
    if not (folder / ".hydra/config.yaml").is_file():
        nested = sorted({path.parent.parent for path in folder.glob("**/.hydra/config.yaml")})
        hint = f"; runs inside it: {', '.join(map(str, nested[:5]))}" if nested else ""
        raise RunError(f"{folder} is no run folder: it has no .hydra/config.yaml{hint}")
    return folder


def saved_config(folder: Path) -> DictConfig:
    """The config that the run was composed of, interpolations unresolved, its classes checked."""
    config = OmegaConf.load(folder / ".hydra/config.yaml")
    plain = OmegaConf.to_container(config, resolve=False)
    if not isinstance(plain, dict) or {"hydra", "defaults"} & set(plain):
        raise RunError(f"{folder}/.hydra/config.yaml is not the saved config of a run")
    check_targets(plain)
    assert isinstance(config, DictConfig)
    return config


def resume_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line of a run, made to start from a saved config if it says `resume=RUN`.

    Raises:
        RunError: no such run, no checkpoint in it, a sweep, or an override of a whole section.
    """
    named = [argument for argument in arguments if argument.startswith("resume=")]
    if not named or named[-1] in ("resume=null", "resume="):
        return list(arguments)
    if {"-m", "--multirun"} & set(arguments):
        raise RunError("resume= goes on with one run; a sweep goes on with resume_sweep=FOLDER")
    folder = find_run(named[-1].removeprefix("resume=").strip("'\"")).resolve()
    config = saved_config(folder)
    if not (folder / "checkpoints/last.ckpt").is_file():
        raise RunError(f"{folder} has no checkpoints/last.ckpt to resume from: start the run again")
    others = [argument for argument in arguments if argument not in named]
    for argument in others:
        key, _, value = argument.partition("=")
        if OmegaConf.is_dict(config.get(key)) and not value.startswith("{"):
            raise RunError(
                f"{argument} would change a whole section of a saved config; a resumed run takes single values, "
                f"such as {key}.KEY=VALUE"
            )
    path, conf = (str(each).replace("'", "\\'") for each in (folder, CONF))
    return [
        "--config-path", str(folder / ".hydra"), "--config-name", "config",
        *others, f"++resume='{path}'", f"hydra.run.dir='{path}'", "hydra.output_subdir=null", "hydra.job.name=train",
        f"hydra.searchpath=['file://{conf}']", "hydra/job_logging=run",
    ]  # fmt: skip


def build_datamodule(cfg: DictConfig) -> LightningDataModule:
    """The data module of a config."""
    from hydra.utils import instantiate

    return instantiate(cfg.data, _convert_="all")


def build_model(cfg: DictConfig, pretrained: bool) -> LightningModule:
    """The LightningModule of a config.

    With `pretrained` it starts from `cfg.model.weights` if that is set, and `cfg.data` takes the mean and
    deviation that these weights were trained with unless it has its own.
    """
    from hydra.utils import instantiate

    model_config = OmegaConf.to_container(cfg.model, resolve=True)
    assert isinstance(model_config, dict)
    source = model_config.pop("weights", None)
    model = instantiate(model_config, _convert_="all")
    if pretrained and source is not None:
        from src.networks.weights import load_weights, read_weights

        weights = read_weights(source, model.network)
        load_weights(model.network, weights)
        if weights.mean is not None and cfg.data.mean is None and cfg.data.std is None:
            cfg.data.mean, cfg.data.std = weights.mean, weights.std
    return model


def load_checkpoint(path: Path) -> dict[str, Any]:
    """The contents of a checkpoint file, on the CPU; runs no code from it.

    Raises:
        RunError: missing, truncated, or something else than tensors and plain containers inside.
    """
    import torch

    if not path.is_file():
        raise RunError(f"there is no checkpoint {path}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        others = sorted(p.name for p in path.parent.glob("*.ckpt") if p != path)
        hint = f"; other checkpoints beside it: {', '.join(others)}" if others else ""
        raise RunError(f"{path} is truncated or no checkpoint ({str(error).splitlines()[0][:120]}){hint}") from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "config", "classes", "preprocess"} <= set(checkpoint):
        raise RunError(f"{path} is no checkpoint of a run of this project")
    return checkpoint


class Run:
    """A run opened from its folder. Everything is read when it is first asked for.

    Args:
        folder: the run folder.
        checkpoint_path: the checkpoint to take weights from; by default the best, else the last.
    """

    def __init__(self, folder: Path, checkpoint_path: Path | None = None) -> None:
        self.folder = folder
        self._checkpoint_path = checkpoint_path

    @cached_property
    def results(self) -> dict[str, Any]:
        """What `results.json` says; empty while the run has not ended."""
        path = self.folder / "results.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def checkpoint_path(self) -> Path:
        """The best checkpoint by the run's metric, the last where there is no best."""
        if self._checkpoint_path is not None:
            return self._checkpoint_path
        checkpoints = self.folder / "checkpoints"
        best = (self.results.get("best") or {}).get("path")
        if best is not None and Path(best).parent == Path("checkpoints") and (self.folder / best).is_file():
            return self.folder / best
        found = [*sorted(checkpoints.glob("epoch_*.ckpt"), reverse=True), *checkpoints.glob("last.ckpt")]
        if not found:
            raise RunError(f"{self.folder} has no checkpoint: it was stopped before the end of its first epoch")
        return found[0]

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        """The checkpoint's contents: `state_dict`, `config`, `classes`, `preprocess`, `epoch`, ..."""
        return load_checkpoint(self.checkpoint_path)

    @cached_property
    def config(self) -> DictConfig:
        """The resolved config; `cfg.data.root` and the like may be changed before the data is asked for."""
        check_targets(self.checkpoint["config"])
        config = OmegaConf.create(self.checkpoint["config"])
        config.paths.output_dir = str(self.folder)
        return config

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of the logits."""
        return self.checkpoint["classes"]

    @cached_property
    def model(self) -> LightningModule:
        """The LightningModule with the checkpoint's weights, in eval mode."""
        self.config.model.compile = False  # to look at, export or predict with; training compiles again
        model = build_model(self.config, pretrained=False)
        model.load_state_dict(self.checkpoint["state_dict"])
        return model.eval()

    @property
    def network(self) -> nn.Module:
        """The network with the checkpoint's weights, in eval mode: normalised images (B, 3, S, S) -> logits (B, K)."""
        return self.model.network  # type: ignore[return-value]

    @cached_property
    def datamodule(self) -> LightningDataModule:
        """The run's data module, not yet set up, normalising as in training."""
        self.config.data.mean = self.checkpoint["preprocess"]["mean"]
        self.config.data.std = self.checkpoint["preprocess"]["std"]
        return build_datamodule(self.config)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """`csv/metrics.csv` with one row an epoch, indexed by epoch."""
        import pandas as pd

        path = self.folder / "csv/metrics.csv"
        if not path.is_file():
            raise RunError(f"{self.folder} has no csv/metrics.csv: no epoch ended, or logger=csv was off")
        frame = pd.read_csv(path)
        frame["epoch"] = frame["epoch"].bfill()  # the learning rate is written before its epoch
        frame = frame[frame.columns[~frame.columns.str.startswith("test/")]]
        return frame.dropna(how="all", subset=frame.columns.difference(["epoch", "step"])).groupby("epoch").first()

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """`predictions.csv` as `python -m src.eval` writes it: label, prediction and probabilities of each image."""
        import pandas as pd

        path = self.folder / "predictions.csv"
        if not path.is_file():
            raise RunError(f"{self.folder} has no predictions.csv yet: python -m src.eval run={self.folder}")
        return pd.read_csv(path)


def open_run(name: str | Path) -> Run:
    """Opens a run folder ("latest" for the newest), or the run around a checkpoint file.

    Raises:
        RunError: no run there.
    """
    register_resolvers()
    if Path(name).suffix == ".ckpt":
        path = Path(name)
        if not path.is_file():
            raise RunError(f"there is no checkpoint {path}")
        return Run(path.parent.parent if path.parent.name == "checkpoints" else path.parent, path)
    return Run(find_run(name))
