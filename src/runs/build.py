"""From a config to its objects, and what a saved config may build.

A config that lies in a run folder is data, which somebody else may have written: nothing in it is interpolated, and
each place in it builds only the kind of object that it is there for, from the packages trusted here. Packages of your
own are named in `trusted` of conf/train.yaml.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from src.runs.folder import RunError, new_run, read_yaml

CONF = Path(__file__).resolve().parents[2] / "conf"
TRUSTED = {"src", "lightning", "timm", "torch", "torchmetrics", "torchvision"}

SOURCES = ("data.source", "data.val_source", "data.test_source")

# The kind of object that each place of a config builds; the longest place that fits counts.
KINDS = {
    "data": "lightning.LightningDataModule",
    "data.augment": "torch.nn.Module",
    **dict.fromkeys(SOURCES, "torch.utils.data.Dataset"),
    **{f"{source}.transform": "torch.nn.Module" for source in SOURCES},
    "model": "lightning.LightningModule",
    "model.network": "torch.nn.Module",
    "model.loss": "torch.nn.Module",
    "model.metrics": "torchmetrics.Metric",
    "model.optimizer": "torch.optim.Optimizer",
    "model.scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "optimizer": "torch.optim.Optimizer",
    "scheduler": "torch.optim.lr_scheduler.LRScheduler",
    "loss": "torch.nn.Module",
    "metrics": "torchmetrics.Metric",
    "callbacks": "lightning.Callback",
    "logger": "lightning.pytorch.loggers.Logger",
    "trainer": "lightning.Trainer",
    "trainer.strategy": "lightning.pytorch.strategies.Strategy",
    "trainer.profiler": "lightning.pytorch.profilers.Profiler",
}
LESS_IS_BETTER = ("loss", "error", "ece", "seconds", "parameters")


def mode_of(metric: Any) -> str:
    """Which values of a metric are the better ones: "min" for a loss, an error or a cost, else "max"."""
    name = str(metric).rpartition("/")[2]
    return "min" if name.endswith(LESS_IS_BETTER) else "max"


def run_name(seed: int) -> str:
    """What tells a run from others in TensorBoard: model, data and seed; the seed alone outside a job of Hydra's."""
    from hydra.core.hydra_config import HydraConfig

    choices = HydraConfig.get().runtime.choices if HydraConfig.initialized() else {}
    names = [choices.get(group) for group in ("model", "data")]
    return "_".join([*(name.replace("/", "-") for name in names if name), f"seed{seed}"])


def register_resolvers() -> None:
    """Makes the resolvers of `conf` known: `${mode_of:METRIC}`, `${new_run:PARENT}` and `${run_name:SEED}`."""
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    OmegaConf.register_new_resolver("run_name", run_name, replace=True)
    OmegaConf.register_new_resolver("new_run", new_run, replace=True, use_cache=True)


def trusted_packages(more: Iterable[str] = ()) -> set[str]:
    """The packages whose classes a saved config may build: those of this project, of conf/train.yaml, and `more`."""
    return {*TRUSTED, *((read_yaml(CONF / "train.yaml") or {}).get("trusted") or ()), *(more or ())}


def check_config(config: Any, trusted: Iterable[str] = (), place: str = "") -> None:
    """Refuses, by name, whatever a saved config may not hold.

    Raises:
        RunError: an interpolation, or a class that its place is not there for or of a package that is not trusted.
    """
    packages = trusted if isinstance(trusted, set) else trusted_packages(trusted)
    if isinstance(config, str) and "${" in config:
        raise RunError(f"the saved config has an interpolation under {place!r}, {config!r}; a run's own has none")
    items = enumerate(config) if isinstance(config, list) else config.items() if isinstance(config, dict) else ()
    for key, value in items:
        if key == "_target_":
            _check_target(value, packages, place)
        check_config(value, packages, place if isinstance(config, list) else f"{place}.{key}".lstrip("."))


def _check_target(target: Any, packages: set[str], place: str) -> None:
    from hydra.utils import get_class

    fitting = [kind for kind in KINDS if place == kind or place.startswith(f"{kind}.")]
    refused = f"the saved config asks for {target!r} under {place!r}; that is refused, for "
    if not fitting:
        raise RunError(f"{refused}nothing is built there")
    package = str(target).partition(".")[0]
    if not isinstance(target, str) or package not in packages:
        raise RunError(f"{refused}{package} is not among the packages trusted here (trusted in conf/train.yaml)")
    kind = KINDS[max(fitting, key=len)]
    try:
        found = get_class(target)
    except Exception as error:  # whatever importing a module raises
        raise RunError(f"{refused}there is no such class here ({error})") from error
    if not issubclass(found, get_class(kind)):
        raise RunError(f"{refused}it is no {kind}")
    if kind == KINDS["data.source"] and _may_unpickle(found.__module__):
        raise RunError(
            f"{refused}of the libraries' data sets only torchvision's open here: others unpickle what they read"
        )


def _may_unpickle(module: str) -> bool:
    """Whether a data set of this module may unpickle files, as torch's pipes, timm's tar reader and LSUN's cache do."""
    library = module.partition(".")[0] in TRUSTED - {"src"}
    return library and (not module.startswith("torchvision.datasets.") or module.endswith(".lsun"))


def build(node: Any, **objects: Any) -> Any:
    """The object that a config node describes; the one call of Hydra's `instantiate`."""
    from hydra.utils import instantiate

    return instantiate(node, _convert_="all", **objects)


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
        from src.networks.weights import load_weights, read_weights

        weights = read_weights(source, model.network)
        load_weights(model.network, weights)
        if weights.mean is not None and cfg.data.mean is None and cfg.data.std is None:
            cfg.data.mean, cfg.data.std = weights.mean, weights.std
            datamodule.normalise_by(weights.mean, weights.std)
    return model
