"""Losses against torch, torchvision and hand-worked numbers; metrics against scikit-learn; both in whole runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torchvision.ops import sigmoid_focal_loss

from src.data.memory import MemoryDataModule
from src.export import _deployed
from src.modules.losses import BinaryCrossEntropy, CrossEntropy, Focal, class_weights
from src.predict import _predict
from src.runs.record import read_metrics, read_results
from src.runs.run import open_run
from tests.conftest import QUICK, SILENT, train_here

LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
WEIGHT = [1.0, 50.0, 5.0]


def test_the_weighted_cross_entropy_is_the_mean_over_images_whatever_batch_they_are_in() -> None:
    loss = CrossEntropy(weight=WEIGHT)
    each = torch.tensor(WEIGHT)[LABELS] * F.cross_entropy(LOGITS, LABELS, reduction="none")
    torch.testing.assert_close(loss(LOGITS, LABELS), each.mean())
    halves = (loss(LOGITS[:2], LABELS[:2]) * 2 + loss(LOGITS[2:], LABELS[2:]) * 4) / 6
    torch.testing.assert_close(halves, each.mean())


@pytest.mark.parametrize("loss", [CrossEntropy(weight=WEIGHT), Focal(weight=WEIGHT), BinaryCrossEntropy(), Focal()])
def test_padding_counts_nowhere_and_one_hot_labels_are_the_labels(loss: CrossEntropy) -> None:
    loss.eval()
    expected = loss(LOGITS, LABELS)
    padded = loss(torch.cat([LOGITS, LOGITS[:2]]), torch.cat([LABELS, torch.tensor([-1, -1])]))
    torch.testing.assert_close(padded, expected)
    torch.testing.assert_close(loss(LOGITS, F.one_hot(LABELS, 3).float()), expected)


def test_focal_loss_is_torchvisions_for_two_classes_and_cross_entropy_at_gamma_zero() -> None:
    scores, labels = LOGITS[:, 0], LABELS.clamp(max=1)
    two = torch.stack([torch.zeros(6), scores], dim=1)
    expected = sigmoid_focal_loss(scores, labels.float(), alpha=-1, gamma=1.5, reduction="mean")
    torch.testing.assert_close(Focal(gamma=1.5)(two, labels), expected)
    smooth = Focal(gamma=0.0, label_smoothing=0.1)
    torch.testing.assert_close(smooth(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS, label_smoothing=0.1))
    torch.testing.assert_close(smooth.eval()(LOGITS, LABELS), F.cross_entropy(LOGITS, LABELS))


def test_binary_cross_entropy_takes_several_labels_or_one() -> None:
    several = torch.tensor([[1.0, 0, 1]] * 6)
    expected = F.binary_cross_entropy_with_logits(LOGITS, several)
    torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, several), expected)
    padded = BinaryCrossEntropy()(torch.cat([LOGITS, LOGITS]), torch.cat([several, -torch.ones(6, 3)]))
    torch.testing.assert_close(padded, expected)
    one = F.binary_cross_entropy_with_logits(LOGITS, F.one_hot(LABELS, 3).float())
    torch.testing.assert_close(BinaryCrossEntropy()(LOGITS, LABELS), one)


def test_class_weights_have_a_mean_of_one_over_the_training_images() -> None:
    counts = torch.tensor([2, 6])
    assert class_weights("balanced", counts) == pytest.approx([2, 2 / 3])
    assert class_weights([1, 3], counts) == pytest.approx([0.4, 1.2])  # 8 / (2 + 18)
    assert class_weights(class_weights([1, 3], counts), counts) == pytest.approx([0.4, 1.2])


@pytest.mark.parametrize("weight", ["even", [1.0], [1.0, -1.0], [0.0, 0.0]])
def test_weights_that_make_no_sense_are_refused(weight) -> None:
    with pytest.raises(ValueError, match="choose balanced or 2 numbers"):
        class_weights(weight, torch.tensor([2, 6]))


def test_a_class_without_images_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match=r"no training image of the classes \[1\]"):
        class_weights("balanced", torch.tensor([2, 0]))


def test_a_weighted_loss_trains_evaluates_and_reopens(config) -> None:
    cfg = config(*QUICK, *SILENT, "loss.weight=[1,2,3,4,5,6,7,8,9,10]", "trainer.max_epochs=1")
    metrics, objects, folder = train_here(cfg)
    run = open_run(folder)
    assert run.config.loss.weight[9] == pytest.approx(10 * run.config.loss.weight[0])
    assert run.config.loss.weight == run.config.model.loss.weight
    data = objects["datamodule"]
    images, labels = data.examples("test", data.size("test"))
    with torch.no_grad():
        each = F.cross_entropy(run.network(data.preprocess(images)), labels, reduction="none")
    expected = (each * torch.tensor(list(run.config.loss.weight))[labels]).mean()
    assert metrics["test/loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_a_metric_of_the_config_is_measured_logged_recorded_and_names_the_best_checkpoint(config) -> None:
    cfg = config(*QUICK, *SILENT, "metrics=macro", "optimized_metric=val/f1", "optimizer.lr=0.05")
    metrics, objects, folder = train_here(cfg)
    run, data = open_run(folder), objects["datamodule"]
    images, labels = data.examples("test", data.size("test"))
    with torch.no_grad():
        guess = run.network(data.preprocess(images)).argmax(dim=1)
    assert metrics["test/f1"] == pytest.approx(f1_score(labels, guess, average="macro"), abs=1e-6)
    assert {"val/f1", "val/auroc"} <= set(read_metrics(folder))
    best = read_results(folder)["best"]
    assert (best["metric"], best["mode"]) == ("val/f1", "max")
    assert best["value"] == pytest.approx(read_metrics(folder)["val/f1"].max())
    assert not [name for name in run.checkpoint["state_dict"] if "metrics" in name]


def test_a_metric_of_several_numbers_is_logged_by_class(config) -> None:
    extra = ["metrics=macro", "metrics.f1.average=none", "metrics.auroc=null", "trainer.max_epochs=1"]
    metrics, _, _ = train_here(config(*QUICK, *SILENT, *extra))
    assert {f"val/f1_{digit}" for digit in range(10)} <= set(metrics)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["metrics=macro", "+metrics.acc=${metrics.f1}"], "metrics.acc: the module logs something of that name"),
        (
            ["loss=focal", "loss._target_=torch.nn.CrossEntropyLoss", "~loss.gamma", "+loss.reduction=none"],
            "one number",
        ),
    ],
)
def test_mistakes_in_losses_and_metrics_get_one_message(config, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        train_here(config(*QUICK, *SILENT, *options))


class Halves(MemoryDataModule):
    """Which halves of a noisy image are bright?"""

    def load_train(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.classes = ["left", "top"]
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(100, (240, 3, 32, 32), dtype=torch.uint8, generator=generator)
        labels = torch.rand(240, 2, generator=generator) < torch.tensor([0.5, 0.2])
        images[labels[:, 0], :, :, :16] += 10
        images[labels[:, 1], :, :16] += 10
        return images, labels.float()

    load_test = load_train


HALVES = [
    "data._target_=tests.test_losses.Halves",
    "data.num_classes=2",
    "optimized_metric=val/loss",
    "trusted=[tests]",
]


def test_several_labels_an_image_are_trained_and_measured(config) -> None:
    extra = ["module@model=multilabel", "data.limit=null", "optimizer.lr=0.1", "trainer.max_epochs=6"]
    metrics, objects, folder = train_here(config(*QUICK, *SILENT, *HALVES, *extra))
    run, data = open_run(folder, trusted=["tests"]), objects["datamodule"]
    images, labels = data.examples("test", data.size("test"))
    with torch.no_grad():
        logits = run.network(data.preprocess(images))
    expected = {
        "loss": F.binary_cross_entropy_with_logits(logits, labels),
        "acc": ((logits > 0) == labels).float().mean(),
    }
    expected["map"] = average_precision_score(labels, logits, average="macro")
    expected |= dict(zip(["f1_left", "f1_top"], f1_score(labels, logits > 0, average=None), strict=True))
    assert [metrics[f"test/{name}"] for name in expected] == pytest.approx([*map(float, expected.values())], abs=1e-5)
    assert 0.7 < metrics["test/map"] < 1
    torch.testing.assert_close(_deployed(run).network(images[:5]), logits[:5].sigmoid(), atol=1e-5, rtol=1e-4)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(folder / "image.png")
    ((prediction,), _) = _predict(run, [folder / "image.png"], 1, calibrated=False)
    assert list(prediction["probabilities"].values()) == pytest.approx(logits[0].sigmoid().tolist(), abs=1e-5)
    assert prediction["prediction"] == ", ".join(n for n, x in zip(run.classes, logits[0], strict=True) if x > 0)


def test_a_classifier_of_one_label_refuses_several(config) -> None:
    with pytest.raises(ValueError, match="Halves has several labels an image: choose module@model=multilabel"):
        train_here(config(*QUICK, *SILENT, *HALVES))
