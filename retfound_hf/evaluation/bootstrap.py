"""Estimates with 95% confidence intervals: bootstrap over patients (BCa), and values without each patient.

`scipy.stats.bootstrap` draws rows, not patients with all their rows, and calls a function of rows for each resample;
here a statistic takes many sets of weights at once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import BadDataError, require_range

Values = dict[Any, np.ndarray]
Statistic = Callable[[np.ndarray], Values]  # from weights of the rows (B, N) to named values (B,), NaN where undefined
Method = Literal["bca", "percentile"]

Z = 1.959963984540054  # 97.5% quantile of the standard normal distribution
CONFIDENCE = 0.95
RESAMPLES = 2000  # below, the ends of a BCa interval move visibly with the seed
MIN_DEFINED = 100  # with fewer defined resamples in a tail the ends of an interval are noise
BLOCK = 4_000_000  # elements of one block of weights: 32 MB, which keeps temporaries in the processor's reach
JACKKNIFE = 400  # patients left out one by one; above that in as many groups


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
        ends = "" if self.interval is None else f" ({_number(self.low)} to {_number(self.high)})"
        return _number(self.value) + ends


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


@dataclass(frozen=True)
class Patients:
    """The independent units behind the rows of a set.

    Attributes:
        row: int64 (N,), the patient of each row, from 0 to `count` - 1.
        count: number of patients.
        stratum: int64 (count,), the class of patients within which is resampled.
    """

    row: np.ndarray
    count: int
    stratum: np.ndarray

    def draws(self, resamples: int, seed: int) -> Iterator[np.ndarray]:
        """Bootstrap weights of the rows: how often each one's patient was drawn, float64 (block, N), in blocks.

        The draws depend on patients, strata and seed alone, not on the size of the blocks.
        """
        strata = [np.flatnonzero(self.stratum == stratum) for stratum in np.unique(self.stratum)]
        # A stream for each stratum: read row by row, it is the same however many rows are read at once.
        streams = [np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(len(strata))]
        size = max(1, BLOCK // len(self.row))
        for start in range(0, resamples, size):
            block = min(size, resamples - start)
            counts = np.empty((block, self.count))
            for members, stream in zip(strata, streams, strict=True):
                drawn = stream.integers(len(members), size=(block, len(members)))
                drawn += len(members) * np.arange(block)[:, None]
                found = np.bincount(drawn.ravel(), minlength=block * len(members))
                counts[:, members] = found.reshape(block, len(members))
            yield counts[:, self.row]

    def left_out(self) -> tuple[np.ndarray, Iterator[np.ndarray]]:
        """Jackknife weights of the rows: 0 for the patients left out, 1 for the others.

        Many patients are left out in groups of one stratum.

        Returns:
            Stratum of each group, (groups,), and the weights, float64 (block, N), in blocks.
        """
        order = np.lexsort((np.random.default_rng(0).random(self.count), self.stratum))
        together = -(-self.count // JACKKNIFE)
        group, strata = np.empty(self.count, np.int64), []
        for stratum in np.unique(self.stratum):
            patients = order[self.stratum[order] == stratum]
            group[patients] = len(strata) + np.arange(len(patients)) // together
            strata += [stratum] * -(-len(patients) // together)
        return np.array(strata), self._without(group[self.row], len(strata))

    def _without(self, group: np.ndarray, groups: int) -> Iterator[np.ndarray]:
        size = max(1, BLOCK // len(group))
        for start in range(0, groups, size):
            yield (np.arange(start, min(start + size, groups))[:, None] != group).astype(np.float64)


def patients_of(patients: Any, rows: int, classes: np.ndarray | None = None) -> Patients:
    """Number the patients of a set.

    A patient belongs to the stratum of the rarest class among the rows, so that each class keeps its patients. A
    stratum of one patient could not vary; such patients share one stratum.

    Args:
        patients: (N,) names, None or NaN where unknown (such a row is a patient of its own), or None altogether.
        rows: N.
        classes: bool (N, C), the classes of each row, to resample within; None: all patients in one stratum.

    Raises:
        BadDataError: a number of names other than N, or a single patient.
    """
    row = patient_numbers(patients, rows)
    count = int(row.max()) + 1
    if count < 2:
        raise BadDataError(f"an interval over patients needs at least two of them, and the {rows} rows are of one")
    stratum = np.zeros(count, np.int64)
    if classes is not None:
        present = np.zeros((count, classes.shape[1]), dtype=bool)
        np.logical_or.at(present, row, classes)
        rarity = np.argsort(present.sum(axis=0), kind="stable")
        stratum = np.where(present.any(axis=1), rarity[present[:, rarity].argmax(axis=1)], classes.shape[1])
        sizes = np.bincount(stratum, minlength=classes.shape[1] + 1)
        alone = sizes[stratum] < 2
        stratum[alone] = -1
        if alone.sum() == 1:  # still alone: into the smallest of the other strata
            stratum[alone] = np.where(sizes < 2, count, sizes).argmin()
    return Patients(row, count, stratum)


def patient_numbers(patients: Any, rows: int) -> np.ndarray:
    """Patient of each row as a number from 0 on, (N,); an unknown one (None, NaN) is a patient of its own."""
    if patients is None:
        return np.arange(rows)
    import pandas as pd

    names = pd.Series(np.asarray(patients, dtype=object))
    if len(names) != rows:
        raise BadDataError(f"{len(names)} patients were given for {rows} rows; give one per row")
    row, known = pd.factorize(names)
    return np.where(row < 0, len(known) + np.cumsum(row < 0) - 1, row)


def rarer_side(sides: np.ndarray, row: np.ndarray) -> int:
    """Fewest patients that have, or lack, one of several classes; 0 without classes.

    Args:
        sides: bool (N, C), whether each row is of a class.
        row: (N,) patients, see `patient_numbers`.
    """
    return min((len(np.unique(row[column == side])) for column in sides.T for side in (True, False)), default=0)


@dataclass(frozen=True)
class Draws:
    """Values of a statistic on bootstrap samples and, for BCa, without each group of patients.

    Attributes:
        samples: by name (resamples,), NaN where undefined.
        left_out: by name (groups,); empty for percentiles.
        strata: (groups,) stratum of each group; None for percentiles.
        patients: number of independent units.
    """

    samples: Values
    left_out: Values
    strata: np.ndarray | None
    patients: int

    def interval(self, name: Any, value: float | None) -> Estimate:
        """The estimate of a name; arguments as `interval`."""
        left_out = None if self.strata is None else (self.left_out[name], self.strata)
        return interval(value, self.samples[name], self.patients, left_out)


def draw(
    statistic: Statistic, patients: Patients, resamples: int = RESAMPLES, seed: int = 0, method: Method = "bca"
) -> Draws:
    """Evaluate a statistic on bootstrap samples of patients; arguments as `bootstrap`."""
    require_range("resamples", resamples, MIN_DEFINED)
    samples = _evaluate(statistic, patients.draws(resamples, seed))
    if method == "percentile":
        return Draws(samples, {}, None, patients.count)
    strata, blocks = patients.left_out()
    return Draws(samples, _evaluate(statistic, blocks), strata, patients.count)


def bootstrap(
    statistic: Statistic,
    values: Mapping[str, float | None],
    patients: Patients,
    resamples: int = RESAMPLES,
    seed: int = 0,
    method: Method = "bca",
) -> dict[str, Estimate]:
    """Intervals of whatever can be computed from weighted rows.

    Args:
        statistic: weights of the rows (B, N) -> by name the B values, NaN where undefined.
        values: what `statistic` gives for the whole set; None where undefined.
        patients: see `patients_of`.
        resamples: at least 100.
        seed: another one draws other patients.
        method: `bca`, bias-corrected and accelerated (Efron 1987; acceleration by the jackknife within strata, Davison
            and Hinkley 1997, section 5.3), or the plain percentiles.
    """
    found = draw(statistic, patients, resamples, seed, method)
    return {name: found.interval(name, value) for name, value in values.items()}


def jackknife(statistic: Statistic, patients: Patients) -> Values:
    """Values of a statistic without each patient, or each group of many patients, by name (groups,)."""
    return _evaluate(statistic, patients.left_out()[1])


def _evaluate(statistic: Statistic, blocks: Iterable[np.ndarray]) -> Values:
    parts = [statistic(weights) for weights in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def interval(
    value: float | None,
    drawn: np.ndarray,
    patients: int,
    left_out: tuple[np.ndarray, np.ndarray] | None = None,
) -> Estimate:
    """The interval that bootstrap values leave.

    Args:
        value: of the whole set; None where undefined.
        drawn: values of the resamples, NaN where undefined.
        patients: number of independent units.
        left_out: values without each group of patients, and the groups' strata, for BCa; None: percentiles.
    """
    from scipy.stats import norm

    defined = drawn[~np.isnan(drawn)]
    undefined = 1 - len(defined) / len(drawn)
    name = f"bootstrap over patients, {'percentile' if left_out is None else 'BCa'}"
    if value is None or len(defined) < MIN_DEFINED or np.ptp(defined) < 1e-12:
        return Estimate(value, None, None, patients, name, undefined)
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    if left_out is not None:
        below = (np.mean(defined < value - 1e-12) + np.mean(defined <= value + 1e-12)) / 2
        edge = 1 / (2 * len(defined))
        bias = norm.ppf(np.clip(below, edge, 1 - edge))
        shifted = bias + norm.ppf(tails)
        tails = norm.cdf(bias + shifted / (1 - _acceleration(*left_out) * shifted))
    low, high = np.quantile(defined, tails)
    return Estimate(float(value), float(low), float(high), patients, name, undefined)


def _acceleration(values: np.ndarray, strata: np.ndarray) -> float:
    """Skewness of the statistic, from its values without each group of patients, centred within the strata."""
    influence = np.zeros(len(values))
    for stratum in np.unique(strata):
        members = (strata == stratum) & ~np.isnan(values)
        if members.any():
            influence[members] = values[members].mean() - values[members]
    spread = (influence**2).sum()
    return float((influence**3).sum() / (6 * spread**1.5)) if spread > 0 else 0.0
