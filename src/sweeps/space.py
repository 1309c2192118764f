"""The search space: Hydra's sweep syntax as Optuna's distributions, and a trial's values as overrides.

optimizer.lr=interval(1e-4,1)                   a float; its exponent is uniform, as the ends are 1,000 times apart
optimizer.lr=tag(log, interval(0.01,0.1))       its exponent is uniform whatever the ends
optimizer.lr=tag(linear, interval(1e-4,1))      its value is uniform whatever the ends
model.network.hidden_units=int(interval(8,64))  a whole number, both ends included
optimizer.momentum=range(0.8,1,0.05)            a grid, without its end as in Python
model=choice(tinyvgg,nin) or model=tinyvgg,nin
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

LOG_RATIO = 1000  # between the ends of an interval, from which on it is searched by its exponent


@dataclass(frozen=True)
class Space:
    """What a search varies: the distribution of each parameter by the key of its override, and what is `fixed`."""

    fixed: list[str]
    distributions: dict[str, BaseDistribution]

    @classmethod
    def of(cls, overrides: Sequence[Override]) -> Space:
        """Raises ValueError where nothing varies, or an interval or list is empty."""
        varied = {o.get_key_element(): _distribution(o) for o in overrides if o.is_sweep_override()}
        if not varied:
            raise ValueError(
                "The search is empty: give hydra.sweeper.params, or parameters such as "
                "'optimizer.lr=interval(1e-4,1)' or 'model=choice(tinyvgg,nin)' on the command line."
            )
        rest = [o for o in overrides if not o.is_sweep_override()]
        fixed = [o.get_key_element() + ("" if o.is_delete() else f"={o.get_value_element_as_str()}") for o in rest]
        return cls(fixed, varied)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        return [f"{key}={value}" for key, value in params.items()]

    def values(self) -> dict[str, list[Any]]:
        """All values of each parameter; raises ValueError where there is no finite list of them."""
        return {key: _values(key, of) for key, of in self.distributions.items()}

    def size(self) -> int:
        return math.prod(map(len, self.values().values()))

    def corners(self) -> list[list[str]]:
        """Jobs that between them try each choice of each parameter once, and one value of the numeric ones."""
        tries = [list(getattr(of, "choices", ())) or [of.low] for of in self.distributions.values()]  # type: ignore[attr-defined]
        rows = zip(*(itertools.islice(itertools.cycle(values), max(map(len, tries))) for values in tries), strict=True)
        return [[*self.fixed, *self.overrides(dict(zip(self.distributions, row, strict=True)))] for row in rows]


def _distribution(override: Override) -> BaseDistribution:
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        assert low is not None
        assert high is not None
        if low >= high:
            raise ValueError(f"{override.input_line}: the interval is empty; its lower end comes first.")
        log = "log" in sweep.tags or ("linear" not in sweep.tags and low > 0 and high / low >= LOG_RATIO)
        if log and low <= 0:
            raise ValueError(f"{override.input_line}: a logarithmic interval starts above 0.")
        if isinstance(low, int) and isinstance(high, int):  # only from int(...), otherwise Hydra makes floats
            return IntDistribution(low, high, log=log)
        return FloatDistribution(low, high, log=log)
    values = list(override.sweep_iterator())
    if not values:
        raise ValueError(f"{override.input_line} stands for no value.")
    if isinstance(sweep, RangeSweep):
        kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
        start, stop, step = float(sweep.start or 0), float(sweep.stop or 0), float(sweep.step)
        last = start + (math.ceil(round((stop - start) / step, 9)) - 1) * step  # without what rounding adds to a range
        return kind(min(start, last), max(start, last), step=abs(step))  # type: ignore[arg-type]
    # Numbers and booleans as they are, so that samplers and plots see them; all else as its text on the command line.
    plain = (bool, int, float)
    return CategoricalDistribution(
        [value if isinstance(value, plain) else Override._get_value_element_as_str(value) for value in values]
    )


def _values(key: str, of: BaseDistribution) -> list[Any]:
    if isinstance(of, CategoricalDistribution):
        return list(of.choices)
    if isinstance(of, (IntDistribution, FloatDistribution)) and of.step is not None and not of.log:
        return [of.low + i * of.step for i in range(round((of.high - of.low) / of.step) + 1)]
    raise ValueError(f"hydra.sweeper.sampler=grid needs a list of values for {key}: give choice(...) or range(...).")
