"""Evaluates a run on one split: the module's own test, then figures and every image's prediction.

python -m src.eval run=latest
python -m src.eval run=logs/train/runs/RUN split=val tta=flip
python -m src.eval run=GAN features=RUN
python -m src.eval --help
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from src import cli
from src.runs.build import build
from src.runs.folder import events_folder, write_csv, write_json
from src.runs.run import Run, open_run
from src.runs.table import rich_table, shown
from src.runs.values import check_values

# What decides which images are held out, by split.
SPLITTING = {"val": ("split_seed", "val_size", "folds", "fold", "limit", "test_size"), "test": ("test_size",)}
MOST = 10_000  # images of each kind that a GAN's samples are compared with


def prepare(given: cli.Given) -> None:
    """Before Hydra composes: the data section of the run that the command line names becomes the option `data=run`."""
    name = given.get("ckpt_path") or given.get("run", "null")
    if name != "null":
        run = open_run(name, cli.log_dir(given), cli.trusted(given))
        ConfigStore.instance().store(group="data", name="run", node=run.config.data)


def evaluate(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Evaluates what the config says and writes the results into the run folder.

    Returns:
        Metrics named `test/...` (or `val/...`, `train/...`): whatever the module logs in its test, and for a classifier
        also the means over classes precision, recall and f1, ece (expected calibration error) and images_per_s; with
        test-time augmentation all but the last again as `test/..._tta`, of the mean probabilities; for a GAN, with
        `features`, those of `src.evaluation.generative.compare`, and cas, the classification accuracy score. And the
        objects: cfg (the run's, as used), datamodule, model, trainer, run, files (what was written), and for a
        classifier per_class and predictions (data frames).

    Raises:
        ValueError, FileNotFoundError, RunError: the config asks for something that cannot be done.
    """
    check_values(cfg, "eval")
    from lightning.pytorch.callbacks import Timer

    from src.callbacks.progress import ProgressBar
    from src.evaluation.metrics import measure, predictions
    from src.modules.classifier import ImageClassifier

    cli.quieten()
    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    judge = None if cfg.features is None else _judge(run, cfg)
    own_data = _adjust(run, cfg)
    datamodule: Any = run.datamodule
    datamodule.eval_split = cfg.split
    collector, timer = _collector(run.classes, cfg.tta), Timer()
    callbacks = [ProgressBar(), timer, *([collector] if isinstance(run.model, ImageClassifier) else [])]
    trainer = build(run.config.trainer, callbacks=callbacks, logger=False, enable_checkpointing=False)
    trainer.test(run.model, datamodule=datamodule, verbose=False)

    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    objects = {"cfg": run.config, "datamodule": datamodule, "model": run.model, "trainer": trainer, "run": run}
    if collector in callbacks:
        plain, mean, labels = collector.result
        measured, per_class = measure(plain, labels, run.classes)
        if cfg.tta != "none":
            averaged, per_class = measure(mean, labels, run.classes)
            measured |= {f"{name}_tta": value for name, value in averaged.items()}
        metrics = {**measured, **metrics, "images_per_s": len(labels) / timer.time_elapsed("test")}
        objects |= {"per_class": per_class, "predictions": predictions(mean, labels, run.classes)}
    if judge is not None:
        metrics |= _judged(run, judge, trainer, cfg)
    metrics = {f"{cfg.split}/{name}": value for name, value in metrics.items()}
    if trainer.is_global_zero:
        objects["files"] = _write(cfg, own_data, metrics, objects)
        _print(metrics, objects)
    return metrics, objects


def _adjust(run: Run, cfg: DictConfig) -> bool:
    """Puts the data and the trainer asked for into the run's config; returns whether the data set is the run's own.

    Normalisation and image size stay the run's, since the network learnt with them.
    """
    import torch

    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    kept, trainer = run.checkpoint["preprocess"], plain["trainer"]
    data: Any = plain.get("data") or OmegaConf.to_container(run.config.data)
    another = data["mean"] is None  # the run's own section has the mean that was measured
    data = {**data, **kept, "channels": len(kept["mean"]), "augment": None} if another else data
    if changed := [f"data.{key}" for key in kept if data[key] != kept[key]]:
        raise ValueError(f"{', '.join(changed)} cannot be changed: the network learnt with what its run had.")
    own = run.config.data
    deciding = () if another else SPLITTING.get(cfg.split, ())
    if mixing := [f"data.{key}={data[key]}" for key in deciding if data.get(key) != own.get(key)]:
        raise ValueError(f"split={cfg.split} {mixing[0]} would mix images that the network was trained on with others.")
    if trainer["precision"] in (None, "fastest"):
        precision = str(run.config.trainer.precision)
        trainer["precision"] = "32-true" if precision.startswith("16") and not torch.cuda.is_available() else precision
    run.config.data, run.config.trainer = data, trainer
    return not another


def _collector(classes: list[str], tta: str) -> Any:
    """A callback that keeps what a classifier's test gives.

    Its `result`, after the test, is (probabilities of the images as they are, averaged over the views, labels): (N, K),
    (N, K), (N,), on the CPU, in the data set's order whatever the number of processes.
    """
    import torch
    from lightning import Callback

    from src.evaluation.metrics import views

    class Collector(Callback):
        def setup(self, trainer: Any, module: Any, stage: str) -> None:
            if (given := list(trainer.datamodule.classes)) != classes:
                knows, has = (f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in (classes, given))
                raise ValueError(f"the network knows {knows}, but the data set has {has}; choose one with the same.")
            self.parts: list[Any] = []

        def on_test_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
            with trainer.precision_plugin.test_step_context():
                logits = [outputs, *(module(view) for view in views(batch[0], tta))]
            rows = torch.stack([each.float().softmax(dim=1) for each in logits])  # (views, B, K)
            self.parts.append((rows[0], rows.mean(dim=0), batch[1]))

        def on_test_epoch_end(self, trainer: Any, module: Any) -> None:
            parts = [torch.cat(part) for part in zip(*self.parts, strict=True)]
            if trainer.world_size > 1:  # rank r holds images r, r + world, r + 2 world, ...: (world, n, ...)
                parts = [module.all_gather(part).transpose(0, 1).flatten(0, 1) for part in parts]
            self.result = [part[parts[2] >= 0].cpu() for part in parts]  # the others fill up the last batches

    return Collector()


def _judge(run: Run, cfg: DictConfig) -> Run:
    """The classifier's run that `features` names, if it can judge the samples of `run`."""
    from src.modules.classifier import ImageClassifier
    from src.modules.gan import GAN

    judge = open_run(cfg.features, cfg.paths.log_dir, cfg.trusted)
    if not isinstance(run.model, GAN) or not isinstance(judge.model, ImageClassifier):
        raise ValueError(f"features={cfg.features}: a classifier's run judges the samples of a GAN's run.")
    for name, mine, its in (
        ("classes", run.classes, judge.classes),
        ("data.image_size", run.config.data.image_size, judge.config.data.image_size),
    ):
        if mine != its:
            raise ValueError(f"features={cfg.features} has other {name} than the GAN: {its} and {mine}.")
    return judge


def _judged(run: Run, judge: Run, trainer: Any, cfg: DictConfig) -> dict[str, float]:
    """How samples of a GAN compare with real images in the features of a classifier, and what it learns from them."""
    import torch

    from src.data.preprocess import Preprocess
    from src.evaluation.generative import compare, penultimate

    model: Any = run.model
    datamodule: Any = run.datamodule
    device = trainer.strategy.root_device
    network, preprocess = judge.network.to(device), Preprocess(**judge.checkpoint["preprocess"]).to(device)

    def features(images: torch.Tensor) -> torch.Tensor:
        return penultimate(network, (preprocess(batch.to(device)) for batch in images.split(256)))

    datamodule.setup("fit")
    train, labels = datamodule.examples("train", min(cfg.samples or MOST, datamodule.size("train")))
    real, _ = datamodule.examples(cfg.split, min(MOST, datamodule.size(cfg.split)))
    labels = labels.repeat(-(-(cfg.samples or len(labels)) // len(labels)))[: cfg.samples]
    samples = model.to(device).sample(labels, seed=cfg.seed)
    return {**compare(features, train, samples, real), "cas": _accuracy_score(run, judge, samples, labels, cfg)}


def _accuracy_score(run: Run, judge: Run, samples: Any, labels: Any, cfg: DictConfig) -> float:
    """Accuracy on real images of the judge's network, trained anew, without callbacks, on samples alone.

    The classification accuracy score of Ravuri and Vinyals 2019 (arXiv 1905.10887).
    """
    import torch
    from lightning import seed_everything

    from src.callbacks.processor import Processor
    from src.data.memory import ImageSet
    from src.runs.build import build_model

    seed_everything(cfg.seed, verbose=False)
    kept = ("max_epochs", "max_steps", "gradient_clip_val", "accumulate_grad_batches")
    options = {name: judge.config.trainer[name] for name in kept} | {"limit_val_batches": 0}
    options |= {"callbacks": [Processor()], "logger": False, "enable_checkpointing": False}
    trainer, model = build(run.config.trainer, **options), build_model(judge.config)
    datamodule, real = build(judge.config.data), build(judge.config.data)
    sampled = {"train": ImageSet(samples, labels, torch.arange(len(labels)), datamodule.needs_index)}
    datamodule.load_sets = lambda part: sampled
    real.eval_split = cfg.split
    trainer.fit(model, datamodule)
    return float(trainer.test(model, real, verbose=False)[0]["test/acc"])


def _write(cfg: DictConfig, own_data: bool, metrics: dict[str, float], objects: dict[str, Any]) -> list[Path]:
    """Files of the run's own test split have plain names; any other evaluation adds what it is to them."""
    from torch.utils.tensorboard import SummaryWriter

    from src import figures

    run, data = objects["run"], type(objects["datamodule"]).__name__
    epoch, step = run.checkpoint["epoch"], run.checkpoint["global_step"]
    what = ["none" if own_data else data.lower(), "none" if own_data and cfg.split == "test" else cfg.split]
    limit, its = (config["data"].get("limit") for config in (run.config, run.checkpoint["config"]))
    what += [f"limit{limit}" if own_data and limit != its else "none"]
    what += [cfg.tta, Path(cfg.ckpt_path or "none").stem]
    suffix = "".join(f"_{part}" for part in what if part != "none")
    output = Path(cfg.paths.output_dir or run.folder)
    record = {"checkpoint": run.checkpoint_path.name, "epoch": epoch, "data": data, "split": cfg.split, "tta": cfg.tta}
    files = [output / f"evaluation{suffix}.json"]
    write_json(files[0], {**record, "metrics": metrics})
    if "predictions" in objects:
        for name in ("per_class", "predictions"):
            files.append(output / f"{name}{suffix}.csv")
            write_csv(files[-1], objects[name], "%.6g")
        title = f"{type(run.network).__name__} on {data}, {cfg.split}, tta={cfg.tta}".removesuffix(", tta=none")
        with SummaryWriter(events_folder(output)) as writer:
            for name, figure in _draw(cfg.split, title, objects):
                files.append(figures.save(figure, output / f"figures/{name}{suffix}.png"))
                writer.add_image(f"eval{suffix or '_test'}/{name}", figures.pixels(figure), step, dataformats="HWC")
    return files


def _draw(split: str, title: str, objects: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    import pandas as pd

    from src import figures

    classes, per_class = objects["run"].classes, objects["per_class"]
    frame = objects["predictions"].sort_values("confidence", ascending=False, kind="stable")
    right = frame["label"] == frame["prediction"]
    counts = pd.crosstab(frame["label"], frame["prediction"]).reindex(index=classes, columns=classes, fill_value=0)
    yield "confusion_matrix", figures.confusion_matrix(counts, classes, title)
    yield "reliability", figures.reliability(frame["confidence"], right, title=title)
    yield "per_class", figures.class_bars(dict(per_class[["recall", "precision", "f1"]]), classes, "", title)
    for kind, chosen in (("wrong", frame[~right]), ("right", frame[right])):
        first = chosen.head(24)
        images, labels = objects["datamodule"].examples(split, first["image"].tolist())
        rows = first[[f"p_{name}" for name in classes]].to_numpy()
        heading = f"{title}: {kind} with most confidence ({len(first)} of {len(chosen):,})"
        yield f"most_confident_{kind}", figures.examples(images.numpy(), labels.numpy(), rows, classes, heading)


def _print(metrics: dict[str, float], objects: dict[str, Any]) -> None:
    import pandas as pd
    from rich import print as rich_print

    values = [shown(name.removesuffix("_tta"), value) for name, value in metrics.items()]
    frame = pd.DataFrame({"metric": list(metrics), "value": values})
    rich_print(rich_table(frame, objects["run"].checkpoint_path.name))
    if "per_class" in objects:
        worst = objects["per_class"].sort_values("accuracy").head(20).round(4).astype(str)
        rich_print(rich_table(worst, "the classes of lowest accuracy"))
    else:
        print("no figures and no predictions: the module is no ImageClassifier, whose test gives logits")
    print(*objects["files"], sep="\n")


if __name__ == "__main__":
    cli.run(evaluate, "eval", prepare)
