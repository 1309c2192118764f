"""Where official data sets come from, and whether they are here or can be had.

Loads no torch, so that a command can ask before anything slow or lasting happens.
"""

from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

OFFICIAL = {  # torchvision's class: the archive, the folder in it; that class has the files and checksums
    "CIFAR10": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "cifar-10-batches-py"),
    "CIFAR100": ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "cifar-100-python"),
    "STL10": ("http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "stl10_binary"),
}
MIRROR = "try another host with data.mirror=URL"
PATIENCE = 4.0  # seconds that a host has to answer


def look_for(data: Mapping[str, Any] | None) -> None:
    """Looks for the folder of a config's data set, if that is an official one; others are left to their classes.

    Raises:
        FileNotFoundError: it is not here, and cannot be downloaded or must not be.
    """
    package, _, name = str((data or {}).get("_target_")).rpartition(".")
    if data is None or name not in OFFICIAL or not package.startswith("src.data."):
        return
    root = Path(data.get("root", ""))  # what a config leaves out is as its class has it
    if not (root / OFFICIAL[name][1]).is_dir():
        if not data.get("download"):
            raise absent(name, root, "no such folder")
        find(name, root, data.get("mirror"))


def find(name: str, root: Path, mirror: str | None) -> str:
    """The URL to download an archive from. Nobody is asked where it lies in `root` already.

    Args:
        mirror: URL of a folder that holds the archive; None asks its authors.

    Raises:
        FileNotFoundError: the host gives no answer, or has no such file.
    """
    official = OFFICIAL[name][0]
    file = official.rpartition("/")[2]
    url = f"{mirror.rstrip('/')}/{file}" if mirror else official
    if not (root / file).is_file() and (problem := _no_answer(url)):
        raise absent(name, root, f"{url}: {problem}", MIRROR)
    return url


def absent(
    name: str, root: Path, why: str, remedy: str = "switch the download on with data.download=true"
) -> FileNotFoundError:
    """The error that says what is missing and what to do."""
    url, folder = OFFICIAL[name]
    return FileNotFoundError(
        f"{name} is not in {root / folder} ({why}). Point data.root at the folder that holds {folder}, {remedy}, or "
        f"unpack {url.rpartition('/')[2]} from {url} into {root}."
    )


def _no_answer(url: str) -> str | None:
    """Why nobody answers at a URL within `PATIENCE`, or None if somebody does."""
    from urllib.request import Request, urlopen  # needed by few starts, and slow to load

    problem: list[Any] = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            urlopen(Request(url, headers={"User-Agent": "pytorch/vision"}), timeout=PATIENCE).close()
            problem[0] = None
        except Exception as error:  # whatever a network may do
            problem[0] = getattr(error, "reason", error)

    asking = Thread(target=ask, daemon=True)  # looking up a host's name knows no time limit
    asking.start()
    asking.join(PATIENCE)
    return problem[0] and str(problem[0])
