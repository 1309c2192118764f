"""`python -m src.tune`: what it measures, what it chooses, and the command that it prints."""

from __future__ import annotations

import re
import shlex

import pytest

from src.tune import FEWEST, ROUNDS, Bench, Candidate, measure, show, tune
from tests.conftest import run_command

QUICK = [
    *("data.limit=200", "data.batch_size=16", "model.network.hidden_units=4"),
    *("trainer=cpu", "trainer.precision=32-true", "seconds=1e5"),
]


@pytest.fixture
def few_rounds(monkeypatch) -> None:
    """With much time to spend, all that can be measured is measured, a few steps of it."""
    monkeypatch.setattr("src.tune.ROUNDS", FEWEST)


def never(error: BaseException) -> bool:
    return False


def test_steps_alternate_and_the_first_of_each_does_not_count() -> None:
    order: list[str] = []

    def steps(name: str) -> Candidate:
        def step() -> tuple[int, float]:
            order.append(name)
            return 10, 5.0 if order.count(name) == 1 else 2.0

        return Candidate({"name": name}, step)

    candidates = [steps("a"), steps("b")]
    measure(candidates, 0, never)
    assert order == ["a", "b"] * (1 + FEWEST)
    assert [c.rates for c in candidates] == [[5.0] * FEWEST] * 2


def test_the_median_counts_and_time_left_is_used_for_more_steps() -> None:
    times = iter([1.0, 1.0, 100.0, *[2.0] * ROUNDS])
    candidate = Candidate({}, lambda: (100, next(times)))
    measure([candidate], 60, never)
    assert len(candidate.rates) == ROUNDS
    assert candidate.rate == 50


def test_what_does_not_fit_into_the_memory_is_left_out() -> None:
    def step() -> tuple[int, float]:
        raise RuntimeError("full")

    candidates = [Candidate({"data.batch_size": 64}, lambda: (1, 1.0)), Candidate({"data.batch_size": 128}, step)]
    measure(candidates, 0, lambda error: str(error) == "full")
    assert [c.rate for c in candidates] == [1.0, 0.0]
    with pytest.raises(RuntimeError, match="full"):
        measure(candidates, 0, never)


def test_steps_of_very_different_times_are_not_called_steady() -> None:
    assert Candidate({}, lambda: (1, 1.0), [10, 11, 10, 12, 11]).is_steady
    assert not Candidate({}, lambda: (1, 1.0), [10, 30, 12, 40, 11]).is_steady


def test_it_measures_everything_there_is_and_finds_settings_of_the_training(config, few_rounds) -> None:
    found, measured = tune(config(*QUICK, name="tune"))
    assert list(measured) == ["precision and memory format", "batch size", "workers"]
    tried = [c.settings for c in measured["precision and memory format"]]
    assert {(s["trainer.precision"], s["model.channels_last"]) for s in tried} == {
        (precision, last) for precision in ("32-true", "bf16-mixed") for last in (True, False)
    }
    assert {"data.batch_size": 16} in [c.settings for c in measured["batch size"]]
    assert all(c.rate > 0 for candidates in measured.values() for c in candidates)
    known = {"trainer.precision", "model.channels_last", "data.batch_size", "data.num_workers"}
    assert set(found) <= known


def test_a_setting_changes_only_for_a_clear_gain(config, monkeypatch) -> None:
    rates = {"bf16-mixed": 1.04, "32-true": 1.0}

    def stepper(self, settings):
        faster = {8: 1.0, 16: 1.0, 32: 1.09, 64: 1.2}[settings["data.batch_size"]]
        return lambda: (10**6, 1 / rates[settings["trainer.precision"]] / faster)

    monkeypatch.setattr(Bench, "stepper", stepper)
    monkeypatch.setattr(Bench, "probe", lambda self, seconds: None)
    cfg = config(*QUICK, name="tune")
    assert tune(cfg)[0] == {"data.batch_size": 64}
    rates["bf16-mixed"] = 1.5
    assert tune(cfg)[0] == {"trainer.precision": "bf16-mixed", "data.batch_size": 64}


def test_a_batch_that_takes_too_long_is_measured_in_part(config, few_rounds) -> None:
    cfg = config(*QUICK, "data.batch_size=150", "seconds=0.01", name="tune")
    _, measured = tune(cfg)
    assert list(measured) == ["precision and memory format"]


def test_the_printed_command_is_that_of_the_training(capsys) -> None:
    measured = {"batch size": [Candidate({"data.batch_size": n}, lambda: (1, 1.0), [1.0]) for n in (64, 128)]}
    show(["model=vgg11", "data.batch_size=64", "seconds=5"], {"data.batch_size": 128, "model.compile": True}, measured)
    printed = capsys.readouterr().out
    assert "python -m src.train model=vgg11 data.batch_size=128 model.compile=true\n" in printed
    assert "optimizer.lr" in printed  # another batch size learns differently


@pytest.mark.slow
def test_the_command_it_prints_runs(tmp_path) -> None:
    result = run_command("-m", "src.tune", *QUICK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    command = re.search(r"^python -m (src\.train .*)$", result.stdout, re.MULTILINE)
    assert command
    short = ["trainer.fast_dev_run=true", "trainer.limit_train_batches=1"]
    again = run_command("-m", *shlex.split(command[1]), *short, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert not list(tmp_path.glob("*.log"))
