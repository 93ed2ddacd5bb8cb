"""predict.py, as a user runs it."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAPE
from PIL import Image
from torch.nn.modules.module import register_module_forward_hook

import predict
import train
from model import CIFAR10_SHAPE, build_model
from running.outcome import CONFIG
from sources.cifar10 import CLASSES
from sources.pictures import read


@pytest.fixture
def pictures(arrays, tmp_path, monkeypatch):
    """The folder `pictures`, in the current one, with test images of several kinds and sizes."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    folder.mkdir()
    image = Image.fromarray(arrays["x_test"][3])
    image.save(folder / "a.png")
    image.resize((200, 100)).convert("L").save(folder / "b.jpg")
    image.resize((10, 7)).convert("RGBA").save(folder / "c.PNG")
    image.resize((64, 64)).convert("P").save(folder / "d.gif")  # the file system lists them in an order of its own
    return folder


def test_the_three_likeliest_classes_are_those_of_the_network(finished, pictures, arrays, capsys):
    assert predict.main([str(finished), "pictures/a.png"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    network = build_model(image_shape=SHAPE)
    network.load_state_dict(torch.load(finished / "best.pt", weights_only=True))
    with torch.inference_mode():
        image = torch.from_numpy(arrays["x_test"][3:4]).permute(0, 3, 1, 2) / 255
        expected = network.eval()(image).softmax(1)[0]
    found = re.findall(r"class (\d) ([\d.]+)%", line.split(": ")[1])
    assert [int(number) for number, _ in found] == expected.argsort(descending=True)[:3].tolist()
    # Printed to a tenth of a per cent.
    assert [float(part) / 100 for _, part in found] == pytest.approx(expected.topk(3).values.tolist(), abs=6e-4)


def test_a_run_in_float64_predicts_in_float64(npz, pictures, tmp_path, capsys):
    flags = ["--epochs", "1", "--dtype", "float64", "--out", str(tmp_path / "run")]
    assert train.main(["--data", str(npz), *flags]) == 0
    capsys.readouterr()
    seen = set()
    handle = register_module_forward_hook(lambda layer, _, output: seen.add(output.dtype))
    try:
        assert predict.main(["run", "pictures/a.png"]) == 0
    finally:
        handle.remove()
    assert seen == {torch.float64}
    assert capsys.readouterr().out.startswith("pictures/a.png: ")


def test_a_folder_stands_for_its_images_whatever_their_size_and_kind(finished, pictures, capsys):
    assert predict.main([str(finished), "pictures"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"pictures/{name}" for name in ("a.png", "b.jpg", "c.PNG", "d.gif")
    ]


def test_an_unreadable_folder_is_named_and_the_images_beside_it_are_classified(finished, pictures, monkeypatch, capsys):
    (pictures / "locked").mkdir()
    for name in ("scandir", "listdir"):
        whole = getattr(os, name)

        def refusing(path, whole=whole):
            if os.fspath(path).endswith("locked"):
                raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
            return whole(path)

        monkeypatch.setattr(os, name, refusing)
    assert predict.main([str(finished), "pictures"]) == 2
    printed = capsys.readouterr()
    assert "pictures/a.png: " in printed.out
    assert printed.err == "predict.py: error: pictures/locked: cannot be read (Permission denied)\n"


def test_a_broken_output_pipe_still_leaves_a_complete_csv(finished, pictures, monkeypatch):
    def gone(line):
        raise BrokenPipeError

    monkeypatch.setattr(predict, "say", gone)
    assert predict.main([str(finished), "pictures", "--csv", "answers.csv"]) == 0
    assert Path("answers.csv").read_text().count("pictures/d.gif") == 3


def test_a_folder_is_searched_in_order_of_names_and_files_that_are_not_images_are_reported(finished, pictures, capsys):
    for name in ("cat/deep/1.jpg", "ant/2.png", "cat/3.png", ".thumbnails/4.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(pictures / "a.png", pictures / name)
    (pictures / "._a.png").write_bytes(b"\0\5\x16\7")  # macOS's
    (pictures / "paper.pdf").write_text("%PDF-1.7")
    (pictures / "LICENSE").write_text("none")
    (pictures / "cat" / "up").symlink_to("..")  # an endless loop
    assert predict.main([str(finished), "pictures"]) == 0
    printed = capsys.readouterr()
    names = ("a.png", "ant/2.png", "b.jpg", "c.PNG", "cat/3.png", "cat/deep/1.jpg", "d.gif")
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [f"pictures/{name}" for name in names]
    others = "pictures/LICENSE, pictures/paper.pdf"
    assert printed.err == f"predict.py: Left out, because their suffix is not a picture's: {others}.\n"


def test_arguments_are_answered_in_their_order_even_if_some_are_bad(finished, pictures, capsys, monkeypatch):
    odd = os.fsdecode(b"pictures/caf\xe9\n")
    for name in ("pictures/empty", "pictures/locked", odd):
        Path(name).mkdir()
    shutil.copy("pictures/a.png", f"{odd}/a.png")
    look_into = os.scandir

    def scandir(path):
        if path == "pictures/locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look_into(path)

    monkeypatch.setattr(os, "scandir", scandir)
    arguments = ["pictures/empty", "pictures/a.png", f"{'n' * 300}.png", "pictures/locked", "", "pictures/b.jpg", odd]
    with contextlib.redirect_stderr(sys.stdout):  # to see in which order they come
        assert predict.main([str(finished), *arguments]) == 2
    expected = [
        "predict.py: error: pictures/empty: not a readable image (a folder without images); pass ",
        "pictures/a.png: ",
        f"predict.py: error: {'n' * 300}.png: cannot be read (File name too long)",
        "predict.py: error: pictures/locked: not a readable image (a folder without images); pass ",
        "predict.py: error: .: not a readable image (a folder without images); pass ",
        "pictures/b.jpg: ",
        "pictures/caf\\udce9\\n/a.png: ",
    ]
    lines = capsys.readouterr().out.splitlines()
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected


def test_a_large_photo_is_read(tmp_path):
    Image.new("L", (12_000, 9_000), 200).save(tmp_path / "photo.jpg")  # a telephone's 108 megapixels
    assert (read(tmp_path / "photo.jpg", CIFAR10_SHAPE) == 200).all()


def test_a_large_image_is_scaled_down_by_averaging(tmp_path):
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(np.stack([board] * 3, axis=2)).save(tmp_path / "board.png")
    found = read(tmp_path / "board.png", CIFAR10_SHAPE).astype(int)
    assert abs(found - 128).max() < 40


def test_an_image_is_turned_upright_and_cropped_to_its_central_square(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 200  # the middle
    wide[:16, 32:64, 0] = 0  # whose upper half has no red
    rotated = Image.fromarray(np.rot90(wide, 1).copy())
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees clockwise
    rotated.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(read(tmp_path / "photo.png", CIFAR10_SHAPE), wide[:, 32:64])


GREY = np.random.default_rng(0).integers(0, 230, (48, 48), np.uint8)
DEEP = {
    "16.png": GREY.astype(np.uint16) * 257,
    "16.tiff": GREY.astype(np.uint16) * 257,
    "32.tiff": GREY.astype(np.int32) * 257,
}


@pytest.mark.parametrize("name", DEEP)
def test_a_grey_image_with_more_than_8_bits_is_scaled_by_its_depth(name, finished, tmp_path, capsys):
    Image.fromarray(DEEP[name]).save(tmp_path / name)
    Image.fromarray(GREY).save(tmp_path / "8.png")
    assert np.array_equal(read(tmp_path / name, CIFAR10_SHAPE), read(tmp_path / "8.png", CIFAR10_SHAPE))
    assert predict.main([str(finished), str(tmp_path / name), str(tmp_path / "8.png")]) == 0
    deep, plain = (line.split(": ")[1] for line in capsys.readouterr().out.splitlines())
    assert deep == plain


@pytest.mark.parametrize(
    "values",
    [GREY.astype(np.int32), GREY.astype(np.int32) * 70_000, GREY.astype(np.int32) - 99, GREY.astype(np.float32),
     np.full((9, 9), np.nan, np.float32), (GREY / 255).astype(np.float32)],
    ids=["8 bits in 32", "more than 16 bits", "below 0", "floats", "NaN", "floats up to 1"],
)  # fmt: skip
def test_a_grey_image_whose_depth_cannot_be_determined_is_refused(values, finished, tmp_path, capsys):
    Image.fromarray(values).save(tmp_path / "odd.tiff")
    assert predict.main([str(finished), str(tmp_path / "odd.tiff")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"its values go from {values.min()} to {values.max()}; save it with 8 or 16 bits a pixel" in line


def cut(path):
    buffer = io.BytesIO()
    Image.new("RGB", (50, 50)).save(buffer, "png")
    path.write_bytes(buffer.getvalue()[:60])


def claim_506_megapixels(path):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 23_000, 22_000, 8, 2, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b""))


UNREADABLE = "not a readable image ("
BAD_IMAGES = {
    "missing": (lambda path: None, "cannot be read (No such file or directory)"),
    "a text file": (lambda path: path.write_text("hello"), UNREADABLE),
    "empty": (lambda path: path.write_text(""), UNREADABLE),
    "cut off": (cut, UNREADABLE),
    "a pipe, which would block for ever": (os.mkfifo, f"{UNREADABLE}not a file); pass a .png or .jpg file"),
    "huge": (claim_506_megapixels, f"{UNREADABLE}Image size (506000000 pixels) exceeds limit"),
}


@pytest.mark.parametrize(("make", "message"), BAD_IMAGES.values(), ids=BAD_IMAGES)
def test_a_bad_image_gives_one_error_line_and_the_others_are_classified(make, message, finished, pictures, capsys):
    make(pictures / "bad.png")
    assert predict.main([str(finished), "pictures/bad.png", "pictures/a.png"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith(f"predict.py: error: pictures/bad.png: {message}")
    assert line.endswith("; pass a .png or .jpg file") is message.startswith(UNREADABLE)
    assert printed.out.startswith("pictures/a.png: ")


def spoil_config(run, **change):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | change))


NO_RUN = "run: not the directory of a run; pass one, then images"
OTHER_CONFIG, OTHER_WEIGHTS = "config.json: not of a run of this version (", "best.pt: not the weights of this run ("
BAD_RUNS = {
    "no directory": (shutil.rmtree, NO_RUN),
    "no config": (lambda run: (run / CONFIG).unlink(), NO_RUN),
    "no weights": (
        lambda run: (run / "best.pt").unlink(),
        "best.pt: does not exist; recreate it from checkpoint.pt: train.py --resume",
    ),
    "weights cut off": (lambda run: os.truncate(run / "best.pt", 1000), OTHER_WEIGHTS),
    "weights of another network": (lambda run: spoil_config(run, model="improved"), OTHER_WEIGHTS),
    "an unknown network": (lambda run: spoil_config(run, model="resnet"), f"{OTHER_CONFIG}no network 'resnet' here"),
    "an invalid dtype": (
        lambda run: spoil_config(run, flags={"data": "x.npz", "dtype": "load"}),
        OTHER_CONFIG,
    ),
    "images of height 0": (lambda run: spoil_config(run, image_shape=[0, 32, 3]), "its images are 0x32"),
    "an image shape of two numbers": (lambda run: spoil_config(run, image_shape=[32, 32]), OTHER_CONFIG),
    "an image shape without numbers": (lambda run: spoil_config(run, image_shape="aaa"), OTHER_CONFIG),
    "another image shape": (lambda run: spoil_config(run, image_shape=[28, 28, 1]), OTHER_WEIGHTS),
    "class names that are not a list": (lambda run: spoil_config(run, class_names=7), OTHER_CONFIG),
    "another number of classes": (lambda run: spoil_config(run, class_names=["a", "b"]), OTHER_WEIGHTS),
    "no flags": (lambda run: spoil_config(run, flags=None), OTHER_CONFIG),
}


@pytest.mark.parametrize(("spoil", "message"), BAD_RUNS.values(), ids=BAD_RUNS)
def test_a_bad_run_is_refused_in_one_line(spoil, message, finished, pictures, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    spoil(run)
    assert predict.main([str(run), "pictures"]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert message in line
    assert printed.out == ""


def test_a_file_of_a_run_in_place_of_its_directory_is_refused_with_what_to_pass(finished, pictures, capsys):
    assert predict.main([str(finished / "best.pt"), "pictures"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"best.pt: not the directory of a run; pass {finished}")


def test_output_to_a_full_disk_gives_one_error_line_and_exit_code_1(finished, pictures, monkeypatch, capsys):
    with contextlib.suppress(OSError), open("/dev/full", "w") as full:  # closing it fails as well
        monkeypatch.setattr(sys, "stdout", full)
        code = predict.main([str(finished), "pictures/a.png"])
        monkeypatch.undo()
    assert code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write to standard output" in line


def test_class_names_are_those_of_the_run_and_cifar_10s_only_if_an_old_config_has_none(
    finished, pictures, tmp_path, capsys
):
    shutil.copytree(finished, tmp_path / "run")
    every = ["run", "pictures/a.png", "--top", "10"]
    spoil_config(tmp_path / "run", class_names=[f"kind {number}" for number in range(10)])
    assert predict.main(every) == 0
    printed = capsys.readouterr().out
    assert all(f"kind {number} " in printed for number in range(10))
    config = json.loads((tmp_path / "run" / CONFIG).read_text())
    del config["class_names"]
    (tmp_path / "run" / CONFIG).write_text(json.dumps(config))
    assert predict.main(every) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} " in printed for name in CLASSES)
