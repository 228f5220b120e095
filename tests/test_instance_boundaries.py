"""instance_boundaries: the reference against loops, the C++ and CUDA kernels against it."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given, settings

from pix2pixhd_fast import InputError, backend
from pix2pixhd_fast._library import library_status
from pix2pixhd_fast.ops import instance_boundaries
from pix2pixhd_fast.ops.instance_boundaries import instance_boundaries_ref
from tests.cuda_on_cpu import HERE, SEEDS, DeviceError, Output, device_program

op = torch.ops.pix2pixhd_fast.instance_boundaries
needs_kernel = pytest.mark.skipif(
    "instance_boundaries" not in library_status()["kernels"], reason="the C++ kernels are not built"
)

# N, H, W: single pixels, single rows and columns, odd, around the width of a vector, nothing at all
SHAPES = [(1, 1, 1), (1, 1, 7), (2, 7, 1), (3, 5, 6), (2, 9, 33), (1, 3, 131), (0, 4, 4), (2, 0, 3)]


def draw(n, h, w, dtype=torch.int32, seed=0):
    """Ids of few values, in runs: about as many edges as not. Some differ in the high half only."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 3, (n, 1, h, w), generator=generator)
    high = 32 if dtype == torch.int64 else 16
    return (ids * (ids < 2) + (ids == 2) * 2**high).to(dtype)


def by_loops(ids):
    edges = torch.zeros(ids.shape, dtype=torch.uint8)
    n, _, h, w = ids.shape
    for i, y, x in torch.cartesian_prod(torch.arange(n), torch.arange(h), torch.arange(w)).tolist():
        for y2, x2 in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= y2 < h and 0 <= x2 < w and ids[i, 0, y, x] != ids[i, 0, y2, x2]:
                edges[i, 0, y, x] = 1
    return edges


def assert_same(actual, expected):
    assert actual.dtype == torch.uint8 and actual.is_contiguous()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_against_loops(shape):
    ids = draw(*shape)
    assert_same(instance_boundaries_ref(ids), by_loops(ids))


def test_recorded_sample(golden, backend_name):
    sample = golden("sample")
    assert_same(instance_boundaries(sample["inst"]), sample["edges"].to(torch.uint8))


@needs_kernel
@pytest.mark.parametrize("threads", [1, 2])
@given(
    st.integers(0, 3),
    st.integers(0, 20),
    st.integers(0, 150),
    st.sampled_from([torch.int32, torch.int64]),
    st.integers(0, 99),
)
@example(1, 300, 257, torch.int32, 0)
def test_kernel_against_reference(threads, n, h, w, dtype, seed):
    torch.set_num_threads(threads)
    ids = draw(n, h, w, dtype, seed)
    assert_same(op(ids), instance_boundaries_ref(ids))


def mark_by_cuda_code(ids, seed, edges_offset=0):
    """The CUDA kernel, run on the CPU; `edges_offset`: how far its output lies off 64 bytes."""
    n, _, h, w = ids.shape
    edges = torch.empty(edges_offset + ids.numel(), dtype=torch.uint8)[edges_offset:]
    name = {torch.int32: "mark_int32", torch.int64: "mark_int64"}[ids.dtype]
    program = device_program(HERE / "instance_boundaries.cpp")
    program.run(name, ids, Output(edges), n, h, w, seed=seed)
    return edges.view(ids.shape)


@settings(max_examples=20)
@given(
    st.integers(1, 3),
    st.integers(1, 20),
    st.integers(1, 150),
    st.sampled_from([torch.int32, torch.int64]),
    st.sampled_from(SEEDS),
)
@example(1, 1, 1, torch.int32, 0)
@example(2, 17, 132, torch.int32, 1)
@example(2, 9, 128, torch.int64, 2)
@example(1, 2, 513, torch.int32, 0)
@example(1, 3, 1028, torch.int64, 0)
def test_cuda_code_against_reference(n, h, w, dtype, seed):
    ids = draw(n, h, w, dtype, seed)
    assert_same(mark_by_cuda_code(ids, seed), instance_boundaries_ref(ids))


@pytest.mark.parametrize(("ids_offset", "edges_offset"), [(1, 0), (0, 1), (3, 2)])
def test_cuda_code_on_tensors_that_start_anywhere(ids_offset, edges_offset):
    ids = draw(1, 1, ids_offset + 9 * 64).flatten()[ids_offset:].view(1, 1, 9, 64)
    for seed in SEEDS:
        assert_same(mark_by_cuda_code(ids, seed, edges_offset), instance_boundaries_ref(ids))


def test_cuda_code_refuses_more_than_the_grid_holds():
    program = device_program(HERE / "instance_boundaries.cpp")
    ids, edges = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.uint8)
    for size in ((2**31, 1, 1), (1, 2**31, 1), (1, 1, 2**26)):
        with pytest.raises(DeviceError, match="cudaError_t 1$"):
            program.run("mark_int32", ids, Output(edges), *size, seed=0)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 1024, 2048), (2, 300, 257)], ids=str)
def test_cuda_kernel_on_a_device(shape, dtype):
    if not torch._C._dispatch_has_kernel_for_dispatch_key(op._qualified_op_name, "CUDA"):
        pytest.skip("the CUDA kernels are not built")
    ids = draw(*shape, dtype)
    assert_same(op(ids.cuda()).cpu(), instance_boundaries_ref(ids))
    if ids.numel() > 1:
        assert_same(op(ids.cuda()[..., 1:]).cpu(), instance_boundaries_ref(ids[..., 1:]))


@pytest.mark.parametrize(
    "view",
    [
        lambda ids: ids.transpose(2, 3),
        lambda ids: ids[..., ::2],
        lambda ids: ids[:, :, 1:, 3:],
        lambda ids: ids[:, :, :1].expand(-1, -1, 5, -1),
        lambda ids: ids.contiguous(memory_format=torch.channels_last),
    ],
    ids=["transposed", "strided", "cropped", "expanded", "channels_last"],
)
def test_any_strides(view, backend_name):
    ids = view(draw(2, 9, 18))
    assert_same(instance_boundaries(ids), by_loops(ids))


@pytest.mark.parametrize(
    "dtype",
    [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.uint32, torch.int64],
    ids=str,
)
def test_any_integer_dtype(dtype, backend_name):
    info = torch.iinfo(dtype)
    ids = torch.tensor([info.min, info.max, info.max, info.max - 1, 0]).to(dtype).view(1, 1, 1, 5)
    expected = torch.tensor([1, 1, 1, 1, 1], dtype=torch.uint8).view(1, 1, 1, 5)
    assert_same(instance_boundaries(ids), expected)


def test_ids_beyond_int32(backend_name):
    ids = torch.tensor([[2**31 + 5, 2**31 + 5, 5, 5 + 2**32]]).view(1, 1, 1, 4)
    assert instance_boundaries(ids).flatten().tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(4, 4, dtype=torch.int32), r"ids must be \[N, 1, H, W\], got \[4, 4\]"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int32), r"got \[1, 3, 4, 4\]"),
        (torch.zeros(1, 1, 4, 4), "ids must hold integers, got torch.float32"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.bool), "got torch.bool"),
    ],
)
def test_refuses(ids, message):
    with pytest.raises(InputError, match=message):
        instance_boundaries(ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(2, 5, 7), (0, 4, 4)])
def test_opcheck(shape, dtype):
    torch.library.opcheck(op, (draw(*shape, dtype),))
    torch.library.opcheck(op, (draw(*shape, dtype).transpose(2, 3),))


def test_shape_inference_without_data():
    with torch._subclasses.FakeTensorMode():
        edges = instance_boundaries(torch.empty(2, 1, 6, 8, dtype=torch.int32, device="cuda"))
    assert (edges.shape, edges.dtype, edges.device.type) == ((2, 1, 6, 8), torch.uint8, "cuda")
    assert instance_boundaries(torch.empty(1, 1, 3, 4, dtype=torch.int64, device="meta")).is_meta


def test_compiles_in_one_graph(backend_name):
    compiled = torch.compile(instance_boundaries, fullgraph=True, backend="aot_eager", dynamic=True)
    for shape in ((1, 6, 8), (2, 9, 5)):
        assert_same(compiled(draw(*shape)), by_loops(draw(*shape)))


@needs_kernel
def test_fused_runs_the_kernel_and_eager_does_not():
    ids = draw(1, 4, 4)
    for name, expected in (("fused", 1), ("eager", 0)):
        with torch.profiler.profile() as profile, backend(name):
            instance_boundaries(ids)
        calls = [e.name for e in profile.events() if e.name.startswith("pix2pixhd_fast::")]
        assert len(calls) == expected
