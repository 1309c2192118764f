"""What the terminal is told of a training: what was chosen before it, what came of it after it."""

import math
import re
from pathlib import Path
from typing import Any

from src.runs.folder import from_here

GROUPS = ("experiment", "model", "data", "optimizer", "scheduler", "loss", "trainer", "callbacks", "logger")
OF_THE_MODEL = ("optimizer", "scheduler", "loss", "metrics")  # what a model may take as the config has it


def chosen() -> list[str]:
    """What the command that runs has chosen and given, a line or two; nothing where no command runs."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    hydra = HydraConfig.get()
    groups = [f"{name}={hydra.runtime.choices[name]}" for name in GROUPS if hydra.runtime.choices.get(name)]
    given = [word for word in hydra.overrides.task if word not in groups]
    return [" ".join(words) for words in (groups, ["given:", *given] if given else []) if words]


def unheeded(cfg: Any) -> list[str]:
    """What the command that runs has given of those things `OF_THE_MODEL` that its model does not take."""
    from hydra.core.hydra_config import HydraConfig

    given = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    idle = [name for name in OF_THE_MODEL if cfg.model.get(name) != cfg.get(name)]
    return [word for word in given if re.split("[.=]", word.lstrip("+~"))[0] in idle]


def too_late(cfg: Any) -> str:
    """Says that a schedule of epochs ends with the rate that it begins with; empty where it does not."""
    schedule, ends = cfg.scheduler or {}, cfg.trainer.max_epochs or -1
    steps = schedule.get("factory", {})
    first = min(steps.get("milestones") or [steps.get("step_size") or math.inf])
    late = schedule.get("interval") == "epoch" and 0 < ends <= first < math.inf
    return late * f"the rate stays as it is: it would change after {first} epochs, and trainer.max_epochs={ends}"


def print_config(config: dict[str, Any]) -> None:
    """Shows a config as coloured YAML."""
    import yaml
    from rich import print as rich_print
    from rich.syntax import Syntax

    rich_print(Syntax(yaml.safe_dump(config, sort_keys=False), "yaml", background_color="default"))


def print_results(results: dict[str, Any], folder: Path) -> None:
    """One table of the final metrics, then where the run is and how to watch it."""
    import pandas as pd
    from rich import print as rich_print

    from src.runs.table import rich_table, shown

    cells: dict[str, dict[str, str]] = {}  # by metric, in the order in which they were logged, and by stage
    for key, value in results["metrics"].items():
        stage, _, name = key.partition("/")
        if stage in ("train", "val", "test"):
            cells.setdefault(name, {})[stage] = shown(name, value)
    table = pd.DataFrame(list(cells.values()), index=pd.Index(list(cells), name=""))
    table = table[[stage for stage in ("train", "val", "test") if stage in table]].fillna("").reset_index()
    epochs = f"{results['epochs']} epoch{'s' * (results['epochs'] != 1)}"
    used = results["utilisation"]
    share = f", {100 * used:.0f} % of the {results['matmul_gflops']:,.0f} GFLOP/s of a matrix product" if used else ""
    print(f"{results['parameters']:,} parameters, {epochs} in {results['seconds']:.0f} s{share}")
    rich_print(rich_table(table))
    if best := results["best"]:
        print(f"best {best['metric']} {shown(best['metric'], best['value'])} in epoch {best['epoch']} ({best['path']})")
    here = from_here(folder)
    print(f"run folder: {here}")
    if (folder / "tensorboard").is_dir():
        print(f"tensorboard --logdir {here}")
