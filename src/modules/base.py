"""What a LightningModule of any task needs: sums over an epoch, optimizers and schedules, the memory format."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric, MetricCollection

from src.modules.losses import counted

CHECK_EVERY = 20  # steps between two looks for a loss that is not finite; each waits for the device

Factory = Callable[..., Any]


class Step(NamedTuple):
    """What a step computed.

    Attributes:
        loss: mean over the items, to minimise; it is logged as "loss".
        items: how many the batch has.
        sums: of anything else to log, over the items.
        output: what the metrics compare with the labels, and what callbacks are given: by `test_step` as it is, by
            `training_step` as `outputs["output"]`; without a graph.
    """

    loss: Tensor
    items: Tensor | int
    sums: dict[str, Tensor]
    output: Any = None


class Task(LightningModule):
    """Trains a network. A subclass says in `step` what is computed; all of it is logged once an epoch.

    Names are `train/loss`, `val/loss`, `test/...`: means over the items of the epoch, and over all processes.

    Args:
        network: the network, or an `nn.Module` of several.
        optimizer: called with the parameters, e.g. a partial of `torch.optim.SGD`; or one for each part of the
            network, by the part's name: then nothing is optimised automatically, but by the subclass's `step`.
        scheduler: `factory` (called with the optimizer, and with `total_steps` if `needs_total_steps`) plus
            Lightning's `interval`, `frequency` and `monitor`; None for a constant rate.
        metrics: of torchmetrics by name, measured over each validation and test from the outputs of its steps, or from
            what the subclass's `link` makes of them, such as probabilities.
        decay_norms_and_biases: False takes parameters of one dimension out of the weight decay.
        channels_last: keep weights and images in that memory format.
        compile: compile the network in place with `torch.compile`.
    """

    network: Any
    metrics: Any

    def __init__(
        self,
        network: nn.Module,
        optimizer: Factory | Mapping[str, Factory],
        scheduler: dict[str, Any] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        decay_norms_and_biases: bool = True,
        channels_last: bool = True,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)
        self.automatic_optimization = not isinstance(optimizer, Mapping)
        self.parts = dict(optimizer) if isinstance(optimizer, Mapping) else {"": optimizer}
        self.optimizer, self.scheduler = optimizer, scheduler
        if compile:
            for part in self.parts:
                self.network.get_submodule(part).compile()
        self.decay_norms_and_biases = decay_norms_and_biases
        self.rate_factors: dict[nn.Parameter, float] = {}  # of the learning rate; may be set until `fit` begins
        self.sums = {"train": Sums(), "val": Sums(), "test": Sums()}
        chosen = MetricCollection({name: metric for name, metric in (metrics or {}).items() if metric is not None})
        self.metrics = nn.ModuleDict({stage: chosen.clone() for stage in ("val", "test") if chosen})

    def forward(self, images: Tensor) -> Any:
        """Whatever the network makes of images (B, C, H, W)."""
        return self.network(images.contiguous(memory_format=self.memory_format))

    def step(self, batch: Any, stage: str) -> Step:
        """What is computed of a batch in the stage "train", "val" or "test"."""
        raise NotImplementedError

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        if (batch_idx + 1) % CHECK_EVERY == 0:
            self._check_loss()
        step = self._step(batch, "train")
        return {"loss": step.loss, "output": step.output}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self._step(batch, "test").output

    def _step(self, batch: Any, stage: str) -> Step:
        step = self.step(batch, stage)
        self.sums[stage].add(step.items, {"loss": step.loss.detach() * step.items, **step.sums})
        if stage in self.metrics:
            rows = counted(batch[1])
            self._update_metrics(self.metrics[stage], step.output[rows], batch[1][rows])
        return step

    def _update_metrics(self, metrics: Any, output: Tensor, labels: Tensor) -> None:
        link = getattr(self, "link", nn.Identity())  # torchmetrics takes logits that lie in [0, 1] for probabilities
        try:
            metrics.update(link(output.float()), labels.long())
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"metrics={', '.join(metrics)}: {error}") from error

    def _check_loss(self) -> None:
        losses = self.sums["train"].flush().get("loss", torch.zeros(0))
        finite = torch.isfinite(losses)
        if not finite.all():
            first = int((~finite).nonzero()[0])
            step = self.trainer.fit_loop.epoch_loop.batch_progress.total.completed - (len(losses) - first)
            raise FloatingPointError(
                f"the training loss became {losses[first].item()} at step {step} (epoch {self.current_epoch}); "
                "the last good checkpoint is kept. Try a lower optimizer.lr, a warm-up (scheduler=cosine), "
                "trainer.gradient_clip_val=1 or trainer.precision=32-true."
            )

    def on_validation_epoch_start(self) -> None:
        self._check_loss()  # before a checkpoint of this epoch is written

    def on_train_epoch_end(self) -> None:
        self._check_loss()
        self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        self._log_means("val")

    def on_test_epoch_end(self) -> None:
        self._log_means("test")

    def _log_means(self, stage: str) -> None:
        means = self.sums[stage].means(lambda sums: self.trainer.strategy.reduce(sums, reduce_op="sum"))
        self.sums[stage] = Sums()
        if stage in self.metrics:
            measured = self._measured(stage)
            if taken := means.keys() & measured.keys():
                raise ValueError(f"metrics.{taken.pop()}: the module logs something of that name; choose another.")
            means |= measured
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()})

    def _measured(self, stage: str) -> dict[str, Tensor]:
        """The metrics, a value of several numbers under the names of the classes."""
        measured: dict[str, Tensor] = {}
        for name, value in self.metrics[stage].compute().items():
            if value.ndim:
                names = self.trainer.datamodule.classes  # type: ignore[attr-defined]
                measured |= {f"{name}_{label}": part for label, part in zip(names, value, strict=True)}
            else:
                measured[name] = value
        self.metrics[stage].reset()
        return measured

    def configure_optimizers(self) -> Any:
        made = []
        for name, factory in self.parts.items():
            try:
                made.append(self._with_schedule(self._build_optimizer(self.network.get_submodule(name), factory), name))
            except TypeError as error:  # torch compares a value of the wrong type, or does not know an argument
                arguments = getattr(factory, "keywords", {})
                raise ValueError(f"the optimizer ({arguments}) or its scheduler cannot be made: {error}") from error
        return made

    def _build_optimizer(self, part: nn.Module, factory: Factory) -> Optimizer:
        """One group for each learning rate, and for what takes no part in the weight decay."""
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in part.parameters():  # frozen ones too: they may be trained later
            decays = self.decay_norms_and_biases or parameter.ndim > 1
            groups.setdefault((self.rate_factors.get(parameter, 1.0), decays), []).append(parameter)
        kinds = sorted(groups, reverse=True)
        optimizer = factory([{"params": groups[k], **({} if k[1] else {"weight_decay": 0.0})} for k in kinds])
        for (factor, _), group in zip(kinds, optimizer.param_groups, strict=True):
            group["lr"] *= factor
        return optimizer

    def _with_schedule(self, optimizer: Optimizer, part: str) -> Any:
        if self.scheduler is None:
            return {"optimizer": optimizer}
        config = dict(self.scheduler)
        factory = config.pop("factory")
        length = {"total_steps": self.total_steps(config["interval"])} if config.pop("needs_total_steps", False) else {}
        if part:  # the subclass steps it
            config = {"name": f"lr-{part}"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": factory(optimizer, **length), **config}}

    def total_steps(self, interval: str = "step") -> int:
        """The length of the training, in optimizer steps or in epochs (`interval`)."""
        total = self.trainer.max_epochs if interval == "epoch" else self.trainer.estimated_stepping_batches
        if total is None or not 1 <= total < float("inf"):
            raise ValueError(
                f"the schedule must know where training ends, but trainer.max_epochs={self.trainer.max_epochs} and "
                f"trainer.max_steps={self.trainer.max_steps}: set one, or choose scheduler=none, step or plateau"
            )
        return int(total)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_sums"] = of_each_process(self.sums["train"].state())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        states = checkpoint.get("train_sums", [])
        self.sums["train"] = Sums(**states[self.global_rank]) if self.global_rank < len(states) else Sums()


def of_each_process(value: Any) -> list[Any]:
    """The values that all processes of the training have, in the order of their ranks; all must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


class Sums:
    """Sums over the items of an epoch. Adding a batch waits for no device and copies nothing."""

    def __init__(
        self, count: Tensor | int = 0, totals: dict[str, Tensor] | None = None, pending: dict[str, Tensor] | None = None
    ) -> None:
        self.count = count
        self.totals = totals or {}
        self.pending = {name: list(values) for name, values in (pending or {}).items()}

    def add(self, count: Tensor | int, sums: dict[str, Tensor]) -> None:
        """Adds one batch of `count` items; each value is a sum over them, a tensor without dimension."""
        self.count = self.count + count
        for name, value in sums.items():
            self.pending.setdefault(name, []).append(value)

    def flush(self) -> dict[str, Tensor]:
        """Moves what was added since the last call into the totals, and returns it: one value (N,) a batch."""
        added = {
            name: torch.stack([value.to(values[-1].device) for value in values]).float()  # a checkpoint's: on the CPU
            for name, values in self.pending.items()
        }
        for name, each in added.items():
            total = each.sum()
            self.totals[name] = self.totals[name].to(total.device) + total if name in self.totals else total
        self.pending = {}
        return added

    def means(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """Mean over items of each value; `reduce` sums a tensor (V,) over all processes."""
        self.flush()
        if not self.totals:
            return {}
        values = torch.stack(list(self.totals.values()))  # (V,)
        count = torch.as_tensor(self.count, dtype=values.dtype, device=values.device)
        *sums, count = reduce(torch.cat([values, count[None]]))
        return {name: total / count for name, total in zip(self.totals, sums, strict=True)}

    def state(self) -> dict[str, Any]:
        """Plain containers and tensors for a checkpoint; `Sums(**state)` restores them.

        What is pending is kept apart: a float sum depends, in its last bit, on where it is split.
        """
        pending = {name: torch.stack(values).cpu() for name, values in self.pending.items()}
        totals = {name: total.cpu() for name, total in self.totals.items()}
        return {"count": int(self.count), "totals": totals, "pending": pending}
