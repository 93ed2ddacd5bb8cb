"""Which code computes a run's metrics: runs of different code are not pooled, and a resumed run reports a change."""

import hashlib
from pathlib import Path

TRAIN, KERAS = "train.py", "reference/keras_notebook.py"  # the programs that write a run's directory
ROOT = Path(__file__).parent.parent
# For each program, its files that affect a metric. The others that train.py imports affect none, or only through the
# options and the data's hash.
DECIDING = {
    TRAIN: (
        "batchnorm.py", "callbacks.py", "data.py", "metrics.py", "model.py", "optim.py", "running/arithmetic.py",
        "running/distributed.py", "running/history.py", "train.py",
    ),
    KERAS: (KERAS, "reference/notebook.py", "reference/replay.py"),
}  # fmt: skip


def sha256(program: str) -> str:
    """Return a hash of the files that affect the metrics of `program`, regardless of line endings."""
    digest = hashlib.sha256()
    for name in DECIDING.get(program, (program,)):
        text = (ROOT / name).read_bytes().replace(b"\r\n", b"\n")
        digest.update(f"{name} {len(text)}\n".encode() + text)
    return digest.hexdigest()
