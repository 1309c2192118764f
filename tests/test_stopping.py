"""Processes that train together stop after the same step, save once and leave nobody behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from src.sweeps import read_jobs
from tests.conftest import ROOT, SILENT, assert_equal_runs, run_well
from tests.test_resume import NETWORK

pytestmark = [pytest.mark.slow, pytest.mark.tried("signals")]
SMALL = [
    *(*NETWORK, *SILENT, "optimizer.lr=0.01", "trainer.precision=32-true", "trainer.max_epochs=6", "data.limit=1000"),
    *("data.batch_size=16", "trainer=ddp_cpu"),  # 28 steps an epoch; dropout draws other numbers on each process
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts `python -m ARGUMENTS` as the head of a session of its own."""
    sessions = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": ROOT}
        env = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *arguments]
        # A shell's background process ignores Ctrl-C, and so do its children, unless told.
        options["preexec_fn"] = lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
        options |= {"env": env | environment, "start_new_session": True}
        sessions.append(subprocess.Popen(command, **options))
        return sessions[-1]

    yield begin
    for process in sessions:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run_well("-m", "src.train", *SMALL, f"hydra.run.dir={folder}")
    return folder


def living(folder: Path, having: str = "") -> list[int]:
    """The processes whose command lines name the folder of a test, and have that text."""
    listed = subprocess.run(["ps", "-wweo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    rows = (line.split(None, 2) for line in listed.splitlines()[1:])
    return [int(pid) for pid, state, line in rows if state[0] != "Z" and str(folder) in line and having in line]


def read_until(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return "".join(lines)
    raise AssertionError("".join(lines))


def saved_step(path: Path) -> int:
    return torch.load(path, weights_only=True)["global_step"]


def ended(process: subprocess.Popen[str], folder: Path) -> str:
    """What a process printed until its end; all that it started ends with it."""
    output, _ = process.communicate(timeout=60)
    for _ in range(100):
        if not living(folder):
            return output
        time.sleep(0.1)
    raise AssertionError(f"left behind: {living(folder)}\n{output}")


@pytest.mark.parametrize(
    ("whom", "number", "code"),
    [
        ("all", signal.SIGINT, 130),
        ("all", signal.SIGTERM, 143),
        ("first", signal.SIGTERM, 143),
        ("second", signal.SIGTERM, 143),
        ("all, and two workers of each", signal.SIGTERM, 143),
    ],
)
def test_all_processes_stop_after_the_same_step_and_go_on_exactly(
    whom: str, number: int, code: int, start: Start, uninterrupted: Path, tmp_path: Path
) -> None:
    workers = f"data.num_workers={2 * ('workers' in whom)}"
    process = start("src.train", *SMALL, workers, f"hydra.run.dir={tmp_path}/run")
    read_until(process, "epoch   1 ")
    if whom.startswith("all"):
        os.killpg(process.pid, number)
    else:
        os.kill(process.pid if whom == "first" else living(tmp_path, "train_ddp_process_1")[0], number)
    output = ended(process, tmp_path)
    assert process.returncode == code, output
    assert "Traceback" not in output
    assert output.count("Stopping after this step") == (number == signal.SIGINT)
    assert saved_step(tmp_path / "run/checkpoints/last.ckpt") < 6 * 28
    run_well("-m", "src.train", f"resume={tmp_path}/run")
    assert_equal_runs(tmp_path / "run", uninterrupted)


def test_ctrl_c_while_the_processes_start_ends_them_all_and_leaves_no_folder(start: Start, tmp_path: Path) -> None:
    process = start("src.train", *SMALL, f"hydra.run.dir={tmp_path}/run")
    read_until(process, "given: ")
    while not any("libtorch" in Path(f"/proc/{pid}/maps").read_text() for pid in living(tmp_path, "ddp_process_1")):
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    output = ended(process, tmp_path)
    assert process.returncode == 130, output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", ["first", "second"])
def test_the_kill_of_a_process_ends_the_other_with_one_message(killed: str, start: Start, tmp_path: Path) -> None:
    process = start("src.train", *SMALL, f"hydra.run.dir={tmp_path}/run")
    read_until(process, "epoch   1 ")
    os.kill(process.pid if killed == "first" else living(tmp_path, "train_ddp_process_1")[0], signal.SIGKILL)
    output = ended(process, tmp_path)
    assert process.returncode == (-signal.SIGKILL if killed == "first" else 1)
    errors = [line for line in output.splitlines() if not line.startswith("epoch")]
    assert errors == [
        "error: a process that trains with this one ended before it; resume=latest goes on from the last checkpoint"
    ]


def test_a_process_that_waits_for_one_that_was_killed_before_the_training_ends_too(
    start: Start, tmp_path: Path
) -> None:
    process = start("src.train", *SMALL, f"hydra.run.dir={tmp_path}/run")
    while not living(tmp_path, "train_ddp_process_1"):
        time.sleep(0.05)
    time.sleep(5)
    os.kill(process.pid, signal.SIGKILL)
    ended(process, tmp_path)


LONG = [*SMALL, "trainer.max_epochs=80"]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "src.train", *LONG]


@pytest.mark.parametrize("whom", ["agent", "worker"])
def test_torchruns_processes_save_and_end_and_so_does_it(whom: str, start: Start, tmp_path: Path) -> None:
    process = start(*TORCHRUN, f"hydra.run.dir={tmp_path}/run")
    read_until(process, "epoch   1 ")
    workers = [pid for pid in living(tmp_path) if pid != process.pid]
    os.kill(process.pid if whom == "agent" else max(workers), signal.SIGTERM)
    output = ended(process, tmp_path)
    assert process.returncode != 0
    assert "exitcode  : 143" in output or whom == "agent"
    assert saved_step(tmp_path / "run/checkpoints/last.ckpt") < 80 * 28


def test_slurms_warning_to_one_task_requeues_the_job_once_all_have_saved(start: Start, tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    tasks = []
    for rank in "01":
        slurm = {"JOB_ID": "77", "STEP_ID": "0", "JOB_NAME": "train", "NTASKS": "2", "PROCID": rank, "LOCALID": rank}
        slurm |= {"NTASKS_PER_NODE": "2", "NODEID": "0"}
        environment = {f"SLURM_{name}": value for name, value in slurm.items()}
        tasks.append(
            start(
                "src.train", *LONG, f"paths.log_dir={tmp_path}", **environment, PATH=f"{tmp_path}:{os.environ['PATH']}"
            )
        )
    read_until(tasks[0], "epoch   1 ")
    tasks[1].send_signal(signal.SIGUSR1)
    outputs = [ended(task, tmp_path) for task in tasks]
    assert [task.returncode for task in tasks] == [143, 143], outputs
    assert (tmp_path / "asked").read_text() == "requeue 77\n"
    (last,) = tmp_path.glob("train/runs/slurm_77.0_vgg11_digits/checkpoints/last.ckpt")
    assert saved_step(last) < 80 * 28


def test_a_sweep_that_is_stopped_stops_the_processes_of_its_jobs(start: Start, tmp_path: Path) -> None:
    process = start("src.train", "-m", *LONG, "seed=0,1", f"paths.log_dir={tmp_path}")
    (log,) = waited(lambda: list(tmp_path.glob("train/multiruns/*/0/output.log")))
    waited(lambda: "epoch   1 " in log.read_text())
    process.send_signal(signal.SIGTERM)
    ended(process, tmp_path)
    assert process.returncode == 130
    assert saved_step(log.parent / "checkpoints/last.ckpt") < 80 * 28
    assert [job.status for job in read_jobs(log.parent.parent)] == ["stopped", "queued"]


def waited(result: Callable[[], Any]) -> Any:
    for _ in range(600):
        if found := result():
            return found
        time.sleep(0.2)
    raise AssertionError("it has not come in two minutes")
