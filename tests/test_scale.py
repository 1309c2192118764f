"""Sweeps and runs that outgrow one process: DDP in a job, two nodes under torchrun, a cluster's queue."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from src.report import report
from src.sweeps import read_jobs
from tests.conftest import QUICK, ROOT, SILENT, run_well
from tests.test_launcher import Standin, count

SUBMITIT = ["hydra/launcher=slurm", "hydra.launcher.cluster=local", "hydra.launcher.resources.gpus_per_node=0"]


def swept(logs: Path, *overrides: str) -> tuple[Path, str]:
    """Folder and output of `src.train -m OVERRIDES`."""
    output = run_well("-m", "src.train", "-m", *overrides, f"paths.log_dir={logs}")
    (journal,) = logs.glob("train/multiruns/*/study.journal")
    return journal.parent, output


@pytest.mark.slow
def test_ddp_inside_a_sweep_runs_each_job_once(tmp_path: Path) -> None:
    folder, _ = swept(tmp_path, *QUICK, *SILENT, "trainer=ddp_cpu", "seed=0,1")
    assert count(read_jobs(folder)) == {"done": 2}, "no rank starts the sweep again"


@pytest.mark.slow
def test_a_sweep_over_the_folds_is_one_row_of_mean_and_deviation(tmp_path: Path) -> None:
    folder, output = swept(tmp_path, *QUICK, *SILENT, "data.folds=3", "data.fold=range(3)")
    (row,) = json.loads((folder / "summary.json").read_text())
    (reported,), runs, _ = report([folder])
    values = [json.loads((folder / f"{i}/results.json").read_text())["metrics"]["val/acc"] for i in range(3)]
    for found in (row["metrics"]["val/acc"], reported.metrics["val/acc"]):
        assert sorted(found["values"]) == sorted(values)
        assert found["mean"] == pytest.approx(statistics.mean(values))
        assert found["std"] == pytest.approx(statistics.stdev(values))
    assert (row["n"], reported.n, len(runs)) == (3, 3, 3)
    assert f"{100 * statistics.mean(values):.2f} ± {100 * statistics.stdev(values):.2f} %" in output


@pytest.mark.slow
def test_a_search_prunes_real_training(tmp_path: Path) -> None:
    search = ["hydra/sweeper/sampler=random", "hydra.sweeper.n_trials=5"]
    pruner = ["hydra/sweeper/pruner=median", "hydra.sweeper.pruner.n_startup_trials=2"]
    space = ["optimizer.lr=choice(1e-6,0.002)", *QUICK, *SILENT, "trainer.max_epochs=10", "data.limit=800"]
    folder, _ = swept(tmp_path, *search, *pruner, *space)
    trials = json.loads((folder / "study.json").read_text())["trials"]
    assert {trial["params"]["optimizer.lr"] for trial in trials} == {1e-6, 0.002}
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert pruned
    assert all(trial["params"]["optimizer.lr"] == 1e-6 and len(trial["epochs"]) < 10 for trial in pruned)


@pytest.mark.slow
def test_the_speed_sweep_measures_each_setting_and_names_the_best(tmp_path: Path) -> None:
    fixed = ["model.channels_last=true", "data.num_workers=0", "trainer.precision=32-true", "trainer=cpu"]
    sizes = ["data.batch_size=16,32", "data.limit=200", "model.network.hidden_units=4"]
    folder, output = swept(tmp_path, "hparams_search=speed", *fixed, *sizes)
    rows = json.loads((folder / "summary.json").read_text())
    speeds = {row["differing"]["data.batch_size"]: row["metrics"]["train/images_per_s"]["mean"] for row in rows}
    assert set(speeds) == {"16", "32"}
    assert min(speeds.values()) > 0
    assert f"Best: data.batch_size={max(speeds, key=speeds.__getitem__)}\n" in output


@pytest.fixture
def two_nodes() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces joined by a cable: (namespace, network interface, address) of each."""
    nodes = [(f"sweep{os.getpid()}{side}", f"veth{side}", f"10.77.0.{i}") for i, side in enumerate("ab", 1)]

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    made = []
    try:
        for name, _, _ in nodes:
            try:
                ip("netns", "add", name)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                pytest.skip(f"no network namespaces here, they need root: {error}")
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
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        inside = ["ip", "netns", "exec", name, *command]
        processes.append(subprocess.Popen(inside, cwd=ROOT, env=environment, **pipes))
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]

    run_well("-m", *common, "data.batch_size=32", f"hydra.run.dir={tmp_path}/one")
    (two,) = (tmp_path / "two/train/runs").iterdir()  # both processes agree on the name
    two_metrics, one_metrics = (
        json.loads((folder / "results.json").read_text())["metrics"] for folder in (two, tmp_path / "one")
    )
    for metric in ("train/loss", "val/loss", "val/acc", "test/loss", "test/acc"):
        assert two_metrics[metric] == pytest.approx(one_metrics[metric], abs=1e-4), metric


@pytest.mark.slow
def test_a_sweep_goes_through_submitit(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    folder, _ = swept(tmp_path, *QUICK, *SILENT, *SUBMITIT, "seed=0,1", "hydra.launcher.n_jobs=2")
    assert count(read_jobs(folder)) == {"done": 2}
    assert "epoch   1" in (folder / "1/output.log").read_text()


@pytest.mark.slow
def test_a_job_at_its_time_limit_saves_and_is_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submitit = pytest.importorskip("submitit")
    from src.sweeps.slurm import ClusterTask

    standin = Standin(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.chdir(ROOT)  # submitit's job imports src from the folder it was submitted in
    program = [sys.executable, str(standin.folder / "standin.py")]
    command = [*program, "epochs=16", "seconds=0.5", f"hydra.run.dir={run}"]
    task = ClusterTask(command, [*program, f"resume={run}"], run)
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


NO_CLUSTER = pytest.mark.skipif(shutil.which("srun") is not None, reason="this machine has a cluster")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        pytest.param(["hydra/launcher=slurm"], 'Could not detect "srun"', marks=NO_CLUSTER),
        ([*SUBMITIT, "hydra.launcher.resources.timeout_min=an_hour"], "an_hour"),
        ([*SUBMITIT, "+hydra.launcher.resources.memory=9"], "'memory'"),
    ],
)
def test_what_submitit_cannot_do_is_told_at_once(tmp_path: Path, overrides: list[str], message: str) -> None:
    pytest.importorskip("submitit")
    standin = Standin(tmp_path)
    code, output = standin.sweep(*overrides, "seed=0,1")
    assert code == 1
    assert "hydra.launcher" in output
    assert message in output
    assert not standin.folders
