"""From the bytes of an image file to pixels, and from any size to a common one."""

import io
import re
import warnings

import numpy as np
from PIL import Image

from ssdd_jax.errors import InputError, nearest

FITS = ("crop", "resize", "pad")
GROUND = r"white|black|#[0-9a-fA-F]{6}"
"""What transparent images may be laid on: a name, or red, green and blue in hexadecimal digits."""

# An explicit list: Pillow also opens EPS, among others, for which it runs Ghostscript on the file.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_GREY_MODES = ("1", "L", "LA", "La")
# Pillow's own default, above which it warns (it refuses at twice as many): 256 MiB as RGB.
_MAX_PIXELS = 89_478_485


class BadImage(ValueError):
    """An image that cannot be used; the message is a short reason, without the image's name."""


def decode_image(content: bytes, channels: int = 0, ground: str = "white") -> tuple[np.ndarray, str]:
    """Decode an image file: PNG, JPEG, WebP, BMP, GIF, TIFF or PPM.

    Transparent images, by an alpha channel, a palette or a transparent colour, are laid on a ground: alpha x image + (1 - alpha) x ground,
    rounded. Palettes are expanded, and the EXIF orientation is ignored, as torchvision's ImageFolder does. 16-bit grey is scaled to 8 bits
    and rounded; for 16-bit colour Pillow keeps the high bytes. The first frame of an animation is used.

    Args:
      content: the file's bytes.
      channels: 1 or 3 converts to that many: grey is repeated, colour becomes its luma (ITU-R 601, of the RGB pixels). 0 keeps one
        channel for images stored as grey, bilevel or grey with alpha, and gives three for all others; a palette counts as colour.
      ground: white, black or #RRGGBB; images that stay grey are laid on its luma.

    Returns:
      uint8 (H, W, C) with C 1 or 3, possibly read-only; and what was converted, in Pillow's mode names, such as "CMYK to RGB" or, where
      any pixel was transparent, "transparent RGBA to RGB on white"; or "".

    Raises:
      BadImage: it is truncated, damaged, of an unknown format, without pixels, with floating-point or 32-bit pixels, or over 89 megapixels.
      InputError: `channels` or `ground` is another.
    """
    check_ground(ground)
    if channels not in (0, 1, 3):
        raise InputError(f"channels is {channels}, expected 0, 1 or 3; 0 keeps the file's own")
    if not content:
        raise BadImage("empty file")
    # Pillow warns about odd metadata in images that it reads well, and about sizes that are refused here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise _too_large(image.width * image.height)
                image.load()
                return _to_array(image, channels, ground)
        except (BadImage, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            # Of the two numbers in the message the larger is the image's, the other the limit.
            raise _too_large(max((int(digits) for digits in re.findall(r"\d+", str(error))), default=2 * _MAX_PIXELS)) from error
        except Image.UnidentifiedImageError as error:
            raise BadImage(f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} image") from error
        except Exception as error:  # Pillow's decoders raise nearly every type on damaged bytes.
            text = " ".join(str(error).split())
            raise BadImage("truncated" if "truncated" in text.lower() else f"{type(error).__name__}: {text}"[:100]) from error


def fit_image(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """Bring an image to size x size pixels; one of that size is returned unchanged.

    Args:
      image: uint8 (H, W, C) with C 1 or 3.
      size: height and width in pixels.
      fit: "crop" scales the shorter side to `size` (the longer one in proportion, rounded down) and cuts out the middle, as
        torchvision's Resize and CenterCrop do; "resize" scales both sides to `size`, whatever the aspect ratio; "pad" surrounds the image
        with zeros, an odd one going to the bottom or right. Scaling is Pillow's: bilinear, antialiased when reducing.

    Returns:
      uint8 (size, size, C).

    Raises:
      BadImage: it is larger than `size` and is to be padded, or is so long and thin that cropping would take over 89 megapixels.
      InputError: `fit` is unknown.
    """
    if fit not in FITS:
        raise InputError(f"unknown fit {fit!r}, expected one of {', '.join(FITS)}{nearest(fit, FITS) or '; choose one of them'}")
    height, width = image.shape[:2]
    if height == width == size:
        return image
    if fit == "resize":
        return _resize(image, size, size)
    if fit == "pad":
        if max(height, width) > size:
            raise BadImage(f"{height}x{width} pixels, larger than {size}x{size}")
        top, left = (size - height) // 2, (size - width) // 2
        return np.pad(image, ((top, size - height - top), (left, size - width - left), (0, 0)))
    shorter, longer = min(height, width), int(size * max(height, width) / min(height, width))
    if size * longer > _MAX_PIXELS:
        raise BadImage(f"{height}x{width} pixels, too long and thin to crop: {shorter} scaled to {size} makes {longer} of the other side")
    new_height, new_width = (size, longer) if height < width else (longer, size)
    # Rounded half to even, as torchvision's CenterCrop does.
    top, left = round((new_height - size) / 2), round((new_width - size) / 2)
    return _resize(image, new_height, new_width)[top : top + size, left : left + size]


def check_ground(ground: str) -> None:
    """Refuse a ground that is not a colour.

    Raises:
      InputError: it is not among `GROUND`.
    """
    if not re.fullmatch(GROUND, ground):
        raise InputError(f"config.data.ground is {ground!r}, expected white, black or #RRGGBB; e.g. #808080 is grey")


def _to_array(image: Image.Image, channels: int, ground: str) -> tuple[np.ndarray, str]:
    if image.mode == "F":
        raise BadImage("floating-point pixels")
    mode = image.mode
    is_grey = mode in _GREY_MODES or mode.startswith("I")
    target = "L" if channels == 1 or (channels == 0 and is_grey) else "RGB"
    if mode.startswith("I"):
        # Pillow's convert would clip at 255.
        values, transparent = np.asarray(image), image.info.get("transparency")
        if values.min() < 0 or values.max() > 65535:
            raise BadImage(f"32-bit grey pixels {values.min()}..{values.max()}, expected 0..65535")
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
        if transparent is not None:
            image.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    elif mode == "La":
        # Pillow converts premultiplied grey to this alone.
        image = image.convert("LA")
    colour = image.info.get("transparency")
    if isinstance(colour, tuple) and max(colour) > 255:
        # Of 16-bit colour Pillow keeps the high bytes, but not of the transparent one.
        image.info["transparency"] = tuple(value >> 8 for value in colour)
    kept, composed = "L" if is_grey and target == "L" else "RGB", False
    if image.has_transparency_data:
        image = image.convert("LA" if kept == "L" else "RGBA")
        alpha = image.getchannel("A")
        composed = alpha.getextrema() != (255, 255)
        paper = Image.new("RGB", image.size, ground).convert(kept)
        paper.paste(image.convert(kept), mask=alpha)
        image = paper
    elif image.mode != ("L" if is_grey else "RGB"):
        image = image.convert("L" if is_grey else "RGB")
    pixels = np.asarray(image if image.mode == target else image.convert(target))
    note = f"{mode} to {target}"
    return pixels.reshape(*pixels.shape[:2], -1), f"transparent {note} on {ground}" if composed else "" if mode == target else note


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    resized = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized).reshape(height, width, -1)


def _too_large(pixels: int) -> BadImage:
    return BadImage(f"{round(pixels / 1e6)} megapixels, at most {_MAX_PIXELS // 10**6}")
