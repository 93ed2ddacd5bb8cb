"""The figures of a training as read from its files, and the difference in accuracy between two groups."""

import itertools
import math
import statistics
from collections.abc import Collection

from cli.errors import BadInput
from cli.messages import counted
from comparing.histories import Training
from comparing.intervals import Difference, estimate, welch
from running.history import best_epoch

LISTS = ("seconds_per_epoch", "learning_rate_after_epoch")  # in metrics.json: one value per epoch


def run_figures(run: Training, cutting: Collection[str]) -> dict[str, float | list[int] | bool | str | None]:
    """Return the figures of one run, with epochs counted from 1; None for a missing one.

    `cutting` names the schedules that only cut the learning rate, between epochs.
    """
    history = run.history
    best = best_epoch(history.get("val_loss", []))
    accuracy = None if best is None or "val_accuracy" not in history else history["val_accuracy"][best]
    cuts = learning_rate_cuts(run, cutting)
    return {
        "data": run.metrics.get("data", run.config.get("data")),
        "epochs": run.epochs,
        "best epoch": None if best is None else best + 1,
        "best val_loss": None if best is None else history["val_loss"][best],
        "val_accuracy there": None if accuracy is None or math.isnan(accuracy) else accuracy,
        "test accuracy": metric(run, "test_accuracy", 1),
        "learning-rate cuts": None if cuts is None else len(cuts),
        "cut after epochs": cuts,
        "schedule": scheduled(run, cutting),
        "mean seconds per epoch": metric(run, "seconds_per_epoch"),
        "images per second": metric(run, "images_per_second"),  # in the median epoch
    }


def scheduled(run: Training, cutting: Collection[str]) -> bool:
    """Return whether a schedule changes the learning rate other than by cuts.

    If metrics.json does not tell, it does if the rate rises, or if it falls after three epochs in a row and either by
    different factors or after most epochs.
    """
    if "schedule" in run.metrics:
        return run.metrics["schedule"] not in cutting
    if run.metrics.get("learning_rate_cuts"):
        return False
    rates = list(itertools.pairwise(run.history.get("learning_rate", [])))
    falls = [after / before for before, after in rates if after < before]
    if any(after > before for before, after in rates):
        return True
    changes = "".join("<" if after < before else "=" for before, after in rates)
    # Cuts are by one factor, except the last one, which may end at the minimum rate.
    alike = all(math.isclose(fall, falls[0], rel_tol=1e-3) for fall in falls[:-1])
    return "<<<" in changes and (not alike or len(falls) > len(rates) / 2)


def learning_rate_cuts(run: Training, cutting: Collection[str]) -> list[int] | None:
    """Return the epochs, from 1, after which the learning rate was lower; None without rates, or with a schedule.

    Only metrics.json has the rate after the last epoch.
    """
    if "learning_rate" not in run.history or scheduled(run, cutting):
        return None
    rates = run.history["learning_rate"] + metric_values(run, "learning_rate_after_epoch")[-1:]
    return [epoch for epoch, (before, after) in enumerate(itertools.pairwise(rates), start=1) if after < before]


def cut_epochs(cuts: list[list[int] | None]) -> str:
    """Return the epochs of one run's cuts, or the range in which the first cuts of several runs lie."""
    cuts = [epochs for epochs in cuts if epochs]
    if len(cuts) < 2:
        return ", ".join(map(str, cuts[0])) if cuts else "-"
    first = [epochs[0] for epochs in cuts]
    return f"first {min(first)} to {max(first)}"


def metric(run: Training, name: str, highest: float = math.inf) -> float | None:
    """Return a number from the run's metrics.json, or the mean of a list of numbers; None if it is missing."""
    values = metric_values(run, name, highest)
    return statistics.fmean(values) if values else None


def metric_values(run: Training, name: str, highest: float = math.inf) -> list[float]:
    if name not in run.metrics:
        return []
    value = run.metrics[name]
    values = value if isinstance(value, list) and name in LISTS else [value]
    if not all(type(v) in (int, float) and math.isfinite(v) and 0 <= v <= highest for v in values):
        raise BadInput(f"{run.path}: metrics.json has {value!r:.60} for {name}; correct it, or delete the file")
    return values


def accuracy_difference(
    first: list[Training],
    second: list[Training],
    ones: list[float | None],
    others: list[float | None],
    comparisons: int = 1,
) -> Difference | None:
    """Compare accuracies by pairs if most of the smaller group's runs have a partner, else by Welch's method.

    `ones` and `others` are the accuracies of the runs; those without one are left out. Partners have the same initial
    weights, or else the same seed. None if a group has no accuracy at all. `comparisons` as for `estimate`.
    """
    first, second = (
        [(run.metrics, value) for run, value in zip(group, values, strict=True) if value is not None]
        for group, values in ((first, ones), (second, others))
    )
    dependent = ""
    for shared in ("initial_weights", "seed"):
        ones, others = ({metrics.get(shared): value for metrics, value in group} for group in (first, second))
        partners = [start for start in ones if start is not None and start in others]
        unique = len(ones) == len(first) and len(others) == len(second)
        if unique and 2 * len(partners) > min(len(first), len(second)):
            pairwise = estimate([others[start] - ones[start] for start in partners], comparisons=comparisons)
            method = f"{counted(pairwise.n, 'pair')} with the same {shared.replace('_', ' ')}"
            alone = len(first) + len(second) - 2 * pairwise.n
            if alone:
                method += f", {alone} without a partner left out"
            return Difference(pairwise.mean, pairwise.interval, method)
        if partners and not dependent:
            dependent = f", although {len(partners)} have the same {shared.replace('_', ' ')} as one in the other group"

    a, b = (estimate([value for _, value in group]) for group in (first, second))
    if a is None or b is None:
        return None
    return Difference(
        b.mean - a.mean, welch(a, b, comparisons), f"Welch's method, {a.n} and {b.n} independent runs{dependent}"
    )
