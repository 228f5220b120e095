"""instance_mean_pool: the reference against loops, the C++ and CUDA kernels against both."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from PIL import Image

from pix2pixhd_fast import InputError
from pix2pixhd_fast._launches import launches_of
from pix2pixhd_fast._library import library_status
from pix2pixhd_fast.ops import instance_mean_pool
from pix2pixhd_fast.ops.instance_mean_pool import instance_mean_pool_ref, scratch_bytes
from tests.cuda_on_cpu import HERE, SEEDS, Output, device_program
from tests.helpers import assert_close_l2

op = torch.ops.pix2pixhd_fast.instance_mean_pool
needs_kernel = pytest.mark.skipif(
    "instance_mean_pool" not in library_status()["kernels"], reason="the C++ kernels are not built"
)
TOLERANCES = {torch.float32: 2e-7, torch.float16: 4e-4, torch.bfloat16: 3e-3, torch.float64: 1e-14}
FLOATS = [torch.float32, torch.float16, torch.bfloat16]
# N, C, H, W: single pixels, rows and columns, odd, more than four channels, nothing at all
SHAPES = [(1, 1, 1, 1), (2, 3, 1, 9), (1, 2, 7, 1), (3, 5, 6, 7), (2, 4, 9, 33)]
SHAPES += [(0, 3, 4, 4), (2, 3, 0, 5)]


def draw_ids(n, h, w, instances=5, run=4, dtype=torch.int32, seed=0):
    """Runs of ids with gaps, of which pictures share some; the last lie far up."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, instances, (n, 1, h, w // run + 1), generator=generator)
    ids = drawn.repeat_interleave(run, -1)[..., :w] * 7
    top = 2**31 - 1 if dtype == torch.int32 else 2**62
    return torch.where(ids == 7, torch.tensor(top), ids).to(dtype)


def draw_features(shape, dtype=torch.float32, last=False, seed=0):
    """Means of another size in every channel."""
    generator = torch.Generator().manual_seed(seed)
    scale = 10.0 ** torch.arange(shape[1]).remainder(3).view(-1, 1, 1)
    x = ((torch.randn(shape, generator=generator) + 0.5) * scale).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if last else x


def by_loops(features, ids):
    """In float64, instance by instance."""
    pooled = features.double()
    for image, own in zip(pooled, ids, strict=True):
        for id in own.unique().tolist():
            mask = (own == id).expand_as(image)
            means = image[mask].view(image.shape[0], -1).mean(1, keepdim=True)
            image[mask] = means.expand(-1, int((own == id).sum())).flatten()
    return pooled


def assert_pooled(actual, features, ids, expected=None, tolerance=None):
    expected = by_loops(features, ids) if expected is None else expected
    assert actual.dtype == features.dtype
    last = features.is_contiguous(memory_format=torch.channels_last)
    if last and not features.is_contiguous():
        assert actual.is_contiguous(memory_format=torch.channels_last)
    else:
        assert actual.is_contiguous()
    assert_close_l2(actual, expected, tolerance or TOLERANCES[features.dtype], "pooled")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_loops(shape, backend_name):
    n, c, h, w = shape
    for last in (False, True):
        features, ids = draw_features(shape, last=last), draw_ids(n, h, w)
        assert_pooled(instance_mean_pool(features, ids), features, ids)


@pytest.mark.parametrize("instances", [1, 10_000])
def test_one_and_ten_thousand_instances(instances, backend_name):
    """In turn, so that each lies all over the picture."""
    features = draw_features((1, 3, 200, 300))
    ids = (torch.arange(60_000) % instances * 100_003).int().view(1, 1, 200, 300)
    means = features.double().view(3, -1, instances).mean(1)
    expected = means.repeat(1, 60_000 // instances).view(1, 3, 200, 300)
    # The reference adds 60,000 values one by one: 1.3e-6.
    tolerance = 3e-6 if backend_name == "eager" else None
    assert_pooled(instance_mean_pool(features, ids), features, ids, expected, tolerance)


def test_single_pixels_stay_as_they_are(backend_name):
    features, ids = draw_features((2, 3, 5, 7)), torch.arange(70).view(2, 1, 5, 7)
    assert torch.equal(instance_mean_pool(features, ids), features)


def test_same_id_in_two_pictures_is_two_instances(backend_name):
    features = draw_features((2, 3, 4, 4))
    pooled = instance_mean_pool(features, torch.full((2, 1, 4, 4), 26001))
    expected = features.mean((2, 3), keepdim=True).expand_as(features)
    assert_close_l2(pooled, expected, 1e-6, "pooled")


@needs_kernel
@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 20), st.integers(1, 150)),
    st.sampled_from([*FLOATS, torch.float64]),
    st.sampled_from([torch.int32, torch.int64]),
    st.booleans(),
    st.sampled_from([(1, 1), (3, 40), (60, 1), (9, 7)]),
    st.integers(1, 2),
    st.integers(0, 99),
)
@example((1, 3, 300, 257), torch.float32, torch.int32, False, (200, 30), 2, 0)
@example((2, 3, 300, 257), torch.bfloat16, torch.int64, True, (4, 80), 2, 0)
def test_kernel_against_reference(shape, dtype, id_dtype, last, kind, threads, seed):
    torch.set_num_threads(threads)
    features = draw_features(shape, dtype, last, seed)
    ids = draw_ids(shape[0], *shape[2:], *kind, id_dtype, seed)
    expected = instance_mean_pool_ref(features.double(), ids)
    assert_pooled(op(features, ids), features, ids, expected)


@needs_kernel
def test_result_does_not_depend_on_threads():
    features, ids = draw_features((1, 3, 300, 400)), draw_ids(1, 300, 400, 30)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(op(features, ids))
    assert torch.equal(*found)


@needs_kernel
def test_two_million_pixels_keep_six_digits():
    ids = torch.zeros(1, 1, 1024, 2048, dtype=torch.int32)
    ids[..., 1024:] = 5
    features = torch.full((1, 1, 1024, 2048), 0.1)
    features[..., ::3] = 0.3
    pooled = op(features, ids)[0, 0, 0, ::1024]
    expected = torch.stack([half.double().mean() for half in features.split(1024, -1)])
    assert_close_l2(pooled, expected, 1e-6, "means")


def pool_by_cuda_code(features, ids, seed):
    n, c, h, w = features.shape
    last = features.is_contiguous(memory_format=torch.channels_last) and c > 1
    flat = features.permute(0, 2, 3, 1) if last else features
    pooled = torch.empty_like(flat.contiguous())
    memory = torch.randint(0, 255, (scratch_bytes(n, c, h * w),), dtype=torch.uint8)
    program = device_program(HERE / "instance_mean_pool.cpp")
    name = f"pool_{ids.dtype}_{features.dtype}".replace("torch.", "")
    program.run(name, ids, flat.contiguous(), Output(pooled), Output(memory, updated=True),
                n, c, h * w, last, seed=seed)  # fmt: skip
    return pooled.permute(0, 3, 1, 2) if last else pooled


TYPES = [(torch.int32, torch.float32), (torch.int64, torch.float16), (torch.int64, torch.bfloat16)]


@settings(max_examples=10)
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 9), st.integers(1, 90)),
    st.sampled_from(TYPES),
    st.booleans(),
    st.sampled_from([(1, 1), (3, 40), (60, 1), (9, 7)]),
    st.sampled_from(SEEDS),
)
@example((1, 1, 1, 1), TYPES[0], False, (1, 1), 0)
@example((1, 3, 9, 128), TYPES[0], False, (4, 60), 1)
@example((2, 3, 2, 300), TYPES[0], True, (600, 1), 2)
def test_cuda_code_against_reference(shape, types, last, kind, seed):
    id_dtype, dtype = types
    features = draw_features(shape, dtype, last, seed)
    ids = draw_ids(shape[0], *shape[2:], *kind, id_dtype, seed)
    expected = instance_mean_pool_ref(features.double(), ids)
    pooled = pool_by_cuda_code(features, ids, seed)
    assert_close_l2(pooled, expected, TOLERANCES[dtype], "pooled")


def test_cuda_code_gives_the_same_bits_in_any_order():
    """With instances a billion times smaller than others, which keep their digits."""
    features, ids = draw_features((1, 3, 8, 300)), draw_ids(1, 8, 300, 9, 3)
    features[:, :, :4] *= 1e-9
    ids[:, :, :4] += 1
    found = [pool_by_cuda_code(features, ids, seed) for seed in range(6)]
    assert all(torch.equal(found[0], other) for other in found)
    expected = by_loops(features, ids)
    for rows in (slice(0, 4), slice(4, 8)):
        assert_close_l2(found[0][:, :, rows], expected[:, :, rows], 2e-7, "pooled")


def test_cuda_code_keeps_what_is_not_finite_in_its_instance():
    ids = torch.tensor([3, 3, 4, 4, 5, 5], dtype=torch.int32).view(1, 1, 1, 6)
    features = torch.tensor([1.0, torch.nan, 1.0, 3.0, -torch.inf, 0.0]).view(1, 1, 1, 6)
    pooled = pool_by_cuda_code(features, ids, 0).flatten()
    assert pooled[2:4].tolist() == [2.0, 2.0] and pooled[[0, 1, 4, 5]].isnan().all()


def test_scratch_is_what_the_device_code_asks_for():
    library = device_program(HERE / "instance_mean_pool.cpp").library
    for sizes in ((1, 3, 2**21), (2, 5, 1000), (3, 1, 1), (1, 4, 513)):
        assert library.scratch_bytes(*sizes) == scratch_bytes(*sizes)


def test_launches():
    """Ids twice, features and pooled once, and the table."""
    features, ids = draw_features((1, 3, 8, 8)), draw_ids(1, 8, 8)
    found = launches_of(op.default, (features, ids), {}, op(features, ids))
    code = (HERE.parents[1] / "csrc/instance_mean_pool.cuh").read_text()
    assert [launch.name.partition(".")[2] for launch in found] == [
        word.partition("(")[2].partition(",")[0].partition("<")[0]
        for word in code.split("\n      ")
        if word.startswith("launch(")
    ]
    assert sum(x.read + x.written for x in found) == 2 * 256 + 2 * 768 + 4 * 84
    assert {x.scratch for x in found} == {scratch_bytes(1, 3, 64)}
    assert launches_of(op.default, (features[:0], ids[:0]), {}, features[:0]) == []


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (1, 3, 1024, 2048), (2, 3, 300, 257)], ids=str)
def test_cuda_kernel_on_a_device(shape, dtype):
    for last in (False, True):
        features, ids = draw_features(shape, dtype, last), draw_ids(shape[0], *shape[2:], 300)
        expected = instance_mean_pool_ref(features.double(), ids)
        pooled = op(features.cuda(), ids.cuda())
        assert_pooled(pooled.cpu(), features, ids, expected)
        assert torch.equal(pooled, op(features.cuda(), ids.cuda()))


@pytest.mark.parametrize(
    "view",
    [lambda x: x.transpose(2, 3), lambda x: x[..., ::2], lambda x: x[:, :, 1:, 3:]],
    ids=["transposed", "strided", "cropped"],
)
def test_any_strides(view, backend_name):
    features, ids = view(draw_features((2, 3, 9, 18))), view(draw_ids(2, 9, 18))
    assert_pooled(instance_mean_pool(features, ids), features, ids)


def test_any_integer_dtype(backend_name):
    features = draw_features((1, 2, 1, 4))
    for dtype in (torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.int64):
        top = torch.iinfo(dtype).max
        ids = torch.tensor([top, 0, top, top - 1]).to(dtype).view(1, 1, 1, 4)
        assert_pooled(instance_mean_pool(features, ids), features, ids.long())


def test_return_means(backend_name):
    ids = torch.tensor([[9, 9, 4], [4, 9, 7]]).view(2, 1, 1, 3)
    features = torch.arange(12.0).view(2, 2, 1, 3).requires_grad_()
    found = instance_mean_pool(features, ids, return_means=True)
    assert found.images.tolist() == [0, 0, 1, 1, 1]
    assert found.ids.tolist() == [4, 9, 4, 7, 9]
    assert found.areas.tolist() == [1, 2, 1, 1, 1]
    assert found.means.tolist() == [[2, 5], [0.5, 3.5], [6, 9], [8, 11], [7, 10]]
    found.means[1, 0].backward()
    assert features.grad.flatten().tolist()[:4] == [0.5, 0.5, 0, 0]
    none = instance_mean_pool(features[:0], ids[:0], return_means=True)
    assert none.means.shape == (0, 2) and none.areas.shape == (0,)


ZEROS, IDS = torch.zeros(1, 3, 4, 4), torch.zeros(1, 1, 4, 4, dtype=torch.int32)


@pytest.mark.parametrize(
    ("features", "ids", "message"),
    [
        (ZEROS[0], IDS, r"features must be floating \[N, C, H, W\], got torch.float32 \[3, 4, 4\]"),
        (ZEROS.int(), IDS, "got torch.int32"),
        (ZEROS, IDS[..., :3], r"of features \[1, 1, 4, 4\], got \[1, 1, 4, 3\]"),
        (ZEROS, IDS.float(), "ids must hold integers, got torch.float32"),
        (ZEROS, IDS - 5, r"ids must be from 0 to 2\*\*63 - 1, got -5"),
    ],
)
def test_refuses(features, ids, message, backend_name):
    with pytest.raises(InputError, match=message):
        instance_mean_pool(features, ids)


def test_gradient(backend_name):
    ids = draw_ids(2, 3, 8)
    features = draw_features((2, 2, 3, 8), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: instance_mean_pool(x, ids), features)
    assert torch.autograd.gradgradcheck(lambda x: instance_mean_pool(x, ids), features)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_gradient_of_ones_is_exactly_one(dtype, backend_name):
    features = torch.zeros(1, 1, 128, 128, dtype=dtype, requires_grad=True)
    ids = torch.zeros(1, 1, 128, 128, dtype=torch.int32)
    instance_mean_pool(features, ids).backward(torch.ones_like(features))
    assert torch.equal(features.grad, torch.ones_like(features))


def test_gradient_is_the_pooled_gradient(backend_name):
    features, ids = draw_features((2, 3, 6, 40)).requires_grad_(), draw_ids(2, 6, 40)
    dy = draw_features((2, 3, 6, 40), seed=1)
    instance_mean_pool(features, ids).backward(dy)
    assert_close_l2(features.grad, by_loops(dy, ids), 1e-6, "gradient")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (0, 3, 4, 4)])
def test_opcheck(shape, last):
    features = draw_features(shape, last=last).requires_grad_()
    torch.library.opcheck(op, (features, draw_ids(shape[0], *shape[2:])))


def test_compiles_in_one_graph():
    compiled = torch.compile(instance_mean_pool, fullgraph=True, backend="aot_eager")
    features, ids = draw_features((1, 3, 6, 8)), draw_ids(1, 6, 8)
    assert_pooled(compiled(features, ids), features, ids)


def test_real_maps(cityscapes):
    """Every instance of a street scene, as the float64 loop has it."""
    path = sorted((cityscapes / "train_inst").iterdir())[0]
    ids = torch.from_numpy(np.array(Image.open(path)).astype(np.int32))[None, None, ::2, ::2]
    features = draw_features((1, 3, *ids.shape[2:]))
    assert_pooled(instance_mean_pool(features, ids), features, ids)
