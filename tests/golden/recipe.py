"""Weights and images that PyTorch's networks and ours are compared on, drawn by NumPy so that only the outputs are stored."""

import numpy as np

NUM_OUTPUTS = 10
# name -> net, widths as net_widths returns them, image shape (H, W, C), seed.
CASES = {
    "convnet": ("convnet", (8, 12, 16), (32, 32, 3), 0),
    "convnet_28": ("convnet", (8, 12, 16), (28, 28, 1), 1),
    "vgg11": ("vgg11", (4, 8, 12, 12, 16, 16, 20, 20), (64, 64, 3), 2),
    "vgg11_28": ("vgg11", (4, 8, 12, 12, 16, 16, 20, 20), (28, 28, 1), 3),
    "alexnet": ("alexnet", (8, 12, 16, 12, 12), (32, 32, 3), 4),
    "resnet10": ("resnet10", (8, 12, 16, 20), (28, 28, 1), 5),
    "resnet18": ("resnet18", (64, 128, 256, 512), (32, 32, 3), 6),
    "mobilenet": ("mobilenet", (8, 4, 6, 8, 12, 16, 20, 24, 40), (32, 32, 3), 7),
    "vit": ("vit", (24, 24, 24), (32, 32, 3), 8),
}
# Of torch/teacher.ckpt.
TEACHER_WIDTHS, TEACHER_SHAPE, TEACHER_SEED = (2, 2, 4, 4), (32, 32, 3), 9


def draw_state_dict(shapes, seed):
    """Return an array for every (key, shape) of a state dict, drawn in the order given from one RandomState(seed).

    Kernels are normal with variance 1.4 / fan-in, tokens and positions standard normal, biases and running means normal
    with deviation 0.1, scales and running variances uniform in [0.5, 1.5): activations stay of order one.
    """
    random, arrays = np.random.RandomState(seed), {}
    for key, shape in shapes:
        if key.endswith("num_batches_tracked"):
            value = np.zeros(shape)
        elif key.endswith("running_var") or (key.endswith("weight") and len(shape) == 1):
            value = random.uniform(0.5, 1.5, shape)
        elif key in ("cls_token", "pos_embed"):
            value = random.normal(size=shape)
        elif len(shape) == 1:
            value = 0.1 * random.normal(size=shape)
        else:
            value = random.normal(size=shape) * np.sqrt(1.4 / np.prod(shape[1:]))
        arrays[key] = value.astype(np.int64 if key.endswith("num_batches_tracked") else np.float32)
    return arrays


def draw_images(shape, seed):
    """Return four images, NHWC."""
    return np.random.RandomState(1000 + seed).normal(size=(4, *shape)).astype(np.float32)
