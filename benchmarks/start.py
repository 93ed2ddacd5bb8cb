"""Time the way from the command to the end of the first step, and take the most memory of a run of one epoch.

    KERAS_BACKEND=tensorflow python benchmarks/start.py --data data/cifar10.npz

This project and the notebook in Keras, on the backend that KERAS_BACKEND names, take turns. Each is a process of its
own that ends after its first step, then one that trains for an epoch. Files are in the page cache after the first
round, which is not counted.
"""

import functools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import contenders
import measuring

OURS = """
import os, sys, time
import optim, train
class Once(optim.Adam):
    def step(self):
        super().step()
        print(time.time(), flush=True)
        os._exit(0)
if sys.argv[1] == "first":
    train.OPTIMIZERS["adam"] = Once
sys.exit(train.main(["--epochs", "1", "--quiet", *sys.argv[2:]]))
"""
KERAS = """
import os, sys, time
from reference import keras_notebook, notebook
class Once(notebook.EpochLog):
    def on_train_batch_end(self, batch, logs=None):
        print(time.time(), flush=True)
        os._exit(0)
if sys.argv[1] == "first":
    notebook.EpochLog = Once
sys.exit(keras_notebook.main(["--epochs", "1", *sys.argv[2:]]))
"""


def measure(code: str, data: str) -> tuple[float, float]:
    """Return the seconds to the end of the first step, and the most memory of one epoch in GB."""
    with tempfile.TemporaryDirectory() as folder:
        begin = functools.partial(subprocess.Popen, cwd=contenders.ROOT, stdout=subprocess.PIPE, text=True)
        flags = ["--data", data, "--out"]
        started = time.time()
        first = begin([sys.executable, "-c", code, "first", *flags, f"{folder}/first"])
        said, _ = first.communicate()
        whole = begin([sys.executable, "-c", code, "whole", *flags, f"{folder}/whole"])
        whole.stdout.read()
        _, status, usage = os.wait4(whole.pid, 0)
        whole.returncode = os.waitstatus_to_exitcode(status)
    if first.returncode or whole.returncode:
        sys.exit(f"its runs ended with {first.returncode} and {whole.returncode}, see above")
    seconds = float(said.split()[-1]) - started
    return seconds, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    from harness.console import Parser, number, path_type

    parser = Parser("start.py", __doc__)
    parser.add_argument("--data", type=path_type, required=True, metavar="FILE.npz", help="as for train.py")
    parser.add_argument("--rounds", type=number(int, "[1, 1000]"), default=5, help="after one that is not counted")
    args = parser.parse_args()
    sides = {contenders.OURS: OURS, f"Keras on {os.environ.get('KERAS_BACKEND', 'its default backend')}": KERAS}
    told = {name: [] for name in sides}
    for round_ in range(args.rounds + 1):
        for name, code in sides.items():
            figures = measure(code, os.path.abspath(args.data))
            if round_:
                told[name].append(figures)
                print(f"round {round_}: {name} {figures[0]:.1f} s, {figures[1]:.2f} GB", flush=True)
    print("\n| | seconds to the first step | most memory of an epoch, GB |\n|---|---|---|")
    for name, figures in told.items():
        seconds, memory = zip(*figures, strict=True)
        print(f"| {name} | {measuring.spread(seconds, 1)} | {measuring.spread(memory, 2)} |")


if __name__ == "__main__":
    main()
