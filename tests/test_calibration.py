"""The temperature against a grid and a planted one; who may fit it, on what; and who uses it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from src import export as exporting
from src.evaluation.calibration import Temperature, confidence_bins, fit_temperature
from src.evaluation.metrics import measure
from src.predict import predict
from src.runs.folder import RunError
from src.runs.run import open_run
from tests.conftest import composed, run_well
from tests.test_eval import evaluated


def drawn(number: int, classes: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of which the temperature is `scale`: the labels are drawn by what they are when divided by it."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(number, classes, generator=generator)
    return scale * logits, torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]


def test_the_temperature_is_the_best_of_a_grid_and_the_one_that_was_planted() -> None:
    for scale in (0.5, 1.0, 3.0):
        logits, labels = drawn(2000, 7, scale)
        found = fit_temperature(logits.log_softmax(1), labels)
        assert found == pytest.approx(scale, rel=0.05)
        grid = scale * torch.linspace(0.9, 1.1, 81)
        losses = [torch.nn.functional.cross_entropy(logits.double() / t, labels).item() for t in grid]
        assert found == pytest.approx(grid[int(np.argmin(losses))].item(), rel=0.0025)


def test_log_probabilities_do_as_well_as_logits_however_far_apart() -> None:
    logits, labels = drawn(2000, 5, scale=15)
    assert (logits.softmax(1) == 0).any(), "whose logarithm says nothing"
    assert fit_temperature(logits.log_softmax(1), labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-4)


def test_where_there_is_no_best_temperature_there_is_none() -> None:
    logits, _ = drawn(100, 4)
    assert fit_temperature(logits, logits.argmax(1)) is None, "all right: the surer the better"
    assert fit_temperature(logits, logits.argmin(1)) is None, "all wrong: nothing is sure"


def test_bins_are_those_counted_by_hand() -> None:
    confidence = torch.tensor([0.2, 0.5, 0.50001, 1, 0.9], dtype=torch.float64)
    right = torch.tensor([0, 1, 0, 1, 1])
    bins = confidence_bins(confidence, right, bins=2)
    assert bins[["from", "to", "images"]].values.tolist() == [[0, 0.5, 2], [0.5, 1, 3]]
    assert bins["accuracy"].tolist() == pytest.approx([1 / 2, 2 / 3])
    assert bins["confidence"].tolist() == pytest.approx([0.35, 2.40001 / 3])
    assert confidence_bins(confidence, right, bins=10)["images"].tolist() == [0, 1, 0, 0, 1, 1, 0, 0, 1, 1]


@pytest.fixture(scope="module")
def calibrated(trained_run: Path, tmp_path_factory: pytest.TempPathFactory):
    """A run whose temperature was fitted in the course of a test: folder, metrics, objects."""
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("calibrated") / "run"))
    return run, *evaluated(f"run={run}", "calibrate=true")


def test_the_temperature_is_fitted_on_the_validation_images_and_tried_on_the_others(calibrated) -> None:
    run, metrics, objects = calibrated
    opened = open_run(run)
    opened.datamodule.setup()
    logits, labels = {}, {}
    for split in ("val", "test"):
        images, labels[split] = opened.datamodule.examples(split, opened.datamodule.size(split))
        with torch.no_grad():
            logits[split] = opened.network(opened.datamodule.preprocess(images)).double()
    record = json.loads((run / "calibration.json").read_text())
    best = next(run.glob("checkpoints/epoch_*.ckpt"))
    step = opened.checkpoint["global_step"]
    origin = {"checkpoint": best.name, "epoch": opened.checkpoint["epoch"], "step": step}
    assert record.items() >= {**origin, "split": "val", "images": 60}.items()
    temperature = record["temperature"]
    assert temperature == pytest.approx(fit_temperature(logits["val"], labels["val"]), rel=1e-3)
    for where, split, divisor in (("before", "val", 1), ("after", "val", temperature), (None, "test", temperature)):
        expected = measure((logits[split] / divisor).log_softmax(1), labels[split], opened.classes)[0]
        found = record[where] if where else {n: metrics[f"test/{n}_calibrated"] for n in ("nll", "brier", "ece")}
        assert found == pytest.approx({name: expected[name] for name in ("nll", "brier", "ece")}, abs=1e-4)
    assert record["after"]["nll"] < record["before"]["nll"]
    assert metrics["test/temperature"] == temperature
    assert len(objects["predictions"]) == 360, "of the split, not of the validation"
    assert {run / "calibration.json", run / "figures/reliability_calibrated.png"} <= set(objects["files"])


def test_predictions_and_exports_use_it_on_request(calibrated, tmp_path: Path, capsys) -> None:
    run, *_ = calibrated
    opened = open_run(run)
    opened.datamodule.setup("test")
    images, _ = opened.datamodule.examples("test", range(5))
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    with torch.no_grad():
        logits = opened.network(opened.datamodule.preprocess(images))
    temperature = json.loads((run / "calibration.json").read_text())["temperature"]
    expected = (logits / temperature).softmax(1)
    assert (expected - logits.softmax(1)).abs().max() > 0.01
    given = [f"run={run}", "calibrated=true"]
    options = [f"input={tmp_path}", f"paths.output_dir={tmp_path}/out"]
    _, objects = predict(composed(*given, *options, name="predict"))
    rows = torch.tensor([list(row["probabilities"].values()) for row in objects["predictions"]])
    torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    path = tmp_path / "model.pt2"
    exporting.export(composed(*given, "format=torch", f"path={path}", name="export"))
    told = {"temperature": ""}
    exported = torch.export.load(path, extra_files=told).module()
    torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=0)
    assert float(told["temperature"]) == temperature
    path = tmp_path / "model.safetensors"
    exporting.main(composed(*given, "format=safetensors", f"path={path}", name="export"))
    for told in (capsys.readouterr().out, path.with_name("model.safetensors.md").read_text()):
        assert f"logits, to be divided by the temperature {temperature:.4g}" in told


BROKEN = {
    None: "has no calibration.json yet: python -m src.eval run=.* calibrate=true",
    "[1]": "is no calibration",
    '{"temperature": 1.5}': "is no calibration",
    '{"temperature": "1.5", "checkpoint": "x", "epoch": 0, "step": 0}': "is not a number from 0.05 to 20",
    '{"temperature": NaN, "checkpoint": "x", "epoch": 0, "step": 0}': "is not a number from 0.05 to 20",
    '{"temperature": true, "checkpoint": "x", "epoch": 0, "step": 0}': "is not a number from 0.05 to 20",
    '{"temperature": -1, "checkpoint": "x", "epoch": 0, "step": 0}': "is not a number from 0.05 to 20",
    '{"temperature": 1.5, "checkpoint": "epoch_999.ckpt", "epoch": 999, "step": 1}': "is for .*epoch_999.*, not for",
}


@pytest.mark.parametrize("text", BROKEN)
def test_a_temperature_that_is_none_of_this_checkpoint_s_is_refused(run: Path, text: str | None) -> None:
    if text is not None:
        (run / "calibration.json").write_text(text)
    with pytest.raises(RunError, match=BROKEN[text]):
        open_run(run).link(calibrated=True)
    assert isinstance(open_run(run).link(), torch.nn.Softmax)


def test_what_cannot_be_calibrated_is_refused_before_the_test(run: Path) -> None:
    path, before = next(run.glob("checkpoints/epoch_*.ckpt")), set(run.glob("evaluation*"))
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["data"]["val_size"] = 0
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="has no validation images"):
        evaluated(f"run={run}", "calibrate=true")
    assert set(run.glob("evaluation*")) == before


def test_the_images_it_is_fitted_on_are_held_out_whatever_the_command_says_of_the_data(run: Path) -> None:
    _, objects = evaluated(f"run={run}", "calibrate=true", "data.limit=60", "data.batch_size=7")
    assert len(objects["predictions"]) == 60
    assert json.loads((run / "calibration.json").read_text())["images"] == 60, "a tenth of 600"


def test_dividing_logits_changes_no_order() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    assert torch.equal(Temperature(2.0)(logits), logits / 2)


@pytest.mark.slow
def test_two_processes_fit_what_one_does(run: Path) -> None:
    found = []
    for more in ([], ["trainer=ddp_cpu"]):
        run_well("-m", "src.eval", f"run={run}", "calibrate=true", *more)
        found.append(json.loads((run / "calibration.json").read_text()))
    assert found[0] == found[1]
