"""The LightningModules: their metrics against torchmetrics and hand-worked sums, their optimisers and schedules."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import AUROC
from torchmetrics.classification import MultilabelF1Score
from torchmetrics.functional import accuracy

from src.evaluation.metrics import measure
from src.modules.base import Task
from src.modules.classifier import ImageClassifier
from src.modules.googlenet import GoogLeNetClassifier
from src.modules.losses import CrossEntropy
from src.modules.multilabel import MultiLabelClassifier
from src.modules.schedules import CosineWithWarmup, Triangle
from src.networks.googlenet import GoogLeNetOutput

SGD = partial(torch.optim.SGD, lr=0.1)
cross_entropy = nn.functional.cross_entropy


def linear(*more: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 7), *more)


def batches(padding: int = 0) -> DataLoader:
    """Fifty images in batches of 16, then images of padding."""
    torch.manual_seed(0)
    labels = torch.cat([torch.randint(7, (50,)), torch.full((padding,), -1)])
    return DataLoader(TensorDataset(torch.randn(len(labels), 3, 4, 4), labels), 16)


def quiet_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_evaluation_metrics_are_those_of_torchmetrics_over_all_images_but_padding() -> None:
    module = ImageClassifier(linear(nn.BatchNorm1d(7)), SGD)
    loader = batches(padding=30)  # the last batch is padding alone
    [logged] = quiet_trainer().test(module, loader, verbose=False)
    images, labels = (tensor[:50] for tensor in loader.dataset.tensors)
    with torch.no_grad():
        logits = module.eval()(images)
    assert logged["test/loss"] == pytest.approx(cross_entropy(logits, labels).item(), abs=1e-6)
    for name, k in (("test/acc", 1), ("test/acc_top5", 5)):
        expected = accuracy(logits, labels, task="multiclass", num_classes=7, average="micro", top_k=k)
        assert logged[name] == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several"])
def test_metrics_see_probabilities_also_where_all_logits_of_a_batch_lie_between_0_and_1(several: bool) -> None:
    images, labels = torch.rand(12, 3), torch.arange(12) % 3
    images[6:] *= 20  # of the second batch they do not
    measured: Any = MultilabelF1Score(3) if several else AUROC(task="multiclass", num_classes=3)
    if several:
        labels = torch.nn.functional.one_hot(labels, 3).float()
    module = (MultiLabelClassifier if several else ImageClassifier)(nn.Linear(3, 3), SGD, metrics={"own": measured})
    module.forward = nn.Identity().forward
    [logged] = quiet_trainer().test(module, DataLoader(TensorDataset(images, labels), 6), verbose=False)
    probabilities = images.sigmoid() if several else images.softmax(dim=1)
    assert logged["test/own"] == pytest.approx(measured(probabilities, labels.long()).item(), abs=1e-6)


@pytest.mark.parametrize("classes", [5, 6])
def test_five_classes_have_no_top_five(classes: int) -> None:
    images, labels = torch.randn(8, 3, 4, 4), torch.arange(8) % classes
    module = ImageClassifier(linear(nn.Linear(7, classes)), SGD)
    [logged] = quiet_trainer().test(module, DataLoader(TensorDataset(images, labels), 8), verbose=False)
    probabilities = module.eval()(images).detach().softmax(dim=1)
    measured, *_ = measure(probabilities.log(), labels, [str(label) for label in range(classes)])
    assert ("test/acc_top5" in logged) == ("acc_top5" in measured) == (classes > 5)


def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_step() -> None:
    class BreaksAt(ImageClassifier):
        def loss(self, logits, labels):
            return super().loss(logits, labels) * (float("nan") if self.global_step == 5 else 1)

    trainer = quiet_trainer(max_epochs=2)
    with pytest.raises(FloatingPointError, match=r"became nan at step 5 \(epoch 1\)"):
        trainer.fit(BreaksAt(linear(), SGD), batches())  # 4 steps an epoch


def test_a_loss_of_ones_own_is_the_mean_over_an_epochs_images_in_training_and_in_evaluation() -> None:
    class Squared(ImageClassifier):
        def loss(self, logits, labels):
            return (1 + self.current_epoch) * logits.square().mean()

    module, loader, trainer = Squared(linear(), partial(SGD, lr=0.0)), batches(), quiet_trainer(max_epochs=2)
    trainer.fit(module, loader, loader)
    logged = dict(trainer.callback_metrics)
    trainer.test(module, loader, verbose=False)
    logged |= trainer.callback_metrics
    expected = module(loader.dataset.tensors[0]).square().mean().item()
    for stage, factor in (("train", 2), ("val", 2), ("test", 3)):  # of the last epoch alone; the test comes after it
        assert logged[f"{stage}/loss"].item() == pytest.approx(factor * expected, abs=1e-6)


def test_labels_are_smoothed_in_training_and_not_in_evaluation() -> None:
    logits, labels = torch.randn(6, 7), torch.tensor([0, 1, -1, 3, 4, 5])
    loss = CrossEntropy(label_smoothing=0.2)
    for training, smoothing in ((True, 0.2), (False, 0.0)):
        expected = cross_entropy(logits, labels, ignore_index=-1, label_smoothing=smoothing)
        assert torch.equal(loss.train(training)(logits, labels), expected)


def test_a_network_of_parts_gets_an_optimizer_for_each_its_rates_and_no_decay_of_norms_and_biases_on_request() -> None:
    first = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    network = nn.ModuleDict({"first": first, "second": nn.Linear(3, 4)})
    optimizers = {"first": partial(SGD, weight_decay=0.1), "second": partial(torch.optim.Adam, lr=0.5)}
    module = Task(network, optimizers, decay_norms_and_biases=False)
    module.rate_factors = {first[0].weight: 0.1}
    made = [each["optimizer"] for each in module.configure_optimizers()]
    assert not module.automatic_optimization
    groups = [(g["lr"], g["weight_decay"], len(g["params"])) for g in made[0].param_groups]
    assert groups == [(0.1, 0.0, 3), (pytest.approx(0.01), 0.1, 1)]
    assert isinstance(made[1], torch.optim.Adam)
    assert sum(p.numel() for group in made[1].param_groups for p in group["params"]) == 4 * 3 + 4


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # A third of the cosine's steps rise from a hundredth; then come its quarters, half of it after two of four.
        (partial(CosineWithWarmup, total_steps=6, warmup=1 / 3, end=0.2), [0.01, 0.505, 1, 0.8828, 0.6, 0.3172, 0.2]),
        (partial(Triangle, total_steps=10, start=0.2, peak=0.4, end=0.1), [2, 4, 6, 8, 10, 8.5, 7, 5.5, 4, 2.5, 1]),
        (partial(Triangle, total_steps=4, peak=0, end=0), [1, 0.75, 0.5, 0.25, 0]),
    ],
    ids=["cosine", "triangle", "a triangle that only falls"],
)
def test_a_schedule_rises_falls_and_stays_at_its_end(schedule: Any, expected: list[float]) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=max(expected))
    scheduler = schedule(optimizer)
    rates = []
    for _ in [*expected, "one more"]:
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([*expected, expected[-1]], abs=1e-4)


def test_a_schedule_that_needs_its_length_gets_the_trainings() -> None:
    seen = []

    def schedule(optimizer, total_steps):
        seen.append(total_steps)
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    def fit(interval: str, **options: int) -> None:
        scheduler = {"factory": schedule, "interval": interval, "needs_total_steps": True}
        quiet_trainer(**options).fit(ImageClassifier(linear(), SGD, scheduler=scheduler), batches())

    fit("step", max_epochs=3)
    fit("epoch", max_epochs=3)
    assert seen == [12, 3]
    with pytest.raises(ValueError, match="must know where training ends"):
        fit("epoch", max_epochs=-1)


class ThreeHeads(nn.Module):
    """A trunk and three linear heads, as GoogLeNet returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = linear()
        self.main, self.aux1, self.aux2 = (nn.Linear(7, 7) for _ in range(3))

    def forward(self, images: Tensor) -> Tensor | GoogLeNetOutput:
        x = self.trunk(images)
        if self.aux1 is self.aux2 is None:
            return self.main(x)
        return GoogLeNetOutput(self.main(x), *(head(x) if head else None for head in (self.aux1, self.aux2)))


@pytest.mark.parametrize(
    ("weight", "decay", "factors"),
    [
        (0.3, None, (0.3, 0.3)),
        ([0.5, 0.1], "linear", (0.125, 0.025)),  # a quarter of the training is left
        ([0.5, 0.1], "cosine", (0.5 * 0.1464466, 0.1 * 0.1464466)),  # (1 + cos(3/4 pi)) / 2
        ([0.3, 0], None, (0.3, 0)),
        (0, None, (0, 0)),
    ],
)
def test_the_auxiliary_loss_is_the_hand_written_sum_and_a_head_of_weight_zero_goes(
    weight: float | list[float], decay: str | None, factors: tuple[float, float]
) -> None:
    class AtThreeOfFour(GoogLeNetClassifier):
        global_step = 3

        def total_steps(self, interval: str = "step") -> int:
            return 4

    torch.manual_seed(0)
    network = ThreeHeads()
    heads = {"aux1": network.aux1, "aux2": network.aux2}
    module = AtThreeOfFour(network, SGD, aux_weight=weight, aux_decay=decay)
    images, labels = torch.randn(5, 3, 4, 4), torch.randint(7, (5,))
    step = module.objective(module(images), labels)
    x = network.trunk(images)
    expected = cross_entropy(network.main(x), labels)
    kept = {"acc": (network.main(x).argmax(1) == labels).sum()}
    for (name, head), factor in zip(heads.items(), factors, strict=True):
        assert getattr(network, name) is (head if factor else None)
        if factor:
            head_loss = cross_entropy(head(x), labels)
            expected = expected + factor * head_loss
            kept |= {f"{name}_loss": 5 * head_loss, f"{name}_acc": (head(x).argmax(1) == labels).sum()}
    assert torch.equal(step.output, network.main(x))
    torch.testing.assert_close(step.loss, expected)
    torch.testing.assert_close(step.sums, kept)


def test_heads_that_the_network_was_built_without_have_no_weight() -> None:
    network = ThreeHeads()
    network.aux1 = network.aux2 = None  # type: ignore[assignment]
    module = GoogLeNetClassifier(network, SGD, aux_weight=0.3)
    images, labels = torch.randn(5, 3, 4, 4), torch.randint(7, (5,))
    torch.testing.assert_close(module.step((images, labels), "train").loss, cross_entropy(network(images), labels))


def test_what_a_training_step_gives_to_callbacks_has_no_graph() -> None:
    images, labels = torch.randn(5, 3, 4, 4), torch.randint(7, (5,))
    several = nn.functional.one_hot(labels, 7).float()
    for module, batch in (
        (ImageClassifier(linear(), SGD), (images, labels)), (MultiLabelClassifier(linear(), SGD), (images, several))
    ):  # fmt: skip
        given = module.training_step(batch, 0)
        assert given["loss"].requires_grad
        assert not given["output"].requires_grad
