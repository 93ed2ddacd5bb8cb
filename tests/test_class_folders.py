"""A folder of class folders as `--data`: trained on, resumed, predicted and compared; what is refused, and said."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import compare
import predict
import sources
import train
from cli.errors import BadInput
from running.outcome import CONFIG, HISTORY, WEIGHTS
from sources import class_folders

COLOURS = {"blue": (0, 0, 180), "green": (0, 180, 0), "red": (180, 0, 0)}


def draw(folder, count, sizes=((16, 16),), classes=COLOURS, mode="RGB"):
    """Write pictures of the colour that their class is called by, a little brighter each; sizes (width, height)."""
    random = np.random.default_rng(len(str(folder)))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            width, height = sizes[number % len(sizes)]
            pixels = random.integers(0, 60, (height, width, 3)) + np.array(COLOURS[name])
            image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
            image.save(folder / name / f"{number}.png")
    return folder


TREES = {
    "of one size": lambda folder: (draw(folder / "train", 20), draw(folder / "test", 4)),
    "of several sizes": lambda folder: (
        draw(folder / "train", 20, ((20, 30), (16, 16), (40, 18))),
        draw(folder / "validation", 4),
    ),
    "without a test part": lambda folder: draw(folder, 24),
}


def test_the_folder_in_which_one_works_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path / "colours", 4))
    assert sources.choose(".").short_name() == "colours"


@pytest.mark.parametrize("tree", TREES)
def test_a_folder_is_trained_on_resumed_predicted_and_compared_and_a_change_is_noticed(
    tree, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    TREES[tree](tmp_path / "colours")
    flags = ["--data", "colours", "--batch-size", "8", *["--image-size", "16"] * (tree == "of several sizes")]
    assert train.main([*flags, "--epochs", "3"]) == 0
    run = tmp_path / "runs" / "baseline-colours-seed0"
    printed = capsys.readouterr().out
    assert "pictures in colours: 48 training, 12 validation, 12 test images of 16x16x3, 3 classes\n" in printed
    assert json.loads((run / CONFIG).read_text())["class_names"] == ["blue", "green", "red"]
    whole = {name: (run / name).read_bytes() for name in (HISTORY, WEIGHTS)}
    shutil.rmtree(run)
    assert train.main([*flags, "--epochs", "1"]) == 0
    assert train.main(["--resume", str(run), "--epochs", "3"]) == 0
    assert {name: (run / name).read_bytes() for name in whole} == whole

    capsys.readouterr()
    part = tmp_path / "colours" / ("" if tree == "without a test part" else "train")
    assert predict.main([str(run), str(part / "green"), "--top", "1"]) == 0
    answers = [line.split(": ")[1].split()[0] for line in capsys.readouterr().out.splitlines()]
    assert answers.count("green") > 0.8 * len(answers)
    assert train.main([*flags, "--epochs", "3", "--seed", "1"]) == 0
    assert compare.main(["runs/baseline-colours-seed0", "runs/baseline-colours-seed1", "--out", "compared"]) == 0

    black = part / "red" / "7.png"
    Image.new("RGB", Image.open(black).size).save(black)
    capsys.readouterr()
    assert train.main(["--resume", str(run), "--epochs", "4"]) == 2
    assert "other images or labels than" in capsys.readouterr().err


def test_a_picture_of_the_size_is_taken_as_it_is_and_validation_has_all_classes(tmp_path):
    folder = draw(tmp_path / "colours", 30)
    loaded = sources.choose(str(folder)).load()
    stored = {np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png")}
    assert {image.tobytes() for part in (loaded.x_train, loaded.x_test) for image in part} == stored
    assert np.bincount(loaded.y_test).tolist() == [5, 5, 5]  # a sixth of each
    assert set(loaded.y_train[-15:]) == {0, 1, 2}


def test_the_parts_depend_on_names_and_not_on_the_folder_s_place_or_order(tmp_path):
    first = sources.choose(str(draw(tmp_path / "a", 12))).load()
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    second = sources.choose(str(tmp_path / "elsewhere" / "b")).load()
    assert all(map(np.array_equal, first[:4], second[:4]))


def test_pictures_that_lie_on_their_side_have_the_size_of_upright_ones(tmp_path):
    folder = draw(tmp_path / "colours", 6, sizes=((20, 10),))
    for ending in ("tif", "jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (10, 20)).save(folder / "red" / f"turned.{ending}", exif=exif)
    assert sources.choose(str(folder)).load().image_shape == (10, 20, 3)


def test_names_that_are_no_text_are_taken(tmp_path):
    folder = draw(tmp_path / "colours", 6)
    (folder / "red").rename(os.fsdecode(bytes(folder) + b"/r\xe9d"))
    assert sources.choose(str(folder)).load().class_names == ("blue", "green", "r\\udce9d")


def test_grey_pictures_have_one_channel(tmp_path):
    assert sources.choose(str(draw(tmp_path / "grey", 6, mode="L"))).load().image_shape == (16, 16, 1)


def test_what_is_left_out_is_said_in_a_line_each(tmp_path, capsys):
    folder = draw(tmp_path / "train", 6).parent
    draw(tmp_path / "valid", 2, classes=["blue", "green"])
    (folder / "train" / "red" / "notes.txt").touch()
    (folder / "train" / "red" / ".hidden.png").touch()
    (folder / "more").mkdir()
    sources.choose(str(folder)).load()
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/valid is used as the test part; validation is the last part of train.",
        f"Left out in {folder}: more; validation is the last part of train.",
        f"Left out, because their suffix is not a picture's: {folder}/train/red/notes.txt.",
        f"No picture in {folder}/valid of: red.",
    ]


def test_a_folder_that_is_no_class_because_no_picture_is_in_it_is_said(tmp_path, capsys):
    folder = draw(tmp_path / "colours", 6)
    for number in range(4):
        (folder / "red" / f"{number}.png").rename(folder / "red" / f"{number}.heic")
    for file in (folder / "red").glob("*.png"):
        file.unlink()
    (folder / "empty").mkdir()
    assert sources.choose(str(folder)).load().class_names == ("blue", "green")
    names = ", ".join(f"{folder}/red/{number}.heic" for number in range(3))
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"Left out, because their suffix is not a picture's: {names} and 1 more.",
        f"No class, because no picture is in it: {folder}/empty, {folder}/red.",
    ]


def test_pictures_behind_links_to_folders_are_taken_once_even_where_links_go_round_in_a_circle(tmp_path):
    folder = draw(tmp_path / "colours", 6)
    draw(tmp_path / "more", 6)
    (folder / "red" / "more").symlink_to(tmp_path / "more" / "red")
    (folder / "red" / "again").symlink_to(tmp_path / "more" / "red")
    (folder / "red" / "round").symlink_to(folder / "red")
    (folder / "red" / "up").symlink_to(folder)
    (folder / "yellow").symlink_to(tmp_path / "more" / "blue")
    loaded = sources.choose(str(folder)).load()
    assert loaded.class_names == ("blue", "green", "red", "yellow")
    assert np.bincount(np.concatenate([loaded.y_train, loaded.y_test])).tolist() == [6, 6, 12, 6]


REFUSED = {
    "several sizes": (lambda folder: draw(folder, 6, ((8, 8), (9, 7))), ["8x8 (9)", "7x9 (9)", "--image-size HxW"]),
    "one class": (lambda folder: draw(folder, 6, classes=["red"]), ["one folder of pictures, red"]),
    "a broken picture": (
        lambda folder: (draw(folder, 6) / "red" / "3.png").write_bytes(b"\x89PNG\r\n"),
        ["red/3.png: not a readable image"],
    ),
    "a picture that is cut": (
        lambda folder: (draw(folder, 6) / "red" / "3.png").write_bytes((folder / "red" / "2.png").read_bytes()[:300]),
        ["red/3.png: not a readable image"],
    ),
    "a test part without classes": (
        lambda folder: (draw(folder / "train", 6), (folder / "test").mkdir()),
        ["no pictures in folders of classes in test; pictures lie in CLASS/*"],
    ),
    "a training part without classes": (
        lambda folder: (draw(folder / "test", 2), (folder / "train").mkdir()),
        ["no folders of pictures in ", "train/CLASS/* and test/CLASS/*"],
    ),
    "a class that training lacks": (
        lambda folder: (draw(folder / "train", 6, classes=["red", "green"]), draw(folder / "test", 2)),
        ["test has blue, no class of train"],
    ),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_trained_on_is_refused_by_name(make, words, tmp_path):
    make(tmp_path / "pictures")
    with pytest.raises(BadInput) as refusal:
        sources.choose(str(tmp_path / "pictures")).load()
    assert all(word in str(refusal.value) for word in words)


SIZES = [("32", (32, 32)), ("32x48", (32, 48)), ("0", None), ("32x", None), ("a", None)]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_one_number_or_two(text, size):
    assert class_folders.size(text) == size


def test_a_size_for_other_data_is_refused(npz, capsys):
    assert train.main(["--data", str(npz), "--image-size", "16"]) == 2
    assert f"--image-size 16x16: {npz} has no pictures to scale" in capsys.readouterr().err
