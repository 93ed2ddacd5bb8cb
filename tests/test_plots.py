import io
import os
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

import plots

pytestmark = pytest.mark.pictures

RATES = [1e-3] * 5 + [5e-4] * 4
HISTORY = [
    {"accuracy": 0.4 + e / 20, "val_accuracy": 0.5 + e / 40, "loss": 2 - e / 8, "val_loss": 1.5 - e / 20}
    | {"learning_rate": rate}
    for e, rate in enumerate(RATES)
]


def curves(**changes):
    given = {"history": HISTORY, "best_epoch": 4, "cuts": [6], "loss_name": "loss"}
    return plots.curves(**given | {"title": "a run"} | changes)


def overlay(groups, loss_name="loss", rate_name="learning rate"):
    return plots.overlay(groups, loss_name, rate_name, "a title")


def draw(**changes):
    return Image.open(io.BytesIO(curves(**changes)))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that matplotlib would draw, in order; drawing takes time and is skipped."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **options: figures.append(figure))
    return figures


def lines(axes):
    """The lines of a panel by their names in the legend: x values, y values and style."""
    return {
        line.get_label(): ([*line.get_xdata()], [*line.get_ydata()], line.get_linestyle()) for line in axes.get_lines()
    }


def steps(axes):
    """The values of each stepped line; the steps begin half an epoch before the first epoch."""
    for line in axes.patches:
        assert [*line.get_data().edges] == [number + 0.5 for number in range(len(line.get_data().values) + 1)]
    return [[*line.get_data().values] for line in axes.patches]


def upright(axes, style):
    """The epochs at which vertical lines of this style stand."""
    found = [line.get_xdata() for line in axes.get_lines() if line.get_linestyle() == style]
    return [x[0] for x in found if len(x) == 2 and x[0] == x[1]]


def test_the_picture_is_14_by_4_inches_with_three_panels_that_are_not_empty():
    picture = draw()
    assert picture.size == (1400, 400)
    grey = np.asarray(picture.convert("L"))
    for panel in range(3):
        assert (grey[60:350, panel * 467 + 80 : panel * 467 + 440] < 200).sum() > 500


def test_the_curves_show_the_history_with_training_dashed_and_validation_solid(drawn):
    curves()
    accuracy, loss, rate = drawn[0].axes
    epochs = [*range(1, 10)]
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        assert axes.get_title() == name.capitalize()
        found = lines(axes)
        assert found["training"] == (epochs, [logs[name] for logs in HISTORY], "--")
        assert found["validation"] == (epochs, [logs[f"val_{name}"] for logs in HISTORY], "-")
    assert steps(rate) == [RATES]


def test_the_best_epoch_and_the_learning_rate_cuts_are_marked_at_their_epochs(drawn):
    curves(best_epoch=4, cuts=[6, 8])
    curves(best_epoch=7, cuts=[])
    for figure, best, cuts in zip(drawn, (4, 7), ([6, 8], []), strict=True):
        assert len(figure.axes) == 3
        for axes in figure.axes:
            assert lines(axes)[f"best epoch ({best})"][0] == [best, best]
            assert upright(axes, ":") == [best]
            assert upright(axes, "-.") == cuts
        (legend,) = figure.legends
        named = ["training", "validation", f"best epoch ({best})", *["learning rate cut"] * bool(cuts)]
        assert [text.get_text() for text in legend.get_texts()] == named


def test_one_epoch_is_enough_for_a_picture(drawn):
    curves(history=HISTORY[:1], best_epoch=1, cuts=[])
    accuracy, _, rate = drawn[0].axes
    assert lines(accuracy)["training"][:2] == ([1], [0.4])
    assert steps(rate) == [[1e-3]]


def test_training_and_validation_can_be_told_apart_without_colour():
    def lightness(style):
        return np.dot(to_rgb(style["color"]), (0.299, 0.587, 0.114))

    assert abs(lightness(plots.TRAINING) - lightness(plots.VALIDATION)) > 0.3
    assert plots.TRAINING["linestyle"] != plots.VALIDATION["linestyle"]


def test_the_title_is_drawn():
    assert (np.asarray(draw())[:25] != np.asarray(draw(title="another run"))[:25]).any()


def test_the_users_matplotlib_settings_do_not_change_a_picture_and_a_missing_glyph_gives_no_warning():
    plain = curves(title="a run 中")
    with matplotlib.rc_context({"text.usetex": True, "savefig.bbox": "tight", "lines.linewidth": 9}):
        with warnings.catch_warnings(action="error"):
            assert curves(title="a run 中") == plain
        assert matplotlib.rcParams["text.usetex"]  # the user's own setting is still in place


def test_drawing_does_not_import_pyplot_and_ignores_the_backend_named_in_the_environment():
    # In a process of its own: here another test may have imported it already.
    drawn = f"plots.curves({HISTORY}, 4, [6], 'loss', 'a')"
    code = f"import sys, plots; {drawn}; sys.exit('matplotlib.pyplot' in sys.modules)"
    environment = os.environ | {"MPLBACKEND": "module://a_notebook.s_own"}
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False).returncode == 0


def falling(start, epochs=12):
    values = [start * 0.9**epoch for epoch in range(epochs)]
    return {"accuracy": values, "val_accuracy": values[::-1], "loss": values, "val_loss": values[::-1]}


def painted(groups):
    """How many pixels of the panels, without the legend, have each group's colour, or a band's lighter one."""
    picture = np.asarray(Image.open(io.BytesIO(overlay(groups))).convert("RGB"))[:400].astype(int)
    pure = [np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) for colour in plots.GROUPS[: len(groups)]]
    band = [255 - 0.15 * (255 - colour) for colour in pure]
    return [[int((np.abs(picture - colour).sum(2) < 12).sum()) for colour in colours] for colours in (pure, band)]


def test_an_overlay_draws_each_group_in_its_colour_and_a_band_only_for_several_runs():
    lines, bands = painted({"one": [falling(1.0)], "two": [falling(0.5), falling(0.7)]})
    assert min(lines) > 300
    assert bands[1] > 3000
    assert bands[0] < 500  # the edges of lines and letters


def test_an_overlays_line_is_the_mean_of_the_runs_and_its_band_spans_their_range(drawn):
    runs = [falling(1.0), falling(0.5), falling(0.7)]
    overlay({"one": [falling(2.0)], "three": runs})
    (legend,) = drawn[0].legends
    named = {text.get_text(): line for text, line in zip(legend.get_texts(), legend.get_lines(), strict=True)}
    assert [named[label].get_color() for label in ("one", "three, mean and range of 3 runs")] == [*plots.GROUPS[:2]]
    assert named["training"].get_linestyle() == "--"
    assert named["validation and learning rate"].get_linestyle() == "-"
    accuracy, loss, rate = drawn[0].axes
    assert (accuracy.get_title(), loss.get_title(), rate.get_title()) == ("Accuracy", "Loss", "Learning rate")
    assert not rate.get_lines()
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        found = {(line.get_color(), line.get_linestyle()): line for line in axes.get_lines()}
        for style, column in (("--", name), ("-", f"val_{name}")):
            single, mean = (found[plots.GROUPS[number], style] for number in (0, 1))
            assert [*single.get_ydata()] == falling(2.0)[column]
            assert [*mean.get_xdata()] == [*range(1, 13)]
            np.testing.assert_allclose(mean.get_ydata(), np.mean([run[column] for run in runs], axis=0))
        assert len(found) == len(axes.get_lines()) == 4
        for band, values in zip(axes.collections, (runs[0][name], runs[0][f"val_{name}"]), strict=True):
            corners = band.get_paths()[0].vertices
            for epoch, greatest in enumerate(values, start=1):
                there = corners[corners[:, 0] == epoch, 1]
                assert (there.min(), there.max()) == pytest.approx((greatest / 2, greatest))


def test_an_overlay_draws_each_runs_learning_rate_as_steps_with_a_single_run_on_top(drawn):
    one = {"loss": [3.0, 2.0, 1.0], "learning_rate": [0.1, 0.1, 0.05]}
    cut = {"loss": [3.0, 2.0, 1.0], "learning_rate": [0.1, 0.05, 0.05]}
    overlay({"one": [one], "two": [one, cut]})
    _, loss, rate = drawn[0].axes
    assert steps(rate) == [run["learning_rate"] for run in (one, one, cut)]
    single, *group = rate.patches
    assert all(single.get_zorder() > line.get_zorder() for line in group)
    assert all(single.get_linewidth() > line.get_linewidth() for line in group)
    single, mean = loss.get_lines()
    assert single.get_zorder() > mean.get_zorder()


def test_a_run_of_a_thousand_epochs_is_drawn(drawn):
    history = [HISTORY[0] | {"learning_rate": 1e-3 * 0.99**epoch} for epoch in range(1000)]
    curves(history=history, best_epoch=990, cuts=[])
    assert len(steps(drawn[0].axes[2])[0]) == 1000


def test_an_overlay_leaves_out_missing_columns_and_an_empty_panel_says_not_logged(drawn):
    overlay({"one": [{"loss": [2.0, 1.0]}]})
    accuracy, loss, rate = drawn[0].axes
    assert not accuracy.get_lines()
    assert not rate.get_lines()
    (line,) = loss.get_lines()
    assert ([*line.get_xdata()], [*line.get_ydata()], line.get_linestyle()) == ([1, 2], [2.0, 1.0], "--")
    for axes in (accuracy, rate):  # they say so, instead of showing empty axes
        assert [text.get_text() for text in axes.texts] == ["not logged"]
        assert [*axes.get_xticks(), *axes.get_yticks()] == []


@pytest.mark.parametrize("interval", [None, (0.4, 0.6)])
def test_a_grids_axis_mentions_the_interval_only_if_there_is_one(interval, drawn):
    plots.settings([("a", 0.5, interval), ("b", 0.4, None)])
    named = drawn[0].axes[0].get_xlabel()
    assert named == "validation accuracy at the best epoch" + (", mean and its 95 % interval" if interval else "")


@pytest.mark.parametrize(("lengths", "end"), [((4, 4, 4, 12), 4), ((12, 12), 12), ((6, 4, 12), 4), ((5,), 5)])
def test_a_mean_ends_with_the_shortest_run_and_longer_runs_continue_as_thin_lines(lengths, end, drawn):
    runs = [falling(1.0 + number, length) for number, length in enumerate(lengths)]
    overlay({"g": runs})
    axes = drawn[0].axes[1]
    mean, *alone = [line for line in axes.get_lines() if line.get_linestyle() == "--"]
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert ("runs that went on longer" in named) is (max(lengths) > end)
    assert [*mean.get_xdata()] == [*range(1, end + 1)]
    np.testing.assert_allclose(mean.get_ydata(), np.mean([run["loss"][:end] for run in runs], axis=0))
    for band in axes.collections:
        assert band.get_paths()[0].vertices[:, 0].max() == end
    longer = [run["loss"] for run in runs if len(run["loss"]) > end]
    assert [[*line.get_ydata()] for line in alone] == [values[end - 1 :] for values in longer]
    for line in alone:
        assert line.get_xdata()[0] == end
        assert line.get_linewidth() < mean.get_linewidth()
        assert line.get_color() == mean.get_color()


def test_epochs_without_a_value_are_left_out_of_lines_and_means(drawn):
    nan = float("nan")
    overlay({"one": [{"val_loss": [nan, 2.0, nan, 1.0]}]})
    overlay({"two": [{"val_loss": [nan, 2.0, nan, 1.0]}, {"val_loss": [9.0, 4.0, 9.0, 3.0]}]})
    for figure, values in zip(drawn, ([2.0, 1.0], [3.0, 2.0]), strict=True):
        (line,) = figure.axes[1].get_lines()
        assert ([*line.get_xdata()], [*line.get_ydata()]) == ([2, 4], values)


@pytest.mark.parametrize(
    ("rates", "scale"),
    [([1e-3, 1e-3, 5e-4], "linear"), ([1e-3, 1e-3 / 20], "linear"), ([1e-3, 1e-3 / 21], "log"), ([1e-3, 0], "linear")],
)
def test_learning_rates_are_on_a_logarithmic_axis_where_they_span_more_than_a_factor_of_20(rates, scale, drawn):
    history = [logs | {"learning_rate": rate} for logs, rate in zip(HISTORY, rates, strict=False)]
    curves(history=history, best_epoch=1, cuts=[])
    overlay({"g": [{"loss": rates, "learning_rate": rates}]})
    for figure in drawn:
        axes = figure.axes[2]
        assert axes.get_yscale() == scale
        assert scale == "log" or axes.get_ylim()[0] == 0


def test_pictures_state_which_rate_and_which_loss_they_show(drawn):
    curves(loss_name="loss with L2 penalty")
    overlay({"g": [{"loss": [1.0], "learning_rate": [0.1]}]}, "loss", "learning rate as logged")
    plots.confusion([[1]], ("a",), "t")
    one, other, confusion = ([axes.get_ylabel() for axes in figure.axes[1:]] for figure in drawn)
    assert one == ["loss with L2 penalty", plots.RATE_NAME]
    assert other == ["loss", "learning rate as logged"]
    assert confusion == ["share of the true class"]


def test_no_colour_means_two_things_across_the_pictures(drawn):
    curves()
    overlay({str(number): [falling(1.0 + number)] for number in range(6)})
    overlay({str(number): [falling(1.0 + number)] for number in range(12)})
    plots.confusion([[3, 1], [0, 2]], ("a", "b"), "t")
    one, few, many, confusion = drawn
    accuracy, loss, rate = one.axes
    meaning = {
        name: {to_rgb(line.get_color()) for axes in panels for line in axes.get_lines() if line.get_label() == name}
        for name, panels in {
            "training": [accuracy, loss],
            "validation": [accuracy, loss],
            "learning rate cut": [accuracy, loss, rate],
        }.items()
    }
    meaning["learning rate"] = {to_rgb(line.get_edgecolor()) for line in rate.patches}
    assert [len(colours) for colours in meaning.values()] == [1, 1, 1, 1]
    found = [colour for colours in meaning.values() for colour in colours]
    assert len({*found}) == 4
    for figure, count in ((few, 6), (many, 12)):
        groups = {to_rgb(line.get_color()) for line in figure.axes[1].get_lines()}
        assert len(groups) == count
        assert min(np.abs(np.subtract(a, b)).sum() for a in groups for b in found) > 0.2
    (image,) = confusion.axes[0].images
    assert all(len({*image.cmap(value)[:3]}) == 1 for value in (0.2, 0.5, 0.9))  # grey: none of the other colours


def test_an_overlay_has_a_colour_for_each_of_many_groups(drawn):
    overlay({str(number): [falling(1.0 + number)] for number in range(12)})
    colours = [to_rgb(line.get_color()) for line in drawn[0].axes[1].get_lines()]
    assert len(colours) == 24
    assert len({*colours}) == 12
    named = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert named[:12] == [str(number) for number in range(12)]


def test_the_picture_of_many_groups_is_taller_and_has_no_title(drawn):
    for count in (2, 40):
        overlay({str(number): [falling(1.0 + number)] for number in range(count)})
    few, many = drawn
    assert few._suptitle.get_text() == "a title"
    assert many._suptitle is None
    assert many.get_figheight() > few.get_figheight() + 2


def test_the_confusion_matrix_has_true_classes_down_and_predicted_classes_across(drawn):
    matrix = [[3, 1, 0], [0, 2, 2], [0, 0, 5]]
    plots.confusion(matrix, ("a", "b", "c"), "t")
    axes = drawn[0].axes[0]
    (image,) = axes.images
    assert image.get_array().tolist() == [[0.75, 0.25, 0.0], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0]]
    assert image.get_clim() == (0, 1)
    assert image.origin == "upper"
    assert {text.get_position(): text.get_text() for text in axes.texts} == {
        (across, down): str(matrix[down][across]) for down in range(3) for across in range(3)
    }
    assert axes.get_xlabel() == "predicted class"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a  75.0%", "b  50.0%", "c  100.0%"]


def test_the_confusion_matrix_is_darkest_where_the_share_of_the_true_class_is_largest():
    matrix = [[100, 0], [300, 100]]
    grey = np.asarray(Image.open(io.BytesIO(plots.confusion(matrix, ("a", "b"), "t"))).convert("L")).astype(int)
    assert grey.shape == (700, 800)
    inside = grey[100:600, 150:600]  # the panel
    first, second = np.median(inside[:200, :150]), np.median(inside[-200:, -150:])
    assert first < 80 < second  # 100 of 100 on the diagonal, then 100 of 400


def test_a_class_without_images_is_drawn_white(drawn):
    plots.confusion([[0, 0], [0, 5]], ("a", "b"), "t")
    (image,) = drawn[0].axes[0].images
    assert image.get_array().tolist() == [[0, 0], [0, 1]]
    assert to_rgb(image.cmap(image.norm(0))[:3]) == pytest.approx((1, 1, 1), abs=0.04)


def test_a_curve_of_one_point_has_a_visible_marker(drawn):
    overlay({"one": [{"loss": [2.0]}], "two": [{"loss": [2.0, 1.0]}]})
    single, line = drawn[0].axes[1].get_lines()
    assert single.get_marker() == "."
    assert line.get_marker() == "None"


def test_names_with_math_markup_are_drawn_literally(drawn):
    overlay({"$x^$_{%s}": [{"loss": [2.0, 1.0]}]})
    curves(title="$x^$_{%s}")
    plots.confusion([[1]], ("a",), "$x^$_{%s}")
    texts = [drawn[0].legends[0].get_texts()[0], *(figure._suptitle for figure in drawn[1:])]
    assert [(text.get_text(), text.get_parse_math()) for text in texts] == [("$x^$_{%s}", False)] * 3


def test_the_rate_axis_starts_at_zero_and_epoch_ticks_are_whole_numbers(drawn):
    curves(history=HISTORY[:2], best_epoch=1, cuts=[])
    overlay({"one": [{"loss": [2.0, 1.0], "learning_rate": [1e-3, 5e-4]}]})
    for figure in drawn:
        assert figure.axes[2].get_ylim()[0] == 0
        for axes in figure.axes:
            assert all(tick == int(tick) for tick in axes.get_xticks())


def test_counts_are_white_on_dark_cells_and_black_on_light_ones(drawn):
    plots.confusion([[9, 1], [1, 9]], ("a", "b"), "t")
    found = {text.get_position(): text.get_color() for text in drawn[0].axes[0].texts}
    assert found == {(0, 0): "white", (1, 1): "white", (0, 1): "black", (1, 0): "black"}


@pytest.mark.pictures
def test_a_single_epoch_is_drawn_as_a_point_and_its_axis_has_whole_epochs(drawn):
    logs = {"accuracy": 0.4, "val_accuracy": 0.5, "loss": 1.8, "val_loss": 1.4, "learning_rate": 1e-3}
    plots.curves([logs], 1)
    for axes in drawn[0].axes[:2]:
        curves = [
            line for line in axes.get_lines() if line.get_linestyle() in ("-", "--") and len(line.get_xdata()) == 1
        ]
        assert curves
        assert all(line.get_marker() == "o" for line in curves)
        assert [tick for tick in axes.get_xticks() if 0.5 <= tick <= 1.5] == [1]
