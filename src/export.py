"""Writes a run's network as one file for use elsewhere: uint8 images in, probabilities out.

    python -m src.export run=latest format=onnx
    python -m src.export run=logs/train/runs/RUN format=torch path=model.pt2

The file takes `images`, uint8 RGB (B, 3, S, S) for any B, or grey (B, 1, S, S) where the run has one channel, and
gives `probabilities`, float (B, K); centre crop and normalisation are inside, class names and S in its metadata.
Resizing to S px is part of decoding, as in training: no two runtimes' resizing rounds alike.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from src import cli
from src.runs.folder import whole
from src.runs.run import Run, open_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    Function = Callable[[Tensor], Tensor]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # of the logits; a millionth where the largest is above 100


def export(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Exports what the config says; the file appears under its name once it has been checked.

    Returns:
        The numbers `bytes`, `max_error` (of the logits, up to the constant that softmax drops), `eager_ms` and
        `exported_ms` (median, one image); and the objects: cfg, run, path, shape (C, S, S).

    Raises:
        ValueError, RunError, OSError: the config asks for something that cannot be done.
        ModuleNotFoundError: ONNX is not installed.
    """
    if cfg.format not in ENDINGS:
        raise ValueError(f"format={cfg.format} is unknown; choose {' or '.join(ENDINGS)}.")
    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    path = Path(cfg.path).expanduser() if cfg.path else run.folder / "export" / f"model{ENDINGS[cfg.format]}"
    if path.is_dir():
        raise ValueError(f"path={path} cannot be written: it is a folder.")
    network, example = _deployed(run)
    metadata = {"classes": json.dumps(run.classes), "image_size": str(example.shape[-1])}
    with whole(path) as partial:
        exported = (_write_onnx if cfg.format == "onnx" else _write_torch)(network, example, metadata, partial)
        error = _largest_error(network, exported, example)
        if not error <= TOLERANCE:
            raise ValueError(f"{path} is not written: it is {error:.1e} from the checkpoint (allowed: {TOLERANCE}).")
        metrics = {"bytes": partial.stat().st_size, "max_error": error}
        metrics |= {"eager_ms": _latency(network, example), "exported_ms": _latency(exported, example)}
    return metrics, {"cfg": cfg, "run": run, "path": path, "shape": (*example.shape[1:],)}


def _deployed(run: Run) -> tuple[nn.Module, Tensor]:
    """The network with its preprocessing before and softmax behind it, on the CPU.

    And images to try it with: noise, among it a black and a white one, uint8 (5, C, S, S). More than one, since a batch
    of one would fix the size to one.
    """
    import torch

    from src.data.preprocess import Preprocess

    preprocess = Preprocess(**run.checkpoint["preprocess"])
    network = run.network.to(memory_format=torch.contiguous_format)
    shape = (5, preprocess.channels, preprocess.shorter, preprocess.shorter)
    generator = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    example[1], example[-1] = 0, 255
    deployed = torch.nn.Sequential(preprocess, network, torch.nn.Softmax(dim=1))
    return deployed.eval().requires_grad_(False), example


def _write_torch(network: nn.Module, example: Tensor, metadata: dict[str, str], path: Path) -> Function:
    import torch

    program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files=metadata)
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, example: Tensor, metadata: dict[str, str], path: Path) -> Function:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it, and it needs onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"format=onnx needs {error.name}: pip install -e .[export]") from error

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own affairs
        names: Any = {"input_names": ["images"], "output_names": ["probabilities"], "dynamic_shapes": ({0: "batch"},)}
        program: Any = torch.onnx.export(network, (example,), dynamo=True, verbose=False, **names)
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _largest_error(network: Function, exported: Function, images: Tensor) -> float:
    """Of the logits, over batches of several sizes; above 100 as a share of the largest. NaN where one gives NaN."""
    from torch import cat

    sizes = (1, 2, len(images))
    expected, got = (cat([function(images[:size]) for size in sizes]) for function in (network, exported))
    there = ~(expected <= 1e-30)  # smaller ones are at the end of float32
    logits = expected[there].log()  # up to a constant for each image
    scale = (logits.abs().max() / 100).clamp_min(1)
    return float((got[there].log() - logits).abs().max() / scale)


def _latency(function: Function, images: Tensor) -> float:
    """Median milliseconds for the first image."""
    from torch import get_num_threads
    from torch.utils.benchmark import Timer

    timer = Timer("function()", globals={"function": lambda: function(images[:1])}, num_threads=get_num_threads())
    return 1000 * timer.blocked_autorange(min_run_time=0.5).median


def main(cfg: DictConfig) -> None:
    metrics, objects = export(cfg)
    shape, checkpoint = objects["shape"], objects["run"].checkpoint_path.stat().st_size
    layout = f"{'RGB' if shape[0] == 3 else 'grey'} (B, {', '.join(map(str, shape))})"
    print(f"{objects['path']}: {metrics['bytes'] / 2**20:.2f} MiB (the checkpoint: {checkpoint / 2**20:.2f} MiB)")
    print(f"takes uint8 {layout}, gives probabilities (B, {len(objects['run'].classes)})")
    print(f"largest difference of a logit from the checkpoint's: {metrics['max_error']:.1e}")
    print(f"one image on the CPU: {metrics['exported_ms']:.2f} ms, eager {metrics['eager_ms']:.2f} ms")


if __name__ == "__main__":
    cli.run(main, "export")
