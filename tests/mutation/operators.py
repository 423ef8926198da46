"""The small faults: each changes one expression or one statement of a file.

None is planted where it could change only time and never a result: in what a kernel
computes to ask for memory ahead (see `waiting`).
"""

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.mutation.waiting import only_time

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitOr,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
NAMES = {
    "min": "max", "max": "min", "amin": "amax", "amax": "amin", "any": "all",
    "all": "any", "floor": "ceil", "ceil": "floor", "zeros": "ones", "ones": "zeros",
    "zeros_like": "ones_like", "ones_like": "zeros_like", "minimum": "maximum",
    "maximum": "minimum",
}  # fmt: skip
COPIES = {"clone", "detach", "copy", "contiguous", "abs", "flatten"}  # x.copy() -> x
UNTOUCHED = {"annotation", "returns", "decorator_list", "type_params", "bases"}
OWN_NEGATION = (ast.Eq, ast.NotEq, ast.Is, ast.IsNot, ast.In, ast.NotIn)


@dataclass(frozen=True)
class Mutant:
    """One fault. `number` counts the faults of the file, in the order of its text.

    It is noticed, if at all, when a line in first ... last runs: those of its
    statement, or of the whole function for a default value; 0 ... 0 on import.
    """

    number: int
    line: int
    first: int
    last: int
    operator: str
    before: str
    after: str


@dataclass(frozen=True)
class Site:
    """A place in a tree, and what a fault puts there."""

    operator: str
    child: ast.AST
    replacement: ast.AST
    statement: ast.stmt
    on_import: bool
    put: Callable[[ast.AST], None]


def mutants(source: str) -> list[Mutant]:
    """All faults of a source text, always in the same order."""
    found = []
    for number, site in enumerate(_sites(ast.parse(source))):
        child, after = site.child, site.replacement
        line = getattr(child, "lineno", site.statement.lineno)
        texts = [_short(ast.unparse(node)) for node in (child, after)]
        lines = (0, 0) if site.on_import else _lines(site.statement)
        found.append(Mutant(number, line, *lines, site.operator, *texts))
    return found


def mutated(source: str, number: int) -> ast.Module:
    """The tree of a source text with one fault; lines keep their numbers.

    Raises:
        IndexError: if the text has no fault of that number.
    """
    tree = ast.parse(source)
    for found, site in enumerate(_sites(tree)):
        if found == number:
            site.put(ast.copy_location(site.replacement, site.child))
            return ast.fix_missing_locations(tree)
    raise IndexError(number)


def _short(text: str) -> str:
    first, *more = text.splitlines() or [""]
    return first[:120] + (" ..." if more or len(first) > 120 else "")


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """First and last line; of a compound statement those before its body."""
    last = statement.end_lineno or statement.lineno
    if isinstance(statement, ast.If | ast.For | ast.While | ast.With | ast.Try):
        last = max(statement.lineno, statement.body[0].lineno - 1)
    return statement.lineno, last


def _sites(tree: ast.Module) -> Iterator[Site]:
    return _inside(tree, only_time(tree))


def _inside(
    node: ast.AST,
    left_out: set[ast.AST],
    statement: ast.stmt | None = None,
    on_import: bool = True,
) -> Iterator[Site]:
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return  # what a message says is not what we test
    for field, value in ast.iter_fields(node):
        if field in UNTOUCHED:
            continue
        children = value if isinstance(value, list) else [value]
        for index, child in enumerate(children):
            if not isinstance(child, ast.AST) or _is_exempt(child):
                continue
            if child in left_out:
                continue
            inside = child if isinstance(child, ast.stmt) else statement
            put = _putter(node, field, index if isinstance(value, list) else None)
            if inside is not None:
                for operator, replacement in _replacements(child):
                    yield Site(operator, child, replacement, inside, on_import, put)
                if field in ("test", "ifs") and _is_worth_negating(child):
                    negated = ast.UnaryOp(ast.Not(), child)
                    yield Site("condition", child, negated, inside, on_import, put)
            later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _inside(child, left_out, inside, on_import and not later)


def _putter(
    parent: ast.AST, field: str, index: int | None
) -> Callable[[ast.AST], None]:
    def put(child: ast.AST) -> None:
        if index is None:
            setattr(parent, field, child)
        else:
            getattr(parent, field)[index] = child

    return put


def _is_exempt(node: ast.AST) -> bool:
    """Docstrings, `__all__`, and what only a type checker reads."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    if isinstance(node, ast.Assign):
        return ast.unparse(node.targets[0]) == "__all__"
    return False


def _is_worth_negating(test: ast.AST) -> bool:
    """Whether no other operator negates it already."""
    if isinstance(test, ast.Compare):
        return len(test.ops) > 1 or not isinstance(test.ops[0], OWN_NEGATION)
    return not (isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not))


def _replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    match node:
        case ast.Compare(left, ops, comparators):
            for i, op in enumerate(ops):
                swapped = [*ops[:i], SWAPS[type(op)](), *ops[i + 1 :]]
                yield "comparison", ast.Compare(left, swapped, comparators)
        case ast.BinOp(left, op, right) if type(op) in SWAPS:
            yield "arithmetic", ast.BinOp(left, SWAPS[type(op)](), right)
        case ast.BoolOp(op, values):
            yield "boolean", ast.BoolOp(SWAPS[type(op)](), values)
        case ast.UnaryOp(ast.Not() | ast.USub() | ast.Invert(), operand):
            yield "unary", operand
        case ast.Constant(bool(value)):
            yield "constant", ast.Constant(not value)
        case ast.Constant(int(value)):
            yield "constant", ast.Constant(value + 1)
        case ast.Constant(float(value)):
            yield "constant", ast.Constant(2 * value if value else 1.0)
        case ast.Call(ast.Name(name), args, keywords) if name in NAMES:
            yield "call", ast.Call(ast.Name(NAMES[name], ast.Load()), args, keywords)
        case ast.Call(ast.Attribute(owner, name), args, keywords) if name in NAMES:
            other = ast.Attribute(owner, NAMES[name], ast.Load())
            yield "call", ast.Call(other, args, keywords)
        case ast.Call(ast.Attribute(owner, name), [], []) if name in COPIES:
            yield "copy", owner
        case ast.Return(value) if value is not None and not _is_none(value):
            yield "return", ast.Return(ast.Constant(None))
        case ast.AugAssign(target, op, value):
            if type(op) in SWAPS:
                swap = ast.AugAssign(target, SWAPS[type(op)](), value)
                yield "arithmetic", swap
            yield "statement", ast.Pass()
        case ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "statement", ast.Pass()
        case ast.Expr(ast.Call()) | ast.Raise() | ast.Delete():
            yield "statement", ast.Pass()
        case ast.Break() | ast.Continue():
            yield "statement", ast.Pass()
        case ast.With(items, body) if all(i.optional_vars is None for i in items):
            yield "context", ast.If(ast.Constant(True), body, [])


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
