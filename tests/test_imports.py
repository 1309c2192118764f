"""Who may import whom: the rooms of `src` stay apart, and the command line starts without torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command

ENTRY_POINTS = {"train", "eval", "predict", "sample", "shards", "export", "rename", "report"}
HOUSE = {"callbacks", "data", "evaluation", "figures", "modules", "networks", "runs", "studies", "sweeps"}
ROOMS = ENTRY_POINTS | HOUSE | {"cli", "cores", "errors", "help"}

FORBIDDEN = {
    "networks": {"lightning", "hydra", "omegaconf"} | (ROOMS - {"networks"}),
    "data": {"hydra", "networks", "modules"} | ENTRY_POINTS,
    "modules": {"hydra", "data"} | ENTRY_POINTS,
    "evaluation": {"lightning", "hydra", "data"} | ENTRY_POINTS,
    "figures": {"torch", "lightning"} | (ROOMS - {"figures"}),
    "callbacks": {"hydra", "networks", "data"} | ENTRY_POINTS,
    "runs": {"sweeps"} | ENTRY_POINTS,
    "sweeps": {"torch", "lightning"} | ENTRY_POINTS,
    "studies": ENTRY_POINTS | {"sweeps"},
    "cli": ENTRY_POINTS,
    "cores": {"torch", "lightning", "hydra"} | (ROOMS - {"cores"}),
    "errors": {"torch", "lightning", "cli", "help"} | ENTRY_POINTS,
    **{name: ENTRY_POINTS - {name} for name in ENTRY_POINTS},
}


def imports(path: Path) -> set[str]:
    """Top-level packages that a file imports anywhere, and for `src` the room."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            found.add(parts[1] if parts[0] == "src" and len(parts) > 1 else parts[0])
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT / "src").with_suffix("").parts[0]
    assert imports(path) & FORBIDDEN.get(room, set()) == set()


def test_litdata_an_extra_is_imported_where_shards_are_and_only_once_they_are_asked_for() -> None:
    sources = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in sources if "litdata" in imports(ROOT / name)} == {"src/data/shards.py"}
    at_once = [node for node in sources["src/data/shards.py"].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any("litdata" in ast.unparse(node) for node in at_once)


def test_every_room_of_the_house_is_known() -> None:
    there = {path.stem for path in (ROOT / "src").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert there - {"__init__"} == ROOMS


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT / "src")))
def test_no_file_is_longer_than_300_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


def test_opening_the_runs_and_starting_any_command_loads_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "torchvision", "optuna", "scipy", "matplotlib", "submitit", "rich"}
    code = (
        "import sys, src.runs.run, src.runs.table, src.sweeps, hydra_plugins.study; assert 'pandas' not in sys.modules;"
    )
    code += f"import {', '.join(f'src.{name}' for name in sorted(ENTRY_POINTS))}; print(*({heavy} & set(sys.modules)))"
    done = run_command("-c", code)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
