"""Files written whole or not at all; `.npz`, JSON and text read, or refused with a reason."""

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import torch

from harness.console import complain
from harness.errors import BadInput, CannotWrite, cannot_read, first_line, refusing

WEIGHTS_LIMIT = 256 << 20  # bytes of an .npz of weights: 60 times the baseline's in float64


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"--out {folder}: cannot make that folder ({error.strerror}); pass another --out") from None


def write_bytes(path: Path, content: bytes) -> None:
    """Put `content` at `path` so that a reader, or a crash, sees the old file or the new one and nothing between.

    Raises CannotWrite naming the file.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")  # another may write there too
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()  # on a full disk its space is wanted
        if isinstance(error, OSError):
            raise CannotWrite(f"cannot write {path} ({error.strerror})") from None
        raise


def write_json(path: Path, value: dict) -> None:
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_picture(path: Path, draw: Callable[[], bytes]) -> None:
    """Write the picture that `draw` makes. One that cannot be drawn decides no figure: it is one line on stderr."""
    try:
        picture = draw()
    except Exception as error:
        complain(f"{path}: cannot be drawn ({type(error).__name__}: {first_line(error):.200}); all figures are written")
        path.unlink(missing_ok=True)  # one that is there shows something else
    else:
        write_bytes(path, picture)


def write_arrays(path: Path, arrays: list[np.ndarray]) -> None:
    """Write `arrays` as `np.savez(path, *arrays)` does."""
    buffer = io.BytesIO()
    np.savez(buffer, *arrays)
    write_bytes(path, buffer.getvalue())


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Save a state dict on the CPU in plain layout: `torch.load(path, weights_only=True)` reads it anywhere."""
    buffer = io.BytesIO()
    torch.save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, buffer)
    write_bytes(path, buffer.getvalue())


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
        raise BadInput(f"{path}: not a text file; pass a run's directory or its history") from None


def read_npz(
    flag: str, path: Path, limit: int, needed: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Return the arrays of the `.npz` file that `flag` names: those that are `needed`, and `optional` ones; else all.

    What claims more than `limit` bytes is not read. Raises BadInput, which names the array at fault.
    """
    with refusing(f"{flag} {path}", "not a readable .npz of plain arrays", "write it with np.savez"):
        if not (path.exists() or path.is_symlink()):
            raise BadInput(f"{flag} {path}: no such file; pass an .npz that exists")
        if not path.is_file():
            raise ValueError("not a file")
        # A header that is no Python makes numpy warn before it raises.
        with warnings.catch_warnings(action="ignore"), np.load(path, allow_pickle=False) as file:
            missing = [name for name in needed if name not in file.files]
            if missing:
                found = ", ".join(file.files) or "nothing"
                raise BadInput(
                    f"{flag} {path}: no array {', '.join(missing)} in it (found: {found:.200}); add it with np.savez"
                )
            wanted = [name for name in file.files if not needed or name in needed or name in optional]
            sizes = {member.filename.removesuffix(".npy"): member.file_size for member in file.zip.infolist()}
            size = sum(sizes[name] for name in wanted)
            if size > limit:
                raise ValueError(f"its arrays take {size:,} bytes, more than {limit:,}")
            return {name: _read_array(file, name) for name in wanted}


def _read_array(file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    try:
        array = file[name]
    except (MemoryError, OSError):
        raise
    except Exception as error:  # bytes that are damaged can raise nearly all
        raise ValueError(f"{name}: {first_line(error)}") from None
    if not isinstance(array, np.ndarray):  # numpy gives what is not its own back as bytes
        raise ValueError(f"{name} in it is no array")
    return array
