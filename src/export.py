"""Writes a run's network as one file for use elsewhere: uint8 images in, probabilities out.

    python -m src.export run=latest format=onnx
    python -m src.export run=logs/train/runs/RUN format=torch path=model.pt2

The file takes `images`, uint8 RGB (B, 3, S, S) for any B, or grey (B, 1, S, S) where the run has one channel, and
gives `probabilities`, float (B, K); centre crop and normalisation are inside, class names and S in its metadata.
Resizing to S px is part of decoding, as in training: no two runtimes' resizing rounds alike. Of a GAN it takes `noise`,
float (B, Z) from N(0, 1), and `labels`, int64 (B,), and gives `images`, uint8 (B, C, S, S).

`format=safetensors` writes the weights alone, under the network's own names, with the normalisation in the metadata.
Beside the file a model card says what was measured.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from omegaconf import DictConfig

from src import cli
from src.runs.facts import model_card
from src.runs.folder import whole, write_whole
from src.runs.run import Run, open_run
from src.runs.values import check_values

if TYPE_CHECKING:
    from torch import Tensor, nn

    Function = Callable[..., Tensor]

ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
# Of the logits, a millionth where the largest is above 100; of a pixel one level, where it is rounded the other way.
TOLERANCES = {"probabilities": 1e-4, "images": 1}


class Deployed(NamedTuple):
    """A network as it is exported, on the CPU.

    Attributes:
        network: with what comes before and behind it.
        core: the network itself, a part of it.
        examples: what to try it with, five of each input by its name; a batch of one would fix the size to one.
        output: its name.
        side: S.
    """

    network: nn.Module
    core: nn.Module
    examples: dict[str, Tensor]
    output: str
    side: int


def export(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Exports what the config says; the file appears under its name once it has been checked.

    Returns:
        The numbers `bytes`, `max_error` (of the logits, up to the constant that softmax drops, or of a pixel of a GAN),
        `eager_ms` and `exported_ms` (mean, one image); and the objects: cfg, run, path, deployed,
        card (the path of the model card), takes and gives (the input and the output in words).

    Raises:
        ValueError, RunError, OSError: the config asks for something that cannot be done.
        ModuleNotFoundError: ONNX is not installed.
    """
    check_values(cfg, "export")
    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    path = Path(cfg.path).expanduser() if cfg.path else run.folder / "export" / f"model{ENDINGS[cfg.format]}"
    if path.is_dir():
        raise ValueError(f"path={path} cannot be written: it is a folder.")
    deployed = _deployed(run, cfg.calibrated)
    metadata = {"classes": json.dumps(run.classes), "image_size": str(deployed.side)}
    metadata |= {name: json.dumps(run.checkpoint["preprocess"][name]) for name in ("mean", "std")}
    metadata |= {"temperature": str(run.temperature)} if cfg.calibrated else {}
    write = {"onnx": _write_onnx, "torch": _write_torch, "safetensors": _write_safetensors}[cfg.format]
    tolerance = TOLERANCES[deployed.output]
    with whole(path) as partial:
        exported = write(deployed, metadata, partial)
        error = _largest_error(deployed.network, exported, *deployed.examples.values())
        if not error <= tolerance:
            raise ValueError(f"{path} is not written: it is {error:.1e} from the checkpoint (allowed: {tolerance}).")
        metrics = {"bytes": partial.stat().st_size, "max_error": error}
        metrics |= {"eager_ms": _latency(deployed.network, deployed.examples)}
        metrics |= {"exported_ms": _latency(exported, deployed.examples)}
    card = path.with_name(f"{path.name}.md")
    takes, gives = _in_words(deployed, cfg.format)
    if cfg.calibrated and cfg.format == "safetensors":  # the others divide
        gives += f", to be divided by the temperature {run.temperature:.4g}"
    write_whole(card, model_card(run, deployed.core, path, takes, gives))
    objects = {"cfg": cfg, "run": run, "path": path, "deployed": deployed, "card": card}
    return metrics, {**objects, "takes": takes, "gives": gives}


def _deployed(run: Run, calibrated: bool = False) -> Deployed:
    """A classifier with its preprocessing before and probabilities behind it, or a GAN's generator.

    The classifier is tried with noise, among it a black and a white image, uint8 (5, C, S, S).
    """
    import torch

    from src.modules.gan import GAN, Sampler

    generator, link = torch.Generator().manual_seed(0), run.link(calibrated)
    core: torch.nn.Module = run.network
    if isinstance(run.model, GAN):
        core = run.model.averaged
        network: torch.nn.Module = Sampler(core)
        noise = torch.randn(5, run.model.averaged.noise_size, generator=generator)
        examples, output = {"noise": noise, "labels": torch.arange(5) % len(run.classes)}, "images"
        side = run.config.data.image_size
    else:
        preprocess = run.preprocess
        side = preprocess.shorter
        shape = (5, preprocess.channels, side, side)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        images[1], images[-1] = 0, 255
        network = torch.nn.Sequential(preprocess, core, link)
        examples, output = {"images": images}, "probabilities"
    network = network.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    return Deployed(network, core, examples, output, side)


def _write_torch(deployed: Deployed, metadata: dict[str, str], path: Path) -> Function:
    import torch

    batch, inputs = {0: torch.export.Dim("batch")}, tuple(deployed.examples.values())
    program = torch.export.export(deployed.network, inputs, dynamic_shapes=(batch,) * len(inputs))
    torch.export.save(program, path, extra_files=metadata)
    return torch.export.load(path).module()


def _write_onnx(deployed: Deployed, metadata: dict[str, str], path: Path) -> Function:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it, and it needs onnx
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"format=onnx needs {error.name}: pip install -e '.[export]'") from error

    for name in ("onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.WARNING)
    names, inputs = list(deployed.examples), tuple(deployed.examples.values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own affairs
        options: Any = {"input_names": names, "output_names": [deployed.output]}
        options["dynamic_shapes"] = ({0: "batch"},) * len(names)
        program: Any = torch.onnx.export(deployed.network, inputs, dynamo=True, verbose=False, **options)
    program.model.metadata_props.update(metadata)
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda *given: torch.from_numpy(
        session.run(None, dict(zip(names, (t.numpy() for t in given), strict=True)))[0]
    )


def _write_safetensors(deployed: Deployed, metadata: dict[str, str], path: Path) -> Function:
    try:
        from safetensors.torch import load_file, save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("format=safetensors needs safetensors: pip install -e '.[export]'") from error
    save_file({name: each.contiguous() for name, each in deployed.core.state_dict().items()}, path, metadata)
    other = deepcopy(deployed)
    other.core.load_state_dict(load_file(path))
    return other.network


def _largest_error(network: Function, exported: Function, *inputs: Tensor) -> float:
    """Over batches of several sizes, of pixels or of logits: above 100 as a share of the largest, NaN if one is NaN."""
    from torch import cat, uint8

    batches = [[each[:size] for each in inputs] for size in (1, 2, len(inputs[0]))]
    expected, got = (cat([function(*batch) for batch in batches]) for function in (network, exported))
    if expected.dtype == uint8:
        return float((got.int() - expected.int()).abs().max())
    there = ~(expected <= 1e-30)  # smaller ones are at the end of float32
    logits = expected[there].log()  # up to a constant for each image
    scale = (logits.abs().max() / 100).clamp_min(1)
    return float((got[there].log() - logits).abs().max() / scale)


def _latency(function: Function, examples: dict[str, Tensor]) -> float:
    """Milliseconds for the first image, the mean of at least 0.2 s."""
    from timeit import Timer

    first = [each[:1] for each in examples.values()]
    timer = Timer(lambda: function(*first))
    timer.autorange()  # warms up
    number, seconds = timer.autorange()
    return 1000 * seconds / number


def _in_words(deployed: Deployed, form: str) -> tuple[str, str]:
    """What the exported file takes and gives."""
    shapes = (f"{name} (B{''.join(f', {n}' for n in each.shape[1:])})" for name, each in deployed.examples.items())
    takes, gives = ", ".join(shapes), deployed.output
    if form != "safetensors":
        return takes, gives
    if gives == "images":
        return takes, "images from -1 to 1"
    return f"{takes}, as (x / 255 - mean) / std with those of its metadata", "logits"


def main(cfg: DictConfig) -> None:
    metrics, objects = export(cfg)
    deployed, checkpoint = objects["deployed"], objects["run"].checkpoint_path.stat().st_size
    print(f"{objects['path']}: {metrics['bytes'] / 2**20:.2f} MiB (the checkpoint: {checkpoint / 2**20:.2f} MiB)")
    print(f"takes {objects['takes']}, gives {objects['gives']}")
    print(f"model card: {objects['card']}")
    unit = "logit" if deployed.output == "probabilities" else "pixel"
    print(f"largest difference of a {unit} from the checkpoint's: {metrics['max_error']:.1e}")
    print(f"one image on the CPU: {metrics['exported_ms']:.2f} ms, eager {metrics['eager_ms']:.2f} ms")


if __name__ == "__main__":
    cli.run(main, "export")
