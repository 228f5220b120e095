"""Installing: metadata, the optional binary and what happens without it."""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tomllib

import pytest

import pix2pixhd_fast
from pix2pixhd_fast import InputError, _library, _toolchain
from tests.helpers import ROOT


@pytest.fixture
def setup_py():
    spec = importlib.util.spec_from_file_location("setup_py", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def installed():
    try:
        return importlib.metadata.distribution("pix2pixhd_fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("pix2pixhd_fast is not installed, only imported")


def run(*command, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_metadata(installed):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert installed.version == project["version"] == pix2pixhd_fast.__version__
    assert installed.metadata["License-Expression"] == "BSD-3-Clause"
    (script,) = installed.entry_points.select(group="console_scripts")
    assert (script.name, script.value) == ("pix2pixhd-fast", "pix2pixhd_fast.cli:main")


def test_imports_from_anywhere_without_triton_or_cuda(installed, tmp_path):
    result = run(
        "-c",
        "import sys, torch, pix2pixhd_fast, pix2pixhd_fast.kernels; "
        "print('triton' in sys.modules, torch.cuda.is_initialized())",
        cwd=tmp_path,
    )
    assert (result.stdout, result.stderr) == ("False False\n", "")


def test_typed():
    assert (ROOT / "pix2pixhd_fast/py.typed").is_file()


def test_every_op_has_its_kernel():
    status = _library.library_status()
    if not status["built"]:
        pytest.skip("the C++ kernels are not built")
    sources = "".join(path.read_text() for path in ROOT.glob("csrc/*_cpu.cpp"))
    assert sorted(status["kernels"]) == sorted(re.findall(r'm\.impl\("(\w+)"', sources))
    assert status["path"] == str(ROOT / "pix2pixhd_fast/_C.abi3.so")


@pytest.mark.parametrize("content", [None, b"not a binary"], ids=["missing", "broken"])
def test_without_the_binary_the_reference_runs_and_says_so(content, tmp_path, monkeypatch, caplog):
    binary = tmp_path / "_C.abi3.so"
    if content is not None:
        binary.write_bytes(content)
    monkeypatch.setattr(_library, "BINARY", binary)
    monkeypatch.setattr(_library, "BACKEND", "auto")
    assert _library._load() is False
    (record,) = caplog.records
    assert record.levelname == "WARNING" and str(binary) in record.message
    monkeypatch.setattr(_library, "BACKEND", "ref")
    assert _library._load() is False and len(caplog.records) == 1
    monkeypatch.setattr(_library, "BACKEND", "cpp")
    with pytest.raises(InputError, match="BACKEND is cpp, which needs the C.. kernels"):
        _library._load()


def test_refuses_an_unknown_backend(monkeypatch):
    monkeypatch.setattr(_library, "BACKEND", "fast")
    with pytest.raises(InputError, match="must be one of auto, ref, cpp, triton, got 'fast'"):
        _library._load()


def test_without_a_compiler_the_package_builds_unless_kernels_are_required(tmp_path):
    build = ["setup.py", "build", "--build-base", str(tmp_path)]
    result = run(*build, CXX="/bin/false", PIX2PIXHD_FAST_CPP="1", PIX2PIXHD_FAST_REQUIRE_CPP="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("pix2pixhd_fast: no C++ kernels, the slower PyTorch reference") == 1
    assert list(tmp_path.rglob("kernels/__init__.py")) and not list(tmp_path.rglob("*.so"))
    result = run(*build, CXX="/bin/false", PIX2PIXHD_FAST_CPP="1", PIX2PIXHD_FAST_REQUIRE_CPP="1")
    assert result.returncode == 1
    assert "pix2pixhd_fast: the C++ kernels cannot be built: " in result.stderr


def test_builds_no_binary_where_none_is_wanted(setup_py, monkeypatch, capsys):
    monkeypatch.setenv("PIX2PIXHD_FAST_REQUIRE_CPP", "0")
    monkeypatch.setattr(sys, "argv", ["setup.py", "egg_info"])
    assert setup_py.binary() == {} and capsys.readouterr().out == ""
    monkeypatch.setattr(sys, "argv", ["setup.py", "bdist_wheel"])
    monkeypatch.setenv("PIX2PIXHD_FAST_CPP", "0")
    assert setup_py.binary() == {} and "PIX2PIXHD_FAST_CPP is 0" in capsys.readouterr().out


def test_finds_the_cuda_toolkit_behind_a_wrapper(tmp_path, monkeypatch):
    wrapper, toolkit = tmp_path / "local/bin/nvcc", tmp_path / "cuda"
    for path in (wrapper, toolkit / "bin/nvcc", toolkit / "include/cuda_runtime.h"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setattr(_toolchain.shutil, "which", lambda _: str(wrapper))
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert _toolchain.cuda_home() == toolkit
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "gone"))
    assert _toolchain.cuda_home() not in (tmp_path / "local", tmp_path / "gone")


def test_builds_for_every_architecture_of_the_matrix():
    assert _toolchain.ARCHITECTURES == "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
