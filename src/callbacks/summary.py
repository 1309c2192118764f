"""The layers of a network, in a table that fits a terminal of 80 columns."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from rich import print as rich_print
from rich.table import Table

SHOWN = ("Name", "Type", "Params", "FLOPs", "Out sizes")


class Summary(ModelSummary):
    """Prints, before the training, the layers that have parameters, and the sums.

    Args:
        max_depth: how many layers deep, -1 for all.
    """

    @staticmethod
    def summarize(
        summary_data: Sequence[tuple[str, Sequence[str]]],
        total_parameters: int,
        trainable_parameters: int,
        *_: Any,
        total_flops: int = 0,
        **__: Any,
    ) -> None:
        columns = {name: values for name, values in summary_data if name in SHOWN}
        table = Table(box=None, pad_edge=False)
        for name in columns:
            right = name in ("Params", "FLOPs")
            table.add_column(name.lower(), justify="right" if right else "left", no_wrap=right, overflow="fold")
        for parameters, *row in zip(columns["Params"], *columns.values(), strict=True):
            if parameters.strip() != "0":
                table.add_row(*row)
        rich_print(table)
        trained = "all" if trainable_parameters == total_parameters else f"{trainable_parameters:,}"
        print(f"{total_parameters:,} parameters, {trained} of them trained; {total_flops:,} FLOPs an image")
