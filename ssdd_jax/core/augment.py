"""Random augmentations of images in [0, 1]: the key comes first, and every image has its own draw.

They serve self-supervised pretraining and real batches. Distilled images are never augmented at random: that would
bias the outer gradient, which is what the predefined views are for.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PRNGKeyArray

from ssdd_jax.settings.augment import AugmentSpec

Image = Float[Array, "H W C"]


def random_resized_crop(key: PRNGKeyArray, image: Image, min_scale: float, interpolation: str = "linear") -> Image:
    """Crop a box of area fraction U(min_scale, 1) and aspect ratio exp U(log 3/4, log 4/3), and resize it to the image's shape."""
    # One draw: a program compiles in proportion to their number.
    draws, (h, w, _) = jax.random.uniform(key, (4,)), image.shape
    area = min_scale + (1.0 - min_scale) * draws[0]
    aspect = jnp.exp((2 * draws[1] - 1) * jnp.log(4 / 3))
    size = jnp.minimum(jnp.stack([jnp.sqrt(area / aspect), jnp.sqrt(area * aspect)]), 1.0) * jnp.array([h, w])
    corner = draws[2:] * (jnp.array([h, w]) - size)
    scale = jnp.array([h, w]) / size
    # A crop is never larger than the image, so it is only ever enlarged and needs no antialiasing.
    resized = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -corner * scale, interpolation, antialias=False)
    return resized if interpolation == "linear" else jnp.clip(resized, 0.0, 1.0)


def random_shift(key: PRNGKeyArray, image: Image, padding: int) -> Image:
    """Surround the image by `padding` zeros on every side and crop a random box of its own size."""
    corner = jax.random.randint(key, (2,), 0, 2 * padding + 1)
    padded = jnp.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    return jax.lax.dynamic_slice(padded, (corner[0], corner[1], 0), image.shape)


def grayscale(image: Image) -> Image:
    """Replace RGB by its luma (ITU-R 601); a single channel stays as it is."""
    if image.shape[-1] != 3:
        return image
    luma = jnp.sum(image * jnp.array([[[0.299, 0.587, 0.114]]]), -1, keepdims=True)
    return jnp.broadcast_to(luma, image.shape)


def shift_hue(image: Image, turns: Float[Array, ""]) -> Image:
    """Rotate the hue of an RGB image by `turns` of the colour circle, keeping HSV's saturation and value."""
    value, low = image.max(-1), image.min(-1)
    chroma = value - low
    safe = jnp.where(chroma > 0, chroma, 1.0)
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    hue = jnp.where(value == r, (g - b) / safe, jnp.where(value == g, 2 + (b - r) / safe, 4 + (r - g) / safe)) / 6
    position = jnp.stack([(n + 6 * (hue + turns)) % 6 for n in (5.0, 3.0, 1.0)], -1)
    weight = jnp.clip(jnp.minimum(position, 4 - position), 0, 1)
    return value[..., None] - chroma[..., None] * weight


def color_jitter(key: PRNGKeyArray, image: Image, spec: AugmentSpec) -> Image:
    """Jitter brightness, contrast, saturation and hue, in this order (torchvision draws the order)."""
    brightness, contrast, saturation, hue = jax.random.uniform(key, (4,))
    between = lambda low, high, draw: low + (high - low) * draw
    factor = lambda strength, draw: between(max(0.0, 1 - strength), 1 + strength, draw)
    clip = lambda x: jnp.clip(x, 0.0, 1.0)
    image = clip(image * factor(spec.brightness, brightness))
    mean = grayscale(image).mean()
    image = clip(mean + (image - mean) * factor(spec.contrast, contrast))
    if image.shape[-1] == 3:
        gray = grayscale(image)
        image = clip(gray + (image - gray) * factor(spec.saturation, saturation))
        image = clip(shift_hue(image, between(-spec.hue, spec.hue, hue)))
    return image


def gaussian_blur(key: PRNGKeyArray, image: Image) -> Image:
    """Blur with sigma U(0.1, 2) pixels; weights are renormalized at the border."""
    sigma = jax.random.uniform(key, (), minval=0.1, maxval=2.0)

    def band(size: int) -> Float[Array, "s s"]:
        distance = jnp.arange(size)[:, None] - jnp.arange(size)[None]
        weights = jnp.exp(-0.5 * (distance / sigma) ** 2)
        return weights / weights.sum(1, keepdims=True)

    h, w, _ = image.shape
    return jnp.einsum("yi,ijc,xj->yxc", band(h), image, band(w))


def augment(key: PRNGKeyArray, images: Float[Array, "n H W C"], spec: AugmentSpec) -> Float[Array, "n H W C"]:
    """Draw one augmented view of every image in [0, 1]."""
    return augment_each(jax.random.split(key, len(images)), images, spec)


def augment_each(keys: Key[Array, "n"], images: Float[Array, "n H W C"], spec: AugmentSpec) -> Float[Array, "n H W C"]:
    """Draw one augmented view of every image in [0, 1], each with its own key."""

    def one(key: PRNGKeyArray, image: Image) -> Image:
        # Drawn whatever is switched on, so that the others stay the same.
        crop_key, shift_key, jitter_key, blur_key, coin_key = jax.random.split(key, 5)
        jitter, gray, blur, solarize, flip = jax.random.uniform(coin_key, (5,))

        def sometimes(probability: float, coin: Float[Array, ""], fn: Callable[[Image], Image], image: Image) -> Image:
            if probability == 0:
                return image
            return fn(image) if probability == 1 else jnp.where(coin < probability, fn(image), image)

        if spec.min_crop_scale < 1:
            image = random_resized_crop(crop_key, image, spec.min_crop_scale, spec.interpolation)
        if spec.padding:
            image = random_shift(shift_key, image, spec.padding)
        image = sometimes(spec.jitter, jitter, lambda x: color_jitter(jitter_key, x, spec), image)
        image = sometimes(spec.gray, gray, grayscale, image)
        image = sometimes(spec.blur, blur, lambda x: gaussian_blur(blur_key, x), image)
        image = sometimes(spec.solarize, solarize, lambda x: jnp.where(x >= 0.5, 1 - x, x), image)
        return sometimes(spec.flip, flip, lambda x: x[:, ::-1], image)

    return jax.vmap(one)(keys, images)
