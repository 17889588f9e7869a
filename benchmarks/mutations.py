"""Small faults for a Python file, one at a time. benchmarks/mutants.py checks that tests find them.

    for mutant in mutants(source):
        mutant.source        # the whole file with that one fault
        mutant.name          # "find: …if entry.number == number:… -> …if (entry.number != (number)):…"

A fault is one of these:

- a comparison that is inverted or moved at its boundary;
- an operand, a condition, a filter, an argument, an item of a dictionary or a statement that is left out;
- another number, boolean, operator or function;
- a result that is None, or a loop that never runs.

Texts, such as messages of exceptions, are not changed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

_OTHER = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==", ast.In: "not in",
    ast.NotIn: "in", ast.Is: "is not", ast.IsNot: "is",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*",
    ast.BitAnd: "|", ast.BitOr: "&", ast.And: "or", ast.Or: "and",
}  # fmt: skip
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any", "sorted": "list", "abs": "float"}
# Arguments and calls without an effect at run time.
_NO_BEHAVIOUR = {"frozen", "TypeVar", "arbitrary_types_allowed"}
_HIDDEN = {"__str__", "__repr__"}
_AROUND = 25


@dataclass(frozen=True)
class Mutant:
    """A file with one fault.

    Attributes:
        name: the function and the replaced text, unique in the file.
        source: the whole text of the file.
        line: number of the changed line.
        lines: first and last line of the changed statement; None outside functions.
    """

    name: str
    source: str
    line: int
    lines: tuple[int, int] | None


def mutants(source: str, texts: frozenset[str] = frozenset()) -> Iterator[Mutant]:
    """Yield every file that differs from `source` by one fault.

    Args:
        source: the text of a Python file.
        texts: names of functions that only compose messages, and are left out.
    """
    lines = source.splitlines(keepends=True)
    content = source.encode()
    seen: dict[str, int] = {}
    for node, text, scope, statement in _Faults(texts).of(ast.parse(source)):
        start = _offset(lines, node.lineno, node.col_offset)
        end = _offset(lines, node.end_lineno or node.lineno, node.end_col_offset or 0)
        changed = (content[:start] + text.encode() + content[end:]).decode()
        name = f"{scope}: {_difference(source, changed)}"
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name += f" ({seen[name]})"
        yield Mutant(name, changed, node.lineno, _span(statement) if scope != "module" else None)


def _difference(old: str, new: str) -> str:
    """The replaced and the new text with some context, so that the name does not depend on line numbers."""
    start = next(n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b)
    rest = zip(reversed(old[start:]), reversed(new[start:]), strict=False)
    same = next((n for n, (a, b) in enumerate(rest) if a != b), min(len(old), len(new)) - start)
    before = old[max(0, start - _AROUND) : start].rpartition("\n")[2]
    after = old[len(old) - same :][:_AROUND].partition("\n")[0]
    shown = [" ".join(f"{before}{text[start : len(text) - same]}{after}".split()) for text in (old, new)]
    return " -> ".join(f"…{text}…" for text in shown)


def _offset(lines: list[str], line: int, column: int) -> int:
    return len("".join(lines[: line - 1]).encode()) + column


def _span(statement: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, the head of a compound statement, or the whole function of a default argument."""
    if isinstance(statement, ast.FunctionDef):
        return statement.lineno, statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else statement.end_lineno or statement.lineno
    return statement.lineno, max(statement.lineno, last)


Fault = tuple[ast.expr | ast.stmt, str, str, ast.stmt]


class _Faults:
    def __init__(self, texts: frozenset[str]) -> None:
        self._hidden = _HIDDEN | texts

    def of(self, tree: ast.Module) -> Iterator[Fault]:
        """Yield the faults of a module."""
        for statement in tree.body:
            yield from self._statement(statement, "module", set())

    def _statement(self, node: ast.stmt, scope: str, known: set[str]) -> Iterator[Fault]:
        """Yield the faults of a statement. `known` are the names that are bound before it."""
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.Pass | ast.Global | ast.Nonlocal):
            return
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield from self._definition(node)
            return
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
            return
        for text in _statement_faults(node, known):
            yield node, text, scope, node
        if isinstance(node, ast.If | ast.While):
            for value in ("True", "False") if isinstance(node, ast.If) else ("False",):
                yield node.test, value, scope, node
        if isinstance(node, ast.For):
            yield node.iter, "()", scope, node
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(node, ast.AnnAssign) and name == "annotation":
                    for call in (found for found in ast.walk(node.annotation) if isinstance(found, ast.Call)):
                        yield from self._expression(call, scope, node)
                elif isinstance(node, ast.Raise) or name in ("target", "targets"):
                    continue
                elif isinstance(child, ast.stmt):
                    yield from self._statement(child, scope, known)
                elif isinstance(child, ast.ExceptHandler):
                    for inner in child.body:
                        yield from self._statement(inner, scope, known)
                elif isinstance(child, ast.withitem):
                    yield from self._expression(child.context_expr, scope, node)
                elif isinstance(child, ast.expr) and not _is_docstring(node):
                    yield from self._expression(child, scope, node)
        known |= {
            found.id for found in ast.walk(node) if isinstance(found, ast.Name) and isinstance(found.ctx, ast.Store)
        }

    def _definition(self, node: ast.FunctionDef | ast.ClassDef) -> Iterator[Fault]:
        if node.name in self._hidden:
            return
        known: set[str] = set()
        if isinstance(node, ast.FunctionDef):
            known = {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
            for default in filter(None, (*node.args.defaults, *node.args.kw_defaults)):
                yield from self._expression(default, node.name, node)
        # Statements of a class outside its methods run when the module is imported, not in a test.
        inside = isinstance(node, ast.FunctionDef)
        for statement in node.body:
            nested = isinstance(statement, ast.FunctionDef | ast.ClassDef)
            yield from self._statement(statement, node.name if inside or nested else "module", known)

    def _expression(self, node: ast.AST, scope: str, statement: ast.stmt) -> Iterator[Fault]:
        if _is_text(node):
            return
        if isinstance(node, ast.Call) and _name(node.func) in _NO_BEHAVIOUR:
            return
        if isinstance(node, ast.keyword) and node.arg in _NO_BEHAVIOUR:
            return
        if isinstance(node, ast.expr):
            for text in _expression_faults(node):
                yield node, f"({text})" if not isinstance(node, ast.Constant) else text, scope, statement
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr_context | ast.operator | ast.cmpop | ast.boolop | ast.unaryop):
                yield from self._expression(child, scope, statement)


def _statement_faults(node: ast.stmt, known: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        yield "return None"
    elif isinstance(node, ast.Break):
        yield "pass"
    elif isinstance(node, ast.Continue):
        yield from ("pass", "break")
    elif isinstance(node, ast.Raise | ast.Delete | ast.Expr) and not _is_docstring(node):
        yield "pass"
    elif isinstance(node, ast.AugAssign):
        yield "pass"
        if other := _OTHER.get(type(node.op)):
            yield f"{ast.unparse(node.target)} {other}= {ast.unparse(node.value)}"
    elif isinstance(node, ast.Assign) and any(not isinstance(t, ast.Name) or t.id in known for t in node.targets):
        yield "pass"


def _expression_faults(node: ast.expr) -> Iterator[str]:
    """Yield faulty replacements of an expression."""
    if isinstance(node, ast.Compare):
        for n, operator in enumerate(node.ops):
            parts = [ast.unparse(node.left)]
            for m, (known, right) in enumerate(zip(node.ops, node.comparators, strict=True)):
                parts += [_OTHER[type(operator)] if m == n else _spelled(known), f"({ast.unparse(right)})"]
            yield " ".join(parts)
    elif isinstance(node, ast.BoolOp):
        operands = [f"({ast.unparse(value)})" for value in node.values]
        yield f" {_OTHER[type(node.op)]} ".join(operands)
        for n in range(len(operands)):
            yield (" or " if isinstance(node.op, ast.Or) else " and ").join(operands[:n] + operands[n + 1 :])
    elif isinstance(node, ast.UnaryOp):
        yield ast.unparse(node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OTHER:
        yield f"({ast.unparse(node.left)}) {_OTHER[type(node.op)]} ({ast.unparse(node.right)})"
    elif isinstance(node, ast.IfExp):
        yield from (ast.unparse(node.body), ast.unparse(node.orelse))
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield str(not node.value)
        elif isinstance(node.value, int):
            yield str(node.value + 1)
        elif isinstance(node.value, float):
            yield str(node.value * 1.5 or 1.0)
    elif isinstance(node, ast.Call):
        yield from _call_faults(node)
    elif isinstance(node, ast.Dict | ast.Set | ast.List):
        yield from _without_items(node)
    elif isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
        for n, generator in enumerate(node.generators):
            for condition in generator.ifs:
                kept = [other for other in generator.ifs if other is not condition]
                changed = ast.comprehension(generator.target, generator.iter, kept, generator.is_async)
                generators = [*node.generators[:n], changed, *node.generators[n + 1 :]]
                yield ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), "generators": generators}))
    elif (
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice) and (node.slice.lower or node.slice.upper)
    ):
        yield ast.unparse(node.value)


def _call_faults(node: ast.Call) -> Iterator[str]:
    """Yield the call without a named argument, without the last argument, and of another function."""
    for keyword in node.keywords:
        if keyword.arg not in _NO_BEHAVIOUR and not _is_text(keyword.value):
            kept = [other for other in node.keywords if other is not keyword]
            yield ast.unparse(ast.Call(node.func, node.args, kept))
    if len(node.args) > 1 and not node.keywords and not _is_text(node.args[-1]):
        yield ast.unparse(ast.Call(node.func, node.args[:-1], []))
    if other := _FUNCTIONS.get(_name(node.func)):
        arguments = node.args[:1] if other == "list" else node.args
        keywords = [] if other == "list" else node.keywords
        yield ast.unparse(ast.Call(ast.Name(other), arguments, keywords))


def _without_items(node: ast.Dict | ast.Set | ast.List) -> Iterator[str]:
    if isinstance(node, ast.Dict):
        for n in range(len(node.values)):
            yield ast.unparse(ast.Dict(node.keys[:n] + node.keys[n + 1 :], node.values[:n] + node.values[n + 1 :]))
    elif len(node.elts) > 1:
        for n in range(len(node.elts)):
            yield ast.unparse(type(node)(elts=node.elts[:n] + node.elts[n + 1 :]))


def _spelled(operator: ast.cmpop) -> str:
    return ast.unparse(ast.Compare(ast.Name("a"), [operator], [ast.Name("b")]))[1:-1].strip()


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_text(node: ast.AST) -> bool:
    """Whether an expression is a message: an f-string, a string with spaces, or an expression with one."""
    if isinstance(node, ast.JoinedStr):
        return True
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and " " in node.value
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) or _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) or _is_text(node.orelse)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join":
        return isinstance(node.func.value, ast.Constant) and node.func.value.value != ""
    return isinstance(node, ast.Call) and _name(node.func) in ("Refused", "UsageError", "LostRace", "StoreUnreachable")
