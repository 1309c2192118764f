"""Writes the images of a data set as litdata's shards, for data=shards.

python -m src.shards data=folder data.root=/path/to/images out=/path/to/shards
python -m src.shards --help
"""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from src import cli
from src.runs.build import build
from src.runs.values import check_values


def shards(cfg: DictConfig) -> tuple[dict[str, float], dict[str, Any]]:
    """Writes the shards that the config says.

    Returns:
        The number of images by split; and the objects: cfg, datamodule, folder.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ...: there are no such images, or `out` is there.
    """
    check_values(cfg, "shards")
    from src.data.shards import write_shards

    if "mode" in cfg.data:
        cfg.data.mode = "stream"  # the images are read once, and none is decoded
    datamodule = build(cfg.data)
    datamodule.prepare_data()
    folder = Path(cfg.out)
    return dict(write_shards(datamodule, folder)), {"cfg": cfg, "datamodule": datamodule, "folder": folder}


def main(cfg: DictConfig) -> None:
    counts, objects = shards(cfg)
    print(", ".join(f"{count:,} {split} images" for split, count in counts.items()) + f": {objects['folder']}")


if __name__ == "__main__":
    cli.run(main, "shards")
