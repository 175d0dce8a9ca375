"""Any .npz with x_train, y_train, x_test, y_test (uint8 NHWC): --config arrays --config.data.source=arrays:FILE.npz.

For 32 x 32 colour images on two cores, N = 10. Sizes and views are those found for Emoji-99, where a mirrored view shares its
representation and turned ones do not pay: `ours` is bases, kept as frequencies, with a mirrored view. The variant downstream has students
also evaluated on Fashion-MNIST, padded to 32 pixels and with its grey channel repeated three times.

`arrays:paper` has the paper's views, turned and predicted by networks that are fitted afterwards, and sizes that were found by hand;
`arrays:n50` the same for N = 50.

`arrays:bits` has the same budget spent on numbers of 32, 8 and 4 bits, by every method; `coded_4` is real images in 4 bits, without a step.

`arrays:long` is N = 10 with bases of 12 x 12 pixels and three times the steps, in 32 and in 8 bits.

`arrays:auto` has N = 10 and, besides the rows above, one whose bits, sizes, views and steps are chosen by short trials without labels: of
any data, only the source and N have to be given.

`arrays:labels` has rows of label sets besides, and N = 99, which is one image of each class of Emoji-99; their students have DC's recipe.

Records of Emoji-99 (experiments/README.md has commands and tables), on two cores of a shared Xeon; the scores are repr_error.
`arrays`, three seeds, 4 minutes a seed, commit 165bce1. Expected: 30 % below basis as it was. Obtained (emoji_frequencies.json):
basis .349 ± .012, ours .261 ± .001.
`arrays:bits`, the same seeds, 5 s a set. Expected: 40 % below krr_st_8. Obtained (emoji_frequencies.json):
krr_st_8 .414 ± .021, coded_4 .237 ± .001.
With bases of 12 x 12 pixels, five seeds, commit 98c822e. Obtained (emoji_five.json): basis .391 ± .020, ours .320 ± .012.
`paper`, 11 minutes a seed for the sets. Expected: ours best. Obtained (emoji_n10.json): random .944 ± .061, krr_st .655 ± .006,
raw_small .372 ± .016, basis .368 ± .021, ours .381 ± .016.
`n50`, 12 minutes a seed for the sets. Expected: ours best. Obtained (emoji_n50.json):
krr_st .419 ± .002, basis .329 ± .006, ours .365 ± .010.
All six students, 22 minutes and an hour of one core. Expected: ours first in every column. Obtained (emoji_students.json): it is.
`bits`, one seed, validation split. Expected: a third less error at equal bits. Obtained (emoji_bits.json): krr_st .624, krr_st_8 .379,
flip .303, flip_8_12 .262.
`auto`, five seeds, 11 minutes of trials and 10 s a set, commit 2f8b6f3. Expected: 30 % below basis as it was. Obtained (emoji_choose.json):
basis .338 ± .009, ours .262 ± .006, auto .223 ± .010.
`auto` with N = 50, three seeds. Expected: 85 % of the gap closed, an error of .220. Obtained (emoji_choose_n50.json): basis .293 ± .004,
auto .225 ± .002.
`auto` on photographs. Expected: the same. Obtained (photographs.json): basis .308 ± .016, auto .146 ± .005.
`auto` in numbers of 32 bits, one seed, validation split, commit 165bce1. Expected: within 5 % of the best by hand, .227. Obtained
(emoji_auto_frequencies.json):
auto .220.
`long`, one seed, validation split, an hour of one core, commit 90ca75b. Expected: below auto. Obtained (emoji_long.json):
krr_st_8_long .348, flip_12_long .244, flip_8_12_long .227, flip_8_16_long .219.
"""

from dataclasses import replace

from ssdd_jax.settings.presets import (
    AUTOMATIC,
    PRESETS,
    check_variant,
    default_config,
    smoke,
    to_config,
    two_core_labels,
    two_core_students,
)
from ssdd_jax.settings.spec import DataSpec

# A mirrored view at no storage.
FLIP = dict(views=("identity", "hflip"), view_targets=("stored", "shared"))


def in_bits(methods):
    """Return methods whose numbers have 32, 8 and 4 bits; what fits besides is spent on images, and on larger and more bases."""
    rows = {name: methods[name] for name in ("random", "kmeans", "krr_st", "raw_small", "basis")}
    rows["flip"] = replace(methods["basis"], **FLIP, support_images=96)
    for bits in (8, 4):
        some = dict(bits=bits, support_images=128)
        rows |= {f"{name}_{bits}": replace(methods[name], bits=bits) for name in ("random", "kmeans")}
        rows |= {f"{name}_{bits}": replace(methods[name], **some) for name in ("krr_st", "basis")}
        rows[f"raw_small_{bits}"] = replace(methods["raw_small"], **some, base_size=8 if bits == 8 else 12)
        rows[f"flip_{bits}"] = replace(rows["flip"], bits=bits)
        rows[f"flip_{bits}_12"] = replace(rows["flip"], bits=bits, base_size=12, image_bases=128, repr_bases=48)
    # Before any step: real images, which with their representations take 96 bytes each.
    coded = dict(base_size=0, frequencies=256, image_bases=96, repr_bases=80, factor_scale="each", bits=4, steps=0)
    rows["coded_4"] = replace(methods["basis"], **FLIP, **coded)
    return rows


def long(methods):
    """Return methods with three times the steps; sizes are those that trials with bases of pixels chose, in 8 bits larger ones."""
    flip = replace(methods["basis"], **FLIP, support_images=256, base_size=12, steps=1200)
    return {
        "krr_st_8_long": replace(methods["krr_st"], bits=8, support_images=128, steps=1200),
        "flip_12_long": replace(flip, image_bases=37, repr_bases=31),
        "flip_8_12_long": replace(flip, image_bases=111, repr_bases=62, bits=8),
        "flip_8_16_long": replace(flip, image_bases=80, repr_bases=62, bits=8, base_size=16),
    }


def get_config(variant=""):
    check_variant(variant, ("paper", "n50", "auto", "downstream", "labels", "bits", "long", "smoke"))
    large, by_hand = variant == "n50", variant in ("paper", "n50", "bits", "long")
    # With many images a step takes a random part of them: about as many rows, counting views, as the features are wide.
    some = 128 if large or variant == "labels" else 0
    methods = {
        **{name: PRESETS[name] for name in ("random", "kmeans", "herding")},
        "krr_st": replace(PRESETS["krr_st"], learning_rate=0.03),
        "raw_small": replace(PRESETS["raw_small"], base_size=8, learning_rate=0.05, support_images=some),
    }
    if by_hand:
        bases = dict(base_size=8, image_bases=128 if large else 96, repr_bases=48 if large else 24, learning_rate=0.02)
        ours = replace(PRESETS["ours"], **bases, support_images=64)
    else:
        bases = dict(base_size=0, frequencies=192, image_bases=48, repr_bases=31, factor_scale="each", learning_rate=0.03)
        # The mirrored view shares its targets where it hardly moves the representation, as in most photographs and drawings.
        ours = replace(PRESETS["ours"], **bases, views=("identity", "hflip"), shared_below=0.25, support_images=some // 2)
    methods |= {
        "basis_init": replace(PRESETS["basis_init"], **bases),
        "basis": replace(PRESETS["basis"], **bases, support_images=some),
        "ours": ours,
    }
    if variant == "auto":
        methods["auto"] = AUTOMATIC
    chosen = {"bits": in_bits, "long": long}.get(variant, dict)(methods)
    config = default_config(**chosen)
    config.name = "arrays"
    config.num_pairs = 50 if large else 10
    config.data.source = "arrays:data/arrays.npz"
    config.teacher.update(widths=(16, 32, 64, 128), steps=1500, batch_size=256)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.update(min_crop_scale=0.2, saturation=0.4, hue=0.2)
    config.outer.steps = 250 if large else 400
    config.protocols.linear.steps = 2000
    two_core_students(config)
    if variant == "labels":
        config.num_pairs = 99
        two_core_labels(config)
        # After six epochs experts are right about no image of some of 99 classes.
        config.methods.datm.init = "real"
        config.methods.datm.experts.epochs = 12
    if variant == "downstream":
        config.evaluation.datasets = {"fashion_mnist": to_config(DataSpec("fashion_mnist", size=32, fit="pad", channels=3))}
    if variant == "smoke":
        smoke(config)
    return config
