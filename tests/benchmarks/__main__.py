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

from tests.benchmarks import (
    augmentation,
    evaluation,
    gan,
    growth,
    input_pipeline,
    networks,
    process,
    streaming,
    sweep,
    training,
)
from tests.benchmarks.table import Row, Setting

PARTS: dict[str, Callable[[Setting], list[Row]]] = {
    "startup": process.startup_rows,
    "memory": process.memory_rows,
    "input": input_pipeline.input_rows,
    "streaming": streaming.streaming_rows,
    "files": streaming.start_rows,
    "augmentation": augmentation.augmentation_rows,
    "step": training.tiny_step_rows,
    "training": training.epoch_rows,
    "dynamics": training.dynamics_rows,
    "gan": gan.gan_rows,
    "tutorial": training.tutorial_rows,
    "evaluation": evaluation.evaluation_rows,
    "networks": networks.network_rows,
    "growth": growth.growth_rows,
    "sweep": sweep.sweep_rows,
    "search": sweep.search_rows,
    "kernels": training.kernel_rows,
}
ON_GPU = [name for name in PARTS if name not in ("sweep", "search", "streaming", "files")]
ON_CPU = [name for name in PARTS if name != "kernels"]


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
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning", "hydra-core")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--root", default="../shared/datasets", help="folder of cifar-10-batches-py")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--files", type=int, default=1_280_000, help="how many a start is measured on")
    parser.add_argument("--gpu", action="store_true", help="on the first GPU, with the images on it")
    arguments = parser.parse_args()
    if arguments.gpu and not torch.cuda.is_available():
        parser.error("torch finds no CUDA GPU here")
    if not (Path(arguments.root) / "cifar-10-batches-py").is_dir():
        parser.error(f"there is no CIFAR-10 in {arguments.root}: give its folder with --root")

    rows: list[Row] = []
    setting = Setting(arguments.root, arguments.repeats, arguments.gpu, arguments.files)
    print(*machine().values(), sep="  ")
    for name in arguments.only or (ON_GPU if arguments.gpu else ON_CPU):
        start = time.perf_counter()
        found = PARTS[name](setting)
        rows += found
        table = Table("figure", "measured", "target", "", "of", title=f"{name}: {time.perf_counter() - start:.0f} s")
        for row in found:
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
