"""What a sweep varies: Hydra's sweep syntax as Optuna's distributions, and a trial's values as overrides.

optimizer.lr=interval(1e-4,1)                   a float; its exponent is uniform, as the ends are 1,000 times apart
optimizer.lr=tag(log, interval(0.01,0.1))       its exponent is uniform whatever the ends
optimizer.lr=tag(linear, interval(1e-4,1))      its value is uniform whatever the ends
model.network.hidden_units=int(interval(8,64))  a whole number, both ends included
optimizer.momentum=range(0.8,1,0.05)            steps, without the end as in Python
model=choice(tinyvgg,nin) or model=tinyvgg,nin

A grid takes lists and ranges, as the values that they stand for.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

LOG_RATIO = 1000  # between the ends of an interval, from which on it is searched by its exponent


@dataclass(frozen=True)
class Space:
    """The distribution of each varied parameter, by the key of its override, and the overrides that are `fixed`."""

    fixed: list[str]
    distributions: dict[str, BaseDistribution]

    @classmethod
    def of(cls, overrides: Sequence[Override], grid: bool = False) -> "Space":
        """Raises ValueError where an interval or list is empty, a search varies nothing, or a grid has an interval."""
        varied = {o.get_key_element(): _distribution(o, grid) for o in overrides if o.is_sweep_override()}
        if not varied and not grid:
            raise ValueError("The search is empty: give it a parameter, such as 'optimizer.lr=interval(1e-4,1)'.")
        rest = [o for o in overrides if not o.is_sweep_override()]
        fixed = [o.get_key_element() + ("" if o.is_delete() else f"={o.get_value_element_as_str()}") for o in rest]
        return cls(fixed, varied)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """The command line of a job that has these values."""
        return [*self.fixed, *(f"{key}={value}" for key, value in params.items())]

    def label(self, params: Mapping[str, Any]) -> str:
        """What tells such a job from the others, for people."""
        varied = {key: value for key, value in params.items() if not self.distributions[key].single()}
        return " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in varied.items())

    def combinations(self) -> list[dict[str, Any]]:
        """The product of all values of a grid, the last parameter changing fastest."""
        product = itertools.product(*self._choices())
        return [dict(zip(self.distributions, values, strict=True)) for values in product]

    def corners(self) -> list[dict[str, Any]]:
        """Params that between them try each choice of each parameter once, and one value of the numeric ones."""
        tries = self._choices()
        rows = zip(*(itertools.islice(itertools.cycle(values), max(map(len, tries))) for values in tries), strict=True)
        return [dict(zip(self.distributions, row, strict=True)) for row in rows]

    def _choices(self) -> list[list[Any]]:
        return [list(getattr(of, "choices", ())) or [of.low] for of in self.distributions.values()]  # type: ignore[attr-defined]


def _distribution(override: Override, grid: bool) -> BaseDistribution:
    sweep, given = override.value(), override.input_line
    kind: Any
    if isinstance(sweep, IntervalSweep):
        if grid:
            raise ValueError(f"{given}: a grid needs values; list them, or search: hydra/sweeper/sampler=tpe.")
        low, high = sweep.start or 0, sweep.end or 0
        log = "log" in sweep.tags or ("linear" not in sweep.tags and low > 0 and high / low >= LOG_RATIO)
        if low >= high or (log and low <= 0):
            raise ValueError(f"{given}: the lower end comes first, and is above 0 where the interval is logarithmic.")
        # A whole number comes only from int(...), otherwise Hydra makes floats.
        kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
        return kind(low, high, log=log)
    # Numbers and booleans as they are, so that samplers and plots see them; all else as its text on the command line.
    plain = (bool, int, float)
    values: list[Any] = list(override.sweep_iterator(lambda v: v if isinstance(v, plain) else Transformer.str(v)))
    if isinstance(sweep, RangeSweep):  # Hydra's rounding adds its end to some
        values = [value for value in values if abs(value - (sweep.stop or 0)) > abs(sweep.step) / 1000]
    if not values:
        raise ValueError(f"The sweep is empty: {given} stands for no value.")
    if grid or not isinstance(sweep, RangeSweep):
        return CategoricalDistribution(values)
    kind = IntDistribution if all(isinstance(value, int) for value in values) else FloatDistribution
    return kind(min(values), max(values), step=abs(sweep.step))
