"""Real English text that comes with every Python: the reference of the language itself."""

from __future__ import annotations

import re
from pydoc_data import topics


def articles() -> list[list[str]]:
    """The paragraphs of each article, each once, without headings, programs and tables."""
    seen: set[str] = set()
    found = []
    for _, text in sorted(topics.topics.items()):
        paragraphs = [" ".join(part.split()) for part in text.split("\n\n")]
        found.append([p for p in paragraphs if is_prose(p) and p not in seen])
        seen.update(paragraphs)
    return [paragraphs for paragraphs in found if paragraphs]


def is_prose(paragraph: str) -> bool:
    """Whether it is a sentence or more: no heading, grammar, table or program."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return paragraph.endswith((".", ":")) and letters > 0.85 * len(paragraph) > 25


def words(paragraph: str) -> list[str]:
    """Words and signs in lower case, as the vocabulary of a small model has them."""
    return re.findall(r"\w+|[^\w\s]", paragraph.lower())
