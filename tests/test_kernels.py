"""The compile matrix: all our kernels are green in it, and it finds what is planted."""

import importlib.util
import json
import os
import re
import shutil
import signal
import sys

import pytest
import torch

pytest.importorskip("triton")

from pix2pixhd_fast.kernels import channel_statistics, norm_act_pad_backward, variants

from pix2pixhd_fast import InputError, compile_matrix, kernels
from pix2pixhd_fast.cli.main import main
from pix2pixhd_fast.compile_matrix import CAPABILITIES, workers
from pix2pixhd_fast.compile_matrix.cache import load
from pix2pixhd_fast.compile_matrix.limits import occupancy
from pix2pixhd_fast.compile_matrix.triton_kernels import triton_units
from pix2pixhd_fast.compile_matrix.units import Row
from tests.helpers import ROOT
from tests.test_norm_act_conv_triton import build

pytestmark = pytest.mark.skipif(
    os.getenv("TRITON_INTERPRET") == "1", reason="under the interpreter nothing is compiled"
)
needs_nvcc = pytest.mark.skipif(bool(compile_matrix.without_cuda()), reason="nvcc was not found")
HEADER = """#pragma once
constexpr float kScale = 2.0f;
__device__ inline float4 scaled(float4 x) {
  return make_float4(kScale * x.x, kScale * x.y, kScale * x.z, kScale * x.w);
}
"""


@pytest.fixture(scope="module")
def matrix():
    """All rows, from build/ what has not changed."""
    return compile_matrix.compile_matrix()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setattr(compile_matrix.cache, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def planted_triton(tmp_path, monkeypatch, folder):
    """kernels/ holds planted.py and no CUDA is there."""
    shutil.copy(ROOT / "tests/planted_kernels.py", tmp_path / "planted.py")
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    monkeypatch.setattr(compile_matrix, "CSRC", tmp_path / "none")
    yield tmp_path / "planted.py"
    sys.modules.pop("pix2pixhd_fast.kernels.planted", None)


@pytest.fixture
def planted_cuda(tmp_path, monkeypatch, folder):
    """csrc/ holds planted_cuda.cu alone, kernels/ nothing."""
    csrc = tmp_path / "csrc"
    csrc.mkdir()
    shutil.copy(ROOT / "tests/planted_cuda.cu", csrc)
    (csrc / "planted.cuh").write_text(HEADER)
    monkeypatch.setattr(kernels, "__path__", [])
    monkeypatch.setattr(compile_matrix, "CSRC", csrc)
    return csrc


def test_all_kernels_compile_without_spills(matrix):
    assert not [row for row in matrix if row.failure]
    assert {row.arch for row in matrix} == {f"sm_{capability}" for capability in CAPABILITIES}
    for row in matrix:
        assert row.spills == row.stack == 0 and row.registers > 0 and row.block > 0, row
        # At least 8 warps on a multiprocessor; of what is bound by memory alone 12.
        warps = 8 if row.source == "kernels/norm_act_conv.py" else 12
        assert row.occupancy >= warps / 64, row


def test_channels_last_kernels_load_whole_vectors(matrix):
    # Of 32 channels and more; what writes pictures writes as wide as it reads.
    wide = [row for row in matrix if "channels" in row.variant.partition("16|")[2].split(",")]
    assert len(wide) >= 50 * len(CAPABILITIES)
    pictures = ("_apply_kernel", "_backward_kernel", "_fold_kernel")
    assert {*pictures, "_statistics_kernel", "_reduce_kernel"} <= {row.kernel for row in wide}
    for row in wide:
        assert row.load_bits == 128, row
        assert row.store_bits == 128 or row.kernel not in pictures, row


@needs_nvcc
def test_boundaries_load_whole_vectors_where_rows_are_aligned(matrix):
    rows = [row for row in matrix if row.kernel == "mark_boundaries"]
    assert {row.variant for row in rows} == {
        f"<{aligned}, {id_type}>" for aligned in ("true", "false") for id_type in ("int", "long")
    }
    for row in rows:
        assert row.block == 128 and row.source == "csrc/instance_boundaries_cuda.cu"
        assert (row.load_bits == 128) == row.variant.startswith("<true")


@needs_nvcc
def test_label_convolution_moves_whole_vectors_where_channels_are_aligned(matrix):
    rows = [row for row in matrix if row.kernel == "convolve"]
    types = ("float", "__half", "__nv_bfloat16")
    assert {row.variant for row in rows} == {
        f"<{aligned}, {pooled}, {value}>"
        for aligned in ("true", "false")
        for pooled in ("true", "false")
        for value in types
    }
    for row in rows:
        assert row.block == 256 and row.source == "csrc/label_conv2d_cuda.cu"
        # The weights are whole vectors anyhow.
        assert row.load_bits == 128 and (row.store_bits == 128) == row.variant.startswith("<true")


def test_every_kernel_has_a_variant(planted_triton):
    assert compile_matrix.kernels_without_variant() == ["planted.forgotten_kernel"]


def test_every_kernel_of_ours_has_a_variant():
    assert compile_matrix.kernels_without_variant() == []


def test_planted_triton_kernels(planted_triton, capfd):
    assert main(["kernels", "--arch", "sm_80", "--json"]) == 1
    found = capfd.readouterr()
    rows = {row["kernel"]: row for row in json.loads(found.out)}
    assert list(rows) == ["product_kernel", "sound_kernel", "spilling_kernel", "wrong_kernel"]
    assert rows["spilling_kernel"]["spills"] > 0 and rows["spilling_kernel"]["block"] == 32
    assert rows["product_kernel"]["tensor_core"] > 0 and rows["sound_kernel"]["tensor_core"] == 0
    assert rows["sound_kernel"]["error"] == "" and rows["sound_kernel"]["load_bits"] == 128
    # The compiler's message names the line.
    assert "tl.load(x + at) + tl.arange(0, 2 * BLOCK)" in rows["wrong_kernel"]["error"]
    assert "spilling_kernel" in found.err and "bytes of spills" in found.err
    assert "wrong_kernel" in found.err and "does not compile" in found.err
    assert "sound_kernel" not in found.err


def test_tensor_core_instructions_of_every_architecture(planted_triton):
    rows = compile_matrix.compile_matrix(CAPABILITIES, "product_kernel")
    assert len(rows) == len(CAPABILITIES)
    assert all(row.tensor_core > 0 and row.error == "" for row in rows)


def test_a_compiler_that_dies_takes_only_its_own_row_with_it(planted_triton, monkeypatch):
    monkeypatch.setattr(workers, "_compile", dies_of_the_spilling_kernel(workers._compile))
    rows = {row.kernel: row for row in compile_matrix.compile_matrix((80,))}
    assert "ended with signal 9" in rows["spilling_kernel"].error
    assert rows["sound_kernel"].error == ""


def dies_of_the_spilling_kernel(compile_units):
    def compile_or_die(units, log):
        if any(unit.kernel == "spilling_kernel" for unit in units):
            os.kill(os.getpid(), signal.SIGKILL)
        return compile_units(units, log)

    return compile_or_die


@needs_nvcc
def test_planted_cuda_kernels(planted_cuda, capfd):
    assert main(["kernels", "--arch", "sm_90", "--json"]) == 1
    found = capfd.readouterr()
    rows = {row["kernel"]: row for row in json.loads(found.out)}
    assert list(rows) == ["sharing", "sound", "spilling"]
    assert rows["spilling"]["spills"] > 0 and rows["spilling"]["stack"] >= 512
    assert "spilling" in found.err and "sound" not in found.err
    assert rows["sharing"]["shared"] == 800 and rows["sharing"]["block"] == 128
    assert (rows["sound"]["load_bits"], rows["sound"]["store_bits"]) == (128, 128)
    assert rows["sound"]["variant"] == "" and rows["sound"]["loads"] == {"128": 1}


@needs_nvcc
def test_planted_cuda_error_is_shown(planted_cuda, capfd):
    (planted_cuda / "planted.cuh").write_text("#pragma once\nint broken = ;\n")
    assert main(["kernels", "--arch", "sm_90"]) == 1
    found = capfd.readouterr()
    assert "planted.cuh(2): error: expected an expression" in found.err
    assert "does not compile (sm_90)" in found.err


@needs_nvcc
def test_a_changed_header_is_compiled_again(planted_cuda, folder):
    compile_matrix.compile_matrix((80,))
    assert compiled((80,)) == 0
    (planted_cuda / "planted.cuh").write_text(HEADER.replace("2.0f", "3.0f"))
    (planted_cuda / "unused.cuh").write_text("")
    assert compiled((80,)) == 1 and compiled((80,)) == 0


def compiled(capabilities, kernel=None):
    """How many units are compiled, not taken from the cache."""
    seen = []
    compile_matrix.compile_matrix(
        capabilities, kernel, progress=lambda done, total, kept: seen.append(total - kept)
    )
    return seen[-1]


def test_only_what_is_not_in_the_cache_is_compiled(planted_triton, folder, capfd):
    assert compiled((80,), "sound_kernel") == 1
    assert compiled((80,), "sound_kernel") == 0
    assert compiled((80, 90), "sound_kernel") == 1
    # What failed is not kept.
    assert compiled((80,), "wrong_kernel") == 1 == compiled((80,), "wrong_kernel")
    # Lines that move change nothing, the kernel itself does.
    text = planted_triton.read_text()
    for changed, expected in (
        (f"# A line.\n{text}", 0),
        (text.replace("at < size)", "at != 5)"), 1),
    ):
        planted_triton.write_text(changed)
        sys.modules.pop("pix2pixhd_fast.kernels.planted")
        importlib.invalidate_caches()
        assert compiled((80,), "sound_kernel") == expected
    main(["kernels", "--kernel", "sound_kernel", "--arch", "sm_80"])
    assert "compiled 0 of 0, 1 from the cache" in capfd.readouterr().err


BROKEN = ["", "{", "[]", '{"digest": "x", "rows": []}', '{"rows": [{"kernel": 1}]}', "\x00\xff"]


def test_a_broken_cache_entry_is_compiled_again(planted_triton, folder):
    (right,) = compile_matrix.compile_matrix((80,), "sound_kernel")
    (entry,) = folder.glob("*.json")
    whole = entry.read_text()
    for content in (*BROKEN, whole[:-9], whole.replace('"registers": ', '"registers": "1", "r": ')):
        entry.write_bytes(content.encode("latin1"))
        assert load(folder, entry.stem) is None, content
    assert compile_matrix.compile_matrix((80,), "sound_kernel") == [right]
    assert entry.read_text() == whole and list(folder.iterdir()) == [entry]


def test_filters_and_columns(planted_triton, folder, capfd):
    assert main(["kernels", "--kernel", "planted", "--arch", "sm_86", "--all"]) == 1
    out = capfd.readouterr().out
    assert "sm_86" in out and "sm_80" not in out and "product_kernel" in out
    assert main(["kernels", "--kernel", "sound_kernel", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["arch"] for row in rows] == [f"sm_{capability}" for capability in CAPABILITIES]
    keys = "kernel arch registers spills stack shared tensor_core variant source occupancy"
    assert {*keys.split(), "load_bits", "store_bits", "block"} <= rows[0].keys()
    assert main(["kernels", "--kernel", "sound_kernel"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum("sound_kernel fp32 BLOCK=1024" in line for line in lines) == 1
    assert main(["kernels", "--kernel", "sound_kernel", "--all"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert sum("sound_kernel fp32 BLOCK=1024" in line for line in lines) == len(CAPABILITIES)


@pytest.mark.parametrize(
    "flags, words",
    [
        ("--arch sm_70", "arch must be one of sm_80, "),
        ("--kernel none", "kernel must be one of "),
        ("--jobs 0", "jobs must be at least 1"),
    ],
)
def test_bad_flags_are_one_sentence(flags, words, planted_triton, capfd):
    assert main(["kernels", *flags.split()]) == 2
    assert words in capfd.readouterr().err


def test_without_nvcc_one_line_says_so(planted_triton, monkeypatch, capfd):
    monkeypatch.setattr(compile_matrix, "cuda_home", lambda: None)
    assert main(["kernels", "--kernel", "sound_kernel", "--arch", "sm_80", "--json"]) == 0
    found = capfd.readouterr()
    assert found.err.count("no CUDA kernels: nvcc was not found") == 1
    assert len(json.loads(found.out)) == 1


def test_refuses_an_interpreting_triton(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # Imported for the compiler before: nothing is wrong.
    assert triton_units((80,)) and os.environ["TRITON_INTERPRET"] == "1"

    class InterpretedFunction:
        pass

    monkeypatch.setattr("triton.language.sum", InterpretedFunction())
    with pytest.raises(InputError, match="TRITON_INTERPRET must be unset"):
        triton_units((80,))


@pytest.mark.parametrize("module", [channel_statistics, norm_act_pad_backward])
def test_the_last_program_reads_behind_what_all_have_stored(module, tmp_path, monkeypatch):
    """In PTX: stores of parts, a barrier, the count, a barrier, loads past the first cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    variant = next(v for v in module.variants() if v.types.get("counters") == "*i32")
    compiled, _ = build(variant, 90)
    places = (
        r"bar\.sync|(?:ld|st)\.global(?:\.cg)?|atom\.global\.gpu\.acq_rel\.add|atom|red\.global"
    )
    found = re.findall(places, compiled.asm["ptx"])
    count = found.index("atom.global.gpu.acq_rel.add")
    before, after = found[:count], found[count + 1 :]
    assert not {"atom", "red.global"} & set(found) and "atom.global.gpu.acq_rel.add" not in after
    assert before[-1] == "bar.sync" and before.count("st.global") == 2
    # The counter is zero again, the parts are read, the sums stored.
    loads = [i for i, name in enumerate(after) if name.startswith("ld")]
    assert after[0] == "bar.sync" and after[1] == "st.global" and min(loads) > 1
    assert {after[i] for i in loads} == {"ld.global.cg"} and after.count("st.global") == 3


def test_variants_are_specialised_as_triton_does():
    """Of a launch: 1 becomes a constant, multiples of 16 are known, the rest is 32 or 64 bits."""
    from triton.backends.compiler import BaseBackend
    from triton.runtime import jit

    if not hasattr(jit, "native_specialize_impl"):
        pytest.skip("this Triton specialises elsewhere")
    kernel = channel_statistics._statistics_kernel
    x = torch.empty(64, device="meta", dtype=torch.bfloat16)
    given = {"pixels": 48, "channels": 1, "splits": 7, "split_pixels": 2**31, "x": x}
    arguments = dict.fromkeys(kernel.arg_names, x) | given
    arguments |= {"BLOCK_P": 32, "BLOCK_C": 64}
    (variant,) = variants.launches(lambda: kernel[(1,)](**arguments))
    for name, value in given.items():
        type_, known = jit.native_specialize_impl(BaseBackend, value, False, True, True)
        assert variant.types[name] == type_
        assert (name in variant.multiples_of_16) == (known == "D")
    assert variant.constants == {"channels": 1, "BLOCK_P": 32, "BLOCK_C": 64}
    with pytest.raises(TypeError, match="_statistics_kernel: pixels is a str"):
        variants.launches(lambda: kernel[(1,)](**arguments | {"pixels": "many"}))


@pytest.mark.parametrize(
    "capability, registers, shared, block, expected",
    [
        (80, 32, 0, 128, 1.0),
        (80, 33, 0, 128, 48 / 64),  # 40 registers a thread: 12 warps of each scheduler
        (90, 255, 0, 256, 8 / 64),
        (86, 32, 0, 32, 16 / 48),  # 16 blocks
        (86, 32, 49 * 1024, 128, 8 / 48),  # 50 KiB of 100, twice
        (120, 32, 99 * 1024, 128, 4 / 48),
        (120, 32, 99 * 1024 + 1, 128, 0.0),
        (100, 128, 0, 1024, 0.0),  # 32 warps of 4096 registers: twice what there is
    ],
)
def test_occupancy(capability, registers, shared, block, expected):
    assert occupancy(capability, registers, shared, block) == pytest.approx(expected)


def test_what_counts_as_a_failure():
    good = Row("k", "", "kernels/k.py", "sm_80", registers=8, occupancy=1.0)
    assert good.failure == ""
    assert "no block fits" in Row("k", "", "kernels/k.py", "sm_80", registers=8).failure
    assert Row("k", "", "kernels/k.py", "sm_80", error="no").failure == "does not compile"
