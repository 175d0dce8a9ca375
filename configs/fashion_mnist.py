"""Fashion-MNIST: 70,000 grey images of 28 x 28 in 10 classes, gzipped IDX files.

The files are looked for in fashion_mnist/ of --config.data.data_dir, then where Debian's package dataset-fashion-mnist puts them.

`fashion_mnist:cpu` has small networks and N = 10, for two cores; what it gives is in experiments/README.md.

`fashion_mnist:labels` is `cpu` with the rows of label sets, one image of each class, in settings for two cores. Their students
have DC's recipe, and one of them is the network of the literature, convnet_in; its accuracy is what the literature reports.

`fashion_mnist:dsa` and `fashion_mnist:frepo` are the published settings of one method each, one image of each class at full width, with
real images in the same place as the control, for one accelerator: published are 70.6 +- .6 for DSA, and 75.6 for FRePo with 500,000
steps; `frepo` has 20,000.

Records (experiments/README.md has commands and tables); the scores are repr_error, those of label sets accuracies.
`cpu`, two cores, about 25 minutes. Expected: basis at most 0.85 of krr_st's error, krr_st at most 0.75 of random's.
Obtained (fashion_mnist_cpu.json): random .600 ± .027, krr_st .347 ± .020, basis .227 ± .015, ours .282 ± .054.
`cpu` with `auto`, five seeds, one core, 5 minutes of trials and 1 a set, commit 2f8b6f3. Expected: level with the best by hand. Obtained
(fashion_mnist_auto.json): basis .234 ± .016, auto .154 ± .003.
`cpu` with six students, 16 minutes and an hour of one core. Expected: ours first in every column. Obtained
(fashion_mnist_students.json): it is.
`labels`, two cores, an hour. Expected: dsa 70.6 ± 0.6. Obtained (fashion_mnist_labels.json): random_labels 55.8 ± 6.4, dsa 69.8 ± 0.9,
idm 74.6 ± 0.3, frepo 64.5 ± 2.5, kip 60.3 ± 2.6.
The same with random_labels and datm, one core, 26 minutes a seed, commit 1182476. Expected: above its real images. Obtained
(fashion_mnist_datm.json): random_labels 55.5 ± 6.3, datm 72.0 ± 1.4.
`dsa`, one NVIDIA H200, 13 s a set, commit 6d8e78f. Expected: dsa 70.6 ± 0.6. Obtained (fashion_mnist_dsa.json): dsa 69.7 ± 1.0.
`frepo`, the same GPU. Expected: frepo 75.6 after 500,000 steps. Not evaluated yet.
"""

from dataclasses import replace
from functools import partial

from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.methods import DsaSpec, FrepoSpec, RandomLabelsSpec
from ssdd_jax.settings.presets import (
    AUTOMATIC,
    PRESETS,
    check_variant,
    default_config,
    paper_scale,
    smoke,
    to_config,
    two_core_labels,
    two_core_students,
)
from ssdd_jax.settings.spec import NetSpec


def cpu():
    """N = 10, small networks: all methods, three seeds, within 30 minutes on two cores."""
    methods = {
        **{name: PRESETS[name] for name in ("random", "kmeans", "herding")},
        "krr_st": replace(PRESETS["krr_st"], learning_rate=0.1),
        "basis_init": PRESETS["basis_init"],
        "raw_small": replace(PRESETS["raw_small"], learning_rate=0.05),
        "basis": replace(PRESETS["basis"], learning_rate=0.02),
        "ours": replace(PRESETS["ours"], learning_rate=0.02, hidden=8),
    }
    # More rows, for --config.only: networks trained inside the loop, a cheap view, krr_st with as much time as `ours`, and settings that
    # choose themselves.
    methods["ours_joint"] = replace(methods["ours"], joint=1 / 3)
    methods["ours_flip"] = replace(methods["ours"], views=("identity", "hflip"), view_targets=("stored", "shared"))
    methods["krr_st_long"] = replace(methods["krr_st"], steps=1500)
    methods["auto"] = AUTOMATIC
    config = default_config(**methods)
    config.only = "random,kmeans,herding,krr_st,basis_init,raw_small,basis,ours"
    config.num_pairs = 10
    config.teacher.update(widths=(32, 64, 128), steps=1500, batch_size=256)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.min_crop_scale = 0.3
    config.protocols.linear.steps = 2000
    two_core_students(config)
    return config


def labels():
    """`cpu` with the rows of label sets, read with and without their labels."""
    config = cpu()
    config.only = ",".join(two_core_labels(config, images=10))
    config.evaluation.update(only="convnet,convnet_in", teacher_targets=True)
    return config


def published(variant):
    """DSA or FRePo as published, N = 10, one image of each class, read as its authors do: accuracy of a network trained on the set."""
    rows = {"random_labels": RandomLabelsSpec(images=10), "dsa": DsaSpec(images=10)}
    students, updates, recipe = ["convnet_in"], 0, LABEL_RECIPES["dc"]
    if variant == "frepo":
        rows = {"frepo_init": FrepoSpec(images=10, steps=0), "frepo": FrepoSpec(images=10, steps=20_000)}
        students, updates, recipe = ["convnet_no_norm", "convnet_frepo"], 1000, LABEL_RECIPES["frepo"]
    config = default_config(**rows)
    config.num_pairs = 10
    config.data.validation = 0.0
    config.outer.batch_size = 1024
    config.evaluation.update(students=to_config({net: NetSpec(net) for net in students}), updates=updates, epochs=0 if updates else 1000)
    config.evaluation.update(protocols=("knn",), controls=("none",))
    config.evaluation.recipes.labels = to_config(recipe)
    return config


def gpu():
    """N = 100 at the paper's scale: ResNet18 teacher, 32 pixels, ConvNet 128-256-512, 30,000 steps."""
    bases = dict(base_size=16, image_bases=100, repr_bases=100, hidden=4)
    methods = {name: replace(method, **(bases if method.image_bases else {}), learning_rate=1e-3) for name, method in PRESETS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=16)
    config = default_config(**methods)
    config.num_pairs = 100
    config.data.size = 32
    paper_scale(config, num_train=60_000, epochs=200)
    return config


def get_config(variant=""):
    check_variant(variant, ("cpu", "labels", "dsa", "frepo", "smoke"))
    builders = {"": gpu, "labels": labels, **{name: partial(published, name) for name in ("dsa", "frepo")}}
    config = builders.get(variant, cpu)()
    config.name = "fashion_mnist"
    config.data.update(source="fashion_mnist", fit="pad")
    if variant == "smoke":
        smoke(config)
    return config
