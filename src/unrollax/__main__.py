"""`python -m unrollax` is the `unrollax` command."""

from unrollax.cli import main

if __name__ == "__main__":
    main()
