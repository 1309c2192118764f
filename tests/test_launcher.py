"""The process launcher, on a program that trains nothing but has a run folder, checkpoints and signals like one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, hear_interrupts

CONFIG = """
defaults:
  - _self_
  - shape: round
kind: ok
seed: 0
lr: 0.01
width: 1
epochs: 2
seconds: 0.02
resume: null
task_name: standin
optimized_metric: val/acc
trainer: {num_nodes: 1}
hydra:
  searchpath: [file://ROOT/conf]
  sweep: {dir: "logs/multiruns/${now:%Y-%m-%d_%H-%M-%S}"}
"""

# A job reads its overrides without Hydra, so that it starts in a tenth of a second.
PROGRAM = """
import json, math, os, pathlib, signal, sys, time

def main():
    given = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    folder = pathlib.Path(given.get("resume") or given["hydra.run.dir"])
    checkpoint = folder / "checkpoints/last.ckpt"
    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
    first = 0
    if "resume" in given:
        given = json.loads((folder / "given.json").read_text())
        first = int(checkpoint.read_text()) + 1
    (folder / "given.json").write_text(json.dumps(given))
    kind = given.get("kind", "ok").rstrip("0123456789")
    seed, epochs = int(given.get("seed", 0)), int(given.get("epochs", 2))
    lr, width = float(given.get("lr", 0.01)), int(given.get("width", 1))
    print("job", seed, "of", kind, flush=True)
    with (folder / "starts.log").open("a") as file:
        file.write(f"{os.getpid()} {first}\\n")
    if kind == "raise":
        raise ValueError(f"seed {seed} is unlucky")
    if kind == "memory":
        raise MemoryError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    if kind == "kill" and first == 0:
        checkpoint.parent.mkdir()
        checkpoint.write_text("0")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "csv").mkdir(exist_ok=True)
    checkpoint.parent.mkdir(exist_ok=True)
    top = 1 - 0.1 * abs(math.log10(lr) + 2) - 0.001 * seed - 0.01 * width
    values = [top * (1 - 0.5 ** (epoch + 1)) for epoch in range(epochs)]
    for epoch in range(first, epochs):
        time.sleep(float(given.get("seconds", 0.02)))
        with (folder / "csv/metrics.csv").open("a") as file:
            file.write("epoch,step,val/acc\\n" * (epoch == 0) + f"{epoch},{10 * epoch},{values[epoch]}\\n")
        checkpoint.write_text(str(epoch))
        if stop and kind != "deaf":
            sys.exit(143)
    names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
    (folder / "results.json").write_text(json.dumps({
        "status": "done", "metrics": {"val/acc": values[-1], "test/acc": values[-1] - 0.01}, "best": None,
        "epochs": epochs, "parameters": 1000 * width, "environment": {n: os.environ.get(n) for n in names},
    }))

if {"-m", "--multirun"} & set(sys.argv) or any(a.startswith("resume_sweep=") for a in sys.argv):
    import hydra
    from src.sweeps import register
    register()
    hydra.main(version_base="1.3", config_path="conf", config_name="standin")(lambda cfg: None)()
else:
    main()
"""


class Standin:
    """The program in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "conf" / "shape").mkdir(parents=True)
        (folder / "conf" / "standin.yaml").write_text(CONFIG.replace("ROOT", str(ROOT)))
        for shape in ("round", "square"):
            (folder / "conf" / "shape" / f"{shape}.yaml").write_text(f"name: {shape}\n")
        (folder / "standin.py").write_text(PROGRAM)

    def start(self, *overrides: str, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "standin", *overrides],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(env or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=hear_interrupts,
        )

    def sweep(self, *overrides: str, env: dict[str, str] | None = None) -> tuple[int, str]:
        """Exit code and output of `standin -m OVERRIDES`."""
        process = self.start(*overrides if overrides[0].startswith("resume_sweep") else ("-m", *overrides), env=env)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    @property
    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("logs/multiruns/*/sweep.json"))

    def jobs(self, sweep: int = -1) -> list[dict[str, Any]]:
        return json.loads((self.folders[sweep] / "sweep.json").read_text())["jobs"]

    def starts(self, number: int, sweep: int = -1) -> list[int]:
        """The epochs at which a job's processes started."""
        lines = (self.folders[sweep] / str(number) / "starts.log").read_text().splitlines()
        return [int(line.split()[1]) for line in lines]

    def wait_for(self, pattern: str, sweep: int = -1) -> Path:
        """The first file of a sweep that matches, once there is one."""
        for _ in range(1200):
            found = sorted(self.folders[sweep].glob(pattern)) if self.folders else []
            if found and found[0].stat().st_size:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"{pattern} never came")


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    return Standin(tmp_path)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def count(jobs: list[dict[str, Any]]) -> dict[str, int]:
    statuses = [job["status"] for job in jobs]
    return {status: statuses.count(status) for status in set(statuses)}


def test_of_thirty_jobs_the_failures_are_marked_and_a_second_start_completes_the_killed_ones(standin: Standin) -> None:
    kinds = ["ok"] * 22 + ["kill"] * 5 + ["raise"] * 2 + ["memory"]
    order = sorted(range(30), key=lambda i: i * 7 % 30)  # failures between successes
    sweep = [f"kind={','.join(f'{kinds[i]}{i}' for i in order)}", "hydra.launcher.n_jobs=4"]
    code, output = standin.sweep(*sweep)
    assert code == 8, output
    assert count(standin.jobs()) == {"done": 22, "killed": 5, "failed": 2, "out of memory": 1}
    reasons = {job["status"]: job["reason"] for job in standin.jobs()}
    assert "SIGKILL" in reasons["killed"]
    assert re.fullmatch(r"ValueError: seed 0 is unlucky", reasons["failed"])
    assert "can't allocate memory" in reasons["out of memory"]

    code, output = standin.sweep(*sweep)
    assert code == 3, output
    assert len(standin.folders) == 1, "the second start goes on in the folder of the first"
    assert f"Going on with {standin.folders[0]}, 22 jobs done" in output
    assert count(standin.jobs()) == {"done": 27, "failed": 2, "out of memory": 1}
    assert len(re.findall(r"^job \d+ done", output, re.MULTILINE)) == 5, "only what it did itself"
    assert [job["attempts"] for job in standin.jobs() if "ok" in job["label"]] == [1] * 22, "done jobs do not run again"
    killed = [job["number"] for job in standin.jobs() if "kill" in job["label"]]
    assert [standin.starts(number) for number in killed] == [[0, 1]] * 5, "from the checkpoint of epoch 0"


def test_a_job_is_its_own_process_without_multirun_in_its_command(standin: Standin) -> None:
    code, output = standin.sweep("seed=0,1", "epochs=3", "shape=square", "+hydra.job.env_set.X=1")
    assert code == 0, output
    given = json.loads((standin.folders[0] / "1" / "given.json").read_text())
    assert given == {
        "seed": "1",
        "epochs": "3",
        "shape": "square",
        "+hydra.job.env_set.X": "1",
        "hydra.mode": "RUN",
        "hydra.run.dir": str(standin.folders[0] / "1"),
    }
    pids = {(standin.folders[0] / str(i) / "starts.log").read_text().split()[0] for i in (0, 1)}
    assert len(pids) == 2
    assert "job 1 of ok" in (standin.folders[0] / "1" / "output.log").read_text()


def test_jobs_side_by_side_get_gpus_of_their_own_and_share_the_cores(standin: Standin) -> None:
    launcher = ["hydra.launcher.n_jobs=2", "hydra.launcher.gpus_per_job=2"]
    env = {"CUDA_VISIBLE_DEVICES": "3,5,6,GPU-1a", "OMP_NUM_THREADS": ""}
    env.pop("OMP_NUM_THREADS")
    code, output = standin.sweep("seed=range(4)", "seconds=0.2", *launcher, env=env)
    assert code == 0, output
    seen = [json.loads((standin.folders[0] / str(i) / "results.json").read_text())["environment"] for i in range(4)]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {"3,5", "6,GPU-1a"}
    cores = len(os.sched_getaffinity(0))
    assert {one["OMP_NUM_THREADS"] for one in seen} == {os.environ.get("OMP_NUM_THREADS", str(max(1, cores // 2)))}


def test_more_jobs_than_gpus_is_told_before_any_job_starts(standin: Standin) -> None:
    code, output = standin.sweep(
        "seed=0,1", "hydra.launcher.n_jobs=3", "hydra.launcher.gpus_per_job=1", env={"CUDA_VISIBLE_DEVICES": "0,1"}
    )
    assert code == 1
    assert "needs 3 GPUs" in output
    assert "at most n_jobs=2" in output
    assert not (standin.folder / "logs").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=range(0)"], "The sweep is empty: seed=range(0) stands for no value"),
        (["seeed=0,1"], "Could not override 'seeed'"),
        (["shape=round,oval"], "oval"),
        (["lr=interval(0,1)"], "an interval has no list of values"),
        (["hydra.launcher.n_jobs=0"], "n_jobs=0"),
    ],
)
def test_a_mistake_is_told_before_any_job_starts(standin: Standin, overrides: list[str], message: str) -> None:
    code, output = standin.sweep(*overrides)
    assert code == 1
    assert message in output
    assert not (standin.folder / "logs").exists(), "nothing half-written"


def test_a_sweep_that_is_done_starts_afresh_in_a_new_folder(standin: Standin) -> None:
    for _ in range(2):
        code, output = standin.sweep("seed=0,1")
        assert code == 0
        assert "Going on" not in output
    assert len(standin.folders) == 2


def test_two_sweeps_started_in_the_same_second_do_not_meet(standin: Standin) -> None:
    fixed = "hydra.sweep.dir=logs/multiruns/"
    config = standin.folder / "conf" / "standin.yaml"
    config.write_text(config.read_text().replace("${now:%Y-%m-%d_%H-%M-%S}", "now"))
    processes = [standin.start("-m", "seed=0,1", "seconds=0.3") for _ in range(3)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert [path.name for path in standin.folders] == ["now", "now-1", "now-2"]
    assert all(standin.starts(i, sweep) == [0] for i in (0, 1) for sweep in range(3))
    code, output = standin.sweep("seed=0,1,2", f"{fixed}now")
    assert code == 1
    assert "holds another sweep" in output


def test_ctrl_c_stops_the_jobs_and_the_same_command_goes_on(standin: Standin) -> None:
    sweep = ["seed=range(3)", "epochs=6", "seconds=0.25", "hydra.launcher.n_jobs=2"]
    process = standin.start("-m", *sweep)
    standin.wait_for("1/csv/metrics.csv")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "The same command goes on" in output
    assert count(standin.jobs()) == {"stopped": 2, "queued": 1}
    pids = [int((standin.folders[0] / str(i) / "starts.log").read_text().split()[0]) for i in (0, 1)]
    assert not any(map(alive, pids))

    code, output = standin.sweep(*sweep)
    assert code == 0
    assert len(standin.folders) == 1
    for number in (0, 1):
        (first, resumed) = standin.starts(number)
        assert first == 0
        assert resumed > 0
        epochs = (standin.folders[0] / str(number) / "csv" / "metrics.csv").read_text().splitlines()[1:]
        assert [line.split(",")[0] for line in epochs] == list("012345"), "each epoch once"


def test_a_killed_sweep_takes_its_jobs_along_and_resumes_by_name(standin: Standin) -> None:
    process = standin.start("-m", "seed=range(2)", "epochs=6", "seconds=0.25", "hydra.launcher.n_jobs=2")
    standin.wait_for("1/csv/metrics.csv")
    process.kill()
    process.communicate()
    # At once, while the jobs may still be saving: nobody writes into their folders twice.
    code, output = standin.sweep(f"resume_sweep={standin.folders[0]}", "hydra.launcher.n_jobs=1")
    assert code == 0, output
    assert len(standin.folders) == 1
    assert count(standin.jobs()) == {"done": 2}
    for number in (0, 1):
        epochs = (standin.folders[0] / str(number) / "csv" / "metrics.csv").read_text().splitlines()[1:]
        assert [line.split(",")[0] for line in epochs] == list("012345"), "each epoch once"


def test_a_job_cut_off_before_its_first_checkpoint_starts_afresh(standin: Standin) -> None:
    process = standin.start("-m", "seed=0,1", "epochs=2", "seconds=1")
    standin.wait_for("0/starts.log")
    process.kill()
    process.communicate()
    sweep = standin.folders[0]
    os.kill(int((sweep / "0" / "starts.log").read_text().split()[0]), signal.SIGKILL)
    (sweep / "0" / "left_over").write_text("of the first start")
    code, output = standin.sweep("seed=0,1", "epochs=2", "seconds=1")
    assert code == 0, output
    assert standin.starts(0) == [0]
    assert not (sweep / "0" / "left_over").exists()


def test_a_failed_job_is_retried_from_its_checkpoint(standin: Standin) -> None:
    code, output = standin.sweep("kind=kill,raise,ok", "hydra.launcher.retries=1")
    assert code == 1, output
    assert [(job["status"], job["attempts"]) for job in standin.jobs()] == [("done", 2), ("failed", 2), ("done", 1)]
    assert standin.starts(0) == [0, 1]


def test_resume_sweep_of_a_folder_that_is_no_sweep_is_refused(standin: Standin) -> None:
    standin.sweep("seed=0")
    code, output = standin.sweep("resume_sweep=logs/multiruns/nowhere")
    assert code == 1
    assert "no sweep.json" in output
    assert str(standin.folders[0]) in output


def test_a_running_sweep_cannot_be_entered(standin: Standin) -> None:
    process = standin.start("-m", "seed=0,1", "seconds=1")
    standin.wait_for("0/starts.log")
    code, output = standin.sweep(f"resume_sweep={standin.folders[0]}")
    process.terminate()
    process.communicate()
    assert code == 1
    assert "A sweep is running in" in output


def test_values_with_spaces_commas_and_quotes_reach_the_job(standin: Standin) -> None:
    code, output = standin.sweep("kind='ok'", "task_name='a b','c,d'")
    assert code == 0, output
    seen = [json.loads((standin.folders[0] / str(i) / "given.json").read_text())["task_name"] for i in (0, 1)]
    assert seen == ["'a b'", "'c,d'"], "as Hydra's command line writes them"


def test_registering_the_plugins_loads_nothing_heavy() -> None:
    heavy = {"torch", "lightning", "optuna", "scipy", "submitit", "rich", "matplotlib"}
    code = f"import sys; from src.sweeps import register; register(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
