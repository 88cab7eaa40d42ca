"""The command line. Nothing here imports JAX before the arguments are known to be right."""

from __future__ import annotations

import gc
import sys


def main() -> None:
    """Run the `unrollax` command."""
    gc.disable()  # imports make no garbage, and looking for it takes a quarter of the start; a command enables it again
    try:
        from unrollax.cli._app import app
    except ImportError as error:
        if error.name not in ("typer", "rich", "pydantic", "tomli_w"):
            raise
        sys.exit(f"unrollax: the command line needs {error.name}. Install it with: pip install 'unrollax[cli]'")
    app(prog_name="unrollax")
