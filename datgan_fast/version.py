"""The package's version, for pyproject.toml too."""

__version__ = "0.1.0"
