"""The audit of a run's data set: labels that are probably wrong, duplicates, images that show nothing."""

import logging
import os
from base64 import b64encode
from collections.abc import Iterator
from hashlib import blake2b
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jinja2 import Environment, FileSystemLoader
from omegaconf import DictConfig
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from src.data.decode import open_image, printable
from src.evaluation.audit import SIDE, label_issues, near_duplicates
from src.runs.build import build
from src.runs.folder import find_runs
from src.runs.run import Run, open_run
from src.studies import Evaluation

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")  # an image is a duplicate of one that comes before it
IMAGE = ("split", "image", "file", "label")
COLUMNS = ("what", *IMAGE, "suggested", "score", *(f"of_{name}" for name in IMAGE))
COPIES = ("duplicate", "near_duplicate")
PAGES = Environment(loader=FileSystemLoader(Path(__file__).parents[1]), autoescape=True)
ONE_COLOUR = 1.0  # level of 255: less is the noise of a JPEG
MOST, WIDEST = 60, 96  # pictures of a kind on the page, and the pixels of their longer side


class Audit:
    """Adds audit.csv, a suspect a line, audit.html, which shows them, and how the split does without them as metrics.

    The metrics: suspects, how many images are any; acc_without_suspects; and acc_without_duplicates, since which labels
    are suspect depends on the network, and which images are duplicates does not.

    A label is judged by a network that was not trained on it: in validation and test by the run's, in training by those
    of a sweep over all folds, if `audit` names its folder.
    """

    def __init__(self, run: Run, cfg: DictConfig) -> None:
        self.folds = [] if cfg.audit is True else fold_runs(run, cfg)

    def __call__(self, evaluation: Evaluation) -> None:
        if not evaluation.trainer.is_global_zero:
            return
        run, device = evaluation.run, evaluation.trainer.strategy.root_device
        data: Any = build(run.config.data)  # read by this process alone, where a test gives each a part
        for stage in ("validate", "test"):
            data.setup(stage)
        splits = [split for split in SPLITS if data.size(split)]
        looked = {split: look(data, split, None if split == "train" else run, device) for split in splits}
        lost = [(split, file) for split in splits for file in data.left_out(split)]
        frames = [frame for frame, _, _ in looked.values()]
        frames.append(pd.DataFrame(lost, columns=["split", "file"]).assign(image=-1, label=-1))
        images = pd.concat(frames, ignore_index=True).astype({"image": int, "label": int})
        views = torch.cat([part for _, part, _ in looked.values()])
        judged = {split: looked[split][2] for split in splits if split != "train"}
        if self.folds:
            judged["train"] = self._out_of_fold(run, device, looked["train"][0]["pixels"])
        log.info("comparing %s images", f"{len(images):,}")
        found = [*wrong_labels(images, judged), *duplicates(images, views.to(device)), *showing_nothing(images, data)]
        frame = evaluation.tables["audit"] = listed(images, found, data.classes)
        evaluation.metrics |= without(frame, evaluation.tables["predictions"], evaluation.cfg.split)
        evaluation.pages["audit"] = page(evaluation, data, images, frame, judged)

    def _out_of_fold(self, run: Run, device: Any, pixels: pd.Series) -> Tensor:
        """The probabilities (N, K) of training images by networks trained without them, which are found by pixels."""
        found: dict[bytes, Tensor] = {}
        for other in self.folds:
            if "root" in run.config.data:
                other.config.data.root = run.config.data.root  # it may have moved
            data: Any = build(other.config.data)
            data.setup("validate")
            images, _, rows = look(data, "val", other, device)
            for its_pixels, row in zip(images["pixels"], rows, strict=True):
                found[its_pixels] = found.get(its_pixels, 0) + row
        if missing := sum(its_pixels not in found for its_pixels in pixels):
            raise ValueError(f"{missing} training images are in none of the folds that judge them: these have others.")
        rows = torch.stack([found[its_pixels] for its_pixels in pixels])
        return rows / rows.sum(dim=1, keepdim=True)


def fold_runs(run: Run, cfg: DictConfig) -> list[Run]:
    """The runs of a sweep over all folds.

    Raises:
        ValueError: a fold is missing, or the classes are others.
    """
    runs = [open_run(folder, cfg.paths.log_dir, cfg.trusted) for folder in find_runs([cfg.audit])]
    folds = {(each.config.data.get("folds"), each.config.data.get("fold")) for each in runs}
    count = next(iter(folds))[0] or 0
    if folds != {(count, fold) for fold in range(count)} or any(each.classes != run.classes for each in runs):
        has = ", ".join(sorted(f"{fold} of {number}" for number, fold in folds))
        raise ValueError(
            f"audit={cfg.audit} must hold a run of the same classes for every fold, as a sweep over data.folds=5 "
            f"'data.fold=range(5)' does; it has {has}."
        )
    return runs


@torch.no_grad()
def look(data: Any, split: str, judge: Run | None, device: Any) -> tuple[pd.DataFrame, Tensor, Tensor]:
    """Reads the N images of a split once, a batch at a time.

    Returns:
        A line an image: its label (-1 if it cannot be read), a hash of its pixels, and `spread`, the largest deviation
        of a channel in levels of 255. The images as `src.evaluation.audit` compares them. What the judge makes of them,
        probabilities (N, K), or (N, 0) without one.
    """
    data.eval_split, parts = split, []
    if judge is not None:
        preprocess = judge.preprocess.to(device)
        network = judge.network.to(device).float()  # the test may have left it in half precision
    for images, labels, *_ in data.test_dataloader():
        pixels = [blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images]
        spread = images.flatten(2).float().std(dim=2).amax(dim=1)
        frame = pd.DataFrame({"label": labels.numpy(), "pixels": pixels, "spread": spread.numpy()})
        logits = network(preprocess(images.to(device))) if judge is not None else torch.empty(len(images), 0)
        parts.append((frame, TF.resize(images, [SIDE, SIDE], antialias=True), logits.float().softmax(dim=1).cpu()))
    frames, views, probabilities = zip(*parts, strict=True)
    frame = pd.concat(frames, ignore_index=True).rename_axis("image").reset_index().assign(split=split)
    frame["file"] = [data.image_name(split, position) for position in frame["image"]]
    return frame, torch.cat(views), torch.cat(probabilities)


def wrong_labels(images: pd.DataFrame, judged: dict[str, Tensor]) -> Iterator[pd.DataFrame]:
    """Each split by itself; the score is the probability of the label."""
    for split, rows in judged.items():
        own = images[(images["split"] == split) & (images["label"] >= 0)]
        labels, rows = torch.tensor(own["label"].tolist()), rows[own["image"].tolist()]
        issues = label_issues(rows, labels)
        score, guess = rows[issues, labels[issues]], rows[issues].argmax(dim=1)
        number = own.index.to_numpy()[issues.numpy()]
        yield pd.DataFrame({"what": "label", "number": number, "score": score.numpy(), "guess": guess.numpy()})


def duplicates(images: pd.DataFrame, views: Tensor) -> Iterator[pd.DataFrame]:
    """Of the same pixels, then of one picture; the score is the correlation."""
    readable = images[images["label"] >= 0]
    first = readable.index.to_series().groupby(readable["pixels"]).transform("min")
    again = first[first != first.index]
    yield pd.DataFrame({"what": "duplicate", "number": again.index, "score": 1.0, "of": again.to_numpy()})
    alone = first.index[(first == first.index) & (readable["spread"] >= ONE_COLOUR)].to_numpy()
    pairs, score = near_duplicates(views[alone.tolist()])
    of, number = alone[pairs.numpy()].T
    frame = pd.DataFrame({"what": "near_duplicate", "number": number, "score": score.numpy(), "of": of})
    yield frame.sort_values("score", ascending=False)


def showing_nothing(images: pd.DataFrame, data: Any) -> Iterator[pd.DataFrame]:
    """Of one colour (the score is its deviation), tiny (its shorter side in pixels) or unreadable."""
    readable = images[images["label"] >= 0]
    plain = readable[readable["spread"] < ONE_COLOUR]
    yield pd.DataFrame({"what": "one_colour", "number": plain.index, "score": plain["spread"]})
    files = readable["file"][readable["file"].map(os.path.isfile)]
    sides = files.map(shorter_side)
    tiny = sides[sides < data.image_size / 2]
    yield pd.DataFrame({"what": "tiny", "number": tiny.index, "score": tiny.astype(float)})
    yield pd.DataFrame({"what": "unreadable", "number": images.index[images["label"] < 0]})


def shorter_side(file: str) -> int:
    with open_image(file) as image:
        return min(image.size)


def listed(images: pd.DataFrame, found: list[pd.DataFrame], classes: list[str]) -> pd.DataFrame:
    """The lines of audit.csv."""
    named = images[list(IMAGE)].assign(file=images["file"].map(printable))
    named["label"] = [classes[label] if label >= 0 else "" for label in images["label"]]
    lines = pd.concat(found, ignore_index=True)
    lines["of"] = lines["of"].fillna(-1).astype(int)
    lines = lines.join(named, on="number").join(named.add_prefix("of_"), on="of")
    lines["suggested"] = lines["guess"].map(dict(enumerate(classes)))
    return lines.astype({"of_image": "Int64"})[list(COLUMNS)]


def without(frame: pd.DataFrame, predictions: pd.DataFrame, split: str) -> dict[str, float]:
    """How many images of a split are suspects, and its accuracy without them; NaN where they are all."""
    right, mine = predictions["label"] == predictions["prediction"], frame[frame["split"] == split]

    def accuracy(left_out: pd.DataFrame) -> float:
        return float(right[~predictions["image"].isin(left_out["image"])].mean())

    return {
        "suspects": float(len(mine.drop_duplicates(["image", "file"]))),
        "acc_without_suspects": accuracy(mine),
        "acc_without_duplicates": accuracy(mine[mine["what"].isin(COPIES)]),
    }


def page(evaluation: Evaluation, data: Any, images: pd.DataFrame, frame: pd.DataFrame, judged: Any) -> str:
    """audit.html, which loads nothing."""

    def picture(split: str, position: int) -> str:
        """Base64 of a PNG."""
        image = data.examples(split, [position])[0][0]
        if max(image.shape[1:]) > WIDEST:
            image = TF.resize(image, None, max_size=WIDEST, antialias=True)
        TF.to_pil_image(image).save(png := BytesIO(), "PNG")
        return b64encode(png.getvalue()).decode()

    copies = frame[frame["what"].isin(COPIES)]
    copies = copies.assign(same=copies["label"] == copies["of_label"]).sort_values("same", kind="stable")
    between = copies["split"] != copies["of_split"]
    sections = {
        "Labels that are probably wrong": frame[frame["what"] == "label"].sort_values("score"),
        "Duplicates between splits": copies[between],
        "Duplicates within a split": copies[~between],
        "Images of one colour": frame[frame["what"] == "one_colour"],
        "Tiny images": frame[frame["what"] == "tiny"],
        "Images that cannot be read": frame[frame["what"] == "unreadable"],
    }
    readable = images[images["label"] >= 0]
    splits = [split for split in SPLITS if split in set(images["split"])]
    balance = pd.crosstab(readable["label"], readable["split"])
    balance = balance.reindex(index=range(len(data.classes)), columns=splits, fill_value=0)
    once = frame.drop_duplicates(["what", "split", "image", "file"])
    counts = pd.crosstab(once["what"], once["split"]).reindex(columns=splits, fill_value=0)
    counts = pd.concat([balance.sum().to_frame("images").T, counts])
    balance.index = pd.Index(data.classes)
    found = {"counts": counts, "balance": balance, "sections": sections, "judged": judged, "most": MOST}
    template = PAGES.get_template("audit.html")
    return template.render(**found, title=evaluation.title, metrics=evaluation.metrics, picture=picture)
