"""Where Hydra looks for sweepers: in a package `hydra_plugins` on Python's path. The work is in src/sweeps."""

import sys
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# How a sweep is run, not which jobs it has: with another value of these it is still the same sweep.
HOW = ("hydra.launcher", "hydra/launcher", "hydra.sweep.", "hydra.mode", "hydra.sweeper.n_trials")
# Hydra's settings of the sweep itself, which its jobs must not see.
OF_THE_SWEEP = (*HOW, "hydra.sweeper", "hydra/sweeper", "hydra.run.dir")


class StudySweeper(Sweeper):
    """`hydra/sweeper=study`; its options are in conf/hydra/sweeper/study.yaml, which `src.sweeps.sweep.run` reads.

    Attributes:
        settings: the config composed for the sweep, with its section `hydra`.
        passed_on: the overrides of Hydra's own settings that its jobs get.
        flags: of the command line, such as `--config-name`.
        identity: what is the same whenever the sweep is started again.
    """

    def __init__(self, **options: Any) -> None:
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        HydraConfig.instance().cfg = None  # as in 1.3; with it, 1.4 takes the folder of each job to be null
        self.loader = hydra_context.config_loader
        self.settings = config
        task, of_hydra = config.hydra.overrides.task, config.hydra.overrides.hydra
        self.passed_on = [override for override in of_hydra if not override.lstrip("+~").startswith(OF_THE_SWEEP)]
        self.flags = [word for word in sys.argv[1:] if word not in (*task, *of_hydra, "-m", "--multirun")]
        same = (override for override in (*task, *of_hydra) if not override.lstrip("+~").startswith(HOW))
        self.identity = [str(config.hydra.job.config_name), *same]

    def sweep(self, arguments: list[str]) -> None:
        from src.sweeps.sweep import run  # every start of Hydra loads this file, and most are no sweep

        run(self, arguments)

    def parse(self, arguments: list[str]) -> list[Override]:
        """The sweeper's own params and the command line, as Hydra reads them; of two for one key the later counts."""
        lines = [*(f"{key}={value}" for key, value in self.settings.hydra.sweeper.params.items()), *arguments]
        parsed = OverridesParser.create(self.loader).parse_overrides([*lines, *self.passed_on])
        return list({override.get_key_element(): override for override in parsed}.values())

    def compose(self, jobs: list[list[str]]) -> list[DictConfig]:
        """The jobs' configs, composed so that Hydra tells of a wrong key or choice before any job starts.

        Composing takes some 0.1 s, so jobs that differ only in plain values are composed once.
        """

        def choices(job: list[str]) -> tuple[str, ...]:
            return tuple(o for o in job if self.loader.get_group_options(o.partition("=")[0].lstrip("+~")))

        different = {choices(job): job for job in jobs}.values()
        own = ([override for override in job if override not in self.passed_on] for job in different)
        return [self.loader.load_sweep_config(self.settings, overrides) for overrides in own]
