"""Which runs a table needs: calls of `python -m ssdd_jax.main`, each in the folder of its budget, where tables find each other's rows."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.paper.published import BUDGETS, TARGETS

TABLES = ("cross_architecture", "downstream", "budgets", "ablation", "figure")
PAPER_ROWS = ("random", "dsa", "idm", "datm", "krr_st", "ours")
CONTROL_ROWS = ("kmeans", "herding", "raw_small", "basis")
# Ours without the paper's settings: nothing is set but N, and storage is counted in bits.
BEYOND_ROWS = ("auto",)
CURVES = ("random", "kmeans", "krr_st", "raw_small", "basis", "ours", *BEYOND_ROWS)
AT_MAIN = (*PAPER_ROWS, *CONTROL_ROWS, *BEYOND_ROWS)
ABLATION_ROWS = ("krr_st", "raw_small", "basis_init", "basis", "stored_views", "no_bases", "ours")
OF_LABELS = ("dsa", "idm", "datm")
ROWS = tuple(dict.fromkeys((*PAPER_ROWS, *CONTROL_ROWS, *ABLATION_ROWS, *BEYOND_ROWS)))
# Of the configs for two cores; the paper's are in `published`.
SMALL_BUDGETS, SMALL_MAIN = (10, 20, 50, 100, 200), 50
SMALL_BASES = 30
"""Below this budget the configs for two cores have the bases of N = 10, else those of N = 50."""


@dataclass(frozen=True)
class Scale:
    """Where the settings come from, and which budgets there are.

    Attributes:
        name: 'paper' or 'cpu'.
        data: 'cifar100', 'fashion_mnist', or KIND:ARGUMENT as `config.data.source` takes it.
        main: N of the tables that have one.
        budgets: N of the table over budgets.
        targets: what students are evaluated on besides: config.evaluation.datasets, as flags.
        smoke: whether everything is as small as can be.
    """

    name: str
    data: str
    main: int
    budgets: tuple[int, ...]
    targets: tuple[str, ...] = ()
    smoke: bool = False

    def base(self, num_pairs: int) -> tuple[str, str]:
        """Return the config of a budget, with the settings found for it or for one nearby, and the data source, if another."""
        if self.name == "paper":
            own = self.data if ":" not in self.data else "cifar100"
            variant = f":n{num_pairs}" if own == "cifar100" and num_pairs in BUDGETS and num_pairs != 100 else ""
        else:
            own = "fashion_mnist" if self.data == "fashion_mnist" else "arrays"
            variant = ":cpu" if own == "fashion_mnist" else ":n50" if num_pairs >= SMALL_BASES else ":paper"
        return own + (":smoke" if self.smoke else variant), self.data if own != self.data else ""


def scale_of(name: str, data: str, main: int, budgets: Sequence[int], targets: Sequence[str], smoke: bool) -> Scale:
    """Return the scale with the defaults of whatever is not given."""
    paper = name == "paper"
    return Scale(
        name,
        data,
        main or (100 if paper else SMALL_MAIN),
        tuple(budgets) or (BUDGETS if paper else SMALL_BUDGETS),
        tuple(targets) or (TARGETS[1:] if paper and data == "cifar100" else ()),
        smoke,
    )


def label_of(source: str) -> str:
    """Return the name of a data source in tables: that of its file or folder, or its own.

    Example:
        >>> label_of("arrays:data/emoji-99.npz")
        'emoji_99'
    """
    return re.sub(r"\W", "_", Path(source.partition(":")[2] or source).stem)


@dataclass(frozen=True)
class Run:
    """One call of the program.

    Attributes:
        num_pairs: N, which names the folder.
        methods: rows.
        students: students by name; () takes all that the config has.
        targets: whether students are evaluated on the other datasets too.
        seeds: seeds.
    """

    num_pairs: int
    methods: tuple[str, ...]
    students: tuple[str, ...] = ("convnet",)
    targets: bool = False
    seeds: tuple[int, ...] = (0,)

    @property
    def folder(self) -> str:
        """Return the name of the run's workdir; tables share it."""
        return f"n{self.num_pairs}"

    def settings(self, scale: Scale, size: int, channels: int) -> dict[str, Any]:
        """Return what `experiments/paper/config.py` reads; targets are converted to the size and channels of the source."""
        base, source = scale.base(self.num_pairs)
        targets = {label_of(target): target for target in scale.targets}
        return {
            "base": base,
            "source": source,
            "num_pairs": self.num_pairs,
            "methods": self.methods,
            "students": self.students,
            "seeds": self.seeds,
            "targets": targets if self.targets else {},
            "size": size,
            "channels": channels,
        }


def runs_of(table: str, scale: Scale) -> Iterator[Run]:
    """Yield the runs of a table, each with one seed, in the order of what they tell."""
    main = scale.main
    if table == "cross_architecture":
        yield Run(main, AT_MAIN, students=())
    elif table == "downstream":
        yield Run(main, AT_MAIN, targets=True)
    elif table == "ablation":
        yield Run(main, ABLATION_ROWS)
    elif table == "figure":
        yield Run(main, ("krr_st", "basis", "ours"))
    else:
        for num_pairs in sorted(scale.budgets, key=lambda n: (n != main, n)):
            yield Run(num_pairs, (*CURVES, *OF_LABELS))


def all_runs(tables: Sequence[str], scale: Scale, seeds: Sequence[int], skipped: Sequence[str] = ()) -> list[Run]:
    """Return the runs of some tables without the skipped rows, the first seed of all before the second of any."""
    found = []
    for count in range(1, len(seeds) + 1):
        for table in tables:
            for run in runs_of(table, scale):
                methods = tuple(name for name in run.methods if name not in skipped)
                found.append(replace(run, methods=methods, seeds=tuple(seeds[:count])))
    return list(dict.fromkeys(run for run in found if run.methods))
