"""Learning through anything you can unroll: write one step, swap the gradient estimator.

Names are loaded on first use, so that the command line can answer without importing JAX. They are listed once, in
`__init__.pyi`, where type checkers and editors read them too.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
