"""Pictures of runs, drawn without pyplot, its global state, and anybody's settings of matplotlib."""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import numpy as np


@contextlib.contextmanager
def _any_backend() -> Iterator[None]:
    """Import matplotlib within the block though MPLBACKEND names a backend that is not there.

    A notebook hands its own to whatever it starts. One that is there becomes pyplot's, as without the block.
    """
    asked = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    yield
    if asked is not None:
        os.environ["MPLBACKEND"] = asked
        with contextlib.suppress(ValueError):
            sys.modules["matplotlib"].rcParams["backend"] = asked


with _any_backend():
    import matplotlib
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import MaxNLocator

# Far apart in lightness as well as in hue, and in line style, so that a grey print reads as well.
TRAINING = {"color": "#e69f00", "linestyle": "--", "label": "training"}
VALIDATION = {"color": "#00468b", "linestyle": "-", "label": "validation"}
BEST = {"color": "black", "linestyle": ":", "linewidth": 1.2}
CUT = {"color": "0.45", "linestyle": "-.", "linewidth": 1.0, "zorder": 1}
RATE = {"color": "#7a5195", "marker": "o", "markersize": 4}
GROUPS = ("#00693e", "#cc79a7", "#56b4e9", "#8c2d04", "#9a9a00", "#e34a6f")  # none of the colours above
STYLES = (("--", "training"), ("-", "validation and learning rate"))
THIN = 0.5
NUMBERED = 20  # classes of a confusion matrix whose numbers can still be read
WIDE = 20  # learning rates that span more than this factor are drawn on a logarithmic axis


@contextlib.contextmanager
def _defaults() -> Iterator[None]:
    """Draw by matplotlib's defaults within the block; a sign that no font has is a box, and nothing is said of it."""
    settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(settings):
        yield


@_defaults()
def curves(
    history: list[dict[str, float]],
    learning_rates: list[float],
    best_epoch: int,
    cuts: Sequence[int] = (),
    loss_name: str = "loss",
    title: str = "",
) -> "Picture":
    """Draw accuracy, loss and learning rate of one run and return the picture as PNG, 14 x 4 inches.

    `learning_rates` are those after each epoch; `best_epoch` and `cuts` (the epochs that ended in a cut) count from 1.
    `loss_name` says what the loss is made of.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # inches between the panels
    figure.suptitle(title).set_parse_math(False)  # a path may have two dollar signs
    epochs = range(1, len(history) + 1)
    accuracy, loss, rate = figure.subplots(1, 3)
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        axes.plot(epochs, [logs[name] for logs in history], **TRAINING)
        axes.plot(epochs, [logs[f"val_{name}"] for logs in history], **VALIDATION)
        axes.set(title=name.capitalize(), ylabel=name)
    loss.set(ylabel=loss_name)
    rate.plot(epochs, learning_rates, label="after the epoch", **RATE)
    rate.set(title="Learning rate", ylabel="learning rate after the epoch")
    _scale_rates(rate, learning_rates)
    for axes in (accuracy, loss, rate):
        axes.axvline(best_epoch, **BEST, label=f"best epoch ({best_epoch})")
        for number, epoch in enumerate(cuts):
            axes.axvline(epoch, **CUT, label="learning rate cut" if number == 0 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


@_defaults()
def overlay(groups: dict[str, list[dict[str, list[float]]]], loss_name: str, rate_name: str) -> bytes:
    """Draw the histories of several groups of runs over each other and return the picture as PNG, 14 x 4.5 inches.

    A group has one colour: the mean of its runs, and the band from their least to their greatest. Both end with the
    shortest run, since a mean of fewer runs would jump there; from there on each longer run is a thin line of its own.
    Columns that a history lacks are left out, and so are epochs without a figure.
    """
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    colours = GROUPS if len(groups) <= len(GROUPS) else colormaps["cool"](np.linspace(0, 1, len(groups)))
    handles = []
    panels = {
        "accuracy": ("accuracy", "val_accuracy"),
        "loss": ("loss", "val_loss"),
        "learning rate": ("learning_rate",),
    }
    all_axes = dict(zip(panels, figure.subplots(1, 3), strict=True))
    for colour, (label, histories) in zip(colours, groups.items(), strict=False):  # more colours than groups
        for panel, columns in panels.items():
            for column in columns:
                found = [history[column] for history in histories if column in history]
                if found:
                    _draw_group(all_axes[panel], found, colour, "--" if column in ("accuracy", "loss") else "-")
        runs = "" if len(histories) == 1 else f", mean and range of {len(histories)} runs"
        handles.append(Line2D([], [], color=colour, label=label + runs))
    for panel, axes in all_axes.items():
        axes.set(title=panel.capitalize(), xlabel="epoch", ylabel=panel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    all_axes["loss"].set(ylabel=loss_name)
    all_axes["learning rate"].set(ylabel=rate_name)
    rates = [
        rate for histories in groups.values() for history in histories for rate in history.get("learning_rate", [])
    ]
    _scale_rates(all_axes["learning rate"], rates)
    handles += [Line2D([], [], color="0.3", linestyle=style, label=label) for style, label in STYLES]
    if any(
        len({len(columns["loss"]) for columns in histories if "loss" in columns}) > 1 for histories in groups.values()
    ):
        handles.append(Line2D([], [], color="0.3", linewidth=THIN, label="a run that is longer than another"))
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=4).get_texts():
        text.set_parse_math(False)
    return _png(figure)


@_defaults()
def confusion(matrix: list[list[int]], names: tuple[str, ...], title: str) -> bytes:
    """Draw `matrix[true][predicted]`, images, shaded by their fraction of the true class; PNG, 8 x 7 inches.

    Of more classes than NUMBERED the shades are shown alone, with a name beside some.
    """
    counts = np.array(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(title).set_parse_math(False)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Greys", vmin=0, vmax=1)
    ticks = range(0, len(names), 1 + (len(names) - 1) // NUMBERED)
    axes.set_xticks(ticks, [_short(names[i]) for i in ticks], rotation=45, ha="right")
    axes.set_yticks(ticks, [f"{_short(names[i])}  {share[i, i]:.1%}" for i in ticks])
    axes.set(xlabel="predicted class", ylabel="true class, and its recall")
    for text in [*axes.get_xticklabels(), *axes.get_yticklabels()]:
        text.set_parse_math(False)  # a name may have dollar signs in it
    if len(names) <= NUMBERED:
        for i in ticks:
            for j in ticks:
                axes.text(j, i, counts[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    figure.colorbar(image, shrink=0.8)
    return _png(figure)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _scale_rates(axes: Axes, rates: list[float]) -> None:
    """Draw learning rates from zero, or logarithmically where they span more than a factor of WIDE and none is zero."""
    finite = [rate for rate in rates if np.isfinite(rate)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _draw_group(axes: Axes, curves: list[list[float]], colour, style: str) -> None:
    values = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    together = np.flatnonzero(np.isfinite(values).all(0))
    line = {"color": colour, "linestyle": style}
    if len(together):
        common = values[:, together]
        marker = "." if len(together) == 1 else None
        axes.plot(together + 1, common.mean(0), marker=marker, **line)
        if len(curves) > 1:
            axes.fill_between(together + 1, common.min(0), common.max(0), color=colour, alpha=0.15, linewidth=0)
    for row in values:
        alone = np.flatnonzero(np.isfinite(row))
        alone = alone[alone >= max(together, default=0)]
        if len(alone) > 1:
            axes.plot(alone + 1, row[alone], linewidth=THIN, **line)


class Picture(bytes):
    """A PNG file's content, which a notebook shows as the picture."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<a picture, {len(self):,} bytes of PNG>"


def _png(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Picture(buffer.getvalue())
