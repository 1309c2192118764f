"""The networks against torchvision, against counts worked out by hand, and at every image size they promise."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision import models

from src.networks.alexnet import AlexNet
from src.networks.googlenet import GoogLeNet, GoogLeNetOutput
from src.networks.libraries import TimmNetwork, TorchvisionNetwork
from src.networks.nin import NIN
from src.networks.resnet import BLOCKS, CifarResNet, ResNet
from src.networks.speedrun import SpeedrunNet
from src.networks.tinyvgg import TinyVGG
from src.networks.vgg import STAGES, VGG
from src.networks.weights import Weights, load_weights
from tests.conftest import slow_if_alike

CUSTOM_STAGES = [32, 32, "M", 64, 64, 128, 128, 128, "M", 256, 256, 256, 512, 512, 512, "M"]

TORCHVISIONS: dict[str, Callable[..., Any]] = {
    **{stages: partial(VGG, stages) for stages in STAGES},
    **{f"{stages}_bn": partial(VGG, stages, batch_norm=True) for stages in STAGES},
    **{f"resnet{depth}": partial(ResNet, depth) for depth in BLOCKS},
    "googlenet": GoogLeNet,
    "alexnet": AlexNet,
}
OURS_ALONE: dict[str, Callable[..., Any]] = {
    "tinyvgg": partial(TinyVGG, 10),
    "vgg_custom": partial(VGG, CUSTOM_STAGES, hidden=[64]),
    "vgg_factorized": partial(VGG, "vgg11", hidden=[64], factorized=True, batch_norm=True),
    "nin": NIN,
    "nin_bn": partial(NIN, batch_norm=True),
    "resnet20_cifar": partial(CifarResNet, 20),
    "resnet56_cifar": partial(CifarResNet, 56),
    "speedrun": partial(SpeedrunNet, (16, 16, 16), logit_scale=1.0),
    "torchvision": TorchvisionNetwork,
}
NETWORKS = TORCHVISIONS | OURS_ALONE


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def logits_of(output: Tensor | GoogLeNetOutput) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)


@pytest.mark.parametrize("name", [*slow_if_alike(*TORCHVISIONS), "googlenet transform_input"])
def test_names_counts_and_logits_are_torchvisions_at_224(name: str) -> None:
    name, *words = name.split()
    options: dict[str, Any] = dict.fromkeys(words, True)
    torch.manual_seed(0)
    network = TORCHVISIONS[name](num_classes=1000, image_size=224, **options).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # so large that what comes in shows in the logits
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):  # as after training: any swapped norm shows too
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    if name == "googlenet":
        options = {"aux_logits": True, "init_weights": False, **options}
    with torch.device("meta"):
        twin = models.get_model(name, weights=None, **options).eval()
    assert network.torchvision_name == name
    assert list(network.state_dict()) == list(twin.state_dict())
    twin.load_state_dict(network.state_dict(), assign=True)  # the very tensors of ours
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images), twin(images))


def test_networks_have_the_parameters_counted_by_hand() -> None:
    def convolutions(*layers: tuple[int, int, int]) -> int:
        return sum(narrow * kernel**2 * wide + wide for narrow, wide, kernel in layers)

    nin = [(3, 192, 5), (192, 160, 1), (160, 96, 1), (96, 192, 5), (192, 192, 1), (192, 192, 1)]
    nin += [(192, 192, 3), (192, 192, 1), (192, 10, 1)]
    speedrun = (24 * 3 * 4 + 24) + 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
    with torch.device("meta"):
        assert count(NIN(num_classes=10)) == convolutions(*nin) == 966_986
        assert count(NIN(num_classes=10, batch_norm=True)) == 966_986 + 2 * sum(wide for _, wide, _ in nin[:-1])
        assert count(SpeedrunNet()) == speedrun + 2 * 2 * (64 + 256 + 256) + 256 * 10
        for depth in (20, 56):
            n = (depth - 2) // 6
            stages = sum(
                narrow * 9 * wide + (2 * n - 1) * wide * 9 * wide + 2 * n * 2 * wide
                for narrow, wide in [(16, 16), (16, 32), (32, 64)]
            )
            assert count(CifarResNet(depth)) == (3 * 9 * 16 + 2 * 16) + stages + 64 * 10 + 10


def test_factorized_stages_have_two_thirds_of_the_weights_and_two_kernels() -> None:
    whole, split = (VGG([16, "M", 32], num_classes=10, image_size=32, factorized=split) for split in (False, True))
    assert [m.kernel_size for m in split.features if isinstance(m, nn.Conv2d)] == [(1, 3), (3, 1)] * 2
    assert count(whole.features) == 3 * 9 * 16 + 16 + 16 * 9 * 32 + 32
    assert count(split.features) == (3 * 3 * 16 + 16 + 16 * 3 * 16 + 16) + (16 * 3 * 32 + 32 + 32 * 3 * 32 + 32)
    images = torch.randn(2, 3, 32, 32)
    assert whole.features(images).shape == split.features(images).shape == (2, 32, 16, 16)


@pytest.mark.parametrize(("image_size", "vgg", "alexnet"), [(32, 1, 3), (64, 2, 1), (96, 3, 2), (224, 7, 6)])
def test_the_fully_connected_head_sees_the_last_map_as_it_is(image_size: int, vgg: int, alexnet: int) -> None:
    with torch.device("meta"):
        networks = [NETWORKS[name](image_size=image_size) for name in ("vgg11", "alexnet", "vgg_custom")]
    for network, channels, side, first in zip(networks, (512, 256), (vgg, alexnet), "01", strict=False):
        assert network.classifier.get_submodule(first).in_features == channels * side**2
        published = image_size == 224  # then only the number of classes can make it anew
        assert network.head == (("classifier.6",) if published else (f"classifier.{first}", "classifier.6"))
    assert networks[2].classifier[0].weight.shape == (64, 512 * (image_size // 8) ** 2)


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_the_stem_is_small_under_64_px_and_can_be_chosen(name: str) -> None:
    choices = {(63, None): 3, (64, None): 7, (32, False): 7, (224, True): 3}
    for (image_size, small_stem), kernel in choices.items():
        with torch.device("meta"):
            network = NETWORKS[name](num_classes=10, image_size=image_size, small_stem=small_stem)
        stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
        assert stem.kernel_size == (kernel, kernel)


@pytest.mark.parametrize("image_size", [32, 64, 96])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_fits_its_image_size(name: str, image_size: int) -> None:
    with torch.device("meta"):
        network = NETWORKS[name](num_classes=7, image_size=image_size)
        output = network(torch.zeros(2, 3, image_size, image_size))
    assert all(logits.shape == (2, 7) for logits in logits_of(output))


@pytest.mark.parametrize(
    ("build", "minimum"),
    [
        (partial(VGG, "vgg11", hidden=[8]), 32),
        (partial(VGG, [8, "M", 8, "M"], hidden=[8]), 4),
        (TinyVGG, 16),
        (partial(GoogLeNet, small_stem=False), 15),
        (AlexNet, 15),
        (NIN, 4),
        (SpeedrunNet, 9),
    ],
    ids=["vgg11", "vgg_custom", "tinyvgg", "googlenet", "alexnet", "nin", "speedrun"],
)
def test_too_small_an_image_is_refused_with_the_smallest_that_works(build: Callable[..., Any], minimum: int) -> None:
    with pytest.raises(ValueError, match=rf"image_size={minimum - 1} is too small for .* at least {minimum} px"):
        build(image_size=minimum - 1)
    with torch.device("meta"):
        network = build(num_classes=7, image_size=minimum).eval()
        assert network(torch.zeros(1, 3, minimum, minimum)).shape == (1, 7)


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (partial(VGG, "vgg12"), r"Unknown VGG stages 'vgg12'.*vgg11, vgg13"),
        (partial(VGG, [8, "X"]), "not 'X' in"),
        (partial(VGG, ["M", 8]), "begin with a convolution"),
        (partial(ResNet, 19), "No ResNet of depth 19: choose one of 18, 34, 50, 101"),
        (partial(CifarResNet, 21), r"No CIFAR ResNet of depth 21: it is 6n \+ 2"),
        (partial(SpeedrunNet, (8, 8)), r"widths=\[8, 8\] must be three"),
        (partial(TorchvisionNetwork, "resnet19"), r"classification network 'resnet19'\. Did you mean .*resnet18"),
    ],
)
def test_wrong_options_of_a_network_are_named(build: Callable[[], Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        build()


def test_googlenet_returns_its_heads_by_name_in_train_mode_and_does_not_run_them_in_eval_mode() -> None:
    network: Any = GoogLeNet(num_classes=5, image_size=32, small_stem=False)
    images = torch.randn(2, 3, 32, 32)
    output = network.train()(images)
    # Each head hangs where the paper has it: its loss reaches 4a, and only the second one's reaches 4b to 4d.
    for logits, reaches_4d in [(output.aux1, False), (output.aux2, True)]:
        network.zero_grad()
        logits.sum().backward(retain_graph=True)
        assert network.inception4a.branch1.conv.weight.grad.abs().sum() > 0
        assert (network.inception4d.branch1.conv.weight.grad is not None) == reaches_4d
        assert network.inception4e.branch1.conv.weight.grad is None
    network.aux1.forward = network.aux2.forward = None
    assert network.eval()(images).shape == (2, 5)
    network.aux1 = network.aux2 = None
    assert isinstance(network.train()(images), Tensor)


def test_googlenets_paper_kernel_is_5x5_and_torchvisions_is_3x3() -> None:
    with torch.device("meta"):
        networks: list[Any] = [GoogLeNet(), GoogLeNet(true_5x5=True)]
    assert [network.inception3a.branch3[1].conv.kernel_size for network in networks] == [(3, 3), (5, 5)]
    assert [network.torchvision_name for network in networks] == ["googlenet", None]


def test_the_padded_shortcut_skips_pixels_and_adds_zero_channels() -> None:
    shortcut: Any = CifarResNet(8).layer2[0].downsample
    out = shortcut(torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4))
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 0].tolist() == [[0, 2], [8, 10]]
    assert not out[0, 2:].any()


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "nin", "resnet18", "resnet20_cifar"])
def test_weights_start_from_kaimings_normal_fan_out_of_convolutions_and_fan_in_of_linear_layers(name: str) -> None:
    torch.manual_seed(0)
    for module in NETWORKS[name](num_classes=10, image_size=32).modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.weight.numel() > 10_000:
            linear = isinstance(module, nn.Linear)
            fan = module.in_features if linear else module.out_channels * math.prod(module.kernel_size)
            assert module.weight.std().item() == pytest.approx((2 / fan) ** 0.5, rel=0.03)
            assert module.bias is None or not module.bias.any()


def test_googlenet_starts_from_a_truncated_normal() -> None:
    network: Any = GoogLeNet(num_classes=10, image_size=32)
    weight = network.inception5b.branch2[1].conv.weight
    assert weight.abs().max() <= 0.02
    assert weight.std().item() == pytest.approx(0.01 * 0.88, rel=0.02)  # 0.88: what truncation at two leaves


QUICK = {("alexnet", 32), ("alexnet", 96), ("resnet18", 32), ("resnet18", 96)}
QUICK |= {(name, 32) for name in OURS_ALONE if name != "resnet56_cifar"}


@pytest.mark.parametrize(
    ("name", "image_size"),
    [pytest.param(n, s, marks=[pytest.mark.slow] * ((n, s) not in QUICK)) for n in NETWORKS for s in (32, 96)],
)
def test_every_network_overfits_one_batch(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](num_classes=4, image_size=image_size).train()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = F.interpolate(torch.randn(4, 3, 4, 4), image_size)  # large patches, so that maps keep them apart
    labels = torch.arange(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4 if count(network) > 1e5 else 3e-3)
    for _ in range(80):
        losses = torch.stack([F.cross_entropy(logits, labels) for logits in logits_of(network(images))])
        if losses.mean() < 0.1:
            return
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
    pytest.fail(f"the loss is still {losses.mean().item():.3f}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("vgg16", 5), ("vgg19", 5), ("alexnet", 5), ("nin", 10)])
def test_networks_without_batch_norm_leave_chance_on_the_digits(
    name: str, epochs: int, config: Callable[..., DictConfig]
) -> None:
    from src.train import train

    recipe = ["optimizer=sgd", "scheduler=cosine", "trainer=cpu", f"trainer.max_epochs={epochs}"]
    metrics, _ = train(config(f"model={name}", "data=digits", *recipe))
    assert metrics["test/acc"] > 0.4


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "torchvision"])
def test_grey_images_change_the_first_convolution_alone(name: str) -> None:
    with torch.device("meta"):
        rgb, grey = (NETWORKS[name](num_classes=7, image_size=32, channels=channels).eval() for channels in (3, 1))
        assert grey(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    shapes, others = ({n: (*p.shape,) for n, p in network.named_parameters()} for network in (rgb, grey))
    assert list(shapes) == list(others)
    first = next(iter(shapes))
    assert (shapes[first][1], others[first][1]) == (3, 1)
    differ = {n for n in shapes if shapes[n] != others[n]}
    assert differ == {first} or (
        name == "speedrun" and len(differ) == 3
    )  # which has as many filters as a patch has values


def test_what_needs_three_channels_says_so_and_weights_of_three_fit_no_other() -> None:
    with pytest.raises(ValueError, match=r"three channels, not 1: set data\.channels=3, or take model=timm"):
        TorchvisionNetwork(channels=1)
    with pytest.raises(ValueError, match="transform_input=true is for images of three channels, not 1"):
        GoogLeNet(channels=1, transform_input=True)
    weights = Weights("mine", ResNet(18, 7, 32).state_dict(), None, None)
    with pytest.raises(ValueError, match=r"weights for images of 3 channels; set data\.channels to that"):
        load_weights(ResNet(18, 7, 32, channels=1), weights)


@pytest.mark.parametrize("name", [*models.list_models(module=models, exclude="regnet_*"), "regnet_y_400mf"])
def test_every_classification_network_of_torchvision_gets_a_head(name: str) -> None:
    with torch.device("cpu" if name.startswith("regnet") else "meta"):  # regnets compute their widths
        network = TorchvisionNetwork(name, num_classes=7, image_size=224)
    assert network.get_submodule(network.head[0]).weight.shape[0] == 7


def test_timm_networks_get_a_head_or_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra")
    network = TimmNetwork("resnet10t", num_classes=7, image_size=32).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert TimmNetwork("resnet10t", num_classes=7, channels=1).eval()(torch.randn(1, 1, 32, 32)).shape == (1, 7)
    assert network.get_submodule(network.head[0]).out_features == 7
    with pytest.raises(ValueError, match=r"timm has no network 'resnet19t'\. Did you mean"):
        TimmNetwork("resnet19t")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[timm\]'"):
        TimmNetwork()
