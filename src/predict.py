"""Predicts the class of image files.

    python -m src.predict run=latest input=photo.jpg
    python -m src.predict run=logs/train/runs/RUN 'input=photos/**/*.png'

Exit code 2 says that some files could not be read; they are listed and left out.
"""

import glob
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src import cli
from src.runs.folder import write_csv, write_json
from src.runs.run import Run, open_run
from src.runs.table import rich_table
from src.runs.values import check_values


def predict(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Predicts what the config says and writes the results into `paths.output_dir`.

    Returns:
        The numbers `images`, `unreadable` and `images_per_s` (reading included); and the objects: cfg, run,
        predictions (a list of dicts with file, prediction, probability and probabilities by class), unreadable (file
        and reason), files (what was written; nothing if no image could be read).

    Raises:
        ValueError, FileNotFoundError, RunError: nothing to predict, or nothing to predict with.
    """
    check_values(cfg, "predict")
    if cfg.input is None:
        raise ValueError("say what to look at: input=IMAGE, FOLDER or PATTERN")
    files = find_images(cfg.input)
    run = open_run(cfg.ckpt_path or cfg.run, cfg.paths.log_dir, cfg.trusted)
    start = time.perf_counter()
    predictions, unreadable = _predict(run, files, cfg.batch_size, cfg.calibrated)
    speed = len(files) / (time.perf_counter() - start)
    written = _write(Path(cfg.paths.output_dir), run, files, predictions, unreadable) if predictions else []
    metrics = {"images": len(predictions), "unreadable": len(unreadable), "images_per_s": speed}
    return metrics, {"cfg": cfg, "run": run, "predictions": predictions, "unreadable": unreadable, "files": written}


def find_images(given: str) -> list[Path]:
    """The files that `input` names: a file, the images in a folder and its subfolders, or a pattern's matches."""
    from PIL import Image

    path = Path(given).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [file for file in inside if file.suffix.lower() in Image.registered_extensions()]
        if len(found) < len(inside):
            some = f"{len(inside) - len(found)} of {len(inside)} files in {path}"
            print(f"left out, as their names are not those of images: {some}")
    else:
        found = sorted(Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file())
    if not found:
        raise FileNotFoundError(f"input={given}: no image has that name, lies in it or matches it (from {Path.cwd()})")
    return found


def _predict(
    run: Run, files: list[Path], batch_size: int, calibrated: bool
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    import torch

    from src.data.decode import printable

    link, several = run.link(calibrated), isinstance(run.link(), torch.nn.Sigmoid)  # classes of an image
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model, preprocess = run.model.to(device), run.preprocess.to(device)
    predictions, unreadable = [], []
    with ThreadPoolExecutor() as pool, torch.inference_mode():  # Pillow decodes without the interpreter's lock
        for first in range(0, len(files), batch_size):
            batch = files[first : first + batch_size]
            read = pool.map(lambda file: _read(file, preprocess.shorter, preprocess.channels), batch)
            found = dict(zip(map(printable, batch), read, strict=True))
            images = {file: torch.tensor(image) for file, image in found.items() if not isinstance(image, str)}
            unreadable += [{"file": file, "reason": found[file]} for file in found if file not in images]
            if not images:
                continue
            logits = model(preprocess(torch.stack(list(images.values())).to(device)))  # (B, K)
            if logits.shape != (len(images), len(run.classes)):
                raise ValueError(
                    f"{run.folder} is no classifier's run: its network gives {(*logits.shape,)}, no logits."
                )
            for file, values in zip(images, link(logits.float()).tolist(), strict=True):
                each = dict(zip(run.classes, values, strict=True))
                best, value = max(each.items(), key=lambda item: item[1])
                if several:
                    best = ", ".join(name for name, p in each.items() if p > 0.5)
                predictions.append({"file": file, "prediction": best, "probability": value, "probabilities": each})
    return predictions, unreadable


def _read(file: Path, side: int, channels: int = 3) -> Any:
    """The image as uint8 (channels, side, side), as a folder of training images is read, or why it cannot be read."""
    from src.data.decode import UNREADABLE, decode

    try:
        return decode(file, side, channels)
    except UNREADABLE as error:
        return str(error).replace(repr(str(file)), "").strip() or type(error).__name__


def _write(
    output: Path, run: Run, files: list[Path], predictions: list[dict[str, Any]], unreadable: list[dict[str, str]]
) -> list[Path]:
    import pandas as pd

    from src import figures
    from src.data.decode import printable

    table, record, sheet = (output / name for name in ("predictions.csv", "predictions.json", "contact_sheet.png"))
    frame = pd.DataFrame(predictions)
    frame = frame.join(pd.DataFrame(list(frame.pop("probabilities"))).add_prefix("p_"))
    write_csv(table, frame, "%.6g")
    origin = {"checkpoint": str(run.checkpoint_path), "classes": run.classes}
    write_json(record, {**origin, "predictions": predictions, "unreadable": unreadable})
    shown = predictions[:64]
    captions = [
        f"{Path(row['file']).name}\n{row['prediction']} ({figures.percent(row['probability'])})" for row in shown
    ]
    paths = {printable(path): path for path in files}
    images = [_read(paths[row["file"]], 160) for row in shown]
    figures.save(figures.image_grid(images, captions, f"{len(shown)} of {len(predictions):,} images"), sheet)
    return [table, record, sheet]


def main(cfg: DictConfig) -> None:
    import pandas as pd
    from rich import print as rich_print

    from src.figures import percent

    _, objects = predict(cfg)
    predictions, unreadable = objects["predictions"], objects["unreadable"]
    if predictions:
        frame = pd.DataFrame(predictions[:100])
        ranked = (Counter(each).most_common(3) for each in frame["probabilities"])
        frame["prediction"] = [", ".join(f"{name} {percent(value)}" for name, value in first) for first in ranked]
        rich_print(rich_table(frame[["file", "prediction"]], f"{len(frame)} of {len(predictions):,} predictions"))
        print(*objects["files"], sep="\n")
    for row in unreadable:
        print(f"not read: {row['file']}: {row['reason']}", file=sys.stderr)
    if unreadable:
        print(f"{len(unreadable)} of {len(predictions) + len(unreadable)} files could not be read", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    cli.run(main, "predict")
