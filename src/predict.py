"""Predicts the class of image files.

    python -m src.predict run=latest input=photo.jpg
    python -m src.predict run=logs/train/runs/RUN 'input=photos/**/*.png'

Exit code 2 says that some files could not be read; they are listed and left out.
"""

from __future__ import annotations

import csv
import glob
import io
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from src import cli
from src.record import write_whole
from src.run import Run, open_run
from src.sweeps.folder import quote

if TYPE_CHECKING:
    import numpy as np

UNREADABLE = 2  # exit code
LISTED = 100  # rows on the screen
SHOWN = 64  # images on the contact sheet
THUMBNAIL = 160  # px


def predict(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Predicts what the config says and writes the results into `paths.output_dir`.

    Returns:
        The numbers `images`, `unreadable` and `images_per_s` (reading included); and the objects: cfg, run,
        predictions (a list of dicts with file, prediction, probability and probabilities by class), unreadable (file
        and reason), files (what was written; nothing if no image could be read).

    Raises:
        ValueError, FileNotFoundError, RunError: nothing to predict, or nothing to predict with.
    """
    if cfg.run is None and cfg.ckpt_path is None:
        raise ValueError("say what to predict with: run=logs/train/runs/RUN, run=latest or ckpt_path=FILE.ckpt")
    files = find_images(cfg.input)
    run = open_run(cfg.ckpt_path or cfg.run)
    start = time.perf_counter()
    predictions, unreadable = _predict(run, files, cfg.batch_size)
    seconds = time.perf_counter() - start
    written = _write(Path(cfg.paths.output_dir), run, predictions, unreadable) if predictions else []
    metrics = {"images": len(predictions), "unreadable": len(unreadable), "images_per_s": len(files) / seconds}
    objects = {"cfg": cfg, "run": run, "predictions": predictions, "unreadable": unreadable, "files": written}
    return metrics, objects


def find_images(given: str | None) -> list[Path]:
    """The files that `input` names: a file, the images in a folder and its subfolders, or a pattern's matches."""
    from PIL import Image

    if given is None:
        raise ValueError("say what to look at: input=IMAGE, input=FOLDER or 'input=PATTERN'")
    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        endings = set(Image.registered_extensions())
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [file for file in inside if file.suffix.lower() in endings]
        if not found:
            raise ValueError(f"input={given}: the folder holds no image among its {len(inside)} files.")
        if len(found) < len(inside):
            print(f"{len(inside) - len(found)} files in {path} are left out: their names are not those of images")
        return found
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        kind = "no file matches the pattern" if glob.has_magic(given) else "there is no such file or folder"
        raise FileNotFoundError(f"input={given}: {kind} (looked in {Path.cwd()}).")
    return found


def _predict(run: Run, files: list[Path], batch_size: int) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    import numpy as np
    import torch

    from src.data.augment import Preprocess

    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = run.model.to(device)
    preprocess = Preprocess(**run.checkpoint["preprocess"]).to(device)
    predictions: list[dict[str, Any]] = []
    unreadable: list[dict[str, str]] = []
    with ThreadPoolExecutor() as pool, torch.inference_mode():  # Pillow decodes without the interpreter's lock
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            images, names = [], []
            for file, image in zip(batch, pool.map(lambda f: _read(f, preprocess.shorter), batch), strict=True):
                if isinstance(image, str):
                    unreadable.append({"file": str(file), "reason": image})
                else:
                    images.append(image)
                    names.append(str(file))
            if not images:
                continue
            logits = model(preprocess(torch.from_numpy(np.stack(images)).to(device)))
            for name, row in zip(names, logits.float().softmax(dim=1).tolist(), strict=True):
                probabilities = dict(zip(run.classes, row, strict=True))
                best = max(probabilities, key=probabilities.__getitem__)
                prediction = {"prediction": best, "probability": probabilities[best], "probabilities": probabilities}
                predictions.append({"file": name, **prediction})
    return predictions, unreadable


def _read(file: Path, side: int) -> np.ndarray | str:
    """The image as uint8 (3, side, side), as a folder of training images is read, or why it cannot be read."""
    from src.data.folder import decode

    try:
        return decode(file, side)
    except Exception as error:  # a broken file can raise nearly anything in one of Pillow's many readers
        reason = str(error).replace(repr(str(file)), "").strip() or type(error).__name__
        return "cannot identify the kind of image" if type(error).__name__ == "UnidentifiedImageError" else reason


def _write(output: Path, run: Run, predictions: list[dict[str, Any]], unreadable: list[dict[str, str]]) -> list[Path]:
    from src import figures

    output.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["file", "prediction", "probability", *(f"p_{name}" for name in run.classes)])
    for row in predictions:
        numbers = (f"{value:.6g}" for value in (row["probability"], *row["probabilities"].values()))
        writer.writerow([row["file"], row["prediction"], *numbers])
    write_whole(output / "predictions.csv", table.getvalue())
    record = {
        "checkpoint": str(run.checkpoint_path), "classes": run.classes,
        "predictions": predictions, "unreadable": unreadable,
    }  # fmt: skip
    write_whole(output / "predictions.json", json.dumps(record, indent=1) + "\n")

    shown = predictions[:SHOWN]
    captions = [f"{Path(row['file']).name}\n{row['prediction']} ({row['probability']:.1%})" for row in shown]
    with ThreadPoolExecutor() as pool:
        images: list[Any] = list(pool.map(lambda row: _read(Path(row["file"]), THUMBNAIL), shown))
    title = f"{len(predictions):,} images" + (f", the first {SHOWN}" if len(predictions) > SHOWN else "")
    sheet = figures.save(figures.image_grid(images, captions, title), output / "contact_sheet.png")
    return [output / "predictions.csv", output / "predictions.json", sheet]


def _print(objects: dict[str, Any]) -> None:
    from rich import print as rich_print
    from rich.table import Table
    from rich.text import Text

    if objects["predictions"]:
        table = Table("file", "prediction", "probability", "then")
        for row in objects["predictions"][:LISTED]:
            ranked = sorted(row["probabilities"].items(), key=lambda item: -item[1])[1:3]
            others = ", ".join(f"{name} {value:.1%}" for name, value in ranked)
            table.add_row(Text(row["file"]), Text(row["prediction"]), f"{row['probability']:.1%}", Text(others))
        rich_print(table)
        if len(objects["predictions"]) > LISTED:
            print(f"and {len(objects['predictions']) - LISTED:,} more in predictions.csv")
    for row in objects["unreadable"]:
        print(f"not read: {row['file']}: {row['reason']}", file=sys.stderr)
    for path in objects["files"]:
        print(path)


def main(cfg: DictConfig) -> None:
    _, objects = predict(cfg)
    _print(objects)
    if objects["unreadable"]:
        total = len(objects["predictions"]) + len(objects["unreadable"])
        print(f"{len(objects['unreadable'])} of {total} files could not be read (exit code 2)", file=sys.stderr)
        sys.exit(UNREADABLE)


if __name__ == "__main__":
    # File names may hold what Hydra's grammar would read as its own.
    name, given = "input=", sys.argv[1:]
    sys.argv[1:] = [name + quote(word.removeprefix(name)) if word.startswith(name) else word for word in given]
    cli.run(main, "predict")
