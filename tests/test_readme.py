import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


def test_the_library_example_of_the_readme_runs(capsys):
    *_, example = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert "make_outer_step" in example
    exec(example, {})
    assert float(capsys.readouterr().out) > 0


@pytest.mark.parametrize("target", ["demo", "test", "test-oldest", "lint"])
def test_the_commands_of_the_readme_are_targets_of_the_makefile(target):
    assert re.search(rf"^{target}:", (README.parent / "Makefile").read_text(), re.MULTILINE)
