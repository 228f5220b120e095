"""`CheckpointFolder`: files `<label>_net_{G,D,E}.pth`, `<label>_state.pth` of one experiment."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor, nn

from pix2pixhd_fast.checkpoints import transaction
from pix2pixhd_fast.checkpoints.explain import require_fit
from pix2pixhd_fast.checkpoints.reading import make_current, read_state, read_state_dict
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options

_FILE = re.compile(r"(?P<label>.+)_(?P<part>net_[GDE]|state)\.pth")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LETTER = re.compile(r"[GDE]")
_PLAIN = (type(None), bool, int, float, str, bytes)


class CheckpointFolder:
    """The checkpoints of one experiment, `<checkpoints_dir>/<name>`, in the original's format.

    A label is `latest` or an epoch number. The networks of a label and its state always come from
    the same `save`, whenever the process was killed or the machine stopped. One process at a time
    may save; any number may load meanwhile.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def save(
        self,
        labels: str | Iterable[str],
        networks: Mapping[str, nn.Module],
        state: dict | None = None,
    ) -> None:
        """Save networks, by letter (G, D, E), and the state of the training, under labels.

        All files of all labels are replaced together or not at all; files that a label had and that
        are not part of this save (E, state) are deleted with it. `state` is a nested dict of
        tensors and plain values (str, int, float, bool, None, bytes, list, tuple); `TypeError`
        names anything else. Tensors are saved from the CPU. Raises `InputError` where a file cannot
        be written: then what was saved before is unchanged.
        """
        labels = (labels,) if isinstance(labels, str) else tuple(dict.fromkeys(labels))
        for label in labels:
            _require_name(_LABEL, label, "label", "latest or an epoch number")
        for letter in networks:
            _require_name(_LETTER, letter, "letter of a network", "G, D or E")
        if state is not None:
            state = _plain(state, "state")
        with transaction.Transaction(self.folder) as files:
            written = set()
            for part, content in _parts(networks, state):
                for label in labels:
                    written.add(name := f"{label}_{part}.pth")
                    files.write(name, content)
            known = transaction.committed_names(self.folder)
            stale = {name for name in known - written if _label(name) in labels}
            files.remove(sorted(stale))

    def load(
        self,
        label: str,
        networks: Mapping[str, nn.Module],
        options: Options | None = None,
        with_state: bool = False,
    ) -> dict | None:
        """Load networks, by letter, and with `with_state` return the state, all of one save.

        Strict: a file must hold every tensor of its network and no other. Everything is read and
        compared before the first network changes. The state is None where the label has none (a
        checkpoint of the original). With `options`, those the networks were built from, the error
        can name an option that would fit.
        Raises `InputError`: the file that is missing and the labels that there are, a file that is
        not a checkpoint, or what differs between file and network.
        """
        parts = [f"net_{letter}" for letter in networks] + ["state"] * with_state
        tensors, state = {}, None
        with self._opened(label, parts) as files:
            for letter, network in networks.items():
                path, file = self._require(files, label, f"net_{letter}")
                tensors[letter] = read_state_dict(file, path)
                make_current(tensors[letter], network, path)
                require_fit(tensors[letter], network, letter, path, options)
            if files.get("state"):
                state = read_state(files["state"], self.folder / f"{label}_state.pth")
        for letter, network in networks.items():
            network.load_state_dict(tensors[letter])
        return state

    def load_network(
        self, label: str, letter: str, module: nn.Module, options: Options | None = None
    ) -> None:
        """`load` for one network."""
        self.load(label, {letter: module}, options)

    def load_state(self, label: str) -> dict | None:
        """The state saved with a label; None where it has none (a checkpoint of the original)."""
        return self.load(label, {}, with_state=True)

    def read_network(self, label: str, letter: str) -> tuple[Path, dict[str, Tensor]]:
        """The file of a network and its state_dict, on the CPU; `InputError` as from `load`."""
        with self._opened(label, [f"net_{letter}"]) as files:
            path, file = self._require(files, label, f"net_{letter}")
            return path, read_state_dict(file, path)

    def labels(self, letter: str = "") -> list[str]:
        """Labels with a network (or: the network of this letter), epochs in order, then words."""
        if not self.folder.is_dir():
            return []
        matches = map(_FILE.fullmatch, transaction.committed_names(self.folder))
        found = {m["label"] for m in matches if m and m["part"].startswith(f"net_{letter}")}
        return sorted(found, key=_order)

    @contextlib.contextmanager
    def _opened(self, label: str, parts: list[str]) -> Iterator[dict[str, BinaryIO | None]]:
        try:
            if not self.folder.is_dir():
                missing = self.folder / f"{label}_{parts[0]}.pth"
                raise InputError(f"{missing} does not exist: there is no folder {self.folder}")
            transaction.settle(self.folder)
            names = [f"{label}_{part}.pth" for part in parts]
            files = transaction.open_together(self.folder, names)
        except OSError as error:
            raise InputError(f"cannot open {self.folder}: {error.strerror}") from error
        with contextlib.ExitStack() as stack:
            for file in files.values():
                if file:
                    stack.enter_context(file)
            yield dict(zip(parts, files.values(), strict=True))

    def _require(
        self, files: dict[str, BinaryIO | None], label: str, part: str
    ) -> tuple[Path, BinaryIO]:
        path, file = self.folder / f"{label}_{part}.pth", files[part]
        if file is None:
            labels = ", ".join(self.labels(part.removeprefix("net_"))) or "none"
            raise InputError(
                f"{path} does not exist; labels with this file in the folder: {labels}"
            )
        return path, file


def _parts(
    networks: Mapping[str, nn.Module], state: dict | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """What makes up a checkpoint, one CPU copy at a time."""
    for letter, network in networks.items():
        tensors = network.state_dict()
        for name, tensor in tensors.items():
            tensors[name] = _on_cpu(tensor)
        yield f"net_{letter}", tensors
    if state is not None:
        yield "state", state


def _plain(value: Any, name: str) -> Any:
    """`value`, its tensors on the CPU; `TypeError` for what only a pickle with code can hold."""
    if isinstance(value, Tensor):
        return _on_cpu(value)
    if isinstance(value, dict):
        return {
            _plain(key, f"a key of {name}"): _plain(entry, f"{name}[{key!r}]")
            for key, entry in value.items()
        }
    if type(value) in (list, tuple):
        return type(value)(_plain(entry, f"{name}[{i}]") for i, entry in enumerate(value))
    if type(value) in _PLAIN:  # exact types: a NumPy float is a float as well
        return value
    raise TypeError(f"{name} must be a tensor or a plain value, got a {type(value).__name__}")


def _on_cpu(tensor: Tensor) -> Tensor:
    """A contiguous CPU tensor with no memory but its own: torch.save writes whole storages."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size():
        return tensor.clone()
    return tensor


def _order(label: str) -> tuple[bool, int, str]:
    return not label.isdecimal(), int(label) if label.isdecimal() else 0, label


def _label(name: str) -> str | None:
    match = _FILE.fullmatch(name)
    return match and match["label"]


def _require_name(pattern: re.Pattern, name: str, kind: str, expected: str) -> None:
    if not isinstance(name, str) or not pattern.fullmatch(name):
        raise InputError(f"the {kind} of a checkpoint must be {expected}, got {name!r}")
