"""Weights to start from: torchvision's into ours bit for bit, checkpoints, and files that do not fit."""

from __future__ import annotations

import hashlib
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from src.networks.alexnet import AlexNet
from src.networks.googlenet import GoogLeNet
from src.networks.libraries import TorchvisionNetwork
from src.networks.nin import NIN
from src.networks.resnet import CifarResNet, ResNet
from src.networks.tinyvgg import TinyVGG
from src.networks.vgg import VGG
from src.networks.weights import Weights, load_weights, read_weights

IMAGENET_MEAN = [0.485, 0.456, 0.406]


def same(a: dict[str, Tensor], b: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items() if not name.startswith(but or ("-",)))


def learnt(network: nn.Module) -> list[str]:
    return [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]


def save(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "weights.pth")
    return folder / "weights.pth"


def published(network: nn.Module, state: dict[str, Tensor]) -> Weights:
    return Weights("test", state, None, None)


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_torchvisions_random_weights_load_bit_for_bit(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    options = {"aux_logits": True, "init_weights": False} if name == "googlenet" else {}
    twin = models.get_model(name, **options).eval()
    path = save(twin.state_dict(), tmp_path)
    network: nn.Module = ResNet(18) if name == "resnet18" else GoogLeNet()
    assert load_weights(network, read_weights(path, network)) == []
    assert same(network.state_dict(), twin.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), twin(images))


def test_the_classifier_is_new_where_the_number_of_classes_differs(tmp_path: Path) -> None:
    twin = models.resnet18()
    network = ResNet(18, num_classes=10)
    before = network.fc.weight.clone()
    assert load_weights(network, read_weights(save(twin.state_dict(), tmp_path), network)) == ["fc.weight", "fc.bias"]
    assert same(network.state_dict(), twin.state_dict(), but=("fc",))
    assert torch.equal(network.fc.weight, before)


@pytest.mark.parametrize(("build", "fresh"), [(lambda **kw: VGG("vgg11", **kw), ("0", "6")), (AlexNet, ("1", "6"))])
def test_linear_layers_that_follow_the_image_size_are_new_at_another_size(build: Any, fresh: tuple[str, str]) -> None:
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in build().state_dict().items()}
    state = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    network = build(num_classes=10, image_size=96)
    names = load_weights(network, published(network, state))
    assert names == [f"classifier.{layer}.{kind}" for layer in fresh for kind in ("weight", "bias")]
    loaded = [name for name, tensor in network.state_dict().items() if not tensor.any() and name not in names]
    assert len(loaded) == len(shapes) - 4


def test_auxiliary_heads_may_be_missing_on_either_side() -> None:
    with_heads, without = GoogLeNet(10, 32, small_stem=False), GoogLeNet(10, 32, small_stem=False, aux_heads=False)
    assert load_weights(without, published(without, with_heads.state_dict())) == []
    assert same(without.state_dict(), with_heads.state_dict())
    fresh = load_weights(with_heads, published(with_heads, without.state_dict()))
    assert fresh == [name for name in learnt(with_heads) if name.startswith("aux")]


def test_a_checkpoint_of_a_run_brings_its_normalisation(tmp_path: Path) -> None:
    trained = TinyVGG(4, num_classes=10, image_size=32)
    state = {f"network.{name}": tensor for name, tensor in trained.state_dict().items()}
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 32}
    path = save({"state_dict": state, "preprocess": preprocess, "epoch": 3}, tmp_path)
    network = TinyVGG(4, num_classes=10, image_size=32)
    weights = read_weights(str(path), network)
    assert (weights.mean, weights.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert load_weights(network, weights) == []
    assert same(network.state_dict(), trained.state_dict())


def test_a_plain_state_dict_brings_no_normalisation(tmp_path: Path) -> None:
    network = TinyVGG(4, image_size=32)
    weights = read_weights(save(network.state_dict(), tmp_path), network)
    assert weights.mean is weights.std is None


def test_a_network_of_torchvision_takes_its_own_names_and_a_checkpoints(tmp_path: Path) -> None:
    twin = models.squeezenet1_1(num_classes=7)
    network = TorchvisionNetwork("squeezenet1_1", num_classes=7)
    assert load_weights(network, read_weights(save(twin.state_dict(), tmp_path), network)) == []
    assert same(network.network.state_dict(), twin.state_dict())
    checkpoint = {"state_dict": {f"network.{name}": tensor for name, tensor in network.state_dict().items()}}
    again = TorchvisionNetwork("squeezenet1_1", num_classes=7)
    assert load_weights(again, read_weights(save(checkpoint, tmp_path), again)) == []
    assert same(again.state_dict(), network.state_dict())


def test_what_stays_new_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    network = TinyVGG(4, num_classes=3, image_size=32)
    with caplog.at_level(logging.INFO):
        load_weights(network, published(network, TinyVGG(4, num_classes=5, image_size=32).state_dict()))
    assert "8 of 10 entries loaded; newly initialised: classifier.weight, classifier.bias" in caplog.text


@pytest.mark.parametrize(
    ("network", "other", "complaint"),
    [
        (lambda: ResNet(18, 10, 32), lambda: TinyVGG(4), "missing.*unknown to it.*another network"),
        (lambda: ResNet(18, 10, 32), lambda: ResNet(34, 10, 32), "unknown to it.*another network"),
        (lambda: CifarResNet(20), lambda: CifarResNet(8), "missing.*another network"),
        (
            lambda: TinyVGG(4),
            lambda: TinyVGG(6),
            r"another shape \(features.0.weight \(6, 3, 3, 3\), here \(4, 3, 3, 3\)",
        ),
        (lambda: VGG([8, "M"], hidden=[4, 4]), lambda: VGG([8, "M"], hidden=[6, 6]), "another shape"),
        (lambda: NIN(), lambda: nn.Sequential(NIN().features), "missing"),
        (lambda: ResNet(18, 10, 32), lambda: ResNet(18, 10, 64), "data.image_size=64 or more .*small_stem=false"),
        (lambda: AlexNet(10, 32), lambda: AlexNet(10, 96), "first convolution differs.*data.image_size=64 or more"),
    ],
    ids=["other family", "deeper", "shallower", "wider", "other hidden layers", "no head", "stem", "alexnet's stem"],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(network: Any, other: Any, complaint: str) -> None:
    target = network()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ValueError, match=complaint):
        load_weights(target, published(target, other().state_dict()))
    assert same(before, target.state_dict())


class Payload:
    """Pickles into a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_hold_no_weights_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    network = TinyVGG(4)
    trap = tmp_path / "executed"
    whole = save(network.state_dict(), tmp_path).read_bytes()
    contents: dict[str, tuple[bytes, str]] = {
        "truncated.pth": (whole[: len(whole) // 2], "truncated"),
        "empty.pth": (b"", "truncated"),
        "text.pth": (b"not weights at all", "truncated"),
        "pickle.pkl": (pickle.dumps({"a": 1}), "safe to open"),
        "trap.pkl": (pickle.dumps(Payload(trap)), "safe to open"),
    }
    for name, (content, complaint) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=complaint):
            read_weights(tmp_path / name, network)
    for content in (Payload(trap), {"weight": Payload(trap)}, network):
        with pytest.raises(ValueError, match="safe to open"):
            read_weights(save(content, tmp_path), network)
    for content in ([torch.zeros(1)], {}, {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"other": torch.zeros(1)}}):
        with pytest.raises(ValueError, match="holds no weights"):
            read_weights(save(content, tmp_path), network)
    assert not trap.exists()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights=nowhere\.pth: there is no such file"):
        read_weights("nowhere.pth", TinyVGG())


def test_networks_that_torchvision_does_not_have_have_no_imagenet_weights() -> None:
    for network in (TinyVGG(), NIN(), VGG([8, "M"], image_size=32, hidden=[8]), CifarResNet()):
        with pytest.raises(ValueError, match="no published weights"):
            read_weights("imagenet", network)


def test_without_a_connection_the_message_says_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(FileNotFoundError, match="no route to host") as error:
        read_weights("imagenet", GoogLeNet(10, 224))
    assert "https://download.pytorch.org/models/googlenet-1378be20.pth" in str(error.value)
    assert str(tmp_path / "hub" / "checkpoints") in str(error.value)


@pytest.fixture
def a_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GoogLeNet of torchvision's, published in a folder of this machine under a name with its hash."""
    state = models.googlenet(aux_logits=True, init_weights=False).state_dict()
    plain = save(state, tmp_path)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()[:8]
    path = plain.rename(tmp_path / f"googlenet-{digest}.pth")
    preset = SimpleNamespace(mean=IMAGENET_MEAN, std=[0.229, 0.224, 0.225])
    entry = SimpleNamespace(DEFAULT=SimpleNamespace(url=path.as_uri(), transforms=lambda: preset))
    monkeypatch.setattr(models, "get_model_weights", lambda name: {"googlenet": entry}[name])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return path


def test_published_weights_are_downloaded_once_and_their_hash_is_checked(a_published_file: Path) -> None:
    state = torch.load(a_published_file)
    network = GoogLeNet(num_classes=10, image_size=64)
    fresh = load_weights(network, read_weights("imagenet", network))
    # torchvision publishes its auxiliary heads, but never trained them.
    assert fresh == [name for name in learnt(network) if name.startswith(("aux1.", "aux2.", "fc."))]
    assert same(network.state_dict(), state, but=("fc", "aux"))
    a_published_file.unlink()
    cached = Path(torch.hub.get_dir(), "checkpoints", a_published_file.name)
    read_weights("imagenet", network)
    content = bytearray(cached.read_bytes())
    content[-100] ^= 1
    cached.write_bytes(content)
    with pytest.raises(ValueError, match="truncated or altered: its SHA-256 begins with"):
        read_weights("imagenet", network)


def test_googlenets_normalisation_follows_transform_input(a_published_file: Path) -> None:
    weights = read_weights("imagenet", GoogLeNet(num_classes=10, image_size=64))
    assert (weights.mean, weights.std) == ([0.5] * 3, [0.5] * 3)
    assert (
        read_weights("imagenet", GoogLeNet(num_classes=10, image_size=64, transform_input=True)).mean == IMAGENET_MEAN
    )


def test_every_counterpart_has_published_weights_with_a_hash_in_their_name() -> None:
    for name in (
        "vgg11",
        "vgg11_bn",
        "vgg19_bn",
        "googlenet",
        "alexnet",
        "resnet18",
        "resnet34",
        "resnet50",
        "resnet101",
    ):
        url = models.get_model_weights(name).DEFAULT.url
        assert torch.hub.HASH_REGEX.search(url.rpartition("/")[2]), url
