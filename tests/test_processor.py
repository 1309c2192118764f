"""What is chosen for a training on the processor."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src import cli, cores
from src.callbacks import processor


def on_cpu(precision: str) -> Any:
    return SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")), precision=precision)


def test_no_more_threads_are_started_than_a_container_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(processor.joblib, "cpu_count", lambda: 1)
    processor.Processor().setup(on_cpu("32-true"), None, "fit")  # type: ignore[arg-type]
    assert chosen == [1] * (sys.platform == "linux")


@pytest.mark.parametrize(
    ("others", "given", "spins"),
    [
        (0.1, {}, None),  # seconds that others worked in one second, on four cores
        (0.9, {}, "1000"),
        (0.9, {"OMP_NUM_THREADS": "3"}, None),
        (0.9, {"OMP_NUM_THREADS": "1"}, None),
        (3.9, {"OMP_NUM_THREADS": "1"}, None),  # a thread alone waits for none
        (0.9, {"OMP_WAIT_POLICY": "ACTIVE"}, None),
        (0.9, {"GOMP_SPINCOUNT": "5"}, "5"),
    ],
)
def test_threads_sleep_where_others_keep_cores_busy(
    monkeypatch: pytest.MonkeyPatch, others: float, given: dict[str, str], spins: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {**given})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    cores.share_the_cores((5.0, 100.0, 2.0), (6.0, 100.8 + others, 2.8))
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not say what its cores have worked")
def test_the_cores_have_worked_at_least_what_this_process_did() -> None:
    before = cores.worked()
    while time.process_time() < before[2] + 0.2:
        pass
    _, every, mine = (after - earlier for after, earlier in zip(cores.worked(), before, strict=True))
    assert every > mine - 0.05  # counted in hundredths


@pytest.mark.parametrize(
    ("words", "spins"), [(["run=latest"], "1000"), (["-m", "seed=0,1"], None), (["resume_sweep=SWEEP"], None)]
)
def test_a_command_looks_at_the_cores_before_it_opens_a_run_and_a_sweep_leaves_that_to_its_jobs(
    monkeypatch: pytest.MonkeyPatch, words: list[str], spins: str | None
) -> None:
    seen = []

    def prepare(given: dict[str, str]) -> None:
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
        raise SystemExit

    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cli, "START", (5.0, 100.0, 2.0))
    monkeypatch.setattr(cli, "worked", lambda: (6.0, 101.0, 2.1))
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "argv", ["eval.py", *words])
    with pytest.raises(SystemExit):
        cli.run(lambda cfg: None, "eval", prepare)
    assert seen == [spins]


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(2.0, 1.0, "bf16-mixed"), (1.1, 1.0, "32-true"), (1.0, 3.0, "32-true")]
)
def test_bfloat16_is_chosen_where_it_is_much_faster_and_no_random_number_is_drawn(
    monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float, chosen: str
) -> None:
    now = 0.0
    seconds = {torch.float32: float32, torch.bfloat16: bfloat16}

    @contextlib.contextmanager
    def autocast(device: str, dtype: torch.dtype, enabled: bool):
        nonlocal now
        assert enabled == (dtype is torch.bfloat16)
        now += seconds[dtype]
        yield

    monkeypatch.setattr(processor, "emulates", lambda *_: False)
    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(processor.time, "perf_counter", lambda: now)
    before = torch.get_rng_state()
    assert processor.fastest_precision() == chosen
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("capabilities", "emulated"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, False),
        ({}, False),
    ],
)
def test_bfloat16_is_not_timed_where_it_is_emulated_and_its_choice_by_hand_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capabilities: dict[str, bool], emulated: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: asked.append(1) or contextlib.nullcontext())
    assert not processor.emulates("bf16-mixed", torch.device("cuda"))
    if emulated:
        assert processor.fastest_precision() == "32-true"
        assert not asked
    processor.Processor().setup(on_cpu("32-true"), None, "fit")  # type: ignore[arg-type]
    assert not recwarn.list
    processor.Processor().setup(on_cpu("bf16-mixed"), None, "fit")  # type: ignore[arg-type]
    said = [str(warning.message) for warning in recwarn]
    assert len(said) == emulated
    assert all("bf16-mixed is many times slower here than 32-true" in each for each in said)
