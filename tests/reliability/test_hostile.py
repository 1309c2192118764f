"""Runs and sweeps that somebody else made to do harm: each is refused by name, runs nothing, touches nothing outside.

What a hostile file would do is make the folder `harmed`, or change what lies in `victim`.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from omegaconf import OmegaConf

from src.export import export
from src.predict import predict
from src.report import report
from src.runs.folder import RunError, read_csv, write_csv
from src.runs.record import entry_point
from src.runs.run import load_checkpoint, open_run, resumed_config
from src.sweeps.folder import JOURNAL, open_storage, read_jobs, resume_command
from src.train import train
from tests.conftest import composed, run_command

pytestmark = pytest.mark.tried("hostile")
COMMANDS = ["resume", "eval", "predict", "export"]


@pytest.fixture(autouse=True)
def harmed(tmp_path: Path) -> Iterator[Path]:
    """What must not appear; and that nothing of the victim's changes."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "epoch_001.ckpt").write_text("mine")
    (victim / "metrics.csv").write_text("mine")
    yield tmp_path / "harmed"
    assert not (tmp_path / "harmed").exists()
    assert sorted(path.name for path in victim.iterdir()) == ["epoch_001.ckpt", "metrics.csv"]
    assert {path.read_text() for path in victim.iterdir()} == {"mine"}


def change(run: Path, function: Callable[[dict[str, Any]], Any]) -> None:
    """Changes the contents of all checkpoints of a run."""
    for path in run.glob("checkpoints/*.ckpt"):
        checkpoint = torch.load(path, weights_only=True)
        function(checkpoint)
        torch.save(checkpoint, path)


def put(config: Any, place: str, value: Any) -> None:
    *above, last = place.split(".")
    for name in above:
        config[name] = config.get(name) or {}
        config = config[name]
    config[last] = value


def refused(run: Path, message: str) -> None:
    """Whatever opens the run says so: `resume=`, and `run=` of eval, predict, export and sample."""
    for opened in (lambda: resumed_config(str(run)), lambda: open_run(run).config, lambda: open_run(run).datamodule):
        with pytest.raises(RunError) as error:
            opened()
        assert message in str(error.value)


TARGETS = {
    "model.loss": "os.system",
    "loss": "torchmetrics.functional.image.lpips._LPIPS",
    "model.network": "torch.hub.load",
    "model.network.stem": "torch.distributed.nn.RemoteModule",
    "model": "torch.load",
    "model.optimizer": "subprocess.Popen",
    "model.scheduler.factory": "builtins.exec",
    "model.metrics.f1": "pandas.read_pickle",
    "metrics.lpips": "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity",
    "callbacks.early_stopping": "joblib.load",
    "callbacks.x": "src.data.folder.ImageFolder",
    "callbacks.x.y": "lightning.pytorch.callbacks.EarlyStopping",
    "logger.x": "src.runs.folder.write_whole",
    "data": "lightning.pytorch.demos.mnist_datamodule.MNISTDataModule",
    "data.limit": "src.data.official.find",
    "data.root": "src.data.digits.Digits",
    "data.augment.flip": "src.runs.build.build",
    "data.source": "torch.utils.data.datapipes.iter.FileOpener",
    "data.source.transform": "torchmetrics.functional.image.lpips._LPIPS",
    "data.val_source": "torchvision.datasets.LSUN",
    "data.test_source": "torchvision.datasets.PhotoTour",
    "trainer": "lightning.pytorch.cli.LightningCLI",
    "trainer.strategy": "lightning.Trainer",
    "trainer.profiler": "shutil.rmtree",
    "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
    "trainer.plugins": "lightning.pytorch.plugins.io.TorchCheckpointIO",
    "optimizer": "torch.nn.Linear",
    "seed": "os.getpid",
    "paths.output_dir": "os.getcwd",
    "anything": "torch.nn.Linear",
}


@pytest.mark.parametrize("place", TARGETS)
def test_a_class_that_its_place_is_not_there_for_is_not_built(place: str, run: Path, harmed: Path) -> None:
    node = {"_target_": TARGETS[place], "_args_": [str(harmed)], "path": str(harmed)}
    change(run, lambda checkpoint: put(checkpoint["config"], place, node))
    refused(run, "whose config is none of this project's" if place.startswith("paths") else TARGETS[place])


VALUES = {
    "model.loss": "${oc.create:{_target_:torch.load,f:evil.pt,weights_only:false}}",
    "tags": ["${oc.env:HOME}"],
    "seed": "${new_run:/}",
    "callbacks": {"x": "${oc.create:{_target_:os.mkdir}}"},
    "data.limit": "${oc.decode:'5'}",
    "hydra": {"job_logging": {"version": 1, "formatters": {"x": {"()": "os.mkdir", "path": "harmed"}}}},
    "hydra.callbacks.x": {"_target_": "os.mkdir"},
    "hydra.searchpath": ["file:///tmp"],
    "defaults": [{"override hydra/launcher": "slurm"}],
    "data.defaults": ["/experiment/cifar10"],
    "callbacks.model_checkpoint.dirpath": "VICTIM",
    "callbacks.x.dirpath": "../../victim",
    "callbacks.x.filename": "../../victim/epoch_001",
    "logger.csv.save_dir": "VICTIM",
    "logger.csv.version": "../../victim",
    "logger.csv.name": "VICTIM",
    "logger.tensorboard.save_dir": "here",
    "logger.x._args_": ["here"],
    "logger.x.tracking_uri": "http://example.org",
    "trainer.default_root_dir": "VICTIM",
    "trainer.profiler.dirpath": "VICTIM",
    "trainer.model_registry": "somebody/here",
    "trainer": [],
    "model": None,
    "data.cache_dir": "VICTIM",
    "data.options.cache_dir": "VICTIM",
    "paths": None,
    "paths.output_dir": ["a"],
    "data": "digits",
}


@pytest.mark.parametrize("place", VALUES)
def test_a_value_that_no_run_has_is_refused(place: str, run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = f"{tmp_path}/victim" if VALUES[place] == "VICTIM" else VALUES[place]
    change(run, lambda checkpoint: put(checkpoint["config"], place, value))
    first = place.partition(".")[0]
    refused(run, "none of this project's" if first == "paths" or place in ("data", "model", "trainer") else first)


def test_what_the_command_line_says_is_the_users_own(run: Path, tmp_path: Path) -> None:
    change(run, lambda checkpoint: put(checkpoint["config"], "logger.csv.save_dir", str(tmp_path)))
    with pytest.raises(RunError, match="unless the command says"):
        resumed_config(str(run))
    assert resumed_config(str(run), given=["logger.csv.save_dir"])


def test_an_opened_run_downloads_nothing_unless_told(run: Path) -> None:
    def ask(checkpoint: dict[str, Any]) -> None:
        checkpoint["config"]["data"] |= {"download": True, "mirror": "http://example.org"}

    change(run, ask)
    assert [resumed_config(str(run))["data"][key] for key in ("download", "mirror")] == [False, None]
    assert resumed_config(str(run), given=["data.download"])["data"]["download"] is True


def test_a_run_that_begins_again_fetches_no_weights_unless_told(run: Path) -> None:
    change(run, lambda checkpoint: put(checkpoint["config"], "model.weights", "imagenet"))
    resumed_config(str(run))  # its checkpoint has the weights
    (run / "checkpoints/last.ckpt").unlink()
    with pytest.raises(RunError, match=r"add model\.weights=imagenet"):
        resumed_config(str(run))
    assert resumed_config(str(run), given=["model.weights"])["model"]["weights"] == "imagenet"


def test_what_lightning_writes_on_its_own_lands_in_the_run_folder(run: Path) -> None:
    change(run, lambda checkpoint: put(checkpoint["config"], "trainer.default_root_dir", None))
    assert resumed_config(str(run))["trainer"]["default_root_dir"] == str(run.resolve())


@pytest.mark.parametrize("name", ["cifar.CIFAR10", "stl10.STL10", "catalogue.Torchvision", "catalogue.HuggingFace"])
def test_a_config_that_leaves_the_download_out_has_none(name: str, run: Path, tmp_path: Path, monkeypatch) -> None:
    from torchvision.datasets import utils

    def reach(*options: Any, **more: Any) -> None:
        (tmp_path / "harmed").mkdir()

    monkeypatch.setattr(utils, "download_url", reach)
    monkeypatch.setattr("src.data.files.download_url", reach)
    monkeypatch.setattr("src.data.official._no_answer", reach)
    options = {"_target_": f"src.data.{name}", "root": str(tmp_path), "name": "CIFAR10", "num_classes": 10}
    options |= {} if name.startswith("catalogue") else {"name": None}

    def ask(checkpoint: dict[str, Any]) -> None:
        old = checkpoint["config"]["data"]
        kept = {key: old[key] for key in ("image_size", "batch_size", "val_size")}
        checkpoint["config"]["data"] = {**kept, **{key: each for key, each in options.items() if each is not None}}

    change(run, ask)
    if name.endswith("HuggingFace"):
        pytest.importorskip("datasets", reason="datasets is an optional extra")
    with pytest.raises(FileNotFoundError, match=r"data\.download=(true|false)"):
        open_run(run).datamodule.prepare_data()


def test_what_would_unpickle_or_take_weights_from_elsewhere_is_no_option() -> None:
    from src.data.catalogue import HuggingFace
    from src.networks.libraries import TimmNetwork

    with pytest.raises(ValueError, match="may run code"):
        HuggingFace(name="pandas", num_classes=2, image_size=8, options={"data_files": "evil.pkl"})
    pytest.importorskip("timm", reason="timm is an optional extra")
    with pytest.raises(ValueError, match=r"model\.weights=PATH, which is read safely"):
        TimmNetwork(options={"checkpoint_path": "evil.pth"})


@pytest.mark.parametrize(
    "part",
    [
        *({"_target_": "os.mkdir", "path": "harmed"}, {"mean": "${oc.env:HOME}"}, {"defaults": []}, {"x": {1, 2}}),
        *({"cache_dir": "/"}, {"download": True, "mirror": "http://example.org"}, {"root": "/"}),
    ],
)
def test_what_joins_the_config_from_beside_it_is_checked_too(part: dict[str, Any], run: Path) -> None:
    change(run, lambda checkpoint: checkpoint["preprocess"].update(part))
    refused(run, "the saved config")


def cyclic() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["again"] = content
    return content


def shared() -> list[Any]:
    content: list[Any] = ["x"]
    for _ in range(40):
        content = [content, content]
    return content


@pytest.mark.parametrize("bomb", [cyclic, shared, lambda: list(range(200_000))])
def test_a_config_made_to_hang_its_reader_is_refused(bomb: Callable[[], Any], run: Path) -> None:
    change(run, lambda checkpoint: put(checkpoint["config"], "data.x", bomb()))
    refused(run, "holds more, or deeper")


@pytest.mark.parametrize("kind", ["RunCheckpoint", "ModelCheckpoint"])
@pytest.mark.parametrize("name", ["kth_best_model_path", "best_model_path", "last_model_path", "best_k_models"])
def test_a_state_names_files_of_its_own_folder_alone(name: str, kind: str, tmp_path: Path) -> None:
    from src.callbacks.checkpoint import check_names

    outside = f"{tmp_path}/run/checkpoints/../../victim/epoch_001.ckpt"
    state: dict[str, Any] = {"dirpath": f"{tmp_path}/run/checkpoints", "best_k_models": {}}
    state |= dict.fromkeys(["kth_best_model_path", "best_model_path", "last_model_path"], "")
    check_names(state, f"{tmp_path}/moved/checkpoints")
    state[name] = {outside: 0.5} if name == "best_k_models" else outside
    with pytest.raises(ValueError, match="names files outside"):
        check_names(state, f"{tmp_path}/moved/checkpoints")


STATES: dict[str, Any] = {
    "loops": 3,
    "loops.fit_loop.state_dict": None,
    "loops.fit_loop.epoch_loop\\.batch_progress": "x",
    "global_step": [],
    "state_dict.network\\.classifier\\.weight": {},
    "optimizer_states": [{}],
    "lr_schedulers": None,
    "callbacks": [],
    "metrics": {"val/acc": "x"},
    "random_state": ["x"],
    "train_sums": [None],
}


@pytest.mark.parametrize("place", STATES)
def test_a_state_that_no_training_left_is_told_in_one_message(place: str, run: Path, monkeypatch) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        *above, last = (name.replace("\\.", ".") for name in re.split(r"(?<!\\)\.", place))
        for name in above:
            checkpoint = checkpoint[name]
        checkpoint[last] = STATES[place]

    change(run, spoil)
    monkeypatch.setattr("src.runs.record.keep_overrides", lambda *_: pytest.fail("the run was changed"))
    config = OmegaConf.create(resumed_config(str(run)))
    config.trainer.max_epochs = 7
    with pytest.raises(RunError, match=r"last\.ckpt has no state to go on from: \w+Error: "):
        train(config)


class Harm:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def archive(path: Path, content: bytes, compression: int) -> None:
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", content)
        file.writestr("archive/version", b"3\n")


FILES: dict[str, Callable[[Path, Path], Any]] = {
    "a pickle in torch's archive": lambda path, harmed: torch.save({"state_dict": Harm(harmed)}, path),
    "a pickle in torch's old format": lambda path, harmed: torch.save(
        Harm(harmed), path, _use_new_zipfile_serialization=False
    ),
    "a bare pickle": lambda path, harmed: path.write_bytes(pickle.dumps(Harm(harmed))),
    "an archive of a pickle": lambda path, harmed: archive(path, pickle.dumps(Harm(harmed)), zipfile.ZIP_STORED),
    "a zip bomb": lambda path, harmed: archive(path, bytes(10_000_000), zipfile.ZIP_DEFLATED),
    "an empty file": lambda path, harmed: path.write_bytes(b""),
    "text": lambda path, harmed: path.write_text("epoch,step\n"),
    "another's weights": lambda path, harmed: torch.save({"weights": torch.zeros(1)}, path),
    "parts of other kinds": lambda path, harmed: torch.save(
        {"state_dict": [], "config": {}, "classes": ["a"], "preprocess": {}}, path
    ),
    "classes that are no names": lambda path, harmed: torch.save(
        {"state_dict": {}, "config": {}, "classes": [torch.zeros(1)], "preprocess": {}}, path
    ),
    "a list": lambda path, harmed: torch.save([1], path),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_checkpoint_is_refused_and_not_run(kind: str, tmp_path: Path, harmed: Path) -> None:
    path = tmp_path / "last.ckpt"
    FILES[kind](path, harmed)
    with pytest.raises(RunError, match=r"last\.ckpt is (damaged or )?no checkpoint"):
        load_checkpoint(path)


def test_one_flipped_bit_is_found_and_the_whole_checkpoint_beside_it_named(run: Path) -> None:
    last = run / "checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    with zipfile.ZipFile(last) as file:
        tensor = next(entry for entry in file.infolist() if "/data/" in entry.filename and entry.file_size > 100)
    content[tensor.header_offset + 300] ^= 0x40
    last.write_bytes(content)
    (best,) = (path.name for path in run.glob("checkpoints/epoch_*.ckpt"))
    with pytest.raises(RunError, match=f"checksum of .* does not match.*whole one beside it is {best}"):
        resumed_config(str(run))


def test_weights_that_are_no_numbers_are_told_by_whoever_uses_them(run: Path, tmp_path: Path) -> None:
    def spoil(checkpoint: dict[str, Any]) -> None:
        next(iter(checkpoint["state_dict"].values()))[:1] = float("nan")

    change(run, spoil)
    (tmp_path / "victim/red.png").touch()
    options = [f"run={run}", f"input={tmp_path}/victim"]
    for task, name, more in ((predict, "predict", options), (export, "export", options[:1])):
        with pytest.raises(RunError, match="weights that are no numbers"):
            task(OmegaConf.merge(composed(*more, name=name), {"paths": {"output_dir": str(tmp_path / "out")}}))
    (tmp_path / "victim/red.png").unlink()


LINKS = {"checkpoints/epoch_009.ckpt": "victim/epoch_001.ckpt", "csv": "victim", "figures": "victim"}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_that_leads_out_of_the_folder_is_refused(name: str, run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).symlink_to(tmp_path / LINKS[name])
    refused(run, "outside the run folder, which is refused")


@pytest.mark.parametrize("name", ["export", "figures/eval", "tensorboard"])
def test_beside_a_checkpoint_alone_nothing_is_written_through_a_link(name: str, run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / ".hydra")
    shutil.rmtree(run / name, ignore_errors=True)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).symlink_to(tmp_path / "victim")
    with pytest.raises(RunError, match="outside the run folder, which is refused"):
        open_run(run / "checkpoints/last.ckpt").config  # noqa: B018


YAML = {
    ".hydra/config.yaml": "a: &a [x, x, x]\nb: &b [*a, *a, *a]\nc: [*b, *b, *b]\n",
    ".hydra/overrides.yaml": "&a [*a, *a]\n",
    ".hydra/hydra.yaml": "hydra: &a {b: *a}\n",
    "results.json": "[" * 100_000,
    "csv/metrics.csv": "epoch,step,val/acc\n1,2\n\x00,\x00,\x00\n",
}


@pytest.mark.parametrize("name", YAML)
def test_a_report_names_a_run_with_files_made_to_break_it_and_goes_on(name: str, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs/good")
    shutil.copytree(run, tmp_path / "runs/bad")
    if name == ".hydra/overrides.yaml":
        (tmp_path / "runs/bad/results.json").unlink()
    (tmp_path / "runs/bad" / name).write_text(YAML[name])
    _, runs, _ = report([tmp_path / "runs"], tmp_path / "report")
    assert runs["good"].status == "done"
    assert runs["bad"].status.startswith("unreadable") or name.startswith("csv")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_with_one_line(command: str, run: Path, tmp_path: Path, harmed: Path) -> None:
    node = {"_target_": "os.mkdir", "path": str(harmed)}
    change(run, lambda checkpoint: put(checkpoint["config"], "model.loss", node))
    (tmp_path / "x.png").touch()
    shadow = run / ".hydra/hydra/job_logging/run.yaml"
    shadow.parent.mkdir(parents=True)
    shadow.write_text(f"version: 1\nformatters: {{x: {{(): os.mkdir, path: {harmed}}}}}\n")
    if command == "resume":
        done = run_command("-m", "src.train", f"resume={run}")
    else:
        done = run_command(
            "-m", f"src.{command}", f"run={run}", *([f"input={tmp_path}/x.png"] if command == "predict" else [])
        )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the saved config asks for 'os.mkdir' under 'model.loss'")


def sweep(folder: Path, command: list[str], number: Any = 0) -> Path:
    """A folder of a sweep that was started by this command, and has one trial, which repeats a job."""
    folder.mkdir(parents=True)
    study = optuna.create_study(study_name="x", storage=open_storage(str(folder / JOURNAL)))
    record = {"sweep": str(folder), "command": command, "identity": [], "storage": None, "study_name": "x"}
    study.set_user_attr("sweep", record)
    study.ask().set_user_attr("failed_trial", number)
    return folder


WORDS = [
    *("hydra.searchpath=[file:///tmp]", "+hydra.callbacks.x._target_=os.mkdir", "hydra.job_logging=x", "-cd=/tmp"),
    *(
        "hydra/launcher=slurm",
        "hydra.sweeper.storage=x",
        "hydra.launcher._target_=os.mkdir",
        "hydra.run.dir=/",
        "--config-name=x",
        "trusted=[os]",
    ),
    *("model.loss._target_=os.mkdir", "data.augment.flip={_target_:os.mkdir}", "tags=[${oc.env:HOME}]"),
    *("callbacks.model_checkpoint.dirpath=/home", "logger.csv.save_dir=../../../..", "paths.output_dir=/home", "word"),
]


@pytest.mark.parametrize("word", WORDS)
def test_a_sweeps_command_is_repeated_only_as_far_as_it_is_harmless(word: str, tmp_path: Path) -> None:
    plain = ["-m", "model=tinyvgg,nin", "optimizer.lr=0.1", "hydra.launcher.n_jobs=2", "hydra/sweeper/sampler=grid"]
    folder = sweep(tmp_path / "logs/train/multiruns/x", [*entry_point(), *plain, word])
    with pytest.raises(RunError, match="refused unless you add it too"):
        resume_command(folder)
    assert resume_command(folder, [word])[1:-1] == [*entry_point(), *plain, word], "the user says it too"
    harmless = sweep(tmp_path / "logs/train/multiruns/y", [*entry_point(), *plain])
    assert resume_command(harmless)[1:-1] == [*entry_point(), *plain]


@pytest.mark.parametrize("command", [["-i", "-m", "src.train"], ["-m", "os"], ["evil.py"], "rm -rf"])
def test_a_sweeps_command_is_one_of_this_program(command: Any, tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", command)
    with pytest.raises(RunError, match="not one of python"):
        resume_command(folder)


@pytest.mark.parametrize("number", ["../../victim", -1, 1, ["0"]])
def test_a_sweeps_record_names_no_folder_but_its_jobs(number: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="which no sweep has"):
        read_jobs(sweep(tmp_path / "sweep", [*entry_point()], number))


def test_names_that_a_spreadsheet_would_run_are_text_there_and_come_back_as_they_were(tmp_path: Path) -> None:
    import pandas as pd

    names = ["=1+1", "+x", "-x", "@x", "-0.5", "cat", "'quoted'"]
    frame = pd.DataFrame({"label": names, "n": range(len(names))})
    write_csv(tmp_path / "table.csv", frame)
    cells = [line.rpartition(",")[0] for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    assert cells == ["'=1+1", "'+x", "'-x", "'@x", "-0.5", "cat", "'quoted'"]
    assert read_csv(tmp_path / "table.csv")["label"].tolist() == names


def test_a_journal_is_json_so_that_reading_it_runs_nothing(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "sweep", [*entry_point()])
    assert all(json.loads(line) for line in (folder / JOURNAL).read_text().splitlines())
