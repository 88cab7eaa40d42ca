"""What `unrollax sample` needs of a run folder, checked without JAX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from unrollax._errors import nearest
from unrollax.cli._config import UsageError, read_toml, validate
from unrollax.recipes._options import ALPHABET, Text

TRAIN = "Make one with: unrollax train text"


class TextRun(NamedTuple):
    """A run of the recipe `text`: its folder, its options, and its characters by their codes."""

    folder: Path
    options: Text
    alphabet: str

    @property
    def opening(self) -> str:
        """What is written on from by default: a line's end if the text has any, else a blank, else what sorts first."""
        return next((character for character in "\n " if character in self.alphabet), self.alphabet[0])

    def codes(self, text: str) -> list[int]:
        """Return the codes of a text.

        Raises:
            UsageError: the alphabet lacks one of its characters.
        """
        lacking = sorted(set(text) - set(self.alphabet))
        if lacking:
            raise UsageError(
                f"--prompt must be of characters that the run's text has, got {', '.join(map(repr, lacking))}."
            )
        return [self.alphabet.index(character) for character in text]


def find_text_run(folder: Path) -> TextRun:
    """Read a run folder of the recipe `text`; its `run.toml` will do for it.

    Raises:
        UsageError: there is none, it is another recipe's, or a file of it is missing or damaged.
    """
    folder = folder.parent if folder.name == "run.toml" and folder.is_file() else folder
    if not folder.is_dir():
        others = sorted(path.parent.name for path in folder.parent.glob(f"*/{ALPHABET}"))
        raise UsageError(f"no run folder {folder}. {nearest(folder.name, others) if others else TRAIN}")
    if not (folder / "run.toml").is_file():
        raise UsageError(f"{folder} is no run folder: it has no run.toml. {TRAIN}")
    config = read_toml(folder / "run.toml")
    if config.get("target") != "text":
        raise UsageError(f"{folder} must be a run of the recipe text, got one of {config.get('target')!r}. {TRAIN}")
    options = config.get("options", {})
    if not isinstance(options, dict):
        raise UsageError(f"{folder / 'run.toml'}: options must be a table, got {options!r}.")
    needed = {name: item for name, item in options.items() if name != "path"}  # the text itself may have gone
    for name in (ALPHABET, "params.safetensors"):
        if not (folder / name).is_file():
            raise UsageError(f"{folder} has no {name}: its run kept none. {TRAIN}")
    return TextRun(folder, validate(Text, needed, f"{folder / 'run.toml'}: "), _read_alphabet(folder / ALPHABET))


def _read_alphabet(path: Path) -> str:
    try:
        alphabet = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} must hold one JSON string, got damage: {error}.") from error
    if not isinstance(alphabet, str) or not alphabet:
        raise UsageError(f"{path} must hold one JSON string, got {str(alphabet)[:40]!r}.")
    return alphabet
