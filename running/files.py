"""Write files whole or not at all; read JSON, text and `.npz` files, or refuse them with a reason."""

import contextlib
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from cli.errors import BadInput, CannotWrite, cannot_read, first_line, refusing
from cli.messages import complain


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot make that folder ({error.strerror}); pass another --out") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically: a reader, or a crash, finds either the old file or the new one.

    Raises CannotWrite, which names the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # another process may write there too
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # on a full disk its space is needed
        if isinstance(error, OSError):
            raise CannotWrite(path, error) from None
        raise


def remove_partial(folder: Path, names: Collection[str]) -> None:
    """Remove the partial copies of the files `names` that a killed process has left."""
    for name in names:
        for partial in folder.glob(f".{name}.*.partial"):
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: dict) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_picture(path: Path, draw: Callable[[], bytes]) -> None:
    """Write the picture that `draw` returns. If drawing fails, print one line on stderr: no metric depends on it."""
    try:
        picture = draw()
    except Exception as error:
        complain(f"{path}: cannot be drawn ({type(error).__name__}: {first_line(error):.200}); all numbers are written")
        path.unlink(missing_ok=True)  # an earlier picture would show something else
    else:
        write_bytes(path, picture)


def write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Write `arrays` as `np.savez(path, *arrays)` does."""
    write_npz(path, {f"arr_{number}": array for number, array in enumerate(arrays)})


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write `arrays` as `np.savez(path, **arrays)` does."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a state dict as contiguous CPU tensors: `torch.load(path, weights_only=True)` reads it anywhere."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, buffer)
    write_bytes(path, buffer.getvalue())


def hash_of(arrays: list[np.ndarray]) -> str:
    """Return the SHA-256 of the values as float64: the same for float32 and float64 runs from the same weights."""
    return hashlib.sha256(b"".join(array.astype("<f8").tobytes() for array in arrays)).hexdigest()


def read_json(path: Path) -> dict:
    """Return the object that a JSON file holds. Raises BadInput."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: not JSON ({error}); delete or replace it") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: a JSON {type(value).__name__}; it must be an object with names and values")
    return value


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(f"{path}: cannot be read (no such file); pass a run's directory or its history") from None
    except OSError as error:
        raise cannot_read(path, error) from None
    except UnicodeDecodeError:
        remedy = "if it is one, save it as UTF-8; else pass a run's directory or its history"
        raise BadInput(f"{path}: not a text file in UTF-8; {remedy}") from None


def read_npz(
    flag: str, path: Path, needed: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return the arrays `needed` and `optional` of the `.npz` file that `flag` names; without `needed`, all arrays.

    Raises BadInput, which names the array at fault.
    """
    with refusing(f"{flag} {path}", "not a readable .npz of plain arrays", "write it with np.savez"):
        if not (path.exists() or path.is_symlink()):
            raise BadInput(f"{flag} {path}: no such file; pass an .npz that exists")
        if not path.is_file():
            raise ValueError("not a file")
        _refuse_other_kinds(flag, path)
        # numpy warns about a header that is not Python before it raises.
        with (
            warnings.catch_warnings(action="ignore"),
            path.open("rb") as opened,  # numpy leaves a damaged file open
            np.load(opened, allow_pickle=False) as file,
        ):
            missing = [name for name in needed if name not in file.files]
            if missing:
                there = ", ".join(file.files) or "nothing"
                call = f"np.savez('new.npz', {', '.join(f'{name}=...' for name in needed)})"
                raise BadInput(
                    f"{flag} {path}: no array {', '.join(missing)} in it (it has {there:.200}); write all with {call}"
                )
            wanted = [name for name in file.files if not needed or name in needed or name in optional]
            return {name: _read_array(file, name) for name in wanted}


def _refuse_other_kinds(flag: str, path: Path) -> None:
    """Raise BadInput, with a remedy, if the first bytes or the members of the file show another kind of file."""
    with path.open("rb") as file:
        start = file.read(64)
    members = []
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
    save = f"np.savez({path.stem.partition('.')[0] + '.npz'!r}, *model.get_weights())"
    load = f"model = keras.models.load_model({str(path)!r})"
    weights = {
        "an HDF5 file": f"if it is Keras's: {load}, or model.load_weights({str(path)!r}); {save}",
        "a Keras model": f"{load}; {save}",
        "a PyTorch file or another pickle": "pass the .npz that lies beside a run's best.pt",
        "a safetensors file": "np.savez(FILE, *arrays), in the order of Keras's get_weights()",
        "a .npy file of one array": "np.savez(FILE, *arrays), in the order of Keras's get_weights()",
    }
    kinds = {
        "an HDF5 file": start.startswith(b"\x89HDF"),
        "a Keras model": "model.weights.h5" in members,
        "a PyTorch file or another pickle": any(name.endswith("data.pkl") for name in members)
        or start.startswith(b"\x80"),
        "a safetensors file": start[8:10] == b'{"',
        "a .npy file of one array": start.startswith(b"\x93NUMPY"),
        "a web page": start.lstrip()[:1] == b"<",
        "a pointer to a file in Git LFS": start.startswith(b"version https://git-lfs"),
    }
    remedies = {"a web page": "download the file itself", "a pointer to a file in Git LFS": "run git lfs pull"}
    for kind, is_it in kinds.items():
        if is_it:
            arrays = "write its arrays with np.savez(FILE, x_train=..., y_train=..., x_test=..., y_test=...)"
            remedy = remedies.get(kind) or (weights[kind] if flag == "--init-weights" else arrays)
            raise BadInput(f"{flag} {path}: is {kind}, not an .npz; {remedy}")


def _read_array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = file[name]
    except (MemoryError, OSError):
        raise
    except Exception as error:  # damaged bytes can raise nearly anything
        if "allow_pickle" in str(error):
            raise ValueError(
                f"{name} holds objects: make it plain with np.stack(...), or strings with astype(str)"
            ) from None
        raise ValueError(f"{name}: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):  # numpy returns a member that is not an array as bytes
        raise ValueError(f"{name} in it is not an array")
    return array
