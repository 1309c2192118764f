"""The Optuna sweeper: spaces, samplers, pruning across processes, storages, and going on after a kill."""

from __future__ import annotations

import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from src.sweeps.space import Space
from tests.test_launcher import Standin, alive, count

OPTUNA = "hydra/sweeper=optuna"
LR = "lr=interval(1e-4,1)"


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    return Standin(tmp_path)


def space(*overrides: str) -> Space:
    return Space.of(OverridesParser.create().parse_overrides(list(overrides)))


def study(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "study.json").read_text())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=interval(1e-4,1)", FloatDistribution(1e-4, 1, log=True)),
        ("a=interval(0.1,1)", FloatDistribution(0.1, 1)),
        ("a=interval(0,1)", FloatDistribution(0, 1)),
        ("a=tag(log, interval(0.1,1))", FloatDistribution(0.1, 1, log=True)),
        ("a=tag(linear, interval(1e-4,1))", FloatDistribution(1e-4, 1)),
        ("a=int(interval(8,64))", IntDistribution(8, 64)),
        ("a=tag(log, int(interval(8,64)))", IntDistribution(8, 64, log=True)),
        ("a=range(5)", IntDistribution(0, 4)),
        ("a=range(16,65,16)", IntDistribution(16, 64, step=16)),
        ("a=range(0.5,0.8,0.1)", FloatDistribution(0.5, 0.7, step=0.1)),
        ("a=choice(8,0.5,true,x,null)", None),
        ("a=8,0.5,true,x,'b c',null,[1,2]", CategoricalDistribution([8, 0.5, True, "x", "'b c'", "null", "[1,2]"])),
    ],
)
def test_hydras_sweep_syntax_becomes_the_distribution_it_names(override: str, expected: object) -> None:
    if expected is None:
        with pytest.raises(Exception, match="choice"):  # Hydra's own choice() takes no null
            space(override)
    else:
        assert space("fixed=1", override) == Space(["fixed=1"], {"a": expected})  # type: ignore[dict-item]


@pytest.mark.parametrize("override", ["a=interval(1,1)", "a=tag(log, interval(0,1))", "a=range(0)", "a=1"])
def test_a_space_without_extent_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"empty|above 0|no value"):
        space(override)


def test_a_value_survives_the_command_line_to_the_last_bit() -> None:
    value = 0.1 + 0.2
    (override,) = space(LR).overrides({"lr": value})
    assert OverridesParser.create().parse_override(override).value() == value


def test_the_corners_try_each_choice_once() -> None:
    corners = space("model=vgg,nin,alexnet", "shape=round,square", "lr=interval(1,2)", "seed=3").corners()
    assert corners == [
        ["seed=3", "model=vgg", "shape=round", "lr=1.0"],
        ["seed=3", "model=nin", "shape=square", "lr=1.0"],
        ["seed=3", "model=alexnet", "shape=round", "lr=1.0"],
    ]


def test_a_search_prunes_finds_the_top_and_draws_it(standin: Standin) -> None:
    settings = ["hydra.sweeper.n_trials=16", "hydra.sweeper.pruner=median", "hydra.launcher.n_jobs=2"]
    options = ["hydra.sweeper.pruner_options={n_startup_trials: 3}", "epochs=12", "seconds=0.05"]
    code, output = standin.sweep(OPTUNA, LR, "width=range(1,4)", *settings, *options)
    assert code == 0, output
    found = count(standin.jobs())
    assert found["pruned"] >= 3
    assert found["pruned"] + found["done"] == 16

    result = study(standin.folders[0])
    (best,) = result["best"]
    trials = result["trials"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    assert trials[best]["values"] == max(trial["values"] for trial in complete)
    assert set(result["importances"]["val/acc"]) == {"lr", "width"}
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    for trial in pruned:
        csv = (standin.folders[0] / str(trial["number"]) / "csv" / "metrics.csv").read_text().splitlines()
        assert len(csv) - 1 < 12, "its process stopped before the last epoch"
    assert f"  {trials[best]['command']}" in output
    assert trials[best]["command"].startswith("python -m standin epochs=12 seconds=0.05 lr=")
    figures = standin.folders[0] / "figures"
    assert {path.stem for path in figures.iterdir()} == {"history", "slice", "importance", "curves"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


def test_a_killed_search_goes_on_with_the_trials_that_ran(standin: Standin) -> None:
    sweep = [OPTUNA, LR, "hydra.sweeper.n_trials=4", "epochs=6", "seconds=0.1", "hydra.launcher.n_jobs=2"]
    process = standin.start("-m", *sweep)
    standin.wait_for("2/csv/metrics.csv")
    process.kill()
    process.communicate()
    code, output = standin.sweep(*sweep)
    assert code == 0, output
    assert len(standin.folders) == 1
    result = study(standin.folders[0])
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 4
    assert all(list(trial["epochs"]) == list("012345") for trial in result["trials"]), "each epoch reported once"
    resumed = [number for number in range(4) if len(standin.starts(number)) == 2]
    assert 2 in resumed
    assert all(standin.starts(number)[1] > 0 for number in resumed), "from its checkpoint"


def test_failed_trials_do_not_stop_a_search(standin: Standin) -> None:
    code, output = standin.sweep(OPTUNA, "kind=choice(ok,raise,memory)", "hydra.sweeper.sampler=grid")
    assert code == 2, output
    assert count(standin.jobs()) == {"done": 1, "failed": 1, "out of memory": 1}
    assert sorted(trial["state"] for trial in study(standin.folders[0])["trials"]) == ["complete", "fail", "fail"]
    code, output = standin.sweep(OPTUNA, "kind=choice(ok,raise,memory)", "hydra.sweeper.sampler=grid")
    assert "Going on" not in output, "a search whose trials have all run is finished, failed ones included"


@pytest.mark.parametrize("sampler", ["random", "cmaes", "nsga2"])
def test_every_sampler_runs(standin: Standin, sampler: str) -> None:
    if sampler == "cmaes":
        pytest.importorskip("cmaes")
    sweep = [OPTUNA, LR, "width=int(interval(1,9))", f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=3"]
    code, output = standin.sweep(*sweep, "epochs=1", "seconds=0")
    assert code == 0, output
    assert len({trial["params"]["lr"] for trial in study(standin.folders[0])["trials"]}) == 3


def test_a_search_repeats_itself_but_a_resumed_one_does_not_draw_its_first_trials_again(
    standin: Standin,
) -> None:
    sweep = [OPTUNA, LR, "hydra.sweeper.n_trials=2", "epochs=1", "seconds=0"]
    for _ in range(2):
        standin.sweep(*sweep)
    first, second = ([t["params"]["lr"] for t in study(folder)["trials"]] for folder in standin.folders)
    assert first == second
    standin.sweep(f"resume_sweep={standin.folders[0]}", "hydra.sweeper.n_trials=4")
    assert len({trial["params"]["lr"] for trial in study(standin.folders[0])["trials"]}) == 4


def test_the_grid_sampler_tries_each_combination_once(standin: Standin) -> None:
    code, output = standin.sweep(OPTUNA, "lr=0.01,0.1", "seed=range(3)", "hydra.sweeper.sampler=grid", "epochs=1")
    assert code == 0, output
    pairs = [(trial["params"]["lr"], trial["params"]["seed"]) for trial in study(standin.folders[0])["trials"]]
    assert sorted(pairs) == [(lr, seed) for lr in (0.01, 0.1) for seed in (0, 1, 2)]


@pytest.mark.slow
def test_hyperband_prunes(standin: Standin) -> None:
    options = "hydra.sweeper.pruner_options={min_resource: 1, max_resource: 9}"
    code, output = standin.sweep(
        OPTUNA, LR, "hydra.sweeper.pruner=hyperband", options, "epochs=9", "hydra.sweeper.n_trials=12", "seconds=0.05"
    )
    assert code == 0, output
    assert count(standin.jobs())["pruned"] >= 2


def test_two_objectives_end_in_a_front_of_trials_that_none_beats_in_both(standin: Standin) -> None:
    two = ["hydra.sweeper.metric=[val/acc,parameters]", "hydra.sweeper.direction=[maximize,minimize]"]
    code, output = standin.sweep(
        OPTUNA, LR, "width=range(1,4)", *two, "hydra.sweeper.sampler=nsga2", "hydra.sweeper.n_trials=12", "epochs=1"
    )
    assert code == 0, output
    result = study(standin.folders[0])
    values = [trial["values"] for trial in result["trials"]]
    front = [
        i
        for i, (acc, size) in enumerate(values)
        if not any(a >= acc and s <= size and (a, s) != (acc, size) for a, s in values)
    ]
    assert sorted(result["best"]) == front
    assert {"pareto", "slice_val_acc", "history_parameters"} <= {
        p.stem for p in (standin.folders[0] / "figures").iterdir()
    }


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["shared.journal", "sqlite:///study.db"])
def test_two_machines_share_a_study_through_one_storage(standin: Standin, storage: str) -> None:
    shared = [OPTUNA, LR, f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=8", "seconds=0.2", "epochs=3"]
    processes = [standin.start("-m", *shared, f"hydra.sweep.dir=logs/multiruns/machine{i}") for i in (0, 1)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    ran = [{job["number"] for job in standin.jobs(i)} for i in (0, 1)]
    assert all(ran)
    assert not ran[0] & ran[1]
    assert len({job["overrides"][-1] for i in (0, 1) for job in standin.jobs(i)}) == len(ran[0] | ran[1])
    assert 8 <= len(ran[0] | ran[1]) <= 9  # one may ask for a last trial while the other does


def test_a_dashboard_can_read_the_journal(standin: Standin) -> None:
    standin.sweep(OPTUNA, LR, "hydra.sweeper.n_trials=2", "epochs=1")
    backend = optuna.storages.journal.JournalFileBackend(str(standin.folders[0] / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    (name,) = optuna.get_all_study_names(storage)
    assert len(optuna.load_study(study_name=name, storage=storage).trials) == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=0.1"], "The search is empty"),
        (["lrr=interval(0,1)"], "Could not override 'lrr'"),
        (["shape=choice(round,oval)"], "oval"),
        ([LR, "hydra.sweeper.sampler=tpp"], "did you mean tpe?"),
        ([LR, "hydra.sweeper.pruner=mean"], "there are none, median, hyperband"),
        ([LR, "hydra.sweeper.sampler=grid"], "needs a list of values for lr"),
        ([LR, "hydra.sweeper.sampler_options={startup: 3}"], "sampler_options of tpe"),
        ([LR, "hydra.sweeper.direction=up"], "give maximize or minimize"),
        ([LR, "hydra.sweeper.metric=[val/acc,parameters]"], "for each metric of val/acc, parameters"),
        ([LR, "hydra.sweeper.storage=nowhere/study.journal"], "nowhere/study.journal cannot be used"),
        ([LR, "hydra.sweeper.storage=nosuchdb://x"], "nosuchdb://x cannot be used"),
        ([LR, "hydra.sweeper.storage=conf/standin.yaml"], "conf/standin.yaml cannot be used"),
    ],
)
def test_a_mistake_is_told_before_any_trial_starts(standin: Standin, overrides: list[str], message: str) -> None:
    code, output = standin.sweep(OPTUNA, *overrides)
    assert code == 1
    assert message in output
    assert not standin.folders


def test_the_storage_of_another_study_is_refused_and_named(standin: Standin) -> None:
    shared = "hydra.sweeper.storage=sqlite:///study.db"
    standin.sweep(OPTUNA, LR, shared, "hydra.sweeper.n_trials=1", "epochs=1")
    code, output = standin.sweep(OPTUNA, "width=range(3)", shared, "hydra.sweeper.n_trials=1")
    assert code == 1
    assert "has another study named standin, its space differ" in output
    assert "hydra.sweeper.study_name" in output
    assert len(standin.folders) == 1
    code, output = standin.sweep(
        OPTUNA, "width=range(3)", shared, "hydra.sweeper.n_trials=1", "hydra.sweeper.study_name=b"
    )
    assert code == 0, output


def test_a_locked_storage_is_told(standin: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.sweeps import study as room

    monkeypatch.setattr(room, "LOCK_SECONDS", 0.2)
    path = standin.folder / "study.db"
    settings = (optuna.samplers.RandomSampler(), optuna.pruners.NopPruner(), space(LR), ["val/acc"], ["maximize"])
    room.open_study(f"sqlite:///{path}", "one", *settings)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match=r"database is locked.*wait for that, or take another storage"):
            room.open_study(f"sqlite:///{path}", "two", *settings)


def test_a_metric_that_no_run_reports_ends_the_search_at_its_first_job(standin: Standin) -> None:
    code, output = standin.sweep(
        OPTUNA, LR, "hydra.sweeper.metric=val/accuracy", "hydra.launcher.n_jobs=2", "seconds=0.3"
    )
    assert code == 1
    assert "hydra.sweeper.metric=val/accuracy: job" in output
    assert "it reports epochs, parameters, test/acc, val/acc" in output
    pids = [int(path.read_text().split()[0]) for path in standin.folders[0].glob("*/starts.log")]
    assert len(pids) == 2
    assert not any(map(alive, pids))


def test_terminating_a_search_leaves_its_trials_to_the_next_start(standin: Standin) -> None:
    sweep = [OPTUNA, LR, "hydra.sweeper.n_trials=2", "epochs=6", "seconds=0.2"]
    process = standin.start("-m", *sweep)
    standin.wait_for("0/csv/metrics.csv")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 130
    code, output = standin.sweep(*sweep)
    assert code == 0, output
    assert [trial["state"] for trial in study(standin.folders[0])["trials"]] == ["complete"] * 2
    assert len(standin.starts(0)) == 2


def test_searching_loads_no_torch(standin: Standin) -> None:
    program = standin.folder / "standin.py"
    program.write_text(program.read_text() + "\nprint('torch' in sys.modules, 'optuna' in sys.modules)\n")
    code, output = standin.sweep(OPTUNA, LR, "hydra.sweeper.n_trials=2", "epochs=1")
    assert code == 0, output
    assert output.rstrip().endswith("False True")
