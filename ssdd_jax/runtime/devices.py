"""Many devices: one mesh, and how arrays are sharded over it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ssdd_jax.compat import make_mesh
from ssdd_jax.core.sharding import Shard, unsharded
from ssdd_jax.errors import InputError
from ssdd_jax.runtime import hosts
from ssdd_jax.settings.spec import DevicesSpec

AXES = ("pool", "data")


@dataclass(frozen=True)
class Devices:
    """A mesh of all devices, "pool" x "data": members are sharded over the first axis, rows over the second.

    A loop takes and returns arrays of this process; in between they lie on the mesh, with a copy of the state on every device.
    """

    mesh: Mesh

    def shard(self, axis: str, tree: Any) -> Any:
        """Shard the leading axis of the leaves over an axis of the mesh, or replicate; works under jit and vmap. See `core.sharding.Shard`.

        The number of rows need not be a multiple of the devices: XLA pads them.
        """
        return jax.lax.with_sharding_constraint(tree, self.whole if axis == "whole" else self._sharding(axis))

    @property
    def whole(self) -> NamedSharding:
        """Return the sharding that puts a full copy on every device."""
        return self._sharding()

    def replicate(self, tree: Any) -> Any:
        """Copy arrays of this process, equal in all processes, to every device."""
        return jax.tree.map(self._replicate, tree)

    def own_rows(self, size: int) -> np.ndarray:
        """Return which of a batch's rows lie on devices of this process, in order; all of them where they cannot be divided evenly."""
        slices = self._of_rows(size).addressable_devices_indices_map((size,)).values()
        return np.unique(np.concatenate([np.arange(size)[index] for index in slices if index is not None]))

    def spread_rows(self, batches: tuple[np.ndarray, ...], sizes: Sequence[int], axis: int) -> tuple[jax.Array, ...]:
        """Return batches, sharded over "data" where that is even, given this process's rows and the sizes over all processes."""
        return tuple(self._spread_rows(own, size, axis) for own, size in zip(batches, sizes, strict=True))

    def of_processes(self, value: int) -> jax.Array:
        """Return this process's number and those of the others, one per device."""
        copies = [jax.device_put(np.full(1, value, np.int32), device) for device in self.mesh.local_devices]
        spread = NamedSharding(self.mesh, PartitionSpec(AXES))
        return jax.make_array_from_single_device_arrays((self.mesh.size,), spread, copies)

    @staticmethod
    def local(tree: Any) -> Any:
        """Undo `replicate`."""
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def _sharding(self, *spec: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def _spread_rows(self, own: np.ndarray, size: int, axis: int) -> jax.Array:
        rows = self.own_rows(size)
        # Indices refer to the complete batch, but only this process's rows are here.
        within = lambda index: np.take(own, np.searchsorted(rows, np.arange(size)[index[axis]]), axis)
        shape = (*own.shape[:axis], size, *own.shape[axis + 1 :])
        return jax.make_array_from_callback(shape, self._of_rows(size, axis), within)

    def _of_rows(self, size: int, axis: int = 0) -> NamedSharding:
        """Return the sharding of an axis of `size` rows."""
        return self._sharding(*[None] * axis, "data") if size % self.mesh.shape["data"] == 0 else self.whole

    def _replicate(self, leaf: Any) -> jax.Array:
        # jax may use numpy's memory directly as a device buffer, and that must not be given away with a donated state.
        leaf = leaf if isinstance(leaf, jax.Array) else jnp.array(leaf)
        # If the leaf is already on one of the devices, its buffer is used.
        copies = [jax.device_put(leaf, device) for device in self.mesh.local_devices]
        return jax.make_array_from_single_device_arrays(np.shape(leaf), self.whole, copies)


def on_cpu() -> bool:
    """Return whether steps run on a CPU."""
    return jax.default_backend() == "cpu"


def placement(devices: Devices | None) -> Shard:
    """Return the `Shard` of a mesh, or of one device."""
    return unsharded if devices is None else devices.shard


def make_devices(pool: int = 1) -> Devices | None:
    """Return the mesh of all devices with `pool` of them along "pool", or None for a single device, which needs no mesh.

    It is also None where one of several processes works alone.
    """
    count = jax.device_count()
    return None if count == 1 or hosts.is_alone() else Devices(make_mesh((pool, count // pool), AXES))


def pool_axis(spec: DevicesSpec, members_per_step: int) -> int:
    """Return how many devices lie along "pool" in the outer loop.

    Raises:
        InputError: `config.devices.pool` does not divide the devices and the members of a step.
    """
    count, pool = jax.device_count(), spec.pool
    if count % pool or members_per_step % pool:
        raise InputError(
            f"config.devices.pool is {pool}, expected a divisor of the {count} devices and of "
            f"config.pool.members_per_step ({members_per_step}); "
            "1 shards only rows"
        )
    return pool
