"""`checkpoint.pt`: the `state_dict`s of the parts of a run, written together, and looked at before any is loaded."""

import contextlib
import copy
import io
import math
import warnings
import zipfile
from pathlib import Path

import torch

from harness import files
from harness.errors import refusing

FORMAT = 6


def write(path: Path, state: dict, run: dict) -> None:
    """Save the parts of `state`, things with a `state_dict`, and `run`, plain values."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "run": run} | {name: part.state_dict() for name, part in state.items()}, buffer)
    files.write_bytes(path, buffer.getbuffer())


def read(path: Path, state: dict, run: dict) -> dict:
    """Return what `write` wrote, nothing but data, after a look at each part: it has the form of the one in `state`.

    Raises BadInput for a file that is damaged or of another kind.
    """
    with refusing_checkpoint(path):
        content = _load(path)
        if content.get("format") != FORMAT:
            found = f"{content.get('format')!r:.20}"
            raise ValueError(f"its format is {found}, this version of the project reads {FORMAT}")
        forms = {name: _form(part) for name, part in state.items()}
        known = {name: form for name, form in forms.items() if form or name in content}  # others came with this version
        return _fitted(content, {"format": FORMAT, "run": run} | known, "it")


def read_weights(path: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dict that `files.write_weights` wrote, of the form of `like`. Raises BadInput."""
    with refusing(path, "not the weights of this run", "pass a run's directory as train.py left it"):
        return _fitted(_load(path), like, "it")


def refusing_checkpoint(path: Path) -> contextlib.AbstractContextManager:
    return refusing(path, "not a checkpoint of this run", "pass another --out")


def _load(path: Path) -> object:
    if not path.is_file():
        raise ValueError("not a file")
    content = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(content)) as members:
        if sum(member.file_size for member in members.infolist()) > len(content):
            raise ValueError("its parts claim to be larger than the file")
        damaged = members.testzip()  # torch.load does not look at checksums
        if damaged:
            raise ValueError(f"{damaged} in it is damaged")
    with warnings.catch_warnings(action="ignore"):  # torch's, about sparse tensors: they are refused later
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _form(part: object) -> dict:
    """What the state dict of `part` looks like after a first step, when torch's optimizers have their moments.

    A part that is not torch's looks at its state itself when it is loaded: any dict will do here.
    """
    if not isinstance(part, torch.nn.Module | torch.optim.Optimizer | torch.optim.lr_scheduler.LRScheduler):
        return {}
    if isinstance(part, torch.optim.Optimizer):
        part = copy.deepcopy(part)  # its parameters too
        for group in part.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        part.step()
    return part.state_dict()


def _fitted(found: object, like: object, where: str) -> object:
    """Return `found` with its tensors laid out in memory as those of `like`, the same tree. Raises ValueError.

    In `like` a tensor stands for its shape and dtype, a number or text for any of its type, an empty list or dict for
    any, a list of whole numbers for itself (they are parameters' numbers), None for None or a number.
    """
    if isinstance(like, torch.Tensor):
        return _fitted_tensor(found, like, where)
    if isinstance(like, dict) and isinstance(found, dict) and like:
        if found.keys() != like.keys():
            raise ValueError(f"{where} has not the same parts: {', '.join(map(str, found.keys() ^ like.keys())):.90}")
        return {name: _fitted(found[name], part, f"{where}.{name}") for name, part in like.items()}
    fits = type(found) is type(like) or (like is None and type(found) in (int, float))
    if isinstance(like, list | tuple) and like:
        fits = fits and len(found) == len(like) and (not isinstance(like[0], int) or found == like)
    if isinstance(found, float):
        fits = fits and (math.isfinite(found) or found == like)  # ReduceLROnPlateau begins with an infinite best
    if not fits:
        raise ValueError(f"{where} is {found!r:.60}, it must be like {like!r:.60}")
    if isinstance(like, list | tuple) and like:
        return type(like)(_fitted(*pair, f"{where}[{i}]") for i, pair in enumerate(zip(found, like, strict=True)))
    return found


def check_counts(state: dict) -> None:
    """Raise ValueError unless epochs and steps of the `state` that was loaded agree."""
    epochs, taken = len(state["history"]), state["optimizer"].param_groups[0]["taken"]
    # A scheduler's `last_epoch` counts steps or epochs, so never more than the steps that the optimizer has taken.
    if not (0 <= state["early_stopping"].best_epoch < epochs and state["schedule"].last_epoch <= taken):
        raise ValueError("its counts do not agree")


def _fitted_tensor(found: object, like: torch.Tensor, where: str) -> torch.Tensor:
    fits = isinstance(found, torch.Tensor) and found.layout is torch.strided
    if not (fits and (found.shape, found.dtype) == (like.shape, like.dtype)):
        shape = f"{tuple(found.shape)} {found.dtype}" if fits else f"a {type(found).__name__}"
        raise ValueError(f"{where} is {shape}; it must be {tuple(like.shape)} {like.dtype}")
    if not found.isfinite().all():
        raise ValueError(f"{where} is not finite")
    return torch.empty_like(like, device="cpu").copy_(found.detach())  # from there all processes get it
