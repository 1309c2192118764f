"""The order of the images, and a train loader that goes on in the middle of an epoch."""

import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler

from src.data.draw import hashed_generator

WINDOW = 8  # chunks whose images an epoch mixes


class TrainSampler(DistributedSampler):
    """Shuffled anew each epoch from a hash of (seed, epoch), the same order for any number of processes.

    `position()` is asked when iteration begins and gives (epoch, batches of it that are already done); None leaves the
    epoch to `set_epoch`. `balance` draws from the set's `labels` (N,) as `balanced` does. A set with `chunks` (N,), the
    number of the file that each image lies in, is read `by_chunks`.
    """

    def __init__(
        self, data: Any, position: Callable[[], tuple | None], batch_size: int, balance: bool = False, **options: Any
    ) -> None:
        super().__init__(data, drop_last=True, **options)
        self.position, self.batch_size, self.balance = position, batch_size, balance

    def start(self) -> tuple[int, int]:
        """(epoch, batches of it that are already done)"""
        return self.position() or (self.epoch, 0)

    def __iter__(self) -> Iterator[int]:
        epoch, batches = self.start()
        generator = hashed_generator(self.seed, epoch, 0, 1)  # 1 is for the order: the draws of a batch have three
        data: Any = self.dataset
        if self.balance:
            order = balanced(data.labels.cpu(), generator)
        else:
            order = torch.randperm(len(data), generator=generator)
        if getattr(data, "chunks", None) is not None:
            order = by_chunks(order, data.chunks, generator)
        mine = order[self.rank : self.total_size : self.num_replicas]
        return iter(mine[batches * self.batch_size :].tolist())


class SameOrder(SequentialSampler):
    """One shuffled order for every epoch, for `trainer.overfit_batches`: files come class after class.

    Lightning puts its own in the place of any other kind then.
    """

    def __init__(self, data: Any) -> None:
        super().__init__(data)

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(len(self.data_source), generator=hashed_generator(0)).tolist())


def by_chunks(order: Tensor, chunks: Tensor, generator: torch.Generator) -> Tensor:
    """Positions in the given order, but `WINDOW` chunks after another, these drawn at random.

    So that files from afar come one after another, each once in an epoch, and few need to be kept.
    """
    window = torch.randperm(int(chunks.max()) + 1, generator=generator) // WINDOW  # of each chunk
    return order[window[chunks[order]].argsort(stable=True)]


def balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """As many positions as there are labels (N,), drawn with replacement, in random order.

    Every class that occurs is drawn equally often, to within one, and each of its positions with the same chance.
    """
    counts = labels.bincount()
    classes = counts.nonzero().flatten()
    drawn = classes[torch.randperm(len(labels), generator=generator) % len(classes)]  # (N,) classes
    share = torch.rand(len(labels), dtype=torch.float64, generator=generator)
    first = counts.cumsum(0) - counts  # where a class begins among the labels in order
    return labels.argsort(stable=True)[first[drawn] + (share * counts[drawn]).long()]


class EvalSampler(DistributedSampler):
    """Every image once, in order; -1 fills up the shorter ranks, so that none waits for another.

    With `shuffle` in one mixed order, so that the first batches are of all classes.
    """

    def __iter__(self) -> Iterator[int]:
        size = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(size, generator=hashed_generator(0)).tolist() if self.shuffle else range(size)
        return iter([order[i] if i < size else -1 for i in range(self.rank, self.total_size, self.num_replicas)])


class Loader(DataLoader):
    """Its workers outlive a SIGTERM that all processes of a run get: those that train need them until they stop.

    `failed` is told what went wrong with a batch at once: the signal that a worker has died, which torch makes a
    RuntimeError of, may interrupt whoever handles that.
    """

    failed: Callable[[Exception], None] = staticmethod(lambda error: None)

    def __init__(self, data: Any, *, num_workers: int | None = 0, **options: Any) -> None:
        super().__init__(data, worker_init_fn=outlive_sigterm, **worker_options(num_workers), **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until `outlive_sigterm`
        try:
            batches = super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        try:
            yield from batches
        except Exception as error:
            self.failed(error)
            raise


def worker_options(number: int | None) -> dict[str, Any]:
    """Those of a DataLoader with so many workers: on Linux forks, which share the images that are held.

    Python 3.14 would start each anew, as macOS does: that loads torch in every epoch, and has a copy of the images.
    """
    context = "fork" if number and sys.platform == "linux" else None
    return {"num_workers": number or 0, "multiprocessing_context": context}


def outlive_sigterm(worker: int) -> None:
    """In a new worker of a `Loader`: the first SIGTERM does nothing, the second ends it."""
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


class TrainLoader(Loader):
    """Goes on in the middle of an epoch, without a state of its own.

    Lightning's batch progress is the one record of the position: the sampler asks for it, and so do the draws.
    `__iter__` is a generator, so that sampling and workers start at the first `next()`; by then Lightning has
    restored its progress. The empty `state_dict` tells Lightning that the loader can be resumed, else it warns in
    the middle of an epoch (`training_epoch_loop.py`, `is_resumable_loader`).
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        data: Any = self.dataset
        data.epoch = self.sampler.start()[0] if isinstance(self.sampler, TrainSampler) else 0  # trainer.overfit_batches
        yield from super().__iter__()  # the workers, which start here, have the epoch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
