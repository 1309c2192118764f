"""`evaluate(cfg)`: its numbers against a plain loop and scikit-learn, its files, and what it refuses."""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from sklearn.metrics import precision_recall_fscore_support
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src.eval import evaluate, views
from src.run import RunError, open_run
from tests.conftest import QUICK, ROOT, run_command


@functools.cache
def trained_run() -> Path:
    """A TinyVGG that has seen a little of the digits: one run folder for all tests that read it or copy it."""
    folder = Path(tempfile.mkdtemp(prefix="trained")) / "run"
    options = [*QUICK, "data.limit=600", "trainer.max_epochs=5", "optimizer.lr=0.01", f"hydra.run.dir={folder}"]
    done = run_command("-m", "src.train", *options)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of it, in another place than where it was trained."""
    return Path(shutil.copytree(trained_run(), tmp_path / "copied"))


def evaluated(run: Path | None, *overrides: str):
    given = [f"run={run}"] if run else []
    # `src.eval` itself adds the "++" that a section left to the run needs
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("eval", [*given, *(f"++{o}" if o.startswith(("data.", "trainer.")) else o for o in overrides)])
    return evaluate(cfg)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory):
    """(metrics, objects, run folder) of an evaluation as it comes."""
    folder = Path(shutil.copytree(trained_run(), tmp_path_factory.mktemp("plain") / "run"))
    return *evaluated(folder), folder


def plain_loop(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the test split, by hand."""
    run = open_run(folder)
    data = run.datamodule
    data.prepare_data()
    data.setup("test")
    with torch.no_grad():
        logits = run.network(data.preprocess(data.test_set.images))
    return logits, data.test_set.labels


def test_metrics_are_those_of_a_plain_loop(plain) -> None:
    metrics, objects, run = plain
    logits, labels = plain_loop(run)
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item(), abs=1e-6)
    assert metrics["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    top5 = (logits.topk(5).indices == labels[:, None]).any(1).float().mean().item()
    assert metrics["test/acc_top5"] == pytest.approx(top5, abs=1e-6)
    assert all(isinstance(value, float) for value in metrics.values())
    assert {"cfg", "datamodule", "model", "trainer"} <= set(objects)


def test_it_repeats_the_test_result_of_the_training(plain) -> None:
    metrics, _, run = plain
    saved = json.loads((run / "results.json").read_text())["metrics"]
    for name in ("test/acc", "test/acc_top5", "test/loss"):
        assert metrics[name] == pytest.approx(saved[name], abs=1e-5), name


def test_class_results_are_those_of_scikit_learn(plain) -> None:
    metrics, objects, run = plain
    logits, labels = plain_loop(run)
    precision, recall, f1, support = precision_recall_fscore_support(labels, logits.argmax(1), zero_division=0)
    frame = objects["per_class"]
    assert frame["images"].tolist() == support.tolist()
    for name, expected in (("precision", precision), ("recall", recall), ("accuracy", recall), ("f1", f1)):
        np.testing.assert_allclose(frame[name], expected, atol=1e-6, err_msg=name)
    assert metrics["test/f1"] == pytest.approx(f1.mean(), abs=1e-6)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_bin_by_bin(plain) -> None:
    metrics, _, run = plain
    logits, labels = plain_loop(run)
    confidence, guess = logits.softmax(1).max(1)
    right = guess == labels
    expected = 0.0
    for low in torch.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += (
                inside.sum() / len(labels) * (right[inside].float().mean() - confidence[inside].mean()).abs()
            ).item()
    assert metrics["test/ece"] == pytest.approx(expected, abs=1e-5)


def test_predictions_hold_every_image_in_order(plain) -> None:
    _, _, run = plain
    logits, labels = plain_loop(run)
    frame = open_run(run).predictions
    assert frame["image"].tolist() == list(range(len(labels)))
    assert frame["label"].tolist() == labels.tolist()  # the digits' names are the digits
    assert frame["prediction"].tolist() == logits.argmax(1).tolist()
    rows = frame[[f"p_{digit}" for digit in range(10)]].to_numpy()
    np.testing.assert_allclose(rows, logits.softmax(1), atol=1e-5)
    np.testing.assert_allclose(frame["confidence"], rows.max(1), atol=1e-5)


def test_files_and_tensorboard_have_every_figure(plain) -> None:
    _, objects, run = plain
    names = {"confusion_matrix", "reliability", "per_class", "most_confident_wrong", "most_confident_right"}
    assert {path.stem for path in run.glob("figures/*.png")} == names
    assert {path.name for path in objects["files"]} >= {"predictions.csv", "per_class.csv", "evaluation.json"}
    assert all(path.is_file() for path in objects["files"])
    accumulator = EventAccumulator(str(run / "tensorboard"))
    accumulator.Reload()
    assert {f"eval_test/{name}" for name in names} <= set(accumulator.Tags()["images"])


def test_the_validation_split_is_that_of_the_training(run: Path) -> None:
    metrics, objects = evaluated(run, "split=val")
    saved = json.loads((run / "results.json").read_text())["best"]
    assert metrics["val/acc"] == pytest.approx(saved["value"], abs=1e-6)
    assert len(objects["predictions"]) == 60
    assert (run / "predictions_val.csv").is_file()
    assert not (run / "predictions.csv").exists()


def test_the_training_split_is_not_augmented(run: Path) -> None:
    first, second = (evaluated(run, "split=train")[1]["predictions"] for _ in range(2))
    assert len(first) == 540
    pd.testing.assert_frame_equal(first, second)


def test_views_are_mirrored_and_shifted_images() -> None:
    image = torch.arange(64 * 64.0).view(1, 1, 64, 64)
    assert list(views(image, "none")) == []
    assert torch.equal(next(views(image, "flip")), image.flip(-1))
    mirrored, up, up_mirrored, down, down_mirrored = views(image, "multicrop")
    assert torch.equal(mirrored, image.flip(-1))
    assert torch.equal(up[..., 2:, 2:], image[..., :-2, :-2])  # 1/32 of 64 px
    assert torch.equal(down[..., :-2, :-2], image[..., 2:, 2:])
    assert torch.equal(up_mirrored, up.flip(-1))
    assert torch.equal(down_mirrored, down.flip(-1))


def test_test_time_augmentation_reports_both_numbers(run: Path, plain) -> None:
    metrics, objects = evaluated(run, "tta=flip")
    opened = open_run(run)
    opened.datamodule.setup("test")
    images = opened.datamodule.preprocess(opened.datamodule.test_set.images)
    labels = opened.datamodule.test_set.labels
    with torch.no_grad():
        mean = (opened.network(images).softmax(1) + opened.network(images.flip(-1)).softmax(1)) / 2
    assert metrics["test/acc"] == plain[0]["test/acc"]
    assert metrics["test/acc_tta"] == pytest.approx((mean.argmax(1) == labels).float().mean().item(), abs=1e-6)
    np.testing.assert_allclose(objects["predictions"]["p_3"], mean[:, 3], atol=1e-5)
    assert (run / "predictions_flip.csv").is_file()


def test_a_checkpoint_file_alone_is_enough(run: Path, tmp_path: Path) -> None:
    (tmp_path / "sent").mkdir()
    alone = shutil.copy(run / "checkpoints/last.ckpt", tmp_path / "sent/last.ckpt")
    metrics, objects = evaluated(None, f"ckpt_path={alone}")
    assert len(objects["predictions"]) == 360
    assert metrics["test/acc"] > 0.5
    assert (tmp_path / "sent/predictions_last.csv").is_file()


def digit_folder(root: Path, run: Path, names: dict[int, str]) -> Path:
    """The first 60 test digits as PNG files in a folder of class folders."""
    data = open_run(run).datamodule
    data.setup("test")
    for i, (image, label) in enumerate(zip(data.test_set.images[:60], data.test_set.labels[:60].tolist(), strict=True)):
        for split in ("train", "test"):
            path = root / split / names[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def test_another_data_set_of_the_same_classes_takes_the_run_s_preprocessing(run: Path, tmp_path: Path) -> None:
    root = digit_folder(tmp_path / "images", run, {i: str(i) for i in range(10)})
    logs = f"paths.log_dir={tmp_path}/logs"
    metrics, objects = evaluated(run, "data=folder", f"data.root={root}", "data.val_size=0", "data.batch_size=8", logs)
    logits, labels = plain_loop(run)
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == labels)[:60].float().mean().item(), abs=1e-6)
    assert objects["datamodule"].image_size == 32
    assert (run / "predictions_imagefolder_test.csv").is_file()


def test_a_data_set_of_other_classes_is_refused_by_name(run: Path, tmp_path: Path) -> None:
    root = digit_folder(tmp_path / "images", run, {i: f"digit {i}" for i in range(10)})
    logs = f"paths.log_dir={tmp_path}/logs"
    with pytest.raises(ValueError, match=r"knows 10 classes \(0, 1, 2, \.\.\.\).*ImageFolder has 10 classes \(digit 0"):
        evaluated(run, "data=folder", f"data.root={root}", "data.batch_size=8", logs)
    assert not (run / "figures").exists()


def test_without_validation_images_their_split_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="no validation images"):
        evaluated(run, "split=val", "data.val_size=0")


MISTAKES = {
    "split=validation": "choose test, val, train",
    "tta=crop": "choose none, flip, multicrop",
    "data.rot=x": "data.rot is no option of this run",
    "data.mean=half": "data.mean cannot be changed",
    "trainer.device=2": "trainer.device is no option of this run",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(override: str) -> None:
    with pytest.raises(ValueError, match=MISTAKES[override]):
        evaluated(trained_run(), override)


def test_what_is_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say what to evaluate"):
        evaluated(None)
    with pytest.raises(RunError, match="there is no folder"):
        evaluated(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is no run folder.*copied"):
        evaluated(tmp_path)
    best = next(run.glob("checkpoints/epoch_*.ckpt"))
    best.write_bytes(best.read_bytes()[:1000])
    with pytest.raises(RunError, match=r"truncated.*last\.ckpt"):
        evaluated(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunError, match="has no checkpoint"):
        evaluated(run)


@pytest.mark.slow
def test_two_processes_predict_what_one_does(run: Path) -> None:
    arguments = ["-m", "src.eval", f"run={run}", "data.limit=333"]
    assert run_command(*arguments).returncode == 0
    alone = (run / "predictions.csv").read_bytes()
    done = run_command(*arguments, "trainer=ddp_cpu")
    assert done.returncode == 0, done.stderr
    assert (run / "predictions.csv").read_bytes() == alone
