"""Pictures between the two memory formats: pure data movement."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pix2pixhd_fast.ops.memory_format import to_channels_last, to_default_format

OPS = torch.ops.pix2pixhd_fast
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def strides(shape, memory_format):
    return torch.empty(shape, memory_format=memory_format).stride()


@given(
    st.tuples(*(st.integers(1, most) for most in (3, 70, 20, 40))),
    st.sampled_from(DTYPES),
)
def test_kernel_against_reference(shape, dtype):
    x = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    last = to_channels_last(x)
    assert torch.equal(last, x)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(to_default_format(last), x) and to_default_format(last).is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_ops_copy_into_the_format(dtype):
    x = torch.randn(2, 3, 4, 5).to(dtype)
    for given_x in (x, x.transpose(2, 3).contiguous().transpose(2, 3), x[:, :, ::2, 1:]):
        last = OPS.to_channels_last(given_x)
        assert torch.equal(last, given_x)
        assert last.stride() == strides(given_x.shape, torch.channels_last)
        back = OPS.to_default_format(last)
        assert torch.equal(back, given_x)
        assert back.stride() == strides(given_x.shape, torch.contiguous_format)


def test_what_fits_already_is_not_copied():
    x = torch.randn(1, 3, 4, 5)
    last = x.contiguous(memory_format=torch.channels_last)
    assert to_default_format(x) is x and to_channels_last(last) is last


def test_opcheck():
    for shape in ((2, 3, 4, 5), (0, 3, 4, 5)):
        x = torch.randn(shape)
        torch.library.opcheck(OPS.to_channels_last, (x,))
        torch.library.opcheck(
            OPS.to_default_format, (x.contiguous(memory_format=torch.channels_last),)
        )
