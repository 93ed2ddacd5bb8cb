"""Pictures of runs, drawn without pyplot's global state and without the user's matplotlib settings."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# They differ in lightness and line style as well as in hue, so that they are distinct in a grey print.
TRAINING = {"color": "#e69f00", "linestyle": "--", "label": "training"}
VALIDATION = {"color": "#00468b", "linestyle": "-", "label": "validation"}
BEST = {"color": "black", "linestyle": ":", "linewidth": 1.2}
CUT = {"color": "0.45", "linestyle": "-.", "linewidth": 1.0, "zorder": 1}
RATE = {"color": "#7a5195", "linewidth": 1.5, "label": "learning rate"}
GROUPS = ("#00693e", "#cc79a7", "#56b4e9", "#8c2d04", "#9a9a00", "#e34a6f")  # none of the colours above
STYLES = (("--", "training"), ("-", "validation and learning rate"))
RATE_NAME = "learning rate before the epoch"  # as in history.csv
THIN = 0.5
LEGEND_COLUMNS = 4
NUMBERED = 20  # a confusion matrix of more classes shows no numbers
WIDE = 20  # learning rates that span more than this factor are drawn on a logarithmic axis


@contextlib.contextmanager
def _defaults() -> Iterator[None]:
    """Use matplotlib's defaults within the block, without warnings: a character that no font has becomes a box."""
    settings = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with warnings.catch_warnings(action="ignore"), matplotlib.rc_context(settings):
        yield


@_defaults()
def curves(
    history: list[dict[str, float]],
    best_epoch: int,
    cuts: Sequence[int] = (),
    loss_name: str = "loss",
    title: str = "",
) -> "Picture":
    """Draw the accuracy, loss and learning rate of one run and return a PNG, 14 x 4 inches.

    Each further metric in the history with a `val_` counterpart gets its own panel. `best_epoch` and `cuts` (the epochs
    that ended with a cut) count from 1. `loss_name` labels the loss axis.
    """
    names = ["accuracy", "loss"]
    names += [name for name in history[0] if f"val_{name}" in history[0] and name not in names]
    figure = Figure(figsize=(14 / 3 * (len(names) + 1), 4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # inches between the panels
    figure.suptitle(title).set_parse_math(False)  # a path may have two dollar signs
    epochs = range(1, len(history) + 1)
    *panels, rate = figure.subplots(1, len(names) + 1)
    point = {"marker": "o"} if len(history) == 1 else {}  # a single point has no line
    for axes, name in zip(panels, names, strict=True):
        axes.plot(epochs, [logs[name] for logs in history], **TRAINING, **point)
        axes.plot(epochs, [logs[f"val_{name}"] for logs in history], **VALIDATION, **point)
        label = name.replace("_", " ")
        axes.set(title=label.capitalize(), ylabel=loss_name if name == "loss" else label)
    learning_rates = [logs["learning_rate"] for logs in history]
    _draw_steps(rate, learning_rates, **RATE)
    rate.set(title="Learning rate", ylabel=RATE_NAME)
    _scale_rates(rate, learning_rates)
    for axes in (*panels, rate):
        axes.axvline(best_epoch, **BEST, label=f"best epoch ({best_epoch})")
        for number, epoch in enumerate(cuts):
            axes.axvline(epoch, **CUT, label="learning rate cut" if number == 0 else None)
        _count_epochs(axes, len(history))
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return _png(figure)


@_defaults()
def overlay(groups: dict[str, list[dict[str, list[float]]]], loss_name: str, rate_name: str, title: str = "") -> bytes:
    """Draw the histories of several groups of runs in the same panels and return a PNG, 14 inches wide.

    Each group has one colour, for the mean of its runs and the band from their minimum to their maximum. Both end with
    the shortest run, since a mean of fewer runs would jump there; from there on, each longer run is a thin line. The
    learning rates of each run are drawn separately. Single runs are drawn on top of groups. With more groups than
    colours, there is no title. Columns that a history does not have, and epochs without a value, are left out.
    """
    rows = -(-(len(groups) + len(STYLES) + 1) // LEGEND_COLUMNS)
    figure = Figure(figsize=(14, 4.0 + 0.25 * max(rows, 2)), layout="constrained")
    if len(groups) <= len(GROUPS):  # with more, the title would fill the picture
        figure.suptitle(title, fontsize="medium", wrap=True).set_parse_math(False)
    figure.get_layout_engine().set(w_pad=0.12)
    colours = GROUPS if len(groups) <= len(GROUPS) else colormaps["cool"](np.linspace(0, 1, len(groups)))
    handles = []
    panels = ("accuracy", "loss")
    all_axes = dict(zip((*panels, "learning rate"), figure.subplots(1, 3), strict=True))
    for colour, (label, histories) in zip(colours, groups.items(), strict=False):  # more colours than groups
        on_top = {"color": colour, "zorder": 3 if len(histories) == 1 else 2}
        for panel in panels:
            for column, style in ((panel, "--"), (f"val_{panel}", "-")):
                curves = [history[column] for history in histories if column in history]
                if curves:
                    _draw_group(all_axes[panel], curves, linestyle=style, **on_top)
        width = {"linewidth": THIN} if len(histories) > 1 else {}
        for history in histories:
            if "learning_rate" in history:
                _draw_steps(all_axes["learning rate"], history["learning_rate"], **on_top, **width)
        runs = "" if len(histories) == 1 else f", mean and range of {len(histories)} runs"
        handles.append(Line2D([], [], color=colour, label=label + runs))
    longest = max(len(column) for histories in groups.values() for one in histories for column in one.values())
    for panel, axes in all_axes.items():
        axes.set(title=panel.capitalize(), ylabel=panel)
        if axes.has_data():
            _count_epochs(axes, longest)
        else:
            axes.text(0.5, 0.5, "not logged", ha="center", va="center", transform=axes.transAxes)
            axes.set(xticks=[], yticks=[])
    all_axes["loss"].set(ylabel=loss_name)
    all_axes["learning rate"].set(ylabel=rate_name)
    rates = [
        rate for histories in groups.values() for history in histories for rate in history.get("learning_rate", [])
    ]
    if rates:
        _scale_rates(all_axes["learning rate"], rates)
    handles += [Line2D([], [], color="0.3", linestyle=style, label=label) for style, label in STYLES]
    if any(
        len({len(columns["loss"]) for columns in histories if "loss" in columns}) > 1 for histories in groups.values()
    ):
        handles.append(Line2D([], [], color="0.3", linewidth=THIN, label="runs that went on longer"))
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS).get_texts():
        text.set_parse_math(False)
    return _png(figure)


@_defaults()
def differences(by_epoch: dict[str, list[float]], rounding: float) -> "Picture":
    """Draw the relative differences of each metric by epoch, on a logarithmic axis, and return a PNG, 8 x 4.5 inches.

    The range up to `rounding` is shaded. Bit-identical values lie on the lower edge.
    """
    least = 1e-17
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.axhspan(least, rounding, color="0.93", label="rounding")
    for colour, (name, values) in zip(GROUPS, by_epoch.items(), strict=False):
        axes.plot(
            range(1, len(values) + 1), [max(value, least) for value in values], marker="o", color=colour, label=name
        )
    axes.set(title="Keras and PyTorch", ylabel="relative difference", yscale="log")
    axes.set_ylim(least, max(10 * rounding, *(10 * max(values) for values in by_epoch.values())))
    _count_epochs(axes, max(map(len, by_epoch.values())))
    axes.legend()
    return _png(figure)


@_defaults()
def settings(rows: list[tuple[str, float, tuple[float, float] | None]], title: str = "") -> "Picture":
    """Draw each setting's mean validation accuracy and 95 % interval, first on top; return a PNG, 8 inches wide."""
    figure = Figure(figsize=(8, 1.2 + 0.3 * len(rows)), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots()
    for place, (_, mean, interval) in enumerate(rows):
        axes.plot(mean, place, marker="o", color=GROUPS[0])
        if interval is not None:
            axes.plot(interval, [place, place], color=GROUPS[0], linewidth=1.5)
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    axes.invert_yaxis()
    spread = ", mean and its 95 % interval" if any(interval for *_, interval in rows) else ""
    axes.set(xlabel=f"validation accuracy at the best epoch{spread}")
    axes.grid(alpha=0.3)
    return _png(figure)


@_defaults()
def confusion(matrix: list[list[int]], names: tuple[str, ...], title: str = "") -> "Picture":
    """Draw image counts, `matrix[true][predicted]`, shaded by fraction of the true class; return a PNG, 8 x 7 inches.

    With more than NUMBERED classes, the counts are left out, and only some classes are named.
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
    figure.colorbar(image, shrink=0.8, label="share of the true class")
    return _png(figure)


def _short(name: str) -> str:
    return name if len(name) <= 20 else f"{name[:19]}…"


def _count_epochs(axes: Axes, epochs: int) -> None:
    """Label the epoch axis, with whole numbers, and add a grid."""
    if epochs == 1:
        axes.set_xlim(0.5, 1.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="epoch")
    axes.grid(alpha=0.3)


def _scale_rates(axes: Axes, rates: list[float]) -> None:
    """Start the axis at zero; make it logarithmic if the rates span more than a factor of WIDE and none is zero."""
    finite = [rate for rate in rates if np.isfinite(rate)]
    if finite and min(finite) > 0 and max(finite) > WIDE * min(finite):
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, None)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))


def _draw_steps(axes: Axes, rates: list[float], **line) -> None:
    """Draw the rate of each epoch as steps: it changes only between epochs."""
    axes.stairs(rates, np.arange(len(rates) + 1) + 0.5, baseline=None, **line)


def _draw_group(axes: Axes, curves: list[list[float]], **line) -> None:
    values = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    together = np.flatnonzero(np.isfinite(values).all(0))
    if len(together):
        common = values[:, together]
        marker = "." if len(together) == 1 else None
        axes.plot(together + 1, common.mean(0), marker=marker, **line)
        if len(curves) > 1:
            axes.fill_between(together + 1, common.min(0), common.max(0), color=line["color"], alpha=0.15, linewidth=0)
    for row in values:
        alone = np.flatnonzero(np.isfinite(row))
        alone = alone[alone >= max(together, default=0)]
        if len(alone) > 1:
            axes.plot(alone + 1, row[alone], linewidth=THIN, **line)


class Picture(bytes):
    """The content of a PNG file, which a notebook displays as a picture."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<a picture, {len(self):,} bytes of PNG>"


def _png(figure: Figure) -> Picture:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Picture(buffer.getvalue())
