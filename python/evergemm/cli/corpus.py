# SPDX-License-Identifier: Apache-2.0
"""Sentences that are on any machine with Python: the docstrings of its standard library, read as text.

Nothing of the library is imported or run. The same Python gives the same sentences in the same order. Must not go here:
models.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

# Folders of the standard library that hold tests, other people's packages or generated text.
_LEFT_OUT = {
    "test",
    "tests",
    "idlelib",
    "idle_test",
    "lib2to3",
    "turtledemo",
    "ensurepip",
    "pydoc_data",
    "site-packages",
    "dist-packages",
}
_SHORTEST, _LONGEST = 40, 240  # characters
_LETTERS = 0.88  # least share of letters and spaces: prose, not code or tables
_BOUNDARY = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_OPENING = re.compile(r"[A-Z][a-z]+ ")


def _docstrings(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.py")):
        if _LEFT_OUT & set(path.relative_to(root).parts[:-1]):
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError, OSError):
            continue  # a template or another encoding: not this corpus
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(node)
                if text:
                    yield text


def _is_prose(sentence: str) -> bool:
    letters = sum(character.isalpha() or character == " " for character in sentence)
    return (
        _SHORTEST <= len(sentence) <= _LONGEST
        and sentence.endswith(".")
        and ">>>" not in sentence
        and _OPENING.match(sentence) is not None
        and letters >= _LETTERS * len(sentence)
    )


def standard_library_sentences(count: int) -> list[str]:
    """At most `count` different sentences (letter case aside), chosen and ordered by their SHA-256."""
    found: dict[str, str] = {}
    for text in _docstrings(Path(sysconfig.get_paths()["stdlib"])):
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in _BOUNDARY.split(" ".join(paragraph.split())):
                if _is_prose(sentence):
                    found.setdefault(sentence.lower(), sentence)
    ordered = sorted(found, key=lambda key: hashlib.sha256(key.encode()).digest())
    return [found[key] for key in ordered[:count]]
