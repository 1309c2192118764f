"""What the values of a config may be: `RULES`, some options a line and the rule for them.

An option is named by its place in the config (`data.batch_size`), by its place in the config of one command
(`eval:seed`), or by class and argument (`Cutout.size`), wherever that class of ours or of a library is built; `*`
stands for letters but dots. What has no rule, such as the options of a class of your own, is for that class to check.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MOST = 2**63 - 1  # int64
DURATION = re.compile(r"\d+(:\d\d){3}")


class Rule(NamedTuple):
    """What a value may be, its choices in words, and as a test."""

    choices: tuple[str, ...]
    fits: Callable[[Any], bool]

    def __or__(self, other: Rule) -> Rule:
        return Rule((*self.choices, *other.choices), lambda value: self.fits(value) or other.fits(value))

    def __str__(self) -> str:
        *others, last = self.choices
        return f"{', '.join(others)} or {last}" if others else last


def whole(low: int, high: int = MOST) -> Rule:
    words = f"a whole number from {low} {'on' if high == MOST else f'to {high}'}"
    return Rule((words,), lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float = math.inf, without: tuple[float, ...] = ()) -> Rule:
    """From `low` to `high`, these included unless they are in `without`."""
    words = f"a number {'above' if low in without else 'from'} {low}"
    words += f" to {'below ' * (high in without)}{high}" if high < math.inf else " on" * (low not in without)

    def fits(value: Any) -> bool:
        return NUMBER.fits(value) and low <= value <= high and value not in without

    return Rule((words,), fits)


def choice(*options: Any) -> Rule:
    return Rule(tuple(map(str, options)), lambda value: type(value) in (str, int) and value in options)


def several(rule: Rule, counts: tuple[int, ...] = (), rising: bool = False) -> Rule:
    """A list of what fits `rule`, with so many entries; none is less than the one before if `rising`."""
    of = f" of {' or '.join(map(str, counts))}" if counts else ""
    words = f"a list{of} ({'rising, ' * rising}each {rule})"

    def fits(values: Any) -> bool:
        right = isinstance(values, list) and all(map(rule.fits, values)) and (not counts or len(values) in counts)
        return right and (not rising or values == sorted(values))

    return Rule((words,), fits)


TRUE = Rule(("true",), lambda value: value is True)
FLAG = Rule(("true", "false"), lambda value: isinstance(value, bool))
NULL = Rule(("null",), lambda value: value is None)
TEXT = Rule(("text",), lambda value: isinstance(value, str) and value != "")
NUMBER = Rule(("a number",), lambda value: type(value) in (int, float) and abs(value) < math.inf)
SECTION = Rule(("a section",), lambda value: isinstance(value, Mapping))
OBJECT = Rule(("a section with a _target_",), lambda value: SECTION.fits(value) and TEXT.fits(value.get("_target_")))
FACTORY = Rule(("a section with a factory",), lambda value: SECTION.fits(value) and (not value or "factory" in value))
SEED = whole(0, 2**32 - 1)
CHANCE, PART, FROM_0, ABOVE_0 = number(0, 1), number(0, 1, without=(1,)), number(0), number(0, without=(0,))
WORDS = several(TEXT | NUMBER)
SIDE = whole(1, 10_000)  # pixels

RULES: dict[str, Rule] = {
    # the entry points
    "test extras.print_config calibrate calibrated cam": FLAG,
    "data.split_seed": SEED,
    "eval:seed sample:seed": SEED,
    "seed data.seed hydra.sweeper.seed": SEED | NULL,
    "task_name paths.root_dir paths.data_dir paths.log_dir out": TEXT,
    "train:paths.output_dir predict:paths.output_dir sample:paths.output_dir": TEXT,
    "paths.output_dir run ckpt_path resume resume_sweep optimized_metric features input path": TEXT | NULL,
    "optimized_mode EarlyStopping.mode RunCheckpoint.mode ReduceLROnPlateau.mode": choice("min", "max"),
    "trusted": several(TEXT),
    "tags": WORDS,
    "classes": Rule(("a list of names",), lambda names: WORDS.fits(names) and names != []) | NULL,
    "batch_size": whole(1),
    "count": whole(1, 1_000_000),
    "samples": whole(1) | NULL,
    "audit": FLAG | TEXT,
    "split": choice("train", "val", "test"),
    "eval:corruptions": TEXT | several(TEXT) | NULL,
    "tta": choice("none", "flip", "multicrop"),
    "format": choice("onnx", "torch", "safetensors"),
    # what is built
    "train:data train:model train:trainer train:loss train:optimizer eval:trainer eval:data shards:data": OBJECT,
    "*Classifier.network *Classifier.optimizer GAN.network MapDataset.source": OBJECT,
    "extras paths": SECTION,
    "MapDataset.val_source MapDataset.test_source data.augment.* callbacks.* logger.* metrics.* model.metrics.*": OBJECT
    | NULL,
    "*Classifier.loss": OBJECT | NULL,
    "callbacks logger metrics *Classifier.metrics GAN.metrics": SECTION | NULL,
    "Torchvision.options HuggingFace.options TimmNetwork.options": SECTION | NULL,
    "*Classifier.scheduler GAN.scheduler": FACTORY | NULL,
    "data.augment": Rule(("a section (its files have a slash: data/augment=NAME)",), SECTION.fits) | NULL,
    "scheduler.factory hydra.launcher hydra.sweeper": OBJECT,
    "GAN.optimizer": SECTION,
    "model.optimizer.generator model.optimizer.discriminator": OBJECT,
    "optimizer._partial_ model.optimizer.*._partial_ scheduler.factory._partial_": TRUE,
    # data
    "data.batch_size": whole(1),
    "data.image_size model.network.image_size": SIDE,
    "data.resize": SIDE | NULL,
    "data.limit data.num_classes model.network.num_classes": whole(1) | NULL,
    "data.channels model.network.channels": choice(1, 3),
    "data.num_workers": whole(0, max(32, 4 * (os.cpu_count() or 1))) | NULL,
    "data.val_size data.test_size": PART | whole(0),  # a share or a number of images
    "data.folds": whole(2, 1000) | NULL,
    "data.fold": whole(0) | NULL,
    "data.store": choice("cpu", "device"),
    "data.mean": choice("imagenet", "half") | several(CHANCE, (1, 3)) | NULL,
    "data.std": choice("imagenet", "half") | several(number(0, 1, without=(0,)), (1, 3)) | NULL,
    "data._convert_": choice("none", "partial", "object", "all"),
    "data.root": TEXT,
    "data.balance STL10.checksum CIFAR*.download STL10.download Torchvision.download HuggingFace.download": FLAG,
    "MapDataset.mode Torchvision.mode HuggingFace.mode Shards.mode": choice("memory", "stream"),
    "Image*.mode": choice("auto", "memory", "stream"),
    "Image*.broken": choice("fail", "skip"),
    "Torchvision.name HuggingFace.name Image*.cache_dir Shards.cache_dir Shards.cache_size": TEXT,
    "CIFAR*.mirror STL10.mirror HuggingFace.image_column HuggingFace.label_column": TEXT | NULL,
    # augmentation
    "RandomHorizontalFlip.p RandomErasing.p RandomOperation.p MixUp.p CutMix.p MixUpOrCutMix.p": CHANCE,
    "MixUpOrCutMix.switch": CHANCE,
    "RandomResizedCrop.size Cutout.size ProgressiveResizing.size": SIDE,
    "ProgressiveResizing.until": whole(0),
    "RandomCrop.size": SIDE | NULL,
    "RandomCrop.padding": whole(0, 10_000),
    "RandAugment.num_ops AugMix.mixture_width": whole(1, 100),
    "MixUp.until CutMix.until MixUpOrCutMix.until": whole(0) | NULL,
    "RandAugment.magnitude": whole(0, 30),
    "AugMix.severity": whole(1, 10),
    "AutoAugment.policy": choice("imagenet", "cifar10", "svhn"),
    "RandomCrop.mode": choice("zero", "reflect"),
    "RandomAffine.interpolation RandomRotation.interpolation": choice("nearest", "bilinear"),
    "RandomResizedCrop.scale RandomErasing.scale": several(number(0, 1, without=(0,)), (2,), rising=True),
    "RandomResizedCrop.ratio RandomErasing.ratio RandomAffine.scale GaussianBlur.sigma": several(
        ABOVE_0, (2,), rising=True
    ),
    "RandomAffine.translate": several(CHANCE, (2,)),
    "MixUp.alpha CutMix.alpha MixUpOrCutMix.mixup MixUpOrCutMix.cutmix": ABOVE_0,
    "ColorJitter.hue": number(0, 0.5),
    "ColorJitter.brightness ColorJitter.contrast ColorJitter.saturation": FROM_0,
    "RandomAffine.degrees RandomRotation.degrees RandomAffine.shear": FROM_0,
    "RandomOperation.magnitude": NUMBER,
    "PerImage.after_normalize": FLAG,
    "GaussianBlur.kernel_size": Rule(("an odd number",), lambda value: whole(1).fits(value) and value % 2 == 1),
    # networks and modules
    "TinyVGG.hidden_units SNGAN.width SNGAN.noise_size ResNet.depth CifarResNet.depth": whole(1),
    "VGG.hidden SpeedrunNet.widths": several(whole(1)),
    "VGG.stages": TEXT | several(whole(1) | choice("M")),
    "VGG.dropout NIN.dropout AlexNet.dropout GoogLeNet.dropout GoogLeNet.dropout_aux GAN.decay EMA.decay": PART,
    "VGG.batch_norm VGG.factorized NIN.batch_norm SpeedrunNet.dirac": FLAG,
    "GoogLeNet.aux_heads GoogLeNet.true_5x5 GoogLeNet.transform_input": FLAG,
    "GoogLeNet.small_stem ResNet.small_stem": FLAG | NULL,
    "SpeedrunNet.logit_scale": ABOVE_0,
    "TorchvisionNetwork.name TimmNetwork.name": TEXT,
    "*Classifier.channels_last *Classifier.compile *Classifier.decay_norms_and_biases": FLAG,
    "GAN.channels_last GAN.compile": FLAG,
    "model.weights": TEXT | NULL,
    "GoogLeNetClassifier.aux_weight": FROM_0 | several(FROM_0, (2,)),
    "GoogLeNetClassifier.aux_decay": choice("linear", "cosine") | NULL,
    "WhitenedClassifier.whitening_images": whole(0),
    "GAN.discriminator_steps": whole(1),
    # losses, optimizers, schedules
    "CrossEntropy.label_smoothing Focal.label_smoothing BinaryCrossEntropy.label_smoothing": PART,
    "loss.weight": choice("balanced") | several(FROM_0) | NULL,
    "Focal.gamma": FROM_0,
    "torch.optim.*.lr Muon.lr Muon.sgd_lr torch.optim.*.eps": ABOVE_0,
    "SGD.momentum RMSprop.momentum Muon.momentum Muon.sgd_momentum": PART,
    "torch.optim.*.weight_decay Muon.weight_decay Muon.bias_factor": FROM_0,
    "torch.optim.*.betas": several(PART, (2,)),
    "SGD.nesterov Muon.fixed_norm torch.optim.*.amsgrad": FLAG,
    "torch.optim.*.fused": FLAG | NULL,
    "Muon.iterations": whole(1),
    "scheduler.interval": choice("step", "epoch"),
    "scheduler.frequency StepLR.step_size": whole(1),
    "scheduler.monitor": TEXT | NULL,
    "scheduler.needs_total_steps": FLAG,
    "CosineWithWarmup.warmup Triangle.peak ReduceLROnPlateau.factor": PART,
    "OneCycle.pct_start": number(0, 1, without=(0, 1)),
    "ConstantLR.factor": CHANCE,
    "CosineWithWarmup.start CosineWithWarmup.end Triangle.start Triangle.end": FROM_0,
    "torch.optim.lr_scheduler.*.gamma": ABOVE_0,
    "MultiStepLR.milestones": several(whole(0), rising=True),
    "ReduceLROnPlateau.patience": whole(0),
    # the trainer, by Lightning's names
    "trainer.accelerator": TEXT,
    "trainer.default_root_dir": TEXT | NULL,
    "trainer.strategy": TEXT | OBJECT,
    "trainer.devices": whole(1, 1024) | choice(-1) | TEXT | several(whole(0)),
    "trainer.precision": Rule(("a name such as bf16-mixed",), TEXT.fits) | choice(16, 32, 64) | NULL,
    "trainer.max_epochs": whole(1) | choice(-1) | NULL,
    "trainer.max_steps": whole(1) | choice(-1),
    "trainer.max_time": Rule(("DD:HH:MM:SS",), lambda value: bool(DURATION.fullmatch(str(value)))) | SECTION | NULL,
    "trainer.min_epochs trainer.min_steps": whole(0) | NULL,
    "trainer.num_nodes": whole(1, 100_000),
    "trainer.accumulate_grad_batches": whole(1),
    "trainer.check_val_every_n_epoch trainer.log_every_n_steps": whole(1) | NULL,
    "trainer.gradient_clip_val": FROM_0 | NULL,
    "trainer.gradient_clip_algorithm": choice("norm", "value") | NULL,
    "trainer.limit_train_batches eval:trainer.limit_test_batches": number(0, 1, without=(0,)) | whole(1),
    "trainer.limit_val_batches trainer.limit_test_batches trainer.overfit_batches": CHANCE | whole(0),
    "trainer.num_sanity_val_steps": whole(-1),
    "trainer.deterministic": FLAG | choice("warn"),
    "trainer.fast_dev_run": FLAG | whole(1),
    "trainer.profiler": TEXT | OBJECT | NULL,
    "trainer.use_distributed_sampler trainer.enable_model_summary trainer.enable_progress_bar": FLAG,
    "trainer.detect_anomaly trainer.sync_batchnorm trainer.inference_mode trainer.barebones": FLAG,
    "trainer.benchmark": FLAG | NULL,
    # callbacks and loggers
    "EarlyStopping.monitor RunCheckpoint.monitor": TEXT | NULL,
    "RunCheckpoint.filename RunCheckpoint.dirpath SampleSheet.folder Dynamics.folder": TEXT,
    "RunCheckpoint.save_top_k Summary.max_depth": whole(-1),
    "EarlyStopping.patience": whole(0),
    "EarlyStopping.min_delta": NUMBER,
    "RunCheckpoint.auto_insert_metric_name EarlyStopping.strict EarlyStopping.check_finite": FLAG,
    "LearningRateMonitor.logging_interval": choice("step", "epoch") | NULL,
    "ProgressBar.refresh_every Lookahead.power": FROM_0,
    "TensorBoardPictures.images SampleSheet.columns SampleSheet.rows Lookahead.every": whole(1),
    "Lookahead.decay": CHANCE,
    "GradientNorms.parts": several(TEXT),
    "Finetune.unfreeze_at": whole(0) | NULL,
    "Finetune.backbone_lr": ABOVE_0,
    "TensorBoardLogger.save_dir CSVLogger.save_dir WandbLogger.save_dir": TEXT,
    "MLFlowLogger.experiment_name MLFlowLogger.tracking_uri WandbLogger.project": TEXT,
    "MLFlowLogger.run_name MLFlowLogger.run_id WandbLogger.name WandbLogger.id": TEXT | NULL,
    "TensorBoardLogger.name TensorBoardLogger.version": TEXT | whole(0) | NULL,
    "logger.csv.name": NULL,  # csv/metrics.csv is what the rest reads
    "logger.csv.version": choice("csv"),
    "TensorBoardLogger.default_hp_metric WandbLogger.offline": FLAG,
    "WandbLogger.tags": WORDS | NULL,
    # sweeps
    "hydra.sweeper.metric hydra.sweeper.direction": TEXT | several(TEXT),
    "hydra.sweeper.n_trials hydra.launcher.n_jobs": whole(1),
    "hydra.launcher.retries hydra.launcher.requeues": whole(0),
    "hydra.launcher.gpus_per_job": whole(0) | NULL,
    "hydra.sweeper.storage": TEXT | NULL,
    "hydra.sweeper.study_name": TEXT,
    "hydra.launcher.cluster": choice("slurm", "local", "debug"),
    "hydra.sweeper.params hydra.launcher.resources": SECTION,
    "hydra.sweeper.sampler": OBJECT,
    "TPESampler.n_startup_trials MedianPruner.n_startup_trials MedianPruner.n_warmup_steps": whole(0),
    "HyperbandPruner.min_resource": whole(1),
    "HyperbandPruner.max_resource": whole(1) | choice("auto"),
    "HyperbandPruner.reduction_factor NSGAIISampler.population_size": whole(2),
}
