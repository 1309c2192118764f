"""The audit finds what was planted: wrong labels, duplicates, images that show nothing; and says so in its files."""

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from src.data.digits import Digits
from src.evaluation.audit import SHIFT, candidates, correlation, label_issues, near_duplicates
from src.runs.run import open_run
from src.studies.audit import IMAGE, page
from tests.conftest import DATASETS, needs_cifar10
from tests.test_eval import evaluated

N = 120


def shifted(image: Tensor, down: int, right: int) -> Tensor:
    """An image (C, S, S) moved by a few pixels, the edge repeated."""
    size, wide = image.shape[-1], pad(image[None].float(), (SHIFT,) * 4, "replicate")[0].byte()
    return wide[:, SHIFT - down :, SHIFT - right :][:, :size, :size]


def copies(images: Tensor, seed: int = 0) -> Tensor:
    """Of images: a third each shifted, mirrored, and both."""
    moves = torch.randint(-SHIFT, SHIFT + 1, (len(images), 2), generator=torch.Generator().manual_seed(seed)).tolist()
    changed = [image if i % 3 == 1 else shifted(image, *moves[i]) for i, image in enumerate(images)]
    return torch.stack([image.flip(-1) if i % 3 else image for i, image in enumerate(changed)])


@pytest.fixture(scope="module", params=[1, 3], ids=["grey", "colour"])
def pictures(request: pytest.FixtureRequest) -> Tensor:
    """Pictures of shapes and texture, of which no two are alike."""
    generator = torch.Generator().manual_seed(0)
    shapes, texture = (
        interpolate(torch.rand(N, request.param, size, size, generator=generator), 32, mode="bilinear")
        for size in (5, 20)
    )
    return ((shapes + texture / 2) * 170).byte()


def test_a_shifted_or_mirrored_picture_is_found_and_no_other(pictures: Tensor) -> None:
    pairs, score = near_duplicates(torch.cat([pictures, copies(pictures[:30])]))
    assert sorted(map(tuple, pairs.tolist())) == [(i, N + i) for i in range(30)]
    assert (score > 0.9).all()


def test_a_picture_of_other_colours_or_with_noise_is_found(pictures: Tensor) -> None:
    noise = torch.randn(pictures[:30].shape, generator=torch.Generator().manual_seed(2)) * 4
    changed = (pictures[:30].float() * 0.8 + 20 + noise).round().clamp(0, 255).byte()
    pairs, score = near_duplicates(torch.cat([changed, pictures]))
    assert sorted(map(tuple, pairs.tolist())) == [(i, 30 + i) for i in range(30)]
    assert (score < 1).all()


def test_correlation_is_the_best_of_all_places(pictures: Tensor) -> None:
    """Against loops over the places, in double precision, of unrelated pictures."""
    first, second = pictures[:5], pictures[5:10]

    def detail(images: Tensor) -> Tensor:
        return images[..., 1:-1, 1:-1].double() - avg_pool2d(images.double(), 3, 1)

    best = np.full(5, -1.0)
    for i, (one, two) in enumerate(zip(detail(first), detail(second), strict=True)):
        centre = one[:, SHIFT:-SHIFT, SHIFT:-SHIFT].flatten()
        for other in (two, two.flip(-1)):
            for top in range(2 * SHIFT + 1):
                for left in range(2 * SHIFT + 1):
                    window = other[:, top : top + 24, left : left + 24].flatten()
                    best[i] = max(best[i], centre @ window / (centre.norm() * window.norm()))
    np.testing.assert_allclose(correlation(first, second), best, atol=1e-4)


def test_candidates_are_pairs_of_an_image_and_a_later_one(pictures: Tensor) -> None:
    pairs = candidates(torch.cat([pictures, pictures, pictures]))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert {(i, i + N) for i in range(2 * N)} | {(i, i + 2 * N) for i in range(N)} <= set(map(tuple, pairs.tolist()))


def test_digits_of_a_few_pixels_look_alike_and_are_no_duplicates() -> None:
    pixels = torch.tensor(load_digits().data).float().view(-1, 1, 8, 8) * (255 / 16)
    digits = interpolate(pixels[:500], 32, mode="bilinear", antialias=True).round().byte()
    pairs, _ = near_duplicates(torch.cat([digits, copies(digits[:60])]))
    found, planted = set(map(tuple, pairs.tolist())), {(i, 500 + i) for i in range(60)}
    assert found <= planted
    assert len(found) >= 0.9 * 60


def test_images_without_detail_are_no_duplicates() -> None:
    ramp = torch.arange(32).repeat(1, 3, 32, 1).byte()
    pairs, score = near_duplicates(torch.cat([ramp, ramp * 2, ramp * 0, ramp * 0]))
    assert (pairs.shape, score.shape) == ((0, 2), (0,))
    assert not len(near_duplicates(ramp[:0])[0])


@needs_cifar10
@pytest.mark.slow
def test_copies_planted_in_cifar10_are_found() -> None:
    """All 300 of them among the first 3,000 training images, which have few of their own: two looked at are real."""
    import pickle

    held = pickle.loads((DATASETS / "cifar-10-batches-py/data_batch_1").read_bytes(), encoding="latin1")
    images = torch.from_numpy(held["data"]).view(-1, 3, 32, 32)[:3000]
    pairs, _ = near_duplicates(torch.cat([images, copies(images[:300])]))
    found = set(map(tuple, pairs.tolist()))
    planted = {(i, 3000 + i) for i in range(300)}
    assert len(found & planted) >= 0.9 * 300
    assert len({first for first, second in found if second < 3000}) < 30


def test_flipped_labels_are_found() -> None:
    """Of 1,797 digits 5 % have another label; a classifier that learnt from others judges each."""
    random = np.random.default_rng(0)
    pixels, truth = load_digits(return_X_y=True)
    flipped = random.random(len(truth)) < 0.05
    labels = np.where(flipped, (truth + random.integers(1, 10, len(truth))) % 10, truth)
    rows = cross_val_predict(LogisticRegression(C=0.1), pixels / 16, labels, cv=5, method="predict_proba")
    probabilities, labels = torch.tensor(rows).float(), torch.tensor(labels)
    found = label_issues(probabilities, labels)
    hits = torch.tensor(flipped)[found].float()
    assert hits.sum() >= 0.8 * flipped.sum()
    assert hits.mean() >= 0.6
    own = probabilities[found, labels[found]]
    assert torch.equal(own, own.sort().values)


def test_many_classes_some_without_images_are_judged() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 1100, 6000)  # of 1,200: the last have none
    logits = random.normal(size=(6000, 1200))
    logits[np.arange(6000), truth] += 12
    labels = np.where(np.arange(6000) < 300, (truth + 1) % 1100, truth)
    found = set(label_issues(torch.tensor(logits).float().softmax(1), torch.tensor(labels)).tolist())
    assert len(found & set(range(300))) >= 240
    assert len(found - set(range(300))) <= 6


def test_one_class_alone_has_no_wrong_labels() -> None:
    assert not len(label_issues(torch.eye(3)[[0, 1, 2]], torch.tensor([1, 1, 1])))


# The study


class Planted(Digits):
    """Digits whose first test images are those to train on: as they are, shifted or mirrored; two are of one colour."""

    def load_train(self) -> tuple[Tensor, Tensor]:
        images, labels = super().load_train()
        return images[:300], labels[:300]

    def load_test(self) -> tuple[Tensor, Tensor]:
        (images, labels), (others, _) = super().load_test(), self.load_train()
        images, labels = images[:150], labels[:150]
        images[:20], images[20:60] = others[:20], copies(others[20:60])
        images[60], images[61] = 0, 200
        return images, labels


@pytest.fixture(scope="module")
def audited(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    run = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("audited") / "run"))
    planted = ["data=digits", "data._target_=tests.test_audit.Planted", "trusted=[tests]"]
    metrics, objects = evaluated(f"run={run}", "audit=true", *planted)
    return SimpleNamespace(run=run, metrics=metrics, frame=objects["audit"], objects=objects)


def images_of(audited: SimpleNamespace, what: str, split: str = "test") -> list[int]:
    frame = audited.frame
    return sorted(frame["image"][(frame["what"] == what) & (frame["split"] == split)])


def test_what_was_planted_is_listed_and_nothing_else(audited: SimpleNamespace) -> None:
    assert images_of(audited, "duplicate") == [*range(20)]
    near = images_of(audited, "near_duplicate")
    assert set(near) <= set(range(20, 60))
    assert len(near) >= 36
    assert images_of(audited, "one_colour") == [60, 61]
    assert set(audited.frame["split"][audited.frame["what"] != "label"]) == {"test"}
    data = audited.objects["datamodule"]
    data.setup("validate")
    same = audited.frame[audited.frame["what"] == "duplicate"]
    for line in same.itertuples():
        (one, _), (two, label) = data.examples("test", [line.image]), data.examples(line.of_split, [line.of_image])
        assert torch.equal(one, two)
        assert data.classes[label] == line.of_label


def test_labels_are_judged_by_the_run_s_probabilities(audited: SimpleNamespace) -> None:
    frame = audited.objects["predictions"]
    rows = torch.tensor(frame.filter(like="p_").to_numpy()).float()
    listed = audited.frame[(audited.frame["what"] == "label") & (audited.frame["split"] == "test")]
    assert listed["image"].tolist() == label_issues(rows, torch.tensor(frame["label"].astype(int).tolist())).tolist()
    assert listed["label"].tolist() == frame["label"][listed["image"]].tolist()
    assert listed["suggested"].tolist() == frame["prediction"][listed["image"]].tolist()
    assert "train" not in set(audited.frame["split"])


def test_metrics_leave_the_suspects_out(audited: SimpleNamespace) -> None:
    frame = audited.objects["predictions"]
    right = frame["label"] == frame["prediction"]
    suspects = set(audited.frame["image"][audited.frame["split"] == "test"])
    copied = images_of(audited, "duplicate") + images_of(audited, "near_duplicate")
    assert audited.metrics["test/suspects"] == len(suspects)
    for name, left_out in (("acc_without_suspects", suspects), ("acc_without_duplicates", copied)):
        assert audited.metrics[f"test/{name}"] == pytest.approx(right[~frame["image"].isin(left_out)].mean())


def test_the_files_hold_the_list_and_its_pictures(audited: SimpleNamespace) -> None:
    files = {path.name: path for path in audited.objects["files"]}
    (csv,) = (path for name, path in files.items() if name.startswith("audit") and path.suffix == ".csv")
    (html,) = (path for name, path in files.items() if name.startswith("audit") and path.suffix == ".html")
    written = pd.read_csv(csv, dtype=str, keep_default_na=False)
    assert written["image"].tolist() == audited.frame["image"].astype(str).tolist()
    assert set(written["of_image"]) <= {"", *map(str, range(1500))}
    text = html.read_text()
    assert text.count("data:image/png") == text.count("<img")
    assert len(html.read_bytes()) < 2e6


def test_names_are_escaped_on_the_page() -> None:
    line = dict.fromkeys([f"of_{name}" for name in IMAGE], "") | {"what": "label", "split": "test", "image": 0}
    frame = pd.DataFrame([line | {"file": "<b>.png", "label": "<i>", "suggested": "&", "score": 0.1, "of_split": None}])
    images = pd.DataFrame({"split": ["test"], "image": [0], "label": [0]})
    black = torch.zeros(1, 3, 8, 8).byte(), torch.zeros(1)
    data = SimpleNamespace(classes=["<i>", "&"], examples=lambda *_: black)
    metrics = {"acc_without_suspects": 0.5, "acc_without_duplicates": 0.5, "acc": 0.5}
    text = page(SimpleNamespace(title="<u>", metrics=metrics), data, images, frame, {"test": 0})  # type: ignore[arg-type]
    assert not [tag for tag in ("<i>", "<u>", "<b>.png") if tag in text]
    assert "&lt;i&gt;" in text


@pytest.mark.parametrize("mode", ["memory", "stream"])
def test_files_have_names_and_tiny_and_unreadable_ones_are_listed(run: Path, tmp_path: Path, mode: str) -> None:
    data = open_run(run).datamodule
    data.setup("test")
    images, labels = data.examples("test", range(60))
    for i, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        file = tmp_path / "images" / ("test" if i < 30 else "train") / str(label) / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    tests = sorted((tmp_path / "images/test").glob("*/*.png"))
    (train,) = (tmp_path / "images/train").glob("*/31.png")
    again, tiny, broken = tests[0], tests[5], tests[9]
    shutil.copy(train, again)
    Image.fromarray(images[40].permute(1, 2, 0).numpy()).resize((40, 12)).save(tiny)
    broken.write_bytes(b"no image")
    folder = ["data=folder", f"data.root={tmp_path}/images", "data.val_size=0", f"data.mode={mode}", "data.broken=skip"]
    with pytest.warns(UserWarning, match="left out"):
        metrics, objects = evaluated(
            f"run={run}", "audit=true", *folder, "data.num_workers=0", f"paths.log_dir={tmp_path}/logs"
        )
    frame = objects["audit"][objects["audit"]["what"] != "label"]
    assert {(line.what, line.file) for line in frame.itertuples()} == {
        *(("duplicate", str(again)), ("tiny", str(tiny)), ("unreadable", str(broken)))
    }
    data, answers = objects["datamodule"], objects["predictions"]
    labels = data.examples("test", answers["image"].tolist())[1]
    assert [data.classes[label] for label in labels] == answers["label"].tolist(), "by their places among the unread"
    copied = frame[frame["what"] == "duplicate"].iloc[0]
    assert (copied["split"], copied["of_split"], copied["of_file"]) == ("test", "train", str(train))
    assert objects["datamodule"].image_name("test", copied["image"]) == copied["file"]
    assert frame["score"][frame["what"] == "tiny"].tolist() == [12]
    assert metrics["test/suspects"] >= 3


@pytest.mark.slow
def test_training_labels_are_judged_out_of_fold(run: Path, tmp_path: Path) -> None:
    """The folds' networks are all the run's here, so what they make of the training images is what it makes of them."""
    for fold in range(2):
        copied = shutil.copytree(run, tmp_path / f"sweep/{fold}")
        for path in copied.glob("checkpoints/*.ckpt"):
            checkpoint = torch.load(path, weights_only=True)
            checkpoint["config"]["data"] |= {"folds": 2, "fold": fold}
            torch.save(checkpoint, path)
    frame = evaluated(f"run={run}", f"audit={tmp_path}/sweep")[1]["audit"]
    opened = open_run(run)
    opened.datamodule.setup("validate")
    images, labels = opened.datamodule.examples("train", 540)
    with torch.no_grad():
        rows = opened.network(opened.datamodule.preprocess(images)).softmax(1)
    listed = frame[(frame["what"] == "label") & (frame["split"] == "train")]
    assert listed["image"].tolist() == label_issues(rows, labels).tolist()
    with pytest.raises(ValueError, match="837 training images are in none of the folds"):
        evaluated(f"run={run}", f"audit={tmp_path}/sweep", "data=digits", "data.val_size=0")
    shutil.rmtree(tmp_path / "sweep/1")
    with pytest.raises(ValueError, match=r"a run of the same classes for every fold.*it has 0 of 2"):
        evaluated(f"run={run}", f"audit={tmp_path}/sweep")


def test_labels_are_judged_whatever_the_precision_of_the_test(run: Path) -> None:
    judged = [evaluated(f"run={run}", "audit=true", f"trainer.precision={bits}-true")[1]["audit"] for bits in (32, 64)]
    pd.testing.assert_frame_equal(*judged)


def test_what_cannot_be_audited_is_refused_before_the_test(run: Path) -> None:
    with pytest.raises(ValueError, match="would mix images"):
        evaluated(f"run={run}", "audit=true", "data.limit=500")
    with pytest.raises(FileNotFoundError, match="there is no folder sweep"):
        evaluated(f"run={run}", "audit=sweep")


def test_without_cleanlab_it_says_how_to_install_it(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install -e '\.\[audit\]'"):
        evaluated(f"run={trained_run}", "audit=true")
