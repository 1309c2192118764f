"""Networks of other libraries, with their classifier made for `num_classes`."""

import difflib
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class TorchvisionNetwork(nn.Module):
    """Any classification network of torchvision by its name, randomly initialised as torchvision does.

    images (B, 3, S, S) -> logits (B, num_classes). Vision transformers and MaxViT are built for `image_size`;
    auxiliary heads are left out.

    Raises ValueError for a name that torchvision does not have, and for other than three channels.
    """

    torchvision_prefix = "network."
    training_only = ("network.aux1", "network.aux2", "network.AuxLogits")

    def __init__(
        self, name: str = "shufflenet_v2_x0_5", num_classes: int = 1000, image_size: int = 32, channels: int = 3
    ) -> None:
        super().__init__()
        if channels != 3:
            raise ValueError(
                f"torchvision's networks take three channels, not {channels}: set data.channels=3, or take model=timm."
            )
        from torchvision import models

        names = models.list_models(module=models)
        if name not in names:
            raise ValueError(f"torchvision has no classification network '{name}'.{_nearest(name, names)}")
        options: dict[str, Any] = {}
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        elif name.startswith("vit_"):
            options = {"image_size": image_size}
        elif name.startswith("maxvit_"):
            options = {"input_size": (image_size, image_size)}
        self.network = models.get_model(name, weights=None, num_classes=num_classes, **options)
        self.torchvision_name = name
        *_, last = (name for name, module in self.named_modules() if isinstance(module, nn.Linear | nn.Conv2d))
        self.head = (last,)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


class TimmNetwork(nn.Module):
    """Any network of timm by its name, randomly initialised as timm does. Needs the extra `timm`.

    images (B, channels, S, S) -> logits (B, num_classes). Networks of a fixed input size are built for `image_size`.
    `options` go to `timm.create_model` as they are, such as drop_path_rate.

    Raises ModuleNotFoundError without timm, ValueError for a name that timm does not have, or an option that the
    network does not.
    """

    def __init__(
        self,
        name: str = "resnet10t",
        num_classes: int = 1000,
        image_size: int = 32,
        channels: int = 3,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"model=timm (network '{name}') needs timm: pip install -e '.[timm]'") from error
        if not timm.is_model(name):
            raise ValueError(f"timm has no network '{name}'.{_nearest(name, timm.list_models())}")
        if options and "checkpoint_path" in options:
            raise ValueError("model.network.options.checkpoint_path: say model.weights=PATH, which is read safely.")
        configuration = timm.get_pretrained_cfg(name)
        size = {"img_size": image_size} if configuration and configuration.fixed_input_size else {}
        self.name, self.options = name, {"in_chans": channels, **size, **(options or {})}
        try:
            network: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, **self.options)
        except TypeError as error:
            raise ValueError(f"model.network.options={options} do not suit timm's {name}: {error}") from error
        self.network, classifier = network, network.pretrained_cfg["classifier"]
        layers = (classifier,) if isinstance(classifier, str) else classifier
        self.head = tuple(f"network.{layer}" for layer in layers)

    def pretrained(self) -> tuple[dict[str, Tensor], list[float], list[float]]:
        """timm's own weights by the names here, with the mean and deviation of the images that they saw.

        Raises FileNotFoundError where they cannot be downloaded, ValueError where timm has none.
        """
        import timm

        try:
            twin: Any = timm.create_model(self.name, pretrained=True, **self.options)
        except OSError as error:
            raise FileNotFoundError(
                f"model.weights=pretrained: timm could not download the weights of {self.name} ({error}). With a file "
                "from elsewhere: 'model.network.options={pretrained_cfg_overlay: {file: PATH}}'"
            ) from error
        except RuntimeError as error:
            raise ValueError(f"model.weights=pretrained: timm has none that fit {self.name} ({error})") from error
        state = {f"network.{name}": tensor for name, tensor in twin.state_dict().items()}
        return state, list(twin.pretrained_cfg["mean"]), list(twin.pretrained_cfg["std"])

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)


def _nearest(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=3)
    return f" Did you mean {' or '.join(near)}?" if near else f" Choose from: {', '.join(names)}."
