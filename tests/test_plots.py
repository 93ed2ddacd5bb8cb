import io
import subprocess
import sys

import numpy as np
from conftest import ROOT
from matplotlib.colors import to_rgb
from PIL import Image

import plots

HISTORY = [
    {"accuracy": 0.4 + e / 20, "val_accuracy": 0.5 + e / 40, "loss": 2 - e / 8, "val_loss": 1.5 - e / 20}
    for e in range(9)
]
RATES = [1e-3] * 5 + [5e-4] * 4


def draw(**changes):
    given = {"history": HISTORY, "learning_rates": RATES, "best_epoch": 4, "cuts": [6], "title": "a run"} | changes
    return Image.open(io.BytesIO(plots.curves(**given)))


def test_the_picture_is_14_by_4_inches_with_three_panels_that_are_not_empty():
    picture = draw()
    assert picture.size == (1400, 400)
    grey = np.asarray(picture.convert("L"))
    for panel in range(3):
        assert (grey[60:350, panel * 467 + 80 : panel * 467 + 440] < 200).sum() > 500


def test_best_epoch_and_cuts_are_marked():
    plain = np.asarray(draw(cuts=[]))
    assert (np.asarray(draw()) != plain).any()
    assert (np.asarray(draw(cuts=[], best_epoch=7)) != plain).any()


def test_one_epoch_is_enough_for_a_picture():
    assert draw(history=HISTORY[:1], learning_rates=RATES[:1], best_epoch=1, cuts=[]).size == (1400, 400)


def test_training_and_validation_stay_apart_without_colour():
    def lightness(style):
        return np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114))

    assert abs(lightness(plots.TRAINING) - lightness(plots.VALIDATION)) > 0.3
    assert plots.TRAINING["linestyle"] != plots.VALIDATION["linestyle"]


def test_the_title_is_drawn():
    assert (np.asarray(draw())[:25] != np.asarray(draw(title="another run"))[:25]).any()


def test_drawing_leaves_pyplot_alone():
    # In a process of its own: here another test may have imported it already.
    drawn = f"plots.curves({HISTORY}, {RATES}, 4, [6], 'a')"
    code = f"import sys, plots; {drawn}; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
