"""The errors that users meet. Each message is a sentence that names the option or argument, its value and what would be right."""


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
