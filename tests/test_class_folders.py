"""A folder of class folders as `--data`: trained on, resumed, predicted, compared; what is refused or reported."""

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
from sources import class_folders, pictures

COLOURS = {"blue": (0, 0, 180), "green": (0, 180, 0), "red": (180, 0, 0)}


def draw(folder, count, sizes=((16, 16),), classes=COLOURS, mode="RGB"):
    """Write noisy pictures in the colour that their class is named after; sizes are (width, height)."""
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


def test_the_current_folder_as_data_is_called_by_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(draw(tmp_path / "colours", 4))
    assert sources.choose(".").short_name() == "colours"


@pytest.mark.parametrize("tree", TREES)
def test_a_folder_can_be_trained_on_resumed_predicted_and_compared_and_a_change_in_it_is_noticed(
    tree, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    TREES[tree](tmp_path / "colours")
    flags = ["--data", "colours", "--batch-size", "8", *["--image-size", "16"] * (tree == "of several sizes")]
    assert train.main([*flags, "--epochs", "3"]) == 0
    run = tmp_path / "runs" / "baseline-colours-seed0"
    printed = capsys.readouterr().out
    assert (
        "pictures in colours: 48 training, 12 validation, 12 test images of 16x16x3, 3 classes: blue, green, red\n"
        in printed
    )
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


def test_pictures_of_the_right_size_are_used_unchanged_and_every_part_has_all_classes(tmp_path):
    folder = draw(tmp_path / "colours", 30)
    loaded = sources.choose(str(folder)).load()
    stored = {np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png")}
    assert {image.tobytes() for part in (loaded.x_train, loaded.x_test) for image in part} == stored
    assert np.bincount(loaded.y_test).tolist() == [5, 5, 5]  # a sixth of each
    assert set(loaded.y_train[-15:]) == {0, 1, 2}


def test_the_split_into_parts_depends_on_file_names_and_not_on_where_the_folder_lies(tmp_path):
    first = sources.choose(str(draw(tmp_path / "a", 12))).load()
    shutil.copytree(tmp_path / "a", tmp_path / "elsewhere" / "b")
    second = sources.choose(str(tmp_path / "elsewhere" / "b")).load()
    assert all(map(np.array_equal, first[:4], second[:4]))
    for path in [*(tmp_path / "a").rglob("*.png")]:
        path.rename(path.with_name(f"renamed-{path.name}"))
    assert not np.array_equal(sources.choose(str(tmp_path / "a")).load().x_test, first.x_test)


def test_pictures_rotated_by_exif_have_the_size_of_upright_ones(tmp_path):
    folder = draw(tmp_path / "colours", 6, sizes=((20, 10),))
    for ending in ("tif", "jpg"):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (10, 20)).save(folder / "red" / f"turned.{ending}", exif=exif)
    assert sources.choose(str(folder)).load().image_shape == (10, 20, 3)


def test_a_class_folder_whose_name_is_not_valid_utf_8_is_accepted(tmp_path):
    folder = draw(tmp_path / "colours", 6)
    (folder / "red").rename(os.fsdecode(bytes(folder) + b"/r\xe9d"))
    assert sources.choose(str(folder)).load().class_names == ("blue", "green", "r\\udce9d")


def test_grey_pictures_have_one_channel(tmp_path):
    assert sources.choose(str(draw(tmp_path / "grey", 6, mode="L"))).load().image_shape == (16, 16, 1)


def test_each_kind_of_skipped_file_or_folder_is_reported_in_one_line(tmp_path, capsys):
    folder = draw(tmp_path / "train", 6).parent
    draw(tmp_path / "valid", 2)
    (folder / "train" / "red" / "notes.txt").touch()
    (folder / "train" / "red" / ".hidden.png").touch()
    (folder / "more").mkdir()
    sources.choose(str(folder)).load()
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/valid is used as the test part; validation is the last part of train.",
        f"Left out in {folder}: more; validation is the last part of train.",
        f"Left out, because their suffix is not a picture's: {folder}/train/red/notes.txt.",
    ]


def test_a_folder_without_pictures_is_reported_not_to_be_a_class(tmp_path, capsys):
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


@pytest.mark.parametrize(
    ("training", "test"), [("Train", "Test"), ("training_set", "test_set"), ("training", "validation")]
)
def test_training_and_test_parts_are_recognized_by_their_usual_names(training, test, tmp_path, capsys):
    draw(tmp_path / training, 6)
    draw(tmp_path / test, 2)
    loaded = sources.choose(str(tmp_path)).load()
    assert (loaded.class_names, len(loaded.y_train), len(loaded.y_test)) == (("blue", "green", "red"), 18, 6)
    used = f"{tmp_path}/{test} is used as the test part; validation is the last part of {training}."
    assert capsys.readouterr().out.splitlines() == [used]


def test_a_class_may_have_the_name_of_a_part(tmp_path):
    folder = draw(tmp_path / "vehicles", 6)
    (folder / "red").rename(folder / "train")
    assert sources.choose(str(folder)).load().class_names == ("blue", "green", "train")


def test_pictures_outside_every_class_folder_are_reported(tmp_path, capsys):
    folder = draw(tmp_path / "train", 6).parent
    draw(tmp_path / "test", 2)
    loose = [folder / "loose.png", folder / "train" / "loose.png", folder / "test" / "loose.png"]
    for path in loose:
        Image.new("RGB", (16, 16)).save(path)
    assert len(sources.choose(str(folder)).load().y_train) == 18
    assert capsys.readouterr().out.splitlines() == [
        f"Left out, because they are in no class folder: {path}." for path in loose
    ]


def test_transparent_pixels_become_white_unless_the_network_takes_an_alpha_channel(tmp_path):
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 8, 16))
    image.save(tmp_path / "rgba.png")
    image.quantize(8).save(tmp_path / "palette.png")
    image.convert("LA").save(tmp_path / "grey.png")
    for name, colour in (("rgba.png", [255, 0, 0]), ("palette.png", [255, 0, 0]), ("grey.png", [76, 76, 76])):
        pixels = pictures.read(tmp_path / name, (16, 16, 3))
        assert (pixels[:, 8:] == 255).all()
        assert pixels[0, 0].tolist() == colour
    assert pictures.read(tmp_path / "grey.png", (16, 16, 1))[0, [0, 15], 0].tolist() == [76, 255]
    assert pictures.read(tmp_path / "rgba.png", (16, 16, 4))[0, 15].tolist() == [0, 0, 0, 0]


def test_pictures_in_the_default_folder_take_precedence_over_cifar_10_in_the_keras_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    (tmp_path / "keras" / "datasets" / "cifar-10-batches-py").mkdir(parents=True)
    assert "Keras's cache" in sources.choose("data").describe()
    draw(tmp_path / "data", 6)
    assert sources.choose("data").describe() == "pictures in data"


def test_pictures_that_use_only_the_lower_bits_of_their_files_are_reported_as_dark(tmp_path, capsys):
    folder = draw(tmp_path / "grey", 6, mode="L")
    sources.choose(str(folder)).load()
    assert "where 255 is white" not in capsys.readouterr().out
    for path in folder.rglob("*.png"):
        of_12_bits = np.asarray(Image.open(path)).astype(np.uint16) << 4
        Image.fromarray(of_12_bits).save(path)
    arrays = sources.choose(str(folder)).load()
    highest = max(arrays.x_train.max(), arrays.x_test.max())
    assert f"No pixel of the pictures is above {highest}, where 255 is white; scale " in capsys.readouterr().out


def test_all_damaged_pictures_are_named_at_once(tmp_path):
    folder = draw(tmp_path / "colours", 6)
    cut = [folder / "red" / f"{number}.png" for number in (2, 4)]
    for path in cut:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match="2 pictures cannot be read: ") as error:
        sources.choose(str(folder)).load()
    assert all(str(path) in str(error.value) for path in cut)
    assert "; take them out. The first: " in str(error.value)


def test_pictures_that_do_not_fit_into_memory_are_refused_and_image_size_is_suggested(tmp_path, monkeypatch):
    folder = draw(tmp_path / "colours", 6)

    def empty(*_):
        raise MemoryError

    monkeypatch.setattr(class_folders.np, "empty", empty)
    with pytest.raises(BadInput) as error:
        sources.choose(str(folder), "2000").load()
    fault = f"--data {folder}: 15 pictures of 2000x2000 take 0.2 GB, more memory than there is"
    assert str(error.value) == f"{fault}; pass a smaller size with --image-size"


def test_an_output_directory_that_holds_a_run_is_refused_before_any_picture_is_read(tmp_path, monkeypatch, capsys):
    flags = ["--data", str(draw(tmp_path / "colours", 6)), "--epochs", "1", "--out", str(tmp_path / "run")]
    assert train.main(flags) == 0

    def read(*_):
        raise AssertionError("read")

    monkeypatch.setattr(pictures, "read", read)
    assert train.main(flags) == 2
    assert "already holds a run" in capsys.readouterr().err


def test_the_data_folder_is_refused_as_the_runs_directory(tmp_path, capsys):
    folder = str(draw(tmp_path / "colours", 6))
    assert train.main(["--data", folder, "--out", folder]) == 2
    assert f"--out {folder}: is the folder of --data; pass another" in capsys.readouterr().err


def test_pictures_behind_links_to_folders_are_read_once_even_if_the_links_form_a_cycle(tmp_path):
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
    "two parts for training": (
        lambda folder: (draw(folder / "train", 6), draw(folder / "Training", 6)),
        ["Training and train could each be the train part; move one elsewhere"],
    ),
    "parts but none for training": (
        lambda folder: (draw(folder / "val", 6), draw(folder / "test", 6)),
        ["has test and val, but no train; name the training part train"],
    ),
    "files that are not pictures": (
        lambda folder: [(path := folder / name / "a.heic").parent.mkdir(parents=True) or path.touch() for name in "ab"],
        ["no pictures in its folders, whose files end in .heic; convert them to .avif"],
    ),
    "several sizes": (lambda folder: draw(folder, 6, ((8, 8), (9, 7))), ["8x8 (9)", "7x9 (9)", "--image-size HxW"]),
    "one class": (lambda folder: draw(folder, 6, classes=["red"]), ["one folder of pictures, red"]),
    "a broken picture": (
        lambda folder: (draw(folder, 6) / "red" / "3.png").write_bytes(b"\x89PNG\r\n"),
        ["red/3.png: not a readable image"],
    ),
    "a truncated picture": (
        lambda folder: (draw(folder, 6) / "red" / "3.png").write_bytes((folder / "red" / "2.png").read_bytes()[:300]),
        ["red/3.png: not a readable image"],
    ),
    "a test part without classes": (
        lambda folder: (draw(folder / "train", 6), (folder / "test").mkdir()),
        ["no pictures in folders of classes in test; move it away to train without it"],
    ),
    "a training part without classes": (
        lambda folder: (draw(folder / "test", 2), (folder / "train").mkdir()),
        ["has test, but no train; name the training part train"],
    ),
    "a class missing from training": (
        lambda folder: (draw(folder / "train", 6, classes=["red", "green"]), draw(folder / "test", 2)),
        ["test has blue, not in train"],
    ),
}


@pytest.mark.parametrize(("make", "words"), REFUSED.values(), ids=REFUSED)
def test_a_folder_that_cannot_be_trained_on_is_refused_with_the_reason(make, words, tmp_path):
    make(tmp_path / "pictures")
    with pytest.raises(BadInput) as refusal:
        sources.choose(str(tmp_path / "pictures")).load()
    assert all(word in str(refusal.value) for word in words)


SIZES = [("32", (32, 32)), ("32x48", (32, 48)), ("0", None), ("32x", None), ("a", None)]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_an_image_size_is_one_number_or_two(text, size):
    assert class_folders.size(text) == size


def test_an_image_size_is_refused_for_data_without_pictures(npz, capsys):
    assert train.main(["--data", str(npz), "--image-size", "16"]) == 2
    assert f"--image-size 16x16: {npz} has no pictures to scale" in capsys.readouterr().err
