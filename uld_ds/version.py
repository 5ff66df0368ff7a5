"""The version of uld-ds, stated here alone."""

__version__ = "0.1.0"
