"""An exported file gives the checkpoint's own probabilities, for any batch, or it is not there."""

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from src import export as module
from src.runs.run import open_run
from tests.conftest import composed


@pytest.fixture
def exported(trained_run: Path):
    return lambda *overrides: module.export(composed(f"run={trained_run}", *overrides, name="export"))


@pytest.fixture(scope="module")
def expected(trained_run: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Seven test images, uint8 (7, 3, 32, 32), and the checkpoint's logits of them (7, K)."""
    run = open_run(trained_run)
    run.datamodule.setup("test")
    images, _ = run.datamodule.examples("test", range(7))
    with torch.no_grad():
        return images, run.network(run.datamodule.preprocess(images))


def assert_logits(probabilities: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(probabilities.log(), logits.log_softmax(1), atol=1e-4, rtol=0)


def test_onnx_takes_any_number_of_images_and_gives_the_checkpoint_s_probabilities(expected, exported, tmp_path) -> None:
    metrics, objects = exported(f"path={tmp_path}/model.onnx")
    onnx.checker.check_model(objects["path"])
    session = onnxruntime.InferenceSession(objects["path"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 3, 32, 32])
    assert made.name == "probabilities"
    images, logits = expected
    for size in (1, 2, 7):
        (rows,) = session.run(None, {"images": images[:size].numpy()})
        assert_logits(torch.from_numpy(rows), logits[:size])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == [str(i) for i in range(10)]
    assert metrics.pop("bytes") == (tmp_path / "model.onnx").stat().st_size
    assert metrics.pop("max_error") <= 1e-4
    assert min(metrics["eager_ms"], metrics["exported_ms"]) > 0


def test_a_torch_program_runs_in_a_process_without_this_project(expected, exported, tmp_path: Path) -> None:
    exported("format=torch", f"path={tmp_path}/new/model.pt2")
    images, logits = expected
    torch.save(images, tmp_path / "images.pt")
    code = (
        "import torch\n"
        "extra = {'classes': ''}\n"
        "run = torch.export.load('new/model.pt2', extra_files=extra).module()\n"
        "images = torch.load('images.pt')\n"
        "torch.save([extra['classes'], run(images[:1]), run(images[1:])], 'made.pt')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    classes, *rows = torch.load(tmp_path / "made.pt")
    assert_logits(torch.cat(rows), logits)
    assert json.loads(classes) == [str(i) for i in range(10)]


def test_the_weights_alone_keep_the_networks_own_names_and_the_normalisation(expected, exported, trained_run) -> None:
    metrics, objects = exported("format=safetensors")
    assert metrics["max_error"] == 0
    images, logits = expected
    with safe_open(objects["path"], "pt") as file:
        weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    mean, std = (torch.tensor(json.loads(metadata[name])).view(-1, 1, 1) for name in ("mean", "std"))
    network = open_run(trained_run).network
    for parameter in network.parameters():
        parameter.data.zero_()
    network.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(network((images / 255 - mean) / std), logits, atol=1e-4, rtol=0)


def test_the_model_card_says_what_was_measured_and_nothing_else(exported, trained_run: Path, tmp_path: Path) -> None:
    run = open_run(trained_run)
    card = exported("format=safetensors", f"path={tmp_path}/model.safetensors")[1]["card"].read_text()
    for fact in (
        *(f"- **command**: `{run.results['command']}`", f"- **commit**: {run.results['git_commit']}"),
        *(f"{sum(p.numel() for p in run.network.parameters()):,} parameters", "10: 0, 1, 2", "`model.safetensors`"),
        f"- test/acc: {100 * run.results['metrics']['test/acc']:.2f} %",
    ):
        assert fact in card, fact


def test_a_network_with_resize_and_crop_takes_images_as_before_the_crop(trained_run: Path, tmp_path: Path) -> None:
    run = open_run(trained_run)
    run.config.data.resize = run.checkpoint["preprocess"]["resize"] = 40
    deployed = module._deployed(run)
    network, images = deployed.network, deployed.examples["images"]
    assert images.shape == (5, 3, 40, 40)
    run.datamodule.setup("test")
    assert_logits(network(images), run.network(run.datamodule.preprocess(images)))
    assert_logits(module._write_torch(deployed, {}, tmp_path / "m.pt2")(images), network(images).log())


def test_a_file_that_differs_from_the_checkpoint_is_not_written(exported, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_write_torch", lambda deployed, *_: lambda x: deployed.network(x).roll(1, dims=1))
    (tmp_path / "model.pt2").write_text("what was there")
    with pytest.raises(ValueError, match=r"is not written: it is .* from the checkpoint"):
        exported("format=torch", f"path={tmp_path}/model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "what was there"


def test_the_error_is_that_of_the_logits() -> None:
    row, images = torch.tensor([[0.5, 0.3, 0.2]]), torch.zeros(4, 3, 8, 8)
    for change, error in ((0, 0), (0.01, 0.01), (float("nan"), float("nan"))):
        other = row.log().add(torch.tensor([0, 0, change])).exp()
        found = module._largest_error(lambda x: row.repeat(len(x), 1), lambda x, o=other: o.repeat(len(x), 1), images)
        assert found == pytest.approx(error, abs=1e-5, nan_ok=True)


MISTAKES = {
    "format=tensorrt": "must be onnx, torch or safetensors",
    "path=/proc/nowhere/model.onnx": "No such file.*/proc/nowhere",
    "path={tmp}": "it is a folder",
    "path={tmp}/file/model.onnx": "{tmp}/file",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(exported, override: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match=MISTAKES[override].format(tmp=tmp_path)):
        exported(override.format(tmp=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_onnx_that_is_not_installed_is_named(exported, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript: pip install -e '\.\[export\]'"):
        exported(f"path={tmp_path}/model.onnx")
    assert list(tmp_path.iterdir()) == []
