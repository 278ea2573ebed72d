import hashlib
import re
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile

from extractors import images
from extractors.images import digest, read_field
from warehouse.errors import ImageError

RNG = np.random.default_rng(0)
GREY8 = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
GREY16 = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
STACK = RNG.integers(0, 65536, (3, 5, 7), dtype=np.uint16)
FLOAT = RNG.random((5, 7), dtype=np.float32)


def one(path: Path, plane: int | None = None) -> np.ndarray:
    return read_field({"DNA": (path, plane)}, ["DNA"])


def fails(path: Path, text: str, plane: int | None = None) -> None:
    with pytest.raises(ImageError, match=re.escape(text)) as caught:
        one(path, plane)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", [GREY8, GREY16, FLOAT], ids=["uint8", "uint16", "float32"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_tiff_comes_back_as_it_was_written(tmp_path, image, compression):
    tifffile.imwrite(tmp_path / "a.TIF", image, compression=compression)
    read = one(tmp_path / "a.TIF")
    assert read.shape == (1, 5, 7)
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read[0], image)


@pytest.mark.parametrize("image", [GREY8, GREY16], ids=["uint8", "uint16"])
def test_png_comes_back_as_it_was_written(tmp_path, image):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(image))
    read = one(tmp_path / "a.png")
    assert read.dtype == image.dtype
    np.testing.assert_array_equal(read[0], image)


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_and_little_endian_agree(tmp_path, order):
    np.save(tmp_path / "a.npy", GREY16.astype(f"{order}u2"))
    tifffile.imwrite(tmp_path / "a.tif", GREY16, byteorder=order)
    for name in ("a.npy", "a.tif"):
        read = one(tmp_path / name)
        np.testing.assert_array_equal(read[0], GREY16)
        assert read.dtype == np.dtype("uint16")


@pytest.mark.parametrize(
    ("shape", "axes"), [((3, 5, 7), "CYX"), ((1, 3, 1, 5, 7), "TCZYX"), ((1, 3, 5, 7), "ZCYX")]
)
def test_ome_tiff_planes_are_its_channels(tmp_path, shape, axes):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK.reshape(shape), metadata={"axes": axes}, ome=True)
    for plane in range(3):
        np.testing.assert_array_equal(one(tmp_path / "a.ome.tif", plane)[0], STACK[plane])
    fails(tmp_path / "a.ome.tif", "holds 3 planes")


def test_plain_multi_page_tiff_and_rgb_tiff(tmp_path):
    tifffile.imwrite(tmp_path / "pages.tif", STACK, photometric="minisblack")
    tifffile.imwrite(tmp_path / "rgb.tif", np.moveaxis(STACK, 0, 2), photometric="rgb")
    for name in ("pages.tif", "rgb.tif"):
        np.testing.assert_array_equal(one(tmp_path / name, 2)[0], STACK[2])
        fails(tmp_path / name, "holds 3 planes")


@pytest.mark.parametrize("axes", ["ZYX", "TYX"])
def test_stacks_in_depth_or_time_are_refused(tmp_path, axes):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": axes}, ome=True)
    fails(tmp_path / "a.ome.tif", f"has axes {axes[0]} 3, Y 5, X 7", 0)


def test_series_of_different_shapes_are_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(GREY16)
        writer.write(GREY16[:3])
    fails(tmp_path / "a.tif", "holds 2 image series")


def test_an_ome_plane_in_a_missing_file_is_not_read_as_zeros(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK, metadata={"axes": "CYX"}, ome=True)
    raw = (tmp_path / "a.ome.tif").read_bytes()
    # The same file, its description pointing the second and third plane to a file that is not there.
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as tiff:
        xml = tiff.pages[0].tags["ImageDescription"].value
    data = '<TiffData IFD="0" PlaneCount="3"/>'
    assert data in xml
    uuid = "urn:uuid:00000000-0000-0000-0000-00000000000{}"
    planes = "".join(
        f'<TiffData FirstC="{c}" IFD="0"><UUID FileName="{n}">{uuid.format(c)}</UUID></TiffData>'
        for c, n in enumerate(["a.ome.tif", "gone.ome.tif", "gone.ome.tif"])
    )
    own = re.search(r'UUID="(urn:uuid:[^"]+)"', xml)
    assert own
    edited = xml.replace(data, planes).replace(uuid.format(0), own.group(1))
    tifffile.imwrite(tmp_path / "a.ome.tif", GREY16, description=edited.encode(), metadata=None)
    assert raw != (tmp_path / "a.ome.tif").read_bytes()
    fails(tmp_path / "a.ome.tif", "plane 1 lies in a missing file", 0)


def test_npy_planes(tmp_path):
    np.save(tmp_path / "hw.npy", GREY8)
    np.save(tmp_path / "first.npy", STACK)
    np.save(tmp_path / "last.npy", np.moveaxis(STACK, 0, 2))
    np.save(tmp_path / "one.npy", FLOAT[:, :, None])
    np.testing.assert_array_equal(one(tmp_path / "hw.npy")[0], GREY8)
    np.testing.assert_array_equal(one(tmp_path / "hw.npy", 0)[0], GREY8)
    np.testing.assert_array_equal(one(tmp_path / "one.npy")[0], FLOAT)
    for plane in range(3):
        np.testing.assert_array_equal(one(tmp_path / "first.npy", plane)[0], STACK[plane])
        np.testing.assert_array_equal(one(tmp_path / "last.npy", plane)[0], STACK[plane])


@pytest.mark.parametrize("shape", [(5, 3, 7), (3, 3, 7), (3, 7, 3), (4, 4, 4)])
def test_npy_of_an_ambiguous_shape_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    fails(tmp_path / "a.npy", f"has shape {shape}: expected channels first or last", 0)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5, 7)])
def test_npy_of_a_wrong_rank_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    fails(tmp_path / "a.npy", f"has shape {shape}: expected (H, W)", 0)


def test_npy_with_objects_is_never_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{"a": 1}]], dtype=object), allow_pickle=True)
    fails(tmp_path / "a.npy", "pixels are object: expected uint8, uint16, float32")


@pytest.mark.parametrize("dtype", ["float64", "int32", "bool", "complex64"])
def test_other_dtypes_are_refused(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((5, 7), dtype))
    fails(tmp_path / "a.npy", f"pixels are {dtype}: expected uint8, uint16, float32")


@pytest.mark.parametrize("plane", [-1, 3])
def test_plane_out_of_range(tmp_path, plane):
    np.save(tmp_path / "a.npy", STACK)
    fails(tmp_path / "a.npy", f"plane {plane} is out of range: expected 0 to 2", plane)


def test_order_of_channels_is_the_one_asked_for_and_each_file_is_read_once(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", STACK)
    np.save(tmp_path / "b.npy", GREY16)
    opened = []
    original = images._read_npy
    monkeypatch.setattr(images, "_read_npy", lambda path: (opened.append(path), original(path))[1])
    where = {
        "DNA": (tmp_path / "a.npy", 0),
        "ER": (tmp_path / "a.npy", 2),
        "Mito": (tmp_path / "b.npy", None),
    }
    read = read_field(where, ["Mito", "ER", "DNA"])
    np.testing.assert_array_equal(read, [GREY16, STACK[2], STACK[0]])
    assert sorted(opened) == [tmp_path / "a.npy", tmp_path / "b.npy"]


def test_a_channel_that_is_missing_is_named(tmp_path):
    np.save(tmp_path / "a.npy", GREY8)
    with pytest.raises(ImageError, match=r"channel 'Actin' is missing: the field has DNA$"):
        read_field({"DNA": (tmp_path / "a.npy", None)}, ["DNA", "Actin"])
    with pytest.raises(ImageError, match="no channel asked for"):
        read_field({}, [])


@pytest.mark.parametrize("other", [GREY16[:4], GREY8], ids=["shape", "dtype"])
def test_channels_that_disagree_are_refused(tmp_path, other):
    np.save(tmp_path / "a.npy", GREY16)
    np.save(tmp_path / "b.npy", other)
    other_is = f"{other.shape[0]} × 7 {other.dtype}"
    text = f"b.npy: channel 'ER' is {other_is}, channel 'DNA' of the same field is 5 × 7 uint16"
    with pytest.raises(ImageError, match=text):
        read_field({"DNA": (tmp_path / "a.npy", None), "ER": (tmp_path / "b.npy", None)}, ["DNA", "ER"])


def test_missing_file_and_unknown_extension(tmp_path):
    fails(tmp_path / "a.tif", "no such file")
    (tmp_path / "folder.tif").mkdir()
    fails(tmp_path / "folder.tif", "no such file")
    fails(tmp_path / "a.jpg", "unknown image type '.jpg': expected one of .tif, .tiff, .png, .npy")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_pixels_are_refused(tmp_path, value):
    image = FLOAT.copy()
    image[2, 3] = value
    tifffile.imwrite(tmp_path / "a.tif", image)
    fails(tmp_path / "a.tif", f"1 pixels are not finite, the first {value} at row 2, column 3")


@pytest.mark.parametrize("suffix", [".tif", ".png", ".npy"])
@pytest.mark.parametrize(
    "content", [b"", b"not an image", b"II*\0", b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\x01\x00"]
)
def test_rubbish_is_refused(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    fails(tmp_path / f"a{suffix}", "expected")


@pytest.mark.parametrize("kind", ["tif", "lzw", "zlib", "png", "npy"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.99])
def test_a_truncated_file_is_refused_never_filled_with_zeros(tmp_path, kind, share):
    image = np.random.default_rng(1).integers(1, 65536, (64, 64), dtype=np.uint16)
    path = tmp_path / ("a.tif" if kind in ("lzw", "zlib") else f"a.{kind}")
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(image))
    elif kind == "npy":
        np.save(path, image)
    else:
        tifffile.imwrite(path, image, compression=None if kind == "tif" else kind, rowsperstrip=8)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    fails(path, ": ")


@pytest.mark.parametrize("kind", ["zlib", "png"])
def test_damaged_bytes_are_refused(tmp_path, kind):
    image = np.random.default_rng(2).integers(1, 65536, (64, 64), dtype=np.uint16)
    path = tmp_path / ("a.png" if kind == "png" else "a.tif")
    if kind == "png":
        path.write_bytes(imagecodecs.png_encode(image))
    else:
        tifffile.imwrite(path, image, compression=kind, rowsperstrip=64)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 64] = bytes(64)
    path.write_bytes(bytes(data))
    fails(path, "cannot be decoded")


@pytest.mark.parametrize("kind", ["lzw", "zlib"])
def test_a_strip_that_decodes_to_too_few_pixels_is_not_filled_up(tmp_path, kind):
    # LZW carries no checksum, so this is what damage inside a strip looks like.
    image = np.random.default_rng(2).integers(1, 65536, (64, 64), dtype=np.uint16)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, image, compression=kind, rowsperstrip=64)
    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    half = getattr(imagecodecs, f"{kind}_encode")(image[:32].tobytes())
    data = bytearray(path.read_bytes())
    data[offset : offset + len(half)] = half
    path.write_bytes(bytes(data))
    fails(path, "cannot be decoded (TiffFileError: corrupted strip")


def test_a_bomb_is_refused_from_its_header(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 34)
    np.save(tmp_path / "a.npy", GREY16)
    tifffile.imwrite(tmp_path / "a.tif", GREY16)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(GREY16))
    for name in ("a.npy", "a.tif", "a.png"):
        fails(tmp_path / name, "announces 35 pixels")


def test_a_png_that_claims_a_terapixel_is_not_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 2**20, 2**20, 16, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(data)
    fails(tmp_path / "a.png", f"announces {2**40} pixels")


@pytest.mark.parametrize("shape", [(0, 7), (3, 0, 7)])
def test_an_empty_image_is_refused(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, np.uint8))
    fails(tmp_path / "a.npy", f"is empty, shape {shape}", 0)


def test_colour_png(tmp_path):
    rgb = np.ascontiguousarray(np.moveaxis(STACK, 0, 2))
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(rgb))
    fails(tmp_path / "rgb.png", "holds 3 planes (RGB or several channels): expected one, or a plane to take")
    np.testing.assert_array_equal(one(tmp_path / "rgb.png", 1)[0], STACK[1])
    rgba = np.dstack([rgb, rgb[..., :1]])
    (tmp_path / "rgba.png").write_bytes(imagecodecs.png_encode(rgba))
    fails(tmp_path / "rgba.png", "colour type 6 and 16 bits", 0)


def test_digest_is_that_of_the_bytes(tmp_path):
    data = np.random.default_rng(3).bytes(3_000_001)
    (tmp_path / "a.tif").write_bytes(data)
    assert digest(tmp_path / "a.tif") == hashlib.blake2b(data, digest_size=16).hexdigest()
    with pytest.raises(ImageError, match=r"gone\.tif: cannot be read \(No such file"):
        digest(tmp_path / "gone.tif")


def test_a_cell_painting_site_and_a_bbbc021_crop(data_dir):
    folder = data_dir / "cell_painting_site" / "BR00116991" / "A01-1"
    site = read_field(
        {name: (folder / f"r01c01f01p01-ch{k}sk1fk1fl1.tiff", None) for name, k in (("DNA", 5), ("RNA", 3))},
        ["DNA", "RNA"],
    )
    assert site.shape == (2, 1080, 1080)
    assert site.dtype == np.uint16
    # Extremes as in the file, read once by tifffile.
    assert (site[0].min(), site[0].max(), site[1].max()) == (213, 40676, 44646)
    crop = sorted((data_dir / "bbbc021" / "crops").glob("*.npy"))[0]
    read = read_field({"DNA": (crop, 0), "Actin": (crop, 2)}, ["Actin", "DNA"])
    expected = np.load(crop)
    assert read.shape == (2, 68, 68)
    np.testing.assert_array_equal(read, [expected[..., 2], expected[..., 0]])
