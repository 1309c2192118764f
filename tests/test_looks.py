"""Where a network looks: Grad-CAM against hand-worked maps, every network here, and the evaluation that draws it."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from src import figures
from src.evaluation.looks import first_filters, grad_cam, maps_of, one_of_each_size
from src.modules.classifier import ImageClassifier
from src.runs.build import build
from src.runs.folder import events_folder
from src.runs.run import open_run
from src.studies.looks import Looks
from tests.conftest import ROOT, composed
from tests.test_eval import evaluated


class Colours(nn.Module):
    """A map of what is red and one of what is green, less `bias`; a class is a weighted mean of both."""

    def __init__(self, weights: list[list[float]], bias: float = 0.0) -> None:
        super().__init__()
        self.maps, self.head = nn.Conv2d(3, 2, 1), nn.Linear(2, 2, bias=False)
        self.maps.weight.data = torch.eye(3)[:2, :, None, None]
        self.maps.bias.data[:] = -bias
        self.head.weight.data = torch.tensor(weights)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.maps(images), inplace=True).mean((2, 3)))


def spots() -> torch.Tensor:
    """Two images, the second mirrored: a red spot of 1.0 beside one of 0.5, and a green one elsewhere."""
    image = torch.zeros(3, 8, 8)
    image[0, 1:3, 5], image[0, 1:3, 6], image[1, 6, 2] = 1.0, 0.5, 1.0
    return torch.stack([image, image.flip(-1)])


def test_a_class_is_where_its_colour_is() -> None:
    network = Colours([[2.0, -1.0], [-1.0, 3.0]]).eval().requires_grad_(False)
    red = grad_cam(network, spots(), [0, 0], "maps")
    np.testing.assert_allclose(red, spots()[:, 0], atol=1e-6)  # relu(2 red - green), by its largest
    mixed = grad_cam(network, spots(), [1, 0], "maps")
    np.testing.assert_allclose(mixed, torch.stack([spots()[0, 1], spots()[1, 0]]), atol=1e-6)


def test_a_layers_maps_are_those_before_the_next_one_works_in_place() -> None:
    # Of red - 0.5 only the two pixels of 1.0 pass the ReLU. A weight of -1 makes a map of 0.5 - red, over 0 where it
    # is dark; were the map that of the ReLU, it would be 0 everywhere.
    network = Colours([[-1.0, 0.0], [1.0, 0.0]], bias=0.5).eval()
    expected = (0.5 - spots()[:, 0]).clamp(min=0) / 0.5
    np.testing.assert_allclose(grad_cam(network, spots(), [0, 0], "maps"), expected, atol=1e-6)


def test_maps_are_square_of_more_than_a_pixel_and_of_layers_that_run_once() -> None:
    relu = nn.ReLU()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.MaxPool2d(2), relu, nn.Conv2d(4, 5, 3), nn.Flatten())
    maps = maps_of(network.eval(), torch.zeros(2, 3, 10, 10))
    assert {name: tuple(each.shape[1:]) for name, each in maps.items()} == {
        "0": (4, 8, 8), "2": (4, 4, 4), "4": (5, 2, 2)
    }  # fmt: skip
    assert one_of_each_size(maps, most=2) == ["0", "4"]
    assert list(maps_of(network, torch.zeros(2, 3, 10, 10), ["2"])) == ["2"]
    assert not maps_of(nn.Sequential(nn.Flatten(), nn.Linear(300, 2)), torch.zeros(2, 3, 10, 10))
    name, weights = first_filters(network, 3)  # type: ignore[misc]
    assert (name, weights.shape) == ("0", (4, 3, 3, 3))
    assert first_filters(network, 1) is None


MODELS = sorted(path.stem for path in (ROOT / "conf/model").glob("*.yaml") if path.stem != "sngan")
QUICK = ["nin_bn", "resnet20_cifar", "speedrun", "tinyvgg"]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in MODELS])
def test_every_network_here_has_a_map_that_speaks_for_its_classes(name: str, tmp_path: Path) -> None:
    if name == "timm":
        pytest.importorskip("timm", reason="timm is an optional extra")
    cfg = composed(f"model={name}", "data=cifar10", folder=tmp_path).model.network
    torch.manual_seed(0)
    network = build(cfg).eval()
    images = torch.randn(10, 3, 32, 32)
    maps = maps_of(network, images[:1])
    heat = grad_cam(network, images, range(10), list(maps)[-1])
    assert heat.shape == (10, 32, 32)
    assert heat.min() >= 0
    assert heat.max() == pytest.approx(1, abs=1e-3)
    assert first_filters(network, 3) is not None
    assert not any(layer._forward_hooks for layer in network.modules())


def test_an_evaluation_draws_it_of_the_same_images_and_leaves_the_network_alone(run: Path, monkeypatch) -> None:
    given: dict[str, list[Any]] = {"examples": [], "heat_maps": []}
    blank = figures.filters(np.ones((1, 3, 2, 2)))  # what other tests draw
    for name in ("confusion_matrix", "reliability", "class_bars"):
        monkeypatch.setattr(figures, name, lambda *_, **__: blank)
    monkeypatch.setattr(figures, "examples", lambda *shown: given["examples"].append(shown) or blank)
    draw = figures.heat_maps
    monkeypatch.setattr(figures, "heat_maps", lambda *shown: given["heat_maps"].append(shown) or draw(*shown))
    _, objects = evaluated(f"run={run}", "cam=true")
    names = {"grad_cam_wrong", "grad_cam_right", "first_filters", "feature_maps"}
    assert {f"{name}.png" for name in names} <= {path.name for path in objects["files"]}
    pictures = EventAccumulator(str(events_folder(run))).Reload().Tags()["images"]
    assert {f"eval_test/{name}" for name in names} <= set(pictures)
    network, data = open_run(run).network, objects["datamodule"]
    for (images, labels, rows, *_), (drawn, heat, *same) in zip(given["examples"], given["heat_maps"], strict=True):
        for one, other in zip((images, labels, rows), (drawn, *same), strict=False):
            np.testing.assert_array_equal(one, other)
        classes = [rows.argmax(1), labels][: len(heat)]
        assert len(heat) == (2 if (rows.argmax(1) != labels).all() else 1)
        for maps, asked in zip(heat, classes, strict=True):
            inputs = data.preprocess(torch.from_numpy(images))
            np.testing.assert_allclose(maps, grad_cam(network, inputs, asked, "features"), atol=1e-6)
    tested = objects["model"].network
    assert all(p.requires_grad and p.grad is None for p in tested.parameters())
    assert not any(layer._forward_hooks or layer.training for layer in tested.modules())


def test_what_cannot_be_looked_into_is_refused_before_the_test(run: Path, monkeypatch) -> None:
    def opened(model: Any) -> Any:
        return SimpleNamespace(
            model=model, network=model.network, classes=["a", "b"], checkpoint=open_run(run).checkpoint
        )

    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with pytest.raises(ValueError, match="no layer of Sequential gives a map of more than one pixel"):
        Looks(opened(ImageClassifier(flat, None)), composed(name="eval"))
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs pytorch_grad_cam: pip install -e '\.\[cam\]'"):
        evaluated(f"run={run}", "cam=true")
