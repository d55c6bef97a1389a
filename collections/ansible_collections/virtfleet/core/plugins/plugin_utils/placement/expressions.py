# Copyright: virtfleet contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A small language for matchmaking's `requirement` and `rank`: arithmetic and comparisons over a host's numbers.

`free_memory >= 8 * GiB and zone in ["a", "b"]`. It is parsed, checked and walked here; nothing is executed; there are
no calls, no attributes, no powers. A number nobody measured is unknown: whatever is compared with it is not fulfilled.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.doors import SchemaError
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.fleet import Fleet
from ansible_collections.virtfleet.core.plugins.plugin_utils.placement.schema import Request

LONGEST_EXPRESSION = 500
DEEPEST = 30
LARGEST_NUMBER = 1e18

CONSTANTS: dict[str, float] = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

NAMES: dict[str, Callable[[Fleet, Request, int], Any]] = {
    "name": lambda fleet, _request, n: fleet.hosts[n].name,
    "zone": lambda fleet, _request, n: fleet.hosts[n].zone,
    "rack": lambda fleet, _request, n: fleet.hosts[n].rack,
    "tags": lambda fleet, _request, n: fleet.hosts[n].tags,
    "free_vcpus": lambda fleet, _request, n: fleet.vcpus_free[n],
    "total_vcpus": lambda fleet, _request, n: fleet.vcpus_usable[n],
    "free_memory": lambda fleet, _request, n: fleet.memory_free[n],
    "total_memory": lambda fleet, _request, n: fleet.memory_usable[n],
    "cpu_percent": lambda fleet, _request, n: fleet.hosts[n].load.cpu_percent,
    "io_percent": lambda fleet, _request, n: fleet.hosts[n].load.io_percent,
    "vcpus": lambda _fleet, request, _n: request.vcpus,
    "memory": lambda _fleet, request, _n: request.memory_bytes,
}
"""What an expression may speak of: the host's free and total, its loads, and the request's `vcpus` and `memory`."""

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class Expression:
    """A checked expression. Raises SchemaError naming `path` for what the language does not have."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self._path = path
        if len(text) > LONGEST_EXPRESSION:
            raise SchemaError(path, f"an expression of at most {LONGEST_EXPRESSION} characters is wanted")
        try:
            self._tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise SchemaError(path, f"the expression {text!r} cannot be read: {error}") from error
        self._check(self._tree, 0)

    def _check(self, node: ast.AST, depth: int) -> None:
        if depth > DEEPEST:
            raise SchemaError(self._path, "the expression is nested too deeply")
        if isinstance(node, ast.Name):
            if node.id not in NAMES and node.id not in CONSTANTS:
                known = ", ".join(sorted({*NAMES, *CONSTANTS}))
                raise SchemaError(self._path, f"there is no {node.id!r}; an expression may use {known}")
        elif isinstance(node, ast.Constant):
            if not isinstance(node.value, (int, float, str)):
                raise SchemaError(self._path, f"{node.value!r} is neither a number nor a text")
            if not isinstance(node.value, str) and not node.value <= LARGEST_NUMBER:
                raise SchemaError(self._path, f"a number in an expression is at most {LARGEST_NUMBER:g}")
        elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            self._each(depth, node.left, node.right)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
            self._each(depth, node.operand)
        elif isinstance(node, ast.BoolOp):
            self._each(depth, *node.values)
        elif isinstance(node, ast.Compare) and all(type(op) in _COMPARISONS for op in node.ops):
            self._each(depth, node.left, *node.comparators)
        elif isinstance(node, (ast.List, ast.Tuple)):
            self._each(depth, *node.elts)
        else:
            raise SchemaError(self._path, f"{type(node).__name__} is not part of the language; see docs/placement.md")

    def _each(self, depth: int, *nodes: ast.AST) -> None:
        for node in nodes:
            self._check(node, depth + 1)

    def truth(self, fleet: Fleet, request: Request, number: int) -> bool:
        """Tell whether a host fulfils the expression; unknown is not fulfilled."""
        return bool(self._value(self._tree, fleet, request, number))

    def number(self, fleet: Fleet, request: Request, number: int) -> float:
        """Return the expression's number for a host; unknown, or no number, ranks below all numbers."""
        value = self._value(self._tree, fleet, request, number)
        if not isinstance(value, (int, float)) or math.isnan(value):
            return float("-inf")
        return float(value)

    def _value(self, node: ast.AST, fleet: Fleet, request: Request, number: int) -> Any:
        if isinstance(node, ast.Name):
            return CONSTANTS[node.id] if node.id in CONSTANTS else NAMES[node.id](fleet, request, number)
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Compare):
            return self._compared(node, fleet, request, number)
        inner = [self._value(each, fleet, request, number) for each in _parts(node)]
        if isinstance(node, ast.BoolOp):
            return all(inner) if isinstance(node.op, ast.And) else any(inner)
        if isinstance(node, (ast.BinOp, ast.UnaryOp)):
            return _computed(node.op, inner)
        return inner

    def _compared(self, node: ast.Compare, fleet: Fleet, request: Request, number: int) -> bool | None:
        left = self._value(node.left, fleet, request, number)
        for op, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node, fleet, request, number)
            if left is None or right is None:
                return None
            try:
                if not _COMPARISONS[type(op)](left, right):
                    return False
            except TypeError:
                return None
            left = right
        return True


def _parts(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.BinOp):
        return [node.left, node.right]
    if isinstance(node, ast.UnaryOp):
        return [node.operand]
    if isinstance(node, ast.BoolOp):
        return node.values
    if not isinstance(node, (ast.List, ast.Tuple)):
        raise TypeError("a list or tuple is wanted")
    return node.elts


def _computed(op: ast.operator | ast.unaryop, values: list[Any]) -> Any:
    """Return the result, or None (unknown) where there is none."""
    if isinstance(op, ast.Not):
        return None if values[0] is None else not values[0]
    if not all(isinstance(value, (int, float)) for value in values):
        return None
    if isinstance(op, ast.unaryop):
        return -values[0]
    if isinstance(op, ast.Div) and values[1] == 0:
        return None
    # Floats, so that a chain of products ends at infinity and not in an endless number.
    return _ARITHMETIC[type(op)](float(values[0]), float(values[1]))
