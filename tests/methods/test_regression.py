from dataclasses import replace

import numpy as np
import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.runtime.loop import Loop
from ssdd_jax.settings.presets import PRESETS
from ssdd_jax.stages import distill

NETS = {"convnet": {"net": "convnet", "widths": (8,)}, "wide": {"net": "convnet", "widths": (12,)}}
POOL = {"size": 2, "max_age": 3, "nets": NETS}


def test_a_set_of_several_architectures_goes_on_with_equal_bits(goes_on_with_equal_bits):
    _, folder = goes_on_with_equal_bits(replace(PRESETS["ours"], steps=4, base_size=4, joint=0.5), pool=POOL)
    (run,) = folder.glob("checkpoints/mine-*")
    assert {phase.name for phase in run.iterdir()} >= {"free", "joint"}


def test_every_architecture_moves_the_set(distil):
    spec, alone = replace(PRESETS["krr_st"], steps=2), {"size": 2, "max_age": 3}
    sets = [
        distil(spec, name, pool=pool)[0].images.codes
        for name, pool in (
            ("student", alone),
            ("one", {**alone, "nets": {"convnet": NETS["convnet"]}}),
            ("both", POOL),
            ("other", {**alone, "nets": {"wide": NETS["wide"], "convnet": NETS["convnet"]}}),
        )
    ]
    np.testing.assert_array_equal(sets[0], sets[1])
    assert all(np.abs(sets[0] - other).max() > 1e-4 for other in sets[2:])


@pytest.mark.parametrize("table", ["in_memory", "on_disk"])
def test_steps_are_compiled_while_the_pool_warms_up_if_there_is_a_core_to_spare(distil, monkeypatch, table):
    found, compile_ahead = [], Loop.compile_ahead
    monkeypatch.setattr(Loop, "compile_ahead", lambda loop, *operands: (found.append(loop), compile_ahead(loop, *operands)))
    spec, data = replace(PRESETS["krr_st"], steps=2), {"source": "digits", "limit": 256, "memory_gb": 4.0 if table == "in_memory" else 0.0}
    sets = []
    for cores in (1, 2):
        monkeypatch.setattr(distill, "available_cores", lambda cores=cores: cores)
        sets.append(distil(spec, str(cores), data=data)[0].images.codes)
        assert len(found) == cores - 1
    np.testing.assert_array_equal(*sets)
    # One program in all: what was compiled is what ran.
    assert len(found[0].compiled) == 1


@pytest.mark.parametrize(
    ("nets", "words"),
    [
        ({"a": {"net": "convnett"}}, "config.pool.nets.a.net is 'convnett', expected"),
        ({"a": {"net": "convnet", "widths": (8, 8, 8, 8, 8, 8)}}, "config.pool.nets.a"),
    ],
    ids=["unknown", "too_deep"],
)
def test_a_network_that_cannot_be_is_refused(distil, nets, words):
    with pytest.raises(InputError, match=words):
        distil(PRESETS["krr_st"], pool={"nets": nets})
