"""A training step of each network against torchvision's network of the same name."""

import time
from collections.abc import Callable
from functools import partial

import torch
import torchvision
from torch import nn

from src.networks.alexnet import AlexNet
from src.networks.googlenet import GoogLeNet
from src.networks.resnet import ResNet
from src.networks.vgg import VGG
from tests.benchmarks.table import Row, Setting, alternate, wait

BATCH = 16


def pairs(size: int) -> dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]]:
    """Name -> (ours, torchvision's), both with 10 classes; ours as built for 224 px, so that both do the same work."""
    models = torchvision.models
    made: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
        "vgg11": (partial(VGG, "vgg11", 10, size, hidden=(512,), dropout=0.0), partial(_headless, "vgg11", size)),
        "vgg16_bn": (
            partial(VGG, "vgg16", 10, size, batch_norm=True, hidden=(512,), dropout=0.0),
            partial(_headless, "vgg16_bn", size),
        ),
        "resnet18": (partial(ResNet, 18, 10, 224), partial(models.resnet18, num_classes=10)),
        "resnet50": (partial(ResNet, 50, 10, 224), partial(models.resnet50, num_classes=10)),
        "googlenet": (
            partial(GoogLeNet, 10, 224, aux_heads=False),
            partial(models.googlenet, num_classes=10, aux_logits=False, init_weights=False),
        ),
    }
    if size >= 96:
        made["alexnet"] = (partial(AlexNet, 10, size), partial(models.alexnet, num_classes=10))
    return made


def _headless(name: str, size: int) -> nn.Module:
    """torchvision's VGG without its enlargement to 7x7, and with the head of the network it is compared with."""
    network = getattr(torchvision.models, name)()
    network.avgpool = nn.Identity()
    network.classifier = nn.Sequential(
        nn.Linear(512 * (size // 32) ** 2, 512), nn.ReLU(True), nn.Dropout(0.0), nn.Linear(512, 10)
    )
    return network


def step_seconds(network: nn.Module, size: int, device: torch.device, steps: int = 3) -> float:
    """The fastest of some training steps, channels_last, after one to warm up."""
    network = network.to(device=device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    images = torch.randn(BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,), device=device)
    fastest = float("inf")
    for number in range(steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        wait(device)
        if number:
            fastest = min(fastest, time.perf_counter() - start)
    return fastest


def network_rows(setting: Setting) -> list[Row]:
    """Each network at 32 and 96 px: the time of our step by theirs."""
    rows = []
    for size in (32, 96):
        for name, (ours, theirs) in pairs(size).items():
            steps = [partial(step_seconds, build(), size, setting.device) for build in (ours, theirs)]
            ratio, seconds = alternate(*steps, setting.repeats)
            detail = f"{seconds[0] * 1e3:.1f} ms / {seconds[1] * 1e3:.1f} ms"
            rows.append(Row(f"step of {name} at {size} px / torchvision's", ratio, "x", at_most=1.0, detail=detail))
    return rows
