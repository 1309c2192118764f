"""`predict(cfg)`: any image file is read as it looks, and a file that is no image stops nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from src.predict import find_images, predict
from src.run import open_run
from tests.conftest import ROOT, run_command
from tests.test_eval import trained_run


def predicted(given: Path | str, output: Path, *overrides: str):
    options = [f"run={trained_run()}", f"paths.output_dir={output}", *overrides]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("predict", options)
    cfg.input = str(given)
    return predict(cfg)


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, torch.Tensor, list[str]]:
    """Twelve test digits (N, 32, 32), the network's probabilities of them (N, K), and its class names."""
    run = open_run(trained_run())
    run.datamodule.setup("test")
    images = run.datamodule.test_set.images[:12]
    with torch.no_grad():
        return images[:, 0].numpy(), run.network(run.datamodule.preprocess(images)).softmax(1), run.classes


def save_grey(grey: np.ndarray, folder: Path) -> dict[str, Path]:
    """One grey image in every way that shows the same picture."""
    folder.mkdir()
    image = Image.fromarray(grey)
    turned = image.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    orientation = turned.getexif()
    orientation[0x112] = 6  # to be shown turned by 90 degrees clockwise
    clear = Image.new("RGBA", image.size)
    clear.putalpha(Image.fromarray(255 - grey))  # transparent where the digit is: white behind black
    ways = {
        "grey.png": image, "rgb.png": image.convert("RGB"), "palette.png": image.convert("P"),
        "palette.gif": image.convert("P"), "rgba.webp": image.convert("RGBA"), "clear.png": clear,
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257), "upper.PNG": image,
    }  # fmt: skip
    for name, way in ways.items():
        way.save(folder / name, **({"lossless": True} if name.endswith("webp") else {}))
    turned.save(folder / "turned.png", exif=orientation)
    return {path.name: path for path in folder.iterdir()}


def test_every_mode_and_orientation_of_a_picture_gets_the_same_probabilities(digits, tmp_path: Path) -> None:
    grey, expected, classes = digits
    ways = save_grey(grey[0], tmp_path / "ways")
    metrics, objects = predicted(tmp_path / "ways", tmp_path / "out")
    assert metrics["images"] == len(ways) == 9
    for row in objects["predictions"]:
        values = torch.tensor([row["probabilities"][name] for name in classes])
        torch.testing.assert_close(values, expected[0], atol=1e-5, rtol=0, msg=row["file"])
        assert row["prediction"] == classes[int(expected[0].argmax())]


def test_any_size_is_read(digits, tmp_path: Path) -> None:
    grey, _, _ = digits
    Image.fromarray(grey[0]).convert("CMYK").resize((300, 500)).save(tmp_path / "tall.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.bmp")
    Image.new("L", (2000, 3)).save(tmp_path / "line.tiff")
    metrics, objects = predicted(tmp_path, tmp_path / "out")
    assert (metrics["images"], metrics["unreadable"]) == (3, 0)
    assert all(sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5) for row in objects["predictions"])


def test_batches_do_not_change_the_order_or_the_numbers(digits, tmp_path: Path) -> None:
    grey, expected, _ = digits
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    _, objects = predicted(tmp_path, tmp_path / "out", "batch_size=5")
    assert [Path(row["file"]).name for row in objects["predictions"]] == [f"{i:02d}.png" for i in range(12)]
    values = torch.tensor([list(row["probabilities"].values()) for row in objects["predictions"]])
    torch.testing.assert_close(values, expected, atol=1e-5, rtol=0)


def test_the_files_say_what_was_predicted(digits, tmp_path: Path) -> None:
    grey, _, classes = digits
    save_grey(grey[1], tmp_path / "ways")
    (tmp_path / "ways/broken.png").write_text("no image")
    _, objects = predicted(tmp_path / "ways", tmp_path / "out")
    with (tmp_path / "out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert record["predictions"] == objects["predictions"]
    assert record["classes"] == classes
    assert [Path(row["file"]).name for row in record["unreadable"]] == ["broken.png"]
    for row, expected in zip(rows, objects["predictions"], strict=True):
        assert (row["file"], row["prediction"]) == (expected["file"], expected["prediction"])
        assert float(row["p_3"]) == pytest.approx(expected["probabilities"]["3"], rel=1e-4)
    assert (tmp_path / "out/contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_files_folders_and_patterns_name_images(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.png", "b.JPG", "inner/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images("a.png")] == ["a.png"]
    assert [path.name for path in find_images(str(tmp_path))] == ["a.png", "b.JPG", "c.webp"]
    assert "1 files" in capsys.readouterr().out
    assert [str(path) for path in find_images("**/*.webp")] == ["inner/c.webp"]
    assert [str(path) for path in find_images("[ab].*")] == ["a.png", "b.JPG"]


def test_nothing_to_look_at_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    for given, message in (("*.png", "no file matches"), ("photo.jpg", "no such file"), (str(tmp_path), "no image")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            predicted(given if "/" in given else tmp_path / given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_lists_unreadable_files_and_ends_with_2(digits, tmp_path: Path) -> None:
    image = Image.fromarray(digits[0][0]).resize((64, 64))
    image.save(tmp_path / "photo (1), [new].jpg")
    whole = (tmp_path / "photo (1), [new].jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("a text file")
    (tmp_path / "empty.gif").touch()
    options = [f"run={trained_run()}", f"paths.output_dir={tmp_path}/out"]
    done = run_command("-m", "src.predict", *options, f"input={tmp_path}")
    assert done.returncode == 2, done.stderr
    for name in ("cut.jpg", "text.png", "empty.gif"):
        assert f"not read: {tmp_path / name}" in done.stderr
    assert "3 of 4 files could not be read" in done.stderr
    assert "Traceback" not in done.stderr
    assert "predictions.csv" in done.stdout
    done = run_command("-m", "src.predict", *options, f"input={tmp_path / 'photo (1), [new].jpg'}")
    assert done.returncode == 0, done.stderr
