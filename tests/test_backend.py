"""The choice of backend: nests, belongs to its thread, refuses other names."""

import threading

import pytest

from pix2pixhd_fast import InputError, backend, current_backend, set_backend


def test_default_nesting_and_errors_inside():
    assert current_backend() == "fused"
    with backend("eager"):
        with backend("fused"):
            assert current_backend() == "fused"
        assert current_backend() == "eager"
        with pytest.raises(RuntimeError), backend("fused"):
            raise RuntimeError
        assert current_backend() == "eager"
    assert current_backend() == "fused"


def test_belongs_to_its_thread():
    seen = []
    with backend("eager"):
        thread = threading.Thread(target=lambda: seen.append(current_backend()))
        thread.start()
        thread.join()
    assert seen == ["fused"]


def test_set_backend_stays():
    try:
        set_backend("eager")
        assert current_backend() == "eager"
    finally:
        set_backend("fused")


@pytest.mark.parametrize("name", ["fast", "", None])
def test_refuses_other_names(name):
    with pytest.raises(InputError, match="backend must be one of eager, fused"):
        set_backend(name)
    with pytest.raises(InputError), backend(name):
        pass
