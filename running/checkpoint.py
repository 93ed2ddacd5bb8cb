"""`checkpoint.pt`: the `state_dict`s of the parts of a run, written together."""

import contextlib
import io
import zipfile
from pathlib import Path

import torch

from cli.errors import refusing
from running import files

FORMAT = 6
DIRECTORY = 0x10  # the bit of a zip's attributes that marks a folder


def write(path: Path, state: dict, run: dict) -> None:
    """Save the plain values `run` and the `state_dict` of each object in `state`, except empty ones."""
    parts = {name: part.state_dict() for name, part in state.items()}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "run": run} | {name: part for name, part in parts.items() if part}, buffer)
    files.write_bytes(path, buffer.getbuffer())


def read(path: Path, state: dict) -> dict:
    """Return what `write` wrote. Raises BadInput if the file is damaged or has a part that is not in `state`."""
    with refusing_checkpoint(path):
        content = _load(path)
        if content["format"] != FORMAT:
            saved = f"{content['format']!r:.20}"
            raise ValueError(f"its format is {saved}, this version of the project reads {FORMAT}")
        unknown = content.keys() - {"format", "run", *state}
        if unknown:
            raise ValueError(f"it has parts that this version lacks: {', '.join(sorted(unknown)):.90}")
        return content


def load(path: Path, saved: dict, state: dict) -> None:
    """Load what `read` returned into the parts of `state`, in their order; a part that was not saved stays as it is.

    Raises BadInput if a shape differs.
    """
    with refusing_checkpoint(path):
        for name, part in state.items():
            if name in saved:
                part.load_state_dict(saved[name])
        _check_moments(state["optimizer"])


def _check_moments(optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError unless each tensor of the optimizer's state has its parameter's shape: torch does not check."""
    for number, (parameter, moments) in enumerate(optimizer.state.items()):
        for name, tensor in moments.items():
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 0 and tensor.shape != parameter.shape:
                shapes = f"{tuple(tensor.shape)}; it must be {tuple(parameter.shape)}"
                raise ValueError(f"the optimizer's {name} of parameter {number} has shape {shapes}")


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the state dict that `files.write_weights` wrote."""
    return _load(path)


def refusing_checkpoint(path: Path) -> contextlib.AbstractContextManager:
    return refusing(path, "not a checkpoint of this run", "pass another --out")


def _load(path: Path) -> dict:
    with zipfile.ZipFile(path) as members:
        damaged = members.testzip()  # torch.load does not verify checksums
        folders = [member.filename for member in members.infolist() if member.external_attr & DIRECTORY]
    damaged = damaged or next(iter(folders), None)  # torch.load would return uninitialized memory for a folder
    if damaged:
        raise ValueError(f"{damaged} in it is damaged")
    return torch.load(path, map_location="cpu", weights_only=True)
