"""What a run reports at its start and its end: printed lines, metrics.json, pictures."""

import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import plots
from callbacks import SCHEDULES, History, Stop
from cli.errors import BadInput, first_line
from cli.messages import counted, say, shortened
from metrics import Figures
from options import Options
from running import arithmetic, code, files, machine
from running import history as history_file
from running.code import TRAIN
from running.directory import Run
from running.outcome import ALL_EPOCHS, CONFIG, CONFUSION, CURVES, HISTORY, METRICS, WEIGHTS, parts_of
from sources.source import numbered

UNSEEN = {  # by key of data.unseen: the part with the missing class, and how the message ends
    "validation": ("training", "but some validation images are: {uneven}"),
    "test": ("training", "but some test images are"),
    "no": ("training", "and no other image is either: labels start at 0"),
    "not validation": ("validation", "but some training images are: {uneven}"),
    "not test": ("test", "so test accuracy says nothing about that"),
}


def beginning(
    options: Options, config: dict, unseen: dict[str, list[int]], uneven: str, repeated: dict[str, int]
) -> None:
    """Print what is trained, on which data, and the run's directory.

    `config` is the content of config.json, `unseen` comes from `data.unseen`, `uneven` is the advice for a part with
    missing classes, and `repeated` is the number of images of each part that are training images too.
    """
    why = machine.why_no_cuda() if config["given"]["device"] == "auto" else None
    if why:
        say(f"No CUDA device: training on the CPU ({why}).")
    processes = config["processes"]
    images = config["images"]
    threads = counted(config["threads"], "thread")
    if processes > 1:
        threads += f" in each of {processes} processes"
    parameters = f"{config['parameters']:,} parameters"
    precision = "mixed precision (bfloat16)" if options.mixed_precision else options.dtype
    say(f"{title(options)}, {parameters}, seed {options.seed}, {config['device_name']}, {threads}, {precision}")
    why_not = machine.why_not_bfloat16(options.device)
    if options.mixed_precision and why_not:
        say(f"--mixed-precision is not recommended here: {why_not}.")
    for variable in arithmetic.shortening():
        say(f"{variable} is set: libraries may compute products with fewer bits than {options.dtype} has.")
    names = config["class_names"]
    shape = "x".join(map(str, config["image_shape"]))
    counts = ", ".join(f"{count:,} {part}" for part, count in images.items())
    of_names = "" if names == list(numbered(len(names))) else f": {shortened(names)}"
    say(f"{config['data']}: {counts} images of {shape}, {len(names)} classes{of_names}")
    if options.augment:
        mirrored = "" if options.no_mirror else "mirrored or not, and "
        say(f"Training images are {mirrored}shifted by up to {options.shift} pixels, at random.")
    for part, classes in unseen.items():
        if classes:
            who, why = UNSEEN[part]
            labels = shortened([names[number] for number in classes])
            say(f"No {who} image is labelled {labels}, {why.format(uneven=uneven)}.")
    for part, count in repeated.items():
        if count:
            say(f"{count:,} of {images[part]:,} {part} images are training images too: accuracy on them is too high.")
    say(f"Run directory: {options.out}")


def end(
    options: Options,
    run: Run,
    history: History,
    best_epoch: int,
    stop: Stop | None,
    figures: Figures,
    mirrored: Figures | None,
) -> dict:
    """Write metrics.json and the pictures of a run that has ended, print a summary, and return metrics.json's content.

    `figures` are the test metrics of the best weights; `mirrored` are the same, but with logits averaged with those of
    the mirror images. `best_epoch` counts from 0.
    """
    dtype = getattr(torch, options.dtype)
    names = run.config["class_names"]
    cutting = SCHEDULES[options.schedule].cutting
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
        "best_epoch": best_epoch + 1,
        "best_epoch_logs": history.logs[best_epoch],
        "stopped": stop.reason if stop else ALL_EPOCHS,
        "final": stop is None or stop.final,
        "schedule": options.schedule,
        "learning_rate_cuts": history.cuts if cutting else [],
        "learning_rate_after_epoch": history.learning_rates,
        "seconds_per_epoch": history.seconds,
        "images_per_second": run.config["images"]["training"] / statistics.median(history.seconds),
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
    """Return the functions that draw the pictures of a run that has ended, by file name."""

    def caption() -> str:
        accuracy = f"test accuracy {metrics['test_accuracy']:.4f}"
        return f"{title(options)}, seed {options.seed}, {options.source().title()}: {accuracy}"

    def curves() -> bytes:
        cuts = [cut["epoch"] for cut in metrics["learning_rate_cuts"]]
        loss = "loss with L2 penalty" if options.l2 else "loss"
        return plots.curves(history.logs, metrics["best_epoch"], cuts, loss, caption())

    def confusion() -> bytes:
        return plots.confusion(metrics["test_confusion"], tuple(metrics["test_per_class"]), caption())

    return {CURVES: curves, CONFUSION: confusion}


def finished_already(options: Options, run: Run, metrics: dict) -> tuple[dict, History]:
    """Print the result of a run that had already finished; return its `metrics`, and its history if it can be read."""
    say(f"finished: {metrics['test_accuracy']:.4f}, {options.out}")
    say(f"It had already finished, after epoch {metrics['epochs']}: {metrics['stopped']}.")
    trained_by = [part.get("code_sha256") for part in parts_of(files.read_json(options.out / CONFIG))]
    if set(trained_by) - {None, code.sha256(TRAIN)}:
        say("It was trained with other code, whose results may differ; to train with this code, pass another --out.")
    history = History()
    try:
        logs = history_file.read(options.out / HISTORY)
        rates, seconds = metrics["learning_rate_after_epoch"], metrics["seconds_per_epoch"]
        history.load_state_dict({"logs": logs, "learning_rates": rates, "seconds": seconds})
    except (BadInput, ValueError, KeyError, TypeError) as error:
        say(f"Its history cannot be read back ({first_line(error)}).")
    run.draw(pictures(options, metrics, history))
    last_lines(options, metrics)
    return metrics, history


def last_lines(options: Options, metrics: dict) -> None:
    """Print the test accuracy, the paths of the files, and the commands to run next."""
    say(f"Test accuracy: {metrics['test_accuracy']:.4f}")
    for what, name in (("Curves", CURVES), ("Confusion matrix", CONFUSION), ("Metrics", METRICS), ("Epochs", HISTORY)):
        if (options.out / name).exists():
            say(f"{what}: {shlex.quote(str(options.out / name))}")
    say(f"To compare it with another run or history: {command_on('compare.py', options.out)} OTHER")
    if (options.out / WEIGHTS).exists():
        say(f"To classify images: {command_on('predict.py', options.out)} IMAGE")


def command_on(script: str, out: Path) -> str:
    """Return the command line, except its last words, that runs `script` on the run in `out` from this folder."""
    path = script if machine.ROOT.samefile(Path.cwd()) else str(machine.ROOT / script)
    run = f"./{out}" if str(out).startswith("-") else str(out)
    return shlex.join([sys.orig_argv[0], path, run])


def title(options: Options) -> str:
    return options.model if options.recipe is None else f"recipe {options.recipe}, {options.model}"


def keras_line(steps: int, seconds: float, logs: dict[str, float]) -> str:
    """Format an epoch's metrics as Keras's `verbose=2` does."""
    per_step = seconds / steps
    if per_step >= 1:
        step_time = f"{per_step:.0f}s"
    elif per_step >= 1e-3:
        step_time = f"{per_step * 1e3:.0f}ms"
    else:
        step_time = f"{per_step * 1e6:.0f}us"
    figures = []
    for name, value in logs.items():
        figures.append(f"{name}: {value:.4f}" if value > 1e-3 else f"{name}: {value:.4e}")
    return " - ".join([f"{steps}/{steps}", f"{seconds:.0f}s", f"{step_time}/step", *figures])


def reading(logs: list[dict[str, float]], metrics: dict, max_epochs: int, cutting: bool) -> str:
    """Return a few lines that describe the curves of a run that has ended; epochs count from 1.

    `cutting` means that the schedule changes the rate only by cuts between epochs.
    """
    best_epoch, epochs = metrics["best_epoch"], len(logs)
    lines = ["Accuracy          training  validation"]
    for name, epoch in (("first", 1), ("best", best_epoch), ("last", epochs)):
        figures = logs[epoch - 1]
        lines.append(f"  {f'{name} epoch {epoch}':<16}{figures['accuracy']:>8.4f}{figures['val_accuracy']:>12.4f}")
    best = logs[best_epoch - 1]
    gap = 100 * (best["accuracy"] - best["val_accuracy"])
    side = f"{abs(gap):.1f} points {'above' if gap > 0 else 'below'}" if abs(gap) >= 0.05 else "equal to"
    lines.append(f"At the best epoch training accuracy is {side} validation.")
    cuts = metrics["learning_rate_cuts"]
    if not cutting:
        lines.append(f"The learning rate followed the {metrics['schedule']} schedule.")
    elif cuts:
        steps = ", ".join(f"to {cut['learning_rate']:.4g} after epoch {cut['epoch']}" for cut in cuts)
        lines.append(f"Learning rate cut {steps}.")
    else:
        lines.append("The learning rate was never cut.")
    if epochs == 1:
        lines.append("One epoch does not show a trend in validation loss.")
    elif best_epoch < epochs:
        lines.append(f"Validation loss has not improved since epoch {best_epoch} ({best['val_loss']:.4f}).")
    else:
        lines.append(f"Validation loss was lowest in the last epoch ({best['val_loss']:.4f}).")
    lines.append(f"Training ended after epoch {epochs} of {max_epochs}: {metrics['stopped']}.")
    if not metrics["final"]:
        lines.append("The run is not complete: --resume continues it.")
    return "\n".join(lines)


def per_class(confusion: list[list[int]], names: tuple[str, ...]) -> dict[str, dict]:
    """Return image count and accuracy by class; `confusion[i][j]` counts the images of class i predicted as j."""
    return {
        name: {"images": sum(row), "accuracy": row[number] / sum(row) if any(row) else None}
        for number, (name, row) in enumerate(zip(names, confusion, strict=True))
    }


def most_confused(confusion: list[list[int]], names: tuple[str, ...], count: int = 3) -> str:
    """Return a line that names the `count` pairs of classes with the most images confused, in either direction."""
    pairs = sorted(
        ((confusion[i][j] + confusion[j][i], i, j) for i in range(len(names)) for j in range(i)),
        key=lambda pair: -pair[0],
    )
    confused = [f"{names[j]} and {names[i]} ({images:,})" for images, i, j in pairs[:count] if images]
    return f"Most confused: {', '.join(confused)}." if confused else "No image was predicted as another class."
