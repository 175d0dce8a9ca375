"""scikit-learn's 1,797 handwritten digits, 8 x 8: a demonstration that runs anywhere in a few minutes.

Images this small leave little for bases to factor out, and a rotation turns a 6 into a 9: expect `basis` to tie with
`krr_st`, and `ours` to gain nothing from its views. README.md has the table of `make demo`
(digits.json in experiments/results); experiments/README.md has what the variants below gave.

`digits:kip` has kernel inducing points instead: ten images, one of each class, from which an infinitely wide network predicts classes, with
real images (`kip_init`) and a label solve of these as controls. The protocols read students that were trained on the sets;
`python experiments/kip_accuracy.py WORKDIR` prints the accuracy of the kernel regression. The two must not be compared.

`digits:frepo` has FRePo, likewise with ten images and with real images (`frepo_init`) as the control. The table's accuracy is that of
students which were trained on nothing but the set.

`digits:datm` has trajectory matching: ten images with soft labels (`datm`), what they start from (`datm_init`) and real images with hard
labels (`random_labels`).
"""

from dataclasses import replace

from ssdd_jax.settings.augment import FREPO_WITHOUT_FLIP, WITHOUT_FLIP
from ssdd_jax.settings.evaluation import LABEL_RECIPES
from ssdd_jax.settings.methods import DatmSpec, ExpertSpec, FrepoSpec, KipSpec, RandomLabelsSpec
from ssdd_jax.settings.presets import AUTOMATIC, PRESETS, check_variant, default_config, smoke, to_config
from ssdd_jax.settings.spec import NetSpec


def get_config(variant=""):
    check_variant(variant, ("smoke", "kip", "frepo", "datm"))
    bases = dict(base_size=8, image_bases=16, repr_bases=12)
    methods = {name: replace(method, **(bases if method.image_bases else {}), learning_rate=0.02) for name, method in PRESETS.items()}
    methods["raw_small"] = replace(methods["raw_small"], base_size=4)
    if variant == "kip":
        still = KipSpec(images=10, steps=0)
        methods = dict(
            kip_init=still,
            label_solve=replace(still, label_solve=True),
            kip=KipSpec(images=10),
            kip_labels=KipSpec(images=10, learn_labels=True),
        )
    if variant == "frepo":
        moved = FrepoSpec(images=10, net=NetSpec("convnet_frepo", (16, 32, 64)), learning_rate=1e-3, pool_size=5)
        methods = dict(frepo_init=replace(moved, steps=0), frepo=moved)
    if variant == "datm":
        net = NetSpec("convnet_in", (32, 32, 32))
        experts = ExpertSpec(batch_size=64, learning_rate=0.05, augment=WITHOUT_FLIP, net=net)
        datm = DatmSpec(experts=experts, images=10)
        methods = dict(random_labels=RandomLabelsSpec(images=10), datm_init=replace(datm, steps=0), datm=datm)
    if not variant or variant == "smoke":
        # One more row, for --config.only: settings that choose themselves.
        methods["auto"] = AUTOMATIC
    config = default_config(**methods)
    config.only = ",".join(name for name in methods if name != "auto")
    config.name = "digits"
    config.num_pairs = 20
    config.data.source = "digits"
    config.teacher.update(widths=(32, 64), steps=300, batch_size=128, projector_width=128, warmup_steps=20)
    for view in (config.teacher.first_view, config.teacher.second_view):
        view.update(flip=0.0, min_crop_scale=0.5)
    config.student.widths = (16, 32)
    config.pool.update(size=4, max_age=40)
    config.outer.update(steps=300, batch_size=128)
    config.evaluation.updates = 200
    config.protocols.linear.steps = 1000
    config.protocols.finetune.update(padding=1, flip=0.0)
    if variant in ("kip", "frepo"):
        # As little as holds an image and a label of every class.
        config.num_pairs = 6
        config.evaluation.update(protocols=("knn",), controls=("none",))
    if variant == "kip":
        config.outer.update(steps=200, batch_size=512)
    if variant == "frepo":
        config.outer.update(steps=500, batch_size=256)
        nets = ("convnet_no_norm", "convnet_frepo")
        recipes = {"labels": replace(LABEL_RECIPES["frepo"], augment=FREPO_WITHOUT_FLIP)}
        config.evaluation.update(students=to_config({net: NetSpec(net, (16, 32, 64)) for net in nets}), updates=1000)
        config.evaluation.recipes.update(to_config(recipes))
    if variant == "datm":
        config.num_pairs = 6
        config.outer.steps = 250
        config.student = to_config(net)
        config.evaluation.update(protocols=("knn",), controls=("none",))
        for kind, recipe in (("labels", "dc"), ("logits", "datm")):
            config.evaluation.recipes[kind] = to_config(replace(LABEL_RECIPES[recipe], epochs=300, augment=WITHOUT_FLIP))
    if variant == "smoke":
        smoke(config)
    return config
