"""Draws samples from a GAN's run: a sheet, and the images.

python -m src.sample run=latest
python -m src.sample run=logs/train/runs/RUN classes=[3,8] count=100 seed=1
python -m src.sample --help
"""

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src import cli
from src.runs.folder import whole
from src.runs.run import open_run
from src.runs.values import check_values

ACROSS = 16  # samples of a class on the sheet


def sample(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Draws what the config says into `paths.output_dir`.

    It writes sample_sheet.png, images/CLASS/NUMBER.png, which `data=folder` reads, and samples.npz with `images`, uint8
    (N, C, S, S), and `labels`, int64 (N,), in the order of the run's classes.

    Returns:
        The number `images`; and the objects: cfg, run, images, labels, files (the sheet, the folder, the archive).

    Raises:
        ValueError, RunError: the run is no GAN's, or it knows no such class.
    """
    check_values(cfg, "sample")
    import numpy as np
    import torch

    from src import figures
    from src.modules.gan import GAN

    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    if not isinstance(run.model, GAN):
        raise ValueError(f"{run.folder} is no run of a GAN, from which samples could be drawn.")
    names = run.classes if cfg.classes is None else [str(name) for name in cfg.classes]
    if unknown := [name for name in names if name not in run.classes]:
        raise ValueError(f"classes: the run knows no {', '.join(unknown)}; it knows {', '.join(run.classes)}.")
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    labels = torch.tensor([run.classes.index(name) for name in names]).repeat_interleave(cfg.count)
    images = run.model.to(device).sample(labels, seed=cfg.seed)

    output = Path(cfg.paths.output_dir)
    rows = images.unflatten(0, (len(names), cfg.count)).numpy()
    sheet = figures.sample_sheet(rows[:, :ACROSS], names, f"{cfg.count} samples of each class, seed {cfg.seed}")
    files = [figures.save(sheet, output / "sample_sheet.png"), output / "images", output / "samples.npz"]
    safe = [re.sub(r"[^\w -]", "_", name) for name in names]  # what lies in a run folder leads nowhere else
    for name, place, row in zip(names, safe, rows, strict=True):
        folder = files[1] / (place if safe.count(place) == 1 else f"{place} ({run.classes.index(name)})")
        for number, image in enumerate(row):
            figures.save_pixels(figures.tiled(image[None, None]), folder / f"{number:05d}.png")
    with whole(files[2]) as partial, partial.open("wb") as file:
        np.savez_compressed(file, images=images.numpy(), labels=labels.numpy())
    return {"images": len(images)}, {"cfg": cfg, "run": run, "images": images, "labels": labels, "files": files}


def main(cfg: DictConfig) -> None:
    metrics, objects = sample(cfg)
    print(f"{metrics['images']:,} samples of {objects['run'].checkpoint_path}")
    print(*objects["files"], sep="\n")


if __name__ == "__main__":
    cli.run(main, "sample")
