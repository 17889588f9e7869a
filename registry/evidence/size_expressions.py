"""Sizes that follow from other sizes, as params.yaml writes them: `past + new`, `height / 4`, `(width + 1) // 2`.

Names, whole numbers, brackets and `+ - * / //` may be used. `//` rounds down. `/` must divide without a remainder.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Mapping

_ALLOWED = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv)


def is_name(text: str) -> bool:
    """Whether a text is the name of a dimension and not an expression."""
    return text.isidentifier() and re.fullmatch(r"[A-Za-z_]\w*", text) is not None


def normal(text: str) -> str:
    """Write an expression in one normal form, with single spaces and only the brackets that are needed.

    Args:
        text: The expression.

    Raises:
        ValueError: It is not an expression of names, whole numbers, brackets and `+ - * / //`.
    """
    return ast.unparse(_parsed(text))


def names(text: str) -> list[str]:
    """The names of the dimensions in an expression, each once, in order."""
    return list(dict.fromkeys(node.id for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name)))


def replace(text: str, definitions: Mapping[str, str]) -> str:
    """Replace names by their own expressions.

    Args:
        text: The expression.
        definitions: Expressions by name. A definition may use other defined names.

    Raises:
        ValueError: An expression is invalid, or a name is defined by itself.
    """

    def swap(node: ast.expr, above: tuple[str, ...]) -> ast.expr:
        if isinstance(node, ast.Name) and node.id in definitions:
            if node.id in above:
                raise ValueError(f"{node.id} is defined by itself: {' -> '.join([*above, node.id])}")
            return swap(_parsed(definitions[node.id]), (*above, node.id))
        if isinstance(node, ast.BinOp):
            return ast.BinOp(swap(node.left, above), node.op, swap(node.right, above))
        return node

    return ast.unparse(swap(_parsed(text), ()))


def value(text: str, sizes: Mapping[str, int]) -> int | None:
    """Compute the size that an expression gives.

    Args:
        text: The expression.
        sizes: Sizes by name.

    Returns:
        The size; None if a `/` leaves a remainder, a divisor is 0, or a name has no size.
    """

    def of(node: ast.expr) -> int | None:
        if isinstance(node, ast.Name):
            return sizes.get(node.id)
        if isinstance(node, ast.BinOp):
            left, right = of(node.left), of(node.right)
            if left is None or right is None:
                return None
            if isinstance(node.op, (ast.Div, ast.FloorDiv)):
                exact = right != 0 and (isinstance(node.op, ast.FloorDiv) or left % right == 0)
                return left // right if exact else None
            return {ast.Add: left + right, ast.Sub: left - right}.get(type(node.op), left * right)
        assert isinstance(node, ast.Constant)
        return int(str(node.value))

    return of(_parsed(text))


def known(text: str, sizes: Mapping[str, int]) -> int | None:
    """As `value`, for the text of a dimension in any graph: None if it is no expression."""
    try:
        return value(text, sizes)
    except ValueError:
        return None


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> ast.expr:
    wrong = ValueError(f"{text!r} is not a size: use dimension names, whole numbers, brackets and + - * / //")
    try:
        found = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    waiting = [found]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.BinOp) and isinstance(node.op, _ALLOWED):
            waiting += [node.left, node.right]
        elif isinstance(node, ast.Constant):
            if type(node.value) is not int:
                raise wrong
        elif not (isinstance(node, ast.Name) and is_name(node.id)):
            raise wrong
    return found
