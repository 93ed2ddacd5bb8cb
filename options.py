"""The options of train.py, each declared once; recipes, which are sets of defaults; checks for conflicts."""

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

import sources
from callbacks import SCHEDULES, TensorBoard, options_of
from cli import flags
from cli.errors import BadInput
from cli.flags import ON_OFF, RUN_OR_SWITCH, flag_of, option
from cli.parser import Parser, number, path_type
from model import MODELS
from optim import OPTIMIZERS
from running import files, machine
from running.outcome import CONFIG
from sources import class_folders
from sources.cifar10 import DEFAULT
from sources.source import Source
from sources.stand_in import SYNTHETIC


class Recipe(NamedTuple):
    """A set of defaults that `--recipe` selects, and its measured result (docs/results.md describes how)."""

    result: str
    defaults: dict


RECIPES = {
    "fast": Recipe(
        "87.8 % test accuracy with mirror images, 86.7 % without, in 3 minutes on 2 CPU cores that are faster in "
        "bfloat16, in 16 minutes on 2 cores without AVX-512",
        {
            "model": "whitened",
            "epochs": 10,
            "batch_size": 256,
            "optimizer": "muon",
            "lr": 0.08,
            "schedule": "onecycle",
            "l2": 0.0,
            "dropout": 0.0,
            "label_smoothing": 0.1,
            "shift": 2,
            "patience": 10,
            "mixed_precision": None,  # where it is faster
        },
    ),
}
RESULTS = "; ".join(f"{name}: {recipe.result}" for name, recipe in RECIPES.items())
WORDS = (SYNTHETIC,)  # values of --data that are not paths
GROUPS = {  # titles in the help, by the first option of each group
    "recipe": "training",
    "patience": "callbacks (all monitor the validation loss, which includes the L2 penalty)",
    "data": "data and output",
}


def image_size(text: str) -> str:
    """An argparse type: `H` or `HxW` in pixels, returned as `HxW`."""
    size = class_folders.size(text)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not H or HxW in pixels, such as 32 or 32x48")
    return f"{size[0]}x{size[1]}"


@contextlib.contextmanager
def in_python() -> Iterator[None]:
    """Replace flags with Python names in BadInput raised within the block: `--batch-size` becomes `batch_size`."""
    try:
        yield
    except BadInput as error:
        # Not within a path, which may contain two dashes too.
        text = re.sub(r"(?<![\w./-])--resume\b(?!:| RUN)", "resume=True", str(error))
        in_words = re.sub(r"(?<![\w./-])--([a-z][a-z0-9-]*)", lambda flag: flag[1].replace("-", "_"), text)
        raise BadInput(in_words) from None


@dataclasses.dataclass(init=False)
class Options:
    """The options of a run; `checked` fills in the defaults that depend on other options or on the machine.

    Each is passed by name. Raises BadInput for an invalid value.
    """

    recipe: str | None = option(
        None, RECIPES, f"another set of defaults; other options override it; {RESULTS}", may_change=True
    )
    model: str = option("baseline", MODELS, "improved: deeper, BatchNorm; whitened: the same behind a whitening layer")
    epochs: int = option(50, number(int, "[1, 1000000000]"), "maximum number of epochs", may_change=True)
    batch_size: int = option(64, number(int, "[1, 1000000]"), "images per step")
    lr: float = option(1e-3, number(float, "(0, 1e9]"), "initial learning rate (with onecycle, the peak)")
    optimizer: str = option(
        "adam",
        OPTIMIZERS,
        "sgd has Nesterov momentum of 0.9; muon is for kernels, with sgd at 2/3 of the rate for the rest",
    )
    weight_decay: float | None = option(
        None,
        number(float, "[0, 1000]"),
        "decoupled weight decay, multiplied by the learning rate at each step (not with adam or muon)",
        unset="0.004 for adamw as in Keras, 0 for sgd",
    )
    lookahead: bool = option(False, bool, "every 5 steps, move the weights halfway back to those of 5 steps ago")
    label_smoothing: float = option(0.0, number(float, "[0, 1)"), "label smoothing, in every loss", in_loss=True)
    augment: bool | None = option(
        None, ON_OFF, "mirror and shift training images at random", unset="on, but off with baseline"
    )
    shift: int = option(4, number(int, "[0, 10000]"), "maximum shift with --augment, in pixels")
    no_mirror: bool = option(False, bool, "no mirror images with --augment (they are wrong for digits and text)")
    l2: float = option(
        1e-3, number(float, "[0, 1000]"), "factor of the L2 penalty on convolution kernels", in_loss=True
    )
    dropout: float = option(0.5, number(float, "[0, 1)"), "dropout rate before the last layer")
    no_shuffle: bool = option(False, bool, "take the training images in the same order each epoch")
    seed: int = option(0, number(int, "[0, 4294967296)"), "seed of every random draw", repeats=True)
    device: str | torch.device = option(
        "auto", machine.device_name, "auto (CUDA if there is one), cpu, cuda or cuda:N", may_change=True
    )
    threads: int | None = option(None, number(int, "[1, 256]"), "CPU threads", may_change=True, unset="torch's choice")
    dtype: str = option("float32", ("float32", "float64"), "of weights and images")
    mixed_precision: bool | None = option(
        False,
        ON_OFF,
        "convolutions and matrix products in bfloat16: faster on GPUs from compute capability 8.0, on CPUs with "
        "AMX, and on AMD's with AVX512-BF16; 1.5 to 30 times slower on others",
        unset="off; with --recipe fast, on where it is faster",
    )
    tf32: bool = option(False, bool, "use TF32 on newer GPUs: faster, but products keep 10 bits of mantissa")
    deterministic: bool = option(False, bool, "make runs on a GPU bitwise reproducible; runs on a CPU always are")
    compile: bool = option(False, bool, "use torch.compile, for CUDA (slower on a CPU); needs a compiler")

    patience: int = option(5, number(int, "[0, 1000000000]"), "stop after this many epochs without improvement")
    schedule: str = option(
        "plateau",
        SCHEDULES,
        "cosine decays to --min-lr; onecycle warms up over 5 % of the steps (early stopping counts from there), then "
        "decays to 4e-6 of --lr; both change at every step, over all epochs",
    )
    lr_patience: int = option(
        3, number(int, "[0, 1000000000]"), "cut the rate after this many epochs without improvement"
    )
    lr_factor: float = option(0.5, number(float, "(0, 1)"), "factor by which a cut multiplies the learning rate")
    min_lr: float = option(1e-6, number(float, "[0, 1000]"), "lower bound of the learning rate")

    data: str = option(
        DEFAULT,
        path_type,
        "CIFAR-10 folder (for the default or an empty one, the data come from Keras's cache or are downloaded once), a "
        "folder with a folder of pictures for each class, an .npz file with x_train, y_train, x_test, y_test, or the "
        f"word {SYNTHETIC} for an offline stand-in",
        may_change=True,  # but not the images: their hash is compared
        path=True,
    )
    image_size: str | None = option(
        None,
        image_size,
        "scale the pictures in class folders to H or HxW, and crop them at the centre; required if their sizes differ",
        may_change=True,  # but not the images
        unset="as they are",
    )
    validation_split: float = option(0.2, number(float, "(0, 1)"), "fraction of the training images, from the end")
    init_weights: Path | None = option(
        None,
        path_type,
        "load the initial weights from this .npz: a run's own, or np.savez(FILE, *model.get_weights()) of a Keras "
        "model that is channels_last (check keras.config.image_data_format(); the file does not say)",
        unset="drawn from the seed",
        repeats=True,
        path=True,
    )
    out: str | Path = option(
        "runs/<name><data>-seed<seed>",
        path_type,
        "the run's directory; <name> is replaced by the recipe, or by the model if there is none; <data> by a dash and "
        "the data's name, unless it is the default; any other <option>, such as <seed> or <lr>, by its value",
        may_change=True,
        path=True,
        own=True,
    )
    resume: bool = option(
        False,
        RUN_OR_SWITCH,
        "resume the run in --out, if there is one, after its last whole epoch; --resume RUN resumes that run with its "
        "own options, which other options override",
        may_change=True,
        own=True,
    )
    quiet: bool = option(False, bool, "one line per epoch and no progress bar", may_change=True)
    json: bool = option(
        False,
        bool,
        "print the metrics as a JSON object to standard output, and everything else to standard error",
        may_change=True,
    )
    tensorboard: bool = option(
        False, bool, "also write each epoch's metrics for TensorBoard (needs the package tensorboard)", may_change=True
    )

    def __init__(self, **given):
        """Accept options by name, with _ for a flag's -; the others default to the recipe's or the notebook's."""
        values = {field.name: field.default for field in dataclasses.fields(self)}
        unknown = ", ".join(given.keys() - values.keys())
        if unknown:
            raise TypeError(f"no option {unknown}; python train.py --help lists them")
        chosen = given.get("recipe")
        if isinstance(chosen, str) and chosen in RECIPES:
            values.update(RECIPES[chosen].defaults)
        values.update(given)
        for field in dataclasses.fields(self):
            value = values[field.name]
            with in_python():
                converted = flags.checked(field, value)
            setattr(self, field.name, converted if field.metadata["path"] else value)  # ~ is the home directory

    def __setattr__(self, name: str, value: object) -> None:
        if name not in {field.name for field in dataclasses.fields(self)}:
            raise AttributeError(f"no option {name}; python train.py --help lists them")
        super().__setattr__(name, value)

    def checked(self) -> "Options":
        """Return the options resolved, with each value converted as its flag would convert it.

        Raises BadInput for invalid values and for options that conflict.
        """
        values = {field.name: flags.checked(field, getattr(self, field.name)) for field in dataclasses.fields(self)}
        options = dataclasses.replace(self, **values).resolved()
        options.refuse_contradictions()
        return options

    def resolved(self) -> "Options":
        """Return the options with all open values filled in. Raises BadInput if the device is not available."""
        try:
            device = machine.device(str(self.device))
        except argparse.ArgumentTypeError as error:
            raise BadInput(f"--device: {error}") from None
        open_values = {"device": device, "data": str(self.data)}
        open_values["init_weights"] = self.init_weights and Path(self.init_weights)
        for name, default in self._dependent_defaults().items():
            if getattr(self, name) is None:
                open_values[name] = default
        open_values["out"] = self._directory(open_values)
        if self.mixed_precision is None:
            open_values["mixed_precision"] = self._precision(open_values["out"], device)
        return dataclasses.replace(self, **open_values)

    def _dependent_defaults(self) -> dict[str, bool | float]:
        """Return the defaults that depend on other options, among those that affect metrics."""
        return {
            "augment": MODELS[self.model].augmented,
            "weight_decay": OPTIMIZERS[self.optimizer].default_decay or 0.0,
        }

    def _directory(self, resolved: dict) -> Path:
        """Return the run's directory, with the names in angle brackets replaced; a Path is returned as it is.

        `resolved` has the values for options that were left open.
        """
        if isinstance(self.out, Path):
            return self.out
        data = self.source().short_name()
        values = vars(self) | resolved
        if self.mixed_precision is None:  # a resumed run keeps its own, which only its directory shows
            values["mixed_precision"] = self._precision_of(values["device"])
        names = {name: str(values[name]) for name in values if name not in flags.named(Options, "own")}
        names |= {"name": self.recipe or self.model, "data": data and f"-{data}"}

        def value(match: re.Match) -> str:
            name = match[1].replace("-", "_")
            if name not in names:
                raise BadInput(f"--out {self.out}: <{match[1]}> is not an option; pass one of train.py's in brackets")
            return names[name].replace("/", "_")

        return Path(re.sub(r"<([\w-]+)>", value, self.out))

    def source(self) -> Source:
        """Return where the images come from. Raises BadInput."""
        return sources.choose(str(self.data), self.image_size)

    def _precision(self, out: Path, device: torch.device) -> bool:
        """Return whether to use mixed precision by default: as the resumed run in `out` began, else by the hardware."""
        if self.resume:
            with contextlib.suppress(BadInput, LookupError, TypeError):  # whoever needs that file reports it
                return bool(files.read_json(out / CONFIG)["flags"]["mixed_precision"])
        return self._precision_of(device)

    def _precision_of(self, device: torch.device) -> bool:
        """Return whether `device` is faster in mixed precision and these options allow it."""
        return self.dtype == "float32" and machine.why_not_bfloat16(device) is None

    def refuse_contradictions(self) -> None:
        """Raise BadInput for options that conflict, or that need something missing on this machine."""
        if self.weight_decay and OPTIMIZERS[self.optimizer].default_decay is None:
            decay = f"--weight-decay {self.weight_decay}"
            raise BadInput(f"{decay} is not for {self.optimizer}: pass --optimizer adamw, or --l2")
        schedule = SCHEDULES[self.schedule]
        if self.min_lr > self.lr and not schedule.cutting and "min_lr" in options_of(schedule):
            raise BadInput(f"--lr {self.lr:g} is below --min-lr {self.min_lr:g}, to which {self.schedule} would rise")
        self._refuse_what_has_no_effect()
        if self.lr < torch.finfo(getattr(torch, self.dtype)).tiny:
            raise BadInput(f"--lr {self.lr:g} is 0 in {self.dtype}: pass a larger one")
        if self.compile:
            self._refuse_without_compilers()
        if self.mixed_precision and self.dtype != "float32":
            raise BadInput(f"--mixed-precision does not go with --dtype {self.dtype}: pass one of the two")
        self.source()
        if os.path.isdir(self.data) and self.out.resolve() == Path(self.data).resolve():
            raise BadInput(f"--out {self.out}: is the folder of --data; pass another")
        if self.tensorboard:
            TensorBoard.refuse_without_package()

    def _refuse_without_compilers(self) -> None:
        """Raise BadInput if torch.compile has no compiler or header: C++ for CPUs, C for Triton on CUDA."""
        kind, variable, usual, other = "C++", "CXX", "g++", "clang++"
        if self.device.type == "cuda":
            kind, variable, usual, other = "C", "CC", "gcc", "clang"
        if not any(map(shutil.which, (os.environ.get(variable, usual), other))):
            remedy = "install one (apt: build-essential), or leave --compile out"
            raise BadInput(f"--compile needs a {kind} compiler, and there is no {usual}: {remedy}")
        header = Path(sysconfig.get_paths()["include"], "Python.h")
        if not header.exists():
            raise BadInput(f"--compile needs {header}: install it (apt: python3-dev), or leave --compile out")

    def _refuse_what_has_no_effect(self) -> None:
        """Raise BadInput for an option that has no effect given the others."""
        of_schedules = set().union(*map(options_of, SCHEDULES.values()))
        without_effect = dict.fromkeys(
            of_schedules - options_of(SCHEDULES[self.schedule]), f"--schedule {self.schedule}"
        )
        if not self.augment:
            without_effect |= dict.fromkeys(("shift", "no_mirror"), "--no-augment")
        usual = Options(recipe=self.recipe)
        for name, other in without_effect.items():
            value, default = getattr(self, name), getattr(usual, name)
            if value != default:
                remedy = f"leave it at its default, {default}"
                raise BadInput(f"{flag_of(name)} {value} has no effect with {other}; {remedy}")

    def flags(self) -> dict[str, int | float | str | None]:
        """Return the options by name, as config.json stores them."""
        return flags.plain(self, WORDS)

    def defaults(self) -> dict[str, int | float | str | None]:
        """Return the defaults of the options that affect metrics, each with all other options as they are."""
        fixed = {field.name: field.default for field in dataclasses.fields(self) if not field.metadata["may_change"]}
        return fixed | self._dependent_defaults()

    def shared(self) -> dict[str, int | float | str | None]:
        """Return the flags that all processes of a run must agree on, with their values."""
        names = {"epochs", *self.defaults()} - {"init_weights"}  # all processes get the first one's weights
        return {flag_of(name): value for name, value in self.flags().items() if name in names}

    def not_default(self) -> list[str]:
        now = self.flags()
        return [name for name, default in self.defaults().items() if now[name] != default]

    def differences(self, config: dict) -> list[str]:
        """Return the differences that keep these options from resuming the run that wrote `config`, its config.json.

        An option that is newer than that run counts as having its default value there. An option that this version no
        longer has must have had its default value.
        """
        saved = config["flags"]
        now = self.flags()
        different = []
        for name, default in self.defaults().items():
            before = saved.get(name, default)
            if name == "init_weights" and before and self.init_weights:
                continue  # their hash decides, not their path
            if now[name] != before:
                different.append(f"{flag_of(name)} {now[name]} (was {before!r:.60})")
        different += flags.lacking(Options, config)
        if SCHEDULES[self.schedule].spans_all_epochs and saved.get("epochs") != self.epochs:
            different.append(f"--epochs {self.epochs} (was {saved.get('epochs')!r:.60}, which its schedule fixes)")
        return different


Options.__doc__ += "\n" + "\n".join(
    f"    {field.name}: {field.metadata['help']} (default: {flags.default_in_words(field)})"
    for field in dataclasses.fields(Options)
)


def parse(argv: list[str] | None, doc: str = "") -> Options:
    """Return the options that the command line `argv` gives (None: the process's own); `doc` is for the help.

    They have passed `checked`. Raises SystemExit like argparse, after one line on stderr or the help on stdout.
    """
    parser = Parser("train.py", doc)
    flags.declare(parser, Options, GROUPS)
    given = vars(parser.parse_args(argv))
    recipe = RECIPES.get(given.get("recipe"))
    decided = [*given, *(recipe.defaults if recipe else ())]
    try:
        options = Options(**flags.with_saved(given, Options, decided))
        options.checked()
        return options
    except BadInput as error:
        parser.error(str(error))
