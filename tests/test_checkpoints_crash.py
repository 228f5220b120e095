"""Checkpoints stay whole: a process killed, a machine stopped, a disk full at any moment."""

import builtins
import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pix2pixhd_fast.checkpoints import CheckpointFolder, transaction
from pix2pixhd_fast.errors import InputError
from tests.checkpoint_writer import SIZES, Counted, has_encoder

HERE = Path(__file__).parent


class Crash(BaseException):
    """The process is gone: nothing that follows happens either."""


def save(folder: Path, counter: int, letters: str = "GDE", labels=("latest",)) -> None:
    networks = {letter: Counted(counter=counter) for letter in letters}
    CheckpointFolder(folder).save(labels, networks, {"counter": counter})


def load(folder: Path, label: str = "latest", size: int = 5) -> tuple[int, bool]:
    """The one counter in all files, and whether there is an E."""
    checkpoints = CheckpointFolder(folder)
    letters = "GDE" if label in checkpoints.labels("E") else "GD"
    networks = {k: Counted(size if size == 5 else SIZES[k]) for k in letters}
    state = checkpoints.load(label, networks, with_state=True)
    if "E" not in letters:
        with pytest.raises(InputError, match="does not exist"):
            checkpoints.load_network(label, "E", Counted())
    counters = {network.counter() for network in networks.values()} | {state["counter"]}
    assert len(counters) == 1, counters
    return counters.pop(), "E" in letters


@pytest.fixture
def no_sync(monkeypatch):
    """Nothing waits for the disk, where only the order of operations counts."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Operations:
    """Counts file operations and lets the one with number `stop` (and all later ones) fail."""

    def __init__(self, monkeypatch, stop: int, error: BaseException, once: bool = False):
        self.count, self._stop, self._error, self._once = 0, stop, error, once
        for owner, name in ((os, "replace"), (os, "fsync"), (os, "unlink"), (os, "open")):
            monkeypatch.setattr(owner, name, self._counted(getattr(owner, name)))
        monkeypatch.setattr(transaction, "open", self._counted(open), raising=False)
        monkeypatch.setattr(torch, "save", self._counted(torch.save, self._torn_save(torch.save)))

    def _counted(self, operation, instead=None):
        def run(*args, **kwargs):
            self.count += 1
            if self.count == self._stop or (self.count > self._stop and not self._once):
                if instead and self.count == self._stop:
                    instead(*args)
                raise self._error
            return operation(*args, **kwargs)

        return run

    @staticmethod
    def _torn_save(save):
        def run(content, file):
            save(content, file)
            file.flush()
            os.ftruncate(file.fileno(), file.tell() // 2)

        return run


def crashed_saves(tmp_path, monkeypatch, error, once, **second):
    """The folder after a second save that stops at each of its operations in turn."""
    for stop in itertools.count(1):
        folder = tmp_path / str(stop)
        save(folder, 1, "GDE", ("latest", "10"))
        with monkeypatch.context() as patch:
            operations = Operations(patch, stop, error, once)
            try:
                save(folder, 2, **second)
            except (Crash, InputError, OSError):
                pass
        yield folder, operations.count < stop
        shutil.rmtree(folder)
        if operations.count < stop:
            assert stop > 25  # there were operations to stop
            return


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("letters", ["GDE", "GD"])
@pytest.mark.parametrize("live", [False, True])
def test_a_process_that_dies_at_any_operation_leaves_one_whole_checkpoint(
    tmp_path, monkeypatch, letters, live
):
    # live: the writer seems to be running still, so that loading must not touch the folder
    monkeypatch.setattr(transaction, "_is_other_live_process", lambda pid: live)
    outcomes = []
    second = {"letters": letters, "labels": ("latest", "10")}
    for folder, finished in crashed_saves(tmp_path, monkeypatch, Crash(), False, **second):
        before = sorted(os.listdir(folder))
        counter, encoder = load(folder)
        assert load(folder, "10") == (counter, encoder)
        assert encoder == (counter == 1 or "E" in letters)
        assert not live or sorted(os.listdir(folder)) == before
        assert not finished or counter == 2
        outcomes.append(counter)
        monkeypatch.setattr(transaction, "_is_other_live_process", lambda pid: False)
        save(folder, 3, letters)
        assert load(folder) == (3, "E" in letters) and load(folder, "10") == (counter, encoder)
        save(folder, 4, letters, ("latest", "10"))
        assert load(folder) == load(folder, "10") == (4, "E" in letters)
        parts = ["state", *(f"net_{k}" for k in letters)]
        expected = sorted(f"{label}_{part}.pth" for label in ("latest", "10") for part in parts)
        assert sorted(os.listdir(folder)) == expected
        monkeypatch.setattr(transaction, "_is_other_live_process", lambda pid: live)
    assert outcomes == sorted(outcomes) and set(outcomes) == {1, 2}


@pytest.mark.usefixtures("no_sync")
def test_one_failing_operation_leaves_one_whole_checkpoint_and_the_next_save_works(
    tmp_path, monkeypatch
):
    error = OSError(errno.ENOSPC, "No space left on device")
    outcomes = []
    for folder, _ in crashed_saves(tmp_path, monkeypatch, error, True, labels=("latest", "10")):
        outcomes.append(load(folder)[0])
        assert load(folder, "10")[0] == outcomes[-1]
        save(folder, 3)
        assert load(folder) == (3, True)
        assert len(os.listdir(folder)) == 8 and not list(folder.glob(".*"))
    assert set(outcomes) == {1, 2}


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("opened", [1, 2, 3, 4])
def test_a_save_while_files_are_opened_is_not_mixed_with_the_one_before(
    tmp_path, monkeypatch, opened
):
    save(tmp_path, 1)
    count = 0

    def open_and_save(path, mode, **kwargs):
        nonlocal count
        file = builtins.open(path, mode, **kwargs)
        count += mode == "rb"
        if mode == "rb" and count == opened:
            save(tmp_path, 2)
        return file

    monkeypatch.setattr(transaction, "open", open_and_save, raising=False)
    assert load(tmp_path) == (2, True)
    assert count == 8  # all four opened again


class Disk:
    """Records what one save does, to lay out every state that a power failure can leave behind.

    What an fsync of a file or of the folder has not confirmed may be lost: the second half of a
    file; any of the changes of names, each by itself.
    """

    def __init__(self, folder: Path, monkeypatch):
        self.start = {p.name: p.read_bytes() for p in folder.iterdir()}
        self.log: list[tuple] = []
        files: dict[int, str] = {}  # name at creation by descriptor

        def open_file(path, mode, **kwargs):
            file = builtins.open(path, mode, **kwargs)
            if "x" in mode:
                files[file.fileno()] = Path(path).name
                self.log.append(("create", Path(path).name))
            return file

        def fsync(descriptor, run=os.fsync):
            run(descriptor)
            path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
            if path == folder:
                self.log.append(("sync names",))
            else:
                self.log.append(("sync", files[descriptor], path.read_bytes()))

        def replace(source, target, run=os.replace):
            run(source, target)
            self.log.append(("rename", Path(source).name, Path(target).name))

        def unlink(path, run=os.unlink, **kwargs):
            run(path, **kwargs)
            self.log.append(("remove", Path(path).name))

        monkeypatch.setattr(transaction, "open", open_file, raising=False)
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)
        monkeypatch.setattr(os, "unlink", unlink)

    def states(self, length: int):
        """Contents by name after the first `length` operations, for everything that may be lost."""
        done = self.log[:length]
        synced = {entry[1]: entry[2] for entry in done if entry[0] == "sync"}
        whole = {entry[1]: entry[2] for entry in self.log if entry[0] == "sync"}
        content = {name: synced.get(name, whole[name][: len(whole[name]) // 2]) for name in whole}
        syncs = [i for i, entry in enumerate(done) if entry[0] == "sync names"]
        certain = syncs[-1] + 1 if syncs else 0
        changes = [(i, e) for i, e in enumerate(done) if e[0] in ("create", "rename", "remove")]
        pending = [i for i, _ in changes if i >= certain]
        for lost in itertools.product((False, True), repeat=len(pending)):
            gone = {i for i, is_lost in zip(pending, lost, strict=True) if is_lost}
            names = dict(self.start)
            for i, (kind, name, *target) in changes:
                if i in gone or (kind != "create" and name not in names):
                    continue
                if kind == "create":
                    names[name] = content[name]
                elif kind == "remove":
                    del names[name]
                else:
                    names[target[0]] = names.pop(name)
            yield names


@pytest.mark.usefixtures("no_sync")
@pytest.mark.parametrize("letters", ["GDE", "GD"])
def test_a_machine_that_stops_at_any_moment_leaves_one_whole_checkpoint(
    tmp_path, monkeypatch, letters
):
    folder = tmp_path / "recorded"
    save(folder, 1)
    with monkeypatch.context() as patch:
        disk = Disk(folder, patch)
        save(folder, 2, letters)
    assert len(disk.log) >= 16
    count = 0
    for length in range(len(disk.log) + 1):
        outcomes = set()
        for files in disk.states(length):
            world = tmp_path / f"world{(count := count + 1)}"
            world.mkdir()
            for name, content in files.items():
                (world / name).write_bytes(content)
            counter, encoder = load(world)
            assert encoder == (counter == 1 or "E" in letters)
            outcomes.add(counter)
            shutil.rmtree(world)
        assert 2 in outcomes or length < len(disk.log)
    assert outcomes == {2}  # `save` has returned: it cannot be lost any more
    assert count > 60


class Writer:
    """A process that saves without end, in children that can be killed."""

    def __init__(self, folder: Path):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, str(HERE / "checkpoint_writer.py"), str(folder)]
        self._process = subprocess.Popen(
            command, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._child = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._child:
            os.kill(self._child, signal.SIGKILL)
        self._process.communicate(timeout=30)

    def start(self) -> int:
        """Start a child; return the counter it goes on from."""
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        found = {}
        while len(found) < 2:  # parent and child print in either order
            kind, number = self._process.stdout.readline().split()
            found[kind] = int(number)
            assert kind in ("pid", "start")
        self._child = found["pid"]
        return found["start"]

    def kill(self) -> int:
        """Kill the child; return the last save that it reported."""
        os.kill(self._child, signal.SIGKILL)
        self._child, last = None, 0
        while (line := self._process.stdout.readline()) != "dead\n":
            kind, number = line.split()
            assert kind == "saved"
            last = int(number)
        return last


def test_killed_writers_leave_one_whole_checkpoint_and_the_next_goes_on(tmp_path):
    generator = random.Random(7)
    kills_within_save = kills_within_commit = newest = 0
    with Writer(tmp_path) as writer:
        for round_ in range(24):
            assert writer.start() >= newest
            if round_ % 2:  # aim at the renames
                deadline = time.monotonic() + 1
                while not list(tmp_path.glob(".*.commit.json")) and time.monotonic() < deadline:
                    pass
            else:
                time.sleep(generator.uniform(0, 0.25))
            newest = max(newest, writer.kill())
            kills_within_save += bool(list(tmp_path.glob(".*.tmp")))
            kills_within_commit += bool(list(tmp_path.glob(".*.commit.json")))
            if newest == 0 and not CheckpointFolder(tmp_path).labels():
                continue  # killed before the first save
            counter, encoder = load(tmp_path, size=0)
            assert counter >= newest and encoder == has_encoder(counter)
            newest = counter
            if counter >= 3:
                assert load(tmp_path, "10", size=0) == (
                    counter // 3 * 3,
                    has_encoder(counter // 3 * 3),
                )
    assert newest >= 3
    assert kills_within_save > 10 and kills_within_commit > 2


def test_a_reader_beside_a_busy_writer_sees_one_save_at_a_time(tmp_path):
    with Writer(tmp_path) as writer:
        writer.start()
        networks = {"G": Counted(SIZES["G"]), "D": Counted(SIZES["D"])}
        seen = []
        deadline = time.monotonic() + 20
        while not CheckpointFolder(tmp_path).labels() and time.monotonic() < deadline:
            time.sleep(0.01)
        while len(set(seen)) < 6 and time.monotonic() < deadline:
            state = CheckpointFolder(tmp_path).load("latest", networks, with_state=True)
            assert networks["G"].counter() == networks["D"].counter() == state["counter"]
            seen.append(state["counter"])
        writer.kill()
    assert seen == sorted(seen) and len(set(seen)) == 6
