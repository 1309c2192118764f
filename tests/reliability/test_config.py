"""Command lines at random: each does its work or ends with one message, leaves no folder then, and never a traceback.

Hypothesis changes valid command lines. `make test` tries a few that are the same each time, the slow test as many as
RELIABILITY_EXAMPLES says, new ones each day; one that fails is printed, and becomes a case of `FOUND`.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from src import cli
from tests.conftest import composed, train_here

# `python -m src.report` has a parser of its own, and takes options of a training's config in its part `networks`.
PARSED = {"report": "report", "networks": "report"}
PREPARE = {"train": cli.go_on, "eval": import_module("src.eval").prepare}
EXAMPLES = int(os.environ.get("RELIABILITY_EXAMPLES", 300))
SMALL = ["data.limit=40", "data.batch_size=8", "model.network.hidden_units=2", "trainer=cpu"]
SMALL += ["trainer.fast_dev_run=true"]
GROUPS = {
    "model": ["tinyvgg", "resnet20_cifar", "speedrun", "nothing", "null", "[a,b]"],
    "optimizer": ["sgd", "adamw", "muon", "adan", "null"],
    "scheduler": ["cosine", "plateau", "onecycle", "step", "none", "null", "cosin"],
    "loss": ["cross_entropy", "focal", "bce", "mse"],
    "callbacks": ["none", "ema", "finetune", "[ema,finetune]", "emma"],
    "logger": ["none", "default", "null"],
    "data/augment": ["none", "basic", "trivial", "rand", "auto", "augmix", "mix"],
    "debug": ["fast_dev_run", "overfit", "bug"],
    "metrics": ["macro", "none", "micro"],
}
# What people type: numbers of every kind, words, and what YAML and Hydra make something else of.
VALUES = ["null", "true", "abc", "''", "-1", "0", "1", "2", "0.5", "1.5", "-0.1", "1e-3", "1e400", "nan", "inf"]
REPORT = ["--paper", "--out", "--out=x", "--outt", "--paper=1", "networks", "compare", ".", "nothing", *VALUES]
VALUES += ["[]", "[1]", "[1,2]", "{}", "{a:1}", "'a b'", "é", "~", "10000000000000000", "${seed}", "1_0", "0x1f"]


def keys_of(name: str) -> list[str]:
    """The options of a config that hold plain values."""

    def inside(node: Any, place: str) -> list[str]:
        if not isinstance(node, dict):
            return [place]
        return [key for part, child in node.items() for key in inside(child, f"{place}.{part}".lstrip("."))]

    # These start programs and further processes.
    aside = ("_target_", "_partial_", "resume_sweep", "num_workers", "devices", "num_nodes", "strategy")
    keys = inside(OmegaConf.to_container(composed(name=name)), "")
    return [key for key in keys if not key.startswith(("paths.", "hydra")) and not key.endswith(aside)]


def words(name: str) -> st.SearchStrategy[list[str]]:
    if name == "report":
        return st.lists(st.sampled_from(REPORT), min_size=1, max_size=3)
    keys = keys_of("train" if name == "networks" else name)
    option = st.tuples(st.sampled_from(keys), st.sampled_from(VALUES)).map("=".join)
    typed = option.flatmap(lambda word: st.integers(0, len(word) - 1).map(lambda at: word[:at] + word[at + 1 :]))
    choice = st.sampled_from([f"{group}={option}" for group, options in GROUPS.items() for option in options])
    prefixed = st.tuples(st.sampled_from(["+", "++", "~"]), option).map("".join)
    flag = st.sampled_from(["--model", "-x", "word", "=", "a=", "=b", "--cfg", "model.=1", "data..limit=3", "a b=c"])
    kinds = [option, option, option, typed, prefixed, flag] + ([choice, choice] if name == "train" else [])
    return st.lists(st.one_of(kinds), min_size=1, max_size=3)


def attempt(name: str, given: list[str], folder: Path) -> tuple[int, str]:
    """Runs an entry point in this process: its exit code, and what it printed as errors.

    Raises:
        Exception: whatever it let through, as a traceback would show.
    """
    module, written = import_module(f"src.{PARSED.get(name, name)}"), io.StringIO()
    task = getattr(module, "main", None) or module.evaluate
    places = [f"paths.log_dir={folder}/logs", f"paths.data_dir={folder}/data", "local=[]"] if name != "report" else []
    before = dict(os.environ)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.chdir(folder)  # for what is written to a place of any name
        patch.setattr("sys.argv", [name, *given, *places])
        patch.setenv("HYDRA_FULL_ERROR", "0")
        try:
            with contextlib.redirect_stderr(written), contextlib.redirect_stdout(io.StringIO()):
                task() if name in PARSED else cli.run(task, name, PREPARE.get(name, lambda _: None))
            code = 0
        except SystemExit as exit:
            code = int(exit.code or 0)
        finally:
            os.environ.clear()
            os.environ.update(before)
    return code, written.getvalue()


def check(name: str, given: list[str], changed: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        code, written = attempt(name, [*given, *changed], Path(folder))
        assert code in (0, 1, 2), written
        assert "Traceback" not in written
        if code:
            assert written.count("error: ") == 1, written  # ours, or that of Hydra's flags
            assert not list(Path(folder).glob("logs/train/runs/*/*")), written


FOUND: dict[str, list[list[str]]] = {
    "train": [["callbacks.model_checkpoint.monitor=0x1f"], ["data.seed=null"]],
    "eval": [
        ["trainer.precision=true", "~trainer.precision=null"],
        ["split=val", "~data.val_size"],
        ["calibrate=true", "data.mean=1", "~data.mean=1"],
    ],
    "predict": [],
    "export": [],
    "sample": [["classes=[]"]],
    "shards": [],
    "report": [],
    "networks": [],
}


def fuzzed(name: str, examples: int, start: int) -> Callable[[list[str]], None]:
    """A property of the entry point `name`: whatever `words` change on `given`, `check` holds."""

    def property(given: list[str]) -> None:
        @seed(start)
        @settings(
            max_examples=examples, deadline=None, database=None, phases=[Phase.explicit, Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given_words(name)
        def holds(changed: list[str]) -> None:
            check(name, given, changed)

        holds()

    return property


def given_words(name: str) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for case in FOUND[name]:
            function = example(case)(function)
        return given(words(name))(function)

    return decorate


def options_of(name: str, trained_run: Path, folder: Path) -> list[str]:
    run = folder / "run"
    if name == "sample":
        gan = ["model=sngan", "model.network.width=2", "trainer=cpu", "trainer.precision=32-true"]
        train_here(composed("data.limit=40", "data.batch_size=8", *gan, "trainer.max_epochs=1", folder=folder))
    else:
        shutil.copytree(trained_run, run)  # evaluations write into it
    if name == "shards":
        pytest.importorskip("litdata", reason="litdata is an optional extra")
    return {
        "train": SMALL,
        "eval": [f"run={run}", "data.limit=40"],
        "predict": [f"run={run}", f"input={folder}/none.png"],
        "export": [f"run={run}", "format=torch", f"path={folder}/model.pt2"],
        "sample": [f"run={folder}/run", "count=2", "paths.output_dir=out"],
        "shards": ["data=digits", "data.limit=40", "out=out"],
        "report": [str(run)],
        "networks": ["networks", "model=tinyvgg"],
    }[name]


@pytest.mark.parametrize("name", FOUND)
def test_a_few_command_lines_train_or_end_with_one_message(name: str, trained_run: Path, tmp_path: Path) -> None:
    fuzzed(name, 20 if name == "train" else 8, 0)(options_of(name, trained_run, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.tried("options", EXAMPLES)
@pytest.mark.parametrize("name", FOUND)
def test_command_lines_of_today_train_or_end_with_one_message(name: str, trained_run: Path, tmp_path: Path) -> None:
    fuzzed(name, EXAMPLES, datetime.date.today().toordinal())(options_of(name, trained_run, tmp_path))
