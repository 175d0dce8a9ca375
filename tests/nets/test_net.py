import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from ssdd_jax.errors import InputError
from ssdd_jax.nets import NETS, Net, make_learner, net_widths, student_learner
from ssdd_jax.nets.layers import Linear
from ssdd_jax.settings.parse import to_spec
from ssdd_jax.settings.presets import default_config, six_students
from ssdd_jax.settings.spec import NetSpec


class Toy(nn.Module):
    """A linear layer on the images."""

    widths: tuple[int, ...]
    num_outputs: int

    @nn.compact
    def __call__(self, x, train=False):
        features = nn.relu(nn.Dense(self.widths[-1])(x.reshape(len(x), -1)))
        return features, Linear(self.num_outputs)(features) if self.num_outputs else features


@pytest.fixture
def toy():
    NETS.register("toy", Net(lambda widths, num_outputs, pooled: Toy(widths, num_outputs), lambda shape: (6,), num_widths=1))
    yield
    NETS.remove("toy")


@pytest.mark.parametrize("name", NETS)
def test_a_row_is_a_network_whose_published_widths_fit(name):
    net = NETS[name]
    assert isinstance(net, Net)
    for side in (32, 64, 224):
        widths = net.published_widths((side, side, 3))
        assert net.num_widths in (0, len(widths))
        assert net.problem(widths, (side, side, 3)) == ""
    assert net.recipe == ("vit" if name == "vit" else "default")


def test_a_network_from_outside_works_by_its_name(toy, key):
    assert net_widths("toy", (), (8, 8, 1), 0.5) == (3,)
    learner = make_learner("toy", (), (8, 8, 1), 4)
    variables = learner.init(key)
    assert learner.apply(variables, jnp.zeros((2, 8, 8, 1))).shape == (2, 4)
    assert jax.tree.leaves(variables["batch_stats"]) == []
    with pytest.raises(ValueError, match=r"toy got 2 widths \(1, 2\), expected 1"):
        make_learner("toy", (1, 2), (8, 8, 1), 4)


def config_with_toy():
    config = default_config()
    config.evaluation.students = {"mine": {"net": "toy"}}
    config.student.net = "toy"
    config.student.widths = ()
    return config


def test_a_network_from_outside_is_a_student_of_a_config(toy):
    spec = to_spec(config_with_toy())
    assert (spec.student.net, spec.evaluation.students["mine"].net) == ("toy", "toy")
    assert student_learner(NetSpec("toy"), (8, 8, 1), 4).init(jax.random.key(0))["params"]


def test_a_network_that_nobody_has_registered_is_named():
    with pytest.raises(InputError, match=r"config\.\S*net is 'toy', expected one of convnet, .*vit"):
        to_spec(config_with_toy())
    with pytest.raises(ValueError, match=r"net is 'conv', expected one of convnet, .*; did you mean 'convnet'"):
        make_learner("conv", (), (8, 8, 1), 4)


def test_the_six_students_of_the_paper_stay_six(toy):
    assert len(six_students()) == 6
