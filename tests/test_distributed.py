"""Two processes on one CPU say what one process says, whatever the sizes of the splits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.conftest import SILENT, run_well

# 1,437 digits to train on: 1,300 of them, 137 to validate, 360 to test; the last two are odd for the batches.
# SGD at a low rate: a faster training makes much of a difference in the last bit.
ARGUMENTS = [
    *("optimizer=sgd", "optimizer.lr=0.002", "model.network.hidden_units=8", "data.val_size=137"),
    *("trainer.max_epochs=2", "callbacks=dynamics", *SILENT),
]


@pytest.mark.timeout(180)
@pytest.mark.tried("numbers")
def test_two_processes_reach_the_metrics_of_one_on_the_same_global_batches(tmp_path: Path) -> None:
    results = {}
    for name, arguments in {
        "one": ["trainer=cpu", "trainer.precision=32-true", "data.batch_size=32"],
        "two": ["trainer=ddp_cpu", "data.batch_size=16"],
    }.items():
        run_well("-m", "src.train", *ARGUMENTS, *arguments, f"hydra.run.dir={tmp_path}/{name}")
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
    one, two = (results[name]["metrics"] for name in ("one", "two"))
    for name in one:
        if name != "train/images_per_s":
            # of one image, the two best classes may be equal but for the order of a sum
            assert two[name] == pytest.approx(one[name], abs=2e-5 if name.endswith("loss") else 1.01 / 137), name
    assert results["two"]["device"].startswith("2 x ")
    one, two = (pd.read_csv(tmp_path / name / "dynamics.csv") for name in ("one", "two"))
    exact = ["image", "label", "epochs"]
    pd.testing.assert_frame_equal(one[exact], two[exact])
    np.testing.assert_allclose(one["confidence"], two["confidence"], atol=1e-4)
    assert (one["correctness"] != two["correctness"]).sum() <= 2, "but for the order of a sum"
