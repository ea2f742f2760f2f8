"""Rules of the source: no hidden randomness."""

import ast
from pathlib import Path

import pytest

import wx_estimators

FILES = sorted(Path(wx_estimators.__file__).parent.glob("*.py"))
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "normal_", "uniform_", "bernoulli", "multinomial"}
DRAWS |= {"rand_like", "randn_like", "randint_like", "exponential_", "manual_seed", "seed"}


def hidden_randomness(source):
    """Calls that read or write a global random state."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        given = any(keyword.arg == "generator" for keyword in node.keywords)
        if owner in ("np.random", "numpy.random", "random") or (name in DRAWS and not given):
            if name == "manual_seed" and owner == "generator":
                continue
            yield f"line {node.lineno}: {owner}.{name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_global_random_state(path):
    assert list(hidden_randomness(path.read_text())) == []


@pytest.mark.parametrize(
    "line", ["torch.randn(3)", "np.random.normal()", "x.normal_()", "torch.manual_seed(0)"]
)
def test_the_rule_can_fail(line):
    assert list(hidden_randomness(line))


def test_public_names_are_importable_and_sorted_out():
    assert all(hasattr(wx_estimators, name) for name in wx_estimators.__all__)
    assert len(set(wx_estimators.__all__)) == len(wx_estimators.__all__)
