"""The loss log, its curves, and TensorBoard."""

import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.report import curves, files
from pix2pixhd_fast.report.curves import draw_loss_curves
from pix2pixhd_fast.report.loss_log import LossLog, LossRow, read_loss_log
from pix2pixhd_fast.report.tensorboard import TensorBoardLog

ORIGINAL = (
    "================ Training Loss (Sat Nov 18 10:21:35 2017) ================\n"
    "(epoch: 1, iters: 100, time: 0.305) G_GAN: 1.262 G_GAN_Feat: 11.093 G_VGG: 8.715 "
    "D_real: 0.742 D_fake: 0.611 \n"
    "(epoch: 1, iters: 200, time: 0.287) G_GAN: 0.814 G_GAN_Feat: 9.350 "
    "D_real: nan D_fake: 0.470 \n"
    "================ Training Loss (Sun Nov 19 08:00:01 2017) ================\n"
    "(epoch: 12, iters: 2900, time: 0.289) G_GAN: 0.702 \n"
)


def rows_of(count, per_epoch=4):
    return [
        LossRow(1 + n // per_epoch, 100 * (1 + n % per_epoch), 0.1, {"G_GAN": 1 / (n + 1)})
        for n in range(count)
    ]


def positions(path):
    return [(row.epoch, row.iters) for row in read_loss_log(path)]


def test_a_line_has_the_format_of_the_original(tmp_path):
    log = LossLog(tmp_path / "new" / "loss_log.txt")
    before = time.time()
    log.start()
    losses = {"G_GAN": 0.5123, "G_VGG": 0, "D_real": 1e-4, "D_fake": float("nan")}
    line = log.append(3, 400, 0.1234, losses)
    assert line == "(epoch: 3, iters: 400, time: 0.123) G_GAN: 0.512 D_real: 0.000 D_fake: nan "
    header, row = log.path.read_text().splitlines()
    assert row == line
    match = re.fullmatch(r"={16} Training Loss \((.+)\) ={16}", header)
    assert before - 2 < time.mktime(time.strptime(match[1])) < time.time() + 2


def test_what_is_written_is_read(tmp_path):
    log = LossLog(tmp_path / "loss_log.txt")
    log.start()
    written = [
        LossRow(1, 100, 0.125, {"G_GAN": 0.5, "D_fake": 123.25}),
        LossRow(1, 200, 12.0, {}),
        LossRow(200, 2975, 0.0, {"G_GAN": -0.5, "D_fake": float("inf")}),
    ]
    for row in written:
        log.append(row.epoch, row.iters, row.seconds, row.losses)
    assert read_loss_log(log.path) == written


def test_logs_of_the_original_are_read(tmp_path):
    path = tmp_path / "loss_log.txt"
    for end in ("\n", "\r\n"):
        path.write_bytes(ORIGINAL.replace("\n", end).encode())
        rows = read_loss_log(path)
        assert [(row.epoch, row.iters, row.seconds) for row in rows] == [
            (1, 100, 0.305),
            (1, 200, 0.287),
            (12, 2900, 0.289),
        ]
        assert rows[0].losses == {
            "G_GAN": 1.262,
            "G_GAN_Feat": 11.093,
            "G_VGG": 8.715,
            "D_real": 0.742,
            "D_fake": 0.611,
        }
        assert np.isnan(rows[1].losses["D_real"]) and "G_VGG" not in rows[1].losses


def test_a_log_cut_anywhere_never_yields_a_wrong_number(tmp_path):
    path = tmp_path / "loss_log.txt"
    path.write_bytes(ORIGINAL.encode())
    whole = read_loss_log(path)[:1]
    start = ORIGINAL.index("(epoch: 1, iters: 100")
    end = ORIGINAL.index("\n", start)
    for cut in range(start, end + 1):
        path.write_bytes(ORIGINAL[:cut].encode())
        assert read_loss_log(path) == []
        LossLog(path).start()
        LossLog(path).append(2, 100, 0.1, {"G_GAN": 2.0})
        assert path.read_text().splitlines()[-2].startswith("====")
        found = read_loss_log(path)
        assert found[-1] == LossRow(2, 100, 0.1, {"G_GAN": 2.0}), "nothing is glued to the damage"
        for row in found[:-1]:
            assert row.losses.items() <= whole[0].losses.items()


def test_bytes_that_are_no_text_are_skipped(tmp_path):
    path = tmp_path / "loss_log.txt"
    path.write_bytes(b"\xff\xfe\x00\n" + ORIGINAL.encode())
    assert len(read_loss_log(path)) == 3


def test_a_log_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="loss_log.txt cannot be read: No such file"):
        read_loss_log(tmp_path / "loss_log.txt")
    (tmp_path / "file").write_text("")
    log = LossLog(tmp_path / "file" / "loss_log.txt")
    for write in (log.start, lambda: log.append(1, 1, 0.1, {})):
        with pytest.raises(InputError, match="cannot be written"):
            write()


def written_log(path, count=12):
    log = LossLog(path)
    log.start()
    for row in rows_of(count):
        log.append(row.epoch, row.iters, row.seconds, row.losses)
    return log


def test_a_resumed_log_has_no_row_twice(tmp_path):
    log = written_log(tmp_path / "loss_log.txt")
    with open(log.path, "ab") as file:
        file.write(b"(epoch: 4, iters: 100, time: 0.1")
    assert log.truncate_after(2, 200) == 7
    assert positions(log.path) == [(1, 100), (1, 200), (1, 300), (1, 400), (2, 100), (2, 200)]
    log.start()
    log.append(2, 300, 0.1, {"G_GAN": 1.0})
    assert positions(log.path)[-2:] == [(2, 200), (2, 300)]
    assert log.path.read_text().count("Training Loss") == 2


def test_truncating_keeps_all_other_bytes(tmp_path):
    log = written_log(tmp_path / "loss_log.txt", 3)
    with open(log.path, "ab") as file:
        file.write("my note: ü\n".encode() + b"\xff\n")
    content = log.path.read_bytes()
    inode = log.path.stat().st_ino
    assert log.truncate_after(1, 300) == 0
    assert log.path.read_bytes() == content and log.path.stat().st_ino == inode
    assert log.truncate_after(1, 200) == 1
    lines = content.splitlines(keepends=True)
    assert log.path.read_bytes() == b"".join(lines[:3] + lines[4:])
    assert LossLog(tmp_path / "none.txt").truncate_after(1, 1) == 0


def test_a_failure_while_truncating_leaves_the_old_log(tmp_path, monkeypatch):
    log = written_log(tmp_path / "loss_log.txt")
    content = log.path.read_bytes()

    def fail(descriptor):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(InputError, match="loss_log.txt cannot be written: Input/output error"):
        log.truncate_after(1, 100)
    assert log.path.read_bytes() == content
    assert os.listdir(tmp_path) == ["loss_log.txt"]


def test_curves_replace_what_a_run_went_back_behind():
    first = [LossRow(1, n, 0.1, {"G": float(n)}) for n in (100, 200, 300)]
    again = [LossRow(1, n, 0.1, {"G": 10.0 * n}) for n in (200, 300, 400)]
    assert curves._last_run(first + again) == first[:1] + again


def test_the_moving_average_is_a_mean_of_neighbours():
    values = np.array([1.0, 2.0, np.nan, 6.0, 8.0])
    assert np.allclose(curves._moving_average(values, 3), [1.5, 1.5, 4.0, 7.0, 7.0])
    assert np.isnan(curves._moving_average(np.full(3, np.nan), 3)).all()
    assert np.allclose(curves._moving_average(np.ones(200), 5), 1)


def test_curves_are_drawn_in_epochs_and_colour(tmp_path, monkeypatch):
    drawn = {}
    draw = curves._draw_panel

    def note(panel, title, series):
        drawn[title] = (panel, series)
        draw(panel, title, series)

    monkeypatch.setattr(curves, "_draw_panel", note)
    rows = [
        LossRow(1 + n // 10, 10 * (n % 10 + 1), 0.1, {"G_GAN": 2.0, "D_real": 1.0 + n})
        for n in range(30)
    ]
    abandoned = [LossRow(2, 50, 0.1, {"G_GAN": 9.0, "D_real": 99.0})]
    draw_loss_curves(abandoned + rows, tmp_path / "loss.png", 100)
    epochs, values = drawn["Discriminator"][1]["D_real"]
    assert np.allclose(epochs, np.arange(1, 31) / 10) and values[-1] == 30
    assert list(drawn["Generator"][1]) == ["G_GAN"]
    low, high = drawn["Discriminator"][0].get_ylim()
    assert low <= 1 and high >= 29
    pixels = np.asarray(Image.open(tmp_path / "loss.png").convert("RGB")).astype(int)
    assert pixels.shape == (598, 1560, 3)
    assert (np.ptp(pixels, axis=2) > 60).sum() > 2000, "there are coloured lines"
    assert os.listdir(tmp_path) == ["loss.png"]


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [LossRow(1, 100, 0.1, {})],
        [LossRow(1, 100, 0.1, {"G_GAN": float("nan")})],
        [LossRow(1, n, 0.1, {"G_GAN": float("inf")}) for n in range(150)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_curves_of_nothing_are_drawn_without_complaint(tmp_path, rows):
    draw_loss_curves(rows, tmp_path / "loss.png", 100)
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (1560, 598)


def test_curves_that_cannot_be_drawn_are_explained(tmp_path):
    with pytest.raises(InputError, match="images_per_epoch must be at least 1, got 0"):
        draw_loss_curves(rows_of(3), tmp_path / "loss.png", 0)
    with pytest.raises(InputError, match="loss.png cannot be written"):
        draw_loss_curves(rows_of(3), tmp_path / "none" / "loss.png", 100)
    assert os.listdir(tmp_path) == []


def test_importing_the_room_loads_neither_matplotlib_nor_tensorboard():
    code = (
        "import sys, pix2pixhd_fast.report\n"
        "print([m for m in ('matplotlib', 'tensorboard', 'triton', 'torchvision') "
        "if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"


def test_curves_leave_the_state_of_matplotlib_alone(tmp_path):
    import matplotlib
    from matplotlib._pylab_helpers import Gcf

    settings = matplotlib.rcParams.copy()
    figures = len(Gcf.figs)
    draw_loss_curves(rows_of(5), tmp_path / "loss.png", 10)
    assert matplotlib.rcParams.copy() == settings
    assert len(Gcf.figs) == figures


def test_tensorboard_events_can_be_read_back(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path / "logs")
    log.scalars(100, {"G_GAN": 0.5, "D_fake": 0.0})
    log.scalars(200, {"G_GAN": 0.25})
    log.images(200, {"real_image": np.full((4, 6, 3), 200, np.uint8)})
    log.close()
    log.close()
    events = EventAccumulator(str(tmp_path / "logs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("G_GAN")] == [
        (100, 0.5),
        (200, 0.25),
    ]
    assert events.Scalars("D_fake")[0].value == 0
    image = events.Images("real_image")[0]
    assert (image.step, image.width, image.height) == (200, 6, 4)


def test_without_tensorboard_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install tensorboard"):
        TensorBoardLog(tmp_path / "logs")
    assert os.listdir(tmp_path) == []
