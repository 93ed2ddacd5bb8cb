"""Train the notebook's CNN on CIFAR-10 as Keras would. The defaults are the notebook's.

    python train.py --epochs 50 --batch-size 64
    python train.py --model improved --epochs 50 --batch-size 64
    python train.py --recipe fast
    torchrun --nproc-per-node 2 train.py --epochs 50 --batch-size 64

Exit codes: 0 done, 1 failed (training diverged, disk full), 2 bad input, 3 data not available, 130 interrupted,
143 asked to end (SIGTERM, SIGUSR1).
"""

from harness import signals

if __name__ == "__main__":
    signals.end_at_once("train.py")  # before the next imports, which take seconds

import copy
import math
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import data
import report
from callbacks import SCHEDULES, EarlyStopping, History, Schedule, TensorBoard
from harness import distributed, environment
from harness.console import command, say
from harness.errors import Diverged
from harness.run import Run
from metrics import Figures, Objective, Tally, rounded
from model import Network, build_model, load_keras_weights, parameter_groups, to_keras_weights
from optim import OPTIMIZERS
from options import Options, parse

EVALUATION_BATCH = 256  # fits a CPU's cache: 1,000 images at once take twice as long there


@command("train.py", resumes=True)
def main(argv: list[str] | None = None) -> None:
    """Run the command line `argv` (None: the process's own)."""
    options = parse(argv, __doc__)
    with distributed.joined(options.device):
        train(options)


def train(options: Options) -> tuple[dict, History]:
    """Do the whole job: data, network, training, test figures, and the files of the run's directory.

    Returns the content of metrics.json and the history, also of a run that has finished. Raises harness.errors.Failure.
    What torch has one of for the whole process (see `set_up_torch`), and its generators, are left as the run set them.
    """
    options = options.checked()
    run = Run(options, to_keras_weights, data.stamp(options.data))
    finished = distributed.first(run.look)
    if finished:
        return report.finished_already(options, run, finished)
    set_up_torch(options.threads, options.tf32, options.deterministic)
    if options.device.type == "cpu" and not torch.cuda.is_available():
        say("No CUDA device: training on the CPU.")

    start = options.init_weights
    if run.goes_on_without(start):
        say(f"--init-weights {start} is not there: the checkpoint has all that is needed.")
        start = None
    arrays = data.load(options.data)
    run.data_stamp = data.stamp(options.data)  # where they had to be downloaded there was none before
    model = initial_network(options, arrays, start)
    training, validation = data.split_validation(arrays.x_train, arrays.y_train, options.validation_split)
    test = data.as_split(arrays.x_test, arrays.y_test)
    training, validation, test = (part.to(options.device) for part in (training, validation, test))
    if start is None:
        model.prepare(training.images)
    data_sha256 = data.fingerprint(arrays)
    distributed.agree(options.told() | {"images and labels of --data, by hash": data_sha256})
    distributed.unify(model)

    config = {"model": options.model, "data": data.describe(options.data), "data_sha256": data_sha256}
    config |= {"images": {"training": len(training), "validation": len(validation), "test": len(test)}}
    config |= {"image_shape": list(arrays.image_shape), "class_names": list(arrays.class_names)}
    config |= {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    config |= {"flags": options.flags(), "not_default": options.not_default()} | environment.describe(options.device)
    augmentation = augmentation_of(options, arrays)
    unseen = data.unseen(training, validation, test, len(arrays.class_names))
    with run.claimed(config, to_keras_weights(model)) as finished:
        if finished:
            return report.finished_already(options, run, finished)
        report.beginning(options, config, unseen)
        objective = Objective(options.l2, options.label_smoothing, options.mixed_precision)
        best, history, stopping = fit(options, run, model, objective, training, validation, augmentation)
        figures = evaluate(best, test, objective)
        mirrored = None
        if options.augment and not options.no_mirror:  # a network that was trained on mirror images knows them too
            mirrored = evaluate(best, test, objective, mirrored=True)
        return report.end(options, run, history, stopping, figures, mirrored), history


def set_up_torch(threads: int | None, tf32: bool, deterministic: bool) -> None:
    """Take threads, TF32 and determinism: torch's settings for the whole process, before its first computation."""
    torch.set_flush_denormal(True)  # denormal numbers slow Adam down late in training; worker threads inherit it
    environment.keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    # Convolutions on newer GPUs would have it by default; neither Keras's figures nor the CPU's do.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when cuBLAS starts
    torch.use_deterministic_algorithms(deterministic)


def initial_network(options: Options, arrays: data.Arrays, start: Path | None) -> Network:
    """Return the network for such images and classes as the seed, or the weights in the file `start`, make it."""
    data.seed_torch(options.seed, 0)
    # Drawn on the CPU and in float32, so that a seed means the same initial weights on every device. In channels_last
    # memory convolution and pooling are vectorised over channels, and the stored images need no copy.
    model = build_model(options.model, arrays.image_shape, len(arrays.class_names), options.dropout)
    model.to(options.device, getattr(torch, options.dtype), memory_format=torch.channels_last)
    if start is not None:
        load_keras_weights(model, start)
    return model


def augmentation_of(options: Options, arrays: data.Arrays) -> data.Augmentation | None:
    if not options.augment:
        return None
    height, width, _ = arrays.image_shape
    return data.Augmentation(height, width, options.shift, not options.no_mirror)


def fit(
    options: Options,
    run: Run,
    model: Network,
    objective: Objective,
    training: data.Split,
    validation: data.Split,
    augmentation: data.Augmentation | None = None,
) -> tuple[Network, History, EarlyStopping]:
    """Train `model` from where the run stands; return the network with the best weights, and what was logged."""
    dtype = dtype_of(model)
    steps = math.ceil(len(training) / options.batch_size)  # of one epoch
    groups = parameter_groups(model, options.l2, options.weight_decay)
    # Difference 9: a float32 Keras model keeps its rates in float32, so that 0.001 is 0.0010000000474974513.
    optimizer = OPTIMIZERS[options.optimizer](groups, lr=rounded(options.lr, dtype))
    schedule = SCHEDULES[options.schedule](
        optimizer,
        total_steps=options.epochs * steps,
        min_lr=rounded(options.min_lr, dtype),
        factor=options.lr_factor,
        patience=options.lr_patience,
    )
    stopping, history = EarlyStopping(options.patience), History()
    best = copy.deepcopy(model)
    state = {"model": model, "best": best, "optimizer": optimizer, "schedule": schedule}
    state |= {"early_stopping": stopping, "history": history}
    run.resume(state)
    loggers = [TensorBoard(options.out, history)] if options.tensorboard and distributed.rank() == 0 else []
    # Only training is compiled: evaluation has other shapes. In `model` the weights keep their names.
    mode = "reduce-overhead" if options.device.type == "cuda" else None
    network = torch.compile(model, mode=mode) if options.compile else model
    hide = options.quiet or distributed.rank() > 0 or not sys.stderr.isatty()

    for epoch in range(len(history), options.epochs):
        if stopping.should_stop:
            break
        with signals.deferred():  # a signal waits for the end of a step, or of the epoch's files
            started, rate = time.perf_counter(), schedule.rate
            title, shuffle = f"Epoch {epoch + 1}/{options.epochs}", not options.no_shuffle
            order, views = data.draw(len(training), options.seed, epoch, shuffle, augmentation, distributed.rank())
            batches = own_batches(training, options.batch_size, dtype, order, views)
            bar = tqdm(batches, title, steps, leave=False, unit="step", disable=hide)
            try:
                trained = train_epoch(network, bar, objective, optimizer, schedule)
                validated = evaluate(model, validation, objective)
            except Diverged as error:
                raise Diverged(f"epoch {epoch + 1}, learning rate {rate:g}: {error}") from None
            logs = trained.logs(dtype) | validated.logs(dtype, "val_") | {"learning_rate": rate}
            improved = stopping.update(epoch, logs, counts=not schedule.rising)
            if improved:
                best.load_state_dict(model.state_dict())
            message = schedule.after_epoch(logs["val_loss"])
            # As in the notebook, the rate is logged after the cut: it is the next epoch's.
            history.append(logs, schedule.rate, time.perf_counter() - started)
            run.keep(state, improved)
            for logger in loggers:
                logger.after_epoch(epoch, logs)
            say(f"{title} - {report.keras_line(steps, history.seconds[-1], logs)}")
            if message:
                say(f"Epoch {epoch + 1}: {message}")
            if stopping.should_stop:
                say(f"Epoch {epoch + 1}: early stopping")

    say(f"Restoring model weights from the end of the best epoch: {stopping.best_epoch + 1}.")
    return best, history, stopping


def train_epoch(
    network: nn.Module,
    batches: Iterable[data.Batch],
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
) -> Figures:
    """Take one step per batch; return the figures that each batch had before its own step, dropout on.

    Raises Diverged if a loss is not finite.
    """
    network.train()
    tally = Tally(network, objective.l2)
    for batch in batches:
        logits, loss = objective(network, batch)
        tally.add(logits, loss, batch.labels)
        optimizer.zero_grad()
        # The mean over the whole batch: the short last one is smaller, and this process's part may be empty.
        (loss / batch.size).backward()
        distributed.sum_gradients(network)
        optimizer.step()
        schedule.after_step()
    return tally.total()


@torch.inference_mode()
def evaluate(model: Network, split: data.Split, objective: Objective, mirrored: bool = False) -> Figures:
    """Return the figures on `split`, dropout off; `mirrored` as for Objective. Raises Diverged."""
    model.eval()
    tally = Tally(model, objective.l2, "evaluation batch")
    for batch in own_batches(split, EVALUATION_BATCH, dtype_of(model)):
        tally.add(*objective(model, batch, mirrored), batch.labels)
    return tally.total()


def own_batches(
    split: data.Split, size: int, dtype: torch.dtype, order: Tensor | None = None, views: data.Views | None = None
) -> Iterable[data.Batch]:
    """Yield this process's part of each batch; between two of them a signal ends the run."""
    for batch in data.batches(split, size, order, views, dtype, distributed.rank(), distributed.size()):
        signals.check()
        yield batch


def dtype_of(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype


if __name__ == "__main__":
    sys.exit(main())
