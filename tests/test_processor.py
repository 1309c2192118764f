"""What is chosen for a training on the processor."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch

from src.callbacks import processor


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", None), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("nonsense", None)],
)
def test_a_containers_share_of_the_processors_is_rounded_up(tmp_path: Path, text: str, expected: int | None) -> None:
    (tmp_path / "cpu.max").write_text(text + "\n")
    assert processor.allowed_processors(tmp_path / "cpu.max") == expected


def test_without_the_file_there_is_no_limit(tmp_path: Path) -> None:
    assert processor.allowed_processors(tmp_path / "cpu.max") is None


@pytest.mark.parametrize(
    ("float32", "bfloat16", "chosen"), [(2.0, 1.0, "bf16-mixed"), (1.1, 1.0, "32-true"), (1.0, 3.0, "32-true")]
)
def test_bfloat16_is_chosen_where_it_is_much_faster(
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
    processor.fastest_precision.cache_clear()
    assert processor.fastest_precision() == chosen
    processor.fastest_precision.cache_clear()


def test_measuring_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    processor.fastest_precision.cache_clear()
    assert processor.fastest_precision() in ("bf16-mixed", "32-true")
    assert torch.equal(torch.get_rng_state(), before)
