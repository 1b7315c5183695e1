"""No function of the package is over 60 lines or 8 branches, unless a comment above it says why."""

import ast
import re

import layers

LINES, BRANCHES = 60, 8
BRANCHING = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case, ast.comprehension)
# "# Long: ..." or "# Branches: ...", above the function and its decorators.
REASON = re.compile(r"\s*# (Long|Branches): \w+")


def branches(function: ast.AST) -> int:
    """Its own, without those of functions inside it."""
    count, waiting = 0, list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            continue
        count += isinstance(node, BRANCHING)
        count += len(node.ifs) - 1 if isinstance(node, ast.comprehension) else 0  # one that filters branches
        waiting += ast.iter_child_nodes(node)
    return count


def unexplained(source: str) -> list[str]:
    lines = source.splitlines()
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        length, count = node.end_lineno - node.lineno + 1, branches(node)
        explained = first > 1 and REASON.match(lines[first - 2])
        if (length > LINES or count > BRANCHES) and not explained:
            found.append(f"{node.name} has {length} lines and {count} branches")
    return found


def test_functions_are_short():
    assert {name: found for name, path in layers.modules().items() if (found := unexplained(path.read_text()))} == {}


def test_long_ones_are_seen():
    body = "".join(f"    if a == {i}: return {i}\n" for i in range(9))
    assert unexplained("def f(a):\n" + body) == ["f has 10 lines and 9 branches"]
    assert unexplained("def f(a):\n" + "    a = [a for a in (a, a) if a]\n" * 60) == ["f has 61 lines and 60 branches"]
    assert unexplained("def f(a):\n" + "    a += 1\n" * 60) == ["f has 61 lines and 0 branches"]
    assert not unexplained("# Long: a table\ndef f(a):\n" + "    a += 1\n" * 60)
    assert not unexplained("def f(a):\n" + "    a += 1\n" * 59)
