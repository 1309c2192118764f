"""One command makes the template somebody's own project."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from src.rename import PACKAGE, PROJECT, rename
from tests.conftest import ROOT


def test_the_word_is_renamed_wherever_it_names_the_package_and_nowhere_else(tmp_path: Path) -> None:
    files = {
        "PACKAGE/train.py": 'from PACKAGE import cli\nimport PACKAGE.cli\nroot / "PACKAGE"  # PROJECT, resources\n',
        "conf/model/a.yaml": "# python -m PACKAGE.train\n_target_: PACKAGE.networks.vgg.VGG\n",
        "PACKAGE/page.html": '<img PACKAGE="data:image/png">',
        "tests/test_page.py": "re.search(r'(PACKAGE|href)=')\n",
        "logs/kept.yaml": "_target_: PACKAGE.networks.vgg.VGG\n",
        "Makefile": "\truff check PACKAGE tests\n",
        "PACKAGE/completion.bash": "source PACKAGE/completion.bash\n",
    }

    def named(text: str, package: str, project: str) -> str:
        return text.replace("PACKAGE", package).replace("PROJECT", project)

    for name, text in files.items():
        path = tmp_path / named(name, PACKAGE, PROJECT)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(named(text, PACKAGE, PROJECT))
    (tmp_path / ".ruff_cache").mkdir()
    (tmp_path / ".ruff_cache/0123").write_bytes(b"\xff src.")  # no text
    (tmp_path / "weights").write_bytes(b"\xff src.")
    changed = rename("my_lab", tmp_path)
    one_word = ("my_lab", "my-lab" if PROJECT != PACKAGE else "my_lab")  # the same, once it has been renamed
    renamed = {"PACKAGE/train.py", "conf/model/a.yaml", "Makefile", "PACKAGE/completion.bash"}
    assert {path.relative_to(tmp_path).as_posix() for path in changed} == {named(n, PACKAGE, "") for n in renamed}
    for name, text in files.items():
        words = one_word if name in renamed else (PACKAGE, PROJECT)
        assert (tmp_path / named(name, "my_lab", "")).read_text() == named(text, *words), name


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
    run("src.rename", "myproject")
    run("ruff", "check", "myproject", "tests", "hydra_plugins", "notebooks")
    run("ruff", "format", "--check", "myproject", "tests", "hydra_plugins", "notebooks")
    run("mypy", "myproject")
    assert "val/acc" in run("myproject.train", "data.limit=300", "data.batch_size=32", "trainer.max_epochs=1")
    run("myproject.eval", "run=latest")
    quick = ("tests/test_imports.py", "tests/test_configs.py", "tests/test_runs.py", "tests/test_rename.py")
    run("pytest", *quick, "-m", "not slow")
