"""What a classifier's test gives: its predictions, the measures and the figures of them."""

from collections.abc import Iterator
from math import log
from typing import Any

import torch
from lightning import Callback

from src import figures
from src.evaluation.metrics import measure, predictions, views
from src.evaluation.slices import appearance, slices
from src.studies import Evaluation


class Predictions(Callback):
    """Keeps what a test gives of each image, in the data set's order whatever the number of processes.

    Args:
        classes: of the network; the data set must have the same.
        tta: the views to average over, see `src.evaluation.metrics.views`.

    Attributes:
        logs, averaged: log-probabilities of the images as they are, and those of the mean of the probabilities over
            their views, (N, K), on the CPU, after the test.
        labels, positions: (N,), the latter in the split, some of whose images may be unreadable.
        appearance: brightness and sharpness (N, 2).
    """

    def __init__(self, classes: list[str], tta: str) -> None:
        self.classes, self.tta = classes, tta

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if len(self.classes) < 2:
            raise ValueError(
                f"the network knows one class, {self.classes[0]}: it is always right, nothing is measured."
            )
        if (given := list(trainer.datamodule.classes)) != self.classes:
            knows, has = (f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in (self.classes, given))
            raise ValueError(f"the network knows {knows}, but the data set has {has}; choose one with the same.")
        self.parts: list[Any] = []

    def on_test_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        with trainer.precision_plugin.test_step_context():
            logits = [outputs, *(pl_module(view) for view in views(batch[0], self.tta))]
        rows = torch.stack([each.float().log_softmax(dim=1) for each in logits])  # (views, B, K)
        spec = trainer.datamodule.preprocess.spec
        seen = appearance(batch[0], spec["mean"], spec["std"])
        self.parts.append((rows[0], rows.logsumexp(dim=0) - log(len(rows)), batch[1], seen))

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        parts = [torch.cat(part) for part in zip(*self.parts, strict=True)]
        if trainer.world_size > 1:  # rank r holds images r, r + world, r + 2 world, ...: (world, n, ...)
            parts = [pl_module.all_gather(part).transpose(0, 1).flatten(0, 1) for part in parts]
        counted = parts[2] >= 0  # others fill up batches, or cannot be read
        self.positions = counted.nonzero()[:, 0].cpu()
        self.logs, self.averaged, self.labels, self.appearance = (part[counted].cpu() for part in parts)

    def __call__(self, evaluation: Evaluation) -> None:
        measured, per_class, bins = measure(self.logs, self.labels, self.classes)
        if self.tta != "none":
            averaged, per_class, bins = measure(self.averaged, self.labels, self.classes)
            measured |= {f"{name}_tta": value for name, value in averaged.items()}
        evaluation.metrics = {**measured, **evaluation.metrics}
        seen = dict(zip(("brightness", "sharpness"), self.appearance.T, strict=True))
        frame = predictions(self.positions, self.averaged.exp(), self.labels, self.classes, **seen)
        tables = {"per_class": per_class, "predictions": frame, "reliability": bins, "slices": slices(frame)}
        evaluation.tables |= tables
        if evaluation.trainer.is_global_zero:
            evaluation.figures |= dict(draw(evaluation, self.classes))


def draw(evaluation: Evaluation, classes: list[str]) -> Iterator[tuple[str, Any]]:
    """The figures of an evaluation's predictions, with their names."""
    title, per_class = evaluation.title, evaluation.tables["per_class"]
    frame = evaluation.tables["predictions"]
    right = frame["label"] == frame["prediction"]
    yield "confusion_matrix", figures.confusion_matrix(frame["label"], frame["prediction"], classes, title)
    yield "reliability", figures.reliability(frame["confidence"], right, title=title)
    yield "slices", figures.slices(evaluation.tables["slices"].sort_index(), right.mean(), title)
    yield "per_class", figures.class_bars(dict(per_class[["recall", "precision", "f1"]]), classes, "", title)
    for kind, shown in most_confident(evaluation, classes):
        yield f"most_confident_{kind}", figures.examples(*shown)


def most_confident(evaluation: Evaluation, classes: list[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The "wrong" and the "right" predictions of most confidence, 24 at most of each, as `figures.examples` takes them.

    Images as they are stored, uint8, labels, probabilities, classes and a title.
    """
    frame = evaluation.tables["predictions"].sort_values("confidence", ascending=False, kind="stable")
    right = frame["label"] == frame["prediction"]
    for kind, chosen in (("wrong", frame[~right]), ("right", frame[right])):
        first = chosen.head(24)
        images, labels = evaluation.datamodule.examples(evaluation.cfg.split, first["image"].tolist())
        rows = first[[f"p_{name}" for name in classes]].to_numpy()
        heading = f"{evaluation.title}: {kind} with most confidence ({len(first)} of {len(chosen):,})"
        yield kind, (images.numpy(), labels.numpy(), rows, classes, heading)
