"""Where a classifier looks, what its first layer has learnt to see, and what later ones make of it."""

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from src import figures
from src.evaluation.looks import first_filters, grad_cam, maps_of, one_of_each_size
from src.runs.run import Run
from src.studies import Evaluation
from src.studies.classifier import most_confident


class Looks:
    """Adds the figures grad_cam_wrong, grad_cam_right, first_filters and feature_maps.

    Filters are those of a convolution that sees the images, where there is one. Grad-CAM is taken at the last layer
    that gives a map of more than one pixel, in float32. The run's network is left as it is: a copy is looked into.

    Raises:
        ValueError: no layer gives a map.
    """

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        self.classes, self.network = run.classes, deepcopy(run.network).float().requires_grad_(False)
        size, mean = (run.checkpoint["preprocess"][name] for name in ("image_size", "mean"))
        maps = maps_of(self.network, torch.zeros(1, len(mean), size, size))
        if not maps:
            raise ValueError(f"cam=true: no layer of {type(run.network).__name__} gives a map of more than one pixel.")
        self.layers, self.last = one_of_each_size(maps), list(maps)[-1]
        self.where = "{} ({} x {})".format(self.last or "the network", *maps[self.last].shape[2:])

    def __call__(self, evaluation: Evaluation) -> None:
        if evaluation.trainer.is_global_zero:
            evaluation.figures |= dict(self._draw(evaluation, evaluation.trainer.strategy.root_device))

    def _draw(self, evaluation: Evaluation, device: torch.device) -> Iterator[tuple[str, Any]]:
        network, preprocess = self.network.to(device), evaluation.datamodule.preprocess.to(device)
        for kind, (stored, labels, rows, classes, heading) in most_confident(evaluation, self.classes):
            inputs = preprocess(torch.from_numpy(stored).to(device))
            seen = (inputs - preprocess.shift) / preprocess.scale  # cut as the network's, 0 to 255
            images = seen.round().byte().cpu().numpy()
            asked, told = [rows.argmax(axis=1)], "for the predicted class"
            if kind == "wrong":
                asked, told = [*asked, labels], f"{told} and for the true class"
            heat = [grad_cam(network, inputs, each, self.last) for each in asked]
            title = f"{heading}\nGrad-CAM at {self.where}: {told}"
            yield f"grad_cam_{kind}", figures.heat_maps(images, heat, labels, rows, classes, title)
        if (found := first_filters(network, inputs.shape[1])) is not None:
            yield "first_filters", figures.filters(found[1], f"{type(network).__name__}: {found[0]}")
        few = np.unique(labels, return_index=True)[1][:4]  # of different classes, the last images: the right ones
        if len(few):
            maps = {name: each.cpu().numpy() for name, each in maps_of(network, inputs[few], self.layers).items()}
            title = f"{evaluation.title}: maps of some layers, each on a scale of its own"
            yield "feature_maps", figures.feature_maps(images[few], maps, title)
