"""Where arrays lie on several devices, as a function that the pure core is handed."""

from collections.abc import Callable
from typing import Any

Shard = Callable[[str, Any], Any]
"""(axis, tree) -> the tree, its leaves' leading axis sharded over devices: "data" for rows, "pool" for members; "whole" replicates it.

It changes no value.
"""


def unsharded(axis: str, tree: Any) -> Any:
    """Leave a tree where it is: the placement on one device."""
    return tree


def replicate_then_shard(shard: Shard, rows: Any) -> Any:
    """Shard support rows that every device expands on its own: rotating sharded images would cause traffic between devices."""
    return shard("data", shard("whole", rows))
