"""From a config to its objects, and the resolvers that the configs use."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from src.runs.folder import CONF, new_run

# Hydra 1.4 deprecates what 1.3 needs, and asks for what 1.3 does not know.
NEXT = tuple(map(int, hydra.__version__.split(".")[:2])) >= (1, 4)
VERSION_BASE: dict[str, Any] = {} if NEXT else {"version_base": "1.3"}
REPLACES: Any = {"replace": True} if NEXT else {}  # what a second opening of a run puts into Hydra's store

if sys.version_info >= (3, 14):  # whose argparse reads at once the help that Hydra writes when asked (Hydra #3121)
    argparse.ArgumentParser._check_help = lambda *_: None

# How a word in the names of those metrics ends that are the better the less they are.
LESS_IS_BETTER = ("loss", "error", "mse", "mae", "distance", "ece", "nll", "brier", "kid", "seconds", "parameters")
# What of a data section decides which images are held out, by split.
SPLITTING = {"val": ("split_seed", "val_size", "folds", "fold", "limit", "test_size"), "test": ("test_size",)}


def mode_of(metric: Any, known: Any = None, mode: str = "max") -> str:
    """Which values of a metric are the better ones: "min" for a loss, an error or a cost, else "max".

    That of the metric `known`, such as `optimized_metric`, is `mode`.
    """
    if metric is not None and metric == known:
        return mode
    words = str(metric).rpartition("/")[2].split("_")
    return "min" if any(word.endswith(LESS_IS_BETTER) for word in words) else "max"


def run_name(seed: int) -> str:
    """What tells a run from others in TensorBoard: model, data and seed; the seed alone outside a job of Hydra's."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = [choices.get(group) for group in ("model", "data")]
    return "_".join([*(name.replace("/", "-") for name in names if name), f"seed{seed}"])


def register_resolvers() -> None:
    """Makes the resolvers of `conf` known, functions here: `${mode_of:...}`, `${new_run:...}` and `${run_name:...}`."""
    register: Any = getattr(OmegaConf, "register_resolver" if NEXT else "register_new_resolver")
    register("mode_of", mode_of, replace=True)
    register("run_name", run_name, replace=True)
    register("new_run", new_run, replace=True, use_cache=True)


def compose(name: str, overrides: Sequence[str] = (), **options: Any) -> DictConfig:
    """`conf/<name>.yaml` with some overrides; `options` are those of Hydra's own `compose`."""
    register_resolvers()
    with hydra.initialize_config_dir(str(CONF), **VERSION_BASE):
        return hydra.compose(name, list(overrides), **options)


def build(node: Any, **objects: Any) -> Any:
    """The object that a config node describes; the one call of Hydra's `instantiate`."""
    return hydra.utils.instantiate(node, _convert_="all", **objects, **unchecked("_execution_whitelist_"))


def unchecked(option: str) -> dict[str, Any]:
    """Hydra 1.4 asks what a config may call: all that the user's own says; a saved one has passed `check_config`."""
    return {option: hydra.utils.UNSAFE_DISABLE_EXECUTION_CHECKS} if NEXT else {}  # type: ignore[attr-defined]


def build_each(nodes: Any) -> list[Any]:
    """The objects of a group of named nodes (callbacks, loggers); null switches off one of them, or the group."""
    return [build(node) for node in (nodes or {}).values() if node is not None]


def build_model(cfg: DictConfig, datamodule: Any = None) -> Any:
    """The LightningModule of a config.

    With a data module it starts from `cfg.model.weights`, if that is set, and the images are normalised as those
    that the weights were trained on, unless the config says how.
    """
    node: Any = OmegaConf.to_container(cfg.model, resolve=True)
    source = node.pop("weights", None)
    model = build(node)
    if datamodule is not None and source is not None:
        from src.data.files import given_up_when_stalled
        from src.networks.weights import load_weights, read_weights

        with given_up_when_stalled():
            weights = read_weights(source, model.network)
        load_weights(model.network, weights)
        normalise_as(cfg, datamodule, weights.mean, weights.std)
    return model


def normalise_as(cfg: DictConfig, datamodule: Any, mean: Any, std: Any) -> None:
    """Normalises images as those that the weights were trained on, if that is known, unless the config says how."""
    if mean is not None and cfg.data.mean is None and cfg.data.std is None:
        cfg.data.mean, cfg.data.std = mean, std
        datamodule.normalise_by(mean, std)
