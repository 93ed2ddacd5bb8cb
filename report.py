"""What a run says of itself at its beginning and its end: lines on the terminal, metrics.json, pictures."""

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import data
import plots
from callbacks import SCHEDULES, EarlyStopping, History
from harness import histories
from harness.console import say
from harness.environment import ROOT
from harness.errors import BadInput, first_line
from harness.run import ALL_EPOCHS, CONFUSION, CURVES, EARLY_STOPPING, HISTORY, METRICS, STOPPED, Run
from metrics import Figures
from options import Options

UNSEEN = {  # what training lacks a class of, and what it may come from
    "validation": "which validation images are: the last images are for validation, so shuffle sorted arrays first",
    "test": "which test images are",
    "no": "and no other either: labels count from 0",
}


def beginning(options: Options, config: dict, unseen: dict[str, list[int]]) -> None:
    """Say what is trained, on what, and where it goes; `config` is config.json, `unseen` data.unseen's by part."""
    processes, images = config["processes"], config["images"]
    threads = f"{config['threads']} threads"
    if processes > 1:
        threads += f" in each of {processes} processes"
    parameters = f"{config['parameters']:,} parameters"
    say(f"{title(options)}, {parameters}, seed {options.seed}, {config['device_name']}, {threads}")
    names, shape = config["class_names"], "x".join(map(str, config["image_shape"]))
    counts = ", ".join(f"{count:,} {part}" for part, count in images.items())
    say(f"{config['data']}: {counts} images of {shape}, {len(names)} classes")
    if options.augment:
        mirrored = "" if options.no_mirror else "mirrored or not, and "
        say(f"Training images are {mirrored}shifted by up to {options.shift} pixels, at random.")
    for part, classes in unseen.items():
        if classes:
            said = ", ".join(names[number] for number in classes[:5])
            if len(classes) > 5:
                said += f" and {len(classes) - 5} more"
            say(f"No training image is labelled {said}, {UNSEEN[part]}.")
    say(f"Run directory: {options.out}")


def end(
    options: Options, run: Run, history: History, stopping: EarlyStopping, figures: Figures, mirrored: Figures | None
) -> dict:
    """Write and say what is to be known of the finished run: `figures` are the best weights' on the test images.

    `mirrored` are those with the logits of each image's mirror image averaged in. Returns what metrics.json holds.
    """
    dtype, names = getattr(torch, options.dtype), run.config["class_names"]
    cutting = SCHEDULES[options.schedule].cutting
    reason = ALL_EPOCHS if len(history) == options.epochs else STOPPED  # by another callback
    if stopping.should_stop:
        reason = EARLY_STOPPING
    metrics = {
        "model": options.model,
        "data": run.config["data"],
        "seed": options.seed,
        "initial_weights": run.record["initial_weights"],
        "parameters": run.config["parameters"],
        **figures.logs(dtype, "test_"),
        "test_accuracy_mirrored": mirrored and mirrored.logs(dtype)["accuracy"],
        "test_per_class": per_class(figures.confusion, names),
        "test_confusion": figures.confusion,
        "epochs": len(history),
        "best_epoch": stopping.best_epoch + 1,
        "best_epoch_logs": history.logs[stopping.best_epoch],
        "stopped": reason,
        "schedule": options.schedule,
        "learning_rate_cuts": history.cuts if cutting else [],
        "learning_rate_after_epoch": history.learning_rates,
        "seconds_per_epoch": history.seconds,
        "images_per_second": run.config["images"]["training"] * len(history) / sum(history.seconds),
        "bits_changed": run.record["bits_changed"],
    }
    run.finish(metrics, pictures(options, metrics, history))
    say("", reading(history.logs, metrics, options.epochs, cutting))
    say(most_confused(figures.confusion, names))
    if mirrored:
        say(f"Test accuracy, logits averaged with the mirror image's: {metrics['test_accuracy_mirrored']:.4f}")
    last_lines(options, metrics)
    return metrics


def pictures(options: Options, metrics: dict, history: History) -> dict[str, Callable[[], bytes]]:
    """Return what draws each picture of the finished run, by the name of its file."""

    def caption() -> str:
        accuracy = f"test accuracy {metrics['test_accuracy']:.4f}"
        return f"{title(options)}, seed {options.seed}, {metrics['data']}: {accuracy}"

    def curves() -> bytes:
        rates, cuts = history.learning_rates, [cut["epoch"] for cut in metrics["learning_rate_cuts"]]
        loss = "loss with L2 penalty" if options.l2 else "loss"
        return plots.curves(history.logs, rates, metrics["best_epoch"], cuts, loss, caption())

    def confusion() -> bytes:
        return plots.confusion(metrics["test_confusion"], tuple(metrics["test_per_class"]), caption())

    return {CURVES: curves, CONFUSION: confusion}


def finished_already(options: Options, run: Run, metrics: dict) -> tuple[dict, History]:
    """Say what a run that had finished reached; return its `metrics`, and its history as far as it can be read."""
    say(f"finished: {metrics['test_accuracy']:.4f}, {options.out}")
    say(f"It was finished already, after epoch {metrics['epochs']}: {metrics['stopped']}.")
    if data.stamp(options.data) is None:
        say(f"Its data are no longer in {options.data}.")
    history = History()
    try:
        logs = histories.read_back(options.out / HISTORY)
        rates, seconds = metrics["learning_rate_after_epoch"], metrics["seconds_per_epoch"]
        history.load_state_dict({"logs": logs, "learning_rates": rates, "seconds": seconds})
    except (BadInput, ValueError, KeyError, TypeError) as error:
        say(f"Its history cannot be read back ({first_line(error)}).")
    run.draw(pictures(options, metrics, history))
    last_lines(options, metrics)
    return metrics, history


def last_lines(options: Options, metrics: dict) -> None:
    """Say the test accuracy, where the files are, and the commands that go on from here."""
    say(f"Test accuracy: {metrics['test_accuracy']:.4f}")
    for what, name in (("Picture", CURVES), ("Metrics", METRICS)):
        if (options.out / name).exists():
            say(f"{what}: {shlex.quote(str(options.out / name))}")
    say(f"To compare it with another run or history: {command_on('compare.py', options.out)} OTHER")
    say(f"To classify images: {command_on('predict.py', options.out)} IMAGE")
    if options.json:
        say(json.dumps(metrics))


def command_on(script: str, out: Path) -> str:
    """The command line, up to its last words, by which `script` takes the run in `out`, from the current folder."""
    path = script if ROOT.samefile(Path.cwd()) else str(ROOT / script)
    run = f"./{out}" if str(out).startswith("-") else str(out)
    return shlex.join([sys.orig_argv[0], path, run])


def title(options: Options) -> str:
    return options.model if options.recipe is None else f"recipe {options.recipe}, {options.model}"


def keras_line(steps: int, seconds: float, logs: dict[str, float]) -> str:
    """Format an epoch's figures as Keras's `verbose=2` does."""
    per_step = seconds / steps
    if per_step >= 1:
        step_time = f"{per_step:.0f}s"
    elif per_step >= 1e-3:
        step_time = f"{per_step * 1e3:.0f}ms"
    else:
        step_time = f"{per_step * 1e6:.0f}us"
    figures = []
    for name in ("accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"):
        form = ".4f" if logs[name] > 1e-3 else ".4e"
        figures.append(f"{name}: {logs[name]:{form}}")
    return " - ".join([f"{steps}/{steps}", f"{seconds:.0f}s", f"{step_time}/step", *figures])


def reading(logs: list[dict[str, float]], metrics: dict, max_epochs: int, cutting: bool) -> str:
    """Say in a few lines what the curves of a finished run show; epochs count from 1.

    `cutting` tells that the schedule only cuts the rate, between epochs.
    """
    best_epoch, epochs = metrics["best_epoch"], len(logs)
    lines = ["Accuracy          training  validation"]
    for name, epoch in (("first", 1), ("best", best_epoch), ("last", epochs)):
        figures = logs[epoch - 1]
        lines.append(f"  {f'{name} epoch {epoch}':<16}{figures['accuracy']:>8.4f}{figures['val_accuracy']:>12.4f}")
    best = logs[best_epoch - 1]
    gap = 100 * (best["accuracy"] - best["val_accuracy"])
    side = "above" if gap > 0 else "below"
    lines.append(f"At the best epoch training accuracy is {abs(gap):.1f} points {side} validation.")
    cuts = metrics["learning_rate_cuts"]
    if not cutting:
        lines.append(f"The learning rate followed the {metrics['schedule']} schedule.")
    elif cuts:
        said = ", ".join(f"to {cut['learning_rate']:.4g} after epoch {cut['epoch']}" for cut in cuts)
        lines.append(f"Learning rate cut {said}.")
    else:
        lines.append("The learning rate was never cut.")
    if best_epoch < epochs:
        lines.append(f"Validation loss has not improved since epoch {best_epoch} ({best['val_loss']:.4f}).")
    else:
        lines.append(f"Validation loss was still improving in the last epoch ({best['val_loss']:.4f}).")
    lines.append(f"Training ended after epoch {epochs} of {max_epochs}: {metrics['stopped']}.")
    return "\n".join(lines)


def per_class(confusion: list[list[int]], names: tuple[str, ...]) -> dict[str, dict]:
    """Images and accuracy of each class; `confusion[i][j]` counts the images of class i that were taken for j."""
    return {
        name: {"images": sum(row), "accuracy": row[number] / sum(row) if any(row) else None}
        for number, (name, row) in enumerate(zip(names, confusion, strict=True))
    }


def most_confused(confusion: list[list[int]], names: tuple[str, ...], count: int = 3) -> str:
    """Name in one line the `count` pairs of classes between which most images were confused, either way."""
    pairs = sorted(
        ((confusion[i][j] + confusion[j][i], i, j) for i in range(len(names)) for j in range(i)),
        key=lambda pair: -pair[0],
    )
    said = [f"{names[j]} and {names[i]} ({images:,})" for images, i, j in pairs[:count] if images]
    return f"Most confused: {', '.join(said)}." if said else "No image was taken for another class."
