"""Time the way from the command to the end of the first step, and take the most memory of a run of one epoch.

    KERAS_BACKEND=tensorflow python benchmarks/start.py --data data/cifar10.npz

This project and the notebook in Keras, on the backend that KERAS_BACKEND names, take turns. Each is a process of its
own that ends after its first step, then one that trains for an epoch. Files are in the page cache after the first
round, which is not counted.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

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
train.main(["--epochs", "1", "--quiet", *sys.argv[2:]])
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
keras_notebook.main(["--epochs", "1", *sys.argv[2:]])
"""


def measure(code: str, data: str) -> tuple[float, float]:
    """Return the seconds to the end of the first step, and the most memory of one epoch in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code]
        flags = ["--data", data, "--out"]
        started = time.time()
        done = subprocess.run(
            [*command, "first", *flags, f"{folder}/first"], cwd=ROOT, check=True, capture_output=True, text=True
        )
        seconds = float(done.stdout.split()[-1]) - started
        process = subprocess.Popen([*command, "whole", *flags, f"{folder}/whole"], cwd=ROOT, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"the run of one epoch ended with {process.returncode}, see above")
    return seconds, usage.ru_maxrss * 1024 / 1e9


def main() -> None:
    from harness.console import Parser, number, path_type

    parser = Parser(prog="start.py", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=path_type, required=True, metavar="FILE.npz", help="as for train.py")
    parser.add_argument("--rounds", type=number(int, "[1, 1000]"), default=5, help="after one that is not counted")
    args = parser.parse_args()
    contenders = {"this project": OURS, f"Keras on {os.environ.get('KERAS_BACKEND', 'its default backend')}": KERAS}
    told = {name: [] for name in contenders}
    for round_ in range(args.rounds + 1):
        for name, code in contenders.items():
            figures = measure(code, os.path.abspath(args.data))
            if round_:
                told[name].append(figures)
                print(f"round {round_}: {name} {figures[0]:.1f} s, {figures[1]:.2f} GB", flush=True)
    print("\n| | seconds to the first step | most memory of an epoch, GB |\n|---|---|---|")
    for name, figures in told.items():
        cells = [
            f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
            for values, digits in zip(zip(*figures, strict=True), (1, 2), strict=True)
        ]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
