"""Intervals and paired tests against scipy and what was worked out by hand; runs compared on the same images."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, norm

from src.evaluation.comparison import differences, mcnemar, other_images, resampled
from src.evaluation.intervals import deviations, wilson
from src.report import paired, report
from src.runs.folder import RunError, write_csv
from src.runs.table import overview
from tests.conftest import run_well
from tests.test_report import make_run


def test_wilsons_interval_is_scipys_whatever_the_shape() -> None:
    right, number = np.array([[0, 1], [7, 9297]]), np.array([[5, 1], [10, 10_000]])
    low, high = wilson(right, number)
    for place in np.ndindex(right.shape):
        expected = binomtest(int(right[place]), int(number[place])).proportion_ci(0.95, "wilson")
        assert (low[place], high[place]) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert np.isnan(wilson(0, 0)).all()


def test_the_deviations_of_two_runs_are_those_worked_out_by_hand() -> None:
    # Each image's answers are 0 and 1, variance 1/2, so that two of them explain 2 * 1/2 / 2^2 = 1/4 of variance.
    apart = deviations(
        np.array([[1, 1], [0, 0]], bool)
    )  # accuracies 1 and 0, variance 1/2: 2 / 1 * (1/2 - 1/4) is left
    assert apart == pytest.approx({"images": 2, "sampling": 0.125**0.5, "explained": 0.5, "beyond": 0.5**0.5})
    assert deviations(np.array([[1, 0], [0, 1]], bool))["beyond"] == 0, "less than the images explain"
    assert deviations(np.array([[1, 1, 1, 0]], bool)) == pytest.approx({"images": 4, "sampling": (3 / 64) ** 0.5})


def test_the_deviation_beyond_the_images_is_the_one_that_runs_were_drawn_with() -> None:
    generator = np.random.default_rng(0)
    images = generator.beta(2, 0.5, size=4000)  # each image's chance to be told right
    variances = []
    for planted in (0.0, 0.02):
        squares = []
        for _ in range(60):
            quality = planted * generator.choice([-1, 1], size=(5, 1))  # of each of five runs
            chances = np.clip(images + quality, 0, 1)
            found = deviations(generator.random((5, 4000)) < chances)
            squares.append(found["beyond"] ** 2)
        variances.append(np.mean(squares))
    true = np.clip(images + 0.02, 0, 1).mean() - np.clip(images - 0.02, 0, 1).mean()  # between the better and the worse
    assert variances[0] < variances[1] / 10  # above 0, because an estimate below 0 counts as 0
    assert variances[1] == pytest.approx((true / 2) ** 2, rel=0.15)


def test_mcnemars_test_is_exact() -> None:
    # Of 12 images that one alone is right on, 2 or fewer are the one's: 2 * (1 + 12 + 66) / 2^12.
    assert mcnemar(10, 2) == mcnemar(2, 10) == pytest.approx(2 * 79 / 4096)
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1


def answered(right: int, only_a: int, only_b: int, wrong: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [right, only_a, only_b, wrong])
    b = np.repeat([True, False, True, False], [right, only_a, only_b, wrong])
    return a, b


def test_the_difference_of_two_runs_has_the_interval_of_paired_shares() -> None:
    a, b = answered(700, 60, 40, 200)
    (row,) = differences({"a": a[None], "b": b[None]}).to_dict("records")
    assert [row[key] for key in ("acc_first", "acc_second", "difference")] == pytest.approx([0.76, 0.74, 0.02])
    assert (row["images"], row["only_first"], row["only_second"], row["test"]) == (1000, 60, 40, "McNemar")
    half = norm.ppf(0.975) * (100 / 1000**2 - 0.02**2 / 1000) ** 0.5  # of a difference of paired shares
    assert (row["low"], row["high"]) == pytest.approx((0.02 - half, 0.02 + half), abs=1.5e-3)
    assert row["p"] == pytest.approx(binomtest(40, 100).pvalue)
    (twice,) = differences({"a": np.stack([a, a]), "b": np.stack([b, b])}).to_dict("records")  # runs that never differ
    assert (twice["low"], twice["high"]) == pytest.approx((0.02 - half, 0.02 + half), abs=1.5e-3)
    assert twice["p"] == pytest.approx(2 * norm.sf(0.02 / (half / norm.ppf(0.975))), abs=0.01)


def test_images_of_a_draw_are_the_same_for_all_and_runs_are_drawn_beside_them() -> None:
    a, b = answered(300, 0, 0, 100)
    drawn = resampled([a[None], b[None]])
    np.testing.assert_array_equal(drawn[:, 0], drawn[:, 1])
    assert drawn.std() == pytest.approx((0.75 * 0.25 / 400) ** 0.5, rel=0.05)
    # Runs that are right on all images or on none: the images add nothing, and the mean of four has s^2 / 4.
    runs = np.array([1, 0, 1, 0], bool)[:, None].repeat(50, axis=1)
    assert resampled([runs]).std() == pytest.approx((1 / 3 / 4) ** 0.5, rel=0.05)
    assert resampled([runs[:2]]).var() == pytest.approx(1 / 2 / 2, rel=0.05)


def test_the_bootstrap_of_patterns_is_that_of_images() -> None:
    generator = np.random.default_rng(1)
    groups = [generator.random((3, 200)) < 0.7, generator.random((1, 200)) < 0.6]
    every, plain = np.concatenate(groups), []
    for _ in range(4000):
        accuracies = every[:, generator.integers(0, 200, 200)].mean(axis=1)
        weights = 1 / 3 + (generator.multinomial(3, [1 / 3] * 3) / 3 - 1 / 3) * 1.5**0.5
        plain.append([weights @ accuracies[:3], accuracies[3]])
    drawn = resampled(groups)
    np.testing.assert_allclose(drawn.mean(axis=0), np.mean(plain, axis=0), atol=0.003)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(np.transpose(plain)), atol=1e-4)


def test_configurations_of_several_runs_are_told_apart_only_by_more_than_their_seeds() -> None:
    generator = np.random.default_rng(2)
    chances = generator.beta(2, 0.5, size=2000)

    def runs(*qualities: float) -> np.ndarray:
        return np.stack([generator.random(2000) < np.clip(chances + quality, 0, 1) for quality in qualities])

    steady = differences({"a": runs(0.05, 0.05, 0.05), "b": runs(0, 0, 0)})
    wide = differences({"a": runs(-0.1, 0.05, 0.2), "b": runs(-0.15, 0, 0.15)})
    assert list(steady["test"]) == list(wide["test"]) == ["bootstrap"]
    assert steady["p"][0] < 0.01
    assert wide["p"][0] > 0.2
    assert wide["low"][0] < 0 < wide["high"][0]


def test_how_images_differ_is_told() -> None:
    frame = pd.DataFrame({"label": ["a", "b", "a"], "brightness": [0.1, 0.5, 0.9]})
    assert other_images(frame, frame.assign(brightness=[0.1, 0.5, 0.901])) == ""
    assert other_images(frame, frame[:2]) == "3 and 2 images"
    assert "1 of 3 have another label, the first is image 1: b, a" in other_images(frame, frame.assign(label="a"))
    moved = frame.assign(brightness=[0.1, 0.9, 0.5])
    assert "2 of 3 have another brightness, the first is image 1: 0.5, 0.9" in other_images(frame, moved)
    assert other_images(frame, moved, ["label"]) == ""


def evaluated(folder: Path, *overrides: str, right: np.ndarray, **more) -> Path:
    """A run folder with the predictions of an evaluation, as many images of each label in turn."""
    run = make_run(folder, *overrides, test=float(right.mean()), **more)
    names = np.array(list("abcd"))[np.arange(len(right)) % 4]
    frame = pd.DataFrame({"image": range(len(right)), "label": names, "prediction": np.where(right, names, "none")})
    write_csv(run / "predictions.csv", frame.assign(confidence=0.5, brightness=np.linspace(0, 1, len(right))))
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three configurations: two of one run, one of two seeds."""
    a, b = answered(60, 16, 4, 20)
    for name, lr, seed, right in (("a", 1, 0, a), ("b", 2, 0, b), ("c", 3, 0, a), ("d", 3, 1, ~b)):
        evaluated(tmp_path / name, f"seed={seed}", f"optimizer.lr={lr}", right=right, val=0.9 - lr / 10)
    return tmp_path


def test_runs_are_compared_in_pairs_and_seeds_are_one(folder: Path) -> None:
    found, _, files = paired([folder], folder / "out")
    whole = found[found["class"] == ""]
    assert whole[["first", "second", "test"]].values.tolist() == [
        ["lr=1", "lr=2", "McNemar"], ["lr=1", "lr=3 (n = 2)", "bootstrap"], ["lr=2", "lr=3 (n = 2)", "bootstrap"],
    ]  # fmt: skip
    assert whole["acc_second"].tolist() == pytest.approx([0.64, 0.56, 0.56])
    p = binomtest(4, 20).pvalue
    assert whole["p"][0] == pytest.approx(p)
    assert whole["corrected"][0] == pytest.approx(min(1, p * (1 + sum(whole["p"] > p))))
    part = found[(found["class"] == "a") & (found["second"] == "lr=2")].iloc[0]
    assert (part["images"], part["only_first"], part["only_second"]) == (25, 4, 1)
    assert [path.name for path in files] == ["comparison.csv", "comparison.md"]
    pd.testing.assert_frame_equal(pd.read_csv(files[0], keep_default_na=False), found, check_dtype=False)
    assert "| lr=1 | lr=2 | 100 | 76.00 %, 64.00 % | 12.00 % (" in files[1].read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame[:-1], "100 and 99 images"),
        (lambda frame: frame.assign(label=frame["label"].shift(fill_value="d")), "100 of 100 have another label"),
        (lambda frame: frame.assign(brightness=0.5), "another brightness"),
        (lambda frame: frame.drop(columns="brightness"), "is no table of predictions with"),
        (lambda frame: frame[:0], "has no predictions"),
    ],
)
def test_runs_on_other_images_are_refused(folder: Path, change, message: str) -> None:
    path = folder / "b/predictions.csv"
    write_csv(path, change(pd.read_csv(path)))
    with pytest.raises(RunError, match=message):
        paired([folder])
    assert not (folder / "report").exists()


def test_images_of_another_size_are_the_same_by_their_labels(folder: Path) -> None:
    config, path = folder / "b/.hydra/config.yaml", folder / "b/predictions.csv"
    config.write_text(config.read_text().replace("data:\n", "data:\n  image_size: 64\n"))
    write_csv(path, pd.read_csv(path).assign(brightness=0.5))
    assert len(paired([folder / "a", folder / "b"])[0]) == 5
    write_csv(path, pd.read_csv(path).assign(label="a"))
    with pytest.raises(RunError, match="another label"):
        paired([folder / "a", folder / "b"])


def test_what_is_missing_is_asked_for(folder: Path) -> None:
    with pytest.raises(ValueError, match="say which runs"):
        paired([])
    with pytest.raises(ValueError, match="at least two configurations"):
        paired([folder / "c", folder / "d"])
    (folder / "a/predictions.csv").unlink()
    with pytest.raises(RunError, match=f"has no predictions.csv yet: python -m src.eval run={folder / 'a'}"):
        paired([folder])


def test_the_command_prints_the_pairs_and_the_classes(folder: Path) -> None:
    results = json.loads((folder / "d/results.json").read_text())
    (folder / "d/results.json").write_text(json.dumps({**results, "status": "trained"}))
    code = "import sys; from src import report; report.main(); print('torch' in sys.modules)"
    output = run_well("-c", f"import sys; sys.argv = ['report', 'compare', {str(folder)!r}]; {code}")
    assert "12.00 % (" in output
    assert f"unfinished: {folder / 'd'}" in output
    assert output.splitlines()[-1] == "False"


def test_the_report_tells_what_the_images_explain_from_what_the_seeds_do(folder: Path) -> None:
    rows, _, _ = report([folder])
    frame = overview(rows)
    place = list(frame).index("test/acc")
    assert list(frame)[place : place + 3] == ["test/acc", "± images", "± beyond"]
    assert frame.iloc[0, place : place + 3].tolist() == ["76.00 %", "± 4.27 %", ""]  # sqrt(.76 * .24 / 100)
    assert rows[2].metrics["test/acc"]["beyond"] > 0.1, "76 and 36 % on the same images are no accident of these"
    assert "± beyond: what then remains" in (folder / "report/report.html").read_text()
    (folder / "d/predictions.csv").unlink()
    assert overview(report([folder])[0])["± images"].tolist() == ["± 4.27 %", "± 4.80 %", ""]
