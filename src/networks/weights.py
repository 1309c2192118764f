"""Weights to start from: torchvision's or timm's published ones, a checkpoint of a run, or a plain state dict."""

import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)


class Weights(NamedTuple):
    """Parameters and buffers by the network's names, and the normalisation they were trained with (None: unknown)."""

    source: str
    state_dict: dict[str, Tensor]
    mean: list[float] | None  # per channel, of images in [0, 1]
    std: list[float] | None


def read_weights(source: str | Path, network: nn.Module) -> Weights:
    """Read weights for `network`, running no code from the file.

    `source` is "imagenet" (torchvision's default weights of the network's counterpart, by their official URL and
    hash, kept in torch's hub folder), "pretrained" (timm's own, of a network of timm), or the path of a checkpoint of
    ours or of a plain state dict.

    Raises FileNotFoundError if there is no such file or no connection, ValueError if the network has no published
    weights or the file is truncated, altered or no state dict.
    """
    if str(source) == "imagenet":
        return _read_imagenet(network)
    if str(source) == "pretrained":
        return _read_pretrained(network)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"model.weights={source}: there is no such file. Give 'imagenet', 'pretrained' (timm's) or the path of a "
            "checkpoint or state dict."
        )
    content = _load(path)
    state, preprocess = content.get("state_dict", content), content.get("preprocess") or {}
    if state is not content:  # a run's checkpoint
        state = {n.removeprefix("network."): t for n, t in state.items() if str(n).startswith("network.")}
    if not state or not all(isinstance(n, str) and isinstance(t, Tensor) for n, t in state.items()):
        raise ValueError(
            f"{path} holds no weights: it must be a checkpoint of a run or a state dict, parameter names with tensors."
        )
    return Weights(str(path), _named_for(network, state), preprocess.get("mean"), preprocess.get("std"))


def load_weights(network: nn.Module, weights: Weights) -> list[str]:
    """Copy `weights` into `network` and return the names that stay newly initialised.

    These are the layers of `network.head` whose shape follows another number of classes or another image size, and
    the auxiliary heads that the weights lack. Everything else must be there, in the same shape.

    Raises ValueError, with the network unchanged, if the weights do not fit.
    """
    own = network.state_dict()
    head, training_only = getattr(network, "head", ()), getattr(network, "training_only", ())
    head = ("head",) if isinstance(head, nn.Module) else (head,) if isinstance(head, str) else head
    given = {n: t for n, t in weights.state_dict.items() if n in own or not _under(n, training_only)}
    absent = [n for n in own if n not in given and not n.endswith(".num_batches_tracked")]
    reshaped = [n for n in own if n in given and given[n].shape != own[n].shape]
    missing = [n for n in absent if not _under(n, training_only)]
    unknown = [n for n in given if n not in own]
    odd = [n for n in reshaped if not _under(n, head)]
    problems = {
        f"{len(missing)} of the network's {len(own)} entries are missing": missing,
        f"{len(unknown)} are unknown to it": unknown,
        f"{len(odd)} have another shape": [f"{n} {tuple(given[n].shape)}, here {tuple(own[n].shape)}" for n in odd],
    }
    told = [f"{what} ({', '.join(n[:3])}{', ...' * (len(n) > 3)})" for what, n in problems.items() if n]
    if told:
        advice = "These are weights of another network, or of one built with other options."
        first = next(iter(own))
        if not missing and not unknown and not head:
            advice = (
                "The last layer may differ, as it follows the number of classes, if the network says which that is: "
                'give it an attribute, such as head = ("fc",).'
            )
        if not missing and not unknown and odd == [first]:
            choice = " (or model.network.small_stem=false)" if hasattr(network, "small_stem") else ""
            advice = (
                "Only the first convolution differs, which is smaller under 64 px: for weights of larger images set "
                f"data.image_size=64 or more{choice}."
            )
            if given[first].shape[1:2] != own[first].shape[1:2]:
                advice = f"These are weights for images of {given[first].shape[1]} channels; set data.channels to that."
        raise ValueError(
            f"model.weights={weights.source} does not fit this {type(network).__name__}: {'; '.join(told)}. {advice}"
        )
    # A layer is replaced whole: a fresh weight does not go with an old bias.
    layers = {n.rpartition(".")[0] for n in reshaped}
    fresh = [n for n in own if n in absent or n.rpartition(".")[0] in layers]
    network.load_state_dict({**own, **{n: t for n, t in given.items() if n not in fresh}})
    note = f"; newly initialised: {', '.join(fresh)}" if fresh else ""
    log.info("model.weights=%s: %d of %d entries loaded%s", weights.source, len(own) - len(fresh), len(own), note)
    return fresh


def _read_pretrained(network: nn.Module) -> Weights:
    if not hasattr(network, "pretrained"):
        raise ValueError(
            f"model.weights=pretrained is for networks of timm (model=timm), and this is a {type(network).__name__}: "
            "give 'imagenet', or the path of a checkpoint or state dict."
        )
    return Weights("pretrained", *network.pretrained())  # type: ignore[operator]


def _read_imagenet(network: nn.Module) -> Weights:
    from torchvision import models

    name = getattr(network, "torchvision_name", None)
    if name is None:
        raise ValueError(
            f"model.weights=imagenet: torchvision has no network with the layers of this {type(network).__name__}, so "
            "there are no published weights for it. Give the path of a checkpoint, or choose another model."
        )
    published = models.get_model_weights(name).DEFAULT
    path = Path(torch.hub.get_dir(), "checkpoints", published.url.rpartition("/")[2])
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        log.info("downloading %s to %s", published.url, path)
        try:
            torch.hub.download_url_to_file(published.url, str(path))
        except OSError as error:
            raise FileNotFoundError(
                f"model.weights=imagenet needs {path.name}, and it could not be downloaded ({error}). "
                f"Download {published.url} by other means and put the file into {path.parent}"
            ) from error
    _check_hash(path)
    # The heads that training alone runs are published, but were never trained.
    training_only = getattr(network, "training_only", ())
    state = {n: t for n, t in _named_for(network, _load(path)).items() if not _under(n, training_only)}
    preset = published.transforms()
    mean, std = list(preset.mean), list(preset.std)
    if name in ("googlenet", "inception_v3") and not getattr(network, "transform_input", False):
        mean, std = [0.5] * 3, [0.5] * 3  # what `transform_input` would make of ImageNet's
    return Weights(f"imagenet ({path.name})", state, mean, std)


def _check_hash(path: Path) -> None:
    """Compare the file with the start of its SHA-256 in torchvision's name for it: torch would load altered bytes."""
    expected = path.stem.rpartition("-")[2]
    actual = hashlib.sha256(path.read_bytes()).hexdigest()[: len(expected)]
    if actual != expected:
        raise ValueError(
            f"{path} is truncated or altered: its SHA-256 begins with {actual}, not {expected}. "
            "Delete the file and try again."
        )


def _load(path: Path) -> dict[Any, Any]:
    """The dict in a file; an empty one where it holds something else."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling broken bytes may raise
        reason = str(error).strip().split("\n")[0][:120]
        raise ValueError(
            f"{path} is truncated, or no file of weights that is safe to open ({type(error).__name__}: {reason}). "
            "Save a state dict of tensors with torch.save, or give a checkpoint of a run."
        ) from error
    return content if isinstance(content, dict) else {}


def _named_for(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's own names in the names of a network that wraps torchvision's."""
    prefix = getattr(network, "torchvision_prefix", "")
    known = any(name.startswith(prefix) for name in state)
    return state if known else {prefix + name: tensor for name, tensor in state.items()}


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
