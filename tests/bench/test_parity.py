import pytest

pytest.importorskip("torch")

from experiments.bench.parity import SETS, parity


def test_one_step_in_pytorch_is_our_step():
    found = parity()
    assert len(found) == 2 * len(SETS)
    for name, errors in found.items():
        assert max(errors.values()) < 1e-3, name
