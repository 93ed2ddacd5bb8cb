"""Images of any size and any number of classes, from the file to the prediction."""

import json

import numpy as np
import pytest
from PIL import Image

import predict
import train
from model import MODELS
from running.outcome import CONFIG, METRICS


def save(path, shape, labels, **more):
    """Write images that show their label: the greater it is, the brighter they are."""
    labels = np.asarray(labels)
    images = np.full((len(labels), *shape), 20, np.uint8) + (labels * 25).astype(np.uint8).reshape(
        -1, *[1] * len(shape)
    )
    np.savez(path, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10], **more)
    return str(path)


def test_grey_images_with_class_names_work_from_training_to_prediction_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = ["zero", "one", "$two", "three$"]
    source = save("digits.npz", (28, 28), np.arange(60) % 4, class_names=names)
    flags = ["--model", "improved", "--no-mirror", "--epochs", "1", "--out", "run"]
    assert train.main(["--data", source, *flags]) == 0
    said = capsys.readouterr().out
    counts = "48 training, 12 validation, 10 test images of 28x28x1"
    assert f"data from digits.npz: {counts}, 4 classes: zero, one, $two, three$\n" in said
    assert "Training images are shifted by up to 4 pixels, at random.\n" in said
    config, metrics = (json.loads((tmp_path / "run" / name).read_text()) for name in (CONFIG, METRICS))
    assert (config["image_shape"], config["class_names"]) == ([28, 28, 1], names)
    assert list(metrics["test_per_class"]) == names
    assert metrics["test_accuracy_mirrored"] is None
    assert (tmp_path / "run" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    Image.new("RGB", (90, 50), (20, 20, 20)).save("photo.png")
    assert predict.main(["run", "photo.png"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert sum(name in line for name in names) == 3


@pytest.mark.parametrize("name", MODELS)
def test_every_network_is_trained_on_oblong_images_of_two_classes(name, tmp_path, capsys):
    source = save(tmp_path / "two.npz", (17, 12, 3), np.arange(40) % 2)
    assert train.main(["--data", source, "--model", name, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert ("mirrored or not, and shifted" in said) == MODELS[name].augmented
    Image.new("L", (5, 9)).save(tmp_path / "small.png")
    assert predict.main([str(tmp_path / "run"), str(tmp_path / "small.png")]) == 0
    assert capsys.readouterr().out.count("class ") == 2


@pytest.mark.parametrize(("name", "least"), [("baseline", 4), ("improved", 8), ("whitened", 9)])
def test_images_too_small_for_the_networks_pooling_are_refused(name, least, tmp_path, capsys):
    for size, code in ((least, 0), (least - 1, 2)):
        source = save(tmp_path / f"{size}.npz", (size, 10), np.arange(20) % 2)
        flags = ["--model", name, "--no-augment", "--epochs", "1", "--out", str(tmp_path / f"run{size}")]
        assert train.main(["--data", source, *flags]) == code
    assert f"images are {least - 1}x10, and {name} needs at least {least}x{least}" in capsys.readouterr().err
    assert not (tmp_path / f"run{least - 1}").exists()


def test_a_shift_that_is_as_large_as_the_images_is_refused_before_anything_is_written(npz, tmp_path, capsys):
    flags = ["--augment", "--shift", "16", "--epochs", "1", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(npz), *flags]) == 2
    assert "--shift 16: images are 16x16; pass at most 15" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_over_a_hundred_classes_are_trained_on_and_those_without_training_images_reported(tmp_path, capsys):
    source = save(tmp_path / "hundred.npz", (8, 8, 3), np.r_[np.arange(90).repeat(2), np.arange(100, 120)] % 110)
    assert train.main(["--data", source, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "No training image is labelled class 80, class 81, class 82, class 83, class 84 and 15 more" in said
    assert len(json.loads((tmp_path / "run" / METRICS).read_text())["test_confusion"]) == 110


def test_labels_that_count_from_1_are_reported(tmp_path, capsys):
    source = save(tmp_path / "one.npz", (8, 8), 1 + np.arange(40) % 3)
    assert train.main(["--data", source, "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    assert "No training image is labelled class 0, and no other image is either: labels start at 0." in (
        capsys.readouterr().out
    )
