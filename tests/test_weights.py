"""Weights to start from: torchvision's into ours bit for bit, checkpoints, and files that do not fit."""

import hashlib
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from src.networks.alexnet import AlexNet
from src.networks.googlenet import GoogLeNet
from src.networks.libraries import TimmNetwork, TorchvisionNetwork
from src.networks.nin import NIN
from src.networks.resnet import BLOCKS, CifarResNet, ResNet
from src.networks.tinyvgg import TinyVGG
from src.networks.vgg import VGG
from src.networks.weights import Weights, load_weights, read_weights
from src.runs.build import build_model
from tests.conftest import composed

IMAGENET_MEAN = [0.485, 0.456, 0.406]
GOOGLENET = partial(GoogLeNet, 10, 32, small_stem=False)


def same(a: dict[str, Tensor], b: dict[str, Tensor], but: tuple[str, ...] = ()) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.items() if not name.startswith(but))


def learnt(network: nn.Module) -> list[str]:
    return [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]


def save(content: Any, folder: Path) -> Path:
    path = folder / "weights.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    return path


def given(state: dict[str, Tensor]) -> Weights:
    return Weights("test", state, None, None)


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", partial(ResNet, 18)),
        ("googlenet", GoogLeNet),
        ("squeezenet1_1", partial(TorchvisionNetwork, "squeezenet1_1")),
    ],
)
def test_torchvisions_weights_load_bit_for_bit_and_so_does_a_checkpoint_which_brings_its_normalisation(
    name: str, build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    twin = models.get_model(name, **({"init_weights": False} if name == "googlenet" else {}))
    network, again = build(), build()
    weights = read_weights(save(twin.state_dict(), tmp_path), network)
    assert (weights.mean, weights.std) == (None, None)
    assert load_weights(network, weights) == []
    state = network.state_dict()
    assert same(dict(zip(state, twin.state_dict().values(), strict=True)), state)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "image_size": 32}
    checkpoint = {"state_dict": {f"network.{n}": t for n, t in state.items()}, "preprocess": preprocess, "epoch": 3}
    weights = read_weights(str(save(checkpoint, tmp_path)), again)
    assert (weights.mean, weights.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert load_weights(again, weights) == []
    assert same(state, again.state_dict())


@pytest.mark.parametrize(
    ("build", "other", "fresh"),
    [
        (lambda: ResNet(18, 10), lambda: ResNet(18), ("fc.",)),
        (lambda: VGG("vgg11", 10, 96), lambda: VGG("vgg11"), ("classifier.0.", "classifier.6.")),
        (lambda: AlexNet(10, 96), AlexNet, ("classifier.1.", "classifier.6.")),
        (GOOGLENET, lambda: GOOGLENET(aux_heads=False), ("aux1.", "aux2.")),
        (lambda: GOOGLENET(aux_heads=False), GOOGLENET, ()),
    ],
    ids=["classes", "vgg's size", "alexnet's size", "no heads given", "no heads wanted"],
)
def test_what_follows_classes_size_or_missing_heads_stays_new_and_is_logged(
    build: Any, other: Any, fresh: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device("meta"):
        state = {name: torch.full((), 3.0, device="cpu").expand(t.shape) for name, t in other().state_dict().items()}
    network = build()
    with caplog.at_level(logging.INFO):
        names = load_weights(network, given(state))
    assert names == [name for name in learnt(network) if name.startswith(fresh)]
    assert names == [name for name in learnt(network) if (network.state_dict()[name] != 3).any()]
    total = len(network.state_dict())
    assert f"{total - len(names)} of {total} entries loaded" in caplog.text
    assert ("newly initialised: " + ", ".join(names) in caplog.text) == bool(names)


@pytest.mark.parametrize(
    ("network", "other", "complaint"),
    [
        (lambda: ResNet(18, 10, 32), lambda: TinyVGG(4), "missing.*unknown to it.*another network"),
        (lambda: ResNet(18, 10, 32), lambda: ResNet(34, 10, 32), "unknown to it.*another network"),
        (lambda: CifarResNet(20), lambda: CifarResNet(8), "missing.*another network"),
        (lambda: TinyVGG(4), lambda: TinyVGG(6), r"shape \(features.0.weight \(6, 3, 3, 3\), here \(4, 3, 3, 3\)"),
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
        load_weights(target, given(other().state_dict()))
    assert same(before, target.state_dict())


class Payload(str):
    """A path that pickles into a call that would create the folder."""

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_hold_no_weights_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    network = TinyVGG(4)
    trap = Payload(tmp_path / "executed")
    whole = save(network.state_dict(), tmp_path).read_bytes()
    refused: dict[str, list[Any]] = {
        "truncated": [whole[: len(whole) // 2], b"", b"not weights at all"],
        "safe to open": [pickle.dumps({"a": 1}), pickle.dumps(trap), trap, {"weight": trap}, network],
        "holds no weights": [
            *([torch.zeros(1)], {}, {"a": 1}, {1: torch.zeros(1)}, {"state_dict": {"other": torch.zeros(1)}})
        ],
    }
    for complaint, contents in refused.items():
        for content in contents:
            with pytest.raises(ValueError, match=complaint):
                read_weights(save(content, tmp_path), network)
    assert not Path(trap).exists()
    pickle.loads(pickle.dumps(trap))
    assert Path(trap).exists(), "it is no trap"


def test_a_missing_file_and_a_network_that_torchvision_does_not_have_are_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.weights=nowhere\.pth: there is no such file"):
        read_weights("nowhere.pth", TinyVGG())
    for network in (TinyVGG(), NIN(), VGG([8, "M"], image_size=32, hidden=[8]), CifarResNet()):
        with pytest.raises(ValueError, match="no published weights"):
            read_weights("imagenet", network)


def test_published_weights_are_downloaded_once_and_checked_or_it_is_said_which_file_goes_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = models.googlenet(init_weights=False).state_dict()
    content = save(state, tmp_path).read_bytes()
    source = tmp_path / f"googlenet-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    preset = SimpleNamespace(mean=IMAGENET_MEAN, std=[0.229, 0.224, 0.225])
    entry = SimpleNamespace(DEFAULT=SimpleNamespace(url=source.as_uri(), transforms=lambda: preset))
    monkeypatch.setattr(models, "get_model_weights", lambda name: {"googlenet": entry}[name])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    network = GoogLeNet(num_classes=10, image_size=64)
    cached = tmp_path / "home/hub/checkpoints" / source.name
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as error:
        read_weights("imagenet", network)
    assert f"Download {source.as_uri()} " in str(error.value)
    assert str(error.value).endswith(f"into {cached.parent}")

    source.write_bytes(content)
    weights = read_weights("imagenet", network)
    # torchvision publishes its auxiliary heads, but never trained them.
    assert load_weights(network, weights) == [n for n in learnt(network) if n.startswith(("aux1.", "aux2.", "fc."))]
    assert same(network.state_dict(), state, but=("fc", "aux"))
    assert weights.mean == [0.5] * 3
    source.unlink()
    assert read_weights("imagenet", GoogLeNet(10, 64, transform_input=True)).mean == IMAGENET_MEAN
    cached.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    with pytest.raises(ValueError, match="truncated or altered: its SHA-256 begins with"):
        read_weights("imagenet", network)


def test_a_host_of_weights_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_host: str
) -> None:
    published = SimpleNamespace(url=f"{silent_host}alexnet-0123abcd.pth")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setattr(models, "get_model_weights", lambda _: SimpleNamespace(DEFAULT=published))
    cfg = composed("model=alexnet", "model.weights=imagenet", "data=cifar10")
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded \(.*timed out"):
        build_model(cfg, SimpleNamespace())


def test_every_counterpart_has_published_weights_with_a_hash_in_their_name() -> None:
    for name in ("vgg11", "vgg11_bn", "vgg19_bn", "googlenet", "alexnet", *(f"resnet{depth}" for depth in BLOCKS)):
        url = models.get_model_weights(name).DEFAULT.url
        assert re.search(r"-[a-f0-9]{8,}\.pth$", url), url


def test_the_last_layer_of_ones_own_network_may_differ_once_it_says_which_that_is() -> None:
    def own(classes: int) -> nn.Module:
        return nn.Sequential(OrderedDict(body=nn.Linear(2, 2), last=nn.Linear(2, classes)))

    network, other = own(3), own(5)
    with pytest.raises(ValueError, match=r'the network says which that is: give it .* head = \("fc",\)'):
        load_weights(network, given(other.state_dict()))
    for network.head in (("last",), "last"):
        assert load_weights(network, given(other.state_dict())) == ["last.weight", "last.bias"]
    assert torch.equal(network.body.weight, other.body.weight)

    class Named(nn.Module):
        def __init__(self, classes: int) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(2, 2), nn.Linear(2, classes)

    assert load_weights(Named(3), given(Named(5).state_dict())) == ["head.weight", "head.bias"]


def timm_network(folder: Path, classes: int = 10, **options: Any) -> tuple[nn.Module, dict[str, Tensor]]:
    """A network of timm whose published weights lie in a file, and these."""
    timm = pytest.importorskip("timm", reason="timm is an optional extra")
    published = timm.create_model("resnet10t").state_dict()
    overlay = {"file": str(save(published, folder)), "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    return TimmNetwork("resnet10t", classes, 32, options={"pretrained_cfg_overlay": overlay, **options}), published


def test_timms_own_weights_load_bit_for_bit_with_their_normalisation_and_a_new_head(tmp_path: Path) -> None:
    network, published = timm_network(tmp_path)
    weights = read_weights("pretrained", network)
    assert (weights.mean, weights.std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    assert load_weights(network, weights) == ["network.fc.weight", "network.fc.bias"]
    assert same(network.network.state_dict(), published, but=("fc",))  # type: ignore[operator, union-attr]


def test_timms_options_reach_the_network_and_one_that_it_lacks_is_named(tmp_path: Path) -> None:
    network, _ = timm_network(tmp_path, drop_path_rate=0.3)
    assert max(getattr(module, "drop_prob", 0) or 0 for module in network.modules()) == pytest.approx(0.3)
    with pytest.raises(
        ValueError, match=r"model\.network\.options=.*drop_paths.* do not suit timm's resnet10t: .*drop_paths"
    ):
        timm_network(tmp_path, drop_paths=0.3)


def test_without_timms_weights_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"for networks of timm \(model=timm\), and this is a TinyVGG"):
        read_weights("pretrained", TinyVGG(4))
    network, _ = timm_network(tmp_path)
    (tmp_path / "weights.pth").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"could not download the weights of resnet10t .* With a file from elsewhere"
    ):
        read_weights("pretrained", network)
    plain = TimmNetwork("resnet10t", options={"pretrained_cfg_overlay": {"hf_hub_id": None, "url": None}})
    with pytest.raises(ValueError, match="timm has none that fit resnet10t"):
        read_weights("pretrained", plain)
