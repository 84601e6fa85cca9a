"""Exercises of the pages: a skill, stars and minutes before each task, from which lists are made.

A task begins as in ``★★ *Code, 20 minutes.*``, with a number before it where its exercise has
several, and has a place in the solution of the same label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SKILLS = {  # in the order of lists; and how a kind's name begins
    "Warm-up": "a count or an estimate, with nothing to run",
    "Change a parameter": "one option of a run",
    "Predict": "a guess first, then the numbers that decide it",
    "Code": "a few lines with the library",
    "Derive": "pencil and paper, then a check by computation",
    "Open": "no one answer",
}
LENGTHS = {5: "5 minutes", 10: "10 minutes", 20: "15 to 20 minutes", 40: "about half an hour",
           60: "an hour"}  # fmt: skip
_EXERCISES = (
    re.compile(r"```\{exercise-start\}()\n:label: (\S+)\n```\n(.*?)```\{exercise-end\}", re.DOTALL),
    re.compile(r"```\{exercise\}([^\n]*)\n:label: (\S+)\n(.*?)\n```", re.DOTALL),
)
_TASK = re.compile(
    r"^(?:(\d+)\. )?(★{1,3}) \*([A-Z][^*]*), (an hour|\d+ minutes)\.\*", re.MULTILINE
)


@dataclass(frozen=True)
class Task:
    """A task of an exercise.

    Attributes:
        page: where it is.
        label: of its exercise.
        number: within the exercise; 0 where that has one task.
        stars: 1 to 3.
        skill: one of `SKILLS`.
        minutes: to find a solution.
    """

    page: str
    label: str
    number: int
    stars: int
    skill: str
    minutes: int

    @property
    def paper(self) -> str:
        """The folder of its page; "primer" for a page of no paper."""
        return self.page.split("/")[0] or "primer"

    @property
    def length(self) -> str:
        """One of the values of `LENGTHS`."""
        return next(name for most, name in LENGTHS.items() if self.minutes <= most)


def blocks(text: str) -> dict[str, str]:
    """The text of each exercise of a page, by label, in the page's order."""
    found = [match for pattern in _EXERCISES for match in pattern.finditer(text)]
    return {m[2]: m[3] for m in sorted(found, key=lambda match: match.start())}


def solution(text: str, label: str) -> str:
    """What stands in the solution of an exercise; empty without one."""
    gated = re.search(
        rf"```\{{solution-start\}} {label}\n(.*?)```\{{solution-end\}}", text, re.DOTALL
    )
    plain = re.search(rf"````\{{solution\}} {label}\n(.*?)\n````", text, re.DOTALL)
    found = gated or plain
    return found[1] if found else ""


def tasks(page: str, text: str) -> list[Task]:
    """The tasks of a page.

    Raises:
        ValueError: naming an exercise without a task, or a kind that is none of `SKILLS`.

    Example:
        >>> text = "```{exercise-start}\\n:label: ex-a\\n```\\n★ *Warm-up, 5 minutes.* Why?\\n"
        >>> tasks("a", text + "```{exercise-end}")
        [Task(page='a', label='ex-a', number=0, stars=1, skill='Warm-up', minutes=5)]
    """
    found = []
    for label, body in blocks(text).items():
        lines = _TASK.findall(body)
        if not lines:
            raise ValueError(f"{page}: {label} has no task such as `★ *Warm-up, 5 minutes.*`")
        for number, stars, kind, time in lines:
            skill = next((name for name in SKILLS if kind.startswith(name)), None)
            minutes = 60 if time == "an hour" else int(time.split()[0])
            if skill is None or not 1 <= minutes <= max(LENGTHS):
                raise ValueError(f"{page}: {label}: *{kind}, {time}* is none of {list(SKILLS)}")
            found.append(Task(page, label, int(number or 0), len(stars), skill, minutes))
    return found


def group(found: Sequence[Task], by: str) -> Mapping[str, list[Task]]:
    """Tasks by an attribute, each part in the order found.

    Every `skill` or `length` is there, with a task or without; a `paper` or `page` if it has one.
    """
    names = {"skill": SKILLS, "length": LENGTHS.values()}.get(by, [getattr(t, by) for t in found])
    return {name: [task for task in found if getattr(task, by) == name] for name in names}
