"""The README's commands: each one composes, and those that read a run work one after another on a run."""

import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image

from src.runs.values import check_values
from tests.conftest import QUICK, ROOT, SILENT, TRIED, composed, run_well

TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.strip() and not line.startswith("#")
]
TRAININGS = [command[command.index("src.train") + 1 :] for command in COMMANDS if "src.train" in command]


@pytest.mark.parametrize("arguments", TRAININGS, ids=" ".join)
def test_a_training_command_composes(arguments: list[str], tmp_path: Path) -> None:
    given = [a for a in arguments if not a.startswith(("-", "resume=", "resume_sweep=", "hydra"))]
    overrides = []
    for override in OverridesParser.create().parse_overrides(given):
        # Of a sweep, its first job; a search's interval stands for any number in it.
        if override.is_sweep_override() and not override.is_interval_sweep():
            overrides.append(f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}")
        elif not override.is_sweep_override():
            overrides.append(str(override.input_line).replace("/path/to/images", str(tmp_path)))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
    check_values(composed(*overrides, folder=tmp_path), "train")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("most", [1, pytest.param(None, marks=pytest.mark.slow)])  # commands of each entry point
def test_train_resume_evaluate_predict_export_and_report_work_one_after_another(most: int, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photos/red.png")
    commands = [["-m", "src.train", *QUICK, *SILENT], ["-m", "src.train", "resume=latest", "trainer.max_epochs=3"]]
    for module in ("src.eval", "src.predict", "src.export", "src.report"):
        commands += [command[1:] for command in COMMANDS if command[:3] == ["python", "-m", module]][:most]
    if most is None:  # another run, to compare with
        second = [
            ["-m", "src.train", *QUICK, *SILENT, "seed=1", "hydra.run.dir=second"],
            ["-m", "src.eval", "run=second"],
        ]
        commands = [*second, *commands]
    assert len(commands) >= (18 if most is None else 6)
    for command in commands:
        if "RUN_A" in command:
            (first,) = (tmp_path / "logs/train/runs").glob("2*")
            command = [{"RUN_A": str(first), "RUN_B": "second"}.get(word, word) for word in command]
        run_well(*command, cwd=tmp_path, cold=most is None)
    (run,) = (tmp_path / "logs/train/runs").glob("2*")
    assert (run / "predictions.csv").is_file()
    assert list((run / "figures").glob("*.png"))
    assert list(run.glob("export/*.onnx"))


def test_the_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"make ([a-z-]+)", TEXT)) <= targets


def test_the_table_of_reliability_has_all_that_the_suite_tries_and_all_of_it_held() -> None:
    lines = re.findall(r"^\| (.+) \| ([\d,]+) of ([\d,]+) \|$", TEXT, re.MULTILINE)
    assert [what for what, _, _ in lines] == list(TRIED.values())
    assert all(held == tried for _, held, tried in lines)
