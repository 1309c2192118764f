"""A mistake in one message: which exceptions are the user's, what they say, and the names that come nearest."""

import difflib
import os
import re
import sys
import traceback
from pathlib import Path

from hydra import errors
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.runs.build import compose
from src.runs.folder import CONF, RunError
from src.runs.trust import walk

USER_ERRORS = (
    *(ValueError, FloatingPointError, ImportError, RunError, OSError),
    *(errors.HydraException, OmegaConfBaseException),
)
NO_MEMORY = re.compile("out of memory|allocate|bad_alloc", re.IGNORECASE)
LOST = RunError("a process that trains with this one ended before it; resume=latest goes on from the last checkpoint")


def user_error(error: BaseException) -> BaseException | None:
    """The user's mistake behind an exception, or None where it is a defect of the program."""
    told = str(error)
    if isinstance(error, RuntimeError) and re.search(r"\bgloo\b|\bNCCL\b", told):
        return LOST
    while isinstance(error, errors.InstantiationException) and error.__cause__ is not None:
        told, error = str(error), error.__cause__
    if isinstance(error, ValueError) and isinstance(error.__cause__, OSError):  # of logging, which hides the file
        return error.__cause__
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        advice, told = "lower data.batch_size, data.image_size or the size of the network", str(error).split("\n")[0]
        return ValueError(f"out of memory: {advice} ({told})")
    is_users = isinstance(error, USER_ERRORS) or type(error).__name__ == "MisconfigurationException"
    # Hydra 1.3 says in its own exception what it was building, 1.4 in a note to the original one.
    section = re.search(r"full_key: (\S+)", "\n".join([told, *getattr(error, "__notes__", ())]))
    if section is None or isinstance(error, errors.InstantiationException):
        return error if is_users else None
    *_, last = traceback.extract_tb(error.__traceback__)
    if is_users and Path(last.filename).is_relative_to(CONF.parent / "src"):
        return error  # our own messages name the option
    return ValueError(f"{section[1]}: {error}")


def explain(error: BaseException, config_name: str) -> str:
    """The error's message, and for a name that does not exist the nearest ones that do."""
    if isinstance(error, errors.MissingConfigException) and error.options:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        hint = _did_you_mean(difflib.get_close_matches(name, error.options, cutoff=0.5))
        return f"there is no {group}={name}{hint} All: {', '.join(sorted(error.options))}."
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{os.fsdecode(error.filename)}: {error.strerror.lower()}"
    message = str(error).strip()
    key = re.search(r"Could not override '([^'@]+)", message)
    if isinstance(error, errors.ConfigCompositionException) and key and not message.startswith("In '"):
        hint = _did_you_mean(nearest_keys(key[1], all_keys(config_name)))
        return f"there is no option {key[1]!r}{hint} A new one is added with +{key[1]}=..."
    if isinstance(error, errors.OverrideParseException):
        return f"{message}\nHydra reads some characters as its own; a value that has them is written 'KEY=\"VALUE\"'."
    resolved = re.match(r"\w+ raised while resolving interpolation: (.*?)\n\s*full_key: ", message, re.DOTALL)
    return (resolved[1] if resolved else message) or type(error).__name__


def _did_you_mean(near: list[str]) -> str:
    return f": did you mean {' or '.join(near)}?" if near else "."


def nearest_keys(name: str, keys: list[str]) -> list[str]:
    """The options that end as `name` does, or else those that look like it, the nearest first."""
    # not itself, which may be there in one job of a sweep, nor a section that it would be in
    keys = [key for key in keys if not f"{name}.".startswith(f"{key}.")]
    same = [key for key in keys if key.rpartition(".")[2] == name.rpartition(".")[2]]
    return difflib.get_close_matches(name, same or keys, cutoff=0 if same else 0.5)


def all_keys(config_name: str) -> list[str]:
    """Every config group, and every option, dotted, of the config that the choices of the command line make."""
    words = (word for word in sys.argv[1:] if re.fullmatch(r"[^=,]+=[^,]+", word))  # no sweep's
    choices = [word for word in words if (CONF / word.partition("=")[0]).is_dir()]
    GlobalHydra.instance().clear()
    places = (place for place, _ in walk(OmegaConf.to_container(compose(config_name, choices))) if place)
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    return list(dict.fromkeys([*groups, *places]))
