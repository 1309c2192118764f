"""`--help`: what a command takes, read from the files of `conf`: their heads, and the comments of their lines."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from src.runs.folder import CONF

LINE = re.compile(r"( *)([\w.]+):(?: (?! )(.*?))?(?:  # (.*))?")
NEITHER = ("defaults", "hydra")  # sections that are no options


class Option(NamedTuple):
    """A line of a config: its key, dotted, its value and its comment."""

    key: str
    value: str
    comment: str


def head(path: Path) -> tuple[list[str], list[str]]:
    """What the head of a config file says: its text, and its examples of use."""
    text, examples = [], []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        words, _, example = line.removeprefix("#").rstrip().partition("   ")
        if words.strip() and not words.startswith(" @package"):
            text.append(words.strip())
        if example:
            examples.append(example.strip())
    return text, examples


def options(path: Path, prefix: str = "") -> Iterator[Option]:
    """The options of a config file; a section has no value."""
    above: list[tuple[int, str]] = []
    for line in path.read_text().splitlines():
        if (found := LINE.fullmatch(line)) is None:
            continue
        indent, key, value, comment = len(found[1]), found[2], found[3] or "", found[4] or ""
        above = [*(each for each in above if each[0] < indent), (indent, key)]
        dotted = [name for _, name in above]
        if dotted[0] not in NEITHER and not key.startswith("_") and (value or comment):
            yield Option(".".join([*prefix.split("/"), *dotted]) if prefix else ".".join(dotted), value, comment)


def groups(path: Path) -> dict[str, str]:
    """The groups that a config chooses from, with the choice that it makes itself."""
    chosen: dict[str, str] = {}
    for entry in yaml.safe_load(path.read_text()).get("defaults", ()):
        for key, choice in entry.items() if isinstance(entry, dict) else ():
            name = str(key).removeprefix("optional ")
            if not name.startswith("override "):
                chosen[name] = str(choice or "none")
    return chosen


def choices(group: str) -> list[str]:
    """The files of a group, without what the others are made of."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if path.stem != "base")


def show(config_name: str, topic: str | None = None) -> None:
    """Prints what the command takes, or what there is in one of its groups.

    Raises:
        ValueError: there is no such group.
    """
    from rich.console import Console
    from rich.text import Text

    path = CONF / f"{config_name}.yaml"
    chosen = groups(path)
    console = Console(width=min(shutil.get_terminal_size((100, 24)).columns, 120), highlight=False)

    def rows(lines: Sequence[tuple[str, ...]]) -> None:
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        for style, wraps in (("cyan", False), ("green", True), ("", True))[: len(lines[0]) if lines else 0]:
            table.add_column(style=style, overflow="fold", no_wrap=not wraps)
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)

    def begin(file: Path) -> None:
        text, examples = head(file)
        console.print(Text(" ".join(text)))
        console.print(Text("\n".join(f"  {example}" for example in examples), style="yellow"))

    if topic is None:
        usage = f"python -m {__package__}.{config_name} [GROUP=CHOICE ...] [OPTION=VALUE ...]\n"
        console.print(Text(usage, style="bold"))
        begin(path)
        console.print(Text("\nGroups: --help GROUP says what each choice is, and its options", style="bold"))
        rows([(name, choice, " ".join(choices(name))) for name, choice in chosen.items()])
        console.print(Text("\nOptions", style="bold"))
        rows([option for option in options(path) if option.key not in chosen])
        console.print(Text("\n--cfg job shows the whole config, --hydra-help what Hydra itself takes"))
        return
    if topic not in chosen:
        raise ValueError(f"--help {topic}: src.{config_name} has no such group; it has {', '.join(chosen)}")
    files = {name: CONF / topic / f"{name}.yaml" for name in choices(topic)}
    rows([(f"{topic}={name}", " ".join(head(file)[0])) for name, file in files.items()])
    shared = CONF / topic / "base.yaml"
    of = shared if shared.is_file() else files.get(chosen[topic])
    if of is not None and (found := list(options(of, topic))):
        console.print(Text(f"\nOptions of {'all' if of == shared else f'{topic}={of.stem}'}", style="bold"))
        begin(of)
        rows(found)
