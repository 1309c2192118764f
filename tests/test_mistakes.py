"""What a user gets wrong ends with one clear message, exit code 1 and no traceback."""

import re
from pathlib import Path

import pytest

from src import cli
from src.runs.record import read_results
from src.train import main
from tests.conftest import QUICK, SILENT, run_command, run_well

MISTAKES = {
    "model=vgg61": "there is no model=vgg61: did you mean vgg1",
    "data=cifar": "there is no data=cifar: did you mean cifar10",
    "trainer.max_epoch=3": "there is no option 'trainer.max_epoch': did you mean trainer.max_epochs",
    "optimiser=sgd": "there is no option 'optimiser': did you mean optimizer",
    "data=cifar10 data.download=false": "data.download=true",
    "data=stl10 data.mirror=http://127.0.0.1:9": "data.mirror=URL, or unpack stl10_binary.tar.gz from http://ai.",
    "data.batch_size=5000": "5000",
    "data.val_size=5000": "val_size",
    "data.image_size=8": "16",
    "data.augment=trivial": "data/augment=NAME",
    "data/augment=trivia": "there is no data/augment=trivia: did you mean trivial",
    "data/augment=none data.augment.crop.padding=2": "data.augment.crop",
    "trainer.precision=12": "12",
    "trainer.accelerator=abacus": "abacus",
    "trainer.devices=many": "devices",
    "ckpt_path=nowhere.ckpt": "nowhere.ckpt",
    "optimizer.lr=fast": "optimizer.lr=fast must be a number above 0",
    "data.num_workers=abc": "data.num_workers=abc must be a whole number from 0 to ",
    "data.num_workers=1000": "data.num_workers=1000 must be a whole number from 0 to ",
    "trainer.max_epochs=abc": "trainer.max_epochs=abc must be a whole number from 1 on, -1 or null",
    "paths.output_dir=null": "paths.output_dir=null must be text",
    "~tags": "there must be a value for tags",
    "-m optimizer.lr=0.1,abc": "optimizer.lr=abc must be a number above 0",
    "-m seed=0,1 data.val_size=true": "data.val_size=true must be a number from 0 to below 1 or a",
    "-m optimizer.lr=interval(-1,1) hydra/sweeper/sampler=random": "optimizer.lr=-1.0 must be a number above 0",
    "-m hydra/sweeper/sampler=random hydra.sweeper.n_trials=-1": "hydra.sweeper.n_trials=-1 must be a whole number",
    "lr=0.1": "there is no option 'lr': did you mean optimizer.lr? A new one",
    "--model vgg11": "there is no flag --model: options are written without dashes, model=vgg11",
    "--lr=0.1": "there is no flag --lr=0.1: options are written without dashes, optimizer.lr=0.1",
    "model=googlenet model.aux_wieght=0": "there is no option 'model.aux_wieght': did you mean model.aux_weight or",
    "model=tinyvgg model.network.dropout=0": "'model.network.dropout': did you mean model.network.hidden_units or",
    "callbacks=none callbacks.throughput=null": "there is no option 'callbacks.throughput'",
    "model.network.num_classes=3": "model.network.num_classes=3 must be 10, as data.num_classes",
    "model=torchvision model.network.name=alexnet": "TorchvisionNetwork must make logits (1, 10) of images",
    "metrics=macro metrics.f1.num_classes=3": "metrics=auroc, f1",
    "model._target_=src.nothing.X": "src.nothing",
    "callbacks.model_checkpoint.dirpath=elsewhere": "dirpath=elsewhere must be ",
    "optimized_metric=val/f1": "val/acc, val/acc_top5, val/loss; choose one of them",
    "optimized_metric=train/score": "train/score was not logged; what is logged: train/acc, train/images_per_s",
    "+callbacks.early_stopping.foo=1": "callbacks.early_stopping: EarlyStopping.__init__() got an unexpected keyword",
    "trainer.strategy=ddp_spawn callbacks=none": "needs callbacks.model_checkpoint",
    "+data.augment.crop.size=64": "RandomCrop: 40x40 px (padding included) is smaller than size=64",
    "+data.augment.x={_target_:torchvision.transforms.v2.Normalize,mean:[0.5],std:[0.5]}": "data.augment: Normalize: ",
}
FOUND_IN_TRAINING = ["optimized_metric=val/f1", "optimized_metric=train/score"]


@pytest.mark.parametrize("override", MISTAKES)
def test_a_mistake_gets_one_clear_message(override: str, tmp_path: Path, monkeypatch, capsys) -> None:
    folders = [f"paths.log_dir={tmp_path}/logs", f"paths.data_dir={tmp_path}/data"]
    monkeypatch.setattr("sys.argv", ["train", *QUICK[:2], *folders, *override.split(" ")])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")  # `run` changes it for what it starts; afterwards it is as before
    with pytest.raises(SystemExit) as exit:
        cli.run(main, "train")
    assert exit.value.code == 1
    printed = capsys.readouterr().err
    assert printed.count("error: ") == 1, printed
    assert MISTAKES[override] in printed.partition("error: ")[2]
    assert "Traceback" not in printed
    assert not list(tmp_path.glob("**/*.ckpt"))
    assert len(list(tmp_path.glob("logs/train/*/*"))) == (override in FOUND_IN_TRAINING)


MISSING = ["model=vgg11", "data=stl10", "data.mirror=http://127.0.0.1:9"]


@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    ("words", "message"),
    [(MISSING, "STL10 is not in "), (["data.val_size=abc"], "data.val_size=abc must be ")],
    ids=["data", "value"],
)
def test_what_is_wrong_is_told_before_torch_is_loaded_and_leaves_no_folder(
    more: list[str], words: list[str], message: str, tmp_path: Path
) -> None:
    told = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code = f"{told} sys.argv[1:1] = {more}; from src import cli, train; cli.run(train.main, 'train', cli.go_on)"
    folders = [f"paths.log_dir={tmp_path}/logs", f"paths.data_dir={tmp_path}/data"]
    done = run_command("-c", code, *words, *folders)
    assert (done.returncode, done.stdout.strip()) == (1, "False")
    assert done.stderr.startswith(f"error: {message}")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("logs/train/*/*"))


@pytest.mark.parametrize(
    ("words", "best"),
    [
        (["debug=overfit", "scheduler=null", "trainer.max_epochs=2"], None),  # a validation every 100 epochs
        (["scheduler=plateau", "trainer.check_val_every_n_epoch=2", "callbacks.model_checkpoint.filename=x"], 1),
    ],
)
def test_what_was_trained_is_no_mistake_afterwards(words: list[str], best: int | None, tmp_path: Path) -> None:
    run_well("-m", "src.train", *QUICK, *SILENT, *words, f"hydra.run.dir={tmp_path}")
    results = read_results(tmp_path)
    assert (results["status"], results["epochs"]) == ("done", 2)
    assert (results["best"] or {"epoch": None})["epoch"] == best


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    arguments = [*QUICK, f"paths.log_dir={tmp_path}", "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_epochs=50"]
    done = run_command("-m", "src.train", *arguments)
    assert done.returncode == 1
    assert re.search("error: the training loss became .* at step", done.stderr)
    assert not list(tmp_path.glob("**/results.json"))


def test_the_traceback_is_there_for_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    done = run_command("-m", "src.train", "data.batch_size=5000", f"paths.log_dir={tmp_path}")
    assert (done.returncode, "Traceback" in done.stderr) == (1, True)
