"""The networks against torchvision, against counts worked out by hand, and at every image size they promise."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from torchvision import models

from src.networks.alexnet import AlexNet
from src.networks.googlenet import ConvNorm, GoogLeNet, GoogLeNetOutput
from src.networks.libraries import TimmNetwork, TorchvisionNetwork
from src.networks.nin import NIN
from src.networks.resnet import CifarResNet, ResNet
from src.networks.tinyvgg import TinyVGG
from src.networks.vgg import VGG

CUSTOM_STAGES = [32, 32, "M", 64, 64, 128, 128, 128, "M", 256, 256, 256, 512, 512, 512, "M"]

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg11": lambda **kw: VGG("vgg11", **kw),
    "vgg13": lambda **kw: VGG("vgg13", **kw),
    "vgg16": lambda **kw: VGG("vgg16", **kw),
    "vgg19": lambda **kw: VGG("vgg19", **kw),
    "vgg11_bn": lambda **kw: VGG("vgg11", batch_norm=True, **kw),
    "vgg13_bn": lambda **kw: VGG("vgg13", batch_norm=True, **kw),
    "vgg16_bn": lambda **kw: VGG("vgg16", batch_norm=True, **kw),
    "vgg19_bn": lambda **kw: VGG("vgg19", batch_norm=True, **kw),
    "googlenet": GoogLeNet,
    "alexnet": AlexNet,
    "resnet18": lambda **kw: ResNet(18, **kw),
    "resnet34": lambda **kw: ResNet(34, **kw),
    "resnet50": lambda **kw: ResNet(50, **kw),
    "resnet101": lambda **kw: ResNet(101, **kw),
}
OURS_ALONE: dict[str, Callable[..., nn.Module]] = {
    "tinyvgg": lambda **kw: TinyVGG(10, **kw),
    "vgg_custom": lambda **kw: VGG(CUSTOM_STAGES, hidden=[64], **kw),
    "vgg_factorized": lambda **kw: VGG("vgg11", hidden=[64], factorized=True, batch_norm=True, **kw),
    "nin": NIN,
    "nin_bn": lambda **kw: NIN(batch_norm=True, **kw),
    "resnet20_cifar": lambda **kw: CifarResNet(20, **kw),
    "resnet56_cifar": lambda **kw: CifarResNet(56, **kw),
    "torchvision": TorchvisionNetwork,
}
QUICK = ("alexnet", "resnet18", *(n for n in OURS_ALONE if n != "resnet56_cifar"))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def torchvision_twin(network: nn.Module, **options: Any) -> nn.Module:
    """Torchvision's network of the same name, holding the very tensors of ours."""
    if network.torchvision_name == "googlenet":
        options = {"aux_logits": True, "init_weights": False, **options}
    with torch.device("meta"):
        twin = models.get_model(network.torchvision_name, weights=None, **options)
    twin.load_state_dict(network.state_dict(), assign=True)
    return twin.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_names_counts_and_logits_are_torchvisions_at_224(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](num_classes=1000, image_size=224).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: any swapped norm shows in the logits
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    twin = torchvision_twin(network)
    assert network.torchvision_name == name
    assert list(network.state_dict()) == list(twin.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images), twin(images))


def test_vgg16_has_the_parameters_of_the_papers_table_2() -> None:
    with torch.device("meta"):
        assert [round(count(VGG(f"vgg{d}")) / 1e6) for d in (11, 13, 16, 19)] == [133, 133, 138, 144]


def test_nin_has_the_parameters_worked_out_by_hand() -> None:
    def convolution(narrow: int, wide: int, kernel: int) -> int:
        return narrow * kernel * kernel * wide + wide

    first = convolution(3, 192, 5) + convolution(192, 160, 1) + convolution(160, 96, 1)  # 14,592 + 30,880 + 15,456
    second = convolution(96, 192, 5) + 2 * convolution(192, 192, 1)  # 460,992 + 2 x 37,056
    third = convolution(192, 192, 3) + convolution(192, 192, 1) + convolution(192, 10, 1)  # 331,968 + 37,056 + 1,930
    assert first + second + third == 966_986
    assert count(NIN(num_classes=10)) == 966_986
    norms = 2 * (192 + 160 + 96 + 3 * 192 + 2 * 192)
    assert count(NIN(num_classes=10, batch_norm=True)) == 966_986 + norms


@pytest.mark.parametrize(("depth", "millions", "exact"), [(20, 0.27, 269_722), (56, 0.85, 853_018)])
def test_cifar_resnets_have_the_parameters_of_the_paper(depth: int, millions: float, exact: int) -> None:
    n = (depth - 2) // 6
    stem = 3 * 9 * 16 + 2 * 16
    stages = sum(
        narrow * 9 * wide + (2 * n - 1) * wide * 9 * wide + 2 * n * 2 * wide
        for narrow, wide in [(16, 16), (16, 32), (32, 64)]
    )
    assert stem + stages + 64 * 10 + 10 == exact
    assert count(CifarResNet(depth, num_classes=10)) == exact
    assert round(exact / 1e6, 2) == millions  # table 6


def test_tinyvgg_has_the_parameters_of_cnn_explainer() -> None:
    # 10 hidden units, 10 classes, 64 px: a 13x13 map.
    assert count(TinyVGG(10, num_classes=10, image_size=64)) == (270 + 10) + 3 * (900 + 10) + (10 * 13 * 13 * 10 + 10)


def test_factorized_stages_have_two_thirds_of_the_weights_and_two_kernels() -> None:
    whole = VGG([16, "M", 32], num_classes=10, image_size=32)
    split = VGG([16, "M", 32], num_classes=10, image_size=32, factorized=True)
    kernels = [m.kernel_size for m in split.features if isinstance(m, nn.Conv2d)]
    assert kernels == [(1, 3), (3, 1)] * 2
    assert count(whole.features) == 3 * 9 * 16 + 16 + 16 * 9 * 32 + 32
    assert count(split.features) == (3 * 3 * 16 + 16 + 16 * 3 * 16 + 16) + (16 * 3 * 32 + 32 + 32 * 3 * 32 + 32)
    images = torch.randn(2, 3, 32, 32)
    assert whole.features(images).shape == split.features(images).shape == (2, 32, 16, 16)


@pytest.mark.parametrize(("image_size", "side"), [(32, 1), (64, 2), (96, 3), (224, 7)])
def test_the_head_of_vgg_sees_the_last_map_as_it_is(image_size: int, side: int) -> None:
    with torch.device("meta"):
        network = VGG("vgg11", num_classes=10, image_size=image_size)
    assert network.classifier[0].in_features == 512 * side * side
    assert network.head == (("classifier.6",) if side == 7 else ("classifier.0", "classifier.6"))


def test_the_custom_vgg_has_a_4x4_map_and_a_head_of_4096() -> None:
    with torch.device("meta"):
        network = VGG(CUSTOM_STAGES, num_classes=10, image_size=32)
    assert (network.classifier[0].in_features, network.classifier[0].out_features) == (512 * 4 * 4, 4096)


@pytest.mark.parametrize("name", ["resnet18", "googlenet"])
def test_the_stem_is_small_under_64_px_and_can_be_chosen(name: str) -> None:
    def kernel(**options: Any) -> tuple[int, ...]:
        with torch.device("meta"):
            network: Any = NETWORKS[name](num_classes=10, **options)
        stem = network.conv1.conv if isinstance(network.conv1, ConvNorm) else network.conv1
        return stem.kernel_size

    assert kernel(image_size=63) == (3, 3)
    assert kernel(image_size=64) == (7, 7)
    assert kernel(image_size=32, small_stem=False) == (7, 7)
    assert kernel(image_size=224, small_stem=True) == (3, 3)


@pytest.mark.parametrize("image_size", [32, 64, 96])
@pytest.mark.parametrize("name", [*NETWORKS, *OURS_ALONE])
def test_every_network_fits_its_image_size(name: str, image_size: int) -> None:
    with torch.device("meta"):
        network = (NETWORKS | OURS_ALONE)[name](num_classes=7, image_size=image_size)
        output = network(torch.zeros(2, 3, image_size, image_size))
    logits = output if isinstance(output, tuple) else (output,)
    assert all(part.shape == (2, 7) for part in logits)


@pytest.mark.parametrize(
    ("build", "minimum"),
    [
        (lambda s: VGG("vgg11", hidden=[8], image_size=s), 32),
        (lambda s: VGG([8, "M", 8, "M"], hidden=[8], image_size=s), 4),
        (lambda s: TinyVGG(image_size=s), 16),
        (lambda s: GoogLeNet(image_size=s, small_stem=False), 15),
        (lambda s: AlexNet(image_size=s), 15),
        (lambda s: NIN(image_size=s), 4),
    ],
    ids=["vgg11", "vgg_custom", "tinyvgg", "googlenet", "alexnet", "nin"],
)
def test_too_small_an_image_is_refused_with_the_smallest_that_works(
    build: Callable[[int], nn.Module], minimum: int
) -> None:
    with pytest.raises(ValueError, match=rf"image_size={minimum - 1} is too small for .* at least {minimum} px"):
        build(minimum - 1)
    with torch.device("meta"):
        network = build(minimum).eval()
        assert network(torch.zeros(1, 3, minimum, minimum)).shape == (1, 1000)


def test_wrong_options_of_a_network_are_named() -> None:
    with pytest.raises(ValueError, match=r"Unknown VGG stages 'vgg12'.*vgg11, vgg13"):
        VGG("vgg12")
    with pytest.raises(ValueError, match="not 'X' in"):
        VGG([8, "X"])
    with pytest.raises(ValueError, match="begin with a convolution"):
        VGG(["M", 8])
    with pytest.raises(ValueError, match="No ResNet of depth 19: choose one of 18, 34, 50, 101"):
        ResNet(19)
    with pytest.raises(ValueError, match=r"No CIFAR ResNet of depth 21: it is 6n \+ 2"):
        CifarResNet(21)


def test_googlenet_returns_its_heads_by_name_in_train_mode_and_does_not_run_them_in_eval_mode() -> None:
    network = GoogLeNet(num_classes=5, image_size=32, small_stem=False)
    images = torch.randn(2, 3, 32, 32)
    output = network.train()(images)
    assert isinstance(output, GoogLeNetOutput)
    assert output._fields == ("logits", "aux1", "aux2")
    # Each head hangs where the paper has it: its loss reaches 4a, and only the second one's reaches 4b to 4d.
    for loss, reaches_4d in [(output.aux1.sum(), False), (output.aux2.sum(), True)]:
        network.zero_grad()
        loss.backward(retain_graph=True)
        assert network.inception4a.branch1.conv.weight.grad.abs().sum() > 0
        assert (network.inception4d.branch1.conv.weight.grad is not None) == reaches_4d
        assert network.inception4e.branch1.conv.weight.grad is None

    def refuse(*_: Any) -> None:
        raise AssertionError("a head was run")

    network.aux1.register_forward_hook(refuse)
    network.aux2.register_forward_hook(refuse)
    assert network.eval()(images).shape == (2, 5)


def test_googlenet_without_heads_returns_logits_in_both_modes() -> None:
    network = GoogLeNet(num_classes=5, image_size=32, small_stem=False, aux_heads=False)
    assert not any(name.startswith("aux") for name, _ in network.named_parameters())
    assert isinstance(network(torch.randn(2, 3, 32, 32)), Tensor)


def test_googlenets_paper_kernel_is_5x5_and_torchvisions_is_3x3() -> None:
    with torch.device("meta"):
        assert GoogLeNet().inception3a.branch3[1].conv.kernel_size == (3, 3)
        paper = GoogLeNet(true_5x5=True)
    assert paper.inception3a.branch3[1].conv.kernel_size == (5, 5)
    assert paper.torchvision_name is None


def test_transform_input_is_torchvisions() -> None:
    network = GoogLeNet(num_classes=1000, transform_input=True).eval()
    twin = torchvision_twin(network, transform_input=True)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(network(images), twin(images))
        network.transform_input = False
        images_by_half = images * torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        images_by_half = (images_by_half + torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1) - 0.5) / 0.5
        torch.testing.assert_close(network(images_by_half), twin(images))


def test_the_padded_shortcut_skips_pixels_and_adds_zero_channels() -> None:
    shortcut = CifarResNet(8).layer2[0].downsample
    assert not list(shortcut.parameters())
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).view(1, 2, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 4, 2, 2)
    assert out[0, 0].tolist() == [[0, 2], [8, 10]]
    assert out[0, 2:].abs().sum() == 0


@pytest.mark.parametrize("name", ["vgg11", "alexnet", "nin", "resnet18", "resnet20_cifar"])
def test_convolutions_start_from_kaimings_normal_fan_out(name: str) -> None:
    torch.manual_seed(0)
    network = (NETWORKS | OURS_ALONE)[name](num_classes=10, image_size=32)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.03)
            assert module.bias is None or not module.bias.any()


def test_googlenet_starts_from_a_truncated_normal() -> None:
    network = GoogLeNet(num_classes=10, image_size=32)
    weight = network.inception5b.branch2[1].conv.weight
    assert weight.abs().max() <= 0.02
    assert weight.std().item() == pytest.approx(0.01 * 0.88, rel=0.02)  # 0.88: what truncation at two leaves


def without_dropout(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


@pytest.mark.parametrize("image_size", [32, 96])
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in [*NETWORKS, *OURS_ALONE]]
)
def test_every_network_overfits_one_batch(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    network = without_dropout((NETWORKS | OURS_ALONE)[name](num_classes=4, image_size=image_size)).train()
    images = F.interpolate(torch.randn(4, 3, 4, 4), image_size)  # large patches, so that maps keep them apart
    labels = torch.arange(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-4 if count(network) > 1e5 else 3e-3)
    for _ in range(80):
        output = network(images)
        parts = output if isinstance(output, tuple) else (output,)
        loss = torch.stack([F.cross_entropy(part, labels) for part in parts]).sum()
        if loss < 0.1 * len(parts):
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"the loss is still {loss.item():.3f}")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "epochs"), [("vgg16", 5), ("vgg19", 5), ("alexnet", 5), ("nin", 10)])
def test_networks_without_batch_norm_leave_chance_on_the_digits(
    name: str, epochs: int, config: Callable[..., DictConfig]
) -> None:
    from src.train import train

    metrics, _ = train(config(f"model={name}", "data=digits", "trainer=cpu", f"trainer.max_epochs={epochs}"))
    assert metrics["test/acc"] > 0.4


@pytest.mark.parametrize("name", models.list_models(module=models, exclude="regnet_*"))
def test_every_classification_network_of_torchvision_gets_a_head(name: str) -> None:
    with torch.device("meta"):
        network = TorchvisionNetwork(name, num_classes=7, image_size=224)
        assert network.get_submodule(network.head[0]).weight.shape[0] == 7


def test_regnets_which_compute_their_widths_get_a_head_too() -> None:
    network = TorchvisionNetwork("regnet_y_400mf", num_classes=7, image_size=32)
    assert network.get_submodule(network.head[0]).weight.shape[0] == 7


def test_a_misspelt_network_of_torchvision_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no classification network 'resnet19'\. Did you mean .*resnet18"):
        TorchvisionNetwork("resnet19")


def test_timm_networks_get_a_head_or_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("timm", reason="timm is an optional extra")
    network = TimmNetwork("resnet10t", num_classes=7, image_size=32).eval()
    assert network(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert network.get_submodule(network.head[0]).out_features == 7
    with pytest.raises(ValueError, match=r"timm has no network 'resnet19t'\. Did you mean"):
        TimmNetwork("resnet19t")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        TimmNetwork()
