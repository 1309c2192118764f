"""Checks the values of a config before anything is built; no torch is needed."""

import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from src.runs.folder import CONF, read_yaml
from src.runs.rules import RULES, Rule

NAMED = {"src", "torch", "lightning", "optuna"}  # packages whose classes the rules name; torchvision has the same names
SHOWN = 60  # characters of a value that a message has


def check_values(config: DictConfig, command: str) -> None:
    """Compares every value with the rule for it, if there is one; values that cannot be resolved here are left out.

    Args:
        command: names the file of conf that the config was composed from.

    Raises:
        ValueError: one does not fit; the message has the option, the value and what is allowed. Or one was taken out.
    """
    for names, value, node in named_values(config):
        place = names[-1]
        rule = next(filter(None, map(rule_of, [f"{command}:{place}", *names])), None)
        if rule is not None and not rule.fits(value):
            written: Any = OmegaConf.to_container(node)
            source = re.fullmatch(r"\$\{([\w.]+)\}", str(written[place.rpartition(".")[2]]))
            shown = value if isinstance(value, str) else json.dumps(value, default=OmegaConf.to_container)
            raise ValueError(f"{source[1] if source else place}={shown[:SHOWN]} must be {rule}")
    if missing := _needed(command) - set(config) if config.get("resume") is None else ():
        raise ValueError(f"there must be a value for {', '.join(sorted(missing))}")


def named_values(node: DictConfig, place: str = "") -> Iterator[tuple[list[str], Any, DictConfig]]:
    """Each value below a node, sections included: its names, that of its place last; itself; the section around it."""
    target = "" if OmegaConf.is_missing(node, "_target_") else str(node.get("_target_", ""))
    classes = [target, target.rpartition(".")[2]] if target.partition(".")[0] in NAMED else []
    for key in map(str, node):
        try:
            value = node[key]
            if isinstance(value, ListConfig):
                value = OmegaConf.to_container(value, resolve=True)
        except OmegaConfBaseException:
            continue
        names = [*(f"{each}.{key}" for each in classes), f"{place}{key}"]
        yield names, value, node
        if isinstance(value, DictConfig):
            yield from named_values(value, f"{names[-1]}.")


@cache
def rule_of(name: str) -> Rule | None:
    """The rule for that name; None where there is none."""
    every = _rules()
    alike = (known for known in every if "*" in known and re.fullmatch(known.replace("*", "[^.]*"), name))
    return every.get(name) or next((every[known] for known in alike), None)


@cache
def _rules() -> dict[str, Rule]:
    return {name: rule for names, rule in RULES.items() for name in names.split()}


@cache
def _needed(command: str) -> set[str]:
    """The options and the groups that a file of conf has, but for Hydra's own and those that are optional."""
    content = read_yaml(CONF / f"{command}.yaml") or {}
    chosen = [entry for entry in content.pop("defaults", ()) if isinstance(entry, dict)]
    groups = {group for entry in chosen for group, choice in entry.items() if choice is not None}
    return {*content, *(group for group in groups if not {" ", "/"} & set(group))} - {"hydra"}
