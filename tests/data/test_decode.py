import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssdd_jax.data.decode import FITS, BadImage, decode_image, fit_image
from ssdd_jax.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
GREY = PIXELS[..., :1]


def encode(image, form="PNG", **options):
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(stream, form, **options)
    return stream.getvalue()


def png(width, height, depth=8, colour=2, data=b""):
    """A PNG of any header, with these bytes as its (compressed) data."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def luma(pixels):
    return ((pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16).astype(np.uint8)[..., None]


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("pixels", [PIXELS, GREY], ids=["colour", "grey"])
def test_a_lossless_file_gives_its_pixels(form, pixels):
    content = encode(pixels.squeeze(), form)
    image, note = decode_image(content)
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)
    assert note == ""
    assert np.array_equal(decode_image(content, 3)[0], np.broadcast_to(pixels, PIXELS.shape))
    assert np.array_equal(decode_image(content, 1)[0], luma(pixels) if pixels.shape[-1] == 3 else pixels)


@pytest.mark.parametrize(("form", "options"), [("JPEG", {"quality": 100, "subsampling": 0}), ("WEBP", {"lossless": True})])
def test_jpeg_and_webp_give_nearly_their_pixels(form, options):
    image, note = decode_image(encode(PIXELS, form, **options))
    assert image.shape == PIXELS.shape
    assert np.abs(image.astype(int) - PIXELS).max() <= (0 if form == "WEBP" else 4)
    assert note == ""


@pytest.mark.parametrize(
    ("mode", "form", "kept", "note"),
    [
        ("1", "PNG", 1, "1 to L"),
        ("LA", "PNG", 1, "LA to L"),
        ("P", "PNG", 3, "P to RGB"),
        ("P", "GIF", 3, "P to RGB"),
        ("PA", "TIFF", 3, "PA to RGB"),
        ("RGBA", "PNG", 3, "RGBA to RGB"),
        ("CMYK", "JPEG", 3, "CMYK to RGB"),
        ("CMYK", "TIFF", 3, "CMYK to RGB"),
        ("YCbCr", "TIFF", 3, "YCbCr to RGB"),
        ("LAB", "TIFF", 3, "LAB to RGB"),
    ],
)
def test_other_modes_are_converted_as_by_pillow_and_said_so(mode, form, kept, note):
    stored = Image.fromarray(PIXELS).convert("P" if mode == "PA" else "RGBA" if mode == "LAB" else mode).convert(mode)
    content = encode(stored, form)
    with Image.open(io.BytesIO(content)) as opened:
        assert opened.mode == mode
        colour = np.asarray(opened.convert("RGB"))
    image, found = decode_image(content)
    assert found == note
    assert np.array_equal(image, colour if kept == 3 else colour[..., :1])
    assert np.array_equal(decode_image(content, 3)[0], colour)
    assert np.array_equal(decode_image(content, 1)[0], luma(colour) if kept == 3 else colour[..., :1])


GROUNDS = {"white": (255, 255, 255), "black": (0, 0, 0), "#10F080": (16, 240, 128)}


def laid(pixels, alpha, ground):
    """The definition, in exact integers: the nearest to alpha x pixel + (1 - alpha) x ground."""
    alpha = alpha.astype(int)[..., None]
    return ((2 * (alpha * pixels + (255 - alpha) * np.array(ground)) + 255) // 510).astype(np.uint8)


@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("form", ["PNG", "WEBP", "TIFF"])
def test_transparent_colour_is_laid_on_the_ground(ground, form):
    alpha = np.random.default_rng(1).integers(0, 256, PIXELS.shape[:2]).astype(np.uint8)
    alpha[0], alpha[1] = 0, 255
    content = encode(np.dstack([PIXELS, alpha]), form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    expected = laid(PIXELS, alpha, GROUNDS[ground])
    for channels, kept, pixels in ((0, "RGB", expected), (3, "RGB", expected), (1, "L", luma(expected))):
        image, note = decode_image(content, channels, ground)
        assert np.array_equal(image, pixels)
        assert note == f"transparent RGBA to {kept} on {ground}"
    assert np.array_equal(decode_image(content)[0], laid(PIXELS, alpha, GROUNDS["white"]))


@pytest.mark.parametrize("ground", GROUNDS)
def test_transparent_grey_stays_grey_unless_colour_is_asked_for(ground):
    alpha = np.random.default_rng(1).integers(0, 256, PIXELS.shape[:2]).astype(np.uint8)
    content = encode(np.dstack([GREY, alpha]))
    level = luma(np.array([GROUNDS[ground]], np.uint8)).item()
    image, note = decode_image(content, 0, ground)
    assert np.array_equal(image, laid(GREY, alpha, (level,)))
    assert note == f"transparent LA to L on {ground}"
    assert np.array_equal(decode_image(content, 3, ground)[0], laid(np.repeat(GREY, 3, -1), alpha, GROUNDS[ground]))


@pytest.mark.parametrize(("form", "transparency"), [("PNG", 3), ("GIF", 3), ("PNG", b"\x00\x80\xff")])
def test_a_transparent_palette_is_laid_on_the_ground(form, transparency):
    palette = Image.fromarray(PIXELS).convert("P")
    palette.putdata([3, 1, *list(palette.get_flattened_data())[2:]])
    alpha = np.full(256, 255, np.uint8)
    if isinstance(transparency, bytes):
        alpha[:3] = list(transparency)
    else:
        alpha[transparency] = 0
    image, note = decode_image(encode(palette, form, transparency=transparency))
    assert np.array_equal(image, laid(np.asarray(palette.convert("RGB")), alpha[np.asarray(palette)], GROUNDS["white"]))
    assert note == "transparent P to RGB on white"


@pytest.mark.parametrize(
    ("pixels", "transparency", "mode"),
    [
        (np.array([[0, 9, 200]], np.uint8), 9, "L"),
        (np.array([[0, 1, 1]], bool), 1, "1"),
        (np.array([[0, 257 * 9, 257 * 9 + 1]], np.uint16), 257 * 9, "I;16"),
        (np.array([[[0, 0, 0], [1, 2, 3], [1, 2, 4]]], np.uint8), (1, 2, 3), "RGB"),
    ],
)
def test_a_transparent_colour_is_laid_on_the_ground(pixels, transparency, mode):
    content = encode(pixels, transparency=transparency)
    plain, _ = decode_image(encode(pixels))
    image, note = decode_image(content, 0, "#0A0A0A")
    hidden = (pixels == transparency).reshape(1, 3, -1).all(-1)
    assert hidden.any()
    assert np.array_equal(image, np.where(hidden[..., None], np.uint8(10), plain))
    assert note == f"transparent {mode} to {'RGB' if mode == 'RGB' else 'L'} on #0A0A0A"


def test_what_is_opaque_depends_on_no_ground():
    for pixels in (np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)]), PIXELS, GREY[..., 0]):
        assert len({(image.tobytes(), note) for image, note in (decode_image(encode(pixels), 0, ground) for ground in GROUNDS)}) == 1


@pytest.mark.parametrize("ground", ["grey", "#fff", "", "#1234567", "white "])
def test_a_ground_that_is_no_colour_is_refused(ground):
    with pytest.raises(InputError, match=r"config\.data\.ground is .*, expected white, black or #RRGGBB"):
        decode_image(encode(PIXELS), 0, ground)


@pytest.mark.parametrize("options", [{"form": "PNG"}, {"form": "TIFF"}, {"form": "PPM"}])
def test_16_bit_grey_is_scaled_and_rounded(options):
    values = np.array([[0, 1, 128, 129, 257, 385, 386, 32768, 65406, 65407, 65535]], np.uint16)
    for stored in (values, values.T):
        image, note = decode_image(encode(np.ascontiguousarray(stored), **options))
        assert np.array_equal(image[..., 0], np.floor(stored / 257 + 0.5))
        assert note.endswith(" to L")
        assert np.array_equal(decode_image(encode(np.ascontiguousarray(stored), **options), 3)[0], np.repeat(image, 3, -1))


def test_big_endian_16_bit_grey_is_scaled_too():
    values = np.arange(0, 65536, 1111, dtype=np.uint16)[None]
    content = encode(Image.frombytes("I;16B", values.shape[::-1], values.astype(">u2").tobytes()), "TIFF")
    image, note = decode_image(content)
    assert note == "I;16B to L"
    assert np.array_equal(image[..., 0], np.floor(values / 257 + 0.5))


@pytest.mark.parametrize(("dtype", "values"), [(np.int32, [[0, 65536]]), (np.int32, [[-1, 9]]), (np.float32, [[0.0, 1.0]])])
def test_pixels_of_no_known_range_are_refused(dtype, values):
    with pytest.raises(BadImage, match=r"32-bit grey pixels|floating-point"):
        decode_image(encode(np.array(values, dtype), "TIFF"))


def test_the_first_frame_of_an_animation_is_used():
    frames = [Image.new("RGB", (5, 4), colour) for colour in ("red", "blue")]
    for form in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        options = {"lossless": True} if form == "WEBP" else {}
        image, _ = decode_image(encode(frames[0], form, save_all=True, append_images=frames[1:], **options))
        assert image.shape == (4, 5, 3)
        assert np.abs(image - np.array([255, 0, 0])).max() <= (form == "MPO")


def test_the_exif_orientation_is_ignored():
    turned = Image.Exif()
    turned[0x0112] = 6
    assert np.array_equal(decode_image(encode(PIXELS, exif=turned))[0], PIXELS)


def test_odd_metadata_of_a_good_image_does_not_warn():
    content = encode(PIXELS, "TIFF")
    # The number of planar configurations, one, becomes two.
    at = content.index(struct.pack("<HHI", 284, 3, 1))
    odd = content[: at + 4] + struct.pack("<I", 2) + content[at + 8 :]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(odd)) as opened:
            opened.load()
    assert caught  # or the test shows nothing
    assert np.array_equal(decode_image(odd)[0], PIXELS)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_truncated_files_are_refused(form, share):
    content = encode(PIXELS, form)
    with pytest.raises(BadImage) as caught:
        decode_image(content[: int(share * len(content))])
    assert "\n" not in str(caught.value)
    assert 0 < len(str(caught.value)) <= 100


def test_a_truncated_jpeg_is_called_so():
    with pytest.raises(BadImage, match=r"^truncated$"):
        decode_image(encode(PIXELS, "JPEG")[:-100])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"not an image\n", "not a PNG, JPEG, WEBP, BMP, GIF, TIFF or PPM image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not a PNG, JPEG"),
        (png(0, 4), "not a PNG, JPEG"),
        (png(4, 4, data=b"\x09" * 52), ""),
    ],
    ids=["empty", "text", "EPS", "no pixels", "bad filter"],
)
def test_what_is_no_image_is_refused(content, reason):
    with pytest.raises(BadImage, match=f"^{reason}"):
        decode_image(content)


@pytest.mark.parametrize(("width", "height", "megapixels"), [(10000, 9000, 90), (30000, 10000, 300), (2**31 - 1, 2**31 - 1, 4611686014132)])
def test_a_decompression_bomb_is_refused_before_it_goes_off(width, height, megapixels):
    with pytest.raises(BadImage, match=f"^{megapixels} megapixels, at most 89$"):
        decode_image(png(width, height))


def test_flipped_bytes_give_an_image_or_bad_image():
    random = np.random.RandomState(0)
    for form in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM"):
        content = encode(PIXELS, form)
        for _ in range(60):
            damaged = bytearray(content)
            for at in random.randint(0, len(content), 3):
                damaged[at] = random.randint(256)
            try:
                image, _ = decode_image(bytes(damaged), 3)
            except BadImage:
                continue
            assert image.dtype == np.uint8
            assert image.shape[-1] == 3


def test_other_numbers_of_channels_are_refused():
    with pytest.raises(InputError, match="expected 0, 1 or 3"):
        decode_image(encode(PIXELS), 4)


def bilinear(image, height, width):
    """Antialiased bilinear scaling in float64: a mean under a triangle as wide as the larger of an input's and an output's pixel."""

    def weights(source, target):
        scale = source / target
        reach = max(scale, 1.0)
        centres = (np.arange(target) + 0.5) * scale
        triangle = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - centres[:, None]) / reach)
        return triangle / triangle.sum(1, keepdims=True)

    rows, columns = weights(image.shape[0], height), weights(image.shape[1], width)
    return np.einsum("ih,hwc,jw->ijc", rows, image.astype(np.float64), columns)


images = st.builds(
    lambda height, width, channels, seed: np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 3]),
    st.integers(0, 99),
)


@given(images, st.integers(1, 24))
@settings(max_examples=60)
def test_resize_is_antialiased_bilinear(image, size):
    found = fit_image(image, size, "resize")
    assert found.shape == (size, size, image.shape[-1])
    assert found.dtype == np.uint8
    assert np.abs(found - bilinear(image, size, size)).max() <= 1.01


@given(images, st.integers(1, 24))
@settings(max_examples=60)
def test_crop_is_the_middle_of_the_whole_scaled_by_one_factor(image, size):
    height, width = image.shape[:2]
    longer = int(size * max(height, width) / min(height, width))
    new_height, new_width = (size, longer) if height < width else (longer, size)
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    expected = bilinear(image, new_height, new_width)[top : top + size, left : left + size]
    assert np.abs(fit_image(image, size, "crop") - expected).max() <= 1.01


@given(images, st.integers(1, 40))
@settings(max_examples=60)
def test_square_images_are_cropped_and_resized_alike(image, size):
    square = image[: min(image.shape[:2]), : min(image.shape[:2])]
    assert np.array_equal(fit_image(square, size, "crop"), fit_image(square, size, "resize"))


@given(images, st.integers(40, 60))
@settings(max_examples=30)
def test_pad_keeps_the_pixels_in_the_middle_of_zeros(image, size):
    found = fit_image(image, size, "pad")
    height, width = image.shape[:2]
    top, left = (size - height) // 2, (size - width) // 2
    assert found.shape == (size, size, image.shape[-1])
    assert np.array_equal(found[top : top + height, left : left + width], image)
    assert found.astype(int).sum() == image.astype(int).sum()


@pytest.mark.parametrize("fit", FITS)
def test_an_image_of_the_size_is_returned_as_it_is(fit):
    image = PIXELS[:13, :13]
    assert fit_image(image, 13, fit) is image


def test_pad_refuses_larger_images():
    with pytest.raises(BadImage, match="13x17 pixels, larger than 16x16"):
        fit_image(PIXELS, 16, "pad")


def test_crop_refuses_a_thread_that_would_fill_the_memory():
    with pytest.raises(BadImage, match="too long and thin"):
        fit_image(np.zeros((1, 100_000, 1), np.uint8), 64, "crop")
    assert fit_image(np.zeros((1, 100_000, 1), np.uint8), 64, "resize").shape == (64, 64, 1)


def test_an_unknown_fit_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'crop'"):
        fit_image(PIXELS, 8, "cropp")
