"""Evaluates a run on one split: metrics, figures and every image's prediction.

python -m src.eval run=latest
python -m src.eval run=logs/train/runs/RUN split=val tta=flip
python -m src.eval --help
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from src import cli
from src.record import write_whole
from src.run import Run, open_run

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from src.figures import Figure

EXAMPLES = 24  # images in a grid
BINS = 15  # of the calibration error
TTA = ("none", "flip", "multicrop")


def evaluate(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluates what the config says and writes the results into the run folder.

    Returns:
        Metrics named `test/...` (or `val/...`, `train/...`): loss (cross-entropy, nats), acc, acc_top5, the means over
        classes precision, recall and f1, ece (expected calibration error), images_per_s; with test-time augmentation
        all but the last again as `test/..._tta`. And the objects: cfg (the run's, as used), datamodule, model, trainer,
        run, per_class and predictions (data frames), files (what was written).

    Raises:
        ValueError, FileNotFoundError, RunError: the config asks for something that cannot be done.
    """
    for name, allowed in (("split", ("test", "val", "train")), ("tta", TTA)):
        if cfg[name] not in allowed:
            raise ValueError(f"{name}={cfg[name]} is unknown; choose {', '.join(allowed)}.")
    if cfg.run is None and cfg.ckpt_path is None:
        raise ValueError("say what to evaluate: run=logs/train/runs/RUN, run=latest or ckpt_path=FILE.ckpt")
    run = open_run(cfg.ckpt_path or cfg.run)
    _adjust(run, cfg)
    output = Path(cfg.paths.output_dir or run.folder)
    trainer, tester = _trainer(run), _tester(run, cfg.tta)
    datamodule: Any = run.datamodule
    datamodule.eval_split = cfg.split
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*many workers.*|.*treespec.*")  # workers are the run's choice
        trainer.test(tester, datamodule=datamodule, verbose=False)

    plain, augmented, labels = tester.result
    metrics, per_class = _measure(plain, labels, run.classes)
    if cfg.tta != "none":
        tta, per_class = _measure(augmented, labels, run.classes)
        metrics.update({f"{name}_tta": value for name, value in tta.items()})
    metrics["images_per_s"] = len(labels) / tester.seconds
    metrics = {f"{cfg.split}/{name}": value for name, value in metrics.items()}
    objects = {
        "cfg": run.config, "datamodule": datamodule, "model": run.model, "trainer": trainer, "run": run,
        "per_class": per_class, "predictions": _frame(augmented, labels, run.classes), "files": [],
    }  # fmt: skip
    if trainer.is_global_zero:
        _write(output, cfg, metrics, objects, augmented.numpy(), labels.numpy())
        _print(cfg, metrics, objects)
    return metrics, objects


def _adjust(run: Run, cfg: DictConfig) -> None:
    """Applies `data` and `trainer` of the command line to the run's config.

    Normalisation and image size stay the run's, since the network learnt with them. The trainer is not that of the
    training: whatever device there is, one of it, unless the command line says otherwise.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    data, trainer = plain.get("data") or {}, plain.get("trainer") or {}
    for key in ("mean", "std"):
        if data.get(key) is not None:
            raise ValueError(f"data.{key} cannot be changed: the network learnt with the normalisation of its run.")
    for section, given in (("data", data), ("trainer", trainer)):
        unknown = set() if "_target_" in given else set(given) - set(run.config[section])
        if unknown:
            options = ", ".join(sorted(str(key) for key in run.config[section] if not str(key).startswith("_")))
            raise ValueError(f"{section}.{min(unknown)} is no option of this run; there are {options}.")
    if "_target_" in data:
        data.update({key: run.config.data.get(key) for key in ("image_size", "resize")}, augment=None)
        run.config.data = data
    else:
        run.config.data = OmegaConf.merge(run.config.data, data)
    precision = run.config.trainer.precision
    run.config.trainer = {
        "_target_": "lightning.Trainer",
        "accelerator": "auto",
        "devices": 1,
        "precision": precision if _has_gpu() or not str(precision).startswith("16") else "32-true",
        "use_distributed_sampler": False,  # the data module's own shards repeat no image
        **trainer,
    }


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _trainer(run: Run) -> Any:
    import lightning.pytorch  # noqa: F401  sets the level of its loggers
    from hydra.utils import instantiate

    from src.callbacks.progress import ProgressBar

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return instantiate(
        run.config.trainer,
        default_root_dir=str(run.folder),
        callbacks=[ProgressBar()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        _convert_="all",
    )


def _check_classes(run: Run, datamodule: Any) -> None:
    def named(classes: list[str]) -> str:
        return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"

    if list(datamodule.classes) != run.classes:
        raise ValueError(
            f"the checkpoint {run.checkpoint_path} knows {named(run.classes)}, but the data set "
            f"{type(datamodule).__name__} has {named(datamodule.classes)}; choose one that has the same"
        )


def _tester(run: Run, tta: str) -> Any:
    """A LightningModule whose test leaves `result` and `seconds`.

    `result` is (probabilities of the images as they are, averaged over the views, labels): (N, K), (N, K), (N,), on
    the CPU, in the data set's order whatever the number of processes.
    """
    import torch
    from lightning import LightningModule

    class Tester(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = run.model
            self.parts: list[tuple[Tensor, ...]] = []

        def on_test_start(self) -> None:
            _check_classes(run, self.trainer.datamodule)  # type: ignore[attr-defined]

        def on_test_epoch_start(self) -> None:
            self.start = time.perf_counter()

        def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            images, labels = batch
            plain = mean = self.model(images).float().softmax(dim=1)
            others = [self.model(view).float().softmax(dim=1) for view in views(images, tta)]
            if others:
                mean = torch.stack([plain, *others]).mean(dim=0)
            self.parts.append((plain, mean, labels))

        def on_test_epoch_end(self) -> None:
            parts = [torch.cat(part) for part in zip(*self.parts, strict=True)]
            if self.trainer.world_size > 1:  # rank r holds images r, r + world, r + 2 world, ...
                gathered: Any = [self.all_gather(part) for part in parts]  # each (world, n, ...)
                parts = [part.transpose(0, 1).flatten(0, 1) for part in gathered]
            there = parts[2] >= 0  # the others fill up the last batches
            self.result = tuple(part[there].cpu() for part in parts)
            self.seconds = time.perf_counter() - self.start

    return Tester()


def views(images: Tensor, tta: str) -> Iterator[Tensor]:
    """The further views of images (B, 3, S, S) to average predictions over.

    "flip" adds the mirrored images; "multicrop" also two diagonal shifts by 1/32 of the side (edges reflected) and
    their mirror images: 2 and 6 views in all.
    """
    from torch.nn.functional import pad

    if tta == "none":
        return
    yield images.flip(-1)
    if tta == "multicrop":
        size = images.shape[-1]
        by = max(1, size // 32)  # pixels
        padded = pad(images, (by, by, by, by), mode="reflect")
        for start in (0, 2 * by):
            shifted = padded[..., start : start + size, start : start + size]
            yield shifted
            yield shifted.flip(-1)


def _measure(probabilities: Tensor, labels: Tensor, classes: list[str]) -> tuple[dict[str, float], pd.DataFrame]:
    """Metrics of probabilities (N, K) against labels (N,), and a data frame with one row a class."""
    import pandas as pd
    import torch
    from torchmetrics.functional import classification as tm

    k = len(classes)
    images = labels.bincount(minlength=k)
    each = {
        "precision": tm.multiclass_precision(probabilities, labels, k, average="none"),
        "recall": tm.multiclass_recall(probabilities, labels, k, average="none"),
        "f1": tm.multiclass_f1_score(probabilities, labels, k, average="none"),
    }
    each = {name: torch.where(images > 0, value, torch.nan) for name, value in each.items()}
    likelihood = probabilities.gather(1, labels[:, None]).clamp_min(torch.finfo(torch.float32).tiny)
    metrics = {
        "loss": -likelihood.log().mean(),
        "acc": tm.multiclass_accuracy(probabilities, labels, k, average="micro"),
        "acc_top5": tm.multiclass_accuracy(probabilities, labels, k, average="micro", top_k=min(5, k)),
        **{name: value.nanmean() for name, value in each.items()},
        "ece": tm.multiclass_calibration_error(probabilities, labels, k, n_bins=BINS),
    }
    columns = {"class": classes, "images": images.numpy(), "accuracy": each["recall"].numpy()}
    frame = pd.DataFrame({**columns, **{name: value.numpy() for name, value in each.items()}})
    return {name: float(value) for name, value in metrics.items()}, frame


def _frame(probabilities: Tensor, labels: Tensor, classes: list[str]) -> pd.DataFrame:
    """One row an image: its place in the split, label, prediction, confidence, and `p_<class>` for each class."""
    import numpy as np
    import pandas as pd

    rows, names = probabilities.numpy(), np.array(classes)
    guess = rows.argmax(axis=1)
    head = {"image": np.arange(len(rows)), "label": names[labels.numpy()], "prediction": names[guess]}
    head["confidence"] = rows.max(axis=1)
    return pd.concat([pd.DataFrame(head), pd.DataFrame(rows, columns=[f"p_{name}" for name in classes])], axis=1)


def _draw(
    datamodule: Any, split: str, title: str, rows: Any, labels: Any, per_class: pd.DataFrame
) -> dict[str, Figure]:
    import numpy as np

    from src import figures

    images = getattr(datamodule, f"{split}_set")
    classes = list(datamodule.classes)
    guess, confidence = rows.argmax(axis=1), rows.max(axis=1)
    right = guess == labels
    order = np.argsort(-confidence, kind="stable")
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (labels, guess), 1)

    def grid(chosen: Any, text: str) -> Figure:
        first = chosen[:EXAMPLES]
        pictures = (
            images.__getitems__(first.tolist())[0].cpu().numpy() if len(first) else np.empty((0, 3, 1, 1), np.uint8)
        )
        heading = f"{title}: {text} with most confidence ({len(first)} of {len(chosen):,})"
        return figures.examples(pictures, labels[first], rows[first], classes, heading)

    bars = {"accuracy (recall)": per_class["recall"], "precision": per_class["precision"], "F1": per_class["f1"]}
    return {
        "confusion_matrix": figures.confusion_matrix(counts, classes, title),
        "reliability": figures.reliability(confidence, right, BINS, title),
        "per_class": figures.class_bars(bars, classes, "", title),
        "most_confident_wrong": grid(order[~right[order]], "wrong"),
        "most_confident_right": grid(order[right[order]], "right"),
    }


def _write(
    output: Path, cfg: DictConfig, metrics: dict[str, float], objects: dict[str, Any], rows: Any, labels: Any
) -> None:
    """Files of the run's own test split have plain names; any other evaluation adds what it is to them."""
    from torch.utils.tensorboard import SummaryWriter

    from src import figures

    run, datamodule = objects["run"], objects["datamodule"]
    data = type(datamodule).__name__.lower() if "_target_" in (cfg.get("data") or {}) else ""
    parts = [data, cfg.split if data or cfg.split != "test" else "", cfg.tta if cfg.tta != "none" else ""]
    parts.append(Path(cfg.ckpt_path).stem if cfg.ckpt_path else "")
    suffix = "".join(f"_{part}" for part in parts if part)

    title = f"{type(run.network).__name__} on {type(datamodule).__name__}, {cfg.split}"
    title += f", {cfg.tta} augmentation" if cfg.tta != "none" else ""
    record = {
        "split": cfg.split, "data": type(datamodule).__name__, "tta": cfg.tta, "images": len(labels),
        "checkpoint": run.checkpoint_path.name, "epoch": run.checkpoint["epoch"], "metrics": metrics,
    }  # fmt: skip
    texts = {
        f"evaluation{suffix}.json": json.dumps(record, indent=2) + "\n",
        f"per_class{suffix}.csv": objects["per_class"].to_csv(index=False, float_format="%.6g"),
        f"predictions{suffix}.csv": objects["predictions"].to_csv(index=False, float_format="%.6g"),
    }
    for name, text in texts.items():
        write_whole(output / name, text)
        objects["files"].append(output / name)
    drawn = _draw(datamodule, cfg.split, title, rows, labels, objects["per_class"])
    with SummaryWriter(output / "tensorboard") as writer:
        for name, figure in drawn.items():
            objects["files"].append(figures.save(figure, output / f"figures/{name}{suffix}.png"))
            picture, step = figures.pixels(figure), run.checkpoint["global_step"]
            writer.add_image(f"eval{suffix or '_test'}/{name}", picture, step, dataformats="HWC")


def _print(cfg: DictConfig, metrics: dict[str, float], objects: dict[str, Any]) -> None:
    from rich import print as rich_print
    from rich.table import Table

    value = {name.partition("/")[2]: number for name, number in metrics.items()}
    run, per_class = objects["run"], objects["per_class"]
    images = per_class["images"].sum()
    print(f"{run.checkpoint_path} (epoch {run.checkpoint['epoch']}) on {cfg.split}: {images:,} images")
    table = Table("", "as they are")
    if cfg.tta != "none":
        table.add_column(f"tta={cfg.tta}")
    names = {
        "acc": "accuracy", "acc_top5": "top-5 accuracy", "precision": "precision (mean over classes)",
        "recall": "recall (mean over classes)", "f1": "F1 (mean over classes)", "ece": "calibration error",
        "loss": "loss (cross-entropy)",
    }  # fmt: skip
    for key, name in names.items():
        form = ".4f" if key == "loss" else ".2%"
        table.add_row(name, *(format(value[k], form) for k in (key, f"{key}_tta") if k in value))
    rich_print(table)

    worst = per_class.sort_values("accuracy").head(20)
    heading = "by class" if len(worst) == len(per_class) else f"the {len(worst)} classes of lowest accuracy"
    table = Table("class", "images", "accuracy = recall", "precision", "F1", title=heading, title_justify="left")
    for row in worst.itertuples(index=False):
        cells = ("-" if row.images == 0 else f"{number:.2%}" for number in (row.accuracy, row.precision, row.f1))
        table.add_row(str(row[0]), f"{row.images:,}", *cells)
    rich_print(table)
    print(f"{value['images_per_s']:,.0f} images/s")
    for path in objects["files"]:
        print(path)


def main(cfg: DictConfig) -> None:
    evaluate(cfg)


if __name__ == "__main__":
    # data.KEY and trainer.KEY change a section that conf/eval.yaml leaves to the run, so Hydra has to add them.
    sys.argv[1:] = [f"++{word}" if word.startswith(("data.", "trainer.")) else word for word in sys.argv[1:]]
    cli.run(main, "eval")
