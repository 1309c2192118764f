"""Every benchmark, as a table with targets.   make bench ARGS="--root ../shared/datasets --only input training"

Figures are medians of alternating repeats in one run. They are kept as JSON in logs/bench.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.table import Row


def input_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.input_pipeline import TARGETS, measure

    return [
        Row(f"input pipeline / {name}", result["ours_is_times"], "x", at_least=TARGETS.get(name),
            detail=f"{result['images_per_s']:,.0f} images/s there")
        for name, result in measure(root, repeats).items() if name != "ours"
    ]  # fmt: skip


def training_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.training import epoch_rows

    return epoch_rows(root, repeats)


def step_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.training import tiny_step_rows

    return tiny_step_rows(root, repeats)


def startup_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.process import startup_rows as rows

    return rows(repeats)


def memory_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.process import memory_rows as rows

    return rows(root)


def network_rows(root: str, repeats: int) -> list[Row]:
    from tests.benchmarks.networks import network_rows as rows

    return rows(repeats)


PARTS: dict[str, Callable[[str, int], list[Row]]] = {
    "startup": startup_rows,
    "memory": memory_rows,
    "input": input_rows,
    "step": step_rows,
    "training": training_rows,
    "networks": network_rows,
}


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    return {
        "processor": model,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning", "hydra-core")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--root", default="../shared/datasets", help="folder of cifar-10-batches-py")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if not (Path(arguments.root) / "cifar-10-batches-py").is_dir():
        parser.error(f"there is no CIFAR-10 in {arguments.root}: give its folder with --root")

    table = Table("figure", "measured", "target", "", "of", title="  ".join(machine().values()))
    rows: list[Row] = []
    for name in arguments.only:
        start = time.perf_counter()
        rows += PARTS[name](arguments.root, arguments.repeats)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    for row in rows:
        mark = "" if not row.target else "ok" if row.holds else "MISSED"
        table.add_row(row.name, f"{row.value:.3g} {row.unit}", row.target, mark, row.detail)
    Console(width=140).print(table)

    folder = Path("logs/bench")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
    record = {"machine": machine(), "repeats": arguments.repeats, "rows": [vars(row) for row in rows]}
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(f"kept in {path}")


if __name__ == "__main__":
    main()
