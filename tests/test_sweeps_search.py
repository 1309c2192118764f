"""The Optuna sweeper: spaces, samplers, pruning across processes, storages, and going on after a kill."""

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from src.sweeps.space import Space
from src.sweeps.study import Trials, open_study
from tests.test_launcher import Standin, count

OPTUNA = "hydra/sweeper/sampler=tpe"
LR = "lr=interval(1e-4,1)"
TWO = ["hydra.sweeper.metric=[val/acc,parameters]", "hydra.sweeper.direction=[max,minimize]"]


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
        ("a=choice(8,0.5,true,x)", CategoricalDistribution([8, 0.5, True, "x"])),
        ("a=8,0.5,true,x,'b c',null,[1,2]", CategoricalDistribution([8, 0.5, True, "x", "'b c'", "null", "[1,2]"])),
    ],
)
def test_hydras_sweep_syntax_becomes_the_distribution_it_names(override: str, expected: BaseDistribution) -> None:
    assert space("fixed=1", override) == Space(["fixed=1"], {"a": expected})


@pytest.mark.parametrize("override", ["a=interval(1,1)", "a=tag(log, interval(0,1))", "a=range(0)", "a=1"])
def test_a_space_without_extent_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"empty|above 0|no value"):
        space(override)


def test_a_value_survives_the_command_line_to_the_last_bit() -> None:
    value = 0.1 + 0.2
    (override,) = space(LR).overrides({"lr": value})
    assert OverridesParser.create().parse_override(override).value() == value


def test_the_corners_try_each_choice_once() -> None:
    found = space("model=vgg,nin,alexnet", "shape=round,square", "lr=interval(1,2)", "seed=3")
    assert list(map(found.overrides, found.corners())) == [
        ["seed=3", "model=vgg", "shape=round", "lr=1.0"],
        ["seed=3", "model=nin", "shape=square", "lr=1.0"],
        ["seed=3", "model=alexnet", "shape=round", "lr=1.0"],
    ]


def test_a_search_prunes_finds_the_top_and_draws_it_without_torch(standin: Standin) -> None:
    with (standin.folder / "standin.py").open("a") as program:
        program.write("print('torch' in sys.modules, 'optuna' in sys.modules)")
    search = ["hydra/sweeper/sampler=random", LR, "width=range(1,4)", "hydra.sweeper.n_trials=16"]
    watched = ["hydra/sweeper/pruner=median", "kind=watched", "epochs=4", "seconds=0"]
    command, options = ["-m", "standin", "-m", *search, *watched], {"cwd": standin.folder, "env": standin.environment()}
    output = subprocess.check_output([sys.executable, *command], text=True, **options)  # a `Command` has loaded torch
    found = count(standin.jobs())
    assert found["pruned"] >= 3
    assert found["pruned"] + found["done"] == 16

    result = study(standin.folders[0])
    (best,) = result["best"]
    trials = result["trials"]
    complete = [trial for trial in trials if trial["state"] == "complete"]
    assert trials[best]["values"] == max(trial["values"] for trial in complete)
    assert set(result["importances"]["val/acc"]) == {"lr", "width"}
    # The curves of two trials never cross, so whatever is pruned is so at its first epoch; the next one may have begun.
    assert all(len(trial["epochs"]) <= 2 for trial in trials if trial["state"] == "pruned")
    assert f"  {trials[best]['command']}" in output
    assert output.rstrip().endswith("False True")
    assert trials[best]["command"].startswith("python -m standin kind=watched epochs=4 seconds=0 lr=")
    figures = standin.folders[0] / "figures"
    assert {path.stem for path in figures.iterdir()} == {"history", "slice", "importance", "curves"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures.iterdir())


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_search_that_is_ended_goes_on_with_the_trials_that_ran(standin: Standin, how: int) -> None:
    sweep = [OPTUNA, LR, "hydra.sweeper.n_trials=4", "kind=gated", "epochs=6", "hydra.launcher.n_jobs=2"]
    standin.allow(1)
    process = standin.start(*sweep)
    for number in (0, 1):
        standin.wait_for(f"{number}/checkpoints/last.ckpt")
    process.send_signal(how)
    assert process.wait(60) == (130 if how == signal.SIGTERM else -how)
    standin.allow(6)
    code, output = standin.sweep(*sweep)
    assert code == 0, output
    assert len(standin.folders) == 1
    result = study(standin.folders[0])
    assert [trial["state"] for trial in result["trials"]] == ["complete"] * 4
    assert all(list(trial["epochs"]) == list("012345") for trial in result["trials"]), "each epoch reported once"
    assert [standin.starts(number) for number in range(4)] == [[0, 1], [0, 1], [0], [0]], "from their checkpoints"


def test_failed_trials_do_not_stop_a_search(standin: Standin) -> None:
    search = ["hydra/sweeper/sampler=random", "kind=choice(ok,raise,memory)", "hydra.sweeper.n_trials=8", "epochs=1"]
    code, _ = standin.sweep(*search)
    kinds = [trial["params"]["kind"] for trial in study(standin.folders[0])["trials"]]
    assert code == 8 - kinds.count("ok")
    ended = {"done": kinds.count("ok"), "failed": kinds.count("raise"), "out of memory": kinds.count("memory")}
    assert count(standin.jobs()) == ended
    assert all(ended.values()), "the seed draws each kind"
    _, output = standin.sweep(*search)
    assert "Going on" not in output, "a search whose trials have all run is finished, failed ones included"


@pytest.mark.parametrize("how", [[OPTUNA, LR, "hydra/sweeper/pruner=median", "hydra.sweeper.n_trials=2"], ["lr=1,2"]])
def test_a_sweep_as_a_dry_run_ends_well_though_no_job_leaves_results(standin: Standin, how: list[str]) -> None:
    code, output = standin.sweep(
        *how, "kind=dry", "+logger.csv._target_=lightning.pytorch.loggers.CSVLogger", "++trainer.fast_dev_run=true"
    )
    assert code == 0, output
    assert "This was a dry run (trainer.fast_dev_run)" in output
    assert count(standin.jobs()) == {"done": 2}
    code, output = standin.sweep(OPTUNA, LR, "kind=dry", "hydra.sweeper.n_trials=2")
    assert code == 2, "but a search whose jobs leave nothing has failed"
    assert "dry run" not in output


@pytest.mark.parametrize(
    "sampler", [["random"], ["nsga2"], ["random", "hydra.sweeper.sampler._target_=optuna.samplers.QMCSampler"]]
)
def test_every_sampler_of_optuna_runs(standin: Standin, sampler: list[str]) -> None:
    search = ["hydra/sweeper/sampler=" + sampler[0], *sampler[1:], LR, "width=int(interval(1,9))"]
    code, output = standin.sweep(*search, "hydra.sweeper.n_trials=3", "epochs=1", "seconds=0")
    assert code == 0, output
    assert len({trial["params"]["lr"] for trial in study(standin.folders[0])["trials"]}) == 3


@pytest.mark.slow
def test_a_search_repeats_itself_but_a_resumed_one_does_not_draw_its_first_trials_again(standin: Standin) -> None:
    sweep = [OPTUNA, LR, "hydra.sweeper.n_trials=2", "epochs=1", "seconds=0"]
    for _ in range(2):
        standin.sweep(*sweep)
    first, second = ([t["params"]["lr"] for t in study(folder)["trials"]] for folder in standin.folders)
    assert first == second
    standin.sweep(f"resume_sweep={standin.folders[0]}", "hydra.sweeper.n_trials=4")
    assert len({trial["params"]["lr"] for trial in study(standin.folders[0])["trials"]}) == 4


@pytest.mark.slow
def test_hyperband_prunes(standin: Standin) -> None:
    options = ["hydra/sweeper/pruner=hyperband", "hydra.sweeper.pruner.max_resource=9", "hydra.sweeper.n_trials=12"]
    code, output = standin.sweep(OPTUNA, LR, *options, "kind=watched", "epochs=9", "seconds=0")
    assert code == 0, output
    assert count(standin.jobs())["pruned"] >= 2


def test_two_objectives_end_in_a_front_of_trials_that_none_beats_in_both(standin: Standin) -> None:
    search = [LR, "width=range(1,4)", *TWO, "hydra/sweeper/sampler=nsga2", "hydra.sweeper.n_trials=12", "epochs=1"]
    code, output = standin.sweep(*search)
    assert code == 0, output
    result = study(standin.folders[0])
    values = [trial["values"] for trial in result["trials"]]

    def beaten(acc: float, size: float) -> bool:
        return any(a >= acc and s <= size and (a, s) != (acc, size) for a, s in values)

    assert sorted(result["best"]) == [i for i, value in enumerate(values) if not beaten(*value)]
    figures = {path.stem for path in (standin.folders[0] / "figures").iterdir()}
    assert {"pareto", "slice_val_acc", "history_parameters"} <= figures


@pytest.mark.slow
@pytest.mark.parametrize(
    ("storage", "space"),
    [("shared.journal", [OPTUNA, LR]), ("sqlite:///study.db", [OPTUNA, LR]), ("shared.journal", ["lr=range(1,9)"])],
)
def test_two_machines_share_a_study_through_one_storage(standin: Standin, storage: str, space: list[str]) -> None:
    shared = [*space, f"hydra.sweeper.storage={storage}", "hydra.sweeper.n_trials=8", "kind=together"]
    processes = [standin.start(*shared, f"hydra.sweep.dir=logs/multiruns/machine{i}") for i in (0, 1)]
    ends = [process.communicate(120) for process in processes]
    assert [code for code, _ in ends] == [0, 0], ends
    ran = [{job.number for job in standin.jobs(i)} for i in (0, 1)]
    assert all(ran)
    assert not ran[0] & ran[1]
    assert len({job.params["lr"] for i in (0, 1) for job in standin.jobs(i)}) == len(ran[0] | ran[1])
    assert 8 <= len(ran[0] | ran[1]) <= 9  # one may ask for a last trial while the other does


def test_what_another_machine_has_just_taken_or_enqueued_too_is_not_run_twice(tmp_path: Path) -> None:
    study, space = optuna.create_study(), Space([], {"lr": CategoricalDistribution(["1", "2"])})
    first, second = (
        Trials(study, space, tmp_path / name, name, ["val/acc"], None, shared=True) for name in ("first", "second")
    )
    taken = first.next()
    assert taken is not None
    assert taken.number == 0
    assert 0 not in Trials(study, space, tmp_path, "second", ["val/acc"], None, shared=True).jobs, "it has no name yet"
    study.enqueue_trial({"lr": "1"})
    assert [second.next().number, second.next()] == [1, None]


def test_a_search_that_was_killed_while_it_drew_a_trial_draws_the_rest_of_it(tmp_path: Path) -> None:
    study, space = optuna.create_study(), Space([], {name: FloatDistribution(0, 1) for name in "ab"})
    cut_off = study.ask({"a": space.distributions["a"]})
    job = Trials(study, space, tmp_path, "", ["val/acc"], n_trials=1).next()
    assert job is not None
    assert job.params == {"a": cut_off.params["a"], "b": job.params["b"]}


def test_the_metrics_of_a_running_job_come_epoch_by_epoch_whole_lines_only(tmp_path: Path) -> None:
    trials = Trials(optuna.create_study(), Space([], {}), tmp_path, "", ["val/acc"], n_trials=1)
    job = trials.next()
    assert job is not None
    file = tmp_path / "0" / "csv" / "metrics.csv"
    assert not trials.report(job), "there is no file yet"
    file.parent.mkdir(parents=True)
    file.write_text("epoch,step,val/acc\n0,9,0.5\n1,19,0.6")
    trials.report(job)
    assert trials.study.trials[0].intermediate_values == {0: 0.5}
    # Lightning rewrites the file with a wider header when a metric comes up for the first time.
    file.write_text("epoch,lr,step,test/acc,val/acc\n0,,9,,0.4\n1,,19,,0.65\n1,0.1,19,,\n2,,29,,nan\n3,,39,,0.7\n")
    trials.report(job)
    assert trials.study.trials[0].intermediate_values == {0: 0.5, 1: 0.65, 3: 0.7}
    assert (job.epoch, job.value) == (3, 0.7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr=0.1"], "The search is empty"),
        (["lrr=interval(0,1)"], "Could not override 'lrr'"),
        (["shape=choice(round,oval)"], "oval"),
        ([LR, "+hydra.sweeper.sampler.startup=3"], "unexpected keyword argument 'startup'"),
        ([LR, "hydra.sweeper.direction=up"], "give min or max"),
        ([LR, "hydra.sweeper.metric=[val/acc,parameters]"], "for each metric of val/acc, parameters"),
        ([LR, *TWO, "hydra/sweeper/pruner=median"], "hydra/sweeper/pruner=none"),
        ([LR, "+logger={}", "hydra/sweeper/pruner=median"], "needs logger.csv"),
        ([LR, "hydra.sweeper.storage=nowhere/study.journal"], "nowhere/study.journal cannot be used"),
        ([LR, "hydra.sweeper.storage=nosuchdb://x"], "nosuchdb://x cannot be used"),
        ([LR, "hydra.sweeper.storage=postgresql+pg8000://x"], "cannot be used: No module named 'pg8000'"),
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
    assert "has another study named standin; its space differs" in output
    assert "hydra.sweeper.study_name" in output
    assert len(standin.folders) == 1
    other = ["hydra.sweeper.n_trials=1", "hydra.sweeper.study_name=b"]
    assert standin.sweep(OPTUNA, "width=range(3)", shared, *other)[0] == 0


def test_a_locked_storage_is_told(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    of: Any = (None, None, {"metrics": ["val/acc"], "directions": ["maximize"], "space": []})
    open_study(f"sqlite:///{path}", "one", *of)
    with sqlite3.connect(path) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ValueError, match=r"study\.db.*cannot be used: .*database is locked"):
            open_study(f"sqlite:///{path}?timeout=0.2", "two", *of)


def test_a_metric_that_no_run_reports_ends_the_search_at_its_first_job(standin: Standin) -> None:
    wrong = "hydra.sweeper.metric=val/accuracy"
    code, output = standin.sweep(OPTUNA, LR, wrong, "hydra.launcher.n_jobs=2", "seconds=0.3")
    assert code == 1
    assert f"{wrong}: job" in output
    assert "it reports epochs, parameters, test/acc, val/acc" in output
    assert len(standin.jobs()) == 2
    assert not standin.alive()
