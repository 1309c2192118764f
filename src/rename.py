"""Makes the template yours: renames the package `src` and the project, once, before the first run.

    python -m src.rename mylab

From then on it is `python -m mylab.train`; runs that were trained before can no longer be opened.
"""

import re
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, PROJECT = Path(__file__).parent.name, "lightning-classics"
TEXTS = {".py", ".yaml", ".yml", ".toml", ".md", ".ipynb", ".cff", ""}  # endings of what is searched
LEFT = {".git", ".venv", "logs", "data"}
# The word, but no part of another, no attribute of HTML and no alternative of a regular expression.
WORD = re.compile(rf"(?<![\w.$-]){PACKAGE}(?![\w=|-])")


def rename(name: str, root: Path = ROOT) -> list[Path]:
    """Renames the package to `name` and the project after it, and gives the files that changed.

    Raises:
        ValueError: it is no name for a package, or another package has it.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"{name} is no name for a package: lower-case letters, digits and _, such as mylab")
    if name in sys.stdlib_module_names or find_spec(name) or (root / name).exists():
        raise ValueError(f"there is a package or a folder {name} already; choose another name")
    changed = []
    for path in sorted(root.rglob("*")):
        if LEFT & set(path.relative_to(root).parts[:1]) or path.suffix not in TEXTS or not path.is_file():
            continue
        text = path.read_text()
        new = WORD.sub(name, text).replace(PROJECT, name.replace("_", "-"))
        if new != text:
            path.write_text(new)
            changed.append(path)
    (root / PACKAGE).rename(root / name)
    return changed


def main() -> None:
    parser = ArgumentParser(f"python -m {PACKAGE}.rename", description=__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("name", help="of the package, such as mylab; the project is called the same, with - for _")
    name = parser.parse_args().name
    try:
        changed = rename(name)
    except ValueError as error:
        sys.exit(f"error: {error}")
    # The order of imports and the length of lines depend on the name.
    for command in ("check --fix", "format", "check --select E501 --add-noqa"):
        subprocess.run([sys.executable, "-m", "ruff", *command.split(), name, "tests", "-q"], cwd=ROOT)
    print(f"{len(changed)} files changed. make train installs the project anew; by hand: python -m {name}.train")


if __name__ == "__main__":
    main()
