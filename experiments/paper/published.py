"""Numbers of the paper: linear evaluation, in percent, of students pretrained on sets of CIFAR-100 (Yu, Yao and Chiu, ICLR 2025)."""

STUDENTS = ("convnet", "vgg11", "resnet18", "alexnet", "mobilenet", "vit")
TARGETS = ("cifar100", "cifar10", "cub200", "dogs")
BUDGETS = (25, 50, 100, 1000, 5000)


def _table(columns, rows):
    return {method: dict(zip(columns, numbers, strict=True)) for method, numbers in rows.items()}


# N = 100.
CROSS_ARCHITECTURE = _table(
    STUDENTS,
    {
        "random": (43.66, 23.76, 19.26, 28.82, 11.99, 20.70),
        "dsa": (39.38, 19.97, 20.11, 31.57, 9.58, 20.03),
        "idm": (38.71, 14.24, 19.05, 33.71, 8.18, 17.41),
        "datm": (38.73, 26.04, 21.20, 29.31, 10.17, 20.11),
        "krr_st": (47.00, 27.78, 18.92, 31.27, 10.11, 20.82),
        "ours": (52.41, 35.35, 20.90, 36.88, 24.14, 23.33),
    },
)
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
OVER_BUDGETS = _table(
    BUDGETS,
    {
        "random": (41.61, 41.80, 43.66, 49.82, 52.76),
        "dsa": (None, None, 39.38, 36.16, 36.25),
        "idm": (None, None, 38.71, 37.21, 42.19),
        "datm": (None, None, 38.73, 44.98, 46.23),
        "krr_st": (44.06, 45.79, 47.00, 51.89, 52.49),
        "ours": (51.41, 52.08, 52.41, 53.54, 55.53),
    },
)
# N = 100: bases without views, and all of the method.
ABLATION = _table(("convnet",), {"krr_st": (47.00,), "basis": (48.57,), "ours": (52.41,)})
