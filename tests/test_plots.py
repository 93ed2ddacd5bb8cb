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


def falling(start, epochs=12):
    values = [start * 0.9**epoch for epoch in range(epochs)]
    return {"accuracy": values, "val_accuracy": values[::-1], "loss": values, "val_loss": values[::-1]}


def painted(groups):
    """How many pixels of the panels, legend left out, have each group's colour, or a band's lighter one."""
    picture = np.asarray(Image.open(io.BytesIO(plots.overlay(groups))).convert("RGB"))[:400].astype(int)
    pure = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in plots.GROUPS[: len(groups)]]
    band = [255 - 0.15 * (255 - colour) for colour in pure]
    return [[int((np.abs(picture - colour).sum(2) < 12).sum()) for colour in colours] for colours in (pure, band)]


def test_an_overlay_draws_each_group_in_its_colour_and_a_band_only_for_several_runs():
    lines, bands = painted({"one": [falling(1.0)], "two": [falling(0.5), falling(0.7)]})
    assert min(lines) > 300
    assert bands[1] > 3000
    assert bands[0] < 500  # the rims of lines and letters


def test_an_overlay_leaves_out_what_a_history_lacks():
    whole, _ = painted({"one": [falling(1.0)]})
    part, _ = painted({"one": [{"loss": falling(1.0)["loss"]}]})
    assert 50 < part[0] < whole[0]


def test_an_overlay_of_runs_of_several_lengths_goes_as_far_as_half_of_them():
    short, long = falling(1.0, 4), falling(1.0, 12)
    assert plots.overlay({"g": [short, short, short, long]}) != plots.overlay({"g": [short, short, long, long]})
    three = {name: values[:4] for name, values in long.items()}
    assert plots.overlay({"g": [short, short, short, long]}) == plots.overlay({"g": [short, short, short, three]})


def test_an_overlay_has_a_colour_for_each_of_many_groups():
    groups = {str(number): [falling(1.0 + number)] for number in range(12)}
    assert Image.open(io.BytesIO(plots.overlay(groups))).size == (1400, 450)


def test_the_confusion_is_darkest_where_most_images_of_a_class_went():
    matrix = [[100, 0], [300, 100]]
    grey = np.asarray(Image.open(io.BytesIO(plots.confusion(matrix, ("a", "b"), "t"))).convert("L")).astype(int)
    assert grey.shape == (700, 800)
    inside = grey[100:600, 150:600]  # the panel
    first, second = np.median(inside[:200, :150]), np.median(inside[-200:, -150:])
    assert first < 80 < second  # 100 of 100 on the diagonal, then 100 of 400


def test_a_class_without_images_is_drawn_white():
    assert plots.confusion([[0, 0], [0, 5]], ("a", "b"), "t")
