"""Figures say what the arrays hold, clip nothing and need neither a screen nor torch."""

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from src import figures
from src.figures.style import percent_ticks, short

pytestmark = pytest.mark.renders
RNG = np.random.default_rng(0)
TEN = [f"class {i}" for i in range(10)]
HUNDRED = [f"a class with quite a long name, number {i}" if i % 5 == 0 else f"name {i}" for i in range(100)]


def history(epochs: int = 12) -> dict[str, Any]:
    at = np.arange(epochs)
    return {
        "epoch": at,
        "train/loss": 2 * 0.7**at,
        "train/acc": 1 - 0.8 * 0.7**at,
        "val/loss": 1 + (at - 4) ** 2 / 50,
        "val/acc": 0.8 - 0.5 * 0.7**at,
    }


def probabilities(number: int, classes: int) -> np.ndarray:
    return RNG.dirichlet(np.ones(classes) * 0.2, number)


def every_figure(classes: list[str]) -> dict[str, figures.Figure]:
    k = len(classes)
    images = RNG.integers(0, 256, (14, 3, 16, 16), dtype=np.uint8)
    answers = [[classes[i] for i in RNG.choice(np.delete(np.arange(k), 1), 30 * k)] for _ in range(2)]
    recall = RNG.random(k)
    recall[1] = np.nan
    rows = probabilities(14, k)
    bars = {"accuracy": recall, "precision": RNG.random(k), "F1": RNG.random(k)}
    return {
        "curves": figures.curves(history(), "a title of a run that goes on for quite a while, seed 0"),
        "one epoch": figures.curves(history(1), "one epoch"),
        "compare": figures.compare({name: [history(), history(9)] for name in classes[:7]}, "runs"),
        "confusion": figures.confusion_matrix(*answers, classes, "network on data (test)"),
        "bars": figures.class_bars(bars, classes, "", "per class"),
        "balance": figures.class_bars({"images": np.arange(k)}, classes, "images", shares=False),
        "reliability": figures.reliability(rows.max(1), rows.argmax(1) == 0, title="network on data (test)"),
        "examples": figures.examples(images, np.zeros(14, int), rows, classes, "wrong with most confidence"),
        "no examples": figures.examples(images[:0], [], rows[:0], classes, "wrong with most confidence"),
        "heat": figures.heat_maps(
            images[:3], [RNG.random((3, 16, 16))] * 2, np.zeros(3, int), rows[:3], classes, "wrong\n" + "it looks " * 9
        ),
        "no heat": figures.heat_maps(images[:0], [np.zeros((0, 16, 16))], [], rows[:0], classes, "right"),
        "filters": figures.filters(RNG.normal(size=(70, 3, 5, 5)), "the first layer"),
        "maps": figures.feature_maps(
            images[:2], {name: RNG.random((2, 9, 4, 4)) for name in classes[:3]}, "some layers"
        ),
        "data map": figures.data_map(RNG.random(99) / 2, RNG.random(99), RNG.random(99), "network on data"),
        "empty data map": figures.data_map([np.nan], [np.nan], [np.nan], "network on data"),
        "corruptions": figures.corruption_curves(
            {c: {f"{c} {i}": RNG.random(5) for i in range(4)} for c in classes[:5]}, 0.9
        ),
        "a corruption": figures.corruption_curves(
            {"weather": {"fog": RNG.random(5)}}, 0.9, "network on data, test, corrupted"
        ),
        "sheet": figures.image_grid(list(images), [f"a_rather_long_file_name_{i}.png" for i in range(14)]),
    }


@pytest.mark.parametrize("classes", [TEN, HUNDRED], ids=["10 classes", "100 classes"])
def test_no_text_leaves_any_figure(classes: list[str]) -> None:
    for name, figure in every_figure(classes).items():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        drawn = figure.get_tightbbox(canvas.get_renderer())  # inches, of all that is visible
        width, height = figure.get_size_inches()
        assert min(drawn.x0, drawn.y0, width - drawn.x1, height - drawn.y1) >= -1e-9, name


def test_optunas_plots_are_drawn_in_the_house_style_and_nothing_of_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import optuna
    from matplotlib import rcParams
    from matplotlib.figure import Figure
    from matplotlib.style import library

    from src.sweeps.plots import draw

    before, theirs, drawn = rcParams["axes.prop_cycle"], library["ggplot"].copy(), set()

    def look(figure: Figure, path: Path) -> None:
        drawn.add((figure.axes[0].get_facecolor(), *rcParams["axes.prop_cycle"].by_key()["color"]))

    monkeypatch.setattr(Figure, "savefig", look)
    study = optuna.create_study()
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    draw(study, ["val/loss"], tmp_path)
    assert drawn == {((1, 1, 1, 1), *figures.COLOURS)}
    assert rcParams["axes.prop_cycle"] == before
    assert library["ggplot"] == theirs


def test_drawing_imports_neither_torch_nor_pyplot() -> None:
    code = (
        "import sys, src.figures as f; f.curves({'epoch': [0], 'val/loss': [1.0]}).png;"
        "print([m for m in ('torch', 'lightning', 'matplotlib.pyplot') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_over_fitting_begins_at_the_lowest_validation_loss() -> None:
    assert figures.overfit_epoch(history()) == 4
    holes = {"epoch": [0, 0, 1, 2, 3], "val/loss": [np.nan, 0.9, 0.5, np.nan, 0.7]}
    assert figures.overfit_epoch(holes) == 1
    assert figures.overfit_epoch({"epoch": [0, 1], "train/loss": [2.0, 1.0]}) is None


def test_curves_mark_over_fitting_only_where_it_was_seen() -> None:
    note = figures.curves(history()).axes[0].get_title(loc="left")
    assert note == "lowest validation loss: epoch 4 (dashed), then over-fitting (grey)"
    assert "over-fitting" not in figures.curves(history(4)).axes[0].get_title(loc="left")


def test_whatever_a_run_logged_has_a_panel_losses_first_and_speeds_none() -> None:
    given = {**history(), "val/acc_top5": history()["val/acc"], "train/score": np.arange(12), "lr-SGD": np.ones(12)}
    figure = figures.curves({**given, "train/images_per_s": np.ones(12)})
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy", "top-5 accuracy", "score"]
    assert [line.get_label() for line in figure.axes[3].lines[:1]] == ["training"]
    (axes,) = figures.curves({"epoch": [0, 1], "train/score": [3.0, 4.0]}).axes
    assert axes.get_ylabel() == "score"
    (axes,) = figures.compare({"a": [{"epoch": [0, 1], "train/score": [3.0, 4.0]}]}).axes
    assert axes.get_ylabel() == "training score"
    assert len(figures.curves({"epoch": [0], **{f"val/{name}": [1.0] for name in "abcdefgh"}}).axes) == 6
    assert len(figures.curves({"epoch": []}).axes) == len(figures.compare({}).axes) == 1, "an empty panel"


def test_comparing_draws_the_mean_over_the_epochs_all_runs_have() -> None:
    short, long = {"epoch": [0, 1], "val/acc": [0.2, 0.4]}, {"epoch": [0, 1, 2], "val/acc": [0.4, 0.8, 0.9]}
    lines = figures.compare({"two seeds": [short, long]}).axes[0].lines
    assert lines[-1].get_label() == "two seeds (n = 2)"
    np.testing.assert_allclose(lines[-1].get_ydata(), [0.3, 0.6])


def test_a_long_legend_takes_no_room_from_the_panels() -> None:
    history, heights = {"epoch": [0, 1], "val/acc": [0.2, 0.4]}, []
    for count in (1, 12):
        figure = figures.compare({f"a configuration with a long name, number {i}": [history] for i in range(count)})
        assert figure.png  # which lays it out
        heights.append(figure.axes[0].get_position().height * figure.get_figheight())
    assert heights[1] > 0.9 * heights[0]


def test_confusion_matrix_shows_counts_and_shares_of_the_true_class() -> None:
    labels, predictions = ["cat"] * 4 + ["dog"] * 4, ["cat"] * 3 + ["dog"] * 5
    figure = figures.confusion_matrix(labels, predictions, ["cat", "dog", "unseen"])
    axes = figure.axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    written = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert written == {((0, 0), "3"), ((1, 0), "1"), ((1, 1), "4"), ((1.0, 2), "no images")}
    assert "7 of 8 images right (87.50 %)" in axes.get_title()


def test_calibration_bins_match_a_hand_worked_case() -> None:
    # Bins (0, .5] and (.5, 1]: one image each at .5 (wrong) and .6 (right), .8 (wrong).
    axes = figures.reliability([0.5, 0.6, 0.8], [False, True, False], bins=2).axes[0]
    accuracy, gap = axes.containers
    np.testing.assert_allclose([bar.get_height() for bar in accuracy], [0.0, 0.5])
    np.testing.assert_allclose([bar.get_y() for bar in gap], [0.5, 0.7])
    assert f"{100 * (0.5 * 1 + 0.2 * 2) / 3:.2f} % (2 bins, 3 images)" in axes.get_title()


def test_an_axis_of_shares_has_no_more_digits_than_its_numbers_need() -> None:
    shares = [0.0, -1e-17, 0.1 + 0.2, 0.9725, 0.00125, 1.0]
    assert list(map(percent_ticks(), shares)) == ["0 %", "0 %", "30 %", "97.25 %", "0.125 %", "100 %"]
    figure = figures.reliability([0.5, 0.6, 0.8, 0.8], [False, True, False, True], bins=15)
    assert {tick.get_text().partition(".")[1] for axes in figure.axes for tick in axes.get_yticklabels()} == {""}


def test_calibration_error_agrees_with_torchmetrics() -> None:
    import torch
    from torchmetrics.functional.classification import multiclass_calibration_error

    rows, labels = probabilities(500, 7), RNG.integers(0, 7, 500)
    title = figures.reliability(rows.max(1), rows.argmax(1) == labels).axes[0].get_title()
    theirs = multiclass_calibration_error(torch.tensor(rows), torch.tensor(labels), 7, n_bins=15)
    assert f"error {100 * theirs.item():.2f} %" in title


def test_class_bars_put_the_lowest_first_and_classes_without_images_last() -> None:
    axes = figures.class_bars({"accuracy": [0.9, np.nan, 0.2]}, ["a", "b", "c"], "").axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["c", "a", "b"]
    assert [text.get_text() for text in axes.texts] == ["20.0 %", "90.0 %", "no images"]


def test_above_a_hundred_classes_the_lowest_hundred_are_shown() -> None:
    names = [f"n{i}" for i in range(250)]
    figure = figures.class_bars({"accuracy": np.linspace(1, 0, 250)}, names, "", "test")
    shown = [tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()]
    assert shown == [f"n{i}" for i in range(249, 149, -1)]
    assert "100 lowest of 250" in figure.get_suptitle()


def test_example_frames_are_blue_when_right_and_vermilion_when_wrong() -> None:
    from matplotlib.colors import to_hex

    images = np.zeros((2, 3, 8, 8), np.uint8)
    figure = figures.examples(images, [0, 0], [[0.9, 0.1], [0.25, 0.75]], ["a$b$", "dog"])
    (axes,) = figure.axes
    frames = [to_hex(frame.get_edgecolor()).upper() for frame in axes.patches]
    assert frames == [figures.BLUE, figures.VERMILION]
    assert axes.texts[1].get_text() == "predicted: dog (75.0 %)\ntrue: a$b$ (25.0 %)"


def test_a_probability_is_called_certain_only_where_it_is() -> None:
    figure = figures.examples(np.zeros((2, 3, 8, 8), np.uint8), [1, 1], [[1.0, 0.0], [0.9999, 0.0001]], ["a", "b"])
    captions = [text.get_text() for text in figure.axes[0].texts]
    assert captions == ["predicted: a (100.0 %)\ntrue: b (0.0 %)", "predicted: a (>99.9 %)\ntrue: b (<0.1 %)"]


def test_long_names_lose_their_middle() -> None:
    assert short("abcdefghij", 5) == "ab…ij"
    assert short("abcde", 5) == "abcde"


def test_a_page_gets_figures_as_they_are_and_photographs_small() -> None:
    noise = np.random.default_rng(0).integers(256, size=(384, 384, 3), dtype=np.uint8)
    for pixels, exact in ((noise // 64 * 64, True), (noise, False), (np.full_like(noise, 7), True)):
        Image.fromarray(pixels).save(png := BytesIO(), "PNG")
        webp, width = figures.compact(png.getvalue())
        assert width == 384
        assert np.array_equal(np.array(Image.open(BytesIO(webp))), pixels) == exact


def test_a_figure_is_the_same_picture_as_file_pixels_and_notebook_output(tmp_path: Path) -> None:
    grey = np.full((3, 3, 8, 8), 128, np.uint8)
    figure = figures.image_grid(grey)
    path = figures.save(figure, tmp_path / "figures" / "grid.png")
    assert path.read_bytes() == figure._repr_png_()
    assert figure.png.startswith(b"\x89PNG\r\n\x1a\n")
    picture = figures.pixels(figure)
    assert picture.shape[:2] == tuple(round(side * 160) for side in figure.get_size_inches()[::-1])
    assert (picture == 128).all(axis=2).mean() > 0.3


@pytest.mark.parametrize(("count", "columns"), [(24, 4), (10, 5), (7, 4), (5, 5), (4, 4), (2, 2), (1, 1)])
def test_a_grid_of_images_leaves_as_few_holes_as_it_can(count: int, columns: int) -> None:
    images, rows = np.zeros((count, 3, 8, 8), np.uint8), np.full((count, 2), 0.5)
    axes = figures.examples(images, np.zeros(count, int), rows, ["automobile", "ship"]).axes[0]  # five fit
    assert len({round(text.get_position()[0], 3) for text in axes.texts}) == columns
