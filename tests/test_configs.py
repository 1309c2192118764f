"""Every file of `conf` composes, with every data set, and says what it is for."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from src.data.draw import Transform
from src.runs.build import build
from src.runs.values import check_values, named_values, rule_of
from tests.conftest import ROOT, composed

CONF = ROOT / "conf"
# What builds, copies of sections, and what torchmetrics checks. Everything else that conf has has a rule.
UNRULED = (
    r"scheduler$|.*\._(target|partial)_$|model\.(optimizer|scheduler|loss|metrics)\b|metrics\.\w+\.|data\.source\."
)
NEEDED = {  # what a data set must be told
    "data=dataset": ["data.source._target_=torchvision.datasets.FakeData"],
    "data=torchvision": ["data.name=FashionMNIST"],
    "data=huggingface": ["data.name=folder"],
}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def defaults(file: str) -> list[Any]:
    return yaml.safe_load((CONF / file).read_text()).get("defaults", [])


def plain(*overrides: str, folder: Path) -> dict[str, Any]:
    """Composed, every interpolation resolved, nothing missing, each value as its rule has it."""
    needed = [option for override in overrides for option in NEEDED.get(override, ())]
    cfg = composed(*overrides, *needed, folder=folder)
    check_values(cfg, "train")
    unruled = {names[-1] for names, *_ in named_values(cfg) if not any(map(rule_of, [f"train:{names[-1]}", *names]))}
    assert not {name for name in unruled if not re.match(UNRULED, name)}
    content = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(content, dict)
    return content


@cache
def default_optimizer() -> Any:
    return OmegaConf.to_container(composed().optimizer, resolve=True)


# The groups that conf/train.yaml chooses from. An experiment brings its own data set.
GROUPS = {entry.removeprefix("optional ") for d in defaults("train.yaml") if isinstance(d, dict) for entry in d}
CHOICES = {g: names(g) for g in sorted(GROUPS - {"data", "experiment", "local", "paths"}) if names(g)}
DATA = [name for name in names("data") if name != "base"]
SHIPPED = sorted(path for path in CONF.rglob("*.yaml") if path.parent.name != "local" or path.stem == "example")


@pytest.mark.parametrize("shift", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, len(DATA)))])
def test_every_file_composes_with_every_data_set(shift: int, tmp_path: Path) -> None:
    every = {"data": DATA[shift:] + DATA[:shift], **CHOICES}
    for i in range(max(map(len, every.values()))):  # one choice of each group at a time
        choice = {group: choices[i % len(choices)] for group, choices in every.items()}
        cfg = plain(*[f"{group}={name}" for group, name in choice.items()], folder=tmp_path)
        assert cfg["model"]["network"]["num_classes"] == cfg["data"]["num_classes"], choice


@pytest.mark.parametrize("data", DATA)
def test_every_data_set_has_a_root_and_channels_that_the_network_takes(data: str, tmp_path: Path) -> None:
    cfg = plain(f"data={data}", "data.root=elsewhere", "data.channels=1", folder=tmp_path)
    assert (cfg["data"]["root"], cfg["model"]["network"]["channels"]) == ("elsewhere", 1)


def test_an_augmentation_follows_the_data_sets_own_and_leaves_the_rest_to_be_overridden(tmp_path: Path) -> None:
    def composed_of(*overrides: str) -> dict[str, Any]:
        return plain("data=cifar10", *overrides, folder=tmp_path)["data"]["augment"]

    assert composed_of("data/augment=none") == {"crop": None, "flip": None}
    given = composed_of(
        "experiment=cifar10", "data/augment=rand", "data.augment.flip=null", "data.augment.rand.magnitude=5"
    )
    assert list(given) == ["crop", "flip", "rand", "cutout"]
    assert (given["flip"], given["rand"]["magnitude"]) == (None, 5)


@pytest.mark.parametrize("name", sorted(set(names("data/augment")) - {"none", "basic"}))
def test_a_policys_file_builds_a_batched_transform(name: str) -> None:
    assert isinstance(build(yaml.safe_load((CONF / f"data/augment/{name}.yaml").read_text())[name]), Transform)


@pytest.mark.parametrize("name", names("experiment"))
def test_an_experiment_composes_chooses_its_optimizer_and_gives_its_command_and_result(
    name: str, tmp_path: Path
) -> None:
    cfg = plain(f"experiment={name}", folder=tmp_path)
    network = cfg["model"]["network"]
    if (model := name.removeprefix("cifar10_")) in names("model"):
        assert network == plain(f"model={model}", "data=cifar10", folder=tmp_path)["model"]["network"]
    text = (CONF / f"experiment/{name}.yaml").read_text()
    assert f"experiment={name}" in text
    assert "\n# Measured: " in text or "Test accuracy of a classifier" in text or "Test accuracy of TinyVGG" in text
    lineage = defaults(f"experiment/{name}.yaml")
    for entry in lineage:  # grows with what it inherits
        lineage += defaults(f"experiment/{entry}.yaml") if isinstance(entry, str) and entry != "_self_" else []
    brings_its_own = cfg["model"]["optimizer"] != cfg["optimizer"]  # as a GAN
    assert brings_its_own or any("override /optimizer" in entry for entry in lineage if isinstance(entry, dict))


@pytest.mark.parametrize("name", names("model"))
def test_a_models_file_builds_the_network_of_its_name_and_leaves_the_optimizer_alone(name: str, tmp_path: Path) -> None:
    if name == "timm":
        pytest.importorskip("timm", reason="timm is an optional extra")
    cfg = plain(f"model={name}", "data=digits", folder=tmp_path)
    with torch.device("meta"):
        network = build(cfg["model"]["network"])
    if name not in ("timm", "torchvision"):
        assert getattr(network, "torchvision_name", None) in (None, name)
    if name.startswith(("vgg", "nin")):
        assert any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules()) == name.endswith("_bn")
    depth = cfg["model"]["network"].get("depth")
    assert depth is None or f"resnet{depth}" == name.removesuffix("_cifar")
    assert cfg["optimizer"] == default_optimizer()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_what_it_is_for(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# "), "the first line says what the file is for"
