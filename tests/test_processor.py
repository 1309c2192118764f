"""What is chosen for a training on the processor."""

from __future__ import annotations

import contextlib
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from src.callbacks import processor


def test_no_more_threads_are_started_than_a_container_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(processor.joblib, "cpu_count", lambda: 1)
    on_cpu: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    processor.Processor().setup(on_cpu, None, "fit")  # type: ignore[arg-type]
    assert chosen == [1] * (sys.platform == "linux")


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

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(processor.time, "perf_counter", lambda: now)
    before = torch.get_rng_state()
    assert processor.fastest_precision() == chosen
    assert torch.equal(torch.get_rng_state(), before)
