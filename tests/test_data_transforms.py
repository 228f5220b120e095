"""Scaling, cropping and mirroring, alike for everything in a sample."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pix2pixhd_fast.data.transforms import (
    View,
    draw_view,
    normalised,
    scaled_size,
    view_map,
    view_picture,
)
from pix2pixhd_fast.options import RESIZE_OR_CROP, Options

sides = st.integers(1, 120)
words = st.tuples(*[st.integers(0, 2**64 - 1)] * 3)


def whole(height, width, mirrored=False):
    return View(height, width, 0, 0, height, width, mirrored)


@pytest.mark.parametrize(
    ("mode", "flags", "size"),
    [
        ("resize_and_crop", {}, (192, 192)),
        ("crop", {}, (230, 410)),
        ("scale_width", {}, (107, 192)),
        ("scale_width_and_crop", {}, (107, 192)),
        ("none", {}, (224, 416)),
        ("none", {"netG": "local"}, (224, 416)),
        ("none", {"netG": "local", "n_local_enhancers": 3}, (256, 384)),
        ("none", {"n_local_enhancers": 3}, (224, 416)),
        ("none", {"n_downsample_global": 10}, (1024, 1024)),
    ],
)
def test_scaled_sizes(mode, flags, size):
    assert scaled_size(230, 410, Options(resize_or_crop=mode, loadSize=192, **flags)) == size


def test_a_very_wide_picture_keeps_a_row():
    assert scaled_size(1, 5000, Options(loadSize=100)) == (1, 100)


@given(sides, sides, st.sampled_from(RESIZE_OR_CROP), words, st.booleans(), st.booleans())
def test_a_view_stays_inside_the_picture(height, width, mode, drawn, training, no_flip):
    options = Options(
        resize_or_crop=mode, loadSize=50, fineSize=40, isTrain=training, no_flip=no_flip
    )
    view = draw_view(options, height, width, drawn)
    assert (view.height, view.width) == scaled_size(height, width, options)
    assert 0 <= view.top <= view.top + view.rows <= view.height
    assert 0 <= view.left <= view.left + view.columns <= view.width
    cropped = mode.endswith("crop")
    assert view.rows == (min(40, view.height) if cropped else view.height)
    assert view.columns == (min(40, view.width) if cropped else view.width)
    if no_flip or not training:
        assert not view.mirrored


def test_crops_reach_every_place_equally_and_half_are_mirrored():
    options = Options(resize_or_crop="crop", fineSize=3)
    random = np.random.default_rng(0)
    draws = random.integers(0, 2**64, (4000, 3), np.uint64).tolist()
    views = [draw_view(options, 6, 5, tuple(drawn)) for drawn in draws]
    places = np.zeros((4, 3), int)
    for view in views:
        places[view.top, view.left] += 1
    assert abs(places - 4000 / 12).max() < 100
    assert 1850 < sum(view.mirrored for view in views) < 2150


@settings(max_examples=300)
@given(sides, sides, sides, sides, st.sampled_from([np.uint8, np.uint16, np.int32]))
def test_nearest_is_that_of_pillow_for_every_depth(height, width, rows, columns, depth):
    ids = np.arange(height * width).reshape(height, width).astype(depth)
    pillow = np.asarray(Image.fromarray(ids).resize((columns, rows), Image.Resampling.NEAREST))
    assert np.array_equal(view_map(ids, whole(rows, columns)), pillow)


@settings(max_examples=200)
@given(sides, sides, st.sampled_from(RESIZE_OR_CROP), words)
def test_maps_of_any_type_show_the_same_pixels(height, width, mode, drawn):
    options = Options(resize_or_crop=mode, loadSize=50, fineSize=40, n_downsample_global=2)
    view = draw_view(options, height, width, drawn)
    ids = np.arange(height * width).reshape(height, width)
    seen = view_map(ids, view)
    assert seen.shape == (view.rows, view.columns)
    assert np.array_equal(view_map(ids.astype(np.int32), view), seen)
    assert np.array_equal(view_map(ids + 2**40, view), seen + 2**40)
    assert np.array_equal(view_map(np.stack([ids, -ids], 2), view)[:, :, 1], -seen)
    unmirrored = View(*[*vars(view).values()][:-1], False)
    expected = view_map(ids, unmirrored)
    assert np.array_equal(seen, expected[:, ::-1] if view.mirrored else expected)
    if (view.height, view.width) == (height, width):
        picture = (ids % 256).astype(np.uint8)[:, :, None]
        assert np.array_equal(view_picture(picture, view)[:, :, 0], seen % 256)


@pytest.mark.parametrize("channels", [1, 3, 4, 7])
def test_bicubic_scaling_of_every_type_agrees(channels):
    random = np.random.default_rng(2)
    fine = random.choice(np.array([0, 30, 255], np.uint8), (9, 11, channels))
    view = View(7, 20, 1, 3, 5, 12, True)
    eight = view_picture(fine, view)
    sixteen = view_picture(fine.astype(np.uint16) * 257, view)
    real = view_picture(fine.astype(np.float32), view)
    assert (eight.dtype, sixteen.dtype, real.dtype) == (np.uint8, np.uint16, np.float32)
    assert eight.shape == sixteen.shape == real.shape == (5, 12, channels)
    # Pillow rounds and clips 8-bit pictures after each of its two passes.
    assert np.median(abs(real.clip(0, 255) - eight)) <= 0.5
    assert abs(sixteen / 257 - real.clip(0, 255)).max() < 0.01
    assert real.min() < 0 or real.max() > 255
    alone = [view_picture(np.ascontiguousarray(fine[:, :, [c]]), view) for c in range(channels)]
    assert np.array_equal(np.concatenate(alone, 2), eight)


def test_normalised_values():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)
    expected = (levels[:, :, 0].astype(np.float32) / np.float32(255) - np.float32(0.5)) * 2
    assert np.array_equal(normalised(levels), expected[None])
    assert normalised(np.array([[[0, 65535]]], np.uint16)).ravel().tolist() == [-1, 1]
    deep = normalised(np.full((1, 1, 1), 30000, np.uint16))
    assert deep == pytest.approx(30000 / 65535 * 2 - 1, abs=1e-6)
    as_it_is = np.array([[[3.5, -2.0]]], np.float32)
    assert normalised(as_it_is).tolist() == [[[3.5]], [[-2.0]]]
    assert normalised(levels[:, ::-1]).flags.c_contiguous
