"""The result type of all statistics: a number with its 95% interval, and the difference of two with its p value."""

from dataclasses import dataclass

Z = 1.959963984540054  # 97.5% quantile of the standard normal distribution
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval.

    Attributes:
        value: None where the data leave it undefined.
        low, high: ends of the interval; None where there is none, as with a single seed, or where every resample gives
            the same value.
        n: independent units that the interval rests on: patients (images where patients are unknown) or seeds.
        method: how the interval was found, in a few words.
        undefined: share of the resamples that left the number undefined and were passed over, from 0 to 1.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    method: str
    undefined: float = 0.0

    @property
    def interval(self) -> list[float | None] | None:
        """`[low, high]` as `metrics.json` holds it; None where there is no interval."""
        return None if self.low is None and self.high is None else [self.low, self.high]

    def __str__(self) -> str:
        """Such as `0.912 (0.884 to 0.935)`, with minus signs."""
        if self.value is None:
            return "undefined"
        interval = "" if self.interval is None else f" ({_number(self.low)} to {_number(self.high)})"
        return _number(self.value) + interval


@dataclass(frozen=True)
class Comparison:
    """The difference of two numbers, first minus second, and the two-sided p value of there being none.

    Attributes:
        difference: with its interval.
        p_value: None where the test is undefined.
        test: name of the test.
    """

    difference: Estimate
    p_value: float | None
    test: str


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}".replace("-", "−")
