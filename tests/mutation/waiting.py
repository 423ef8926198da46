"""Which statements of a kernel decide only how long it waits for memory."""

import ast
from collections.abc import Iterable, Iterator

PREFETCH = "prefetch"


def only_time(tree: ast.AST) -> set[ast.AST]:
    """Statements of functions that change no result, whatever they compute.

    These are calls of `prefetch`, which asks for memory that may lie anywhere;
    assignments to names that only such statements read; and `if` and `for` with nothing
    else in them.
    """
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not _has_inner(node):
            found |= _of_function(node)
    return found


def _of_function(function: ast.FunctionDef) -> set[ast.AST]:
    if not any(_is_prefetch(node) for node in ast.walk(function)):
        return set()
    statements = [n for n in ast.walk(function) if isinstance(n, ast.stmt)]
    wanted: set[str] = set()  # names whose values may reach a result
    while True:
        idle = {s for s in statements if _is_idle(s, wanted)}
        read = set(_read(function.body, idle))
        if read <= wanted:
            return idle
        wanted |= read


def _is_idle(statement: ast.stmt, wanted: set[str]) -> bool:
    match statement:
        case ast.Expr(value):
            return _is_prefetch(value)
        case ast.Assign([ast.Name(name)], value):
            return name not in wanted and _is_plain(value)
        case ast.If(test, body, orelse):
            return _is_plain(test) and all(_is_idle(s, wanted) for s in body + orelse)
        case ast.For(ast.Name(name), over, body, []):
            mine = name not in wanted and _is_plain(over, "range")
            return mine and all(_is_idle(s, wanted) for s in body)
    return False


def _read(body: Iterable[ast.AST], idle: set[ast.AST]) -> Iterator[str]:
    """Names that are read outside of idle statements."""
    for node in body:
        if node in idle:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id
        yield from _read(ast.iter_child_nodes(node), idle)


def _is_prefetch(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == PREFETCH


def _is_plain(value: ast.AST, *calls: str) -> bool:
    """No call but of these functions: nothing that could have another effect."""
    made = [n for n in ast.walk(value) if isinstance(n, ast.Call)]
    return all(ast.unparse(call.func) in calls for call in made)


def _has_inner(function: ast.FunctionDef) -> bool:
    inner = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    return any(isinstance(n, inner) for n in ast.walk(function) if n is not function)
