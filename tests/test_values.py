"""What each value of a config may be: told by the option's name, and nothing that a library accepts is refused."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from src.runs.rules import RULES
from src.runs.values import check_values
from tests.conftest import composed

OWN = "{_target_: mylab.Own, _partial_: true, lr: null, patience: abc, hidden_units: [8], mode: fast, size: -1}"

# An option and values that it cannot have; a section that a value builds is told by its own option.
REFUSED = """
test= maybe | null | 1
tags= null | dev | 5 | [[a]]
seed= abc | -1 | 4294967296 | 1.5 | true
task_name= null | 5
trusted= null | mylab | [5]
optimized_mode= largest
extras= null | 5
extras.print_config= maybe
paths.log_dir= null | 5
paths.output_dir= null
callbacks.mine= 5 | {x: 1}
logger= 5 | []
logger.csv.version= null | 0
data= null | 5
data._convert_= abc
data.val_size= null | abc | .inf | .nan | true | -1 | 1.0 | -0.1 | []
data.split_seed= abc | null | -1 | 1.5
data.mean= 0.5 | abc | [0.5,0.5] | [0.5,abc,0.5] | [123.7,116.3,103.5] | true | {}
data.std= [0.0] | [1,1,-1] | [58.4,57.1,57.4]
data.batch_size= null | abc | 0 | -1 | 1e9 | true | [] | {}
data.image_size= null | 0 | 64.0 | 1000000000
data.resize= 0 | big
data.channels= 2 | null | true
data.num_workers= abc | -1 | 1.5 | 1000
data.limit= 0 | abc
data.folds= 1 | 2.5 | 1000000000
data.fold= -1
data.store= gpu | null
data.balance= abc
data.root= null | 5
data.augment= 5 | trivial
data.augment.mine= 5 | {x: 1}
data.augment.crop.padding= null | -1 | 1.5 | 1000000000
data.augment.crop.mode= mirror
data.augment.flip= {_target_: src.data.augment.RandomHorizontalFlip,p: 2}
data.augment.x= {_target_: src.data.augment.Cutout,size: -5} | {_target_: src.data.mixing.MixUp,alpha: 0}
data.augment.x= {_target_: src.data.augment.RandomErasing,scale: [0.3,0.1]}
data.augment.x= {_target_: src.data.policies.ColorJitter,hue: 0.6}
data.augment.x= {_target_: src.data.policies.ColorJitter,contrast: -1}
data.augment.x= {_target_: src.data.colour.GaussianBlur,kernel_size: 4}
model.network= null | 5 | {width: 1}
model.network.hidden_units= null | abc | 0 | -1 | 1e9 | true | [] | {} | ''
model.loss= true | 0 | ''
model.metrics= -0.1 | true
model.optimizer= 5 | null
model.channels_last= abc | null
model.compile= 1
model.weights= 5
optimizer= null | 5
optimizer._partial_= false
optimizer.lr= null | abc | 0 | -1 | .inf | true | []
optimizer.momentum= 2 | 1 | -0.1
optimizer.weight_decay= -1
optimizer.nesterov= abc
loss= null | {}
loss.label_smoothing= 2 | 1 | -0.1 | abc
loss.weight= abc | [1,-1] | 5
metrics.f1= 5
trainer.max_time= 60 | abc | 01:00
scheduler= 5 | {interval: step}
scheduler.interval= null | day
scheduler.factory= null | 5
scheduler.factory.warmup= 2 | 1 | null
trainer= null | 5
trainer.max_epochs= abc | 0 | -2 | 1.5 | true
trainer.max_steps= 0 | null
trainer.accumulate_grad_batches= 0 | 1.5 | -1 | null
trainer.check_val_every_n_epoch= 0 | abc
trainer.gradient_clip_val= -1 | abc
trainer.limit_train_batches= 0 | 1.5 | -1
trainer.limit_val_batches= abc | -1 | true
trainer.deterministic= perhaps
trainer.detect_anomaly= abc
trainer.devices= 0 | -2 | 1.5 | {} | ''
trainer.num_nodes= 0 | null
trainer.fast_dev_run= abc | 0
callbacks.early_stopping.patience= abc | -1 | null | 1.5
callbacks.early_stopping.mode= largest
callbacks.model_checkpoint.filename= null | 5
callbacks.model_checkpoint.save_top_k= -2 | abc
callbacks.progress_bar.refresh_every= -1 | abc
callbacks.x= {_target_: src.callbacks.ema.EMA,decay: 1} | {_target_: src.callbacks.samples.SampleSheet,columns: 0}
callbacks.x= {_target_: src.callbacks.finetune.Finetune,unfreeze_at: -1}
callbacks.x= {_target_: src.callbacks.finetune.Finetune,backbone_lr: 0}
callbacks.x= {_target_: src.callbacks.lookahead.Lookahead,every: 0}
scheduler.factory= {_target_: torch.optim.lr_scheduler.StepLR,step_size: 0}
scheduler.factory= {_target_: torch.optim.lr_scheduler.StepLR,gamma: abc}
scheduler.factory= {_target_: torch.optim.lr_scheduler.MultiStepLR,milestones: abc}
scheduler.factory= {_target_: torch.optim.lr_scheduler.MultiStepLR,milestones: [2,1]}
scheduler.factory= {_target_: src.modules.schedules.OneCycle,pct_start: 1}
scheduler.factory= {_target_: torch.optim.lr_scheduler.ReduceLROnPlateau,patience: abc}
scheduler.factory= {_target_: src.modules.schedules.Triangle,peak: 1}
optimizer= {_target_: src.modules.optimizers.Muon,sgd_lr: -1}
optimizer= {_target_: src.modules.optimizers.Muon,sgd_momentum: -0.1}
optimizer= {_target_: torch.optim.Adam,betas: [0.9]} | {_target_: torch.optim.Adam,betas: [0.9,2]}
loss= {_target_: src.modules.losses.Focal,gamma: -1}
data.augment.x= {_target_: src.data.policies.RandAugment,magnitude: 31}
data.augment.x= {_target_: src.data.policies.AugMix,severity: 0}
data.augment.x= {_target_: src.data.policies.AutoAugment,policy: stl10}
data= {_target_: src.data.cifar.CIFAR10,download: abc}
data= {_target_: src.data.folder.ImageFolder,mode: disk}
data= {_target_: src.data.folder.ImageFolder,broken: repair}
data= {_target_: src.data.catalogue.Torchvision,mode: auto}
model.network= {_target_: src.networks.vgg.VGG,hidden: 8} | {_target_: src.networks.vgg.VGG,hidden: [0]}
model.network= {_target_: src.networks.vgg.VGG,dropout: 1}
model.network= {_target_: src.networks.vgg.VGG,batch_norm: abc}
model= {_target_: src.modules.googlenet.GoogLeNetClassifier,aux_weight: -0.1}
model= {_target_: src.modules.googlenet.GoogLeNetClassifier,aux_weight: [0.3]}
model= {_target_: src.modules.googlenet.GoogLeNetClassifier,aux_weight: [0.3,-1]}
model= {_target_: src.modules.googlenet.GoogLeNetClassifier,aux_weight: .nan}
model= {_target_: src.modules.googlenet.GoogLeNetClassifier,aux_decay: abc}
model= {_target_: src.modules.gan.GAN,decay: 1} | {_target_: src.modules.gan.GAN,discriminator_steps: 0}
model= {_target_: src.modules.gan.GAN,optimizer: {generator: {lr: 1}}}
"""
ACCEPTED = f"""
seed= null | 0 | 4294967295
tags= [] | [dev,2026]
optimized_metric= null | val/loss
logger= null | {{}}
callbacks= null | {{}}
callbacks.mine= {OWN}
callbacks.early_stopping= null
scheduler= null | {{}}
data.val_size= 0 | 0.2 | 500
data.mean= null | half | imagenet | [0.5] | [0,0,0]
data.num_workers= null | 0 | 8
data.augment.x= {OWN} | null | {{_target_: torchvision.transforms.v2.RandomResizedCrop,size: [32,32]}}
model.network= {OWN}
optimizer= {OWN}
loss.weight= balanced | [1,50,5] | null
trainer.devices= 2 | auto | -1 | [0,1] | '0,1'
trainer.precision= 32 | bf16-mixed | null
trainer.max_epochs= -1 | null | 5
trainer.max_time= null | 00:00:01:00 | {{minutes: 5}}
trainer.limit_val_batches= 0 | 0.5 | 10 | 1.0
trainer.overfit_batches= 0.0 | 1 | 0.5
trainer.deterministic= warn | true
trainer.fast_dev_run= true | 3
trainer.gradient_clip_val= 0 | 1 | 0.5
trainer.strategy= ddp | {OWN}
trainer.profiler= simple | {OWN}
trainer.val_check_interval= 0.5 | {{minutes: 5}}
something.new= abc
"""
OTHERS = [
    ("eval", "split= dev | null"),
    ("eval", "tta= abc | null"),
    ("eval", "seed= null | -1"),
    ("eval", "trainer.limit_test_batches= 0 | abc"),
    ("predict", "batch_size= -1 | 0 | abc | null"),
    ("predict", "paths.output_dir= null"),
    ("export", "format= abc | null"),
    ("sample", "count= 0"),
    ("sample", "classes= 3"),
    ("shards", "out= null"),
]


def lines(table: str) -> list[str]:
    return table.strip().splitlines()


def configs(line: str, command: str = "train") -> Iterator[tuple[str, DictConfig]]:
    """For each value of a line how its message begins, and the config."""
    option, _, values = line.partition("= ")
    for value in map(yaml.safe_load, values.split(" | ")):
        config = deepcopy(base(command))
        OmegaConf.update(config, option, value, merge=False, force_add=True)
        yield f"{option}." if isinstance(value, dict) and "_target_" in value else f"{option}=", config


@cache
def base(command: str) -> DictConfig:
    return composed(name=command, folder=None if command == "eval" else Path("folder"))


@pytest.mark.parametrize("line", lines(REFUSED))
def test_a_value_that_cannot_be_is_told_with_its_option_and_what_is_allowed(line: str) -> None:
    for option, config in configs(line):
        with pytest.raises(ValueError, match=rf"^{option}.* must be \w+") as told:
            check_values(config, "train")
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("line", lines(ACCEPTED))
def test_what_a_library_or_a_class_of_ones_own_accepts_is_left_alone(line: str) -> None:
    for _, config in configs(line):
        check_values(config, "train")


def test_an_option_that_is_taken_out_is_missed() -> None:
    config = deepcopy(base("train"))
    with open_dict(config):
        del config["test"], config["optimizer"]
    with pytest.raises(ValueError, match="there must be a value for optimizer, test"):
        check_values(config, "train")


@pytest.mark.parametrize(("command", "line"), OTHERS)
def test_each_command_has_its_rules(command: str, line: str) -> None:
    check_values(base(command), command)
    for option, config in configs(line, command):
        with pytest.raises(ValueError, match=rf"^{option}.* must be \w+"):
            check_values(config, command)


def test_no_option_has_two_rules() -> None:
    names = [name for names in RULES for name in names.split()]
    assert len(names) == len(set(names))
