import builtins
import contextlib
import errno
import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import os
import pickle
import shutil
import tarfile
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from keras.src.trainers.data_adapters.array_slicing import train_validation_split
from torchvision.datasets import CIFAR10

import data
import sources
import train
from cli.errors import BadInput, Unavailable
from sources.cifar10 import CLASSES
from sources.source import Arrays, fingerprint

# --- the validation split and the batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.2, 0.1, 0.3, 1 / 3, 0.5, 0.7, 0.9, 0.999])
@pytest.mark.parametrize("n", [10, 101, 1000])
def test_the_validation_part_is_the_last_images_unshuffled_exactly_as_in_keras(n, fraction):
    images = np.arange(n * 3072, dtype=np.uint8).reshape(n, 32, 32, 3)
    labels = np.arange(n) % 10
    try:
        expected = train_validation_split((images, labels), validation_split=fraction)
    except ValueError:  # one part is empty
        with pytest.raises(BadInput, match="--validation-split"):
            data.split_validation(images, labels, fraction)
        return
    for ours, theirs in zip(data.split_validation(images, labels, fraction), expected, strict=True):
        assert np.array_equal(ours.images, theirs[0])
        assert np.array_equal(ours.labels, theirs[1])


@pytest.fixture(scope="module")
def split():
    random = np.random.default_rng(0)
    return data.as_split(random.integers(0, 256, (150, 32, 32, 3), np.uint8), np.arange(150) % 10)


def test_batches_hold_the_pixels_of_the_notebook_bit_for_bit(split):
    notebook = split.images.numpy().astype("float32") / 255.0  # (N, 32, 32, 3)
    ours = torch.cat([batch.images for batch in data.batches(split, 64)])
    assert ours.dtype == torch.float32
    assert np.array_equal(ours.permute(0, 2, 3, 1), notebook)


def test_every_pixel_value_is_scaled_as_in_numpy():
    every = np.resize(np.arange(256, dtype=np.uint8), (1, 32, 32, 3))
    (batch,) = data.batches(data.as_split(every, np.array([0])), 1)
    assert np.array_equal(batch.images.permute(0, 2, 3, 1), every.astype("float32") / 255.0)


def test_an_epoch_holds_each_image_once_in_the_order_given_and_keeps_the_short_last_batch(split):
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    parts = list(data.batches(split, 64, order))
    assert [len(batch.labels) for batch in parts] == [batch.size for batch in parts] == [64, 64, 22]
    assert torch.equal(torch.cat([batch.labels for batch in parts]), split.labels[order])
    together = torch.cat([batch.images for batch in parts])
    assert torch.equal((together * 255).round().to(torch.uint8).permute(0, 2, 3, 1), split.images[order])


def test_batches_are_channels_last_in_memory_and_leave_the_stored_images_alone(split):
    before = split.images.clone()
    for order in (None, torch.arange(150)):
        for batch in data.batches(split, 64, order):
            assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(split.images, before)


# --- augmentation ---------------------------------------------------------------------------------------------------


def legal_views(image):
    """Every view of an image, the slow and obvious way: mirrored or not, padded by mirroring, cut out."""
    views = {}
    for flip in (False, True):
        padded = np.pad(image[:, ::-1] if flip else image, ((4, 4), (4, 4), (0, 0)), mode="reflect")
        for y in range(9):
            for x in range(9):
                views[padded[y : y + 32, x : x + 32].tobytes()] = (flip, y, x)
    return views


def augmented(split, views, order=None):
    batches = [batch.images for batch in data.batches(split, 64, order, views)]
    return (torch.cat(batches) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def test_every_augmented_image_is_one_of_its_legal_views_and_a_function_of_the_seed(split):
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    views = data.Augmentation(32, 32).draw(150)
    torch.manual_seed(1)
    again = data.Augmentation(32, 32).draw(150)
    assert all(map(torch.equal, views, again))
    in_order = augmented(split, views, order)
    for image, seen in zip(split.images[order].numpy(), in_order, strict=True):
        assert seen.tobytes() in legal_views(image)
    # A view belongs to its image: the order in which the images come does not matter.
    assert np.array_equal(augmented(split, views)[order], in_order)
    assert not np.array_equal(augmented(split, data.Augmentation(32, 32).draw(150)), augmented(split, views))


def test_all_162_views_are_equally_likely(split):
    count = 162 * 200
    one = data.Split(split.images[:1].expand(count, -1, -1, -1), torch.zeros(count, dtype=torch.long))
    table = legal_views(split.images[0].numpy())
    assert len(table) == 162
    torch.manual_seed(0)
    seen = Counter(table[image.tobytes()] for image in augmented(one, data.Augmentation(32, 32).draw(count)))
    # Chi-squared with 161 degrees of freedom: 161 on average, above 242 once in 40,000 times.
    assert sum((seen[view] - 200) ** 2 / 200 for view in table.values()) < 242


def test_without_mirroring_an_image_is_only_shifted_even_if_it_is_not_square():
    image = np.arange(6 * 4, dtype=np.uint8).reshape(1, 6, 4, 1).repeat(200, 0)
    split = data.as_split(image, np.zeros(200, np.int64))
    padded = np.pad(image[0, :, :, 0], 1, mode="reflect")
    moved = {padded[y : y + 6, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    torch.manual_seed(0)
    views = data.Augmentation(6, 4, shift=1, mirror=False).draw(200)
    seen = [(batch.images * 255).round().to(torch.uint8) for batch in data.batches(split, 200, views=views)]
    assert {one.numpy().tobytes() for one in seen[0][:, 0]} == moved
    mirrored = data.Augmentation(6, 4, shift=1).draw(200)
    assert {tuple(columns) for columns in mirrored.columns.tolist()} > {tuple(c) for c in views.columns.tolist()}


def test_a_shift_as_large_as_the_image_is_refused():
    with pytest.raises(BadInput, match="--shift 4: images are 6x4; pass at most 3"):
        data.Augmentation(6, 4)


def test_a_shift_of_zero_gives_only_the_image_or_its_mirror_image(split):
    torch.manual_seed(0)
    seen = augmented(split, data.Augmentation(32, 32, shift=0).draw(150))
    flipped = [not np.array_equal(image, original) for image, original in zip(seen, split.images.numpy(), strict=True)]
    assert 40 < sum(flipped) < 110  # 75 on average, 6 standard deviations
    stored = [image[:, ::-1] if flip else image for image, flip in zip(split.images.numpy(), flipped, strict=True)]
    assert np.array_equal(seen, stored)


def test_augmentation_leaves_labels_layout_and_the_stored_images_alone(split):
    before = split.images.clone()
    for images, labels, _ in data.batches(split, 150, views=data.Augmentation(32, 32).draw(150)):
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(labels, split.labels)
    assert torch.equal(split.images, before)


# --- the .npz file ----------------------------------------------------------------------------------------------------


def test_an_npz_is_read_as_it_was_written_whether_labels_are_flat_or_in_a_column(arrays, npz, tmp_path):
    column = tmp_path / "column.npz"
    np.savez_compressed(
        column, **arrays | {name: arrays[name].astype(np.uint8)[:, None] for name in ("y_train", "y_test")}
    )
    for path in (npz, column):
        loaded = sources.choose(str(path)).load()
        assert loaded.class_names == tuple(f"class {number}" for number in range(10))
        for name, array in arrays.items():
            assert np.array_equal(getattr(loaded, name), array)
            assert getattr(loaded, name).dtype == (np.uint8 if name.startswith("x") else np.int64)


def test_an_npz_of_column_major_arrays_holds_the_same_data(arrays, npz, tmp_path):
    np.savez(tmp_path / "other.npz", **{name: np.asfortranarray(array) for name, array in arrays.items()})
    one, other = sources.choose(str(npz)).load(), sources.choose(str(tmp_path / "other.npz")).load()
    assert fingerprint(one) == fingerprint(other)
    first, second = (data.as_split(loaded.x_train, loaded.y_train) for loaded in (one, other))
    assert torch.equal(first.images, second.images)
    assert second.images.is_contiguous()  # else each batch would be copied pixel by pixel


def test_the_same_bytes_split_differently_into_training_and_test_are_different_data():
    def black(train, test):
        parts = [(np.zeros((count, 32, 32, 3), np.uint8), np.zeros(count, np.int64)) for count in (train, test)]
        return Arrays(*parts[0], *parts[1], CLASSES)

    assert fingerprint(black(2, 1)) != fingerprint(black(1, 2))


WRONG_ARRAYS = {
    "images in floats of 0 to 255": ({"x_train": np.full((320, 16, 16, 3), 7.5)}, "x_train is float64, and image 0"),
    "images in floats between the levels": ({"x_test": np.full((100, 32, 32, 3), 0.5)}, "x_test is float64, and image"),
    "images with a mean of 0": ({"x_test": np.full((100, 32, 32, 3), -1 / 255)}, "x_test is float64, and image 0"),
    "images that are not numbers": ({"x_test": np.full((100, 32, 32, 3), np.nan)}, "x_test is float64, and image 0"),
    "images in whole numbers above 255": (
        {"x_train": np.full((320, 16, 16, 3), 256)},
        "x_train is int64, and image 0",
    ),
    "images of two sizes": ({"x_test": np.zeros((100, 28, 28, 3), np.uint8)}, "x_test of (28, 28, 3)"),
    "images of two depths": ({"x_test": np.zeros((100, 32, 32), np.uint8)}, "x_test of (32, 32, 1)"),
    "images channels first": ({"x_train": np.zeros((320, 3, 32, 32), np.uint8)}, "here with transpose(0, 2, 3, 1)"),
    "images in rows": ({"x_train": np.zeros((320, 3072), np.uint8)}, "x_train has shape (320, 3072)"),
    "no images": ({"x_test": np.zeros((0, 32, 32, 3), np.uint8)}, "with N of at least 1"),
    "one label": ({"y_train": np.int64(3)}, "y_train has shape ()"),
    "several labels per image": ({"y_train": np.ones((320, 10), int)}, "y_train has shape (320, 10)"),
    "no label": ({"y_train": np.zeros((320, 10), int)}, "y_train has shape (320, 10)"),
    "labels in floats": ({"y_train": np.full(320, 0.5)}, "y_train is float64"),
    "too few labels": ({"y_test": np.zeros(99, int)}, "x_test has 100 images and y_test 99 labels"),
    "a label of 1000": ({"y_test": np.full(100, 1000)}, "y_test has labels from 1000 to 1000"),
    "one class": ({"y_train": np.zeros(320, int), "y_test": np.zeros(100, int)}, "all labels are 0"),
    "too few names": ({"class_names": np.array(["a", "b"])}, "class_names has 2 names; the labels need 10"),
    "names in numbers": ({"class_names": np.arange(10)}, "class_names is int64"),
    "names in bytes": ({"class_names": np.array([b"a"] * 10)}, "class_names is |S1"),
    "names as objects": ({"class_names": np.array(["a", "b"], object)}, "class_names holds objects: make it plain"),
    "a name twice": ({"class_names": np.array([*"abcdefghij", "a"])}, "class_names has a name twice"),
    "a name with a line break": ({"class_names": np.array(["a\nb", *"bcdefghij"])}, r"class_names has 'a\nb'"),
    "an empty name": ({"class_names": np.array([" ", *"bcdefghij"])}, "class_names has ' '"),
    "a label of -1": ({"y_train": np.arange(320) % 10 - 1}, "y_train has labels from -1 to 8"),
    "pickled objects": ({"y_train": np.array([None] * 320)}, "y_train holds objects: make it plain"),
}


@pytest.mark.parametrize(("change", "complaint"), WRONG_ARRAYS.values(), ids=WRONG_ARRAYS)
def test_wrong_arrays_are_refused_by_name(arrays, tmp_path, change, complaint):
    path = tmp_path / "wrong.npz"
    np.savez(path, **arrays | change)
    with pytest.raises(BadInput) as error:
        sources.choose(str(path)).load()
    assert complaint in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "stored"), [((28, 28), (28, 28, 1)), ((64, 48, 3), (64, 48, 3)), ((8, 9, 4), (8, 9, 4))]
)
def test_images_of_any_size_are_read_and_the_labels_determine_the_number_of_classes(shape, stored, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, *shape), np.uint8)
    np.savez(tmp_path / "any.npz", x_train=images, y_train=[0, 1, 2, 0, 1, 2], x_test=images[:2], y_test=[[4], [1]])
    loaded = sources.choose(str(tmp_path / "any.npz")).load()
    assert loaded.image_shape == stored
    assert np.array_equal(loaded.x_train, images.reshape(6, *stored))
    assert loaded.class_names == ("class 0", "class 1", "class 2", "class 3", "class 4")


def test_class_names_are_read_from_the_file_even_for_classes_that_no_label_uses(arrays, tmp_path):
    names = [f"kind {number}" for number in range(12)]
    np.savez(tmp_path / "named.npz", **arrays, class_names=names)
    assert sources.choose(str(tmp_path / "named.npz")).load().class_names == tuple(names)


def test_an_array_that_is_not_needed_is_not_read(arrays, tmp_path):
    np.savez(tmp_path / "more.npz", **arrays, notes=np.array([None, "an object"]))
    assert np.array_equal(sources.choose(str(tmp_path / "more.npz")).load().x_train, arrays["x_train"])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_on_256_levels_and_one_hot_labels_are_converted_and_reported(kind, arrays, npz, tmp_path, capsys):
    hot = {y: np.eye(10, dtype=kind)[arrays[y]] for y in ("y_train", "y_test")}
    np.savez(tmp_path / "floats.npz", **arrays | hot | {"x_train": arrays["x_train"].astype(kind) / 255})
    loaded = sources.choose(str(tmp_path / "floats.npz")).load()
    assert fingerprint(loaded) == fingerprint(sources.choose(str(npz)).load())
    assert capsys.readouterr().out.splitlines() == [
        f"x_train: {kind.__name__} in [0, 1], taken as 256 levels.",
        "y_train: one-hot labels of 10 classes, taken as their numbers.",
        "y_test: one-hot labels of 10 classes, taken as their numbers.",
    ]


@pytest.mark.parametrize("kind", [np.int64, np.int16, np.float32])
def test_whole_numbers_of_other_types_are_converted_and_reported(kind, arrays, npz, tmp_path, capsys):
    labels = {y: arrays[y].astype(np.float64) for y in ("y_train", "y_test")}
    np.savez(tmp_path / "whole.NPZ", **arrays | labels | {"x_train": arrays["x_train"].astype(kind)})
    (tmp_path / "whole.NPZ.npz").rename(tmp_path / "whole.NPZ")
    loaded = sources.choose(str(tmp_path / "whole.NPZ")).load()
    assert fingerprint(loaded) == fingerprint(sources.choose(str(npz)).load())
    assert capsys.readouterr().out.splitlines() == [
        f"x_train: {kind.__name__} of whole numbers, taken as uint8.",
        "y_train: float64 of whole numbers, taken as labels.",
        "y_test: float64 of whole numbers, taken as labels.",
    ]


OTHER_DATA = {
    "an address": ("https://example.org/c.npz", None, "is an address; download it"),
    "Parquet": ("d", "d/plain_text/train.parquet", "is Parquet, which is not read; docs/usage.md has the lines"),
    "Kaggle": ("d", "d/trainLabels.csv", "is Kaggle's form of CIFAR-10"),
    "the binary version": ("d", "d/cifar-10-batches-bin/data_batch_1.bin", "is CIFAR-10's binary version"),
    "files of one array": ("d", "d/x_train.npy", "is a folder of .npy files; np.savez('data.npz', x_train=np.load("),
}


@pytest.mark.parametrize(("given", "file", "words"), OTHER_DATA.values(), ids=OTHER_DATA)
def test_data_in_another_format_is_recognized_and_refused_with_the_remedy(
    given, file, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    if file:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    assert train.main(["--data", given]) == 2
    assert f"--data {given}: {words}" in capsys.readouterr().err


def test_a_runs_directory_is_refused_as_data(finished, capsys):
    assert train.main(["--data", str(finished)]) == 2
    assert "is a run's directory; pass the data that it was trained on" in capsys.readouterr().err


def test_one_hot_test_labels_with_fewer_columns_than_those_for_training_are_refused(arrays, tmp_path):
    hot = np.eye(10, dtype=np.uint8)
    file = tmp_path / "hot.npz"
    y_test = arrays["y_test"].reshape(-1) % 8
    np.savez(file, **arrays | {"y_train": hot[arrays["y_train"].reshape(-1)], "y_test": hot[y_test][:, :8]})
    with pytest.raises(BadInput, match="y_train has 10 columns and y_test 8, so one column may mean two classes"):
        sources.choose(str(file)).load()


@pytest.mark.parametrize(
    ("divided", "said"),
    [
        (["x_test"], "x_test: no pixel above 1, x_train up to 2"),
        (["x_train", "x_test"], "x_train and x_test: no pixel"),
    ],
)
def test_uint8_images_that_were_divided_by_255_are_reported(divided, said, arrays, tmp_path, capsys):
    file = tmp_path / "dark.npz"
    np.savez(file, **arrays | {name: (arrays[name] / 255).astype(np.uint8) for name in divided})
    sources.choose(str(file)).load()
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(said)


def test_images_that_were_divided_by_255_are_reported_even_if_some_pixels_were_white(arrays, tmp_path, capsys):
    white = {name: np.where(arrays[name] > 200, 255, arrays[name]) for name in ("x_train", "x_test")}
    np.savez(tmp_path / "dark.npz", **arrays | {name: (white[name] / 255).astype(np.uint8) for name in white})
    sources.choose(str(tmp_path / "dark.npz")).load()
    assert "x_train and x_test: no pixel above 1" in capsys.readouterr().out


def test_arrays_with_other_names_are_reported_as_not_used(arrays, tmp_path, capsys):
    np.savez(tmp_path / "more.npz", **arrays, x_val=arrays["x_test"], y_val=arrays["y_test"])
    sources.choose(str(tmp_path / "more.npz")).load()
    said = f"Not used of {tmp_path}/more.npz: x_val, y_val. Validation images are the last of x_train.\n"
    assert capsys.readouterr().out == said


def test_images_that_are_also_in_the_training_set_are_counted(arrays, tmp_path, capsys):
    assert data.repeated(arrays["x_train"], {"test": arrays["x_test"]}) == {"test": 0}
    again = np.concatenate([arrays["x_train"][:5], arrays["x_test"][5:]])
    np.savez(tmp_path / "again.npz", **arrays | {"x_test": again})
    assert train.main(["--data", str(tmp_path / "again.npz"), "--epochs", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "5 of 100 test images are training images too: accuracy on them is too high.\n" in said
    assert "validation images are training images" not in said


def test_classes_missing_from_some_parts_are_reported_apart_from_those_missing_from_all():
    def part(*labels):
        return data.Split(torch.zeros(len(labels), 1, 1, 1), torch.tensor(labels))

    assert data.unseen(part(0, 1), part(1, 2), part(3), 5) == {
        "validation": [2],
        "test": [3],
        "no": [4],
        "not validation": [0],
        "not test": [0, 1],
    }


def test_one_hot_labels_determine_the_number_of_classes_even_if_no_image_has_the_last_ones(arrays, tmp_path):
    hot = {y: np.eye(12, dtype=int)[arrays[y]] for y in ("y_train", "y_test")}
    np.savez(tmp_path / "hot.npz", **arrays | hot)
    assert len(sources.choose(str(tmp_path / "hot.npz")).load().class_names) == 12


def test_a_missing_array_is_named(arrays, tmp_path):
    path = tmp_path / "less.npz"
    np.savez(path, **{name: array for name, array in arrays.items() if name != "y_test"})
    with pytest.raises(BadInput, match="no array y_test in it"):
        sources.choose(str(path)).load()


UNREADABLE = {
    "empty": b"",
    "text": b"x_train\n1\n2\n",
    "a zip's first bytes": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("content", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_is_not_an_npz_is_refused(tmp_path, content):
    path = tmp_path / "foreign.npz"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a readable"):
        sources.choose(str(path)).load()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_npz_is_refused(npz, tmp_path, part):
    path = tmp_path / "cut.npz"
    whole = npz.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(BadInput, match="not a readable"):
        sources.choose(str(path)).load()


def test_a_damaged_npz_is_refused(npz, tmp_path):
    path = tmp_path / "damaged.npz"
    content = bytearray(npz.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(BadInput, match="not a readable"):
        sources.choose(str(path)).load()


def test_a_path_that_is_neither_folder_nor_npz_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for name, complaint in (("notes.txt", "neither a folder nor an"), ("none.npz", "no such file")):
        with pytest.raises(BadInput, match=complaint):
            sources.choose(str(tmp_path / name)).load()
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(BadInput, match="not a readable"):
        sources.choose(str(tmp_path / "folder.npz")).load()


# --- the offline stand-in ---------------------------------------------------------------------------------------------


def test_the_stand_in_is_the_same_on_every_machine():
    drawn = sources.choose("synthetic").load()
    assert [array.shape for array in drawn[:4]] == [(5000, 32, 32, 3), (5000,), (1000, 32, 32, 3), (1000,)]
    digest = hashlib.sha256(b"".join(array.astype(np.uint8).tobytes() for array in drawn[:4])).hexdigest()
    assert digest == "50cf1c441b255af48606dfea0195e9cea16ff50193094a3c1e34ca6f0f1dd39b"


def test_the_stand_in_has_each_class_equally_often_and_no_image_twice():
    drawn = sources.choose("synthetic").load()
    assert np.bincount(drawn.y_train).tolist() == [500] * 10
    assert np.bincount(drawn.y_test).tolist() == [100] * 10
    images = np.concatenate([drawn.x_train, drawn.x_test]).reshape(6000, -1)
    assert len(np.unique(images, axis=0)) == 6000


# --- CIFAR-10 from a server on 127.0.0.1 ------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A small archive in CIFAR-10's format, served on 127.0.0.1, and torchvision told to expect just that."""
    random = np.random.default_rng(0)
    members = {"batches.meta": {"label_names": list(CLASSES)}}
    for name in [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]:
        members[name] = {"data": random.integers(0, 256, (20, 3072), np.uint8), "labels": list(range(10)) * 2}
    members = {name: pickle.dumps(content) for name, content in members.items()}
    (tmp_path / "data").mkdir()
    folder = tmp_path / "served"
    folder.mkdir()
    archive = folder / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))

    def md5(content):
        return hashlib.md5(content, usedforsecurity=False).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            self.server.requests += 1
            self.server.open.wait()
            if self.server.breaks_off:
                self.send_response(200)
                self.send_header("Content-Length", str(archive.stat().st_size))
                self.end_headers()
                self.wfile.write(archive.read_bytes()[:1000])
                self.close_connection = True
            else:
                # torchvision looks for redirects by a GET whose body it leaves unread. Where that breaks the pipe, the
                # server's thread would write a traceback to stderr, now and then after the download is over.
                with contextlib.suppress(ConnectionError):
                    super().do_GET()

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    httpd.requests, httpd.breaks_off, httpd.archive, httpd.open = 0, False, archive, threading.Event()
    httpd.open.set()
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{httpd.server_port}/{archive.name}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive.read_bytes()))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(members[name])] for name, _ in CIFAR10.train_list])
    monkeypatch.setattr(CIFAR10, "test_list", [[name, md5(members[name])] for name, _ in CIFAR10.test_list])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(members["batches.meta"])})
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))  # not this machine's
    httpd.expected = {name: pickle.loads(content) for name, content in members.items()}
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def offline(monkeypatch):
    """Returns a function that turns torchvision's address into a port that nobody listens on."""

    def unplug():
        monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")

    return unplug


def test_cifar_10_is_downloaded_once_and_read_pixel_by_pixel(server, tmp_path, capsys):
    folder = tmp_path / "data"
    first, requests = sources.choose(str(folder)).load(), server.requests
    second = sources.choose(str(folder)).load()
    assert requests == server.requests > 0
    assert capsys.readouterr().out.count("Downloading") == 1
    stored = np.concatenate([server.expected[name]["data"] for name, _ in CIFAR10.train_list])
    for arrays in (first, second):
        assert np.array_equal(arrays.x_train, stored.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        assert arrays.y_train.tolist() == list(range(10)) * 10
        assert arrays.x_test.shape == (20, 32, 32, 3)
        assert arrays.y_test.dtype == np.int64


def test_an_archive_put_there_by_hand_is_used_without_a_network(server, offline, tmp_path):
    folder = tmp_path / "data"
    (folder / server.archive.name).write_bytes(server.archive.read_bytes())
    offline()
    assert len(sources.choose(str(folder)).load().x_train) == 100
    (folder / server.archive.name).unlink()  # the extracted folder is enough
    assert len(sources.choose(str(folder)).load().x_train) == 100
    assert server.requests == 0


def test_an_archive_with_a_wrong_checksum_is_not_used(server, offline, tmp_path, capsys):
    folder = tmp_path / "data"
    wrong = server.archive.read_bytes()[:-1] + b"!"
    (folder / server.archive.name).write_bytes(wrong)
    offline()
    assert train.main(["--data", str(folder), "--out", str(tmp_path / "run")]) == 3
    assert CIFAR10.tgz_md5 in capsys.readouterr().err
    assert (folder / server.archive.name).read_bytes() == wrong
    assert not (folder / "cifar-10-batches-py").exists()


def test_a_wrong_archive_is_replaced_by_a_download(server, tmp_path):
    folder = tmp_path / "data"
    (folder / server.archive.name).write_bytes(b"half of it")
    assert len(sources.choose(str(folder)).load().x_train) == 100
    assert (folder / server.archive.name).read_bytes() == server.archive.read_bytes()


@pytest.mark.parametrize(("name", "make"), [("notes.txt", Path.touch), (".hidden", Path.touch), ("images", Path.mkdir)])
def test_nothing_is_downloaded_into_a_folder_with_other_content(name, make, server, tmp_path, capsys):
    extract(server.archive, tmp_path / "keras" / "datasets")
    folder = tmp_path / "data"
    make(folder / name)
    assert train.main(["--data", str(folder), "--out", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"train.py: error: --data {folder}: holds neither cifar-10-batches-py nor {server.archive.name}"
    )
    assert [path.name for path in folder.iterdir()] == [name]
    assert server.requests == 0


def extract(archive, folder):
    with tarfile.open(archive) as members:
        members.extractall(folder, filter="data")
    return folder / "cifar-10-batches-py"


KERAS = ".keras/datasets"  # in the home directory
PLACES = {  # --data, and the folder in which cifar-10-batches-py lies
    "torchvision's folder": ("data", "data"),
    "the folder of the batches": ("data/cifar-10-batches-py", "data"),
    "Keras 2's folder": ("data", KERAS),
    "Keras 3's folder": ("data", f"{KERAS}/cifar-10-batches-py-target"),
    "Keras 3's folder, named": (f"{KERAS}/cifar-10-batches-py-target", f"{KERAS}/cifar-10-batches-py-target"),
}


@pytest.mark.parametrize(("source", "there"), PLACES.values(), ids=PLACES)
def test_cifar_10_is_read_in_place_from_every_usual_folder(source, there, server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KERAS_HOME")
    Path("data").rmdir()
    place = extract(server.archive, tmp_path / there)
    before = sorted(tmp_path.rglob("*"))
    arrays = sources.choose(source).load()
    assert arrays.y_train.tolist() == list(range(10)) * 10
    assert arrays.x_test[0, 0, 0].tolist() == server.expected["test_batch"]["data"][0, ::1024].tolist()
    cached = source == "data" and "datasets" in there
    assert sources.choose(source).describe() == (
        f"CIFAR-10 in Keras's cache, {place}" if cached else f"CIFAR-10 in {source}"
    )
    assert sorted(tmp_path.rglob("*")) == before  # nothing was created
    assert server.requests == 0


def test_a_run_on_the_keras_cache_can_be_resumed_and_repeated_with_its_own_options(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(server.archive, tmp_path / "keras" / "datasets")
    Path("data").rmdir()
    assert train.main(["--epochs", "1", "--out", "run"]) == 0
    assert train.main(["--resume", "run", "--epochs", "2"]) == 0
    assert train.main(["--config", "run/config.json", "--seed", "1"]) == 0
    assert json.loads(Path("runs/baseline-seed1/metrics.json").read_text())["epochs"] == 2
    assert (server.requests, Path("data").exists()) == (0, False)


def test_a_folder_that_holds_cifar_10_takes_precedence_over_the_keras_cache(server, tmp_path):
    folder, cache = extract(server.archive, tmp_path / "data"), tmp_path / "keras" / "datasets"
    extract(server.archive, cache)
    assert sources.choose(str(tmp_path / "data")).describe() == f"CIFAR-10 in {tmp_path / 'data'}"
    shutil.rmtree(folder)
    assert sources.choose(str(tmp_path / "data")).describe().startswith("CIFAR-10 in Keras's cache")
    with pytest.raises(BadInput, match="gone: no such folder"):  # a wrong name is not replaced by the cache
        sources.choose(str(tmp_path / "gone")).load()


def test_damaged_data_in_the_keras_cache_is_refused_with_its_path_and_left_alone(server, tmp_path):
    cache = tmp_path / "keras" / "datasets"
    batch = extract(server.archive, cache) / "test_batch"
    batch.write_bytes(batch.read_bytes()[:-9])  # an incomplete copy
    before = {path: path.read_bytes() for path in batch.parent.iterdir()}
    with pytest.raises(BadInput, match=f"no CIFAR-10 can be read from {cache} .*; delete cifar-10-batches-py there"):
        sources.choose(str(tmp_path / "data")).load()
    assert {path: path.read_bytes() for path in batch.parent.iterdir()} == before
    assert server.requests == 0
    shutil.rmtree(batch.parent)
    assert len(sources.choose(str(tmp_path / "data")).load().x_train) == 100


@pytest.mark.parametrize("inside", [False, True], ids=["--data DIR", "--data DIR/cifar-10-batches-py"])
def test_an_unusable_batch_is_refused_or_extracted_again_if_the_archive_is_there(
    inside, server, offline, tmp_path, monkeypatch, capsys
):
    batches = extract(server.archive, tmp_path / "data")
    folder, batch = batches if inside else tmp_path / "data", batches / "data_batch_3"
    content, opened = batch.read_bytes(), open

    def denied(path, *rest, **options):
        if Path(path) == batch:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *rest, **options)

    def fault():
        assert train.main(["--data", str(folder), "--out", str(tmp_path / "run")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"train.py: error: --data {folder}: no CIFAR-10 can be read from {tmp_path / 'data'} (")
        return line.partition("(")[2]

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", denied)
        assert "Permission denied" in fault()
    batch.write_bytes(content[:-1] + b"!")
    assert fault().startswith("Dataset not found or corrupted")
    batch.unlink()
    assert fault().startswith("Dataset not found or corrupted")
    shutil.copy(server.archive, tmp_path / "data")
    offline()
    assert len(sources.choose(str(folder)).load().x_train) == 100
    assert batch.read_bytes() == content
    assert server.requests == 0


def test_a_folder_that_cannot_be_written_is_refused(server, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("filelock.FileLock.acquire", denied)
    with pytest.raises(BadInput, match=r"cannot be used \(Permission denied\); pass a folder that can be written"):
        sources.choose(str(tmp_path / "data")).load()


def test_an_interrupted_download_is_not_used_and_the_next_run_repeats_it(server, tmp_path):
    folder = tmp_path / "data"
    server.breaks_off = True
    with pytest.raises(Unavailable):
        sources.choose(str(folder)).load()
    assert not (folder / "cifar-10-batches-py").exists()
    server.breaks_off = False
    assert len(sources.choose(str(folder)).load().x_train) == 100


def load(folder):
    sources.choose(str(folder)).load()


def loader(folder):
    """Start a process that loads `folder`: a fork of this one, so that it asks the server on 127.0.0.1."""
    process = multiprocessing.get_context("fork").Process(target=load, args=(folder,))
    process.start()
    return process


def wait_for(condition, processes):
    while not condition():
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["data", "an empty folder"])
def test_of_processes_that_start_together_one_downloads_and_all_get_the_data(
    name, server, tmp_path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir(exist_ok=True)
    server.open.clear()  # until all have started
    printed, processes = [], [loader(name)]
    wait_for(lambda: server.requests == 1, processes)
    processes += [loader(name) for _ in range(5)]

    def all_wait():
        printed.append(capfd.readouterr().out)
        return "".join(printed).count("Waiting for another process") == 5

    wait_for(all_wait, processes)
    server.open.set()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert server.requests == 2  # torchvision looks for redirects first
    assert "".join([*printed, capfd.readouterr().out]).count("Downloading CIFAR-10") == 1
    assert len(sources.choose(name).load().x_train) == 100


def test_when_the_process_that_downloads_is_killed_another_takes_over(server, tmp_path):
    server.open.clear()
    folder = tmp_path / "data"
    first = loader(folder)
    wait_for(lambda: server.requests == 1, [first])
    second = loader(folder)
    first.kill()
    server.open.set()
    second.join()
    assert second.exitcode == 0
    assert len(sources.choose(str(folder)).load().x_train) == 100


def test_without_cifar_10_the_command_exits_with_3_and_names_every_way_to_get_data(
    server, offline, tmp_path, capsys, monkeypatch
):
    offline()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for _ in range(2):  # the first try leaves nothing that would keep a later one from downloading
        assert train.main(["--data", "mine", "--epochs", "1"]) == 3
        message = capsys.readouterr().err
        for way in ("mine", "cifar-10-python.tar.gz", CIFAR10.tgz_md5, "--data FILE.npz", "--data synthetic"):
            assert way in message
        assert "Traceback" not in message
        assert not Path("runs").exists()


def test_only_the_default_folder_is_created_and_a_mistyped_name_is_refused(server, tmp_path, monkeypatch, capsys):
    (tmp_path / "data").rmdir()
    monkeypatch.chdir(tmp_path)
    assert train.main(["--data", "dtaa", "--epochs", "1"]) == 2
    assert "--data dtaa: no such folder" in capsys.readouterr().err
    assert not Path("dtaa").exists()
    assert server.requests == 0
    assert len(sources.choose("data").load().x_train) == 100


def test_a_run_on_the_keras_cache_says_so_in_its_output_and_in_config_json(server, offline, tmp_path, capsys):
    cache, out = tmp_path / "keras" / "datasets", tmp_path / "run"
    place = extract(server.archive, cache)
    offline()
    assert train.main(["--data", str(tmp_path / "data"), "--out", str(out), "--epochs", "1"]) == 0
    described = f"CIFAR-10 in Keras's cache, {place}"
    assert (
        f"\n{described}: 80 training, 20 validation, 20 test images of 32x32x3, 10 classes: airplane, "
        in capsys.readouterr().out
    )
    assert json.loads((out / "config.json").read_text())["data"] == described


def test_the_whole_command_works_from_the_download_to_the_finished_run(server, tmp_path, capsys):
    folder, out = tmp_path / "data", tmp_path / "run"
    assert train.main(["--data", str(folder), "--out", str(out), "--epochs", "1"]) == 0
    printed = capsys.readouterr()
    assert f"CIFAR-10 in {folder}: 80 training, 20 validation, 20 test images" in printed.out
    assert printed.err == ""  # no progress bar in a log file, not even for the download
    assert train.main(["--data", str(folder), "--out", str(out), "--epochs", "1", "--resume"]) == 0
    assert "It had already finished" in capsys.readouterr().out


def test_the_real_images_are_cifar_10_in_its_original_order(real_npz):
    arrays = sources.choose(str(real_npz)).load()
    assert [len(array) for array in arrays[:4]] == [50_000, 50_000, 10_000, 10_000]
    assert np.bincount(arrays.y_train).tolist() == [5000] * 10
    # CIFAR-10's training images begin with a frog, two trucks, a deer and two automobiles.
    assert arrays.y_train[:6].tolist() == [6, 9, 9, 4, 1, 1]


def keras_zip(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("metadata.json", "{}")
        file.writestr("model.weights.h5", b"\x89HDF\r\n")


HEADER_OF_SAFETENSORS = bytes([9, *[0] * 7]) + b'{"a": {}}'
OTHER_KINDS = {  # under the name of an .npz: how each is made, what it is called, and what helps
    "HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n1234"), "an HDF5 file", "model.load_weights("),
    "Keras": (keras_zip, "a Keras model", "keras.models.load_model("),
    "PyTorch": (lambda path: torch.save({"a": torch.ones(1)}, path), "a PyTorch file", "beside a run's best.pt"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "or another pickle", "beside a run's best.pt"),
    "safetensors": (lambda path: path.write_bytes(HEADER_OF_SAFETENSORS), "a safetensors file", "get_weights()"),
    "array": (lambda path: np.save(path.open("wb"), np.ones(3)), "a .npy file of one array", "get_weights()"),
    "HTML": (lambda path: path.write_text("<!DOCTYPE html>"), "a web page", "download the file itself"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec"), "Git LFS", "git lfs pull"),
}


@pytest.mark.parametrize("flag", ["--data", "--init-weights"])
@pytest.mark.parametrize(("make", "kind", "remedy"), OTHER_KINDS.values(), ids=OTHER_KINDS)
def test_a_file_in_another_format_is_recognized_by_its_first_bytes(flag, make, kind, remedy, npz, tmp_path, capsys):
    path = tmp_path / "model.npz"
    make(path)
    assert train.main(["--data", str(npz), "--out", str(tmp_path / "run"), flag, str(path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{flag} {path}: is " in line
    assert kind in line
    assert (remedy if flag == "--init-weights" or kind in ("a web page", "Git LFS") else "x_train=") in line
    assert not (tmp_path / "run").exists()
