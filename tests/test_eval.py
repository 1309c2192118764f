"""`evaluate(cfg)`: its numbers against a plain loop and scikit-learn, its files, and what it refuses."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.errors import ConfigCompositionException
from PIL import Image
from scipy.stats import binomtest
from sklearn import metrics as sk
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from src import figures
from src.eval import evaluate, prepare
from src.evaluation.metrics import measure, views
from src.modules.base import Step, Task
from src.modules.classifier import ImageClassifier
from src.runs.folder import RunError, events_folder
from src.runs.run import open_run
from src.studies import asked_for
from src.studies.classifier import Predictions, draw
from tests.conftest import composed, run_command, run_well


def evaluated(*given: str) -> tuple[dict[str, float], dict[str, Any]]:
    prepare(dict(word.split("=", 1) for word in given))
    return evaluate(composed(*given, name="eval"))


@pytest.fixture(scope="module")
def plain(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """An evaluation as it comes; beside it what the network makes of the test images and their mirror images."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("plain") / "run"))
    (metrics, objects), opened = evaluated(f"run={run}"), open_run(run)
    opened.datamodule.setup("test")
    images, labels = opened.datamodule.examples("test", 360)
    with torch.no_grad():
        both = [opened.network(opened.datamodule.preprocess(view)) for view in (images, images.flip(-1))]
    rows, mirrored = (logits.double().softmax(1) for logits in both)
    seen = {"rows": rows, "mirrored": mirrored, "guess": rows.argmax(1), "confidence": rows.max(1).values}
    return SimpleNamespace(run=run, metrics=metrics, objects=objects, labels=labels, **seen)


def test_metrics_are_those_of_scikit_learn_on_a_plain_loop(plain) -> None:
    by_class = sk.precision_recall_fscore_support(plain.labels, plain.guess, zero_division=0)
    names, frame = ["precision", "recall", "f1", "images"], plain.objects["per_class"]
    np.testing.assert_allclose(frame[names].T, by_class, atol=1e-6)
    np.testing.assert_array_equal(frame["accuracy"], frame["recall"])
    expected = {name: values.mean() for name, values in zip(names[:3], by_class, strict=False)}
    nll = sk.log_loss(plain.labels, plain.rows)
    expected |= {"loss": nll, "nll": nll, "acc": sk.accuracy_score(plain.labels, plain.guess)}
    expected |= {"acc_top5": sk.top_k_accuracy_score(plain.labels, plain.rows, k=5)}
    expected |= {"brier": (plain.rows - torch.eye(10)[plain.labels]).square().sum(1).mean().item()}
    ends = binomtest(int((plain.guess == plain.labels).sum()), len(plain.labels)).proportion_ci(0.95, "wilson")
    expected |= {"acc_low": ends.low, "acc_high": ends.high}
    assert {name: plain.metrics[f"test/{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert {"cfg", "datamodule", "model", "trainer"} <= set(plain.objects)


def test_a_class_without_images_counts_in_no_mean() -> None:
    rows = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    metrics, frame, _ = measure(rows.log(), torch.tensor([0, 1]), ["a", "b", "c"])
    assert metrics["recall"] == metrics["precision"] == 1
    assert frame.iloc[2][["accuracy", "precision", "recall", "f1"]].isna().all()


def test_the_likelihood_of_a_label_may_be_too_small_for_a_float() -> None:
    logits = torch.tensor([[0.0, -200.0], [-300.0, 0.0]])
    assert measure(logits.log_softmax(1), torch.tensor([1, 0]), ["a", "b"])[0]["nll"] == pytest.approx(250)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy_bin_by_bin(plain) -> None:
    right = (plain.guess == plain.labels).float()
    bins = [(plain.confidence > low) & (plain.confidence <= low + 1 / 15) for low in torch.arange(15) / 15]
    gaps = [(right[inside] - plain.confidence[inside]).sum().abs().item() for inside in bins]
    assert plain.metrics["test/ece"] == pytest.approx(sum(gaps) / len(right), abs=1e-5)
    table = pd.read_csv(plain.run / "reliability.csv")
    assert table["images"].sum() == len(right)
    table = table[table["images"] > 0]
    error = ((table["accuracy"] - table["confidence"]).abs() * table["images"]).sum() / len(right)
    assert error == pytest.approx(plain.metrics["test/ece"], abs=1e-5)
    assert ((table["low"] <= table["accuracy"]) & (table["accuracy"] <= table["high"])).all()


@pytest.mark.tried("numbers")
def test_predictions_hold_every_image_in_order_and_their_accuracy_is_what_the_training_said(plain) -> None:
    run = open_run(plain.run)
    frame = run.predictions
    right = (frame["label"] == frame["prediction"]).mean()
    assert run.results["metrics"]["test/acc"] == pytest.approx(right, abs=1e-6)
    assert frame["image"].tolist() == list(range(len(plain.labels)))
    assert frame["label"].tolist() == [
        str(label) for label in plain.labels.tolist()
    ]  # the digits' names are the digits
    assert frame["prediction"].tolist() == [str(guess) for guess in plain.guess.tolist()]
    np.testing.assert_allclose(frame[[f"p_{digit}" for digit in range(10)]], plain.rows, atol=1e-5)
    np.testing.assert_allclose(frame["confidence"], plain.confidence, atol=1e-5)
    images, _ = plain.objects["datamodule"].examples("test", 360)
    np.testing.assert_allclose(frame["brightness"], images.float().mean((1, 2, 3)) / 255, atol=1e-5)  # grey in colour


def test_files_and_tensorboard_have_every_figure(plain) -> None:
    names = {"confusion_matrix", "reliability", "slices", "per_class", "most_confident_wrong", "most_confident_right"}
    assert {path.stem for path in plain.run.glob("figures/*.png")} == names | {"curves"}
    files = {path.name for path in plain.objects["files"] if path.is_file()}
    tables = {f"{name}.csv" for name in ("predictions", "per_class", "reliability", "slices")}
    assert files == {*tables, "evaluation.json", *(f"{name}.png" for name in names)}
    pictures = EventAccumulator(str(events_folder(plain.run))).Reload().Tags()["images"]
    assert {f"eval_test/{name}" for name in names} <= set(pictures)


def test_figures_get_the_confusions_and_the_images_of_most_confidence(plain, monkeypatch) -> None:
    given = []
    for name in ("confusion_matrix", "examples"):
        monkeypatch.setattr(figures, name, lambda *arguments: given.append(arguments))
    of_test = {"cfg": SimpleNamespace(split="test"), "datamodule": plain.objects["datamodule"], "title": ""}
    list(draw(SimpleNamespace(**of_test, tables=plain.objects), plain.objects["run"].classes))  # type: ignore[arg-type]
    for names, numbers in zip(given[0][:2], (plain.labels, plain.guess), strict=True):
        assert names.tolist() == [plain.objects["run"].classes[number] for number in numbers]
    wrong = plain.guess != plain.labels
    for (images, labels, *_), there in zip(given[1:], (wrong, ~wrong), strict=True):
        first = sorted(there.nonzero().flatten().tolist(), key=lambda i: -plain.confidence[i].item())[:24]
        for drawn, expected in zip((images, labels), plain.objects["datamodule"].examples("test", first), strict=True):
            np.testing.assert_array_equal(drawn, expected)


def test_the_validation_split_of_the_latest_run_is_that_of_the_training(run: Path) -> None:
    metrics, objects = evaluated("run=latest", f"paths.log_dir={run.parent}", "split=val")
    saved = json.loads((run / "results.json").read_text())["best"]
    assert metrics[saved["metric"]] == pytest.approx(saved["value"], abs=1e-6)
    assert not [name for name in metrics if not name.startswith("val/")]
    assert len(objects["predictions"]) == 60
    assert (run / "predictions_val.csv").is_file()
    assert not (run / "predictions.csv").exists()


def test_the_training_split_is_not_augmented(run: Path, caplog) -> None:
    first, second = (evaluated(f"run={run}", "split=train", "data.limit=60")[1]["predictions"] for _ in range(2))
    assert len(first) == 54
    pd.testing.assert_frame_equal(first, second)
    assert "has changed" not in caplog.text


def test_views_are_mirrored_and_shifted_images() -> None:
    image = torch.arange(64 * 64.0).view(1, 1, 64, 64)
    assert [len(list(views(image, name))) for name in ("none", "flip", "multicrop")] == [0, 1, 5]
    mirrored, up, up_mirrored, down, down_mirrored = views(image, "multicrop")
    assert torch.equal(up[..., 2:, 2:], image[..., :-2, :-2])  # 1/32 of 64 px
    assert torch.equal(down[..., :-2, :-2], image[..., 2:, 2:])
    for view, expected in ((mirrored, image), (up_mirrored, up), (down_mirrored, down)):
        assert torch.equal(view, expected.flip(-1))


def test_test_time_augmentation_reports_both_numbers(run: Path, plain, capsys) -> None:
    metrics, objects = evaluated(f"run={run}", "tta=flip")
    mean = (plain.rows + plain.mirrored) / 2
    assert {name: metrics[name] for name in ("test/acc", "test/loss", "test/ece")}.items() <= plain.metrics.items()
    assert metrics["test/acc_tta"] == pytest.approx(sk.accuracy_score(plain.labels, mean.argmax(1)), abs=1e-6)
    assert metrics["test/nll_tta"] == pytest.approx(sk.log_loss(plain.labels, mean), abs=1e-5)
    np.testing.assert_allclose(objects["predictions"]["p_3"], mean[:, 3], atol=1e-5)
    assert (run / "predictions_flip.csv").is_file()
    printed = capsys.readouterr().out.partition("the classes")[0]
    for name in ("acc", "acc_tta"):
        value, low, high = (100 * metrics[f"test/{name.replace('acc', f'acc{end}')}"] for end in ("", "_low", "_high"))
        assert f"test/{name} " in printed
        assert f" {value:.2f} % ({low:.2f} to {high:.2f}) " in printed
    assert printed.count(" to ") == 2


def test_a_checkpoint_file_alone_is_enough(run: Path, tmp_path: Path) -> None:
    alone = shutil.copy(run / "checkpoints/last.ckpt", tmp_path)
    metrics, objects = evaluated(f"ckpt_path={alone}")
    assert len(objects["predictions"]) == 360
    assert metrics["test/acc"] > 0.5
    assert (tmp_path / "predictions_last.csv").is_file()


class Doubled(ImageClassifier):
    def loss(self, logits, labels):
        return 2 * super().loss(logits, labels)


class Bright(Task):
    """Logs a score alone, gives no logits, knows no loss of a classifier."""

    def __init__(self, *args: Any, loss: Any, **options: Any) -> None:
        super().__init__(*args, **options)

    def step(self, batch, stage):
        images, labels = batch
        return Step(self.network(images).mean(), (labels >= 0).sum(), {"score": (labels >= 5).sum()})


def of_another_module(run: Path, kind: type, precision: str = "16-mixed") -> Path:
    """The run, its checkpoint that of a module of this file, in half precision."""
    path = next(run.glob("checkpoints/epoch_*.ckpt"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["model"]["_target_"] = f"{__name__}.{kind.__name__}"
    checkpoint["config"]["trainer"]["precision"] = precision
    torch.save(checkpoint, path)
    return run


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_the_loss_is_the_module_s_own_and_half_precision_needs_a_device_that_has_it(
    run: Path, plain, monkeypatch, precision: str
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("src.modules.precision.emulates", lambda precision, _: precision == "bf16-mixed")
    half = of_another_module(run, Doubled, precision)
    metrics, objects = evaluated(f"run={half}", "trusted=[tests]", "trainer.accelerator=cpu")
    assert metrics["test/loss"] == pytest.approx(2 * plain.metrics["test/loss"], abs=1e-5)
    assert (objects["trainer"].precision, objects["trainer"].loggers) == ("32-true", [])


def test_a_module_without_logits_has_its_metrics_and_no_figures(run: Path, capsys) -> None:
    metrics, objects = evaluated(f"run={of_another_module(run, Bright)}", "trusted=[tests]", "split=val")
    _, labels = objects["datamodule"].examples("val", 60)
    assert metrics["val/score"] == pytest.approx((labels >= 5).float().mean().item(), abs=1e-6)
    assert set(metrics) == {"val/score", "val/loss"}
    assert json.loads((run / "evaluation_val.json").read_text())["metrics"] == metrics
    assert objects["files"] == [run / "evaluation_val.json"]
    assert "no figures" in capsys.readouterr().out.partition("val/score")[2]


@pytest.mark.parametrize("asked", ["calibrate=true", "corruptions=all", "cam=true", "audit=true"])
def test_what_looks_into_a_classifier_refuses_another_module(run: Path, asked: str) -> None:
    opened = open_run(of_another_module(run, Bright), trusted=["tests"])
    with pytest.raises(ValueError, match=f"{asked.partition('=')[0]} is for a classifier to one label.*not for Bright"):
        asked_for(opened, composed(asked, name="eval"))


def test_another_data_set_is_seen_as_the_run_s_if_it_has_the_same_classes(run: Path, plain, tmp_path: Path) -> None:
    images, labels = plain.objects["datamodule"].examples("test", range(60))
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        for split in ("train", "test"):
            folder = tmp_path / "images" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    given = ["data=folder", f"data.root={tmp_path}/images", "data.val_size=0", f"paths.log_dir={tmp_path}/logs"]
    metrics, objects = evaluated(f"run={run}", *given)
    assert metrics["test/acc"] == pytest.approx(sk.accuracy_score(labels, plain.guess[:60]), abs=1e-6)
    assert objects["datamodule"].image_size == 32
    assert (run / "predictions_imagefolder_test.csv").is_file()
    for folder in (tmp_path / "images").glob("*/*"):
        folder.rename(folder.with_name(f"digit {folder.name}"))
    with pytest.raises(ValueError, match=r"knows 10 classes \(0, 1, 2, \.\.\.\).*has 10 classes \(digit 0"):
        evaluated(f"run={run}", *given)


MISTAKES = {
    "split=validation": "must be train, val or test",
    "split=val data.val_size=0": "would mix images",
    "tta=crop": "must be none, flip or multicrop",
    "samples=3": "samples=3: a GAN draws them",
    "data.rot=x": "Could not override 'data.rot'",
    "data.mean=half": "data.mean cannot be changed",
    "data.image_size=48": "data.image_size cannot be changed",
    "trainer.device=2": "Could not override 'trainer.device'",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(trained_run: Path, override: str) -> None:
    with pytest.raises((ValueError, ConfigCompositionException), match=MISTAKES[override]):
        evaluated(f"run={trained_run}", *override.split())


def test_data_that_changed_since_the_evaluation_before_is_told(run: Path, plain, caplog) -> None:
    frame = pd.read_csv(plain.run / "predictions.csv")
    frame.assign(brightness=frame["brightness"].where(frame["image"] != 7, 1.0)).to_csv(run / "predictions.csv")
    evaluated(f"run={run}")
    assert "the data has changed since the evaluation before: 1 of 360 have another brightness" in caplog.text


def test_data_that_changed_since_the_training_is_told(run: Path, caplog) -> None:
    evaluated(f"run={run}")
    assert "has changed" not in caplog.text
    results = json.loads((run / "results.json").read_text())
    kept = json.loads((run / "evaluation.json").read_text())["sha256"]
    assert (set(results["data"]), results["data"]["test"]) == ({"train", "val", "test"}, kept)
    results["data"]["test"] = "0" * 64
    (run / "results.json").write_text(json.dumps(results))
    evaluated(f"run={run}", "data.limit=100")
    evaluated(f"run={run}", "split=train", "data.val_size=90")
    assert "has changed" not in caplog.text, "these are others on request"
    evaluated(f"run={run}")
    assert "the data has changed since the training: its test images or labels were others" in caplog.text


@pytest.mark.parametrize("part", ["trainer.limit_test_batches=1", "trainer.fast_dev_run=true"])
def test_an_evaluation_of_a_part_of_the_images_takes_the_place_of_no_whole_one(run: Path, part: str) -> None:
    evaluated(f"run={run}")
    whole = (run / "evaluation.json").read_bytes()
    _, objects = evaluated(f"run={run}", part)
    assert len(objects["predictions"]) == objects["cfg"].data.batch_size < 360
    assert (run / "evaluation.json").read_bytes() == whole
    assert {"evaluation_batches1.json", "predictions_batches1.csv"} <= {file.name for file in objects["files"]}


def test_the_command_hints_at_an_option_of_the_run_s_data(trained_run: Path) -> None:
    done = run_command("-m", "src.eval", f"run={trained_run}", "data.limt=5")
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no option 'data.limt': did you mean data.limit")


def test_a_network_of_one_class_is_not_measured() -> None:
    with pytest.raises(ValueError, match="knows one class, cat: it is always right"):
        Predictions(["cat"], "none").setup(SimpleNamespace(), None, "test")


def test_without_a_run_it_asks_for_one() -> None:
    with pytest.raises(RunError, match="say which run"):
        evaluated()


@pytest.mark.slow
@pytest.mark.tried("numbers")
def test_two_processes_predict_what_one_does(run: Path) -> None:
    written = []
    for more in ([], ["trainer=ddp_cpu"]):
        run_well("-m", "src.eval", f"run={run}", "data.limit=333", *more)
        written.append((run / "predictions_limit333.csv").read_bytes())
    assert written[0] == written[1]
