"""Writes a run's network as one file for use elsewhere: uint8 images in, probabilities out.

    python -m src.export run=latest format=onnx
    python -m src.export run=logs/train/runs/RUN format=torch path=model.pt2

The file takes `images`, uint8 RGB (B, 3, S, S) for any B, and gives `probabilities`, float (B, K); centre crop and
normalisation are inside, class names and S in its metadata. Resizing to S px is part of decoding, as in training:
no two runtimes' resizing rounds alike.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from src import cli
from src.run import Run, open_run

if TYPE_CHECKING:
    from torch import Tensor, nn

    Function = Callable[[Tensor], Tensor]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}
TOLERANCE = 1e-4  # of the logits; a millionth where the largest is above 100


def export(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Exports what the config says; the file appears under its name once it has been checked.

    Returns:
        The numbers `bytes`, `max_error` (of the logits, up to the constant that softmax drops), `eager_ms` and
        `exported_ms` (median, one image); and the objects: cfg, run, path.

    Raises:
        ValueError, RunError: the config asks for something that cannot be done.
        ModuleNotFoundError: ONNX is not installed.
    """
    if cfg.format not in ENDINGS:
        raise ValueError(f"format={cfg.format} is unknown; choose {' or '.join(ENDINGS)}.")
    if cfg.run is None and cfg.ckpt_path is None:
        raise ValueError("say what to export: run=logs/train/runs/RUN, run=latest or ckpt_path=FILE.ckpt")
    run = open_run(cfg.ckpt_path or cfg.run)
    path = Path(cfg.path).expanduser() if cfg.path else run.folder / "export" / f"model{ENDINGS[cfg.format]}"
    network, side = _deployed(run)
    with _written_whole(path) as partial:
        write = {"onnx": _write_onnx, "torch": _write_torch}[cfg.format]
        exported = write(network, side, {"classes": json.dumps(run.classes), "image_size": str(side)}, partial)
        error = _largest_error(network, exported, side)
        if not error <= TOLERANCE:
            raise ValueError(
                f"the exported network differs from the checkpoint by {error:.1e} (allowed: {TOLERANCE:.0e}), so "
                f"{path} was not written; try the other format."
            )
        metrics = {
            "bytes": partial.stat().st_size,
            "max_error": error,
            "eager_ms": _latency(network, side),
            "exported_ms": _latency(exported, side),
        }
    return metrics, {"cfg": cfg, "run": run, "path": path, "side": side}


@contextmanager
def _written_whole(path: Path) -> Any:
    """Gives the name of a file beside `path`; it becomes `path` if all goes well, and vanishes otherwise."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
    except OSError as error:
        reason = "a file is in the way" if isinstance(error, FileExistsError) else error.strerror
        raise ValueError(f"path={path} cannot be written: {reason} ({error.filename}).") from error
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _deployed(run: Run) -> tuple[nn.Module, int]:
    """The network with its preprocessing before and softmax behind it, on the CPU, and the side of its images."""
    import torch
    from torch import nn

    from src.data.augment import Preprocess

    class Deployed(nn.Module):
        def __init__(self, preprocess: Preprocess, network: nn.Module) -> None:
            super().__init__()
            self.preprocess, self.network = preprocess, network

        def forward(self, images: Tensor) -> Tensor:
            return self.network(self.preprocess(images)).softmax(dim=1)

    preprocess = Preprocess(**run.checkpoint["preprocess"])
    network = run.network.to(memory_format=torch.contiguous_format)
    return Deployed(preprocess, network).eval(), preprocess.shorter


def _write_torch(network: nn.Module, side: int, metadata: dict[str, str], path: Path) -> Function:
    import torch

    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)  # a batch of one would fix the size to one
    with torch.no_grad():
        program = torch.export.export(network, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path, extra_files=metadata)
    return torch.export.load(path).module()


def _write_onnx(network: nn.Module, side: int, metadata: dict[str, str], path: Path) -> Function:
    import torch

    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"format=onnx needs {error.name}: pip install -e .[export]") from error

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own affairs
        torch.onnx.export(
            network, (example,), path, dynamo=True, dynamic_shapes=({0: "batch"},), input_names=["images"],
            output_names=["probabilities"], external_data=False, verbose=False,
        )  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _largest_error(network: Function, exported: Function, side: int) -> float:
    """Of the logits, on noise and flat images in batches of several sizes; above 100 as a share of the largest."""
    import torch

    generator, worst = torch.Generator().manual_seed(0), 0.0
    for size in (1, 2, 5):
        images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        images[-1] = 255 * (size % 2)
        with torch.no_grad():
            expected, got = network(images), exported(images)
        if got.shape != expected.shape:
            return float("inf")
        there = expected > 1e-30  # smaller ones are at the end of float32
        logits = expected[there].log()  # up to a constant for each image
        worst = max(worst, float((got[there].log() - logits).abs().max() / (logits.abs().max() / 100).clamp_min(1)))
    return worst


def _latency(function: Function, side: int) -> float:
    """Median milliseconds for one image, of as many calls as fit into half a second (at least 5)."""
    import torch

    image = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    seconds: list[float] = []
    with torch.no_grad():
        for _ in range(3):
            function(image)
        while len(seconds) < 5 or sum(seconds) < 0.5:
            start = time.perf_counter()
            function(image)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


def main(cfg: DictConfig) -> None:
    metrics, objects = export(cfg)
    side, checkpoint = objects["side"], objects["run"].checkpoint_path
    sizes = [bytes / 2**20 for bytes in (metrics["bytes"], checkpoint.stat().st_size)]
    print(f"{objects['path']}: {sizes[0]:.2f} MiB (the checkpoint with its optimizer: {sizes[1]:.2f} MiB)")
    print(f"takes uint8 RGB (B, 3, {side}, {side}), gives probabilities (B, {len(objects['run'].classes)})")
    print(f"largest difference of a logit from the checkpoint's: {metrics['max_error']:.1e}")
    print(f"one image on the CPU: {metrics['exported_ms']:.2f} ms, eager {metrics['eager_ms']:.2f} ms")


if __name__ == "__main__":
    cli.run(main, "export")
