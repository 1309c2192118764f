"""Whole commands: how soon they answer, and how much memory a training takes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from statistics import median

from tests.benchmarks.table import Row, Setting, alternate

BARE_IMPORTS = "import torch, lightning"
CIFAR10_BYTES = 60_000 * 3 * 32 * 32


def seconds(*arguments: str) -> float:
    """Wall time of `python ARGUMENTS`."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - start


def first_step(setting: Setting) -> float:
    """Seconds from the command to the end of its first training step, on the digits with every default."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "src.train", *setting.trainer, "trainer.max_steps=1", "test=false",
             f"paths.log_dir={folder}", "+callbacks.signal._target_=tests.benchmarks.process.FirstStep"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == FIRST_STEP:
                break
        answer = time.perf_counter() - start
        process.communicate()
    return answer


FIRST_STEP = "first step done"


def __getattr__(name: str) -> type:
    # The callback's base is imported only in the process that trains: this one measures bare imports.
    if name != "FirstStep":
        raise AttributeError(name)
    from lightning.pytorch.callbacks import Callback

    class FirstStep(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            print(FIRST_STEP, flush=True)

    return FirstStep


def startup_rows(setting: Setting) -> list[Row]:
    """`--help`, `--cfg job`, and the first training step against bare imports."""
    rows = []
    for arguments, most in ((("--help",), 0.7), (("--cfg", "job"), 1.5)):
        value = median(seconds("-m", "src.train", *arguments) for _ in range(setting.repeats))
        rows.append(Row(f"python -m src.train {' '.join(arguments)}", value, "s", at_most=most))
    ratio, each = alternate(lambda: first_step(setting), lambda: seconds("-c", BARE_IMPORTS), setting.repeats)
    detail = f"{each[0]:.2f} s / {each[1]:.2f} s"
    return [*rows, Row("first training step / import torch, lightning", ratio, "x", at_most=1.3, detail=detail)]


# What `wait` tells of a child counts the memory of the process that it was forked from: this one is small.
PEAK = """import resource, subprocess, sys
code = subprocess.call([sys.executable, *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(code)"""


def peak_bytes(*arguments: str) -> int:
    """Largest resident set of `python ARGUMENTS`, in bytes."""
    command = [sys.executable, "-c", PEAK, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory_rows(setting: Setting) -> list[Row]:
    """A training on all of CIFAR-10 against what the imports and the images alone take."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["data=cifar10", f"data.root={setting.root}", *setting.trainer, f"paths.log_dir={folder}"]
        short = ["trainer.max_epochs=1", "trainer.limit_train_batches=50"]
        training = peak_bytes("-m", "src.train", *overrides, *short)
    bare = peak_bytes("-c", f"{BARE_IMPORTS}, torchvision")
    ratio = training / (bare + CIFAR10_BYTES)
    detail = f"{training / 1e9:.2f} GB / ({bare / 1e9:.2f} + {CIFAR10_BYTES / 1e9:.2f}) GB"
    return [
        Row("peak memory of a CIFAR-10 training", training / 1e9, "GB", at_most=2.2),
        Row("peak memory / bare imports and the images", ratio, "x", at_most=1.3, detail=detail),
    ]
