"""What a user gets wrong ends with one clear message, exit code 1 and no traceback."""

import re
from pathlib import Path

import pytest

from src import cli
from src.train import main
from tests.conftest import QUICK, run_command

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
    "data.augment=trivial": "data/augment=trivial",
    "data/augment=trivia": "there is no data/augment=trivia: did you mean trivial",
    "data/augment=none data.augment.crop.padding=2": "data.augment.crop",
    "trainer.precision=12": "12",
    "trainer.accelerator=abacus": "abacus",
    "trainer.devices=many": "devices",
    "ckpt_path=nowhere.ckpt": "nowhere.ckpt",
    "optimizer.lr=fast": "fast",
    "scheduler.factory.warmup=2": "warmup",
    "optimized_metric=val/f1": "val/acc, val/acc_top5, val/loss; choose one of them",
    "optimized_metric=train/score": "train/score was not logged; what is logged: train/acc, train/images_per_s",
    "+callbacks.early_stopping.foo=1": "callbacks.early_stopping: EarlyStopping.__init__() got an unexpected keyword",
    "trainer.strategy=ddp_spawn callbacks=none": "needs callbacks.model_checkpoint",
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
    assert len(list(tmp_path.glob("logs/train/runs/*"))) == (override in FOUND_IN_TRAINING)


@pytest.mark.parametrize("more", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_missing_data_are_told_before_torch_is_loaded_and_leave_no_folder(more: list[str], tmp_path: Path) -> None:
    told = "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); "
    code = f"{told} sys.argv[1:1] = {more}; from src import cli, train; cli.run(train.main, 'train', cli.go_on)"
    folders = [f"paths.log_dir={tmp_path}/logs", f"paths.data_dir={tmp_path}/data"]
    done = run_command("-c", code, "model=vgg11", "data=stl10", "data.mirror=http://127.0.0.1:9", *folders)
    assert (done.returncode, done.stdout.strip()) == (1, "False")
    assert done.stderr.startswith("error: STL10 is not in ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.glob("logs/train/*/*"))


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
