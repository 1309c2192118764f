"""A look at a network, such as one training image through it, that leaves the training as it was."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def looking_at(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode without gradients or compiling; afterwards every layer, and the random numbers, are as they were.

    Layers are not all in one mode in training: frozen batch norms are in eval mode.
    """
    modes = [(layer, layer.training) for layer in module.modules()]
    compiles = any(layer._compiled_call_impl is not None for layer, _ in modes)
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    module.eval()
    try:
        eagerly = torch.compiler.set_stance("force_eager") if compiles else nullcontext()
        with torch.no_grad(), torch.random.fork_rng(devices), eagerly:
            yield
    finally:
        for layer, training in modes:
            layer.training = training
