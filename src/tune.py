"""Measures which settings train a model fastest on this machine.

    python -m src.tune model=vgg11 data=stl10
    python -m src.tune experiment=cifar10_resnet18 trainer=gpu
    python -m src.tune --help

Measured are whole training steps: fetching a batch, augmenting it, the network forwards and backwards, and the
optimizer. Of what can be compared, steps alternate, so that whatever else the machine does slows all of them; the
median counts. One thing after the other is settled: precision and memory format, batch size, workers, compilation.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from src import cli
from src.run import build_datamodule, build_model, register_resolvers

if TYPE_CHECKING:
    import torch

PRECISIONS = {
    "cpu": ("32-true", "bf16-mixed"),
    "cuda": ("32-true", "16-mixed", "bf16-mixed"),
    "mps": ("32-true", "16-mixed"),
}
GAIN = 1.05  # a setting is changed for that much more speed
BATCH_GAIN = 1.1  # and the batch size, which changes what is learnt, for that much
FEWEST, ROUNDS = 3, 20  # steps that each setting is measured for: at least, and where time allows
PROBE = 8  # images of the first step, which tells how many fit into the time

Settings = dict[str, Any]  # by the name of their override


@dataclass
class Candidate:
    """Settings to measure: `step` makes one training step and returns its images and seconds."""

    settings: Settings
    step: Callable[[], tuple[int, float]]
    rates: list[float] = field(default_factory=list)  # images/s of each step

    @property
    def rate(self) -> float:
        """Images/s: the median; 0 where a step did not fit into the device's memory."""
        return median(self.rates) if self.rates else 0.0

    @property
    def is_steady(self) -> bool:
        """Whether the middle half of the steps are within a quarter of each other."""
        low, _, high = quantiles(self.rates) if len(self.rates) > 1 else (1, 1, 1)
        return high <= 1.25 * low


def tune(cfg: DictConfig) -> tuple[Settings, dict[str, list[Candidate]]]:
    """Measures what the config trains.

    Returns:
        The settings that are faster than the config's own, by the name of their override; and all that was measured,
        by what it was about.

    Raises:
        ValueError, FileNotFoundError: the config asks for something that cannot be done.
    """
    register_resolvers()
    bench = Bench(cfg)
    share = float(cfg.seconds) / (4 if bench.compiles else 3)
    measured: dict[str, list[Candidate]] = {}
    best = dict(bench.current)

    def settle(name: str, options: list[Settings], gain: float = GAIN) -> None:
        if len(options) < 2:
            return
        candidates = [Candidate(option, bench.stepper({**best, **option})) for option in options]
        measure(candidates, share, bench.is_out_of_memory)
        measured[name] = candidates
        now = next(c for c in candidates if all(best[key] == value for key, value in c.settings.items()))
        fastest = max(candidates, key=lambda c: c.rate)
        if fastest.rate > gain * now.rate:
            best.update(fastest.settings)

    def affordable(options: dict[int, int]) -> list[int]:
        """Those whose steps, of so many images each, fit into the time; the first step does not count."""
        rate = max(c.rate for candidates in measured.values() for c in candidates)
        return [n for n, images in options.items() if (1 + FEWEST) * images / rate <= share / len(options)]

    bench.probe(share)
    formats = [
        {"trainer.precision": precision, "model.channels_last": last}
        for precision in bench.precisions
        for last in (True, False)
    ]
    settle("precision and memory format", formats)
    if bench.most is None:  # a whole batch fits into the time
        sizes = {best["data.batch_size"], *affordable({size: size for size in bench.batch_sizes})}
        settle("batch size", [{"data.batch_size": size} for size in sorted(sizes)], BATCH_GAIN)
        images = {count: (2 * count + 3) * best["data.batch_size"] for count in bench.workers}
        counts = {best["data.num_workers"], *affordable(images)}
        settle("workers", [{"data.num_workers": count} for count in sorted(counts)])
    if bench.compiles:
        settle("compilation", [{"model.compile": False}, {"model.compile": True}])
    return {key: value for key, value in best.items() if value != bench.current[key]}, measured


def measure(candidates: list[Candidate], seconds: float, is_out_of_memory: Callable[[BaseException], bool]) -> None:
    """Fills in `rates`: after a first step each that does not count, one step each in turn while there is time."""

    def step(candidate: Candidate) -> float:
        try:
            images, took = candidate.step()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return 0.0
        return images / took

    end = time.perf_counter() + seconds
    running = [c for c in candidates if step(c)]
    for done in range(ROUNDS):
        if done >= FEWEST and time.perf_counter() > end:
            break
        for candidate in running:
            candidate.rates.append(step(candidate))


class Bench:
    """A config's network, data and optimizer, to make training steps with under different settings.

    `current` are the settings that the config has. `most` limits the images of a step, where a whole batch would
    take too long; else None.
    """

    def __init__(self, cfg: DictConfig) -> None:
        import lightning.pytorch  # noqa: F401  sets the level of its loggers
        import torch
        from hydra.utils import instantiate

        for name in ("lightning.pytorch", "lightning.fabric"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.cfg = cfg
        if "aux_decay" in cfg.model:
            cfg.model.aux_decay = None  # it asks the trainer how far the training is
        alone = {"devices": 1, "num_nodes": 1, "strategy": "auto", "logger": False, "enable_checkpointing": False}
        self.trainer = instantiate(cfg.trainer, **alone, _convert_="all")
        self.device = self.trainer.strategy.root_device
        self.data: Any = build_datamodule(cfg)
        self.data.trainer = self.trainer
        self.data.prepare_data()
        self.data.setup("fit")
        self.models: dict[tuple[bool, bool], tuple[Any, Any, Any]] = {}
        self.most: int | None = None
        self.current = {
            "trainer.precision": self.trainer.precision,
            "model.channels_last": cfg.model.channels_last,
            "data.batch_size": cfg.data.batch_size,
            "data.num_workers": cfg.data.num_workers,
            "model.compile": cfg.model.compile,
        }
        self.compiles = self.device.type == "cuda" if cfg.compile is None else cfg.compile
        self.precisions = PRECISIONS[self.device.type]
        if self.trainer.precision not in self.precisions:
            raise ValueError(
                f"trainer.precision={self.trainer.precision} is not among those that are measured on this device; "
                f"start from one of {', '.join(self.precisions)}."
            )
        processor = OmegaConf.select(cfg, "callbacks.processor")
        if processor is not None:  # a step's speed depends on it
            instantiate(processor).setup(self.trainer, None, "fit")
        torch.manual_seed(cfg.seed)

    @property
    def batch_sizes(self) -> list[int]:
        """Half, one, two and four times the config's, as far as there are images."""
        size = self.current["data.batch_size"]
        return [n for n in (size // 2, size, 2 * size, 4 * size) if 2 <= n <= len(self.data.train_set)]

    @property
    def workers(self) -> list[int]:
        """None, and powers of two up to the number of processors; empty where the data lies on the device."""
        if self.data.store == "device":
            return []
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        counts = {0, self.current["data.num_workers"], *(n for n in (1, 2, 4, 8) if n <= processors)}
        return sorted(counts)

    def probe(self, seconds: float) -> None:
        """Sets `most` so that each way to compute can make a few steps in that time."""
        self.most = PROBE
        step = self.stepper(self.current)
        step()
        images, took = step()
        fit = int(images / took * seconds / (2 * len(self.precisions)) / (1 + FEWEST))
        self.most = max(PROBE, fit) if fit < self.current["data.batch_size"] else None

    def stepper(self, settings: Settings) -> Callable[[], tuple[int, float]]:
        """A function that makes one training step under the settings; see `Candidate`."""
        import torch

        module, optimizer, scaler = self._model(settings["model.channels_last"], settings["model.compile"])
        batches = self._batches(settings["data.batch_size"], settings["data.num_workers"])
        dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(settings["trainer.precision"])
        half = dtype == torch.float16

        def step() -> tuple[int, float]:
            start = time.perf_counter()
            images, labels = next(batches)
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                loss, *_ = module.loss(module(images), labels)
            (scaler.scale(loss) if half else loss).backward()
            if half:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            optimizer.zero_grad()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            return len(images), time.perf_counter() - start

        if not settings["data.num_workers"]:
            return step

        def steady() -> tuple[int, float]:
            for _ in range(2 * settings["data.num_workers"]):
                step()  # what the workers have fetched while others were measured
            steps = [step() for _ in range(3)]
            return sum(images for images, _ in steps), sum(took for _, took in steps)

        return steady

    def _model(self, channels_last: bool, compiled: bool) -> tuple[Any, Any, Any]:
        """(module, optimizer, gradient scaler) for a memory format, made once."""
        import torch

        if (channels_last, compiled) not in self.models:
            cfg = self.cfg.copy()
            cfg.model.channels_last, cfg.model.compile = channels_last, compiled
            module: Any = build_model(cfg, pretrained=False).to(self.device).train()
            optimizer = module.optimizer_factory([p for p in module.network.parameters() if p.requires_grad])
            scaler = torch.amp.GradScaler(self.device.type)
            self.models[channels_last, compiled] = module, optimizer, scaler
        return self.models[channels_last, compiled]

    def _batches(self, size: int, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Training batches on the device, augmented and normalised, without end."""
        self.data.batch_size, self.data.num_workers = size, workers
        loader = self.data.train_dataloader()
        while True:
            for number, batch in enumerate(loader):
                images, labels, *index = (part[: self.most].to(self.device, non_blocking=True) for part in batch)
                yield self.data.augment(images, labels, batch=number, index=index[0] if index else None)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether that is what the error says; gives back what the step held."""
        import torch

        if not isinstance(error, torch.OutOfMemoryError):
            return False
        torch.cuda.empty_cache()
        return True


def show(overrides: list[str], found: Settings, measured: dict[str, list[Candidate]]) -> None:
    """Prints the tables, and the command line of src.train: the overrides given here, and what was found."""
    from rich import print as rich_print
    from rich.table import Table

    for name, candidates in measured.items():
        fastest = max(candidate.rate for candidate in candidates)
        table = Table(*candidates[0].settings, "images/s", "", title=name, title_justify="left")
        for c in candidates:
            cells = [f"{c.rate:,.0f}", f"{c.rate / fastest:.2f}"] if c.rate else ["out of memory", ""]
            table.add_row(*map(str, c.settings.values()), *cells)
        rich_print(table)
    given = [o for o in overrides if o.split("=")[0] not in {"seconds", "compile", *found}]
    if found:
        print("Faster by these measurements:")
    else:
        print("These settings are as fast as any that were measured:")
    print(" ".join(["python -m src.train", *given, *(f"{key}={_yaml(value)}" for key, value in found.items())]))
    if not all(candidate.is_steady for candidates in measured.values() for candidate in candidates):
        print("The steps took very different times: something else is using this machine. Measure again without it.")
    if "data.batch_size" in found:
        print("Another batch size learns differently: adapt optimizer.lr, and compare the accuracy.")


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def main(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    found, measured = tune(cfg)
    show(list(HydraConfig.get().overrides.task), found, measured)


if __name__ == "__main__":
    cli.run(main, "tune")
