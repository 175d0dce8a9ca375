from dataclasses import replace

import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.registry import PROTOCOLS
from ssdd_jax.settings.digest import digest, json_ready
from ssdd_jax.settings.evaluation import LABEL_RECIPES, RECIPES, KnnSpec, LinearSpec, RecipeSpec
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import PRESETS, default_config, smoke, to_config
from ssdd_jax.settings.spec import EvaluationSpec, NetSpec, RunSpec


def test_defaults_survive_the_round_trip_through_a_config():
    assert json_ready(to_spec(default_config())) == json_ready(RunSpec(methods=PRESETS))


def test_methods_keep_their_order_of_presentation():
    assert tuple(to_spec(default_config()).methods) == tuple(PRESETS)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("outer.stps", 5, r"config\.outer\.stps is unknown.*did you mean 'steps'"),
        ("outr", 5, r"config\.outr is unknown.*did you mean 'outer'"),
        ("methods.ours.lerning_rate", 0.1, r"config\.methods\.ours\.lerning_rate is unknown.*did you mean 'learning_rate'"),
        ("outer.steps", 1.5, r"config\.outer\.steps is 1\.5, expected a whole number"),
        ("outer.steps", True, r"config\.outer\.steps is True, expected a whole number"),
        ("outer.steps", -1, r"config\.outer\.steps is -1, expected at least 0"),
        ("outer.ridge_scale", "trce", r"config\.outer\.ridge_scale is 'trce', expected one of .*did you mean 'trace'"),
        ("data.ground", "#fff", r"config\.data\.ground is '#fff', expected white, black or #RRGGBB"),
        ("data.overlap", "alow", r"config\.data\.overlap is 'alow', expected one of refuse, allow; did you mean 'allow'"),
        ("data.validation", 0.95, r"config\.data\.validation is 0\.95, expected 0\.0 to 0\.9"),
        ("seeds", (), r"config\.seeds is \(\), expected distinct"),
        ("seeds", (1, 1), r"config\.seeds is \(1, 1\), expected distinct"),
        ("seeds", (0, -1), r"config\.seeds\[1\] is -1, expected 0 to 2147483647"),
        ("student.widths", 16, r"config\.student\.widths is 16, expected a tuple"),
        ("pool.members_per_step", 9, r"members_per_step is 9, expected at most config\.pool\.size = 5"),
        ("evaluation.epochs", 3, r"give either epochs or updates"),
        ("evaluation.recipe", {}, r"config\.evaluation\.recipe is unknown.*did you mean 'recipes'"),
        ("evaluation.recipes", {"label": {}}, r"config\.evaluation\.recipes names 'label', .*did you mean 'labels'"),
        ("evaluation.protocols", ("liner",), r"config\.evaluation\.protocols\[0\] is 'liner', expected one of .*did you mean 'linear'"),
        ("protocols.knn.neighbours", 3, r"config\.protocols\.knn\.neighbours is unknown.*did you mean 'neighbors'"),
        ("evaluation.recipes.labels.augment", "colour", r"recipes\.labels\.augment is 'colour', expected one of .*color_crop_cutout"),
        ("evaluation.recipes.labels.decay_at", 502, r"recipes\.labels\.decay_at is 502\.0, expected 0\.0 to 1\.0"),
        ("evaluation.published", {"ours": {"students": ("vit",)}}, r"config\.evaluation\.published has 0 values for 1 students"),
        ("protocols.knn.neighbors", 0, r"config\.protocols\.knn\.neighbors is 0, expected at least 1"),
        ("protocols.few.fractions", (0.1, 2.0), r"config\.protocols\.few\.fractions\[1\] is 2\.0, expected 0\.0 to 1\.0"),
        ("protocols.nearest", {}, r"config\.protocols\.nearest is unknown, expected one of linear, few, knn, finetune"),
        ("only", "our", r"config\.only names 'our'.*did you mean 'ours'"),
        ("teacher.first_view.flip", 2.0, r"first_view\.flip is 2\.0, expected 0\.0 to 1\.0"),
    ],
)
def test_a_bad_setting_is_named_with_what_was_expected(path, value, message):
    values = json_ready(RunSpec(methods=PRESETS), tuples=True)
    *sections, key = path.split(".")
    node = values
    for section in sections:
        node = node[section]
    node[key] = value
    with pytest.raises(InputError, match=message) as caught:
        to_spec(values)
    assert "\n" not in str(caught.value)


def test_protocols_are_those_of_the_registry_in_its_order_and_a_section_that_is_left_out_has_its_defaults():
    config = default_config()
    assert tuple(to_spec(config).protocols) == tuple(PROTOCOLS)
    config.evaluation.protocols = ("knn", "linear")
    del config.protocols["linear"]
    chosen = to_spec(config).chosen_protocols()
    assert list(chosen.items()) == [("linear", LinearSpec()), ("knn", KnnSpec())]


def test_smoke_runs_take_the_small_values_that_a_protocol_offers():
    config = default_config()
    smoke(config)
    protocols = to_spec(config).protocols
    assert protocols["linear"] == LinearSpec(steps=5, batch_size=64)
    assert (protocols["few"].steps, protocols["finetune"].steps, protocols["knn"]) == (5, 3, KnnSpec())


def test_a_recipe_is_of_the_kind_of_targets_unless_the_network_needs_its_own():
    evaluation = EvaluationSpec(recipes={"labels": RecipeSpec(learning_rate=3.0)})
    assert evaluation.recipe(NetSpec("convnet"), "labels") == ("recipes.labels", RecipeSpec(learning_rate=3.0))
    assert evaluation.recipe(NetSpec("convnet"), "logits") == ("recipes.logits", RECIPES["logits"])
    assert evaluation.recipe(NetSpec("vit"), "labels") == ("vit_recipe", evaluation.vit_recipe)


@pytest.mark.parametrize("name", LABEL_RECIPES)
def test_a_config_takes_a_recipe_of_label_sets_by_its_name(name):
    config = default_config()
    config.evaluation.recipes.labels = to_config(LABEL_RECIPES[name])
    assert to_spec(config).evaluation.recipe(NetSpec("convnet"), "labels") == ("recipes.labels", LABEL_RECIPES[name])
    # Of a smoke run the number of updates holds, whatever the recipe.
    smoke(config)
    assert to_spec(config).evaluation.recipes["labels"] == replace(LABEL_RECIPES[name], epochs=0)


def test_equal_settings_have_equal_digests_and_a_changed_one_another():
    config = default_config()
    before = digest(to_spec(config).outer)
    assert before == digest(to_spec(default_config()).outer)
    config.outer.ridge = 1e-5
    assert digest(to_spec(config).outer) != before
