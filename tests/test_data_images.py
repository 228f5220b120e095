"""Decoding of maps and pictures: exact values, or a sentence that names the file."""

import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pix2pixhd_fast.data.images import (
    instance_type,
    label_type,
    read_instances,
    read_labels,
    read_picture,
)
from pix2pixhd_fast.errors import InputError
from pix2pixhd_fast.options import Options


def stored(tmp_path, array, name="map.png", mode=None):
    path = tmp_path / name
    if name.endswith(".npy"):
        np.save(path, array)
    else:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(path)
    return str(path)


def unsigned_tiff(values):
    """A little-endian, uncompressed TIFF of unsigned 32-bit values."""
    data = values.astype("<u4").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 32, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data)) + data
    return head + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("name", ["i.png", "i.tif", "i.npy"])
def test_sixteen_bit_instances_do_not_overflow(tmp_path, name):
    ids = np.array([[0, 33000], [65535, 26001]], np.uint16)
    found = read_instances(stored(tmp_path, ids, name))
    assert instance_type(found) == np.int32
    assert np.array_equal(found, ids)


def test_big_endian_sixteen_bit_tiff(tmp_path):
    ids = np.array([[0, 33000], [65535, 26001]], np.uint16)
    image = Image.frombytes("I;16B", (2, 2), ids.astype(">u2").tobytes())
    image.save(tmp_path / "i.tif")
    assert Image.open(tmp_path / "i.tif").mode == "I;16B"
    assert np.array_equal(read_instances(str(tmp_path / "i.tif")), ids)


def test_thirty_two_bit_tiffs_signed_and_unsigned(tmp_path):
    signed = np.array([[0, 2**31 - 1, -7]], np.int32)
    found = read_instances(stored(tmp_path, signed, "signed.tif"))
    assert instance_type(found) == np.int32
    assert np.array_equal(found, signed)
    unsigned = np.array([[0, 2**31, 2**32 - 1]], np.uint32)
    (tmp_path / "unsigned.tif").write_bytes(unsigned_tiff(unsigned))
    found = read_instances(str(tmp_path / "unsigned.tif"))
    assert instance_type(found) == np.int64
    assert np.array_equal(found, unsigned)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([f"{order}{kind}" for order in "<>" for kind in ("i2", "u4", "i8", "u8")]),
    st.lists(st.integers(0, 2**31), min_size=1, max_size=6),
)
def test_arrays_of_any_integer_type_keep_their_ids(tmp_path_factory, kind, values):
    values = [min(value, np.iinfo(kind).max) for value in values]
    path = stored(tmp_path_factory.mktemp("ids"), np.array([values], kind), "i.npy")
    found = read_instances(path)
    assert found.tolist() == [values]
    assert instance_type(found) == (np.int32 if max(values) < 2**31 else np.int64)
    assert found.dtype.isnative


def test_ids_above_int64_are_refused(tmp_path):
    path = stored(tmp_path, np.array([[2**63]], np.uint64), "i.npy")
    with pytest.raises(InputError, match=r"i\.npy holds the id 9223372036854775808"):
        read_instances(path)


def test_palette_files_give_indices_and_one_bit_files_zero_and_one(tmp_path):
    ids = np.array([[0, 7], [33, 2]], np.uint8)
    image = Image.frombytes("P", (2, 2), ids.tobytes())
    image.putpalette([(i * 37) % 256 for i in range(768)])
    image.save(tmp_path / "p.png")
    assert np.array_equal(read_labels(str(tmp_path / "p.png"), Options()), ids)
    path = stored(tmp_path, np.array([[0, 255], [255, 0]], np.uint8), "b.png", "1")
    found = read_labels(path, Options(label_nc=2))
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("name", ["rgb.png", "rgba.png", "la.png", "three.npy"])
def test_maps_of_several_channels_are_refused(tmp_path, name):
    channels = {"rgb.png": 3, "rgba.png": 4, "la.png": 2, "three.npy": 3}[name]
    path = stored(tmp_path, np.zeros((4, 5, channels), np.uint8), name)
    for read in (read_instances, lambda path: read_labels(path, Options())):
        with pytest.raises(InputError, match=f"{name} is .* must have one channel of ids"):
            read(path)


def test_one_channel_arrays_are_maps_and_fractions_are_not(tmp_path):
    path = stored(tmp_path, np.full((2, 3, 1), 5), "i.npy")
    assert read_labels(path, Options()).shape == (2, 3)
    for name in ("f.npy", "f.tif"):
        path = stored(tmp_path, np.zeros((2, 3), np.float32), name)
        with pytest.raises(InputError, match="float32: label maps must hold whole numbers"):
            read_labels(path, Options())


@pytest.mark.parametrize(
    ("label_nc", "ignore_label", "dtype"),
    [
        (35, 255, np.uint8),
        (256, -1, np.uint8),
        (257, 255, np.int32),
        (35, 256, np.int32),
        (35, 60000, np.int32),
    ],
)
def test_label_type_follows_from_the_options_alone(tmp_path, label_nc, ignore_label, dtype):
    ids = [[0, label_nc - 1, max(ignore_label, 0)]]
    path = stored(tmp_path, np.array(ids, np.uint16))
    options = Options(label_nc=label_nc, ignore_label=ignore_label)
    assert label_type(options) == dtype
    assert read_labels(path, options).astype(dtype).tolist() == ids


def test_foreign_labels_are_counted_and_the_remedy_named(tmp_path):
    ids = np.zeros((4, 6), np.uint8)
    ids[0], ids[1, :2], ids[2] = 40, 41, 255
    with pytest.raises(InputError) as caught:
        read_labels(stored(tmp_path, ids), Options())
    text = str(caught.value)
    assert "map.png holds label 40 (6 pixels) and 1 more such ids" in text
    assert "label_nc 35" in text
    assert "--ignore_label 40" in text
    with pytest.raises(InputError, match=r"label 255 \(6 pixels\)"):
        read_labels(stored(tmp_path, ids.clip(34)), Options(label_nc=42, ignore_label=-1))
    path = stored(tmp_path, np.array([[0, -1, 300]]), "n.npy")
    with pytest.raises(InputError, match=r"label -1 \(1 pixels\)"):
        read_labels(path, Options(label_nc=301))


def test_pictures_are_converted_to_the_channels_asked_for(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    path = stored(tmp_path, rgba)
    assert np.array_equal(read_picture(path, 4, "input_nc"), rgba)
    assert np.array_equal(read_picture(path, 3, "input_nc"), rgba[:, :, :3])
    assert read_picture(path, 1, "input_nc").shape == (5, 7, 1)
    grey = stored(tmp_path, rgba[:, :, 0], "grey.png")
    assert np.array_equal(read_picture(grey, 3, "input_nc"), rgba[:, :, [0, 0, 0]])
    with pytest.raises(InputError, match=r"cannot give 6 channels: input_nc is 6.*\[H, W, 6\]"):
        read_picture(path, 6, "input_nc")


@pytest.mark.parametrize("name", ["d.png", "d.tif"])
def test_deep_grey_pictures_keep_sixteen_bits(tmp_path, name):
    depth = np.array([[0, 300, 65535]], np.uint16)
    found = read_picture(stored(tmp_path, depth, name), 1, "input_nc")
    assert found.dtype == np.uint16
    assert np.array_equal(found[:, :, 0], depth)
    assert np.array_equal(read_picture(str(tmp_path / name), 3, "input_nc")[:, :, 2], depth)


def test_deeper_grey_pictures_are_refused(tmp_path):
    path = stored(tmp_path, np.array([[0, 65536]], np.int32), "d.tif")
    with pytest.raises(InputError, match=r"d\.tif holds values 0 to 65536.*8 or 16 bits"):
        read_picture(path, 1, "input_nc")


@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "u1", ">u2"])
def test_array_pictures_of_any_number_of_channels(tmp_path, kind):
    array = np.arange(4 * 5 * 6).reshape(4, 5, 6).astype(kind)
    found = read_picture(stored(tmp_path, array, "p.npy"), 6, "feat_num")
    assert found.dtype == (np.float32 if "f" in kind else np.dtype(kind).newbyteorder("="))
    assert np.array_equal(found, array)
    with pytest.raises(InputError, match=r"p\.npy has 6 channels.*feat_num is 3"):
        read_picture(str(tmp_path / "p.npy"), 3, "feat_num")


def test_array_pictures_of_one_channel_need_no_third_dimension(tmp_path):
    path = stored(tmp_path, np.zeros((4, 5), np.float32), "p.npy")
    assert read_picture(path, 1, "input_nc").shape == (4, 5, 1)
    with pytest.raises(InputError, match="input_nc is 3"):
        read_picture(path, 3, "input_nc")


def test_array_pictures_of_other_types_and_values_are_refused(tmp_path):
    with pytest.raises(InputError, match="int64: a picture must be uint8, uint16 or floating"):
        read_picture(stored(tmp_path, np.zeros((4, 5), int), "p.npy"), 1, "input_nc")
    with pytest.raises(InputError, match="not finite"):
        read_picture(stored(tmp_path, np.full((4, 5), np.nan), "p.npy"), 1, "input_nc")


def test_a_full_picture_survives_and_every_cut_of_its_file_names_it(tmp_path):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "png")
    whole = buffer.getvalue()
    path = tmp_path / "cut.png"
    path.write_bytes(whole)
    assert np.array_equal(read_picture(str(path), 3, "output_nc"), noise)
    for length in (0, 1, 7, 8, 20, 40, 100, len(whole) // 2, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.png cannot be read"):
            read_picture(str(path), 3, "output_nc")


@pytest.mark.parametrize("kind", ["jpeg", "tiff", "bmp", "webp", "ppm"])
def test_other_kinds_of_files_cut_in_half_are_named(tmp_path, kind):
    buffer = io.BytesIO()
    noise = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(buffer, kind)
    path = tmp_path / f"cut.{kind}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(InputError, match=f"cut.{kind} cannot be read"):
        read_picture(str(path), 3, "output_nc")


def test_files_that_are_no_pictures_or_arrays_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "object.npy", np.array([[{}]]), allow_pickle=True)
    for name in ("text.png", "empty.npy", "text.npy", "object.npy", "gone.png"):
        with pytest.raises(InputError, match=f"{name} cannot be read"):
            read_instances(str(tmp_path / name))
    with pytest.raises(InputError, match="the file is empty"):
        read_instances(str(tmp_path / "empty.npy"))
    with zipfile.ZipFile(tmp_path / "archive.npy", "w") as archive:
        archive.writestr("x.npy", b"")
    with pytest.raises(InputError, match=r"archive\.npy is an archive"):
        read_instances(str(tmp_path / "archive.npy"))
    with pytest.raises(InputError, match=r"four\.npy is of shape \(1, 1, 1, 1\)"):
        read_instances(stored(tmp_path, np.zeros((1, 1, 1, 1), int), "four.npy"))
    with pytest.raises(InputError, match=r"none\.npy is of shape \(0, 4\)"):
        read_instances(stored(tmp_path, np.zeros((0, 4), int), "none.npy"))


def test_pillows_limit_of_pixels_does_not_apply_and_is_left_as_it_was(tmp_path, monkeypatch):
    names = ["map.png", "map.tif", "map.bmp"]
    paths = [stored(tmp_path, np.zeros((30, 40), np.uint8), name) for name in names]
    Image.new("L", (40, 30)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    paths.append(str(tmp_path / "lzw.tif"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    for path in paths:
        with pytest.raises(Image.DecompressionBombError):
            Image.open(path)
        assert read_instances(path).shape == (30, 40)
    assert Image.MAX_IMAGE_PIXELS == 100
    (tmp_path / "huge.ppm").write_bytes(b"P5 40000 40000 255 ")
    with pytest.raises(InputError, match=r"huge\.ppm cannot be read \(Image size \(1600000000 pix"):
        read_instances(str(tmp_path / "huge.ppm"))
    assert Image.MAX_IMAGE_PIXELS == 100
