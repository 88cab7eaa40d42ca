"""Functions of arrays as plain NumPy source."""

from unrollax.plain._source import Source, numpy_source

__all__ = ["Source", "numpy_source"]
