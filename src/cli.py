"""The command line that all entry points share: Hydra, with errors a user can act on.

A mistake ends with one message and exit code 1; HYDRA_FULL_ERROR=1 shows the traceback instead.
"""

import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_store import ConfigStore
from hydra.main import get_args_parser
from omegaconf import DictConfig

from src.cores import START, share_the_cores, worked
from src.errors import LOST, all_keys, explain, nearest_keys, user_error
from src.help import show
from src.runs.build import REPLACES, VERSION_BASE, compose, register_resolvers, unchecked
from src.runs.folder import CONF, RunError

log = logging.getLogger(__name__)
Given = dict[str, str]  # the plain KEY=VALUE of a command line
MULTIRUN = {"-m", "--multirun"}
PARENT = os.getppid()
STAYS = ("seed", "optimized_metric", "optimized_mode")  # in a run that goes on: what there is of it depends on them
GRACE = 30  # seconds for a last checkpoint once the process that started this one has gone


def run(task: Callable[[DictConfig], Any], config_name: str, prepare: Callable[[Given], Any] = lambda _: None) -> None:
    """Composes `conf/<config_name>.yaml` with the command line and calls `task` with the result.

    Args:
        prepare: called before that with the command line; it may return the name of another config to compose.
    """
    show_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"

    def job(cfg: DictConfig) -> Any:
        if not show_traceback:
            os.environ.pop("HYDRA_FULL_ERROR", None)  # processes that the job starts print for themselves
        with one_line_errors(config_name, show_traceback):
            return task(cfg)

    if "LOCAL_RANK" in os.environ:
        threading.Thread(target=end_with_parent, daemon=True).start()
        by_lightning = "TORCHELASTIC_RUN_ID" not in os.environ
        if by_lightning and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Ctrl-C goes to all; Lightning would kill the first, which ends this one, if this one ended before it.
            signal.signal(signal.SIGINT, lambda *_: None)
    if not show_traceback:
        threading.excepthook = tell_of_thread
    register_resolvers()
    sweeps = any(word in MULTIRUN or word.startswith("resume_sweep=") for word in sys.argv)
    if not sweeps:  # its jobs look for themselves
        share_the_cores(START, worked())
    with one_line_errors(config_name, show_traceback):
        if asked := next((i for i, word in enumerate(sys.argv) if word in ("--help", "-h")), None):
            return show(config_name, *sys.argv[asked + 1 : asked + 2])
        check_flags(config_name)
        # Hydra's own parser reads them from there; what follows a flag in their midst it would not know.
        sys.argv[1:] = sorted(map(switched_off, sys.argv[1:]), key=lambda word: word not in MULTIRUN)
        words = (word.partition("=") for word in sys.argv[1:] if "=" in word and not word.startswith("-"))
        config_name = prepare({key: value.strip("'\"") for key, _, value in words}) or config_name
        os.environ["HYDRA_FULL_ERROR"] = "1"  # so that Hydra raises and leaves the printing to us
        options = {"config_path": str(CONF), "config_name": config_name}
        hydra.main(**options, **VERSION_BASE, **unchecked("execution_whitelist"))(job)()


def go_on(given: Given) -> str | None:
    """What `resume_sweep=FOLDER` and `resume=RUN` mean: the sweep's own command, or the run's own config.

    Returns:
        The name of the config to compose: that of the run's last checkpoint. It is plain data in Hydra's store, no
        file of the run folder is on a search path.

    Raises:
        RunError, FileNotFoundError: there is nothing to go on with, or an override changes a whole section, or what
            `STAYS`.
    """
    if given.get("resume_sweep", "null") != "null":
        from src.sweeps import resume_command

        more = [word for word in sys.argv[1:] if not word.startswith("resume_sweep=") and word not in MULTIRUN]
        command = resume_command(Path(given["resume_sweep"]), more)
        os.execv(command[0], command)
    if given.get("resume", "null") == "null":
        return None
    if MULTIRUN & set(sys.argv):
        raise RunError("resume= goes on with one run; a sweep goes on with resume_sweep=FOLDER")
    from src.runs.run import resumed_config

    config = resumed_config(given["resume"], log_dir(given), trusted(given), {key.lstrip("+") for key in given})
    for key, value in given.items():
        if isinstance(config.get(key), dict) and not value.startswith("{"):
            raise RunError(f"{key}={value} would change a whole section of a saved config; write {key}.KEY=VALUE")
        if (name := key.lstrip("+")) in STAYS and value != str(config.get(name)):
            raise RunError(
                f"{key}={value}: the run began with {config.get(name)}; ckpt_path=FILE begins another from it"
            )
    for key in ("optimizer", "scheduler", "loss", "metrics"):
        if key in config["model"] and config["model"][key] == config.get(key):
            config["model"][key] = f"${{{key}}}"  # so that an override changes both
    if "monitor" in (schedule := config.get("scheduler") or {}):
        every = "check_val_every_n_epoch"
        if schedule.get("frequency") == config["trainer"].get(every):
            schedule["frequency"] = f"${{trainer.{every}}}"
    own = {"run": {"dir": config["resume"].replace("$", "\\$")}, "output_subdir": None, "job": {"name": "train"}}
    defaults = ["_self_", {"override hydra/job_logging": "run"}]
    ConfigStore.instance().store("resumed", {**config, "defaults": defaults, "hydra": own}, **REPLACES)
    return "resumed"


def check_flags(config_name: str) -> None:
    """Refuses a flag that Hydra lacks, such as `--model vgg11`, and says how the option is written."""
    _, others = get_args_parser().parse_known_args()
    if unknown := [word for word in others if word.startswith("-")]:
        name, given, value = unknown[0].lstrip("-").partition("=")
        value = value if given else "".join(sys.argv[sys.argv.index(unknown[0]) + 1 :][:1]) or "VALUE"
        hint = name if name in (keys := all_keys(config_name)) else next(iter(nearest_keys(name, keys)), "KEY")
        raise ValueError(f"there is no flag {unknown[0]}: options are written without dashes, {hint}={value}")


def switched_off(word: str) -> str:
    """`logger=null`, and the same of any other group of conf, as Hydra takes it: `logger=[]`. It refuses null there."""
    group, _, value = word.partition("=")
    if group == "corruptions" and re.match(r"\w+,", value):
        return f"{group}=[{value}]"  # Hydra would make a sweep of it
    if group == "data/augment" and value in ("null", "[]"):
        return "data/augment=none"  # a data set has a crop and a flip of its own
    return f"{group}=[]" if value == "null" and (CONF / group).is_dir() else word


def trusted(given: Given) -> list[str]:
    """The packages that the command line trusts: `trusted=[a,b]`."""
    words = given.get("trusted", "[]")
    if not re.fullmatch(r"\[.*\]", words):
        raise ValueError(f"trusted={words} must be a list, such as trusted=[mylab]")
    return [str(word) for word in yaml.safe_load(words)]


def log_dir(given: Given) -> str:
    """Where runs lie, by the configs of this machine and by what the command line says of it."""
    from src.sweeps.folder import quote

    words = [f"{key}={quote(value)}" for key, value in given.items() if key.startswith("paths.") or key == "local"]
    return compose("predict", words).paths.log_dir


def quieten() -> None:
    """Leaves out what Lightning, once it is imported, says of a run that is as it should be."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for needless in (
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        ".*smaller than the logging interval",  # metrics are logged once an epoch
        ".*sync_dist=True",  # as sums over all processes
        ".*not supported by the model summary",  # its megabytes are those of float32
        ".*(have no `(val_dataloader|validation_step)`|Total length of `list` across ranks is zero)",  # no validation
        ".*(Experiment logs|Checkpoint) directory .* exists and is not empty",  # of a resumed run
        ".*many workers.*",  # are the user's choice
        ".*all_gather is deprecated.*",  # is Lightning's affair
    ):
        warnings.filterwarnings("ignore", needless)


@contextmanager
def one_line_errors(config_name: str, show_traceback: bool) -> Iterator[None]:
    """Ends the program with one message and exit code 1 where the user made a mistake; after a signal with its code."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as end:  # Lightning makes an exit with 1 of the one
        if isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt):
            sys.exit(128 + signal.SIGINT)
        if type(end).__name__ == "SIGTERMException" and end.code is None:  # Lightning's, of an evaluation
            sys.exit(128 + signal.SIGTERM)
        raise
    except Exception as error:
        cause = user_error(error)
        if show_traceback or cause is None:
            raise
        # One process tells of another that was lost: the first, or those that were left by it.
        if not (cause is LOST and int(os.environ.get("LOCAL_RANK", 0)) > 0 and os.getppid() == PARENT):
            print(f"error: {explain(cause, config_name)}", file=sys.stderr)
        sys.exit(1)


def tell_of_thread(end: threading.ExceptHookArgs) -> None:
    """One line where a thread fails at a file, as TensorBoard's does on a full disk: the first thread meets it next."""
    if isinstance(end.exc_value, OSError):
        log.warning("%s", explain(end.exc_value, ""))
    else:
        threading.__excepthook__(end)


def end_with_parent() -> None:
    """Ends a process of several that train together once the one that started it has gone."""
    while os.getppid() == PARENT:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(1)  # where it waits for another for ever
