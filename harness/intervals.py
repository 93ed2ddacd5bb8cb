"""Means of a few runs and how sure they are: Student's and Welch's 95 % intervals."""

import math
import statistics
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A mean over n values; their standard deviation and the mean's 95 % interval are None where n is 1."""

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None

    def percentile(self, value: float) -> float:
        """The part of all further values that lies below `value`, by Student's t; for an n of at least 2."""
        spread = self.sd * math.sqrt(1 + 1 / self.n)  # of one further value about the mean of n
        distance = value - self.mean
        t = distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0
        return 0.5 + math.copysign(_above_median(abs(t), self.n - 1), t)

    def place(self, value: float, below: int) -> str:
        """Say where a further value lies; `below` of the n values are less."""
        return (
            f"{below} of {self.n} lie below its {value:.4f}; mean {self.mean:.4f}, standard deviation {self.sd:.4f}.\n"
            f"Among further ones it is at percentile {100 * self.percentile(value):.1f}, by Student's t. "
            "One run can say no more."
        )


class Difference(NamedTuple):
    """One mean minus another, its 95 % interval (None: too few values), and how it was got."""

    mean: float
    interval: tuple[float, float] | None
    method: str

    def within(self, margin: float) -> bool:
        return self.interval is not None and -margin < self.interval[0] <= self.interval[1] < margin

    def in_words(self, margin: float) -> str:
        """Say what the difference is, and whether one of `margin` can be excluded."""
        points = "1 point" if margin == 0.01 else f"{100 * margin:g} points"
        verdict = f"difference of {points} {'can' if self.within(margin) else 'cannot'} be excluded."
        if self.interval is None:
            return f"{self.mean:+.4f} ({self.method}).\nNo interval: it takes two runs or pairs; a {verdict}"
        low, high = self.interval
        zero = "zero lies in it" if low <= 0 <= high else "zero lies outside, the groups differ"
        return f"{self.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({self.method}); {zero}.\nA {verdict}"


def estimate(values: list[float], low: float = -math.inf, high: float = math.inf) -> Estimate | None:
    """Mean, standard deviation, and Student's 95 % interval of the mean, within `low` and `high`; None without any."""
    n = len(values)
    if n < 2:
        return Estimate(n, values[0], None, None) if values else None
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    half = t_quantile(n - 1) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, (max(mean - half, low), min(mean + half, high)))


def welch(a: Estimate, b: Estimate) -> tuple[float, float] | None:
    """The 95 % interval of b's mean minus a's, the two groups being independent; None if one has a single value."""
    if a.n == 1 or b.n == 1:
        return None
    u, v = a.sd**2 / a.n, b.sd**2 / b.n
    # Welch-Satterthwaite. Without any spread the interval is a point, whatever the quantile.
    freedom = (u + v) ** 2 / (u**2 / (a.n - 1) + v**2 / (b.n - 1)) if u + v else 1
    half = t_quantile(freedom) * math.sqrt(u + v)
    return b.mean - a.mean - half, b.mean - a.mean + half


def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom, to 1e-8 of it."""
    low, high = 1.9, 12.8  # the limits are 1.960 and, for 1, 12.706
    while high - low > 1e-12 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if _above_median(middle, freedom) < 0.475 else (low, middle)
    return low


def _above_median(t: float, freedom: float) -> float:
    """The part of Student's t between 0 and `t` >= 0."""
    # None of the six packages has it. With t = sqrt(freedom) * tan(angle) the density is a power of the cosine:
    # Gauss-Legendre integration.
    nodes, weights = np.polynomial.legendre.leggauss(64)
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    half = math.atan(t / math.sqrt(freedom)) / 2
    return float(scale * half * (weights @ np.cos(half * (nodes + 1)) ** (freedom - 1)))
