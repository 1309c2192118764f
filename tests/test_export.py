"""An exported file gives the checkpoint's own probabilities, for any batch, or it is not there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hydra import compose, initialize_config_dir

from src import export as module
from src.export import export
from src.run import open_run
from tests.conftest import ROOT
from tests.test_eval import trained_run


def exported(*overrides: str):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return export(compose("export", [f"run={trained_run()}", *overrides]))


@pytest.fixture(scope="module")
def expected() -> tuple[torch.Tensor, torch.Tensor]:
    """Seven test images, uint8 (7, 3, 32, 32), and the checkpoint's logits of them (7, K)."""
    run = open_run(trained_run())
    run.datamodule.setup("test")
    images = run.datamodule.test_set.images[:7]
    with torch.no_grad():
        return images, run.network(run.datamodule.preprocess(images))


def assert_logits(probabilities: torch.Tensor, logits: torch.Tensor) -> None:
    torch.testing.assert_close(probabilities.sum(1), torch.ones(len(logits)), atol=1e-5, rtol=0)
    torch.testing.assert_close(probabilities.log(), logits.log_softmax(1), atol=1e-4, rtol=0)


def test_onnx_takes_uint8_images_in_any_number_and_gives_the_checkpoint_s_probabilities(expected, tmp_path) -> None:
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
    assert metrics["max_error"] <= 1e-4
    assert metrics["bytes"] == (tmp_path / "model.onnx").stat().st_size
    assert metrics["eager_ms"] > 0 < metrics["exported_ms"]


def test_a_torch_program_runs_in_a_process_without_this_project(expected, tmp_path: Path) -> None:
    exported("format=torch", f"path={tmp_path}/new/model.pt2")
    images, logits = expected
    np.save(tmp_path / "images.npy", images.numpy())
    code = (
        "import json, numpy, torch\n"
        "extra = {'classes': ''}\n"
        "run = torch.export.load('new/model.pt2', extra_files=extra).module()\n"
        "images = torch.from_numpy(numpy.load('images.npy'))\n"
        "numpy.save('rows.npy', torch.cat([run(images[:1]), run(images[1:])]).detach().numpy())\n"
        "print(len(json.loads(extra['classes'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "10", done.stderr
    assert_logits(torch.from_numpy(np.load(tmp_path / "rows.npy")), logits)


def test_a_network_with_resize_and_crop_takes_images_of_the_size_before_the_crop(tmp_path: Path) -> None:
    run = open_run(trained_run())
    run.config.data.resize = run.checkpoint["preprocess"]["resize"] = 40
    network, side = module._deployed(run)
    assert side == 40
    images = torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8)
    run.datamodule.setup("test")
    with torch.no_grad():
        assert_logits(network(images), run.network(run.datamodule.preprocess(images)))
        assert_logits(module._write_torch(network, side, {}, tmp_path / "m.pt2")(images), network(images).log())


def test_a_file_that_differs_from_the_checkpoint_is_not_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_write_torch", lambda network, *_: lambda images: network(images).roll(1, dims=1))
    (tmp_path / "model.pt2").write_text("what was there")
    with pytest.raises(ValueError, match="differs from the checkpoint"):
        exported("format=torch", f"path={tmp_path}/model.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert (tmp_path / "model.pt2").read_text() == "what was there"


def test_the_error_is_that_of_the_logits() -> None:
    def network(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.5, 0.3, 0.2]]).expand(len(images), 3)

    def other(images: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.5, 0.3, 0.2]]).log().add(torch.tensor([0, 0, 0.01])).exp().expand(len(images), 3)

    assert module._largest_error(network, network, 4) == 0
    assert module._largest_error(network, other, 4) == pytest.approx(0.01, abs=1e-5)


MISTAKES = {
    "format=tensorrt": "choose onnx or torch",
    "path=/proc/nowhere/model.onnx": "/proc/nowhere/model.onnx cannot be written: No such file",
    "path={tmp}": "it is a folder",
    "path={tmp}/file/model.onnx": "a file is in the way",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(override: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=MISTAKES[override]):
        exported(override.format(tmp=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_onnx_that_is_not_installed_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match=r"onnxscript: pip install -e \.\[export\]"):
        exported(f"path={tmp_path}/model.onnx")
    assert list(tmp_path.iterdir()) == []
