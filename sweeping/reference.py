"""The other side of a pair of runs: another framework's program for the same training as train.py's."""

from pathlib import Path

import torch

from cli.errors import BadInput
from cli.flags import flag_of
from running.lock import InUse, refuse_in_use
from running.outcome import EARLY_STOPPING, EMPTY, FINISHED, outcome, program_of
from sweeping.jobs import LOG, Job


class Reference:
    """A program that takes some of train.py's options, `--data`, `--seed`, `--out` and `--resume`.

    It writes a run's directory with initial_weights.npz, and with `program` in config.json. With `--resume`, it leaves
    a finished run as it is, and starts an interrupted one over. Subclasses define the rest.
    """

    label: str  # of its group in the comparison, and of its directories
    program: str  # the script, relative to the project's folder
    options: tuple[str, ...]  # of train.py's, those that it supports
    needless: tuple[str, ...] = ()  # of train.py's, those that it can ignore: they do not decide what is trained

    def refuse(self, flags: dict, not_default: list[str]) -> None:
        """Raise BadInput if it does not support one of train.py's `flags`."""
        lacking = [name for name in not_default if name not in (*self.options, *self.needless, "seed")]
        if lacking:
            options = ", ".join(f"{flag_of(name)} {flags[name]}" for name in lacking)
            raise BadInput(f"--{self.label}: {self.program} has no {options}; leave that or --{self.label} out")

    def describe(self) -> str:
        """Return a one-line description."""
        return f"{self.label}: {self.program}"

    def refuse_without(self, download: bool) -> None:
        """Raise BadInput if it does not start on this machine; Unavailable if `download` and it has no CIFAR-10."""

    def environment(self, device: torch.device, threads: int | None) -> dict[str, str]:
        """Return the environment variables of its process."""
        return {}

    def differences(self, config: dict, flags: dict) -> list[str]:
        """Return the options in which the finished run that wrote `config` differs from these `flags`."""
        had = config["flags"]
        names = (*self.options, "seed")
        return [f"{flag_of(name)} {had[name]}" for name in names if had.get(name, flags[name]) != flags[name]]

    def finished(self, out: Path, flags: dict) -> dict | None:
        """Return the metrics of the run in `out` if it has finished with these `flags`.

        Returns None if it is in progress or can be started. Raises BadInput otherwise.
        """
        try:
            refuse_in_use(out)
            end = outcome(out)
        except InUse:  # the sweep waits for it to end
            return None
        except BadInput:  # a process was killed while writing a file
            if (out / LOG).exists():
                return None
            raise
        if end.kind == EMPTY:
            return None
        if (end.config or end.kind == FINISHED) and program_of(end.config) != self.program:
            raise BadInput(f"{out}: the run there was not written by {self.program}; pass another --out after --")
        if end.kind != FINISHED:
            if (out / LOG).exists():
                return None
            raise BadInput(f"{out}: the run there was interrupted ({end.reason}), and no sweep started it; delete it")
        config = end.config
        if end.metrics["stopped"] == EARLY_STOPPING and end.metrics["epochs"] <= flags["epochs"]:
            config = config | {"flags": config["flags"] | {"epochs": flags["epochs"]}}  # it would have ended the same
        different = self.differences(config, flags)
        if different:
            raise BadInput(
                f"{out}: the run there had {', '.join(different)}; delete it, or pass another --out after --"
            )
        return end.metrics

    def job(self, name: str, command: list[str], out: Path, flags: dict, data: str, device: torch.device) -> Job:
        """Return the job for its run with train.py's `flags` on `data`, "" for its own CIFAR-10.

        `command` is the command line up to its options.
        """
        words = ["--seed", str(flags["seed"]), "--out", str(out), "--resume"]
        for option in self.options:  # also those at their defaults, which its program may not share
            value = flags[option]
            if value is True:
                words.append(flag_of(option))
            elif value is not None and value is not False:
                words += [flag_of(option), str(value)]
        if data:
            words += ["--data", data]
        environment = self.environment(device, flags["threads"])
        return Job(name, out, [*command, *words], environment, flags["epochs"])
