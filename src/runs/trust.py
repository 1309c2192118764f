"""What a config that lies in a run folder may say: it is data, which somebody else may have written.

Nothing in it is interpolated. Each place in it builds only the kind of object that it is there for, of this project or
from the modules of libraries that such objects are defined in; packages of your own, and other modules of libraries,
are named in `trusted` of conf/train.yaml. What it has written, is written into its folder, or where this machine's logs
lie.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from src.runs.folder import CONF, CONFIG, RunError, read_yaml

PREPROCESS = {"image_size", "mean", "std", "resize"}  # what a checkpoint says of its data beside the config
MOST, DEEPEST = 100_000, 1_000  # values, and letters of a place: a config that has more was made to hang its reader

# The kind of object that each place of a config builds, and where libraries define such objects: there, making one
# fetches nothing, and runs nothing of what it reads. Elsewhere nothing is built.
SOURCE = r"data\.(val_|test_)?source"
MODULE, TRANSFORMS = "torch.nn.Module", ("torch.nn", "torchvision.transforms")
NETWORKS = ("torch.nn", "torchvision.models", "torchvision.ops", "timm.layers", "timm.models")
METRICS = [
    f"torchmetrics.{name}"
    for name in ("aggregation", "classification", "clustering", "nominal", "regression", "segmentation", "wrappers")
]
KINDS: dict[str, tuple[str, Collection[str]]] = {
    r"data": ("lightning.LightningDataModule", ()),
    r"data\.augment(\..+)?": (MODULE, TRANSFORMS),
    rf"{SOURCE}": ("torch.utils.data.Dataset", ("torchvision.datasets",)),
    rf"{SOURCE}\.transform(\..+)?": (MODULE, TRANSFORMS),
    r"model": ("lightning.LightningModule", ()),
    r"model\.network(\..+)?": (MODULE, NETWORKS),
    r"(model\.)?loss(\..+)?": (MODULE, ("torch.nn", "timm.loss")),
    r"(model\.)?metrics(\..+)?": ("torchmetrics.Metric", METRICS),
    r"(model\.)?optimizer(\..+)?": ("torch.optim.Optimizer", ("torch.optim", "timm.optim")),
    r"(model\.)?scheduler(\..+)?": ("torch.optim.lr_scheduler.LRScheduler", ("torch.optim",)),
    r"callbacks\.[^.]+": ("lightning.Callback", ("lightning.pytorch.callbacks",)),
    r"logger\.[^.]+": ("lightning.pytorch.loggers.Logger", ("lightning.pytorch.loggers",)),
    r"trainer": ("lightning.Trainer", ("lightning.pytorch.trainer",)),
    r"trainer\.strategy": ("lightning.pytorch.strategies.Strategy", ("lightning.pytorch.strategies",)),
    r"trainer\.profiler": ("lightning.pytorch.profilers.Profiler", ("lightning.pytorch.profilers",)),
}
# Data sets of torchvision that unpickle what they find in their folder, or write there.
REFUSED = ("torchvision.datasets.lsun", "torchvision.datasets.phototour")
# Places whose objects write files, and what looks like the place of a file, by its name or by itself.
WRITERS = r"(callbacks|logger|trainer)\."
PLACES = r".*(dir|dirpath|_path|location|folder|_registry)|_args_"
WRITTEN = ("export", "figures", "tensorboard")  # folders in a run's, that commands write into
ELSEWHERE = r"~|.*://|(.*[/\\])?\.\.([/\\]|$)|[/\\]"


def trusted_packages(more: Iterable[str] = ()) -> set[str]:
    """The user's own packages, whose classes a saved config may build: those of conf/train.yaml, and `more`."""
    return {*((read_yaml(CONF / "train.yaml") or {}).get("trusted") or ()), *(more or ())}


def check_config(config: Any, trusted: Iterable[str] = ()) -> None:
    """Refuses, by name, whatever a saved config may not hold.

    Raises:
        RunError: an interpolation, a part of Hydra's own, no plain value, or a class that its place is not there for
            or of a package that is not trusted.
    """
    packages = trusted_packages(trusted)
    for place, value in walk(config):
        above, _, key = place.rpartition(".")
        if key == "_target_":
            _check_target(value, packages, above)
        if place in ("hydra", "defaults") or key == "defaults":
            raise RunError(f"the saved config has a part {place!r}; a run's own has none")
        if isinstance(value, str) and "${" in value:
            raise RunError(f"the saved config has an interpolation under {place!r}, {value!r}; a run's own has none")
        if not isinstance(value, str | int | float | list | dict | None):
            raise RunError(f"the saved config has a {type(value).__name__} under {place!r}; a run's own has none")


def check_places(config: dict[str, Any], own: Collection[Path], given: Collection[str] = ()) -> None:
    """Refuses, by name, a place outside the folders `own` where a saved config would have files written.

    Args:
        given: options that the command line sets, which are the user's own.

    Raises:
        RunError: there is one.
    """
    for place, value in walk(config):
        key = place.rpartition(".")[2]
        writes = key == "cache_dir" if place.startswith("data.") else re.match(WRITERS, place)
        if not writes or not isinstance(value, str) or key == "_target_" or place in given:
            continue
        if re.fullmatch(PLACES, key) or re.match(ELSEWHERE, value):
            path = Path(value.removeprefix("sqlite:///")).expanduser().resolve()
            if not any(path.is_relative_to(folder.resolve()) for folder in own):
                raise RunError(
                    f"the saved config would write to {place}={value}, which is neither in its folder nor among the "
                    f"logs here; that is refused, unless the command says {place}=... itself"
                )


def check_links(folder: Path) -> None:
    """Refuses a run folder with a symbolic link in it that leads out.

    Around a checkpoint that lies elsewhere, only what commands write into is looked at.

    Raises:
        RunError: there is one.
    """
    tops = [folder] if (folder / CONFIG).is_file() else [folder / name for name in WRITTEN]
    for path in (path for top in tops for path in (top, *top.rglob("*"))):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise RunError(f"{path} is a link to {path.resolve()}, outside the run folder, which is refused: remove it")


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """All values in plain containers, each with its place, dotted; those of a list have the list's.

    Raises:
        RunError: there are too many, or they lie too deep, as in containers that hold each other.
    """
    stack: list[tuple[str, Any]] = [("", content)]
    for _ in range(MOST):
        if not stack:
            return
        place, value = stack.pop()
        yield place, value
        if len(place) > DEEPEST:
            break
        if isinstance(value, dict):
            stack += [(f"{place}.{key}".lstrip("."), inside) for key, inside in value.items()]
        elif isinstance(value, list):
            stack += [(place, inside) for inside in value]
    raise RunError("the saved config holds more, or deeper, than a run's own")


def _check_target(target: Any, own: set[str], place: str) -> None:
    from hydra.utils import get_class

    kind, homes = next((kind for pattern, kind in KINDS.items() if re.fullmatch(pattern, place)), (None, ()))
    refused = f"the saved config asks for {target!r} under {place!r}; that is refused, for "
    if kind is None:
        raise RunError(f"{refused}nothing is built there")
    package = str(target).partition(".")[0]
    trusted = _within(str(target), own)
    if not isinstance(target, str) or not (trusted or package in {"src", *(home.split(".")[0] for home in homes)}):
        raise RunError(f"{refused}{package} is not among the packages trusted here (trusted in conf/train.yaml)")
    try:
        found = get_class(target)
    except Exception as error:  # whatever importing a module raises
        raise RunError(f"{refused}there is no such class here ({error})") from error
    if not issubclass(found, get_class(kind)):
        raise RunError(f"{refused}it is no {kind}")
    module = found.__module__
    if not trusted and (not _within(module, ("src", *homes)) or _within(module, REFUSED)):
        raise RunError(f"{refused}{module} is not among the modules trusted there (trusted in conf/train.yaml)")


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(f"{name}.".startswith(f"{package}.") for package in packages)
