"""What several tests share: composed configs, a trained run, commands, and the one place of the real CIFAR-10."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

# Read when torch is loaded, here and in the commands: threads that wait for each other give way to whatever else runs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from src.figures import Figure
from src.runs.build import compose
from src.runs.folder import LAST, METRICS
from src.runs.record import read_results
from tests.warm import ROOT, Command

# A developer's own places stay out of the tests.
for variable in ("CLASSICS_DATA_DIR", "CLASSICS_LOG_DIR"):
    os.environ.pop(variable, None)

DATASETS = ROOT.parent / "shared" / "datasets"

needs_cifar10 = pytest.mark.skipif(
    not (DATASETS / "cifar-10-batches-py").is_dir(), reason="CIFAR-10 is not there: ../shared/datasets"
)

BLANK = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4//8/AAX+Av4N70a4AAAAAElFTkSuQmCC"
)  # a PNG file of one pixel

# Deeper or with norms, they are the same code as those that the quick tests take.
ALIKE = {"vgg11", "vgg13", "vgg13_bn", "vgg16", "vgg19", "vgg19_bn", "resnet34", "resnet50", "resnet101"}

# What a test marked as `tried` is a trial of.
TRIED = {
    "hostile": "hostile checkpoints, run folders and sweeps: classes, interpolations, pickles, paths, links, bombs",
    "kills": "kills at random moments (SIGKILL, SIGTERM, SIGINT), of 18 kinds of training: equal weights and metrics",
    "stops": "stops and kills at chosen steps and saves, of 14 kinds of training: equal to the last bit",
    "signals": "signals to one or all of several processes: DDP, torchrun, a SLURM job, a sweep",
    "numbers": "the same numbers: accumulated, by two processes, watched, evaluated later, in predictions.csv",
    "options": "random command lines of every entry point: each does its work, or ends in one message and no folder",
    "files": "full disks, deleted folders, names of any bytes, images of other depths, pipes, malformed records",
    "long": "1,000 epochs, 100,000 images, 10,000 classes, 200 readers of a run that trains",
}

# A network and an amount of data that train in a second.
QUICK = [
    *("data.limit=200", "data.batch_size=32", "model.network.hidden_units=4"),
    *("trainer=cpu", "trainer.precision=32-true", "trainer.max_epochs=2"),
]
FEW = ["data.limit=50", "trainer.max_epochs=1"]  # for bfloat16, which most processors emulate: a hundred times slower
SILENT = ["callbacks.model_summary=null", "callbacks.tensorboard_pictures=null"]


def composed(*overrides: str, name: str = "train", folder: Path | None = None) -> DictConfig:
    """Composes `conf/<name>.yaml`; with `folder` the run folder is folder/run, and logs are in folder/logs."""
    inside = [f"paths.output_dir={folder}/run", f"paths.log_dir={folder}/logs"] if folder else []
    inside += ["local=[]"] if not any(override.startswith("local=") for override in overrides) else []
    return compose(name, [*inside, *overrides])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of slow tests first, then those of few, which take long: no process shall be left with one at the end."""
    counts = Counter(item.path for item in items)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: (-slow[item.path], counts[item.path]))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if mark := item.get_closest_marker("tried"):
        item.user_properties.append(("tried", mark.args))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The README's table of reliability, as far as its tests have run."""
    tried, held = Counter[str](), Counter[str]()
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            if report.when == "call" or outcome == "error":
                marks = getattr(report, "user_properties", ())  # one of a file that cannot be read has none
                for row, *times in (mark for name, mark in marks if name == "tried"):
                    tried[row] += (trials := next(iter(times), 1))
                    held[row] += trials * (outcome == "passed")
    if tried:
        terminalreporter.section("reliability")
        for row in filter(tried.get, TRIED):
            terminalreporter.write_line(f"| {TRIED[row]} | {held[row]:,} of {tried[row]:,} |")


def slow_if_alike(*names: str) -> list[Any]:
    """Parameters of a test of each network: of those that are `ALIKE`, `make test-all` alone takes more than one."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in names]


@pytest.fixture(autouse=True)
def nothing_of_a_command_stays() -> Iterator[None]:
    """One in the test's own process logs into its run folder, and Hydra keeps its config and the data of its run."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
    ConfigStore.instance().repo.get("data", {}).pop("run.yaml", None)
    HydraConfig.instance().cfg = None


@pytest.fixture(autouse=True)
def figures_are_blank(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are made but not rendered, which takes most of their time, unless the test has the mark `renders`.

    A command that runs in a process of its own renders them.
    """
    if "renders" not in request.keywords:
        monkeypatch.setattr(Figure, "png", BLANK)


@pytest.fixture
def silent_host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a host that takes the call and says nothing; whoever has not given it up is hung up on."""
    monkeypatch.setattr("src.data.files.STALLED", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as says_nothing:
        hangs_up = threading.Timer(60, says_nothing.close)
        hangs_up.start()
        yield f"http://127.0.0.1:{says_nothing.getsockname()[1]}/"
        hangs_up.cancel()
    assert socket.getdefaulttimeout() is None


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """`composed`, its folders in the test's own."""

    def inside(*overrides: str, name: str = "train") -> DictConfig:
        return composed(*overrides, name=name, folder=tmp_path)

    return inside


def train_here(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any], Path]:
    """Trains in this process; the run folder, which is the last value, is as complete as one of the command line."""
    from src.train import train

    folder = Path(cfg.paths.output_dir)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(cfg, folder / ".hydra/config.yaml")
    return *train(cfg), folder


def assert_equal_runs(folder: Path, expected: Path) -> None:
    """Last weights, names of the best checkpoints, rows of metrics and results to the last bit, but for the times."""
    import pandas as pd
    import torch

    ours, theirs = (
        (
            torch.load(path / LAST, weights_only=True)["state_dict"],
            sorted(each.name for each in path.glob("checkpoints/epoch_*")),
            pd.read_csv(path / METRICS).drop(columns="train/images_per_s"),
            {**read_results(path)["metrics"], "train/images_per_s": None},
        )
        for path in (folder, expected)
    )
    assert ours[0].keys() == theirs[0].keys()
    assert all(torch.equal(ours[0][name], value) for name, value in theirs[0].items())
    assert ours[1] == theirs[1]
    pd.testing.assert_frame_equal(ours[2], theirs[2], check_exact=True)
    assert ours[3] == theirs[3]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TinyVGG that has seen a little of the digits: one run folder for all tests, to read or to copy."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = [*QUICK, "data.limit=600", "trainer.max_epochs=5", "optimizer.lr=0.01", f"hydra.run.dir={folder}"]
    run_well("-m", "src.train", *options)
    return folder


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of it, in another place than where it was trained."""
    return Path(shutil.copytree(trained_run, tmp_path / "copied"))


def run_command(
    *arguments: str, cwd: Path = ROOT, timeout: float = 300, project: Path = ROOT, cold: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` to its end as a user would, by default from the project's folder.

    Args:
        cold: load all anew, as the user's Python does; otherwise an entry point is a `Command`.
        project: where else `src` and `conf` lie.
        options: further ones of `subprocess.run`, which make it cold.
    """
    if arguments[0] == "-m" and project == ROOT and not options and not cold:
        with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
            code = Command(*arguments, cwd=cwd, stdout=out, stderr=err).wait(timeout)
            written = []
            for file in (out, err):
                file.seek(0)
                written.append(file.read())
        return subprocess.CompletedProcess(["python", *arguments], code, *written)
    options["env"] = {**os.environ, "PYTHONPATH": f"{project}:{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=cwd, timeout=timeout, **options
    )


def run_well(*arguments: str, **options: Any) -> str:
    """What `run_command` prints, which must end well."""
    done = run_command(*arguments, **options)
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """A web server of this machine that stands in for a data set's own: the URL of the files in a folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
