"""One, two and four devices agree. A process has one number of devices, so that each is a process of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ssdd_jax.errors import InputError
from ssdd_jax.runtime import devices
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config
from ssdd_jax.stages.checks import check_batches

REPOSITORY = Path(__file__).parents[2]

# Runs a few steps of everything that is spread, on as many devices as the process has.
PROGRAM = """if True:
    import json, sys
    import jax, jax.numpy as jnp, numpy as np, optax
    from jax.flatten_util import ravel_pytree
    from ssdd_jax.core.approximation import init_networks
    from ssdd_jax.core.bases import fit_pca
    from ssdd_jax.core.distilled import Layout, compress, init_distilled
    from ssdd_jax.core.augment import AugmentSpec
    from ssdd_jax.core.outer import init_outer, make_outer_step, make_warm_up_step
    from ssdd_jax.core.stores.factored import factored
    from ssdd_jax.data import OnDisk
    from ssdd_jax.evals.probe import init_probe
    from ssdd_jax.kernels.feature import feature_kernel
    from ssdd_jax.nets import make_learner
    from ssdd_jax.progress import Display
    from ssdd_jax.runtime.devices import make_devices, placement
    from ssdd_jax.runtime.loop import Loop, stack
    from ssdd_jax.teacher.barlow_twins import Projector, init_teacher, make_teacher_step

    count, out = jax.device_count(), sys.argv[1]
    SHAPE, WIDTH = (8, 8, 1), 6
    draw = lambda *shape, seed=0: jnp.asarray(np.random.RandomState(seed).normal(size=shape), jnp.float32)
    images, reprs = draw(64, *SHAPE), draw(64, WIDTH, seed=1)
    views = ("identity", "rot90", "hflip")
    layout = Layout(SHAPE, (4, 4, 1), views, ("stored", "stored", "network"))
    # Five images under three views: fifteen rows, which neither two nor four devices divide.
    bases = lambda rows, n: factored(fit_pca(rows.reshape(len(rows), -1), n))
    small = draw(40, 4, 4, 1)
    start = init_distilled(images[:5], draw(3, 5, WIDTH, seed=2), layout, image_store=bases(small, 7), repr_store=bases(reprs, 4))
    start = compress(start, layout, init_networks(jax.random.key(3), 1, 4, 3))

    def quick(learner):
        # One random call: drawing every layer apart takes most of a step's compilation.
        variables = learner.init(jax.random.key(0))
        flat, unravel = ravel_pytree(variables["params"])
        return learner._replace(init=lambda key: {**variables, "params": unravel(0.3 * jax.random.normal(key, flat.shape))})

    # Of eight channels on, a convolution is one on CPUs too, see nets/conv.py.
    learner = quick(make_learner("convnet", (8, 8), SHAPE, WIDTH))
    settings = dict(kernel=feature_kernel(learner), inner_optimizer=optax.sgd(0.05, 0.9))
    found, programs = {}, {}

    def run(name, state, step, axes, args, mesh, tables=(images, reprs), num_rows=16, steps=2, per_dispatch=1):
        shape = np.atleast_1d(num_rows)
        pick = (lambda number, *args: (jax.random.randint(jax.random.key(number), shape, 0, 64),) * len(tables)) if tables else None
        loop = Loop(step, axes, per_dispatch, pick, devices=mesh)
        done = loop.run(state, steps, args, display=Display(), name=name, tables=tables)
        assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(done))
        (program,) = loop.compiled.values()
        programs[name] = program.as_text()
        found.update({name + jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(done)})
        return done

    def outer(name, members, pool, **kwargs):
        mesh = make_devices(pool)
        optimizer = optax.sgd(0.1)
        state = init_outer(jax.random.key(4), start, optimizer=optimizer, pool_size=4, **settings)
        state = state.replace(pool=state.pool.replace(age=jnp.array([0, 1, 2, 1], jnp.int32)))
        of_mesh = {"kernel": feature_kernel(learner, ridge=1e-2, shard=placement(mesh))}
        step = make_outer_step(optimizer=optimizer, max_age=2, members_per_step=members, shard=placement(mesh), **{**settings, **of_mesh})
        one = lambda state, number, batch, seed: step(state, *batch, jax.random.fold_in(jax.random.key(5), number))
        return run(name, stack([state]), one, (0,), (jnp.array([0]),), mesh, **kwargs), mesh

    outer("one member", 1, 1)
    outer("two members", 2, min(count, 2))
    # Of a step that depends on every number of the batch and on its place.
    weights = draw(16, 1, 1, 1, seed=9)
    regress = lambda state, number, batch, _: (0.9 * state + jnp.sum(weights * batch[0]) + batch[1].sum(), {"loss": state})
    for name, rows, length in (("table", jnp.asarray, 1), ("disk", OnDisk, 1), ("disk, two at once", OnDisk, 2)):
        data = (rows(np.asarray(images)), rows(np.asarray(reprs)))
        run(name, jnp.zeros((1,)), regress, (0,), (jnp.array([0]),), make_devices(), tables=data, per_dispatch=length)
    # Class by class: three classes of four rows, which no number of devices divides, and four classes of three.
    for classes in (3, 4):
        weights = draw(classes, 12 // classes, 1, 1, 1, seed=9)
        by_class = lambda state, number, batch, _: (0.9 * state + jnp.sum(weights * batch[0]) + batch[1].sum(), {"loss": state})
        for name, rows in (("table", jnp.asarray), ("disk", OnDisk)):
            data = (rows(np.asarray(images)), rows(np.asarray(reprs)))
            drawn = dict(tables=data, num_rows=(classes, 12 // classes))
            run(f"{name}, {classes} classes", jnp.zeros((1,)), by_class, (0,), (jnp.array([0]),), make_devices(), **drawn)
    mesh = make_devices()
    state = stack([init_outer(jax.random.key(4), start, optimizer=optax.sgd(0.1), pool_size=2, **settings)])
    warm_up = make_warm_up_step(shard=placement(mesh), **settings)
    one = lambda state, number, ages: warm_up(state, number % 2, ages, jax.random.key(number))
    run("warm up", state, one, (None,), (jnp.array([2, 1], jnp.int32),), mesh, tables=())

    optimizer, probe_optimizer = optax.sgd(0.01), optax.sgd(0.1)
    encoder, projector = quick(make_learner("convnet", (8, 8), SHAPE, 0, pooled=True)), Projector(16, 1)
    probe = init_probe(jax.random.key(7), 8, 3, probe_optimizer)
    state = stack([init_teacher(jax.random.key(6), encoder, projector, 8, optimizer, probe)])
    view = AugmentSpec(jitter=0.0, gray=0.0, flip=0.5)
    settings = dict(encoder=encoder, projector=projector, optimizer=optimizer, probe_optimizer=probe_optimizer)
    step = make_teacher_step(views=(view, view), normalize=lambda x: x, **settings)
    unit, labels = jax.nn.sigmoid(images), jnp.arange(64) % 3
    one = lambda state, number, batch, seed: step(state, batch[0], jax.random.fold_in(jax.random.key(8), number), batch[1])
    run("teacher", state, one, (0,), (jnp.array([0]),), make_devices(), tables=(unit, labels))
    np.savez(out + ".npz", **found)
    json.dump(programs, open(out + ".json", "w"))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one, two and four devices make of the same steps, and the programs that they run."""
    folder, found = tmp_path_factory.mktemp("devices"), {}

    def start(count):
        # Compiling takes most of the time.
        flags = (
            f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
        )
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": flags}
        command = [sys.executable, "-c", PROGRAM, str(folder / f"{count}")]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    for count, process in {count: start(count) for count in (1, 2, 4)}.items():
        error = process.communicate()[1]
        assert process.returncode == 0, error
        with np.load(folder / f"{count}.npz") as file:
            found[count] = dict(file), json.loads((folder / f"{count}.json").read_text())
    return found


@pytest.mark.chaos
@pytest.mark.parametrize("count", [2, 4])
def test_devices_agree_with_one(count, runs):
    one, many = runs[1][0], runs[count][0]
    assert one.keys() == many.keys()
    for name in one:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.chaos
def test_rows_from_disk_make_the_same_steps_as_rows_on_the_device(runs):
    for count in (1, 2, 4):
        found = runs[count][0]
        assert found["table"] != 0
        for other in ("disk", "disk, two at once"):
            np.testing.assert_allclose(found[other], found["table"], rtol=1e-5)
        for classes in (3, 4):
            np.testing.assert_allclose(found[f"disk, {classes} classes"], found[f"table, {classes} classes"], rtol=1e-5)


def convolved_rows(program):
    """Return the leading axes of what the convolutions of a program make: rows, of those that are no gradients of kernels."""
    return {int(rows) for rows in re.findall(r"= f32\[(\d+),\d+,\d+,\d+\]\S* convolution\(", program)}


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["one member", "warm up", "teacher"])
def test_every_device_convolves_its_share_of_the_rows(name, runs):
    # Sixteen real or teacher's rows, and fifteen support rows, filled up.
    whole = {"one member": {15, 16}, "warm up": {15}, "teacher": {16}}[name]
    assert whole <= convolved_rows(runs[1][1][name])
    for count in (2, 4):
        rows = convolved_rows(runs[count][1][name])
        assert 16 // count in rows
        assert not whole & rows


@pytest.mark.chaos
@pytest.mark.parametrize("name", ["one member", "two members", "warm up", "teacher"])
def test_devices_sum_their_gradients_and_one_device_sums_nothing(name, runs):
    assert "all-reduce" not in runs[1][1][name]
    for count in (2, 4):
        assert "all-reduce" in runs[count][1][name]


def spec_of(**sections):
    config = default_config()
    for section, values in sections.items():
        config[section].update(values)
    return to_spec(config)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        ({"outer": {"batch_size": 130}}, r"config\.outer\.batch_size is 130, expected a multiple of the 4 devices .* 128 is the nearest"),
        ({"teacher": {"batch_size": 3}}, r"config\.teacher\.batch_size is 3, .* 4 is the nearest"),
        ({"devices": {"pool": 3}}, r"config\.devices\.pool is 3, expected a divisor of the 4 devices"),
        ({"devices": {"pool": 2}}, r"config\.devices\.pool is 2, .* config\.pool\.members_per_step \(1\)"),
    ],
)
def test_what_cannot_be_spread_evenly_is_refused(sections, line, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    with pytest.raises(InputError, match=line):
        check_batches(spec_of(**sections))


def test_one_device_has_no_mesh():
    assert devices.make_devices() is None
    assert check_batches(spec_of(outer={"batch_size": 131})) is None
