"""`--help` says what a command takes, and nothing else."""

import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from src.help import CONF, choices, groups, head, options, show
from tests.conftest import ROOT, composed, run_command

COMMANDS = ("train", "eval", "predict", "sample", "shards", "export")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_group_of_a_command_is_shown_in_eighty_columns(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    path = CONF / f"{command}.yaml"
    show(command)
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    first = {line.split()[0] for line in lines if line.strip()}
    chosen = groups(path)
    assert set(chosen) | {option.key for option in options(path)} - set(chosen) <= first
    assert all(option.comment for option in options(path) if option.key not in chosen), "each option is explained"
    if command != "train":
        assert not {"optimizer", "scheduler", "model", "experiment"} & first, "what the command does not take"


def test_what_is_shown_are_the_options_of_the_config() -> None:
    cfg = composed("data=digits")
    for group in ("data", "trainer", "optimizer", "callbacks"):
        file = next(path for name in ("base", "default", "sgd") if (path := CONF / group / f"{name}.yaml").is_file())
        shown = list(options(file, group))
        assert len(shown) > 3
        for option in shown:
            parent, _, last = option.key.rpartition(".")
            assert last in OmegaConf.select(cfg, parent), option.key
            assert option.comment or group in ("optimizer", "callbacks"), option.key


@pytest.mark.parametrize("group", [name for name in groups(CONF / "train.yaml") if choices(name)])
def test_every_choice_has_a_line_that_says_what_it_is(group: str, capsys) -> None:
    show("train", group)
    out = capsys.readouterr().out
    for name in choices(group):
        assert f"{group}={name}" in out
        assert head(CONF / group / f"{name}.yaml")[0], f"{group}/{name}.yaml says nothing"


def test_the_command_loads_nothing_heavy_and_names_the_groups_where_there_is_no_such_one() -> None:
    done = run_command("-m", "src.eval", "--help", "optimizer", cold=True)
    assert done.returncode == 1
    assert done.stderr == "error: --help optimizer: src.eval has no such group; it has paths, local, data, trainer\n"
    code = "import sys; sys.argv = ['train', '--help', 'model']; from src import cli; cli.run(None, 'train'); "
    done = run_command("-c", code + "print({'torch', 'lightning', 'pandas'} & set(sys.modules))", cold=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("src.train mod", {"model=", "model.", "module="}),
        ("src.train model=resnet1", {"resnet18"}),
        ("src.train model=vgg11 optimizer.l", {"optimizer.lr="}),
        ("src.eval t", {"tta=", "trainer=", "trainer.", "trusted."}),
        ("src.report lo", set()),
    ],
)
def test_tab_completes_groups_choices_and_options(line: str, expected: set[str]) -> None:
    code = "source src/completion.bash; COMP_LINE=$1; _complete_entry_point; printf '%s\\n' \"${COMPREPLY[@]}\""
    words = ["bash", "-c", code, "bash", f"{sys.executable} -m {line}"]
    assert set(subprocess.check_output(words, cwd=ROOT, text=True).split()) == expected
