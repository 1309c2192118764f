"""The command line that all entry points share: Hydra, with errors a user can act on.

A mistake ends with one message and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src import sweeps
from src.processes import joined_arguments
from src.run import CONF, RunError, register_resolvers, resume_arguments

USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    FloatingPointError,
    ModuleNotFoundError,
    RunError,
    HydraException,
    OmegaConfBaseException,
)


def run(task: Callable[[DictConfig], Any], config_name: str) -> None:
    """Composes `conf/<config_name>.yaml` with the command line and calls `task` with the result."""
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def job(cfg: DictConfig) -> Any:
        if not show_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # processes that the job starts print for themselves
        with _one_line_errors(config_name, show_traceback):
            return task(cfg)

    register_resolvers()
    with _one_line_errors(config_name, show_traceback):
        if config_name == "train":
            sweeps.register()
            sys.argv[1:] = resume_arguments(joined_arguments(sys.argv[1:]))
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises and leaves the printing to us
        try:
            hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(job)()
        finally:
            if not show_traceback:
                os.environ.pop("HYDRA_FULL_ERROR", None)


@contextmanager
def _one_line_errors(config_name: str, show_traceback: bool) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        cause = user_error(error)
        if show_traceback or cause is None:
            raise
        print(f"error: {explain(cause, config_name)}", file=sys.stderr)
        sys.exit(1)


def user_error(error: BaseException) -> BaseException | None:
    """The user's mistake behind an exception, or None where it is a defect of the program."""
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        cause = user_error(error.__cause__)
        section = re.search(r"full_key: (\S+)", str(error))
        return cause or ValueError(f"{section[1] if section else 'the config'}: {error.__cause__}")
    if isinstance(error, USER_ERRORS) or type(error).__name__ == "MisconfigurationException":
        return error
    return None


def explain(error: BaseException, config_name: str) -> str:
    """The error's message, and for a name that does not exist the nearest ones that do."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        return (
            f"there is no {group}={name}{_did_you_mean(name, error.options)} All: {', '.join(sorted(error.options))}."
        )
    message = str(error).strip()
    key = re.search(r"Could not override '([^']+)'|Could not append to config\. '([^']+)'", message)
    if isinstance(error, ConfigCompositionException) and key and not message.startswith("In '"):
        name = re.sub(r"@.*", "", key[1] or key[2])
        return (
            f"there is no option {name!r}{_did_you_mean(name, _keys(config_name))} A new one is added with +{name}=..."
        )
    resolved = re.match(r"\w+ raised while resolving interpolation: (.*?)\n\s*full_key: ", message, re.DOTALL)
    return (resolved[1] if resolved else message) or type(error).__name__


def _did_you_mean(name: str, options: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(options), n=3, cutoff=0.5)
    return f": did you mean {' or '.join(near)}?" if near else "."


def _keys(config_name: str) -> list[str]:
    """Every option of the default config, dotted, and every config group."""
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose(config_name)
    keys: list[str] = [path.name for path in CONF.iterdir() if path.is_dir()]

    def walk(node: DictConfig, prefix: str) -> None:
        for key in map(str, node):
            keys.append(prefix + key)
            if not OmegaConf.is_missing(node, key) and OmegaConf.is_dict(node._get_node(key)):
                walk(node._get_node(key), f"{prefix}{key}.")  # type: ignore[arg-type]

    walk(config, "")
    return keys
