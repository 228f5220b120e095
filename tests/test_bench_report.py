"""The table of results, the report in a Markdown file, the comparison, the command."""

import csv
import subprocess

import pytest

from pix2pixhd_fast import InputError
from pix2pixhd_fast.benchmark import change_lines, changes, older_rows, write_report
from pix2pixhd_fast.benchmark.modelled import Modelled, modelled_steps
from pix2pixhd_fast.benchmark.report import BEGIN, END, NOT_RUN
from pix2pixhd_fast.benchmark.results import COLUMNS, append, latest, read
from pix2pixhd_fast.cli.main import main


def row(backend="fused", ratio=2.0, ms=10.0, noise=0.02, **changes):
    """A row whose p20 and p80 are `noise` around its median."""
    spread = {"": 1, "_p20": 1 - noise, "_p80": 1 + noise}
    return {
        **dict.fromkeys(COLUMNS, ""),
        **{"target": "norm_act_pad", "case": "one", "pass": "forward", "backend": backend},
        **{"size": "8x4", "batch": "1", "dtype": "fp32", "device": "CPU: toy", "threads": "2"},
        **{"status": "ok", "versions": "torch 2", "date": "2026-01-02T03", "commit": "abc"},
        **{"ratio_to": "eager", "error": "1e-7", "images_per_s": "100", "repeats": "3"},
        **{f"ratio{name}": str(ratio * factor) for name, factor in spread.items()},
        **{f"{name[1:] or 'median'}_ms": str(ms * factor) for name, factor in spread.items()},
        **changes,
    }


def eager(ms=20.0, **changes):
    return row("eager", 1.0, ms, **changes)


def toy_model():
    return [
        Modelled(what, name, {"RTX 4090": 0.01, "A100 80GB": 0.02}, 2**30, 9, 2**31)
        for what in ("synthesis", "training step")
        for name in ("eager", "fused")
    ]


def test_old_rows_and_columns_stay(tmp_path):
    path = tmp_path / "bench/results.csv"
    append(path, [row()])
    old = path.read_text().splitlines()
    path.write_text("\n".join([f"{old[0]},note", f'{old[1]},"kept, with a comma"']) + "\n")
    append(path, [row(backend="eager")])
    rows = read(path)
    assert [r["backend"] for r in rows] == ["fused", "eager"]
    assert [r["note"] for r in rows] == ["kept, with a comma", ""]
    with open(path, newline="") as file:
        assert next(csv.reader(file)) == [*COLUMNS, "note"]
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]


def test_a_file_that_is_no_table_stays_as_it_is(tmp_path):
    path = tmp_path / "results.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column target"):
        append(path, [row()])
    assert path.read_text() == "a,b\n1,2\n"
    with pytest.raises(InputError, match="csv must be a file"):
        read(tmp_path / "none.csv")


def test_the_latest_row_of_each_thing_counts():
    rows = [row(ms=1.0), row(ms=2.0), row(dtype="bf16", ms=3.0)]
    assert [r["median_ms"] for r in latest(rows)] == ["2.0", "3.0"]


def test_the_report_replaces_its_block_and_nothing_else(tmp_path):
    file = tmp_path / "README.md"
    before, after = "# Title\r\n\n", "\n\nthe rest  \n"
    file.write_bytes(f"{before}{BEGIN}\nold\n{END}{after}".encode())
    rows = [eager(), row(), row(backend="compile", ratio=1.2), row(dtype="bf16", status="wrong")]
    written = write_report(rows, file, toy_model)
    text = file.read_bytes().decode()
    assert text.startswith(before + BEGIN) and text.endswith(END + after) and "old" not in text
    assert "Measured here (CPU)" in text and "Modelled (GPU)" in text and NOT_RUN in text
    assert "**2.00x** (1.96 to 2.04)" in text and "wrong (1e-7)" in text
    images = sorted(path.name for path in (tmp_path / "docs/images").iterdir())
    assert len(images) == 4 and all(name in text for name in images)
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written[:-1])
    write_report(rows, file, toy_model)
    assert file.read_bytes().decode() == text


def test_a_row_of_a_gpu_fills_its_column(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(f"{BEGIN}{END}")
    on_gpu = [r | {"device": "NVIDIA H100"} for r in (eager(ms=2.0), row(ms=1.0))]
    write_report([eager(), row(), *on_gpu], file, toy_model)
    text = file.read_text()
    cell = "NVIDIA H100: eager 2 ms, fused 1 ms, **2.00x** (1.96 to 2.04)"
    assert cell in text and NOT_RUN not in text
    write_report([eager(), row(), *on_gpu, row(ms=3.0, device="CPU: other")], file, toy_model)
    assert file.read_text().count(cell) == 2 and "CPU: other; CPU: toy" in file.read_text()


@pytest.mark.filterwarnings("error")
def test_a_table_without_rows_of_a_cpu_has_no_chart_of_them(tmp_path):
    file = tmp_path / "README.md"
    for rows in ([], [row(device="NVIDIA H100")]):
        file.write_text(f"{BEGIN}{END}")
        write_report(rows, file, toy_model)
        text = file.read_text()
        assert "no rows yet" in text and "bench_cpu" not in text
        assert ("NVIDIA H100: fused 10 ms" in text) == bool(rows)


@pytest.mark.parametrize("text", ["nothing", BEGIN, f"{END} {BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_missing_markers_are_said_before_any_work(text, tmp_path):
    file = tmp_path / "README.md"
    file.write_text(text)
    with pytest.raises(InputError, match="bench:begin"):
        write_report([row()], file, toy_model)
    assert file.read_text() == text and not (tmp_path / "docs").exists()
    with pytest.raises(InputError, match="report must be a Markdown file"):
        write_report([row()], tmp_path / "none.md", toy_model)


def test_steps_are_modelled_for_both_backends():
    found = modelled_steps((64, 32), {"netG": "global", "ngf": 2, "no_vgg_loss": True})
    assert [(s.what, s.backend) for s in found[:4]] == [
        (what, name) for what in ("synthesis", "training step") for name in ("eager", "fused")
    ]
    by_name = {(s.what, s.backend): s for s in found}
    whole, again = (
        by_name[name, "fused"] for name in ("training step", "training step, `--checkpoint all`")
    )
    assert again.peak < whole.peak and again.launches > whole.launches
    assert all(s.peak > 0 and min(s.seconds.values()) > 0 for s in found)


OLD = [eager(), row()]
REGRESSIONS = {
    "speed-up lost": ([eager(), row(ratio=1.7)], True),
    "baseline slower": ([eager(ms=23.0), row()], True),
    "within 5 %": ([eager(), row(ratio=1.93)], False),
    "within the noise": ([eager(noise=0.2, ms=23.0), row(ratio=1.7, noise=0.2)], False),
    "a busy machine": ([row(ms=100.0)], False),
    "faster": ([eager(ms=10.0), row(ratio=3.0)], False),
    "wrong": ([eager(), row(status="wrong", median_ms="")], True),
    "other threads": ([row(ratio=1.0, threads="1")], False),
    "other device": ([row(ratio=1.0, device="CPU: another")], False),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_regressions_are_told_from_noise(name):
    new, expected = REGRESSIONS[name]
    found = changes(new, OLD)
    assert any(change.regression for change in found) == expected
    assert any("REGRESSION" in line for line in change_lines(found)) == expected


def test_compare_reads_a_file_or_a_revision(tmp_path, capsys):
    path = tmp_path / "results.csv"
    append(path, OLD)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "results.csv"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *arguments], check=True)
    append(path, [row(ratio=1.0)])
    assert [r["ratio"] for r in older_rows("HEAD", path)] == ["1.0", "2.0"]
    assert main(["bench", "--csv", str(path), "--compare", "HEAD"]) == 1
    assert "REGRESSION  norm_act_pad forward one 8x4 fp32 fused" in capsys.readouterr().out
    assert main(["bench", "--csv", str(path), "--compare", str(path)]) == 0
    assert main(["bench", "--csv", str(path), "--compare", "no-such"]) == 2
    assert "git revision" in capsys.readouterr().err


def test_the_command_measures_and_keeps_rows(tmp_path, capsys):
    path = tmp_path / "r.csv"
    line = "bench norm_act_pad G --size 64x32 --ngf 2 --repeats 2 --backend eager,fused,tensorrt"
    assert main([*line.split(), "--csv", str(path)]) == 0
    shown = capsys.readouterr()
    assert "repeat 2/2" in shown.err and "G forward" in shown.out and "tensorrt" in shown.out
    rows = read(path)
    assert len(rows) == 2 * (2 * 2 + 2)  # G reads channels, then label maps
    assert {r["status"] for r in rows} == {"ok"} and all(float(r["median_ms"]) > 0 for r in rows)
    assert {r["ratio_to"] for r in rows} == {"eager"} and rows[0]["device"].startswith("CPU")


def test_a_wrong_result_is_status_1(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "pix2pixhd_fast.ops.instance_boundaries", lambda ids: (ids * 0 + 1).to(ids.dtype)
    )
    line = "bench instance_boundaries --size 64x32 --repeats 1 --csv"
    assert main([*line.split(), str(tmp_path / "r.csv")]) == 1
    shown = capsys.readouterr().out
    assert "WRONG: relative L2 error" in shown
    assert [r["median_ms"] for r in read(tmp_path / "r.csv") if r["status"] == "wrong"] == ["", ""]


BAD = {
    "bench fly": "target must be one of norm_act_pad",
    "bench G --dtype fp16": "dtype fp16 needs a GPU",
    "bench G --size large": "size must be WIDTHxHEIGHT",
    "bench G --batchSize 2": "batchSize is called batch",
    "bench --report none.md --csv {csv}": "none.md",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_status_2(line, tmp_path, capsys):
    append(tmp_path / "r.csv", [row()])
    assert main(line.format(csv=tmp_path / "r.csv").split()) == 2
    error = capsys.readouterr().err
    assert BAD[line] in error and error.count("\n") == 1
