"""The samples of a GAN, judged by a classifier's run: distances in its features, and what it learns from them."""

from typing import Any

import torch
from lightning import seed_everything
from omegaconf import DictConfig

from src.callbacks.processor import Processor
from src.data.memory import ImageSet
from src.evaluation.generative import compare, penultimate
from src.modules.classifier import ImageClassifier
from src.modules.gan import GAN
from src.runs.build import build, build_model
from src.runs.run import Run, open_run
from src.studies import Evaluation

MOST = 10_000  # images of each kind that are compared


class Samples:
    """Adds the metrics of `src.evaluation.generative.compare`, and cas, the classification accuracy score."""

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        self.judge = open_run(cfg.features, cfg.paths.log_dir, cfg.trusted)
        if not isinstance(run.model, GAN) or not isinstance(self.judge.model, ImageClassifier):
            raise ValueError(f"features={cfg.features}: a classifier's run judges the samples of a GAN's run.")
        for name, mine, its in (
            ("classes", run.classes, self.judge.classes),
            ("data.image_size", run.config.data.image_size, self.judge.config.data.image_size),
        ):
            if mine != its:
                raise ValueError(f"features={cfg.features} has other {name} than the GAN: {its} and {mine}.")

    def __call__(self, evaluation: Evaluation) -> None:
        cfg, model, datamodule = evaluation.cfg, evaluation.run.model, evaluation.datamodule
        device = evaluation.trainer.strategy.root_device
        network = self.judge.network.to(device)
        preprocess = self.judge.preprocess.to(device)

        def features(images: torch.Tensor) -> torch.Tensor:
            return penultimate(network, (preprocess(batch.to(device)) for batch in images.split(256)))

        datamodule.setup("fit")
        train, labels = datamodule.examples("train", min(cfg.samples or MOST, datamodule.size("train")))
        real, _ = datamodule.examples(cfg.split, min(MOST, datamodule.size(cfg.split)))
        labels = labels.repeat(-(-(cfg.samples or len(labels)) // len(labels)))[: cfg.samples]
        samples = model.to(device).sample(labels, seed=cfg.seed)  # type: ignore[operator]
        evaluation.metrics |= compare(features, train, samples, real)
        evaluation.metrics["cas"] = self._accuracy_score(evaluation, samples, labels)

    def _accuracy_score(self, evaluation: Evaluation, samples: Any, labels: Any) -> float:
        """Accuracy on real images of the judge's network, trained anew, without callbacks, on samples alone.

        The classification accuracy score of Ravuri and Vinyals 2019 (arXiv 1905.10887).
        """
        seed_everything(evaluation.cfg.seed, verbose=False)
        judged = self.judge.config
        kept = ("max_epochs", "max_steps", "gradient_clip_val", "accumulate_grad_batches")
        options = {name: judged.trainer[name] for name in kept} | {"limit_val_batches": 0}
        options |= {"callbacks": [Processor()], "logger": False, "enable_checkpointing": False}
        trainer, model = build(evaluation.run.config.trainer, **options), build_model(judged)
        datamodule, real = build(judged.data), build(judged.data)
        place = torch.arange(len(labels)), datamodule.needs_index, datamodule.channels
        sampled = {"train": ImageSet(samples, labels, *place)}
        datamodule.load_sets = lambda part: sampled
        real.eval_split = evaluation.cfg.split
        trainer.fit(model, datamodule)
        return float(trainer.test(model, real, verbose=False)[0]["test/acc"])
