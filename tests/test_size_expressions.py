"""Expressions of sizes: their form, their value, and their replacement by definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.registry.evidence import size_expressions
from onward.registry.evidence.size_expressions import known, names, normal, replace, value

SIZES = {"a": 6, "b": 4}
trees = st.recursive(
    st.sampled_from(["a", "b"]) | st.integers(0, 9).map(str),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "//", "/"]), inner).map(
        lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"
    ),
)


@given(trees)
def test_a_value_is_that_of_python_if_every_division_is_exact(text: str) -> None:
    try:
        wanted = eval(text, {}, dict(SIZES))  # the text is made here
    except ZeroDivisionError:
        wanted = None
    got = value(text, SIZES)
    if got is not None:
        assert got == wanted
    else:
        assert "/" in text
    assert value(normal(text), SIZES) == got


@given(trees, trees)
def test_replacing_a_name_gives_the_value_of_its_definition(text: str, definition: str) -> None:
    inner = value(definition, SIZES)
    if inner is None or inner < 0:
        return
    assert value(replace(text.replace("a", "c"), {"c": definition}), SIZES) == value(text, SIZES | {"a": inner})


def test_names_are_listed_once_in_order() -> None:
    assert sorted(names("(height + width) // 2 * height")) == ["height", "width"]


@pytest.mark.parametrize("text", ["", "a +", "a ** 2", "f(a)", "a.b", "1.5 * a", "a if b else 1", "-a", "'a'", "a[0]"])
def test_other_texts_are_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        normal(text)
    assert known(text, SIZES) is None


def test_a_size_that_is_defined_by_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="a is defined by itself: a -> b -> a"):
        replace("a", {"a": "b + 1", "b": "a - 1"})


def test_a_division_with_a_remainder_has_no_value() -> None:
    assert value("a / 4", SIZES) is None
    assert value("a // 4", SIZES) == 1
    assert value("a // (b - 4)", SIZES) is None
    assert value("c + 1", SIZES) is None
    assert size_expressions.is_name("past")
    assert not size_expressions.is_name("past + new")
