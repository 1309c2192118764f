"""`predict(cfg)`: any image file is read as it looks, and a file that is no image stops nothing."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from src.predict import find_images, predict
from src.runs.run import open_run
from tests.conftest import composed, run_command


@pytest.fixture
def predicted(trained_run: Path):
    def inside(given: Path, output: Path, *more: str):
        options = [f"run={trained_run}", f'input="{given}"', f"paths.output_dir={output}"]
        return predict(composed(*options, *more, name="predict"))

    return inside


def values(objects) -> torch.Tensor:
    return torch.tensor([list(row["probabilities"].values()) for row in objects["predictions"]])  # (N, K)


@pytest.fixture(scope="module")
def digits(trained_run: Path) -> tuple[np.ndarray, torch.Tensor, list[str]]:
    """Twelve test digits (N, 32, 32), the network's probabilities of them (N, K), and its class names."""
    run = open_run(trained_run)
    run.datamodule.setup("test")
    images, _ = run.datamodule.examples("test", range(12))
    with torch.no_grad():
        return images[:, 0].numpy(), run.network(run.datamodule.preprocess(images)).softmax(1), run.classes


def save_grey(grey: np.ndarray, folder: Path) -> None:
    """One grey image in every way that shows the same picture."""
    folder.mkdir()
    image = Image.fromarray(grey)
    clear = Image.new("RGBA", image.size)
    clear.putalpha(Image.fromarray(255 - grey))  # transparent where the digit is: white behind black
    ways = {
        "grey.png": image, "rgb.png": image.convert("RGB"), "palette.png": image.convert("P"),
        "palette.gif": image.convert("P"), "rgba.webp": image.convert("RGBA"), "clear.png": clear,
        "deep.png": Image.fromarray(grey.astype(np.uint16) * 257), "upper.PNG": image,
    }  # fmt: skip
    for name, way in ways.items():
        way.save(folder / name, lossless=True)
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned by 90 degrees clockwise
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)


def test_every_mode_and_orientation_of_a_picture_gets_the_same_probabilities(digits, predicted, tmp_path: Path) -> None:
    grey, expected, classes = digits
    save_grey(grey[0], tmp_path / "ways")
    metrics, objects = predicted(tmp_path / "ways", tmp_path / "out")
    assert metrics["images"] == 9
    torch.testing.assert_close(values(objects), expected[:1].expand(9, -1), atol=1e-5, rtol=0)
    assert {row["prediction"] for row in objects["predictions"]} == {classes[int(expected[0].argmax())]}


def test_any_size_is_read(digits, predicted, tmp_path: Path) -> None:
    grey, _, _ = digits
    Image.fromarray(grey[0]).convert("CMYK").resize((300, 500)).save(tmp_path / "tall.jpg")
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.bmp")
    Image.new("L", (2000, 3)).save(tmp_path / "line.tiff")
    metrics, objects = predicted(tmp_path, tmp_path / "out")
    assert (metrics["images"], metrics["unreadable"]) == (3, 0)
    torch.testing.assert_close(values(objects).sum(dim=1), torch.ones(3), atol=1e-5, rtol=0)


def test_the_files_say_what_was_predicted_in_order_whatever_the_batches(digits, predicted, tmp_path: Path) -> None:
    grey, expected, classes = digits
    for i, image in enumerate(grey):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "02 broken.png").write_text("no image")
    _, objects = predicted(tmp_path, tmp_path / "out", "batch_size=5")
    assert [Path(row["file"]).name for row in objects["predictions"]] == [f"{i:02d}.png" for i in range(12)]
    torch.testing.assert_close(values(objects), expected, atol=1e-5, rtol=0)
    table = pd.read_csv(tmp_path / "out/predictions.csv", dtype={"prediction": str})
    record = json.loads((tmp_path / "out/predictions.json").read_text())
    assert (record["predictions"], record["classes"]) == (objects["predictions"], classes)
    assert [Path(row["file"]).name for row in record["unreadable"]] == ["02 broken.png"]
    for name in ("file", "prediction"):
        assert table[name].tolist() == [row[name] for row in objects["predictions"]]
    np.testing.assert_allclose(table[[f"p_{name}" for name in classes]], values(objects), rtol=1e-4)
    assert (tmp_path / "out/contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_files_folders_and_patterns_name_images(tmp_path: Path, monkeypatch, capsys) -> None:
    for name in ("a.png", "b.JPG", "inner/c.webp", "notes.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    assert [str(path) for path in find_images("a.png")] == ["a.png"]
    assert [path.name for path in find_images(str(tmp_path))] == ["a.png", "b.JPG", "c.webp"]
    assert "not those of images: 1 of 4 files" in capsys.readouterr().out
    assert [str(path) for path in find_images("**/*.webp")] == ["inner/c.webp"]
    assert [str(path) for path in find_images("[ab].*")] == ["a.png", "b.JPG"]


def test_nothing_to_look_at_is_said_and_leaves_nothing(predicted, tmp_path: Path) -> None:
    for given in ("*.png", "photo.jpg", ""):
        with pytest.raises(FileNotFoundError, match=r"input=.*no image has that name, lies in it or matches it"):
            predicted(tmp_path / given, tmp_path / "out")
    with pytest.raises(ValueError, match="say what to look at"):
        predict(composed(name="predict"))
    assert not (tmp_path / "out").exists()


def test_the_command_lists_unreadable_files_and_ends_with_2(digits, trained_run: Path, tmp_path: Path) -> None:
    image = Image.fromarray(digits[0][0]).resize((64, 64))
    image.save(tmp_path / "photo (1), [new].jpg")
    whole = (tmp_path / "photo (1), [new].jpg").read_bytes()
    broken = {"cut.jpg": whole[: len(whole) // 2], "text.png": b"a text file", "empty.gif": b""}
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
    options = [f"run={trained_run}", f"paths.output_dir={tmp_path}/out"]
    done = run_command("-m", "src.predict", *options, f"input={tmp_path}")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert all(f"not read: {tmp_path / name}" in done.stderr for name in broken)
    assert "3 of 4 files could not be read" in done.stderr
    assert "predictions.csv" in done.stdout
    for name, code in (("photo (1), [new].jpg", 1), ('"photo (1), [new].jpg"', 0)):  # quoted for Hydra
        done = run_command("-m", "src.predict", *options, f"input={name}", cwd=tmp_path)
        assert done.returncode == code, done.stderr
        assert ("'KEY=\"VALUE\"'" in done.stderr) == (code == 1)
