"""The errors that users meet. Each message is a sentence that names the option or argument, its value and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """An option that cannot be followed."""


class DataError(ValueError):
    """A data set that cannot be loaded as asked; the message says which option to change."""


class BackendError(RuntimeError):
    """A backend that was asked for by name cannot be used here; the message says why.

    Example:
        >>> try:
        ...     dat.perturb(torch.zeros(1, 2), torch.ones(1, 2), 0.5, impl="abacus")
        ... except dat.BackendError as error:
        ...     print(error)
        impl: 'abacus' is not a backend; choose one of reference, cpu, cuda, triton
    """


class TrainingStopped(RuntimeError):  # noqa: N818  being asked to stop is no error
    """Training could not go on; the message says why and where the last good state is."""


def not_one_of(option: str, value: object, known: Iterable[object]) -> ConfigError:
    """For a value that is none of those known, which the sentence lists."""
    names = [str(name) for name in known]
    return ConfigError(f"{option} {value}: must be one of {', '.join(names)}{did_you_mean(value, names)}")


def did_you_mean(wrong: object, known: Iterable[object]) -> str:
    """The end of a sentence about a misspelt name: the nearest of those known; nothing where none is near."""
    names = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(wrong)[:100].lower(), names, 1)
    return f"; did you mean {names[near[0]]}?" if near else ""
