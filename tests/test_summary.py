"""The table of layers before a training."""

from types import SimpleNamespace

import torch

from src.callbacks.summary import Summary
from src.runs.build import build_model
from tests.conftest import composed


def test_it_fits_eighty_columns_and_its_sums_are_those_of_the_network(capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    model = build_model(composed("model=googlenet", "data=digits"))
    for parameter in model.network.fc.parameters():
        parameter.requires_grad_(False)
    model.example_input_array = torch.zeros(1, 3, 32, 32)
    trainer = SimpleNamespace(is_global_zero=True, strategy=None)
    Summary(max_depth=2).on_fit_start(trainer, model)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("loss_function" in line for line in lines), "it has no parameters"
    parameters = list(model.parameters())
    count, trained = (sum(p.numel() for p in parameters if p.requires_grad or all_) for all_ in (True, False))
    assert lines[-1].startswith(f"{count:,} parameters, {trained:,} of them trained; ")
