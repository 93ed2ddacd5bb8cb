"""Means of a few runs and their uncertainty: Student's and Welch's 95 % confidence intervals."""

import math
import statistics
from typing import NamedTuple

import numpy as np

LEAST_SPREAD = 1e-6  # of accuracies; less is rounding, since 10,000 images resolve 1e-4
NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)  # of Gauss-Legendre integration over [-1, 1]


class Estimate(NamedTuple):
    """The mean of n values, their standard deviation, and the mean's 95 % interval.

    `sd` and `interval` are None if n is 1; `interval` also if the values do not differ: their spread is then unknown.
    """

    n: int
    mean: float
    sd: float | None
    interval: tuple[float, float] | None

    def percentile(self, value: float) -> float:
        """Return the expected fraction of further values below `value`, by Student's t; n must be at least 2."""
        spread = self.sd * math.sqrt(1 + 1 / self.n)  # of one further value about the mean of n
        distance = value - self.mean
        t = distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0
        return 0.5 + math.copysign(_above_median(abs(t), self.n - 1), t)

    def place(self, value: float, below: int, runs: str) -> str:
        """Describe where a further value ranks among those of the group `runs`, `below` of which are lower."""
        among = f"mean {self.mean:.4f}, standard deviation {self.sd:.4f}"
        return (
            f"{below} of the {self.n} runs of {runs} score lower ({among}).\n"
            f"About {100 * self.percentile(value):.1f} % of further runs of {runs} would score lower (Student's t); "
            "one run cannot establish a difference."
        )

    def spread(self) -> str:
        return f"{self.mean:.4f}" if self.sd is None else f"{self.mean:.4f} ± {self.sd:.4f}"


class Difference(NamedTuple):
    """One mean minus another, its 95 % interval (None: too few values, or no spread), and the method."""

    mean: float
    interval: tuple[float, float] | None
    method: str

    def within(self, margin: float) -> bool:
        return self.interval is not None and -margin < self.interval[0] <= self.interval[1] < margin

    def in_short(self) -> str:
        """Return the difference in words, without a verdict."""
        if self.interval is None:
            return f"{self.mean:+.4f}, no interval ({self.method})"
        return f"{self.mean:+.4f}, interval {self.interval[0]:+.4f} to {self.interval[1]:+.4f} ({self.method})"

    def in_words(self, margin: float) -> str:
        """Return the difference in words, and whether the two are equivalent within `margin`."""
        points = "1 point" if margin == 0.01 else f"{100 * margin:g} points"
        if self.interval is None:
            needed = "at least two runs or pairs with different results are needed"
            return (
                f"{self.mean:+.4f} ({self.method}).\nNo interval: {needed}.\n"
                f"Equivalent within {points}? Not shown: there is no interval."
            )
        low, high = self.interval
        zero = "it contains zero" if low <= 0 <= high else "it excludes zero"
        if self.within(margin):
            verdict = f"Yes: the whole interval lies within ±{points}."
        elif low >= margin or high <= -margin:
            verdict = f"No: the whole interval lies outside ±{points}."
        else:
            verdict = f"Not shown: the interval reaches beyond ±{points}."
        return (
            f"{self.mean:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({self.method}); {zero}.\n"
            f"Equivalent within {points}? {verdict}"
        )


def estimate(
    values: list[float], low: float = -math.inf, high: float = math.inf, comparisons: int = 1
) -> Estimate | None:
    """Return mean, standard deviation, and Student's 95 % interval of the mean, clipped to `low` and `high`.

    None without values. With several `comparisons`, the 95 % hold for all intervals at once (Bonferroni).
    """
    n = len(values)
    if n < 2:
        return Estimate(n, values[0], None, None) if values else None
    mean, sd = statistics.fmean(values), statistics.stdev(values)
    if max(values) - min(values) < LEAST_SPREAD:
        return Estimate(n, mean, sd, None)
    half = t_quantile(n - 1, comparisons) * sd / math.sqrt(n)
    return Estimate(n, mean, sd, (max(mean - half, low), min(mean + half, high)))


def welch(a: Estimate, b: Estimate, comparisons: int = 1) -> tuple[float, float] | None:
    """Return the 95 % interval of b's mean minus a's, for two independent groups.

    None if a group has a single value, or if neither varies. `comparisons` as for `estimate`.
    """
    if (a.interval is None and b.interval is None) or a.n == 1 or b.n == 1:
        return None
    u, v = a.sd**2 / a.n, b.sd**2 / b.n
    freedom = (u + v) ** 2 / (u**2 / (a.n - 1) + v**2 / (b.n - 1))  # Welch-Satterthwaite
    half = t_quantile(freedom, comparisons) * math.sqrt(u + v)
    return b.mean - a.mean - half, b.mean - a.mean + half


def t_quantile(freedom: float, comparisons: int = 1) -> float:
    """Return the 97.5 % quantile of Student's t with `freedom` >= 1 degrees of freedom, to a relative 1e-8.

    With several `comparisons`, the 2.5 % above it are divided among them.
    """
    wanted = 0.5 - 0.025 / comparisons
    low, high = 1.9, 12.8 * comparisons  # for one comparison the limits are 1.960 and, with a freedom of 1, 12.706
    while high - low > 1e-12 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if _above_median(middle, freedom) < wanted else (low, middle)
    return low


def _above_median(t: float, freedom: float) -> float:
    """Return the probability that Student's t is between 0 and `t` >= 0."""
    # None of the six required packages has it. With t = sqrt(freedom) * tan(angle), the density is a power of the
    # cosine, which Gauss-Legendre quadrature integrates.
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    half = math.atan(t / math.sqrt(freedom)) / 2
    return float(scale * half * (WEIGHTS @ np.cos(half * (NODES + 1)) ** (freedom - 1)))
