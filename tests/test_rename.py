"""One command makes the template somebody's own project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.rename import rename
from tests.conftest import ROOT


def test_the_word_is_renamed_wherever_it_names_the_package_and_nowhere_else(tmp_path: Path) -> None:
    files = {
        "src/train.py": 'from src import cli\nimport src.cli\nroot / "src"  # lightning-classics, resources\n',
        "conf/model/a.yaml": "# python -m src.train\n_target_: src.networks.vgg.VGG\n",
        "src/page.html": '<img src="data:image/png">',
        "tests/test_page.py": "re.search(r'(src|href)=')\n",
        "logs/kept.yaml": "_target_: src.networks.vgg.VGG\n",
        "Makefile": "\truff check src tests\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / ".ruff_cache").mkdir()
    (tmp_path / ".ruff_cache/0123").write_bytes(b"\xff src.")  # no text
    changed = rename("my_lab", tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in changed} == {
        "src/train.py",
        "conf/model/a.yaml",
        "Makefile",
    }
    files |= {
        "src/train.py": 'from my_lab import cli\nimport my_lab.cli\nroot / "my_lab"  # my-lab, resources\n',
        "conf/model/a.yaml": "# python -m my_lab.train\n_target_: my_lab.networks.vgg.VGG\n",
        "Makefile": "\truff check my_lab tests\n",
    }
    for name, text in files.items():
        assert (tmp_path / name.replace("src/", "my_lab/")).read_text() == text, name


@pytest.mark.parametrize("name", ["My-Lab", "2nd", "", "json", "torch", "conf", "../lab"])
def test_a_name_that_is_none_or_taken_is_refused_and_changes_nothing(name: str, tmp_path: Path) -> None:
    for folder in ("src", "conf"):
        (tmp_path / folder).mkdir()
    (tmp_path / "src/a.py").write_text("import src\n")
    with pytest.raises(ValueError, match=r"choose another name|no name for a package"):
        rename(name, tmp_path)
    assert (tmp_path / "src/a.py").read_text() == "import src\n"


@pytest.mark.slow
def test_the_renamed_project_is_clean_and_passes_its_tests(tmp_path: Path) -> None:
    def run(*command: str) -> str:
        options = {"cwd": tmp_path / "lab", "env": {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path / "lab")}}
        done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, **options)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", "logs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "lab", ignore=out)
    run("src.rename", "mylab")
    run("ruff", "check", "mylab", "tests", "hydra_plugins")
    run("ruff", "format", "--check", "mylab", "tests", "hydra_plugins")
    run("mypy", "mylab")
    assert "val/acc" in run("mylab.train", "data.limit=300", "data.batch_size=32", "trainer.max_epochs=1")
    run("mylab.eval", "run=latest")
    quick = ("tests/test_imports.py", "tests/test_configs.py", "tests/test_runs.py", "tests/test_rename.py")
    run("pytest", *quick, "-m", "not slow")
