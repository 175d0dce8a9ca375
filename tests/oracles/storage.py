"""How many numbers a set stores, from its sizes alone."""

from math import prod


def count_stored_scalars(num_images, layout, repr_width, *, num_image_bases=0, num_repr_bases=0, hidden=0):
    """U p + p + m U (or m p) + V d + d + T m V (or T m d) + networks (2 V h + h + V)."""
    p = prod(layout.base_shape)
    width = num_repr_bases or repr_width
    images = num_image_bases * (p + num_images) + p if num_image_bases else num_images * p
    reprs = (num_repr_bases + 1) * repr_width if num_repr_bases else 0
    network = 2 * width * hidden + hidden + width
    return images + reprs + layout.count("stored") * num_images * width + layout.count("network") * network
