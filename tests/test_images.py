"""The images of the autoencoder: curves against the exact parabola and a supersampled pen, files against what was written."""

import gzip
import re
import struct

import numpy as np
import pytest
from pydantic import ValidationError

import unrollax as ux
from unrollax.recipes import _digits, _idx, _images
from unrollax.recipes._options import Autoencoder

CENTRES = np.arange(28) + 0.5


def parabola(points, steps=20_000):
    """The stroke of three points at many times, float64 `[steps + 1, 2]`."""
    t = np.linspace(0, 1, steps + 1)[:, None]
    bend = 2 * (points[0] - 2 * points[1] + points[2])
    return points[0] + (points[2] - points[0] - bend) * t + bend * t**2


def distance(points, grid):
    """From each place of a grid `[..., 2]` the distance to the stroke, by trying all of its points."""
    return np.array([np.sqrt(((parabola(points) - place) ** 2).sum(1).min()) for place in grid.reshape(-1, 2)])


# Curves


def test_a_pixel_holds_the_ink_that_its_distance_from_the_parabola_tells():
    points, images = _images.three_points(3, seed=3), _images.curves(3, seed=3)
    grid = np.stack(np.meshgrid(CENTRES, CENTRES), -1)  # x from the left, y from the top
    for one, image in zip(points, images, strict=True):
        expected = np.clip(1.5 - distance(one, grid), 0, 1).reshape(28, 28)
        np.testing.assert_allclose(image, expected, atol=0.03)
        assert np.abs(image - expected).mean() < 3e-4


def test_soft_edges_are_the_share_of_a_pixel_that_a_hard_pen_covers():
    points, images = _images.three_points(2, seed=4), _images.curves(2, seed=4)
    for one, image in zip(points, images, strict=True):
        rows, columns = np.nonzero((image > 0) & (image < 1))
        fine = (np.arange(8) + 0.5) / 8
        seen = []
        for row, column in zip(rows, columns, strict=True):
            inside = np.stack(np.meshgrid(column + fine, row + fine), -1).reshape(-1, 1, 2)
            nearby = parabola(one, 1000)
            seen.append((((inside - nearby) ** 2).sum(2).min(1) < 1).mean())
        off = image[rows, columns] - seen
        assert np.abs(off).max() < 0.15
        assert np.abs(off.mean()) < 0.03


def test_the_pen_stands_on_all_three_points_and_all_its_ink_is_inside():
    points, images = _images.three_points(500, seed=5), _images.curves(500, seed=5)
    for place in points.swapaxes(0, 1):  # the pixel under a point of the stroke is at most 0.71 from it
        ink = images[np.arange(500), place[:, 1].astype(int), place[:, 0].astype(int)]
        assert ink.min() >= 1.5 - np.sqrt(0.5) - 1e-3
    assert np.abs(points - 14).max() <= 10
    strays = max(np.abs(parabola(one, 400) - 14).max() for one in points)
    assert 12 < strays <= 12.5
    bent = np.array([[[4, 4], [24, 24], [24, 4]], [[4, 24], [24, 4], [24, 24]]], np.float32)  # strays most
    images = np.concatenate([images, _images._ink(bent)])
    rim = max(images[:, 0].max(), images[:, :, 0].max(), images[:, -1].max(), images[:, :, -1].max())
    assert 0.4 < rim <= 0.5  # the next pixel's centre is a pixel further away, and would have none


def test_the_ink_is_the_length_times_the_width_of_the_pen():
    points, images = _images.three_points(200, seed=6), _images.curves(200, seed=6)
    lengths = np.array([np.sqrt((np.diff(parabola(one, 400), axis=0) ** 2).sum(1)).sum() for one in points])
    # two half discs at the ends; sharp bends cover themselves, so the median
    assert np.median(images.sum((1, 2)) / (2 * lengths + np.pi)) == pytest.approx(1, abs=0.03)
    assert images.mean() == pytest.approx(0.057, abs=0.004)
    assert images.min() == 0
    assert images.max() == 1
    assert ((images > 0) & (images < 1)).mean() == pytest.approx(0.059, abs=0.004)


def test_an_image_depends_on_its_number_and_the_seed_alone():
    many = _images.curves(70, seed=7)  # more than two chunks
    assert many.dtype == np.float32
    np.testing.assert_array_equal(_images.curves(33, seed=7), many[:33])
    assert not np.array_equal(_images.curves(1, seed=8), many[:1])
    assert len({image.tobytes() for image in many}) == 70


def test_curves_are_the_same_on_every_platform():
    points = _images.three_points(2, seed=0)
    np.testing.assert_allclose(points[0, 0], [4 + 20 * 0.6369616873214543, 4 + 20 * 0.2697867137638703], rtol=1e-14)
    image = _images.curves(1, seed=0)[0]
    np.testing.assert_array_equal(np.round(255 * image[4:8, 6:15]), GOLDEN)


def test_three_equal_points_leave_a_dot():
    image = _images._ink(np.full((1, 3, 2), 14, np.float32))[0]
    expected = np.clip(1.5 - np.hypot(*np.meshgrid(CENTRES - 14, CENTRES - 14)), 0, 1)
    np.testing.assert_allclose(image, expected, atol=1e-6)


@pytest.mark.parametrize("count", [0, 1.5, True])
def test_curves_ask_for_a_count(count):
    with pytest.raises(ux.InvalidArgument, match="curves: count must be a positive whole number"):
        _images.curves(count, seed=0)


# Digits


def test_digits_are_those_of_the_other_recipe_with_the_same_test():
    images = _images.load("digits")
    for ours, (theirs, _) in zip(images, _digits.load(True), strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


# Files

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 4, 3), np.uint8)


def idx(pixels, magic=2051, sizes=None):
    sizes = pixels.shape if sizes is None else sizes
    return struct.pack(f">{1 + len(sizes)}I", magic, *sizes) + pixels.tobytes()


def folder(path, *, train=None, test=None, end="-idx3-ubyte"):
    (path / f"train-images{end}").write_bytes(idx(PIXELS) if train is None else train)
    (path / f"t10k-images{end}").write_bytes(idx(PIXELS[:2]) if test is None else test)
    return path


@pytest.mark.parametrize("end", _idx.ENDS)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_read_back_whatever_their_names_say_of_compression(tmp_path, end, packed):
    pack = gzip.compress if packed else bytes
    images = _images.load(str(folder(tmp_path, train=pack(idx(PIXELS)), test=pack(idx(PIXELS[:2])), end=end)))
    np.testing.assert_array_equal(images.train, (PIXELS / 255).astype(np.float32))
    np.testing.assert_array_equal(images.test, images.train[:2])
    assert images.train.dtype == np.float32
    assert Autoencoder(data=str(tmp_path)).widths() == (12, 250, 125, 60, 15)


def test_of_two_files_the_one_that_is_not_compressed_is_read(tmp_path):
    folder(tmp_path, train=b"broken", test=b"broken", end="-idx3-ubyte.gz")
    assert _images.load(str(folder(tmp_path))).train.shape == (5, 4, 3)


def refused(path, says):
    """Both the option, without JAX, and the library say what is wrong: what must be, what is, and what to do."""
    with pytest.raises(ValidationError) as option:
        Autoencoder(data=str(path))
    with pytest.raises(ux.InvalidArgument, match=re.escape(says)) as error:
        _images.load(str(path))
    told = option.value.errors()[0]["msg"].removeprefix("Value error, ")
    for message in (told, str(error.value)):
        assert re.fullmatch(r".* must .*, got .*\. [A-Z].*\.", message), message
    assert str(error.value).startswith(f"images: {path}")
    return told


WRONG = {
    "labels": (idx(PIXELS, 2049, (60,)), "got 2049, which is of labels. Put the file of images in its place."),
    "cifar-like": (idx(PIXELS, 2052, (5, 4, 3, 1)), "got 2052, which is of unsigned bytes along 4 axes."),
    "floats": (idx(PIXELS, 0x0D03), "got 3331, which is of another type along 3 axes."),
    "page": (b"<!DOCTYPE html><html>", "got b'<!DO', which is no IDX file. Fetch it again;"),
    "empty": (b"", "must start with a header of 16 bytes, got 0 bytes in all."),
    "short header": (idx(PIXELS)[:15], "must start with a header of 16 bytes, got 15 bytes in all."),
    "no images": (idx(PIXELS[:0]), "must hold images, got 0 images of 4 x 3 pixels."),
    "early end": (idx(PIXELS)[:-7], "must hold 60 pixels after its header (5 images of 4 x 3), got 53. It ends early"),
    "late end": (
        idx(PIXELS) + b"!",
        "must hold 60 pixels after its header (5 images of 4 x 3), got 61. Fetch it again.",
    ),
    "huge": (idx(PIXELS, sizes=(2**32 - 1,) * 3), "images of 4294967295 x 4294967295), got 60. It ends early"),
    "packed labels": (gzip.compress(idx(PIXELS, 2049, (60,))), "got 2049, which is of labels."),
    "packed, no gzip": (b"\x1f\x8bno gzip", "must be whole, got compressed data that are damaged or end early."),
    "other pixels": (
        idx(PIXELS.swapaxes(1, 2)),
        "must have images of 3 x 4 pixels as train-images-idx3-ubyte has, got 4 x 3",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_named_with_what_it_is_and_what_to_do(tmp_path, name):
    content, says = WRONG[name]
    message = refused(folder(tmp_path, train=content), says)
    assert says in message
    assert message.startswith(f"{tmp_path}/")  # the folder and the file


@pytest.mark.parametrize("keep", [30, 40, -1])
def test_damage_behind_the_header_of_a_compressed_file_is_found_when_it_is_read(tmp_path, keep):
    noise = np.random.default_rng(1).integers(0, 256, (200, 4, 3), np.uint8)
    packed = gzip.compress(idx(noise))
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 255
    for content in (packed[:keep], bytes(flipped)):
        folder(tmp_path, train=content)
        with pytest.raises(
            ux.InvalidArgument, match="must be whole, got compressed data that are damaged or end early"
        ):
            _images.load(str(tmp_path))


def test_a_compressed_file_that_is_too_short_is_found_when_it_is_read(tmp_path):
    folder(tmp_path, train=gzip.compress(idx(PIXELS)[:-7]))
    with pytest.raises(ux.InvalidArgument, match=r"must hold 60 pixels .* got 53\. It ends early"):
        _images.load(str(tmp_path))


def test_a_wrong_folder_says_what_must_be_there(tmp_path):
    message = refused(
        tmp_path, f"{tmp_path} must hold train-images-idx3-ubyte or train-images-idx3-ubyte.gz, got an empty"
    )
    assert message.endswith("got an empty folder. Put the files of images there.")
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"")
    refused(tmp_path, "got 1 others (train-labels-idx1-ubyte). Put the files of images there.")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(PIXELS))
    refused(tmp_path, "must hold t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz, got 2 others")
    for path, got in ((tmp_path / "nowhere", "nothing there"), (tmp_path / "train-images-idx3-ubyte", "a file")):
        message = refused(path, f"must be a folder, got {got}. Give the one that holds train-images-idx3-ubyte.")
        assert message.startswith("it must be curves, digits or a folder that holds train-images-idx3-ubyte and t10k-")
        assert repr(str(path)) in message


# Sizes


def test_sizes_are_read_from_the_pixels_to_the_code():
    assert Autoencoder().widths() == (784, 250, 125, 60, 15)
    assert Autoencoder(sizes="784-1000-500-250-30").widths() == (784, 1000, 500, 250, 30)
    assert Autoencoder(data="digits").widths() == (64, 48, 24, 8)
    assert Autoencoder(data="digits", sizes="64-2").widths() == (64, 2)


@pytest.mark.parametrize(
    ("data", "sizes", "says"),
    [
        ("digits", "784-30", "must begin with the 64 pixels of an image"),
        ("curves", "64-30", "must begin with the 784 pixels of an image"),
        *(
            ("curves", sizes, "two or more whole numbers")
            for sizes in ("784", "784-", "784,30", "784-0", "-784-3", "784-²")
        ),
    ],
)
def test_sizes_that_fit_nothing_are_refused(data, sizes, says):
    with pytest.raises(ValidationError, match=says):
        Autoencoder(data=data, sizes=sizes)


# From numpy 2, PCG64, seed 0; 255 is full ink.
GOLDEN = [
    [181, 255, 255, 255, 142, 17, 0, 0, 0],
    [136, 46, 159, 255, 255, 239, 109, 0, 0],
    [255, 74, 0, 54, 179, 255, 255, 197, 64],
    [255, 229, 28, 0, 0, 87, 218, 255, 255],
]
