from dataclasses import replace
from math import inf, log

import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.methods import regression
from ssdd_jax.methods.automatic import GRIDS, ROWS, choose, first_choice, is_automatic, view_choices
from ssdd_jax.methods.plan import Sizes
from ssdd_jax.settings.methods import AUTO
from ssdd_jax.settings.presets import AUTOMATIC, PRESETS

SHIFTS = {"identity": 0.0, "hflip": 0.2, "vflip": 1.5, "rot90": 0.9, "rot180": 0.9, "rot270": 0.9}
SIZES = Sizes(10, (32, 32, 3), 128, 0, SHIFTS)


def counted(loss):
    tried = []

    def trial(spec):
        assert not is_automatic(spec)
        tried.append(spec)
        return loss(spec)

    return trial, tried


def test_sizes_go_downhill_and_stay_where_the_loss_is_lowest():
    goal = {"frequencies": 384, "image_bases": 20, "repr_bases": 31}
    trial, tried = counted(
        lambda spec: 9 * abs(spec.frequencies - 384) + sum(abs(log((getattr(spec, name) or 9e9) / value)) for name, value in goal.items())
    )
    chosen = choose(AUTOMATIC, SIZES, trial, 50)
    # The budget has 256,000 numbers of 4 bits: 1/32 of them are 20 bases of 384, 1/64 of them 31 of 128.
    assert {name: getattr(chosen, name) for name in goal} == goal
    assert len(set(tried)) == len(tried) <= 18
    assert (chosen.bits, chosen.steps) == (4, 0)
    assert all(regression.plan("auto", spec, SIZES).num_images > 0 for spec in tried)


def test_what_is_given_is_not_chosen():
    trial, tried = counted(lambda spec: -spec.image_bases)
    chosen = choose(replace(PRESETS["basis"], image_bases=AUTO), SIZES, trial, 50)
    assert replace(chosen, image_bases=AUTO) == replace(PRESETS["basis"], image_bases=AUTO)
    assert len(tried) > 1
    assert not is_automatic(PRESETS["ours"])


def test_a_view_is_shared_only_where_the_teacher_hardly_moves_and_kept_only_where_the_loss_falls():
    sizeless = replace(AUTOMATIC, frequencies=96, image_bases=24, repr_bases=16)
    trial, tried = counted(lambda spec: 1 / len(spec.views))
    chosen = choose(sizeless, SIZES, trial, 50)
    assert dict(zip(chosen.views, chosen.view_targets, strict=True)) == {
        **{"identity": "stored", "hflip": "shared"},
        **{"rot90": "network", "rot180": "network", "rot270": "network"},
    }
    assert (chosen.joint, chosen.support_images) == (1.0, ROWS // 5)
    assert not any("vflip" in spec.views for spec in tried)
    only_flip = choose(sizeless, SIZES, lambda spec: 1 + ("rot90" in spec.views) - ("hflip" in spec.views), 50)
    assert (only_flip.views, only_flip.joint) == (("identity", "hflip"), 0.0)
    assert choose(sizeless, SIZES, lambda spec: len(spec.views), 50).views == ("identity",)
    # Quarter turns of images that are not square do not exist.
    flat = replace(SIZES, image_shape=(16, 32, 3))
    assert choose(sizeless, flat, lambda spec: 1 / len(spec.views), 50).views == ("identity", "hflip")


def test_the_width_of_networks_is_tried_where_there_are_any():
    asked = replace(PRESETS["ours"], hidden=AUTO, view_targets=("stored", "network", "network", "network"))
    assert choose(asked, SIZES, lambda spec: abs(spec.hidden - 16), 50).hidden == 16
    assert choose(asked, SIZES, lambda spec: abs(spec.hidden - 1.5), 50).hidden == 2
    trial, tried = counted(lambda spec: 1.0)
    assert choose(replace(PRESETS["basis"], hidden=AUTO), SIZES, trial, 50).hidden == 4
    assert len(tried) == 1


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_trials_than_asked_for_and_impossible_settings_are_passed_over(most):
    trial, tried = counted(lambda spec: -len(tried))
    choose(AUTOMATIC, SIZES, trial, most)
    assert len(tried) == most
    best = choose(AUTOMATIC, SIZES, lambda spec: inf if spec.frequencies == 192 else 1.0, 50)
    assert best.frequencies != 192


@pytest.mark.parametrize(
    ("num_pairs", "shape", "width"), [(1, (8, 8, 1), 8), (10, (28, 28, 1), 128), (200, (32, 32, 3), 128), (5000, (32, 32, 3), 512)]
)
def test_any_budget_and_data_have_a_place_to_begin_and_all_sizes_can_be(num_pairs, shape, width):
    sizes = Sizes(num_pairs, shape, width, 0, SHIFTS)
    first = first_choice(AUTOMATIC, sizes)
    assert regression.plan("auto", AUTOMATIC, sizes) == regression.plan("auto", first, sizes)
    trial, tried = counted(lambda spec: 1.0)
    choose(AUTOMATIC, sizes, trial, 50)
    assert len(tried) <= 1 + 2 * len(GRIDS) + 2 + 4
    assert all(1 <= spec.image_bases <= max(1, spec.frequencies // 2) for spec in tried if spec.frequencies)


def test_images_and_representations_may_do_without_bases():
    chosen = choose(AUTOMATIC, SIZES, lambda spec: bool(spec.repr_bases) + bool(spec.image_bases) + bool(spec.frequencies), 50)
    assert (chosen.base_size, chosen.frequencies, chosen.image_bases, chosen.repr_bases) == (0, 0, 0, 0)
    chosen = choose(AUTOMATIC, SIZES, lambda spec: bool(spec.repr_bases) - bool(spec.image_bases), 50)
    assert (bool(chosen.frequencies), bool(chosen.image_bases), chosen.repr_bases) == (True, True, 0)
    # Of bases of pixels: plain images are not smaller ones.
    asked = replace(AUTOMATIC, frequencies=0, base_size=AUTO)
    assert choose(asked, SIZES, lambda spec: bool(spec.image_bases), 50).base_size == 0


def test_bits_are_chosen_after_the_sizes_and_steps_last():
    trial, tried = counted(lambda spec: abs(spec.bits - 8) - bool(spec.steps))
    chosen = choose(AUTOMATIC, SIZES, trial, 50)
    assert (chosen.bits, chosen.steps) == (8, -1)
    bits = [spec.bits for spec in tried]
    assert (set(bits[: bits.index(8)]), set(bits[bits.index(32) + 1 :])) == ({4}, {8})
    assert [bool(spec.steps) for spec in tried] == [False] * (len(tried) - 1) + [True]
    # Given, they are what they are.
    chosen = choose(replace(AUTOMATIC, bits=32, steps=50), SIZES, trial, 50)
    assert (chosen.bits, chosen.steps) == (32, 50)


@pytest.mark.parametrize(("gain", "kept"), [(0.04, False), (0.06, True)])
def test_views_and_steps_must_be_worth_their_time(gain, kept):
    views = lambda spec: gain * ("hflip" in spec.views) - ("rot90" in spec.views)
    assert ("hflip" in choose(AUTOMATIC, SIZES, lambda spec: 1 - views(spec), 50).views) == kept
    assert (choose(AUTOMATIC, SIZES, lambda spec: 1 - gain * bool(spec.steps), 50).steps == -1) == kept


def test_the_side_of_bases_of_pixels_is_chosen_likewise():
    asked = replace(AUTOMATIC, frequencies=0, base_size=AUTO)
    trial, tried = counted(lambda spec: abs(spec.base_size - 16))
    assert choose(asked, SIZES, trial, 50).base_size == 16
    assert {spec.frequencies for spec in tried} == {0}


def test_bases_have_room_for_the_frequencies_that_are_asked_for():
    spec = replace(AUTOMATIC, base_size=AUTO, frequencies=600)
    trial, tried = counted(lambda spec: spec.base_size or inf)
    assert choose(spec, SIZES, trial, 50).base_size == 15
    assert all(plain.base_size == 0 or plain.base_size**2 * 3 >= 600 for plain in tried)


def test_where_bases_are_too_many_there_are_fewer():
    # Of 20 training images there are 19 components.
    few = replace(SIZES, num_train=20)
    first = first_choice(AUTOMATIC, few)
    assert (first.image_bases, first.repr_bases) == (19, 19)
    # What the representations span is not known before: the search begins where trials are possible, with those of images as they were.
    trial, tried = counted(lambda spec: inf if spec.repr_bases > 3 else abs(log(spec.frequencies / 384)) if spec.frequencies else 9.0)
    chosen = choose(AUTOMATIC, SIZES, trial, 50)
    assert (chosen.frequencies, chosen.repr_bases) == (384, 0)
    assert tried[1].image_bases == tried[0].image_bases
    # Where nothing is possible, all of that was tried.
    trial, tried = counted(lambda spec: inf)
    choose(AUTOMATIC, SIZES, trial, 50)
    assert any((spec.image_bases, spec.repr_bases) == (0, 0) for spec in tried)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(bits=0), "bits is 0, expected one of 32, 8, 4"),
        (dict(views=("auto", "hflip")), "'auto' stands alone"),
        (dict(view_targets=("stored", "shared")), "leave them, or name the views"),
        (dict(joint=0.5), "leave them, or name the views"),
    ],
)
def test_what_contradicts_a_choice_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        regression.plan("auto", replace(AUTOMATIC, **settings), SIZES)


def test_a_view_without_a_known_shift_is_not_tried():
    known = replace(SIZES, shifts={"identity": 0.0, "hflip": 0.2})
    trial, tried = counted(lambda spec: 1 / len(spec.views))
    assert choose(AUTOMATIC, known, trial, 50).views == ("identity", "hflip")
    assert view_choices((8, 12, 3)) == ("identity", "hflip", "vflip")
    assert set(view_choices((8, 8, 3))) == {"identity", "hflip", "vflip", "rot90", "rot180", "rot270"}
