"""Which trainings may stand beside each other: their data, their settings, and whether they have finished."""

import itertools

from harness import histories
from harness.errors import BadInput
from harness.histories import Training
from harness.run import ALL_EPOCHS, EARLY_STOPPING

STAND_IN = "NOT CIFAR-10"  # in the description of its data
STAND_IN_SHA256 = "92a150ce0d52c82b982bfc8a77e3f0c85affcb67222fdf4669411f555feb78ce"  # as a file it is the same data
LOSS = ("l2", "label_smoothing")  # what the loss is made of, besides the cross-entropy
DATA = ("data_sha256", STAND_IN)


def of_stand_in(run: Training) -> bool:
    described = STAND_IN in str(run.metrics.get("data", run.config.get("data")))
    return described or run.config.get("data_sha256") == STAND_IN_SHA256


def facts(run: Training, defaults: dict) -> dict:
    """What is known of a run's data and settings, by name; `defaults` has the settings that decide a figure.

    A setting that config.json lacks counts as its default. Without config.json there is only what metrics.json says.
    """
    known = {name: run.metrics[name] for name in ("model", "schedule") if name in run.metrics}
    if of_this_project(run):
        flags = run.config["flags"]
        known |= {name: flags.get(name, default) for name, default in defaults.items()}
        known["model"] = run.config.get("model", known["model"])  # Keras's network has a name of its own there
        known["draws"] = "another run's" if flags.get("draws") else "its own"
    if run.config.get("backend"):
        known["backend"] = run.config["backend"]  # Keras's
    if run.config.get("data_sha256"):
        known["data_sha256"] = run.config["data_sha256"]
    if run.metrics.get("data") or run.config.get("data"):
        known[STAND_IN] = of_stand_in(run)
    return known


def of_this_project(run: Training) -> bool:
    """Tell whether its config.json is one of train.py's or Keras's side's: other programs write such a file too."""
    return isinstance(run.config.get("flags"), dict)


def unfinished(run: Training) -> str | None:
    """Say why a run's directory is that of a run which has not finished; None if it has, or if that is not known."""
    if of_this_project(run) and not run.metrics:
        return "no metrics.json"
    epochs = run.metrics.get("epochs", run.epochs)
    if epochs != run.epochs:
        return f"{run.epochs} epochs in its history, {epochs!r:.20} in metrics.json"
    wanted = run.config["flags"].get("epochs", epochs) if of_this_project(run) else epochs
    goes_on = run.metrics.get("stopped") == ALL_EPOCHS and isinstance(wanted, int) and wanted > epochs
    return f"{epochs} epochs in metrics.json, and it was told to go on to {wanted!r:.20}" if goes_on else None


def same_run(one: Training, other: Training) -> bool:
    """Tell whether two histories are one training's: every figure that both have, in every epoch that both have."""
    shared = sorted((one.history.keys() & other.history.keys()) - {"learning_rate"})  # which many trainings have alike
    epochs = min(one.epochs, other.epochs)
    first, second = ([run.history[name][:epochs] for name in shared] for run in (one, other))
    return bool(shared) and repr(first) == repr(second)  # NaN is itself there


def refuse_copies(first: list[Training], second: list[Training]) -> None:
    """Raise BadInput if a run stands in both groups, by its times too: against itself anything is equivalent."""
    for one, other in itertools.product(first, second):
        if one.metrics and one.metrics == other.metrics and same_run(one, other):
            raise BadInput(f"--within: {other.path} is {one.path} again, to the second; leave it out of one group")


def same_draws(one: Training, other: Training) -> bool:
    """Tell whether two runs of train.py began and drew alike, so that only rounding can differ.

    Keras's can be two trainings all the same: on TensorFlow the seed does not fix its order.
    """
    keras = [str(run.metrics.get("model")).startswith("keras") or "backend" in run.config for run in (one, other)]
    begun = [[run.metrics.get(name) for name in ("seed", "initial_weights")] for run in (one, other)]
    return not any(keras) and None not in begun[0] and begun[0] == begun[1]


def same_end(pair: tuple[tuple[Training, dict], ...], defaults: dict) -> bool:
    """Tell whether two runs, each with its `facts`, would have ended as they did with one and the same --epochs."""
    if not all(isinstance(known["epochs"], int) for _, known in pair):
        return False  # a stranger's config.json
    if any(known["schedule"] != defaults["schedule"] for _, known in pair):
        return False  # other schedules are laid out over all epochs
    (less, known), (more, _) = sorted(pair, key=lambda run: run[1]["epochs"])
    early = [run.metrics.get("stopped") == EARLY_STOPPING for run in (less, more)]
    return early[0] or (early[1] and more.epochs <= known["epochs"])


def faults(group: list[Training], defaults: dict) -> list[str]:
    """Say what keeps runs from being pooled as repetitions of one training; nothing where nothing is known."""
    found = [f"{run.path} has not finished ({unfinished(run)})" for run in group if unfinished(run)]
    for run in group:
        flags = run.config["flags"] if of_this_project(run) else {}
        fault = histories.contradiction(run.metrics, flags, run.history)
        found += [f"{run.path}: {fault}"] if fault else []
    for one, other in itertools.combinations(group, 2):
        if same_run(one, other):
            found.append(f"{other.path} is {one.path} again, figure by figure")
        elif same_draws(one, other):
            found.append(f"{other.path} has the seed and the initial weights of {one.path}, and so is no repetition")
    first: dict[str, tuple] = {}
    told = [(run, facts(run, defaults)) for run in group]
    for run, known in told:
        for name, value in known.items():
            was, before = first.setdefault(name, (value, run))
            if was == value:
                continue
            if name in DATA:
                found.append(f"{run.path} has other data than {before.path}")
            elif name != "epochs":
                found.append(f"{run.path} has {name} {value!s:.60} and {before.path} {was!s:.60}")
    for pair in itertools.combinations([(run, known) for run, known in told if "epochs" in known], 2):
        (one, was), (other, known) = pair
        if was["epochs"] != known["epochs"] and not same_end(pair, defaults):
            found.append(f"{other.path} has epochs {known['epochs']!s:.60} and {one.path} {was['epochs']!s:.60}")
            break
    return list(dict.fromkeys(found))  # data differ by hash and by name, which is one thing


def differences(groups: dict[str, list[Training]], defaults: dict) -> tuple[list[str], list[str]]:
    """Say what makes groups not comparable, data or loss, and then in which other settings they differ."""
    known = {label: [facts(run, defaults) for run in group] for label, group in groups.items()}
    fatal, settings = {}, {}
    for name in dict.fromkeys([*DATA, *LOSS, "backend", "draws", *defaults]):
        values = {
            label: list(dict.fromkeys(str(f[name]) for f in found if name in f)) for label, found in known.items()
        }
        values = {label: found for label, found in values.items() if found}
        if len({tuple(sorted(found)) for found in values.values()}) > 1:
            (fatal if name in DATA + LOSS else settings)[name] = values
    said = []
    if fatal.keys() & {*DATA}:
        said.append(f"The data differ between {' and '.join(next(iter(fatal.values())))}.")
    loss = {name: values for name, values in fatal.items() if name in LOSS}
    if loss:
        said.append(f"The loss is not the same: {_by_group(loss)}.")
    return said, [f"Settings that differ: {_by_group(settings)}."] if settings else []


def repeated(groups: dict[str, list[Training]]) -> list[str]:
    """Say which runs of different groups are one and the same, in as many epochs as both have."""
    said = []
    for first, second in itertools.combinations(groups.values(), 2):
        for one, other in itertools.product(first, second):
            if same_run(one, other):
                said.append(f"The same figures in each epoch: {one.path} and {other.path}.")
    return said


def _by_group(values: dict[str, dict[str, list[str]]]) -> str:
    labels = dict.fromkeys(label for found in values.values() for label in found)
    parts = []
    for label in labels:
        has = [f"{name} {' or '.join(found[label]):.60}" for name, found in values.items() if label in found]
        parts.append(f"{label}: {', '.join(has)}")
    return "; ".join(parts)


def unknown(groups: dict[str, list[Training]]) -> list[str]:
    """Say in a line what the files of each group do not tell of data, settings and end; nothing if they tell all."""
    lacking = {
        "data": lambda run: not (run.config.get("data_sha256") or of_stand_in(run)),
        "settings": lambda run: not of_this_project(run),
        "whether it finished": lambda run: not (of_this_project(run) or run.metrics),
    }
    said = []
    for what, lacks in lacking.items():
        labels = []
        for label, group in groups.items():
            count = sum(map(lacks, group))
            if count:
                labels.append(label if count == len(group) else f"{count} of the {len(group)} runs of {label}")
        if labels:
            said.append(f"{what} ({', '.join(labels)})")
    return [f"Not known from the files: {', '.join(said)}."] if said else []
