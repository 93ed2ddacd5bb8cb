"""The offline stand-in for CIFAR-10: drawn from a frozen random stream, the same on every machine."""

import numpy as np

from sources.source import Arrays, Source, numbered

SYNTHETIC = "synthetic"  # its value of --data
CLASSES = 10


class StandIn(Source):
    """10 classes, 5,000 training and 1,000 test images, drawn in a second."""

    def load(self) -> Arrays:
        return synthetic()

    def describe(self) -> str:
        return "synthetic stand-in, NOT CIFAR-10"

    def title(self) -> str:
        return self.describe()


def synthetic() -> Arrays:
    """Draw the images: each class is a pattern of colours, mixed with another class's, shifted, and with noise."""
    # Only integers from RandomState: numpy has frozen that stream, and no machine can round them differently.
    random = np.random.RandomState(10)
    patterns = random.randint(0, 256, (CLASSES, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = random.permutation(n) % CLASSES
        others = random.randint(0, CLASSES, n)
        share = random.randint(45, 101, (n, 1, 1, 1))  # per cent of the image's own class
        mixed = (share * patterns[labels] + (100 - share) * patterns[others]) // 100
        rows = (np.arange(32) + random.randint(0, 12, (n, 1))) % 32
        columns = (np.arange(32) + random.randint(0, 12, (n, 1))) % 32
        shifted = mixed[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
        noise = random.randint(-64, 65, shifted.shape)
        return np.clip(shifted + noise, 0, 255).astype(np.uint8), labels.astype(np.int64)

    return Arrays(*draw(5_000), *draw(1_000), numbered(CLASSES))  # CIFAR-10's names would mean nothing
