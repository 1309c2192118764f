"""Optuna's side of a search: storages, samplers, pruners, importances."""

from __future__ import annotations

import difflib
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from src.sweeps.space import Space

OWN_STORAGE = "study.journal"  # of a sweep that shares its study with no other
LOCK_SECONDS = 20  # that an SQLite file may stay locked by others before the search gives up on it


class _Grid(optuna.samplers.GridSampler):
    """At its end Optuna's grid stops the loop of `study.optimize`; here the number of trials is the end."""

    def after_trial(self, *args: Any, **kwargs: Any) -> None:
        pass


SAMPLERS = {
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
    "grid": _Grid,
    "cmaes": optuna.samplers.CmaEsSampler,
    "nsga2": optuna.samplers.NSGAIISampler,
}
PRUNERS = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
}


def make_sampler(name: str, options: Mapping[str, Any], space: Space, objectives: int) -> optuna.samplers.BaseSampler:
    """Raises ValueError for a name, an option or a combination that does not exist."""
    if name == "cmaes" and objectives > 1:
        raise ValueError("hydra.sweeper.sampler=cmaes optimises one metric; take nsga2 or tpe for several.")
    grid = {"search_space": space.values()} if name == "grid" else {}
    return _made("sampler", name, SAMPLERS, {**options, **grid})


def make_pruner(name: str, options: Mapping[str, Any], objectives: int) -> optuna.pruners.BasePruner:
    """Raises ValueError for a name, an option or a combination that does not exist."""
    if name != "none" and objectives > 1:
        raise ValueError(f"hydra.sweeper.pruner={name} compares one metric; with several give pruner=none.")
    return _made("pruner", name, PRUNERS, options)


def open_study(
    storage: str,
    name: str,
    sampler: optuna.samplers.BaseSampler,
    pruner: optuna.pruners.BasePruner,
    space: Space,
    metrics: Sequence[str],
    directions: Sequence[str],
) -> optuna.Study:
    """Opens the study of this name in a storage (the path of a journal file, or a database URL), or begins it.

    Raises:
        ValueError: the storage cannot be opened, is locked, or has another study under this name; or the
            directions are not those of the metrics.
    """
    from sqlalchemy.exc import SQLAlchemyError

    if len(metrics) != len(directions) or not {"maximize", "minimize"}.issuperset(directions):
        raise ValueError(
            f"hydra.sweeper.direction={','.join(directions)}: give maximize or minimize for each metric of "
            f"{', '.join(metrics)}."
        )
    wanted = {"metrics": list(metrics), "directions": list(directions)}
    wanted["space"] = [f"{key}: {of}" for key, of in space.distributions.items()]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for attempt in range(5):
        try:
            study = optuna.create_study(
                storage=_storage(storage),
                sampler=sampler,
                pruner=pruner,
                study_name=name,
                directions=[optuna.study.StudyDirection[direction.upper()] for direction in directions],
                load_if_exists=True,
            )
            if "settings" not in study.user_attrs and not study.trials:
                study.set_user_attr("settings", wanted)
            found = study.user_attrs.get("settings", {})
            break
        except (OSError, ImportError, ValueError, KeyError, optuna.exceptions.OptunaError, SQLAlchemyError) as error:
            cause = str(getattr(error.__cause__ or error, "orig", error)).strip().splitlines()[0]
            if attempt < 4 and any(word in cause.lower() for word in ("already exists", "unique", "duplicate")):
                time.sleep(1)  # two machines make the tables of a new database at once: the other one has made them
                continue
            hint = " Another process holds it: wait for that, or take another storage." if "locked" in cause else ""
            if isinstance(error, ImportError):
                cause, hint = "the database's driver is missing", " PostgreSQL's: pip install 'psycopg[binary]'"
            raise ValueError(f"hydra.sweeper.storage={storage} cannot be used: {cause}.{hint}") from error
    differing = [key for key in wanted if found.get(key) != wanted[key]]
    if differing:
        there, here = ("; ".join(", ".join(s.get(k, ["?"])) for k in differing) for s in (found, wanted))
        raise ValueError(
            f"hydra.sweeper.storage={storage} has another study named {name}, its {' and '.join(differing)} differ: "
            f"{there} there, {here} here. Give another hydra.sweeper.study_name."
        )
    if study.trials or Path(storage).name != OWN_STORAGE:
        sampler.reseed_rng()  # or it would draw again what it drew before, or what another machine draws
    return study


def importances(study: optuna.Study, metrics: Sequence[str]) -> dict[str, dict[str, float]]:
    """Share of each parameter in the variance of each metric; without those that too few trials tell apart."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    found = {}
    for i, name in enumerate(metrics):
        if len({trial.values[i] for trial in complete}) > 3:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = optuna.importance.get_param_importances(study, target=lambda trial, i=i: trial.values[i])  # type: ignore[misc]
    return found


def _storage(storage: str) -> optuna.storages.BaseStorage:
    if "://" not in storage:
        from optuna.storages.journal import JournalFileBackend

        # Its lock is a link to this path, so the path must not depend on the folder that one is in.
        return optuna.storages.JournalStorage(JournalFileBackend(str(Path(storage).absolute())))
    wait = {"connect_args": {"timeout": LOCK_SECONDS}} if storage.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(storage, engine_kwargs=wait)


def _made(what: str, name: str, kinds: Mapping[str, Any], options: Mapping[str, Any]) -> Any:
    if name not in kinds:
        near = difflib.get_close_matches(name, list(kinds), n=1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"hydra.sweeper.{what}={name}{hint}: there are {', '.join(kinds)}.")
    try:
        return kinds[name](**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"hydra.sweeper.{what}_options of {name}: {error}.") from error
    except ImportError as error:
        raise ModuleNotFoundError(f"hydra.sweeper.{what}={name} needs a package: {error}") from error
