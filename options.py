"""Every option of train.py, declared once; the recipes, which are sets of defaults; what does not go together."""

import dataclasses
import inspect
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from callbacks import SCHEDULES, TensorBoard
from data import DEFAULT, SYNTHETIC
from harness import environment, flags
from harness.console import Parser, number, path_type
from harness.errors import BadInput
from harness.flags import ON_OFF, flag_of
from model import MODELS
from optim import OPTIMIZERS


class Recipe(NamedTuple):
    """A set of defaults that `--recipe` chooses, and what they were measured to reach (docs/results.md has how)."""

    result: str
    defaults: dict


RECIPES = {
    "fast": Recipe(
        "87.8 % test accuracy with mirror images, 86.7 % without, in 3 minutes on 2 CPU cores",
        {"model": "whitened", "epochs": 10, "batch_size": 256, "optimizer": "muon", "lr": 0.08, "schedule": "onecycle"}
        | {"l2": 0.0, "dropout": 0.0, "label_smoothing": 0.1, "shift": 2, "patience": 10, "mixed_precision": True},
    ),
}
RESULTS = "; ".join(f"{name}: {recipe.result}" for name, recipe in RECIPES.items())
OF_SCHEDULES = {"lr_patience": "patience", "lr_factor": "factor", "min_lr": "min_lr"}  # by option, as these call it
GROUPS = {  # by the first option of each
    "recipe": "training",
    "patience": "callbacks, all watching the validation loss with its L2 penalty",
    "data": "data and output",
}


def option(default: object, kind: object, help: str, may_change: bool = False):
    """Declare an option. `kind` is bool or ON_OFF for a switch, the choices, or what makes a value of a flag's text.

    `may_change` tells that a resumed run may have another.
    """
    return dataclasses.field(default=default, metadata={"kind": kind, "help": help, "may_change": may_change})


@dataclasses.dataclass(init=False)
class Options:
    """What a run is told, flag by flag; `resolved` fills in the defaults that depend on other options."""

    recipe: str | None = option(None, RECIPES, f"other defaults, over which flags win; {RESULTS}", may_change=True)
    model: str = option("baseline", MODELS, "improved: more depth, BatchNorm; whitened: that behind a whitening layer")
    epochs: int = option(50, number(int, "[1, 1000000000]"), "epochs at most", may_change=True)
    batch_size: int = option(64, number(int, "[1, 1000000]"), "images per step")
    lr: float = option(1e-3, number(float, "(0, 1e9]"), "learning rate: the first one, but onecycle's highest")
    optimizer: str = option(
        "adam", OPTIMIZERS, "sgd has Nesterov momentum of 0.9; muon is for kernels, sgd at 2/3 of the rate for all else"
    )
    weight_decay: float | None = option(
        None,
        number(float, "[0, 1000]"),
        "decoupled weight decay, times the learning rate in each step (not for adam and muon); "
        "None: as the optimizer says, 0.004 for adamw as in Keras, 0 for sgd",
    )
    label_smoothing: float = option(0.0, number(float, "[0, 1)"), "label smoothing, in every loss")
    augment: bool | None = option(
        None, ON_OFF, "mirror and shift training images at random; None: as the network says, not with baseline"
    )
    shift: int = option(4, number(int, "[0, 10000]"), "how many pixels --augment moves an image at most")
    no_mirror: bool = option(False, bool, "--augment without mirror images, which are wrong for digits and text")
    l2: float = option(1e-3, number(float, "[0, 1000]"), "factor of the L2 penalty on convolution kernels")
    dropout: float = option(0.5, number(float, "[0, 1)"), "dropout rate before the last layer")
    no_shuffle: bool = option(False, bool, "take the training images in the same order each epoch")
    seed: int = option(0, number(int, "[0, 18446744073709551616)"), "seed of every random draw")
    device: torch.device = option("auto", environment.device, "auto (CUDA if there is one), cpu, cuda or cuda:N", True)
    threads: int | None = option(None, number(int, "[1, 256]"), "CPU threads; None leaves the choice to torch", True)
    dtype: str = option("float32", ("float32", "float64"), "of weights and images")
    mixed_precision: bool = option(False, ON_OFF, "convolutions in bfloat16: faster with hardware for it, else slower")
    tf32: bool = option(False, bool, "TF32 on newer GPUs: products with 10 bits of mantissa, faster")
    deterministic: bool = option(False, bool, "the same bits from each run on a GPU too; a CPU's always are")
    compile: bool = option(False, bool, "torch.compile, for CUDA; a CPU is slower with it, and needs a compiler")

    patience: int = option(5, number(int, "[0, 1000000000]"), "stop after so many epochs without a better one")
    schedule: str = option(
        "plateau",
        SCHEDULES,
        "cosine falls to --min-lr, onecycle rises for 5 % (early stopping counts from there) and falls to "
        "4e-6 of --lr: step by step over all epochs",
    )
    lr_patience: int = option(3, number(int, "[0, 1000000000]"), "cut the learning rate after so many epochs")
    lr_factor: float = option(0.5, number(float, "(0, 1)"), "a cut multiplies the learning rate by it")
    min_lr: float = option(1e-6, number(float, "[0, 1000]"), "no cut goes below this learning rate")

    data: str = option(
        DEFAULT,
        path_type,
        "folder of CIFAR-10 (with none in it Keras's cache is asked, else it is downloaded to once), an .npz file "
        f"with x_train, y_train, x_test, y_test, or the word {SYNTHETIC} for an offline stand-in",
        may_change=True,  # but not the images: their hash is compared
    )
    validation_split: float = option(0.2, number(float, "(0, 1)"), "last part of the training images, for validation")
    init_weights: Path | None = option(
        None, path_type, "start from this .npz: np.savez(FILE, *model.get_weights()) of the Keras model, or a run's own"
    )
    out: Path = option(
        "runs/<name><data>-seed<seed>",
        path_type,
        "the run's directory; <seed> stands for the seed, <name> for the recipe or else the model, <data> for the "
        "name of other data than the default, after a dash",
        may_change=True,
    )
    resume: bool = option(
        False,
        bool,
        "go on with the run in --out if there is one, after its last whole epoch; with a run's directory, go on with "
        "that one by its own flags, over which others win",
        may_change=True,
    )
    quiet: bool = option(False, bool, "one line per epoch and no progress bar", may_change=True)
    json: bool = option(False, bool, "end with the figures as a JSON object in one line", may_change=True)
    tensorboard: bool = option(
        False, bool, "write each epoch's figures for TensorBoard too: needs the package tensorboard", may_change=True
    )

    def __init__(self, **given):
        """Take options by name, with _ for a flag's -; the others are the recipe's or else the notebook's."""
        values = {field.name: field.default for field in dataclasses.fields(self)}
        unknown = ", ".join(given.keys() - values.keys())
        if unknown:
            raise TypeError(f"no option {unknown}; python train.py --help lists them")
        recipe = RECIPES.get(given.get("recipe"))
        vars(self).update(values | (recipe.defaults if recipe else {}) | given)

    def checked(self) -> "Options":
        """Return the options resolved, each value as its flag would have made it.

        Raises BadInput for what a flag refuses, and for what does not go together.
        """
        values = {field.name: flags.checked(field, getattr(self, field.name)) for field in dataclasses.fields(self)}
        options = dataclasses.replace(self, **values).resolved()
        options.refuse_contradictions()
        return options

    def refuse_contradictions(self) -> None:
        """Raise BadInput for options that do not go together, or that need what this machine lacks."""
        if self.weight_decay and OPTIMIZERS[self.optimizer].default_decay is None:
            decay = f"--weight-decay {self.weight_decay}"
            raise BadInput(f"{decay} is not for {self.optimizer}: pass --optimizer adamw, or --l2")
        taken = inspect.signature(SCHEDULES[self.schedule]).parameters
        if self.min_lr > self.lr and SCHEDULES[self.schedule].spans_all_epochs and "min_lr" in taken:
            raise BadInput(f"--lr {self.lr:g} is below --min-lr {self.min_lr:g}, to which {self.schedule} would rise")
        self._refuse_what_has_no_effect(taken)
        if self.lr < torch.finfo(getattr(torch, self.dtype)).tiny:
            raise BadInput(f"--lr {self.lr:g} is 0 in {self.dtype}: pass a larger one")
        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            raise BadInput("--compile needs a C++ compiler, and there is no g++: install one, or leave --compile out")
        if self.mixed_precision and self.dtype != "float32":
            raise BadInput(f"--mixed-precision does not go with --dtype {self.dtype}: pass one of the two")
        if self.tensorboard:
            TensorBoard.refuse_without_package()

    def _refuse_what_has_no_effect(self, taken: Collection[str]) -> None:
        """Raise BadInput for an option that decides nothing beside the others; `taken` is what the schedule takes."""
        without = {name: f"--schedule {self.schedule}" for name, wanted in OF_SCHEDULES.items() if wanted not in taken}
        if not self.augment:
            without |= dict.fromkeys(("shift", "no_mirror"), "--no-augment")
        usual = Options(recipe=self.recipe)
        for name, other in without.items():
            value, default = getattr(self, name), getattr(usual, name)
            if value != default:
                remedy = f"leave it at its default, {default}"
                raise BadInput(f"{flag_of(name)} {value} has no effect with {other}; {remedy}")

    def resolved(self) -> "Options":
        """Return the options with every default filled in."""
        out = self.out
        if isinstance(out, str):  # a Path is taken as it is
            names = {"<seed>": str(self.seed), "<name>": self.recipe or self.model, "<data>": _of_data(self.data)}
            out = Path(re.sub("|".join(names), lambda name: names[name.group()], out))
        found = {"out": out, "data": str(self.data), "init_weights": self.init_weights and Path(self.init_weights)}
        if self.augment is None:
            found["augment"] = MODELS[self.model].augmented
        if self.weight_decay is None:
            found["weight_decay"] = OPTIMIZERS[self.optimizer].default_decay or 0.0
        return dataclasses.replace(self, **found)

    def flags(self) -> dict[str, int | float | str | None]:
        """The options by name, as config.json has them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value if isinstance(value, int | float | None) else str(value) for name, value in values.items()}

    def defaults(self) -> dict[str, int | float | str | None]:
        """The defaults of the options that decide a figure, each where all others are as they are."""
        found = {}
        for field in dataclasses.fields(self):
            if not field.metadata["may_change"]:
                default = dataclasses.replace(self, **{field.name: field.default}).resolved()
                found[field.name] = default.flags()[field.name]
        return found

    def told(self) -> dict[str, int | float | str | None]:
        """The flags that all processes of a run must agree on, with their values."""
        names = {"epochs", *self.defaults()} - {"init_weights"}  # the weights are the first process's on all
        return {flag_of(name): value for name, value in self.flags().items() if name in names}

    def not_default(self) -> list[str]:
        now = self.flags()
        return [name for name, default in self.defaults().items() if now[name] != default]

    def differences(self, config: dict) -> list[str]:
        """Name what keeps a run with these options from going on with the run that wrote `config`, config.json.

        An option that is new since then counts as at its default there; one that this version lacks must have been.
        """
        saved, now, found = config["flags"], self.flags(), []
        for name, default in self.defaults().items():
            was = saved.get(name, default)
            if name == "init_weights" and was and self.init_weights:
                continue  # wherever they are read from, their hash decides
            if now[name] != was:
                found.append(f"{flag_of(name)} {now[name]} (was {was!r:.60})")
        found += flags.lacking(Options, config)
        if SCHEDULES[self.schedule].spans_all_epochs and saved.get("epochs") != self.epochs:
            found.append(f"--epochs {self.epochs} (was {saved.get('epochs')!r:.60}, which its schedule fixes)")
        return found


def _of_data(source: str) -> str:
    """What the name of a run's directory says of `--data`: nothing of the default, so that all else is beside it."""
    path = Path(os.path.abspath(source))
    if path == Path(os.path.abspath(DEFAULT)):
        return ""
    name = path.stem if path.suffix == ".npz" else path.name
    return "-" + re.sub(r"[^\w.-]+", "_", name)[:40]


def parse(argv: list[str] | None, doc: str = "") -> Options:
    """Return the resolved options of the command line `argv` (None: the process's own); `doc` is for the help.

    Raises SystemExit, as argparse does: after one line on stderr, or the help on stdout.
    """
    parser = Parser("train.py", doc)
    flags.declare(parser, Options, GROUPS)
    given = vars(parser.parse_args(argv))
    recipe = RECIPES.get(given.get("recipe"))
    decided = given.keys() | (recipe.defaults.keys() if recipe else set())
    try:
        return Options(**flags.with_saved(given, Options, words=(SYNTHETIC,), decided=decided)).checked()
    except BadInput as error:
        parser.error(str(error))
