"""The process launcher, on a program that trains nothing but has a run folder, checkpoints and signals like one."""

import json
import os
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from src.sweeps import Job, read_jobs
from src.sweeps.launcher import outcome
from tests.warm import ROOT, Command

CONFIG = """
defaults:
  - _self_
  - shape: round
  - override hydra/sweeper: study
  - override hydra/launcher: process
kind: ok
seed: 0
lr: 0.01
width: 1
epochs: 2
seconds: 0.02
task_name: standin
optimized_metric: val/acc
optimized_mode: max
trainer: {_target_: lightning.Trainer, num_nodes: 1}
data: {_target_: src.data.digits.Digits, folds: null, fold: null}
hydra:
  searchpath: [file://ROOT/conf]
  sweep: {dir: "logs/multiruns/${now:%Y-%m-%d_%H-%M-%S}"}
"""

# A job reads its overrides without Hydra, so that it starts in a tenth of a second.
PROGRAM = """
import json, math, os, pathlib, signal, sys, time

# Whether the study knows of an epoch: a whole line of its journal says so.
def reported(folder, epoch):
    lines = (folder.parent / "study.journal").read_text().split("\\n")[:-1]
    return any((line.get("trial_id"), line.get("step")) == (int(folder.name), epoch) for line in map(json.loads, lines))

def main():
    given = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
    folder = pathlib.Path((given.get("resume") or given["hydra.run.dir"]).strip("'"))
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
    if kind == "dry":
        return
    checkpoint.parent.mkdir(exist_ok=True)
    if kind == "kill" and first == 0:
        checkpoint.write_text("0")
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "csv").mkdir(exist_ok=True)
    top = 1 - 0.1 * abs(math.log10(lr) + 2) - 0.001 * seed - 0.01 * width
    values = [top * (1 - 0.5 ** (epoch + 1)) for epoch in range(epochs)]
    for epoch in range(first, epochs):
        while kind == "gated":
            is_open = epoch < int(pathlib.Path("gate").read_text())
            if stop:  # looked at after the gate: who opens it has sent the signal before
                sys.exit(143)
            if is_open:
                break
            time.sleep(0.01)
        while kind == "together" and len({path.parts[-3] for path in folder.parent.parent.glob("*/*/starts.log")}) < 2:
            time.sleep(0.01)
        time.sleep(float(given.get("seconds", 0.02)))
        with (folder / "csv/metrics.csv").open("a") as file:
            file.write("epoch,step,val/acc\\n" * (epoch == 0) + f"{epoch},{10 * epoch},{values[epoch]}\\n")
        checkpoint.write_text(str(epoch))
        while kind == "watched" and not reported(folder, epoch):  # so that what is pruned hangs on no timing
            time.sleep(0.01)
        if stop:
            sys.exit(143)
    names = "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"
    (folder / "results.json").write_text(json.dumps({
        "status": "done", "metrics": {"val/acc": values[-1], "test/acc": values[-1] - 0.01}, "best": None,
        "epochs": epochs, "parameters": 1000 * width, "environment": {n: os.environ.get(n) for n in names},
    }))

again = [a.split("=", 1)[1] for a in sys.argv if a.startswith("resume_sweep=")]
if again:
    from src.sweeps import resume_command
    command = resume_command(pathlib.Path(again[0]), [a for a in sys.argv[1:] if "resume_sweep=" not in a])
    os.execv(command[0], command)
elif {"-m", "--multirun"} & set(sys.argv):
    import hydra
    from src.runs.build import VERSION_BASE, register_resolvers, unchecked
    register_resolvers()
    options = {"config_path": "conf", "config_name": "standin", **VERSION_BASE, **unchecked("execution_whitelist")}
    hydra.main(**options)(lambda cfg: None)()
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

    def allow(self, epochs: int) -> None:
        """Jobs of the kind "gated" go as far as this and wait there."""
        (self.folder / "next").write_text(str(epochs))
        (self.folder / "next").rename(self.folder / "gate")

    def start(self, *overrides: str, **environment: str) -> Command:
        """`standin OVERRIDES`, with `-m` unless it resumes."""
        words = overrides if overrides[0].startswith("resume_sweep") else ("-m", *overrides)
        options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "cwd": self.folder}
        return Command("-m", "standin", *words, env=self.environment(**environment), **options)

    def sweep(self, *overrides: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of that."""
        return self.start(*overrides, **environment).communicate(120)

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "200", **more}

    @property
    def folders(self) -> list[Path]:
        return sorted(path.parent for path in self.folder.glob("logs/multiruns/*/study.journal"))

    def jobs(self, sweep: int = -1) -> list[Job]:
        return read_jobs(self.folders[sweep])

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        storage = JournalStorage(JournalFileBackend(str(self.folders[-1] / "study.journal")))
        return optuna.load_study(study_name="standin", storage=storage).trials

    def read(self, number: int, file: str) -> Any:
        """A JSON file of a job."""
        return json.loads((self.folders[-1] / str(number) / file).read_text())

    def starts(self, number: int, sweep: int = -1) -> list[int]:
        """The epochs at which a job's processes started."""
        lines = (self.folders[sweep] / str(number) / "starts.log").read_text().splitlines()
        return [int(line.split()[1]) for line in lines]

    def epochs(self, number: int) -> list[int]:
        """Those in a job's metrics."""
        rows = (self.folders[-1] / str(number) / "csv/metrics.csv").read_text().splitlines()[1:]
        return [int(row.split(",")[0]) for row in rows]

    def alive(self) -> list[int]:
        """The process ids of the jobs that run."""
        starts = [path.read_text().split() for path in self.folders[-1].glob("*/starts.log")]
        stats = [(int(pid), Path(f"/proc/{pid}/stat")) for pid, *_ in starts]
        return [pid for pid, stat in stats if stat.exists() and stat.read_text().split()[2] != "Z"]

    def wait_for(self, pattern: str) -> Path:
        """The first file of a sweep that matches, once there is one."""
        for _ in range(1200):
            found = sorted(self.folders[-1].glob(pattern)) if self.folders else []
            if found and found[0].stat().st_size:
                return found[0]
            time.sleep(0.05)
        raise AssertionError(f"{pattern} never came")


@pytest.fixture
def standin(tmp_path: Path) -> Standin:
    return Standin(tmp_path)


def count(jobs: list[Job]) -> Counter[str]:
    return Counter(job.status for job in jobs)


def test_of_thirty_jobs_the_failures_are_marked_and_a_second_start_completes_the_killed_ones(standin: Standin) -> None:
    kinds = ["ok"] * 22 + ["kill"] * 5 + ["raise"] * 2 + ["memory"]
    order = sorted(range(30), key=lambda i: i * 7 % 30)  # failures between successes
    sweep = [f"kind={','.join(f'{kinds[i]}{i}' for i in order)}", "hydra.launcher.n_jobs=4"]
    code, output = standin.sweep(*sweep)
    assert code == 8, output
    assert count(standin.jobs()) == {"done": 22, "killed": 5, "failed": 2, "out of memory": 1}
    reasons = {job.status: job.reason for job in standin.jobs()}
    assert "SIGKILL" in reasons["killed"]
    assert reasons["failed"] == "ValueError: seed 0 is unlucky"
    assert "can't allocate memory" in reasons["out of memory"]

    code, output = standin.sweep(*sweep)
    assert code == 3, output
    assert len(standin.folders) == 1, "the second start goes on in the folder of the first"
    assert f"Going on with {standin.folders[0].relative_to(standin.folder)} (" in output
    assert count(standin.jobs()) == {"done": 27, "failed": 2, "out of memory": 1}
    assert len(re.findall(r"^job \d+ done", output, re.MULTILINE)) == 5, "only what it did itself"
    starts = {
        kind: [standin.starts(job.number) for job in standin.jobs() if kind in job.params["kind"]] for kind in kinds
    }
    assert starts["ok"] == [[0]] * 22, "done jobs do not run again"
    assert starts["kill"] == [[0, 1]] * 5, "from the checkpoint of epoch 0"
    states = [trial.state.name for trial in standin.trials()]
    assert [states.count(state) for state in ("COMPLETE", "FAIL")] == [27, 11], "each start that failed is a trial"
    again = [trial for trial in standin.trials() if "failed_trial" in trial.user_attrs]
    assert len(again) == 8
    assert all(standin.trials()[trial.user_attrs["failed_trial"]].params == trial.params for trial in again)


def test_a_job_is_its_own_process_without_multirun_in_its_command(standin: Standin) -> None:
    code, output = standin.sweep("seed=0,1", "epochs=3", "shape=square", "+hydra.job.env_set.X=1")
    assert code == 0, output
    of_the_job = {"seed": "1", "epochs": "3", "shape": "square", "+hydra.job.env_set.X": "1", "hydra.mode": "RUN"}
    assert standin.read(1, "given.json") == {**of_the_job, "hydra.run.dir": f"'{standin.folders[0] / '1'}'"}
    pids = {(standin.folders[0] / str(i) / "starts.log").read_text().split()[0] for i in (0, 1)}
    assert len(pids) == 2
    assert "job 1 of ok" in (standin.folders[0] / "1" / "output.log").read_text()


def test_a_pattern_stands_for_the_files_of_a_group(standin: Standin) -> None:
    code, output = standin.sweep("shape=glob(*)", "epochs=1")
    assert code == 0, output
    assert [job.params for job in standin.jobs()] == [{"shape": "round"}, {"shape": "square"}]


def test_jobs_side_by_side_get_gpus_of_their_own_and_share_the_cores(standin: Standin) -> None:
    sweep = ["seed=range(4)", "seconds=0.2", "hydra.launcher.n_jobs=2", "hydra.launcher.gpus_per_job=2"]
    code, output = standin.sweep(*sweep, CUDA_VISIBLE_DEVICES="3,5,6,GPU-1a")
    assert code == 0, output
    seen = [standin.read(i, "results.json")["environment"] for i in range(4)]
    assert {one["CUDA_VISIBLE_DEVICES"] for one in seen} == {"3,5", "6,GPU-1a"}
    cores = len(os.sched_getaffinity(0))
    assert {one["OMP_NUM_THREADS"] for one in seen} == {os.environ.get("OMP_NUM_THREADS", str(max(1, cores // 2)))}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=range(0)"], "The sweep is empty: seed=range(0) stands for no value"),
        (["seeed=0,1"], "Could not override 'seeed'"),
        (["shape=round,oval"], "oval"),
        (["lr=interval(0,1)"], "a grid needs values"),
        (["hydra.launcher.n_jobs=0"], "n_jobs=0"),
        (["hydra.launcher.n_jobs=3", "hydra.launcher.gpus_per_job=1"], "2 can be seen here: at most n_jobs=2"),
    ],
)
def test_a_mistake_is_told_before_any_job_starts(standin: Standin, overrides: list[str], message: str) -> None:
    code, output = standin.sweep(*overrides, CUDA_VISIBLE_DEVICES="0,1")
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
    config = standin.folder / "conf" / "standin.yaml"
    config.write_text(config.read_text().replace("${now:%Y-%m-%d_%H-%M-%S}", "now"))
    processes = [standin.start("seed=0,1", "seconds=0.3") for _ in range(3)]
    ends = [process.communicate(60) for process in processes]
    assert [code for code, _ in ends] == [0, 0, 0], ends
    assert [path.name for path in standin.folders] == ["now", "now-1", "now-2"]
    assert all(standin.starts(i, sweep) == [0] for i in (0, 1) for sweep in range(3))
    code, output = standin.sweep("seed=0,1,2", "hydra.sweep.dir=logs/multiruns/now")
    assert code == 1
    assert "holds another sweep" in output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_sweep_that_is_stopped_or_killed_takes_its_jobs_along_and_goes_on(standin: Standin, how: int) -> None:
    sweep = ["seed=range(3)", "kind=gated", "epochs=6", "seconds=0", "hydra.launcher.n_jobs=2"]
    standin.allow(1)
    process = standin.start(*sweep)
    for number in (0, 1):
        standin.wait_for(f"{number}/checkpoints/last.ckpt")
    process.send_signal(how)
    code, output = process.communicate(30)
    if how == signal.SIGINT:
        assert code == 130
        here = standin.folders[0].relative_to(standin.folder)
        assert f"The same command goes on, or: resume_sweep={here}\n" in output
        assert count(standin.jobs()) == {"stopped": 2, "queued": 1}
        assert not standin.alive()
    else:  # it goes on at once, while the jobs may still be saving: nobody writes into their folders twice
        sweep = [f"resume_sweep={standin.folders[0]}", "hydra.launcher.n_jobs=1"]
    standin.allow(6)
    code, output = standin.sweep(*sweep)
    assert code == 0, output
    assert len(standin.folders) == 1
    assert count(standin.jobs()) == {"done": 3}
    assert [standin.starts(number) for number in range(3)] == [[0, 1], [0, 1], [0]]
    assert [standin.epochs(number) for number in range(3)] == [list(range(6))] * 3, "each epoch once"


def test_a_running_sweep_cannot_be_entered_and_what_has_no_checkpoint_starts_afresh(standin: Standin) -> None:
    standin.allow(0)
    process = standin.start("seed=0,1", "kind=gated")
    left_over = standin.wait_for("0/starts.log").with_name("left_over")
    code, output = standin.sweep(f"resume_sweep={standin.folders[0]}")
    assert code == 1
    assert "holds another sweep, or one that is running" in output
    process.send_signal(signal.SIGKILL)
    process.wait(30)
    left_over.touch()
    standin.allow(2)
    code, output = standin.sweep("seed=0,1", "kind=gated")
    assert code == 0, output
    assert standin.starts(0) == [0]
    assert not left_over.exists()


def test_a_failed_job_is_retried_from_its_checkpoint(standin: Standin) -> None:
    code, output = standin.sweep("kind=kill,raise,ok", "hydra.launcher.retries=1")
    assert code == 1, output
    assert [job.status for job in standin.jobs()] == ["done", "failed", "done"]
    assert [output.count(f"job {number} running") for number in range(3)] == [2, 2, 1]
    assert standin.starts(0) == [0, 1]


def test_a_folder_that_is_no_sweep_has_no_jobs_and_is_not_resumed(standin: Standin) -> None:
    assert read_jobs(standin.folder) == []
    standin.sweep("seed=0")
    code, output = standin.sweep("resume_sweep=logs/multiruns/nowhere")
    assert code == 1
    assert "there is no study.journal" in output
    assert str(standin.folders[0]) in output


def test_values_with_spaces_commas_and_quotes_reach_the_job(standin: Standin) -> None:
    code, output = standin.sweep("kind='ok'", "task_name='a b','c,d'")
    assert code == 0, output
    seen = [standin.read(i, "given.json")["task_name"] for i in (0, 1)]
    assert seen == ["'a b'", "'c,d'"], "as Hydra's command line writes them"


def test_the_summary_has_a_row_a_configuration_and_the_best_one_its_command(standin: Standin) -> None:
    code, output = standin.sweep("seed=0,1", "lr=0.1,0.01", "kind=ok,raise", "+x=1")
    assert code == 4, output
    rows = json.loads((standin.folders[0] / "summary.json").read_text())
    assert [(row["differing"], row["n"], row["failed"]) for row in rows] == [
        ({"lr": lr, "kind": kind}, 2 * (kind == "ok"), 2 * (kind == "raise"))
        for lr in ("0.1", "0.01")
        for kind in ("ok", "raise")
    ]
    assert "Best: lr=0.01 kind=ok\n  python -m standin +x=1 lr=0.01 kind=ok\n" in output
    (code, output) = standin.sweep("data.folds=2", "data.fold=range(2)", "lr=0.1,0.01")
    assert code == 0, output
    rows = json.loads((standin.folders[-1] / "summary.json").read_text())
    assert [(row["differing"], row["n"]) for row in rows] == [({"lr": "0.1"}, 2), ({"lr": "0.01"}, 2)]
    assert "Best: lr=0.01\n  python -m standin lr=0.01\n" in output, "which trains on all folds"
    (code, output) = standin.sweep("optimized_metric=val/f1", "lr=0.1,0.01")
    assert code == 0
    assert "No run reports optimized_metric=val/f1; they report epochs, parameters, test/acc, val/acc." in output
    (code, output) = standin.sweep("optimized_metric=val/f1", "seed=0,1")
    assert code == 0
    assert "test/acc" in output
    assert "No run reports" not in output, "there is nothing to choose"


def test_a_terminal_shows_a_table_of_the_jobs(standin: Standin) -> None:
    code, output = standin.sweep("seed=range(9)", "hydra.launcher.n_jobs=2", FORCE_COLOR="1", LINES="14")
    assert code == 0, output
    *_, last = re.split(r"overrides", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output))
    assert re.search(r"8 +│ seed=8 +│ done +│ +\d* +│ +\d+\.\d\d % │ +\d+\.\d ", last)
    assert "seed=0" not in last, "the ones that have been done the longest have no place"
    assert "9 done" in last


@pytest.mark.parametrize(
    ("code", "log", "expected"),
    [
        (1, "Traceback ...\nValueError: no\n\n", ("failed", "ValueError: no")),
        (1, "error: no\nSet the environment variable HYDRA_FULL_ERROR=1 for a trace.\n", ("failed", "error: no")),
        (1, "x.OutOfMemoryError: CUDA out of memory.\n", ("out of memory", "x.OutOfMemoryError: CUDA out of memory.")),
        (-15, "epoch 3\n", ("killed", "by SIGTERM")),
        (143, "epoch 3\n", ("killed", "by SIGTERM")),
        (2, "", ("failed", "exit code 2")),
        (0, "", ("done", "without results")),
    ],
)  # fmt: skip
def test_how_a_job_ended(tmp_path: Path, code: int, log: str, expected: tuple[str, str]) -> None:
    (tmp_path / "output.log").write_text(log)
    assert outcome(tmp_path, code, asked="") == expected
    assert outcome(tmp_path, code, asked="pruned") == ("pruned", "")
