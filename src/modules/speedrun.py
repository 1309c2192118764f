"""The LightningModule of a network whose first layer whitens the images."""

from typing import Any

from src.modules.classifier import ImageClassifier


class WhitenedClassifier(ImageClassifier):
    """Shows the network some training images before the training, to make its first layer from (`network.whiten`).

    They are evenly spaced in the training set, not augmented: every process and every resumed run shows the same. A
    layer that whitens already, as that of pretrained weights, stays what the other layers were trained on.

    Args:
        whitening_images: how many; 0 leaves the layer as it is, and trains it.
    """

    def __init__(self, *args: Any, whitening_images: int = 5000, **options: Any) -> None:
        super().__init__(*args, **options)
        self.whitening_images = whitening_images
        if whitening_images:
            self.network.whitening.requires_grad_(False)  # before a callback that freezes the network asks what trains

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit" and self.whitening_images and not self.network.whitens:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            images, _ = data.examples("train", self.whitening_images)
            self.network.whiten(data.preprocess(images))
