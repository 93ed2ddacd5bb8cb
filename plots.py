"""Pictures of runs, drawn without pyplot and its global state."""

import io

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Far apart in lightness as well as in hue, and in line style, so that a grey print reads as well.
TRAINING = {"color": "#e69f00", "linestyle": "--", "label": "training"}
VALIDATION = {"color": "#00468b", "linestyle": "-", "label": "validation"}
BEST = {"color": "black", "linestyle": ":", "linewidth": 1.2}
CUT = {"color": "0.45", "linestyle": "-.", "linewidth": 1.0, "zorder": 1}


def curves(
    history: list[dict[str, float]], learning_rates: list[float], best_epoch: int, cuts: list[int], title: str
) -> bytes:
    """Draw accuracy, loss and learning rate of one run and return the picture as PNG, 14 x 4 inches.

    `learning_rates` are those after each epoch; `best_epoch` and `cuts` (the epochs that ended in a cut) count from 1.
    """
    figure = Figure(figsize=(14, 4), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12)  # inches between the panels
    figure.suptitle(title)
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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
