"""Names of the library in code become links, and no others."""

from __future__ import annotations

import re

import pytest

from bookkit.codelinks import imported, linked


def span(kind: str, word: str) -> str:
    return f'<span class="{kind}">{word}</span>'


def chain(*words: str) -> str:
    return span("o", ".").join(span("n", word) for word in words)


PLACES = {"lib.train": "#train", "lib.theory.Net": "#net"}
MEANING = {"lib": "lib", "theory": "lib.theory", "run": "lib.train"}


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (chain("lib", "train"), {"#train"}),
        (chain("run"), {"#train"}),
        (chain("theory", "Net", "forward"), {"#net"}),
        (chain("lib", "other"), set()),
        (chain("theory"), set()),
        (span("nf", "run") + span("n", "x"), {"#train"}),
        (chain("self", "lib", "train"), set()),
        (chain("run") + span("o", "="), set()),
        (span("s2", "lib.train"), set()),
    ],
)
def test_a_chain_leads_to_its_longest_known_part(code: str, wanted: set[str]) -> None:
    found = linked(f"<pre>{code}</pre>", MEANING, PLACES.get)
    assert {part.split('"')[0] for part in found.split('href="')[1:]} == wanted
    assert (found == f"<pre>{code}</pre>") is (not wanted)


def test_the_text_of_the_code_stays() -> None:
    code = chain("theory", "Net", "forward") + span("p", "(") + chain("lib", "train")
    found = linked(code, MEANING, PLACES.get)
    assert re.sub("<a [^>]*>|</a>", "", found) == code


def test_names_that_mean_something_else_too_are_left() -> None:
    sources = [
        "from lib import data, train, Net, run, theory",
        "%matplotlib inline",
        "def train(Net): ...",
        "for data in ():\n    run = 1",
    ]
    assert imported(sources) == {"theory": "lib.theory"}
