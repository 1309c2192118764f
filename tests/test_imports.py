"""Who may import whom: the rooms of `src` stay apart, and the command line starts without torch."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT, run_command

ENTRY_POINTS = {"train", "eval", "predict", "export", "report", "tune"}
ROOMS = {
    "networks",
    "modules",
    "data",
    "callbacks",
    "figures",
    "sweeps",
    "run",
    "record",
    "cli",
    "processes",
} | ENTRY_POINTS

FORBIDDEN = {
    "networks": {"lightning", "hydra", "omegaconf"} | (ROOMS - {"networks"}),
    "data": {"hydra", "networks", "modules"},
    "modules": {"hydra", "data"},
    "figures": {"torch", "lightning"} | (ROOMS - {"figures"}),
    "callbacks": {"hydra", "networks", "data"},
    "sweeps": {"torch", "lightning"},
    "run": ENTRY_POINTS,
    "record": ENTRY_POINTS,
    "cli": ENTRY_POINTS,
    "processes": {"lightning", "hydra"} | (ROOMS - {"processes"}),
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
    parts = path.relative_to(ROOT / "src").with_suffix("").parts
    assert imports(path) & FORBIDDEN.get(parts[0], set()) == set()


@pytest.mark.parametrize("name", sorted(ENTRY_POINTS))
def test_an_entry_point_starts_without_torch(name: str) -> None:
    if not (ROOT / f"src/{name}.py").is_file():
        pytest.skip(f"there is no src/{name}.py")
    code = (
        f"import sys, src.{name}; sys.exit(bool({{'torch', 'lightning', 'torchvision', 'optuna'}} & set(sys.modules)))"
    )
    assert run_command("-c", code).returncode == 0
