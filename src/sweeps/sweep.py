"""A sweep from its command to its table: `python -m src.train -m model=vgg11_bn,resnet18 seed=range(5)`."""

import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from src.data.official import look_for
from src.runs.build import build
from src.runs.folder import from_here, write_json
from src.runs.record import entry_point, read_numbers
from src.runs.table import CAPTION, REPEATS, columns, group, ranked, rich_table, shown, table, write_summary
from src.runs.values import check_values
from src.sweeps.folder import JOURNAL, absolute, open_sweep
from src.sweeps.launcher import LOG, JobLauncher, ProcessLauncher
from src.sweeps.screen import Screen
from src.sweeps.space import Space
from src.sweeps.study import Grid, Trials, open_study

DIRECTIONS = {"max": "maximize", "min": "minimize"}
MOST = 10  # rows that the table of a search has


def run(sweeper: Any, arguments: list[str]) -> None:
    """Runs the jobs that no earlier start has run, and writes what came of them.

    Args:
        sweeper: the `StudySweeper` of hydra_plugins; it composes the config of the sweep and of its jobs.
        arguments: the overrides of the command line, sweeps among them.

    Raises:
        ValueError: settings that do not exist or do not go together; nothing has started then.
        SystemExit: some jobs failed, the code is their number (125 stands for more, shells use those above); or the
            sweep was stopped, 130.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    config = sweeper.settings
    command = config.hydra.job.config_name
    check_values(config, command)
    options: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    sampler, pruner, launcher = map(build, (options["sampler"], options.get("pruner"), config.hydra.launcher))
    if not isinstance(launcher, JobLauncher):
        raise ValueError("the jobs of a sweep are started by hydra/launcher=process or slurm.")
    grid = isinstance(sampler, Grid)
    space = Space.of(sweeper.parse(arguments), grid)
    configs = sweeper.compose(
        [space.overrides(params) for params in (space.combinations() if grid else space.corners())]
    )
    for each in configs:
        check_values(each, command)
    _check_varied(space, configs[0], command)
    if isinstance(launcher, ProcessLauncher):  # on a cluster the files may lie where the jobs run
        for each in configs:
            look_for(OmegaConf.select(each, "data"))
    settings = _settings(config, options, space, prunes=bool(pruner))
    # Raises where sampler, metrics and space do not go together.
    optuna.create_study(sampler=build(options["sampler"]), directions=settings["directions"]).ask(space.distributions)

    storage = None if options["storage"] is None else absolute(options["storage"])
    opening = (options["study_name"], sampler, pruner or optuna.pruners.NopPruner(), settings)
    shared = None if storage is None else open_study(storage, *opening)  # what is wrong with it, before all else
    named = any(override.startswith("hydra.sweep.dir=") for override in config.hydra.overrides.hydra)
    folder, earlier = open_sweep(Path(config.hydra.sweep.dir).absolute(), named, sweeper.identity)
    own = open_study(str(folder / JOURNAL), *opening)
    OmegaConf.save(config, folder / "multirun.yaml")
    if earlier or shared:
        sampler.reseed_rng()  # or it would draw again what it drew before, or what another machine draws
    new = {"sweep": str(folder), "command": [*entry_point(), *sys.argv[1:]], "identity": sweeper.identity}
    record = {**new, "storage": storage, "study_name": own.study_name, **earlier, "finished": False}
    own.set_user_attr("sweep", record)
    trials = Trials(
        shared or own,
        space,
        folder,
        record["sweep"],
        settings["metrics"],
        n_trials=None if grid else options["n_trials"],
        program=[*entry_point(), *sweeper.flags],
        shared=storage is not None,
        dry=bool(OmegaConf.select(config, "trainer.fast_dev_run")),
    )
    screen = Screen(trials)
    if earlier:
        screen.say(f"Going on with {from_here(folder)} (hydra.sweep.dir=NEW starts afresh).")
    launcher.run(trials, screen)
    trials.jobs = {number: job for number, job in trials.jobs.items() if job.sweep}  # others had the rest of a grid
    record["finished"] = not grid or all(job.status == "done" for job in trials.jobs.values())
    own.set_user_attr("sweep", record)
    _summarise(trials, screen)
    if not grid:
        _report(trials, screen, settings)
    if trials.dry:
        screen.say("This was a dry run (trainer.fast_dev_run): a few batches of each job, and no results.")
    failed = [str(job.number) for job in trials.jobs.values() if job.failed]
    counts = Counter(job.status for job in trials.jobs.values())
    screen.say(f"{', '.join(f'{number} {status}' for status, number in counts.items())}: {from_here(folder)}")
    if failed:
        again = " The same command starts them again." if grid else ""
        screen.say(f"Failed: {' '.join(failed)}; what they said is in NUMBER/{LOG}.{again}")
        raise SystemExit(min(len(failed), 125))


def _check_varied(space: Space, config: DictConfig, command: str) -> None:
    """Checks what the jobs differ in: each value of a list, and the ends of each interval."""
    for key, of in space.distributions.items():
        if isinstance(OmegaConf.select(config, key), DictConfig) or {"/", "@"} & set(key):
            continue  # a choice of a group, which was composed
        values: Any = getattr(of, "choices", None) or (of.low, of.high)  # type: ignore[attr-defined]
        for value in values:
            given = OverridesParser.create().parse_override(f"{key}={value}").value()
            OmegaConf.update(config, key.lstrip("+"), given, force_add=True)
            check_values(config, command)


def _settings(config: DictConfig, options: dict[str, Any], space: Space, prunes: bool) -> dict[str, Any]:
    """What makes a study the same study: its metrics, their directions, and its space."""
    both = options["metric"], options["direction"]
    metrics, given = (list(map(str, value if isinstance(value, list) else [value])) for value in both)
    directions = [DIRECTIONS.get(direction, direction) for direction in given]
    if len(metrics) != len(directions) or not set(DIRECTIONS.values()).issuperset(directions):
        found = f"hydra.sweeper.direction={','.join(given)}"
        raise ValueError(f"{found}: give min or max for each metric of {', '.join(metrics)}.")
    if prunes and len(metrics) > 1:
        raise ValueError("hydra/sweeper/pruner compares one metric; with several take hydra/sweeper/pruner=none.")
    if prunes and "logger" in config and OmegaConf.select(config, "logger.csv") is None:
        raise ValueError("hydra/sweeper/pruner reads csv/metrics.csv: it needs logger.csv, as in logger=default.")
    distributions = [f"{key}: {of}" for key, of in space.distributions.items()]
    return {"metrics": metrics, "directions": directions, "space": distributions}


def _summarise(trials: Trials, screen: Screen) -> None:
    """Writes the summary, a row for what differs by more than its seed; prints it, and of a grid the best command."""
    runs = []
    for job in trials.jobs.values():
        given = (override.lstrip("+").partition("=") for override in trials.space.overrides(job.params))
        numbers = read_numbers(trials.run_folder(job))
        if numbers is not None or job.failed:
            runs.append((job.number, {k: v for k, _, v in given if not k.startswith("hydra")}, numbers))
    directions = (direction.name.lower()[:3] for direction in trials.study.directions)
    modes = dict(zip(trials.metrics, directions, strict=True))
    rows, metric = group(runs, modes), trials.metrics[0]
    write_summary(trials.folder, rows)
    known, best = columns(row.metrics for row in rows), ranked(rows, metric, modes)
    if rows:
        names = [name for name in dict.fromkeys((*trials.metrics, "test/acc")) if name in known]
        several = any(row.n > 1 for row in rows)
        frame = table(rows if trials.n_trials is None else best[:MOST], names, interval=several)
        screen.console.print(rich_table(frame, caption=CAPTION if several else ""))
    if not known or (trials.n_trials is None and len(rows) < 2):
        return  # seeds of one configuration, of which none is to be chosen
    if metric not in known:
        screen.say(f"No run reports optimized_metric={metric}; they report {', '.join(sorted(known))}.")
    elif trials.n_trials is None:
        overrides = trials.space.overrides(trials.jobs[best[0].runs[0]].params)
        told = [*trials.program, *(o for o in overrides if o.partition("=")[0] not in (*REPEATS, "data.folds"))]
        differing = " ".join(f"{key}={value}" for key, value in best[0].differing.items())
        screen.say(f"Best: {differing}\n  python {shlex.join(told)}")


def _report(trials: Trials, screen: Screen, settings: dict[str, Any]) -> None:
    """Prints the best trials of a search with the commands that repeat them; writes study.json and the figures."""
    from src.sweeps.plots import draw

    def told(trial: optuna.trial.FrozenTrial) -> dict[str, Any]:
        given = {"number": trial.number, "params": trial.params, "state": trial.state.name.lower()}
        command = shlex.join(["python", *trials.program, *trials.space.overrides(trial.params)])
        return {**given, "values": trial.values, "epochs": trial.intermediate_values, "command": command}

    listed = list(map(told, trials.study.get_trials(deepcopy=False)))
    best = [trial.number for trial in trials.study.best_trials]
    importances = draw(trials.study, trials.metrics, trials.folder / "figures") if best else {}
    write_json(trials.folder / "study.json", {**settings, "best": best, "importances": importances, "trials": listed})
    name = "Best" if len(trials.metrics) == 1 else "Not dominated"
    for number in best:
        values = zip(trials.metrics, listed[number]["values"], strict=True)
        reached = ", ".join(f"{metric} {shown(metric, value)}" for metric, value in values)
        screen.say(f"{name}: trial {number}, {reached}\n  {listed[number]['command']}")
