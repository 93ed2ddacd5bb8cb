"""Train the notebook's CNN on CIFAR-10 as Keras would. The defaults are the notebook's.

    python train.py --epochs 50 --batch-size 64
    python train.py --model improved --epochs 50 --batch-size 64
    python train.py --recipe fast
    torchrun --nproc-per-node 2 train.py --epochs 50 --batch-size 64

Exit codes: 0 done, 1 failed (training diverged, disk full), 2 bad input, 3 data not available, 130 interrupted,
143 terminated (SIGTERM, SIGUSR1).
"""

import contextlib
import copy
import json
import math
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
import report
from callbacks import (
    Callback,
    EarlyStopping,
    History,
    Lookahead,
    Schedule,
    Stop,
    TensorBoard,
    first_stop,
    make_schedule,
)
from cli.command import command
from cli.errors import BadInput, Diverged, Unavailable
from cli.messages import say
from metrics import Figures, Objective, Tally, rounded
from model import Network, build_model, load_keras_weights, parameter_groups, to_keras_weights
from optim import OPTIMIZERS
from options import Options, in_python, parse
from running import arithmetic, code, distributed, machine
from running.code import TRAIN
from running.directory import Run
from sources.source import Arrays, Source, fingerprint

EVALUATION_BATCH = 256  # fits a CPU's cache: 1,000 images at once take twice as long there
EVALUATION_PIXELS = 2048 * 32 * 32  # per batch on a GPU, where each batch costs launch time; an estimated 1 GiB


@command("train.py", resumes=True)
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (None: the process's own)."""
    options = parse(argv, __doc__)
    with distributed.joined(options.checked().device):
        run_training(options)


def train(options: Options) -> tuple[dict, History]:
    """Run one training, from loading the data to the test metrics, and write the run's directory.

    Returns the content of metrics.json and the history, also of a finished run. Raises cli.errors.Failure.
    """
    with in_python():
        return run_training(options)


def run_training(options: Options) -> tuple[dict, History]:
    """Do what `train` does, but name options as flags in error messages."""
    checked = options.checked()
    aside = contextlib.redirect_stdout(sys.stderr) if checked.json else contextlib.nullcontext()
    with aside, arithmetic.of_run(checked.device, checked.threads, checked.tf32, checked.deterministic):
        metrics, history = train_checked(checked, options)
    if checked.json:
        say(json.dumps(metrics))
    return metrics, history


def train_checked(options: Options, given: Options) -> tuple[dict, History]:
    """Do what `train` does with checked `options`; `given` are the options before `checked`."""
    run = Run(options)
    source = options.source()
    distributed.first(run.refuse_if_taken)  # before images are read, which can take minutes
    start = options.init_weights
    if run.goes_on_without(start):
        say(f"--init-weights {start} does not exist; the run's directory has everything that is needed.")
        start = None
    try:
        arrays = source.load()
    except (BadInput, Unavailable):
        if distributed.launched():  # the other processes have continued, and would wait for this one
            raise
        metrics = finished_without_data(options, run)
        if metrics is None:
            raise
        say(f"Its data cannot be read any more from {options.data}.")
        return report.finished_already(options, run, metrics)

    model = initial_network(options, arrays, start)
    training, validation = data.split_validation(arrays.x_train, arrays.y_train, options.validation_split)
    test = data.as_split(arrays.x_test, arrays.y_test)
    training, validation, test = (part.to(options.device) for part in (training, validation, test))
    if start is None:
        model.prepare(training.images)
    data_sha256 = fingerprint(arrays)
    distributed.agree(options.shared() | {"images and labels of --data, by hash": data_sha256})
    distributed.unify(model)
    augmentation = augmentation_of(options, arrays)

    with run.claimed():
        metrics = run.finished(data_sha256)
        if metrics is not None:
            return report.finished_already(options, run, metrics)
        images = {"training": len(training), "validation": len(validation), "test": len(test)}
        config = describe(options, given, source, arrays, model) | {"images": images, "data_sha256": data_sha256}
        run.begin(config, to_keras_weights(model), to_keras_weights)
        cut = len(training)
        unseen = data.unseen(training, validation, test, len(arrays.class_names))
        others = {"validation": arrays.x_train[cut:], "test": arrays.x_test}
        repeated = distributed.first(lambda: data.repeated(arrays.x_train[:cut], others))
        report.beginning(options, config, unseen, source.uneven, repeated)
        # One objective for training and one for evaluation; so far, no option makes them differ.
        objective = evaluation = Objective(options.l2, options.label_smoothing, options.mixed_precision)
        best, history, best_epoch, stop = fit(
            options, run, model, objective, evaluation, training, validation, augmentation
        )
        figures = evaluate(best, test, evaluation)
        mirrored = None
        if options.augment and not options.no_mirror:  # only a network trained on mirror images knows them
            mirrored = evaluate(best, test, evaluation, mirrored=True)
        return report.end(options, run, history, best_epoch, stop, figures, mirrored), history


def finished_without_data(options: Options, run: Run) -> dict | None:
    """Return the metrics of a finished run whose data can no longer be read; None if there is no such run."""
    if not (options.resume and options.out.is_dir()):
        return None
    with run.claimed():
        return run.finished(None)


def describe(options: Options, given: Options, source: Source, arrays: Arrays, model: Network) -> dict:
    """Return the content of config.json before the first step; `given` are the options before `checked`."""
    return {
        "program": TRAIN,
        "model": options.model,
        "data": source.describe(),
        "image_shape": list(arrays.image_shape),
        "class_names": list(arrays.class_names),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "flags": options.flags(),
        "given": given.flags(),
        "not_default": options.not_default(),
        "code_sha256": code.sha256(TRAIN),
        **machine.describe(options.device),
        "variables": arithmetic.variables(),
    }


def initial_network(options: Options, arrays: Arrays, start: Path | None) -> Network:
    """Return the network for the images and classes of `arrays`, with weights from the seed or the file `start`."""
    data.seed_torch(options.seed, 0)
    # Weights are drawn on the CPU in float32, so that a seed gives the same ones on every device. In channels_last
    # memory, convolution and pooling are vectorised over channels, and the stored images need no copy.
    model = build_model(options.model, arrays.image_shape, len(arrays.class_names), options.dropout)
    model.to(options.device, getattr(torch, options.dtype), memory_format=torch.channels_last)
    if start is not None:
        load_keras_weights(model, start)
    return model


def augmentation_of(options: Options, arrays: Arrays) -> data.Augmentation | None:
    if not options.augment:
        return None
    height, width, _ = arrays.image_shape
    return data.Augmentation(height, width, options.shift, not options.no_mirror)


def fit(
    options: Options,
    run: Run,
    model: Network,
    objective: Objective,
    evaluation: Objective,
    training: data.Split,
    validation: data.Split,
    augmentation: data.Augmentation | None = None,
) -> tuple[Network, History, int, Stop | None]:
    """Train `model`, from the run's checkpoint if there is one.

    Returns the best network, the history, the best epoch (from 0), and why training ended early (None: it did not).
    """
    dtype = dtype_of(model)
    steps = math.ceil(len(training) / options.batch_size)  # per epoch
    groups = parameter_groups(model, options.l2, options.weight_decay)
    optimizer = OPTIMIZERS[options.optimizer](groups, lr=rounded(options.lr, dtype))  # like the schedule's rates
    optimizer.mixed_precision = options.mixed_precision
    schedule = make_schedule(options.schedule, optimizer, vars(options), options.epochs, steps)
    callbacks = make_callbacks(options, model, schedule)
    early_stopping, history = callbacks["early_stopping"], callbacks["history"]
    # The network to evaluate, and to keep when it is the best so far.
    evaluated = next((one.network for one in callbacks.values() if one.network is not None), model)
    best = copy.deepcopy(evaluated)
    state = {"model": model, "best": best, "optimizer": optimizer}
    state.update({name: one for name, one in callbacks.items() if hasattr(one, "state_dict")})
    run.resume(state)
    # Only training is compiled: evaluation has other shapes. In `model`, the weights keep their names. The short last
    # batch gets its own graph: a graph with dynamic shapes would serve all batches, but more slowly.
    mode = "reduce-overhead" if options.device.type == "cuda" else None
    network = torch.compile(model, mode=mode, dynamic=False) if options.compile else model
    hide = options.quiet or distributed.rank() > 0 or None  # None: unless stderr is a terminal

    for epoch in range(len(history), options.epochs):
        if distributed.first(lambda: first_stop(callbacks.values())):
            break
        for callback in callbacks.values():
            callback.before_epoch(epoch)
        rate = schedule.rate
        title = f"Epoch {epoch + 1}/{options.epochs}"
        shuffle = not options.no_shuffle
        order, views = data.draw(len(training), options.seed, epoch, shuffle, augmentation, distributed.rank())
        batches = own_batches(training, options.batch_size, dtype, order, views)
        bar = tqdm(batches, title, steps, leave=False, unit="step", disable=hide)
        try:
            trained = train_epoch(network, bar, objective, optimizer, callbacks.values())
            validated = evaluate(evaluated, validation, evaluation)
        except Diverged as error:
            raise Diverged(f"epoch {epoch + 1}, learning rate {rate:g}: {error}") from None
        logs = trained.logs(dtype) | validated.logs(dtype, "val_") | {"learning_rate": rate}
        lines = [callback.after_epoch(epoch, logs) for callback in callbacks.values()]
        if early_stopping.improved:
            best.load_state_dict(evaluated.state_dict())
        run.keep(state, early_stopping.improved)
        say(f"{title} - {report.keras_line(steps, history.seconds[-1], logs)}")
        for line in filter(None, lines):
            say(f"Epoch {epoch + 1}: {line}")

    say(f"Restoring model weights from the end of the best epoch: {early_stopping.best_epoch + 1}.")
    return best, history, early_stopping.best_epoch, distributed.first(lambda: first_stop(callbacks.values()))


def make_callbacks(options: Options, model: Network, schedule: Schedule) -> dict[str, Callback]:
    """Return the callbacks by their names in checkpoint.pt, in the order in which they are called."""
    history = History(Figures.columns(), schedule)
    callbacks = {
        "schedule": schedule,
        "early_stopping": EarlyStopping(options.patience, schedule=schedule),
        "history": history,  # after `schedule`: like the notebook, it logs the rate after a cut
    }
    if options.lookahead:
        callbacks["lookahead"] = Lookahead([weight for weight in model.parameters() if weight.requires_grad])
    if options.tensorboard and distributed.rank() == 0:
        callbacks["tensorboard"] = TensorBoard(options.out, history)
    return callbacks


def train_epoch(
    network: nn.Module,
    batches: Iterable[data.Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    callbacks: Collection[Callback] = (),
) -> Figures:
    """Take one step per batch and return the metrics, computed on each batch before its own step, with dropout on.

    Raises Diverged if a loss is not finite.
    """
    network.train()
    tally = Tally(network, objective.l2)
    for batch in batches:
        logits, loss = objective(network, batch)
        tally.add(logits, loss, batch.labels)
        optimizer.zero_grad()
        # The mean over the whole batch: the last batch may be short, and this process's part may be empty.
        (loss / batch.size).backward()
        distributed.sum_gradients(network)
        optimizer.step()
        for callback in callbacks:
            callback.after_step()
    return tally.total()


@torch.inference_mode()
def evaluate(model: Network, split: data.Split, objective: Objective, mirrored: bool = False) -> Figures:
    """Return the metrics on `split`, with dropout off; `mirrored` as in `Objective`. Raises Diverged."""
    model.eval()
    tally = Tally(model, objective.l2, "evaluation batch")
    for batch in own_batches(split, evaluation_batch(split), dtype_of(model)):
        tally.add(*objective(model, batch, mirrored), batch.labels)
    return tally.total()


def evaluation_batch(split: data.Split) -> int:
    """Return the batch size for evaluation, smaller for images that are larger than CIFAR-10's."""
    height, width = split.images.shape[1:3]
    if split.labels.device.type == "cpu":
        return max(1, min(EVALUATION_BATCH, EVALUATION_BATCH * 32 * 32 // (height * width)))
    return max(1, EVALUATION_PIXELS // (height * width))


def own_batches(
    split: data.Split, size: int, dtype: torch.dtype, order: Tensor | None = None, views: data.Views | None = None
) -> Iterable[data.Batch]:
    """Return this process's part of each batch."""
    return data.batches(split, size, order, views, dtype, distributed.rank(), distributed.size())


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


if __name__ == "__main__":
    distributed.end(main())
