"""What the networks of conf/model cost. Loads torch where it is called."""

from collections.abc import Sequence

import pandas as pd

from src import errors
from src.runs.build import build, compose
from src.runs.folder import CONF
from src.runs.values import check_values

SIZE = ("data.num_classes=1000", "data.image_size=224")  # what they are measured at by default


def networks(overrides: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """The costs of the networks of conf/model, at `SIZE` unless the overrides say otherwise.

    Returns:
        A row a network, see `src.networks.cost.Cost`, and why the others could not be built.
    """
    import torch

    from src.networks.cost import describe

    if wrong := [word for word in overrides if "=" not in word]:
        raise ValueError(f"{wrong[0]}: options are written KEY=VALUE, such as data.image_size=224")
    given = dict(word.split("=", 1) for word in [*SIZE, *overrides])
    every = ",".join(sorted(path.stem for path in (CONF / "model").glob("*.yaml")))
    costs, failed = {}, {}
    for name in given.pop("model", every).split(","):
        cfg = compose("train", [f"model={name}", *(f"{key}={value}" for key, value in given.items())])
        check_values(cfg, "train")
        try:
            with torch.device("meta"):  # shapes without memory or work
                costs[name] = describe(build(cfg.model.network), cfg.data.image_size, cfg.data.channels)
        except errors.USER_ERRORS as error:
            failed[name] = str(errors.user_error(error)).splitlines()[0]
    return pd.DataFrame(list(costs.values()), index=pd.Index(costs, name="network")), failed
