"""Inert stand-ins for what a file of weights holds besides plain numbers, names and containers."""


def _ignore(*_: object, **__: object) -> None:
    pass


class StandIn:
    """Stands for an object of a class that is not read; it accepts whatever a pickle hands to such an object and keeps nothing.

    Attributes:
        name: what the file calls the class or function, such as 'argparse.Namespace', cut to 200 characters.
    """

    __slots__ = ()
    name = ""

    def __new__(cls, *_: object, **__: object) -> "StandIn":
        """Make one from any arguments."""
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object):
        pass

    def __call__(self, *_: object, **__: object) -> "StandIn":
        """Stand for the result as well: bound methods and partial functions are pickled as calls of what a call returned."""
        return self

    def __repr__(self) -> str:
        return f"an object of {self.name}"

    # State, items and elements. They take any arguments, since a pickle may also call them on the class.
    __setstate__ = __setitem__ = append = extend = add = _ignore


def stand_in(name: str) -> type[StandIn]:
    """Return a new class of stand-ins: a pickle can change nothing that another file's would see."""
    return type("StandIn", (StandIn,), {"__slots__": (), "name": name[:200]})
