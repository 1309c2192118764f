"""Weights to start from: torchvision's published ones, a checkpoint of a run, or a plain state dict."""

from __future__ import annotations

import hashlib
import logging
import re
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
    hash, kept in torch's hub folder) or the path of a checkpoint of ours or of a plain state dict.

    Raises FileNotFoundError if there is no such file or no connection, ValueError if the network has no published
    weights or the file is truncated, altered or no state dict.
    """
    if str(source) == "imagenet":
        return _read_imagenet(network)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"model.weights={source}: there is no such file. Give 'imagenet' or the path of a checkpoint or state dict."
        )
    content = _load(path)
    preprocess: dict[str, Any] = {}
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        if isinstance(content.get("preprocess"), dict):
            preprocess = content["preprocess"]
        content = {
            name.removeprefix("network."): value
            for name, value in content["state_dict"].items()
            if name.startswith("network.")
        }
    if not isinstance(content, dict) or not content or not all(map(_is_entry, content.items())):
        raise ValueError(
            f"{path} holds no weights: it must be a checkpoint of a run or a state dict, parameter names with tensors."
        )
    return Weights(str(path), _named_for(network, content), preprocess.get("mean"), preprocess.get("std"))


def load_weights(network: nn.Module, weights: Weights) -> list[str]:
    """Copy `weights` into `network` and return the names that stay newly initialised.

    These are the layers of `network.head` whose shape follows another number of classes or another image size, and
    the auxiliary heads that the weights lack. Everything else must be there, in the same shape.

    Raises ValueError, with the network unchanged, if the weights do not fit.
    """
    own = network.state_dict()
    head = tuple(getattr(network, "head", ()))
    training_only = tuple(getattr(network, "training_only", ()))
    given = {n: t for n, t in weights.state_dict.items() if n in own or not _under(n, training_only)}
    missing = [n for n in own if n not in given and not n.endswith(".num_batches_tracked")]
    fresh = [n for n in missing if _under(n, training_only)]
    missing = [n for n in missing if n not in fresh]
    unknown = [n for n in given if n not in own]
    reshaped = [n for n in given if n in own and given[n].shape != own[n].shape]
    replaced = [n for n in reshaped if _under(n, head) and _one_side_differs(given[n], own[n])]
    misshapen = [n for n in reshaped if n not in replaced]
    if missing or unknown or misshapen:
        raise ValueError(_misfit(network, weights.source, own, given, missing, unknown, misshapen))
    # A layer is replaced whole: a fresh weight does not go with an old bias.
    layers = {n.rpartition(".")[0] for n in replaced}
    fresh += [n for n in own if n.rpartition(".")[0] in layers]
    network.load_state_dict({**own, **{n: t for n, t in given.items() if n not in fresh}})
    note = f"; newly initialised: {', '.join(fresh)}" if fresh else ""
    log.info("model.weights=%s: %d of %d entries loaded%s", weights.source, len(own) - len(fresh), len(own), note)
    return fresh


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
    state = _named_for(network, _load(path))
    training_only = tuple(getattr(network, "training_only", ()))
    state = {n: t for n, t in state.items() if not _under(n, training_only)}  # published, but never trained
    preset = published.transforms()
    mean, std = list(preset.mean), list(preset.std)
    if name in ("googlenet", "inception_v3") and not getattr(network, "transform_input", False):
        mean, std = [0.5] * 3, [0.5] * 3  # what `transform_input` would make of ImageNet's
    return Weights(f"imagenet ({path.name})", state, mean, std)


def _check_hash(path: Path) -> None:
    """Compare the file with the start of its SHA-256, which torchvision puts into the name."""
    expected = re.search(r"-([a-f0-9]{8,})\.", path.name)
    assert expected is not None, path.name
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    actual = digest.hexdigest()
    if not actual.startswith(expected[1]):
        raise ValueError(
            f"{path} is truncated or altered: its SHA-256 begins with {actual[:8]}, not {expected[1]}. "
            "Delete the file and try again."
        )


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling broken bytes may raise
        reason = str(error).strip().split("\n")[0][:120]
        raise ValueError(
            f"{path} is truncated, or no file of weights that is safe to open ({type(error).__name__}: {reason}). "
            "Save a state dict of tensors with torch.save, or give a checkpoint of a run."
        ) from error


def _is_entry(entry: tuple[Any, Any]) -> bool:
    return isinstance(entry[0], str) and isinstance(entry[1], Tensor)


def _named_for(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's own names in the names of a network that wraps torchvision's."""
    prefix = getattr(network, "torchvision_prefix", "")
    if any(name.startswith(prefix) for name in state):
        return state
    return {prefix + name: tensor for name, tensor in state.items()}


def _under(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def _one_side_differs(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim and sum(m != n for m, n in zip(a.shape, b.shape, strict=True)) == 1


def _misfit(
    network: nn.Module,
    source: str,
    own: dict[str, Tensor],
    given: dict[str, Tensor],
    missing: list[str],
    unknown: list[str],
    misshapen: list[str],
) -> str:
    def first(names: list[str]) -> str:
        return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

    problems = []
    if missing:
        problems.append(f"{len(missing)} of the network's {len(own)} entries are missing ({first(missing)})")
    if unknown:
        problems.append(f"{len(unknown)} are unknown to it ({first(unknown)})")
    if misshapen:
        shapes = [f"{n} {tuple(given[n].shape)}, here {tuple(own[n].shape)}" for n in misshapen]
        problems.append(f"{len(misshapen)} have another shape ({first(shapes)})")
    message = f"model.weights={source} does not fit this {type(network).__name__}: {'; '.join(problems)}."
    stem = next(iter(own))
    if not missing and not unknown and misshapen == [stem]:
        choice = " (or model.network.small_stem=false)" if hasattr(network, "small_stem") else ""
        return (
            f"{message} Only the first convolution differs, which is smaller under 64 px: for weights of larger images "
            f"set data.image_size=64 or more{choice}."
        )
    return f"{message} These are weights of another network, or of one built with other options."
