"""Whether runs can be pooled and compared: their data, their settings, and whether they have finished."""

import collections
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from cli.errors import BadInput
from comparing.histories import Training
from running.code import KERAS, TRAIN
from running.outcome import ALL_EPOCHS, EARLY_STOPPING, FINISHED, outcome, parts_of, program_of

STAND_IN = "NOT CIFAR-10"  # in the description of the stand-in data
STAND_IN_SHA256 = "92a150ce0d52c82b982bfc8a77e3f0c85affcb67222fdf4669411f555feb78ce"  # of the same data as a file
DATA = ("data_sha256", STAND_IN)
SURROUNDINGS = {  # what a part of a run records besides its settings, by key: what it is called
    "torch": "version of torch",
    "keras": "version of keras",
    "tensorflow": "version of tensorflow",
    "jax": "version of jax",
    "device": "kind of device",
    "device_name": "processor",
    "cpu_capability": "vector instructions",
    "threads": "number of threads",
    "processes": "number of processes",
    "variables": "variables for libraries",
}
CODE = "code of"  # a program: the fact is a hash of its code


class Rules(NamedTuple):
    """The options of train.py that matter when its runs are compared.

    `defaults` has the defaults of the options that affect the metrics, except those in which repetitions differ;
    `in_loss` names the options that change what the loss means.
    """

    defaults: dict
    in_loss: list[str]


def of_stand_in(run: Training) -> bool:
    described = STAND_IN in str(run.metrics.get("data", run.config.get("data")))
    return described or run.config.get("data_sha256") == STAND_IN_SHA256


def facts(run: Training, rules: Rules) -> dict:
    """Return a run's data and settings by name, as far as its files record them.

    A setting missing from config.json counts as its default. Without config.json, only metrics.json is used.
    """
    facts = {name: run.metrics[name] for name in ("model", "schedule") if name in run.metrics}
    if program_of(run.config):
        flags = run.config["flags"]
        facts.update({name: flags.get(name, default) for name, default in rules.defaults.items()})
        facts["model"] = run.config.get("model", facts["model"])  # Keras's network has its own name there
        facts["draws"] = "another run's" if flags.get("draws") else "its own"
    if run.config.get("backend"):
        facts["backend"] = run.config["backend"]  # Keras's
    if run.config.get("data_sha256"):
        facts["data_sha256"] = run.config["data_sha256"]
    codes = [part.get("code_sha256") for part in parts_of(run.config)]
    if program_of(run.config) and all(codes):
        facts[f"{CODE} {program_of(run.config)}"] = ", then ".join(dict.fromkeys(sha256[:8] for sha256 in codes))
    if run.metrics.get("data") or run.config.get("data"):
        facts[STAND_IN] = of_stand_in(run)
    return facts


def surroundings(groups: dict[str, list[Training]]) -> list[str]:
    """Return a line for each fact that is not a setting but may affect the metrics, if the runs differ in it."""
    lines = []
    for key, name in SURROUNDINGS.items():
        counts = {}
        for label, group in groups.items():
            counts[label] = collections.Counter(_surrounding(run, key) for run in group)
        values = {value for of_group in counts.values() for value in of_group if value}
        if len(values) > 1:
            of_groups = (f"{label}: {_counted(of_group)}" for label, of_group in counts.items() if any(of_group))
            lines.append(f"Not all have the same {name}: {'; '.join(of_groups)}.")
    return lines


def _counted(values: collections.Counter) -> str:
    if len(values) == 1:
        return str(next(iter(values)))
    return ", ".join(f"{value or 'not recorded'} ({count})" for value, count in values.items())


def _surrounding(run: Training, key: str) -> str | None:
    """Return the values of one of SURROUNDINGS in a run's parts; None if a part does not have it."""
    values = [(part | part.get("versions", {})).get(key) for part in parts_of(run.config)]
    return ", then ".join(dict.fromkeys(map(str, values))) if all(values) else None


# --- runs of one group ------------------------------------------------------------------------------------------------


def faults(group: list[Training], rules: Rules) -> list[str]:
    """Return why the runs cannot be pooled as repetitions of one training; an unknown fact is not a reason."""
    with_facts = [(run, facts(run, rules)) for run in group]
    faults = [*map(_not_finished, group), *_not_repetitions(group)]
    faults += [*_other_settings(with_facts), *_other_epochs(with_facts, rules)]
    return list(dict.fromkeys(filter(None, faults)))  # data that differ by hash and by name are one fault


def _not_finished(run: Training) -> str | None:
    """Return why a run of this project has not finished, or that its files belong to different runs."""
    if not program_of(run.config):
        return None
    try:
        end = outcome(Path(run.path))
    except BadInput as error:
        return str(error)
    return None if end.kind == FINISHED else f"{run.path} has not finished ({end.reason})"


def _not_repetitions(group: list[Training]) -> list[str]:
    """Return which runs of a group are copies of another one, or can differ from it only by rounding."""
    place = {id(run): number for number, run in enumerate(group)}
    original = {}
    for one, other in same_runs(group, group):
        if place[id(one)] < place[id(other)]:
            original.setdefault(id(other), one)
    faults, first = [], {}
    for run in group:
        drawn = draws(run)
        if id(run) in original:
            faults.append(f"{run.path} is a copy of {original[id(run)].path}")
        elif drawn in first:
            same = first[drawn].path
            faults.append(f"{run.path} has the seed and the initial weights of {same}, so it is not a repetition")
        if drawn is not None:
            first.setdefault(drawn, run)
    return faults


def _other_settings(with_facts: list[tuple[Training, dict]]) -> list[str]:
    """Return which runs have other data or settings than the first run that records them."""
    faults, first = [], {}
    for run, own in with_facts:
        for name, value in own.items():
            before, earlier = first.setdefault(name, (value, run))
            if before == value or name == "epochs":
                continue
            if name.startswith(CODE):
                faults.append(f"other code: {value} in {run.path}, {before} in {earlier.path}")
            elif name in DATA:
                faults.append(f"other data in {run.path} than in {earlier.path}")
            else:
                faults.append(f"{name}: {value!s:.60} in {run.path}, {before!s:.60} in {earlier.path}")
    return faults


def _other_epochs(with_facts: list[tuple[Training, dict]], rules: Rules) -> list[str]:
    """Return a fault if a run would have ended differently with the --epochs of another.

    One --epochs fits all runs if the smallest value that a run used up is enough for the others.
    """
    wanted = [(run, own["epochs"], own["schedule"]) for run, own in with_facts if "epochs" in own]
    if len({repr(epochs) for _, epochs, _ in wanted}) < 2:
        return []
    first, was, _ = wanted[0]
    strange = any(not isinstance(epochs, int) for _, epochs, _ in wanted)  # a config.json that was edited
    laid_out = any(schedule != rules.defaults["schedule"] for *_, schedule in wanted)  # the schedule spans all epochs
    if strange or laid_out:
        run, epochs, _ = next(one for one in wanted if one[1] != was)
        return [f"epochs: {epochs!s:.60} in {run.path}, {was!s:.60} in {first.path}"]
    used_up = [(epochs, run) for run, epochs, _ in wanted if not _stopped_early(run)]
    if not used_up:
        return []
    least, least_run = min(used_up, key=lambda pair: pair[0])
    for run, epochs, _ in wanted:
        if epochs > least and not (_stopped_early(run) and run.epochs <= least):
            return [f"epochs: {epochs} in {run.path}, {least} in {least_run.path}"]
    return []


def _stopped_early(run: Training) -> bool:
    return run.metrics.get("stopped") == EARLY_STOPPING


def draws(run: Training) -> tuple | None:
    """Return what determines all random draws of a train.py run: runs with equal values differ only by rounding.

    None if unknown, and for Keras: on TensorFlow, the seed does not fix the order of the images.
    """
    keras = str(run.metrics.get("model")).startswith("keras") or program_of(run.config) not in (None, TRAIN)
    begun = tuple(run.metrics.get(name) for name in ("seed", "initial_weights"))
    return None if keras or None in begun else begun


# --- one run in two places --------------------------------------------------------------------------------------------


def same_run(one: Training, other: Training) -> bool:
    """Return whether two histories come from one training: all common columns are equal in all common epochs."""
    shared = sorted((one.history.keys() & other.history.keys()) - {"learning_rate"})  # the same in many trainings
    epochs = min(one.epochs, other.epochs)
    first, second = ([run.history[name][:epochs] for name in shared] for run in (one, other))
    return bool(shared) and repr(first) == repr(second)  # in repr, NaN equals NaN


def same_runs(ones: list[Training], others: list[Training]) -> list[tuple[Training, Training]]:
    """Return the pairs of a run in `ones` and a run in `others` that are the same training.

    Only runs with an equal first epoch are compared, so the work grows with the number of runs, not of pairs.
    """
    pairs = []
    for columns, own in _by_columns(ones).items():
        for other_columns, other_own in _by_columns(others).items():
            shared = [name for name in columns if name in other_columns and name != "learning_rate"]
            if not shared:
                continue
            starting = collections.defaultdict(list)
            for one in own:
                starting[_first_epoch(one, shared)].append(one)
            for other in other_own:
                pairs += [(one, other) for one in starting[_first_epoch(other, shared)] if same_run(one, other)]
    return pairs


def _by_columns(runs: list[Training]) -> dict[tuple[str, ...], list[Training]]:
    groups = collections.defaultdict(list)
    for run in runs:
        groups[tuple(sorted(run.history))].append(run)
    return groups


def _first_epoch(run: Training, columns: list[str]) -> str:
    return repr([run.history[name][0] for name in columns])


def all_of_stand_in(runs: Iterable[Training]) -> list[str]:
    """Return a line if all runs use the stand-in data; otherwise nothing."""
    return [f"All runs use the stand-in data, {STAND_IN}."] if all(map(of_stand_in, runs)) else []


def in_both(groups: dict[str, list[Training]]) -> list[tuple[Training, Training]]:
    """Return the runs that are in two groups, each with its copy: all their figures are equal, even the times."""
    return [
        (one, other)
        for first, second in itertools.combinations(groups.values(), 2)
        for one, other in same_runs(first, second)
        if repr((one.metrics, one.history)) == repr((other.metrics, other.history))  # in repr, NaN equals NaN
    ]


def stopped_otherwise(groups: dict[str, list[Training]]) -> list[str]:
    """Return a line for each run that was ended by a callback other than early stopping."""
    return [
        f"{run.path} was ended by a callback, after epoch {run.epochs}: {run.metrics['stopped']!s:.60}."
        for group in groups.values()
        for run in group
        if run.metrics.get("stopped", ALL_EPOCHS) not in (EARLY_STOPPING, ALL_EPOCHS)
    ]


# --- several groups ---------------------------------------------------------------------------------------------------


def differences(groups: dict[str, list[Training]], rules: Rules) -> tuple[list[str], list[str]]:
    """Return what makes the groups not comparable (data or loss), and the other settings in which they differ."""
    of_groups = {label: [facts(run, rules) for run in group] for label, group in groups.items()}
    differing = {}
    names = [*DATA, *rules.in_loss, "backend", "draws", *rules.defaults, f"{CODE} {TRAIN}", f"{CODE} {KERAS}"]
    for name in dict.fromkeys(names):
        values = {}
        for label, of_runs in of_groups.items():
            own = dict.fromkeys(str(one[name]) for one in of_runs if name in one)
            if own:
                values[label] = list(own)
        if len({tuple(sorted(own)) for own in values.values()}) > 1:
            differing[name] = values
    not_comparable = []
    other_data = [values for name, values in differing.items() if name in DATA]
    if other_data:
        not_comparable.append(f"The data differ between {' and '.join(other_data[0])}.")
    loss = {name: values for name, values in differing.items() if name in rules.in_loss}
    if loss:
        not_comparable.append(f"The loss is not the same: {_by_group(loss)}.")
    settings = {name: values for name, values in differing.items() if name not in (*DATA, *rules.in_loss)}
    return not_comparable, [f"Settings that differ: {_by_group(settings)}."] if settings else []


def repeated(groups: dict[str, list[Training]]) -> list[str]:
    """Return a line for each pair of runs in different groups that are equal in all common epochs."""
    return [
        f"Identical in every epoch: {one.path} and {other.path}."
        for first, second in itertools.combinations(groups.values(), 2)
        for one, other in same_runs(first, second)
    ]


def _by_group(differing: dict[str, dict[str, list[str]]]) -> str:
    labels = dict.fromkeys(label for values in differing.values() for label in values)
    parts = []
    for label in labels:
        own = [f"{name} {' or '.join(values[label]):.60}" for name, values in differing.items() if label in values]
        parts.append(f"{label}: {', '.join(own)}")
    return "; ".join(parts)


def unknown(groups: dict[str, list[Training]]) -> list[str]:
    """Return lines on what the files do not record: data, settings, code, or whether a run finished."""
    lacking = {
        "data": lambda run: not (run.config.get("data_sha256") or of_stand_in(run)),
        "settings": lambda run: not program_of(run.config),
        "code": lambda run: (
            program_of(run.config) is not None and not all(part.get("code_sha256") for part in parts_of(run.config))
        ),
        "whether it finished": lambda run: not (program_of(run.config) or run.metrics),
    }
    parts = []
    for what, lacks in lacking.items():
        labels = []
        for label, group in groups.items():
            count = sum(map(lacks, group))
            if count:
                labels.append(label if count == len(group) else f"{count} of the {len(group)} runs of {label}")
        if labels == list(groups) and len(labels) > 2:
            labels = ["all"]
        if labels:
            parts.append(f"{what} ({', '.join(labels)})")
    lines = [f"Not known from the files: {', '.join(parts)}."] if parts else []
    return lines + _data_where_some_is_unknown(groups, lacking["data"])


def _data_where_some_is_unknown(groups: dict[str, list[Training]], lacks: Callable[[Training], bool]) -> list[str]:
    """Describe each group's known data if some are unknown, so that the user can judge whether they match."""
    if not any(lacks(run) for group in groups.values() for run in group):
        return []
    with_data = {label: [run for run in group if not lacks(run)] for label, group in groups.items()}
    described = {
        label: dict.fromkeys(run.config.get("data", run.metrics.get("data")) for run in runs)
        for label, runs in with_data.items()
    }
    lines = {label: " or ".join(str(name) for name in names if name) for label, names in described.items()}
    return [f"Data of {label}: {names:.200}." for label, names in lines.items() if names]
