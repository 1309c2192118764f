"""Learning-rate schedules that torch lacks."""

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR


def cosine_with_warmup(
    optimizer: Optimizer,
    total_steps: int,
    warmup: float = 0.05,
    start_factor: float = 0.01,
    final_lr: float = 0.0,
) -> LRScheduler:
    """Linear warm-up, then half a cosine to `final_lr` (Goyal et al. 2017; Loshchilov and Hutter 2017).

    Args:
        total_steps: length of the training, in the steps at which the schedule moves.
        warmup: part of `total_steps`, in [0, 1), in which the rate rises from `start_factor` times its value.
    """
    if not 0 <= warmup < 1:
        raise ValueError(f"scheduler.factory.warmup is a part of the training in [0, 1), got {warmup}")
    warmup_steps = round(warmup * total_steps)
    cosine = CosineAnnealingLR(optimizer, T_max=max(1, total_steps - warmup_steps), eta_min=final_lr)
    if warmup_steps == 0:
        return cosine
    rise = LinearLR(optimizer, start_factor=start_factor, total_iters=warmup_steps)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup_steps])
