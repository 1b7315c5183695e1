"""Which modules and weights a callable works with that is no module itself: a lambda, a bound method, functools.partial."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

Parts = tuple[list[nn.Module], list[Tensor]]


def parts_of(function: Callable[..., Any]) -> Parts:
    """The modules and the loose tensors that it holds: in its closure, its bound arguments and the globals that it names."""
    found: Parts = ([], [])
    _look(function, frozenset(), found, set())
    return found


# Branches: one for each kind of thing that can hold another.
def _look(thing: Any, names: frozenset[str], found: Parts, seen: set[int]) -> None:
    """names: those that the code uses which has the thing at hand; only these of a larger object's parts are its business."""
    if id(thing) in seen or _is_torchs(thing):
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        found[1].append(thing)
    elif isinstance(thing, nn.Module):
        used = _reached(type(thing), names)
        parts = [part for name, part in thing._modules.items() if name in used]
        if not parts or any(name in used for own in (thing._parameters, thing._buffers) for name in own):
            found[0].append(thing)
        else:
            _look_at_each(parts, frozenset(), found, seen)
    elif isinstance(thing, partial):
        _look_at_each([thing.func, *thing.args, *thing.keywords.values()], names, found, seen)
    elif isinstance(thing, MethodType):
        _look_at_each([thing.__func__, thing.__self__], _names(thing.__func__), found, seen)
    elif isinstance(thing, FunctionType):
        _look_at_each(_held(thing), _names(thing), found, seen)
    elif isinstance(thing, (list, tuple, set)):
        _look_at_each(thing, names, found, seen)
    elif isinstance(thing, dict):
        used_values = [value for key, value in thing.items() if isinstance(key, str) and key in names]
        _look_at_each(used_values or thing.values(), names, found, seen)
    elif not isinstance(thing, type) and hasattr(thing, "__dict__"):
        used = names | _names(type(thing).__call__) if callable(thing) else names
        used = _reached(type(thing), used)
        _look_at_each([value for name, value in vars(thing).items() if name in used], used, found, seen)


def _reached(kind: type, names: frozenset[str]) -> frozenset[str]:
    """With the names that those methods use which are among them."""
    waiting, reached = list(names), set(names)
    while waiting:
        for name in _names(getattr(kind, waiting.pop(), None)) - reached:
            reached.add(name)
            waiting.append(name)
    return frozenset(reached)


def _is_torchs(thing: Any) -> bool:
    """A library's function, of which code names many, holds nobody's network."""
    name = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    code = isinstance(thing, (FunctionType, ModuleType))
    return code and isinstance(name, str) and name.partition(".")[0] in ("torch", "math", "numpy", "builtins")


def _look_at_each(things: Iterable[Any], names: frozenset[str], found: Parts, seen: set[int]) -> None:
    for thing in things:
        _look(thing, names, found, seen)


def _held(function: FunctionType) -> list[Any]:
    held: list[Any] = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        try:
            held.append(cell.cell_contents)
        except ValueError:  # not yet filled
            continue
    names = _names(function)
    return held + [value for name, value in function.__globals__.items() if name in names]


def _names(function: Any) -> frozenset[str]:
    code = getattr(function, "__code__", None)
    return frozenset(_names_in(code)) if isinstance(code, CodeType) else frozenset()


def _names_in(code: CodeType) -> Iterable[str]:
    """Attributes and globals, and strings, which may be keys."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str):
            yield constant
