"""The LightningModules: their metrics against torchmetrics and hand-worked sums, their optimisers and schedules."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional import accuracy

from src.modules.classifier import ImageClassifier, Sums
from src.modules.googlenet import GoogLeNetClassifier
from src.modules.schedules import cosine_with_warmup
from src.networks.googlenet import GoogLeNetOutput

SGD = partial(torch.optim.SGD, lr=0.1)


class Linear(nn.Module):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 4 * 4, classes)
        self.norm = nn.BatchNorm1d(classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(images.flatten(1)))


def batches(count: int = 50, classes: int = 7, batch_size: int = 16) -> DataLoader:
    torch.manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(count, 3, 4, 4), torch.randint(classes, (count,))), batch_size)


def quiet_trainer(**options: object) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def test_evaluation_metrics_are_those_of_torchmetrics_over_all_images() -> None:
    module = ImageClassifier(Linear(), SGD)
    loader = batches()
    [logged] = quiet_trainer().test(module, loader, verbose=False)
    images, labels = loader.dataset.tensors
    with torch.no_grad():
        logits = module.eval()(images)
    assert logged["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), abs=1e-6)
    for name, k in (("test/acc", 1), ("test/acc_top5", 5)):
        expected = accuracy(logits, labels, task="multiclass", num_classes=7, average="micro", top_k=k)
        assert logged[name] == pytest.approx(expected.item(), abs=1e-6)


def test_padding_images_count_nowhere_even_in_a_batch_of_their_own() -> None:
    module = ImageClassifier(Linear(), SGD)
    images, labels = torch.randn(8, 3, 4, 4), torch.randint(7, (8,))
    [plain] = quiet_trainer().test(module, DataLoader(TensorDataset(images, labels), 4), verbose=False)
    padded_images = torch.cat([images, torch.zeros(4, 3, 4, 4)])
    padded_labels = torch.cat([labels, torch.full((4,), -1)])
    [padded] = quiet_trainer().test(module, DataLoader(TensorDataset(padded_images, padded_labels), 4), verbose=False)
    assert padded == plain


def test_a_loss_that_is_not_finite_stops_the_training_and_names_its_step() -> None:
    class BreaksAt(ImageClassifier):
        def loss(self, output, labels):
            loss, logits, extra = super().loss(output, labels)
            return (loss * float("nan") if self.global_step == 5 else loss), logits, extra

    trainer = quiet_trainer(max_epochs=2)
    with pytest.raises(FloatingPointError, match=r"became nan at step 5 \(epoch 1\)"):
        trainer.fit(BreaksAt(Linear(), SGD), batches())  # 4 steps an epoch


def test_sums_restored_from_their_state_go_on_where_they_were() -> None:
    whole, first = Sums(), Sums()
    for sums in (whole, first):
        sums.add(2, {"loss": torch.tensor(3.0)})
    second = Sums(**first.state())
    for sums in (whole, second):
        sums.add(3, {"loss": torch.tensor(7.0)})
    assert whole.means(lambda x: x) == second.means(lambda x: x) == {"loss": torch.tensor(2.0)}


def test_weight_decay_leaves_norms_and_biases_alone_on_request() -> None:
    module = ImageClassifier(Linear(), partial(torch.optim.SGD, lr=1, weight_decay=0.1), decay_norms_and_biases=False)
    decayed, free = module.configure_optimizers().param_groups
    assert (decayed["weight_decay"], [p.ndim for p in decayed["params"]]) == (0.1, [2])
    assert (free["weight_decay"], [p.ndim for p in free["params"]]) == (0.0, [1, 1, 1])


def test_the_cosine_rises_from_a_hundredth_and_ends_where_it_should() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_with_warmup(optimizer, total_steps=100, warmup=0.1, end=0.2)
    rates = []
    for _ in range(101):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.01)
    assert rates[5] == pytest.approx(0.01 + 0.99 * 5 / 10)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.2 + 0.8 / 2)  # half of the cosine lies behind
    assert rates[100] == pytest.approx(0.2)


def test_a_schedule_that_needs_its_length_gets_the_trainings() -> None:
    seen = {}

    def schedule(optimizer, total_steps=None):
        seen["total_steps"] = total_steps
        return torch.optim.lr_scheduler.ConstantLR(optimizer)

    for interval, expected in (("step", 12), ("epoch", 3)):
        module = ImageClassifier(Linear(), SGD, scheduler={"factory": schedule, "interval": interval})
        quiet_trainer(max_epochs=3).fit(module, batches())
        assert seen["total_steps"] == expected
    with pytest.raises(ValueError, match="must know where training ends"):
        quiet_trainer(max_epochs=-1).fit(module, batches())


class ThreeHeads(nn.Module):
    """A trunk and three linear heads, as GoogLeNet returns them."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(48, 6)
        self.main, self.aux1, self.aux2 = (nn.Linear(6, 7) for _ in range(3))

    def forward(self, images):
        x = self.trunk(images.flatten(1))
        if not self.training or self.aux1 is self.aux2 is None:
            return self.main(x)
        aux1, aux2 = (head(x) if head is not None else None for head in (self.aux1, self.aux2))
        return GoogLeNetOutput(logits=self.main(x), aux1=aux1, aux2=aux2)


@pytest.mark.parametrize("weight", [0.3, [0.5, 0.1], 0])
def test_the_auxiliary_loss_is_the_hand_written_sum(weight: float | list[float]) -> None:
    torch.manual_seed(0)
    module = GoogLeNetClassifier(ThreeHeads(), SGD, aux_weight=weight)
    images, labels = torch.randn(5, 3, 4, 4), torch.randint(7, (5,))
    cross_entropy = nn.functional.cross_entropy
    x = module.network.trunk(images.flatten(1))
    w1, w2 = weight if isinstance(weight, list) else (weight, weight)
    expected = cross_entropy(module.network.main(x), labels)
    for w, head in ((w1, module.network.aux1), (w2, module.network.aux2)):
        if w:
            expected = expected + w * cross_entropy(head(x), labels)
    loss, logits, extra = module.loss(module(images), labels)
    assert torch.allclose(loss, expected)
    assert torch.equal(logits, module.network.main(x))
    assert set(extra) == (set() if weight == 0 else {"aux1_loss", "aux1_acc", "aux2_loss", "aux2_acc"})


def test_a_weight_of_zero_takes_the_head_out_of_the_network() -> None:
    module = GoogLeNetClassifier(ThreeHeads(), SGD, aux_weight=[0.3, 0])
    assert module.network.aux1 is not None
    assert module.network.aux2 is None


def test_the_auxiliary_weight_decays_to_nothing_at_the_end() -> None:
    class Watched(GoogLeNetClassifier):
        factors: list[float]

        def loss(self, output, labels):
            loss, logits, extra = super().loss(output, labels)
            main = self.loss_function(output.logits, labels)
            heads = self.loss_function(output.aux1, labels) + self.loss_function(output.aux2, labels)
            self.factors.append(((loss - main) / heads).item())
            return loss, logits, extra

    for decay, expected in (("linear", [0.4, 0.3, 0.2, 0.1]), ("cosine", [0.4, 0.3414, 0.2, 0.0586])):
        module = Watched(ThreeHeads(), SGD, aux_weight=0.4, aux_decay=decay)
        module.factors = []
        quiet_trainer(max_epochs=1).fit(module, batches())
        assert module.factors == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("weight", [-0.1, [0.3], [0.3, 0.3, 0.3], [0.3, -1], float("nan")])
def test_a_wrong_auxiliary_weight_is_refused(weight: float | list[float]) -> None:
    with pytest.raises(ValueError, match="aux_weight is one number >= 0 or a pair"):
        GoogLeNetClassifier(ThreeHeads(), SGD, aux_weight=weight)


def test_every_epoch_logs_the_mean_over_its_own_images() -> None:
    class Plain(Linear):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layer(images.flatten(1))

    module = ImageClassifier(Plain(), partial(torch.optim.SGD, lr=0.0))
    loader = batches()
    trainer = quiet_trainer(max_epochs=3)
    trainer.fit(module, loader)
    images, labels = loader.dataset.tensors
    expected = nn.functional.cross_entropy(module(images), labels)
    assert trainer.callback_metrics["train/loss"].item() == pytest.approx(expected.item(), abs=1e-6)
