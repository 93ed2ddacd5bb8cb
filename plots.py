"""Pictures of runs, drawn without pyplot and its global state."""

import io

import numpy as np
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
GROUPS = ("#00468b", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
STYLES = (("--", "training"), ("-", "validation and learning rate"))


def curves(
    history: list[dict[str, float]], learning_rates: list[float], best_epoch: int, cuts: list[int], title: str
) -> bytes:
    """Draw accuracy, loss and learning rate of one run and return the picture as PNG, 14 x 4 inches.

    `learning_rates` are those after each epoch; `best_epoch` and `cuts` (the epochs that ended in a cut) count from 1.
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
    loss.set(ylabel="loss with L2 penalty")
    rate.plot(epochs, learning_rates, color="#00468b", marker="o", markersize=4, label="after the epoch")
    rate.set(title="Learning rate", ylabel="learning rate", ylim=(0, None))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (accuracy, loss, rate):
        axes.axvline(best_epoch, **BEST, label=f"best epoch ({best_epoch})")
        for number, epoch in enumerate(cuts):
            axes.axvline(epoch, **CUT, label="learning rate cut" if number == 0 else None)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def overlay(groups: dict[str, list[dict[str, list[float]]]]) -> bytes:
    """Draw the histories of several groups of runs over each other and return the picture as PNG, 14 x 4.5 inches.

    A group has one colour: the mean of its runs, and the band from their least to their greatest. Where runs differ in
    length both go as far as half of them went. Columns a history lacks are left out.
    """
    figure = Figure(figsize=(14, 4.5), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)
    colours = GROUPS if len(groups) <= len(GROUPS) else colormaps["turbo"](np.linspace(0, 1, len(groups)))
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
    all_axes["loss"].set(ylabel="loss with L2 penalty")
    all_axes["learning rate"].set(ylabel="the epoch's learning rate", ylim=(0, None))
    all_axes["learning rate"].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    handles += [Line2D([], [], color="0.3", linestyle=style, label=label) for style, label in STYLES]
    for text in figure.legend(handles=handles, loc="outside lower center", ncols=4).get_texts():
        text.set_parse_math(False)
    return _png(figure)


def confusion(matrix: list[list[int]], names: tuple[str, ...], title: str) -> bytes:
    """Draw `matrix[true][predicted]`, images, shaded by their fraction of the true class; PNG, 8 x 7 inches."""
    counts = np.array(matrix)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    figure.suptitle(title).set_parse_math(False)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(names))
    axes.set_xticks(ticks, names, rotation=45, ha="right")
    axes.set_yticks(ticks, [f"{name}  {share[i, i]:.1%}" for i, name in enumerate(names)])
    axes.set(xlabel="predicted class", ylabel="true class, and its recall")
    for i in ticks:
        for j in ticks:
            axes.text(j, i, counts[i, j], ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
    figure.colorbar(image, shrink=0.8)
    return _png(figure)


def _draw_group(axes: Axes, curves: list[list[float]], colour, style: str) -> None:
    values = np.full((len(curves), max(map(len, curves))), np.nan)
    for row, curve in zip(values, curves, strict=True):
        row[: len(curve)] = curve
    shown = np.isfinite(values).sum(0) * 2 >= len(curves)
    values, epochs = values[:, shown], np.flatnonzero(shown) + 1
    axes.plot(epochs, np.nanmean(values, 0), color=colour, linestyle=style, marker="." if len(epochs) == 1 else None)
    if len(curves) > 1:
        axes.fill_between(epochs, np.nanmin(values, 0), np.nanmax(values, 0), color=colour, alpha=0.15, linewidth=0)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
