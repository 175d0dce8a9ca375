"""Numbers of the paper: linear evaluation, in percent, of students pretrained on sets of CIFAR-100 (Yu, Yao and Chiu, ICLR 2025)."""

from configs.cifar100 import CROSS_ARCHITECTURE as AT_100
from configs.cifar100 import OVER_BUDGETS as CONVNET
from configs.cifar100 import STUDENTS

TARGETS = ("cifar100", "cifar10", "cub200", "dogs")
BUDGETS = tuple(CONVNET)


def _table(columns, rows):
    return {method: dict(zip(columns, numbers, strict=True)) for method, numbers in rows.items()}


# N = 100.
CROSS_ARCHITECTURE = _table(STUDENTS, AT_100)
DOWNSTREAM = _table(
    TARGETS,
    {
        "random": (43.66, 68.56, 8.88, 12.18),
        "dsa": (39.38, 65.67, 6.89, 9.97),
        "idm": (38.71, 64.45, 7.09, 9.56),
        "datm": (38.73, 66.17, 6.73, 9.70),
        "krr_st": (47.00, 72.14, 10.43, 13.42),
        "ours": (52.41, 76.83, 12.24, 15.34),
    },
)
# None where a method needs an image of each class and the budget does not hold one.
OVER_BUDGETS = {method: {n: CONVNET[n].get(method) for n in BUDGETS} for method in AT_100}
# N = 100: bases without views, and all of the method.
ABLATION = _table(("convnet",), {"krr_st": (47.00,), "basis": (48.57,), "ours": (52.41,)})
