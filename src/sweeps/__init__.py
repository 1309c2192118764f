"""Sweeps: many runs of one entry point, each in a process and a run folder of its own.

`folder` is what a sweep leaves on disk, `launcher` runs its jobs (`process` here, `slurm` on a cluster), `grid` and
`search` say which jobs there are, `summary` what came out. Nothing here loads torch.
"""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import OmegaConf

CONF = Path(__file__).resolve().parents[2] / "conf"


def register() -> None:
    """Tells Hydra of the launchers `process` and `slurm` and the sweepers `grid` and `optuna`.

    `process` and `grid` become the default of `-m`: they take the name of Hydra's own default, as an override in the
    primary config would keep `override /hydra/sweeper: optuna` in a file of hparams_search from having any effect.

    Call it before `hydra.main` reads the command line: where that says `resume_sweep=FOLDER`, the command that
    started the sweep takes its place. Raises FileNotFoundError where FOLDER is no sweep.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    plugins = Plugins.instance()  # before the imports: making it loads Hydra's own plugins afresh
    from src.sweeps.folder import resumed_command
    from src.sweeps.grid import GridSweeper
    from src.sweeps.process import ProcessLauncher
    from src.sweeps.search import OptunaSweeper
    from src.sweeps.slurm import SlurmLauncher

    of_hydra = plugins.is_in_toplevel_plugins_module

    def is_in_toplevel_plugins_module(clazz: str) -> bool:
        """Hydra 1.3 builds only what lies in a package named hydra_plugins, even where the class is registered."""
        return clazz.startswith("src.sweeps.") or of_hydra(clazz)

    plugins.is_in_toplevel_plugins_module = is_in_toplevel_plugins_module  # type: ignore[method-assign]
    for plugin in (ProcessLauncher, SlurmLauncher, GridSweeper, OptunaSweeper):
        plugins.register(plugin)
    for group, ours in (("hydra/launcher", "process"), ("hydra/sweeper", "grid")):
        ConfigStore.instance().store(group=group, name="basic", node=OmegaConf.load(CONF / group / f"{ours}.yaml"))
    sys.argv[1:] = resumed_command(sys.argv[1:])
