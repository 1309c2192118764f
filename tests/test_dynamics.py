"""Training dynamics: hand-worked epochs, the answers of a training by its images, and what is refused."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from src.callbacks.dynamics import Dynamics
from src.evaluation.dynamics import by_image, cartography
from src.modules.base import Task
from src.train import train
from tests.conftest import QUICK, SILENT, train_here


def test_hand_worked_epochs_become_confidence_variability_and_forgetting() -> None:
    answers = [  # of each epoch: which image, the probability of its label, whether that was the largest
        ([2, 0, 1], [0.9, 0.2, 0.5], [True, False, True]),
        ([0, 1, 3], [0.6, 0.3, 0.4], [True, False, False]),
        ([1, 0, 2], [0.7, 0.7, 0.5], [True, True, False]),
    ]
    epochs = ((3 + i, *by_image(*map(np.array, answer), size=5)) for i, answer in enumerate(answers))
    frame = cartography(epochs, 5)
    assert frame["epochs"].tolist() == [3, 3, 2, 1, 0]
    np.testing.assert_allclose(frame["confidence"], [0.5, 0.5, 0.7, 0.4, np.nan], atol=1e-7)
    # sqrt((0.09 + 0.01 + 0.04) / 3), sqrt((0 + 0.04 + 0.04) / 3)
    np.testing.assert_allclose(frame["variability"], [0.2160247, 0.1632993, 0.2, 0, np.nan], atol=1e-4)
    np.testing.assert_allclose(frame["correctness"], [2 / 3, 2 / 3, 0.5, 0, np.nan])
    assert frame["forgetting"].tolist() == [0, 1, 1, 0, 0], "an epoch without the image lies between for the third"
    np.testing.assert_array_equal(frame["learnt"], [4, 3, 3, np.nan, np.nan])


def test_an_image_that_an_epoch_shows_thrice_counts_once() -> None:
    confidence, right = by_image(np.array([1, 1, 1, 0]), np.array([0.2, 0.4, 0.9, 0.5]), np.array([1, 0, 1, 0]), size=3)
    np.testing.assert_allclose(confidence, [0.5, 0.5, np.nan])
    assert right.tolist() == [False, True, False]


class Reference(Callback):
    """What the network makes of each batch before it learns from it, by the images' own pixels."""

    seen: list[dict[bytes, tuple[float, bool]]]

    def on_train_start(self, trainer, pl_module) -> None:
        type(self).seen = []

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        self.seen.append({})

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        images, labels = batch
        with torch.no_grad():
            rows = pl_module.network(images).softmax(dim=1)
        for image, label, row in zip(images, labels, rows, strict=True):
            self.seen[-1][image.numpy().tobytes()] = row[label].item(), bool(row.argmax() == label)


@pytest.mark.parametrize("more", [[], ["data.balance=true", "data.num_workers=1"]], ids=["plain", "balanced"])
def test_each_image_has_the_answers_that_the_training_gave_to_it(config, more: list[str]) -> None:
    plain = ["data/augment=none", "callbacks=dynamics", "trainer.max_epochs=3", "optimizer.lr=0.01", "test=false"]
    spy = "+callbacks.spy._target_=tests.test_dynamics.Reference"
    _, objects, folder = train_here(config(*QUICK, *SILENT, *plain, spy, *more))
    data = objects["datamodule"]
    images, labels = data.examples("train", data.size("train"))
    keys = [image.numpy().tobytes() for image in data.preprocess(images)]
    once = [keys.count(key) == 1 for key in keys]  # another image may look the same
    assert sum(once) > 170
    frame = pd.read_csv(folder / "dynamics.csv")
    assert frame["label"].tolist() == labels.tolist()
    for epoch, seen in enumerate(Reference.seen):
        kept = np.load(folder / f"dynamics/epoch_{epoch:03d}.npz")
        for i in np.flatnonzero(once):
            assert np.isnan(kept["confidence"][i]) == (keys[i] not in seen)
            if keys[i] in seen and not more:
                assert kept["confidence"][i] == pytest.approx(seen[keys[i]][0], abs=1e-5)
                assert kept["right"][i] == seen[keys[i]][1]
    assert frame["epochs"].sum() == 3 * 160 or more, "five batches an epoch"
    assert frame["confidence"].mean() > 0.1
    assert (folder / "figures/data_map.png").is_file()


def test_an_epoch_that_its_checkpoint_had_not_closed_is_kept_where_the_run_goes_on(config, tmp_path: Path) -> None:
    # Saved while it was validated, for want of a validation in each epoch.
    options = [*QUICK, *SILENT, "callbacks=dynamics", "trainer.check_val_every_n_epoch=2", "test=false"]
    *_, folder = train_here(config(*options))
    best = f"ckpt_path={folder}/checkpoints/epoch_001.ckpt"
    *_, more = train_here(config(*options, "trainer.max_epochs=3", best, f"paths.output_dir={tmp_path}/more"))
    names = [path.name for path in sorted(more.glob("dynamics/*"))]
    assert names == ["epoch_001.npz", "epoch_002.npz"]
    assert (more / "dynamics" / names[0]).read_bytes() == (folder / "dynamics" / names[0]).read_bytes()


def test_labels_that_are_mixed_or_many_are_refused_before_the_training(config, tmp_path: Path) -> None:
    mixing = "+data.augment.mix._target_=src.data.mixing.MixUp"
    with pytest.raises(ValueError, match="leave MixUp and CutMix out"):
        train(config(*QUICK, *SILENT, "callbacks=dynamics", mixing))
    with pytest.raises(ValueError, match="is for a classifier to one label, not Task"):
        Dynamics(tmp_path).setup(SimpleNamespace(datamodule=None), Task(torch.nn.Identity(), None), "fit")  # type: ignore[arg-type]
