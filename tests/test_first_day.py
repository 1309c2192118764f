"""The guide for one's own code, followed to the letter in a copy of the project: train, go on, evaluate, report."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from src.runs.record import read_results
from tests.conftest import ROOT, run_well

GUIDE = (ROOT / "notebooks/first_day.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", GUIDE, re.MULTILINE | re.DOTALL))
SHORT = "data.limit=160 data.batch_size=32 trainer=cpu trainer.precision=32-true trainer.max_epochs=1 test=false"

# Every command is typed as the guide has it, with `SHORT` behind it; one process runs them all, to import torch once.
DRIVER = """
import runpy, shlex, sys
for command in sys.stdin.read().splitlines():
    print("$", command, flush=True)
    sys.argv = shlex.split(command)[2:]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        if exit.code:
            raise
"""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, with all that the guide has one write."""
    folder = tmp_path_factory.mktemp("first_day")
    for name in ("src", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for block in [*blocks(GUIDE, "python"), *blocks(GUIDE, "yaml")]:
        title, _, content = block.partition("\n")
        path = folder / title.removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        if path.is_file():  # conf/train.yaml: one line changes
            content = re.sub(r"^trusted: \[\]", content.strip(), path.read_text(), flags=re.MULTILINE)
        path.write_text(content)
    return folder


def run_all(commands: list[str], project: Path) -> str:
    driver = project / "driver.py"
    driver.write_text(DRIVER)
    return run_well(str(driver), cwd=project, project=project, input="\n".join(commands))


def commands_of(section: str) -> list[str]:
    return [line for block in blocks(SECTIONS[section], "bash") for line in block.splitlines()]


def test_the_first_command_of_a_section_trains(project: Path) -> None:
    assert len(SECTIONS) == 8
    few = list(SECTIONS)[:4]  # all of each are slow, and below
    run_all([f"{commands_of(section)[0]} {SHORT} paths.log_dir=first" for section in few], project)
    assert len(list(project.glob("first/**/results.json"))) == 4


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_what_a_section_says_trains_goes_on_is_evaluated_and_reported(section: str, project: Path) -> None:
    logs = "logs/" + section.replace(" ", "_")
    output = run_all(
        [
            *(f"{command} {SHORT} paths.log_dir={logs}" for command in commands_of(section)),
            f"python -m src.train resume=latest trainer.max_epochs=2 paths.log_dir={logs}",
            f"python -m src.eval run=latest paths.log_dir={logs}",
            f"python -m src.report {logs}",
        ],
        project,
    )
    runs = list(project.glob(f"{logs}/**/results.json"))
    assert len(runs) == len(commands_of(section))
    assert max(read_results(path.parent)["epochs"] for path in runs) == 2
    assert "report.html" in output
