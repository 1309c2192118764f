"""Every file of `conf` composes, with every data set, and says what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from src.run import register_resolvers
from tests.conftest import ROOT

CONF = ROOT / "conf"


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


GROUPS = ("model", "optimizer", "scheduler", "trainer", "callbacks", "logger", "debug", "experiment", "hparams_search")
CHOICES = [(group, name) for group in GROUPS for name in names(group)]


@pytest.fixture(scope="module")
def class_folders(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    for split in ("train", "test"):
        for name in ("cat", "dog", "owl"):
            (root / split / name).mkdir(parents=True)
    return root


def composed(*overrides: str, folder: Path) -> dict:
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"paths.output_dir={folder}/run", *overrides])
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain


@pytest.mark.parametrize("data", names("data"))
def test_every_file_composes_with_every_data_set(data: str, class_folders: Path) -> None:
    root = [f"data.root={class_folders}"] if data == "folder" else []
    for group, name in CHOICES:
        if group == "experiment":  # an experiment brings its own data set
            continue
        cfg = composed(f"data={data}", f"{group}={name}", *root, folder=class_folders)
        assert cfg["model"]["network"]["num_classes"] == cfg["data"]["num_classes"], (group, name)


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_composes(name: str, class_folders: Path) -> None:
    root = [f"data.root={class_folders}"] if name.startswith("folder") else []
    composed(f"experiment={name}", *root, folder=class_folders)


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_every_file_opens_with_what_it_is_for(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    assert lines[0].startswith("# "), "the first line says what the file is for"


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_gives_its_command_and_its_result(name: str) -> None:
    text = (CONF / f"experiment/{name}.yaml").read_text()
    assert f"experiment={name}" in text
    assert "not yet measured" in text.lower() or "test accuracy" in text.lower()
