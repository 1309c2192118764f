"""Sweeps and runs that outgrow one process: DDP in a job, two nodes under torchrun, a cluster's queue."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.processes import joined_arguments
from src.sweeps.slurm import ClusterTask
from tests.conftest import QUICK, ROOT, SILENT, run_command
from tests.test_launcher import Standin, count

SUBMITIT = ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.resources.gpus_per_node=0"]


def sweep_folder(logs: Path) -> Path:
    (record,) = logs.glob("train/multiruns/*/sweep.json")
    return record.parent


def jobs(logs: Path) -> list[tuple[str, str]]:
    record = json.loads((sweep_folder(logs) / "sweep.json").read_text())
    return [(job["label"], job["status"]) for job in record["jobs"]]


@pytest.mark.slow
def test_ddp_inside_a_sweep_runs_each_job_once(tmp_path: Path) -> None:
    overrides = [*QUICK, *SILENT, "trainer=ddp_cpu", "seed=0,1", f"paths.log_dir={tmp_path}"]
    done = run_command("-m", "src.train", "-m", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs(tmp_path) == [("seed=0", "done"), ("seed=1", "done")], "no rank starts the sweep again"


@pytest.mark.slow
def test_a_sweep_killed_in_the_middle_gives_every_result_and_one_table(tmp_path: Path) -> None:
    overrides = [*QUICK, *SILENT, "seed=0,1,2", "trainer.max_epochs=3", f"paths.log_dir={tmp_path}"]
    command = [sys.executable, "-m", "src.train", "-m", *overrides]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("job 1 running"):
            break
    process.kill()
    process.communicate()
    done = run_command(*command[1:])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Going on with" in done.stdout
    assert [status for _, status in jobs(tmp_path)] == ["done"] * 3
    (row,) = json.loads((sweep_folder(tmp_path) / "summary.json").read_text())
    assert row["n"] == 3
    assert len(set(row["metrics"]["val/loss"]["values"])) == 3


@pytest.mark.slow
def test_a_search_prunes_real_training(tmp_path: Path) -> None:
    search = ["hydra/sweeper=optuna", "hydra.sweeper.sampler=random", "hydra.sweeper.n_trials=5"]
    pruner = ["hydra.sweeper.pruner=median", "hydra.sweeper.pruner_options={n_startup_trials: 2}"]
    space = ["optimizer.lr=choice(1e-6,0.002)", *QUICK, *SILENT, "trainer.max_epochs=10", "data.limit=800"]
    done = run_command("-m", "src.train", "-m", *search, *pruner, *space, f"paths.log_dir={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    study = json.loads((sweep_folder(tmp_path) / "study.json").read_text())
    rates = {trial["params"]["optimizer.lr"] for trial in study["trials"]}
    assert rates == {1e-6, 0.002}
    pruned = [trial for trial in study["trials"] if trial["state"] == "pruned"]
    assert pruned
    assert all(trial["params"]["optimizer.lr"] == 1e-6 and len(trial["epochs"]) < 10 for trial in pruned)


@pytest.mark.parametrize(
    ("environment", "arguments", "expected"),
    [
        ({}, ["seed=1"], ["seed=1"]),
        ({"SLURM_JOB_ID": "7"}, ["seed=1"], ["seed=1"]),  # a job script without srun: one process
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "interactive"}, ["seed=1"], ["seed=1"]),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, ["a=1"], ["a=1", "hydra.run.dir='logs/train/runs/slurm_7.2'"]),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, ["-m", "seed=1,2"], ["-m", "seed=1,2"]),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, ["hydra.run.dir=x"], ["hydra.run.dir=x"]),
        ({"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}, ["seed=1"], ["seed=1"]),
    ],
)
def test_processes_started_together_share_a_folder(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: list[str], expected: list[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert joined_arguments(arguments) == expected


@pytest.fixture
def two_nodes() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces joined by a cable: (namespace, network interface, address) of each."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` command to make network namespaces with")
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    nodes = [(f"sweep{os.getpid()}{side}", f"veth{side}", f"10.77.0.{i}") for i, side in enumerate("ab", 1)]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    made = []
    try:
        for name, _, _ in nodes:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError as error:
                pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
            made.append(name)
        (first, cable, _), (second, other, _) = nodes
        ip("-n", first, "link", "add", cable, "type", "veth", "peer", "name", other, "netns", second)
        for name, interface, address in nodes:
            ip("-n", name, "addr", "add", f"{address}/24", "dev", interface)
            ip("-n", name, "link", "set", interface, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield nodes
    finally:
        for name in made:
            ip("netns", "del", name)


@pytest.mark.slow
def test_two_nodes_under_torchrun_give_what_one_process_gives(
    tmp_path: Path, two_nodes: list[tuple[str, str, str]]
) -> None:
    common = ["src.train", *QUICK, *SILENT]
    distributed = ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2", "data.batch_size=16"]
    processes = []
    for rank, (name, interface, _) in enumerate(two_nodes):
        torchrun = ["torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", f"--node_rank={rank}"]
        meet = [f"--master_addr={two_nodes[0][2]}", "--master_port=29511", "-m"]
        command = [sys.executable, "-m", *torchrun, *meet, *common, *distributed, f"paths.log_dir={tmp_path}/two"]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                ["ip", "netns", "exec", name, *command],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]

    one = run_command("-m", *common, "data.batch_size=32", f"hydra.run.dir={tmp_path}/one")
    assert one.returncode == 0, one.stderr
    (two,) = (tmp_path / "two/train/runs").iterdir()  # both processes agree on the name
    two_metrics, one_metrics = (
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (two, tmp_path / "one")
    )
    for metric in ("train/loss", "val/loss", "val/acc", "test/loss", "test/acc"):
        assert two_metrics[metric] == pytest.approx(one_metrics[metric], abs=1e-4), metric


@pytest.mark.slow
def test_a_sweep_goes_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    overrides = [*QUICK, *SILENT, *SUBMITIT, "seed=0,1", "hydra.launcher.n_jobs=2", f"paths.log_dir={tmp_path}"]
    done = run_command("-m", "src.train", "-m", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert jobs(tmp_path) == [("seed=0", "done"), ("seed=1", "done")]
    assert "epoch   1" in (sweep_folder(tmp_path) / "1" / "output.log").read_text()


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    standin = Standin(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(ROOT)  # submitit's job imports src from the folder it was submitted in
    program = [sys.executable, str(standin.folder / "standin.py")]
    command = [*program, "epochs=16", "seconds=0.5", f"hydra.run.dir={run}"]
    task = ClusterTask(command, [*program, f"resume={run}"], str(run))
    executor = submitit.LocalExecutor(run / "submitit", max_num_timeout=5)
    executor.update_parameters(timeout_min=0.1, signal_delay_s=2)  # warned after 4 s of 6, with 8 s of work
    assert executor.submit(task).result() == 0
    starts = [int(line.split()[1]) for line in (run / "starts.log").read_text().splitlines()]
    assert len(starts) >= 2
    assert starts == sorted(set(starts))
    rows = (run / "csv" / "metrics.csv").read_text().splitlines()[1:]
    assert [int(row.split(",")[0]) for row in rows] == list(range(16)), "each epoch once"


@pytest.mark.slow
def test_failures_on_a_cluster_are_marked_as_here(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    standin = Standin(tmp_path)
    code, output = standin.sweep(*SUBMITIT, "kind=ok,raise,memory,kill", "hydra.launcher.n_jobs=4")
    assert code == 3, output
    assert count(standin.jobs()) == {"done": 1, "failed": 1, "out of memory": 1, "killed": 1}


def test_slurm_without_a_cluster_is_told(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    if shutil.which("srun") is not None:
        pytest.skip("this machine has a cluster")
    code, output = Standin(tmp_path).sweep("hydra/launcher=slurm", "seed=0,1")
    assert code == 1
    assert "no srun on this machine" in output


def test_a_resource_that_submitit_does_not_know_is_told(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    standin = Standin(tmp_path)
    code, output = standin.sweep(*SUBMITIT, "hydra.launcher.resources.timeout_min=an_hour")
    assert code == 1
    assert "hydra.launcher.resources" in output
    assert "an_hour" in output
    assert not standin.folders
