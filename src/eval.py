"""Evaluates a run on one split: the module's own test, then figures and every image's prediction.

python -m src.eval run=latest
python -m src.eval run=logs/train/runs/RUN split=val tta=flip
python -m src.eval run=GAN features=RUN
python -m src.eval --help
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src import cli
from src.runs.build import REPLACES, SPLITTING, build
from src.runs.evaluated import read_answers
from src.runs.folder import RunError, events_folder, write_csv, write_json, write_whole
from src.runs.run import Run, open_run
from src.runs.table import rich_table, shown, shown_interval
from src.runs.values import check_values

if TYPE_CHECKING:
    from src.studies import Evaluation

log = logging.getLogger(__name__)


def prepare(given: cli.Given) -> None:
    """Before Hydra composes: the data section of the run that the command line names becomes the option `data=run`."""
    name = given.get("ckpt_path") or given.get("run", "null")
    if name != "null":
        run = open_run(name, cli.log_dir(given), cli.trusted(given))
        ConfigStore.instance().store(group="data", name="run", node=run.config.data, **REPLACES)


def evaluate(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluates what the config says and writes the results into the run folder.

    Returns:
        Metrics named `test/...` (or `val/...`, `train/...`): whatever the module logs in its test, and for a classifier
        also those of `src.evaluation.metrics.measure`, and images_per_s; with test-time augmentation all but the last
        again as `test/..._tta`, of the mean probabilities; and what the studies that are asked for add, see
        `src.studies`. And the objects: cfg (the run's, as used), datamodule, model, trainer, run, files (what was
        written), and by name the data frames that were: per_class, predictions, reliability (the bins of ece) and
        slices of a classifier.

    Raises:
        ValueError, FileNotFoundError, RunError: the config asks for something that cannot be done.
    """
    check_values(cfg, "eval")
    from lightning.pytorch.callbacks import Timer

    from src.callbacks.progress import ProgressBar
    from src.modules.classifier import ImageClassifier
    from src.studies import Evaluation, asked_for
    from src.studies.classifier import Predictions

    cli.quieten()
    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    studies, own_data = asked_for(run, cfg), _adjust(run, cfg)
    datamodule: Any = run.datamodule
    datamodule.eval_split = cfg.split
    collected = [Predictions(run.classes, cfg.tta)] if isinstance(run.model, ImageClassifier) else []
    callbacks = [ProgressBar(), timer := Timer(), *collected]
    trainer = build(run.config.trainer, callbacks=callbacks, logger=False, enable_checkpointing=False)
    trainer.test(run.model, datamodule=datamodule, verbose=False)

    title = f"{type(run.network).__name__} on {type(datamodule).__name__}, {cfg.split}, tta={cfg.tta}"
    evaluation = Evaluation(cfg, run, datamodule, trainer, title.removesuffix(", tta=none"))
    evaluation.metrics = {name.removeprefix("test/"): float(x) for name, x in trainer.callback_metrics.items()}
    for predictions in collected:
        predictions(evaluation)
        evaluation.metrics["images_per_s"] = len(predictions.labels) / timer.time_elapsed("test")
    for study in studies:
        study(evaluation)
    metrics = {f"{cfg.split}/{name}": value for name, value in evaluation.metrics.items()}
    objects = {"cfg": run.config, "datamodule": datamodule, "model": run.model, "trainer": trainer, "run": run}
    objects |= evaluation.tables
    if trainer.is_global_zero:
        objects["files"] = _write(evaluation, metrics, own_data)
        _print(metrics, objects)
    return metrics, objects


def _adjust(run: Run, cfg: DictConfig) -> bool:
    """Puts the data and the trainer asked for into the run's config; returns whether the data set is the run's own.

    Normalisation and image size stay the run's, since the network learnt with them.
    """
    import torch

    from src.modules.precision import emulates

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    kept, trainer = run.checkpoint["preprocess"], plain["trainer"]
    data: Any = plain.get("data") or OmegaConf.to_container(run.config.data)
    another = data.get("mean") is None  # the run's own section has the mean that was measured
    data = {**data, **kept, "channels": len(kept["mean"]), "augment": None} if another else data
    if changed := [f"data.{key}" for key in kept if data.get(key) != kept[key]]:
        raise ValueError(f"{', '.join(changed)} cannot be changed: the network learnt with what its run had.")
    own = run.config.data
    deciding = () if another else SPLITTING.get("val" if cfg.audit else cfg.split, ())  # an audit reads all splits
    if mixing := [f"data.{key}={data.get(key)}" for key in deciding if data.get(key) != own.get(key)]:
        raise ValueError(f"split={cfg.split} {mixing[0]} would mix images that the network was trained on with others.")
    if trainer.get("precision") in (None, "fastest"):
        precision = str(run.config.trainer.precision)
        lacking = precision.startswith("16") or emulates(precision, torch.device("cpu"))
        trainer["precision"] = "32-true" if lacking and not torch.cuda.is_available() else precision
    run.config.data, run.config.trainer = data, trainer
    return not another


def _write(evaluation: "Evaluation", metrics: dict[str, float], own_data: bool) -> list[Path]:
    """Files of the run's own test split have plain names; any other evaluation adds what it is to them."""
    from torch.utils.tensorboard import SummaryWriter

    from src import figures
    from src.evaluation.comparison import other_images

    cfg, run, data = evaluation.cfg, evaluation.run, type(evaluation.datamodule).__name__
    what = ["none" if own_data else data.lower(), "none" if own_data and cfg.split == "test" else cfg.split]
    now, then = (config["data"] for config in (run.config, run.checkpoint["config"]))
    what += [f"limit{now.get('limit')}" if own_data and now.get("limit") != then.get("limit") else "none"]
    tested: int | float = evaluation.trainer.limit_test_batches  # 1.0 is all of them, 1 is one
    what += ["none" if isinstance(tested, float) and tested == 1 else f"batches{tested:g}"]
    what += [cfg.tta, Path(cfg.ckpt_path or "none").stem]
    suffix = "".join(f"_{part}" for part in what if part != "none")
    output = Path(cfg.paths.output_dir or run.folder)
    record = {**run.origin, "data": data, "split": cfg.split, "tta": cfg.tta}
    record["sha256"] = evaluation.datamodule.digest(cfg.split)
    same = own_data and all(now.get(key) == then.get(key) for key in (*SPLITTING["val"], "mode"))
    trained_beside = run.results.get("data")
    before = trained_beside.get(cfg.split) if same and isinstance(trained_beside, dict) else None
    if before not in (None, record["sha256"]):
        log.warning("the data has changed since the training: its %s images or labels were others", cfg.split)
    answers = evaluation.tables.get("predictions")
    with suppress(RunError):  # there was no such evaluation before
        if answers is not None and (told := other_images(read_answers(output, f"predictions{suffix}.csv"), answers)):
            log.warning("the data has changed since the evaluation before: %s", told)
    files = [output / f"evaluation{suffix}.json", *evaluation.files]
    write_json(files[0], {**record, "metrics": metrics})
    for name, frame in evaluation.tables.items():
        files.append(output / f"{name}{suffix}.csv")
        write_csv(files[-1], frame, "%.6g")
    for name, html in evaluation.pages.items():
        files.append(output / f"{name}{suffix}.html")
        write_whole(files[-1], html)
    if evaluation.figures:
        with SummaryWriter(events_folder(output)) as writer:
            for name, figure in evaluation.figures.items():
                files.append(figures.save(figure, output / f"figures/{name}{suffix}.png"))
                writer.add_image(
                    f"eval{suffix or '_test'}/{name}", figures.pixels(figure), record["step"], dataformats="HWC"
                )
    return files


def _print(metrics: dict[str, float], objects: dict[str, Any]) -> None:
    import pandas as pd
    from rich import print as rich_print

    told = {}
    for name, value in metrics.items():
        head, _, tail = name.partition("/acc")
        ends = [metrics[end] for side in ("low", "high") if (end := f"{head}/acc_{side}{tail}") in metrics]
        if not tail.startswith(("_low", "_high")):
            told[name] = shown_interval(value, *ends) if ends else shown(name, value)
    frame = pd.DataFrame(told.items(), columns=["metric", "value"])
    rich_print(rich_table(frame, objects["run"].checkpoint_path.name))
    if "per_class" in objects:
        worst = objects["per_class"].sort_values("accuracy").head(20).round(4).astype(str)
        rich_print(rich_table(worst, "the classes of lowest accuracy"))
        worst = objects["slices"].head(5)
        worst = worst.assign(accuracy=[shown_interval(*row) for row in worst[["accuracy", "low", "high"]].values])
        rich_print(rich_table(worst.drop(columns=["low", "high"]).astype(str), "the worst slices"))
    else:
        print("no figures and no predictions: the module is no ImageClassifier, whose test gives logits")
    print(*objects["files"], sep="\n")


if __name__ == "__main__":
    cli.run(evaluate, "eval", prepare)
