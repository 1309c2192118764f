"""Makes the template yours: renames the package `src` and the project, once, before the first run.

    python -m src.rename myproject

From then on it is `python -m myproject.train`; runs that were trained before can no longer be opened.
"""

import re
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PROJECT = Path(__file__).parent.name, "lightning-classics"
TEXTS = {".py", ".yaml", ".yml", ".toml", ".md", ".ipynb", ".cff", ".bash", ""}  # endings of what is searched
HIDDEN = {".ci", ".github", ".gitignore", ".pre-commit-config.yaml"}  # the other hidden ones are caches of tools
LEFT = {"logs", "data"}
# The word, but no part of another, no attribute of HTML and no alternative of a regular expression.
WORD = re.compile(rf"(?<![\w.$-]){PACKAGE}(?![\w=|-])")


def rename(name: str, root: Path = ROOT) -> list[Path]:
    """Renames the package to `name` and the project after it, and gives the files that changed.

    Raises:
        ValueError: it is no name for a package, or another package has it.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name} is no name for a package: lower-case letters, digits and _, such as myproject")
    if name in sys.stdlib_module_names or find_spec(name) or (root / name).exists():
        raise ValueError(f"there is a package or a folder {name} already; choose another name")
    hidden = {top for top in root.iterdir() if top.name.startswith(".") and top.name not in HIDDEN}
    tops = sorted(top for top in {*root.iterdir()} - hidden if top.name not in LEFT)
    paths = [path for top in tops for path in (top, *sorted(top.rglob("*"))) if path.suffix in TEXTS and path.is_file()]
    texts = {path: text for path in paths if (text := _text(path)) is not None}  # all before the first is written
    changed = []
    for path, text in texts.items():
        new = WORD.sub(name, text)
        if PROJECT != PACKAGE:  # which are one word once it has been renamed
            new = new.replace(PROJECT, name.replace("_", "-"))
        if new != text:
            path.write_text(new)
            changed.append(path)
    (root / PACKAGE).rename(root / name)
    return changed


def _text(path: Path) -> str | None:
    """What a file says; None where it is no text."""
    try:
        return path.read_text()
    except UnicodeDecodeError:
        return None


def main() -> None:
    parser = ArgumentParser(f"python -m {PACKAGE}.rename", description=__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("name", help="of the package, such as myproject; the project is called the same, with - for _")
    name = parser.parse_args().name
    try:
        changed = rename(name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    # The order of imports and the length of lines depend on the name.
    for command in ("check --fix", "format", "check --select E501 --add-noqa"):
        where = [name, "tests", "hydra_plugins", "notebooks"]
        subprocess.run([sys.executable, "-m", "ruff", *command.split(), *where, "-q"], cwd=ROOT)
    print(f"{len(changed)} files changed. make train installs the project anew; by hand: python -m {name}.train")


if __name__ == "__main__":
    main()
