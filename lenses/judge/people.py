"""A person as judge: an offline page or a table to fill in, and its answers."""

from __future__ import annotations

import csv
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lenses.judge.questions import RELATIONS, Question, Verdict
from lenses.judge.render import RED, SIZE, WIDTH, uri
from workbench.errors import ReadingError
from workbench.files import atomic_write

ANSWERS, PAGE, TABLE = "answers.csv", "questions.html", "questions.csv"
COLUMNS = ("question", "candidate", "word", "relation")
NONE = "none"
Answers = dict[str, dict[int, str]]
"""Question -> number of the candidate -> relation."""


class Person:
    """Somebody who fills in a page, or a table.

    The first run of :func:`judge` writes ``questions.html`` and ``questions.csv`` into the folder, and gives a reading
    without verdicts.  The page needs no network: click a word for its relation, and save ``answers.csv`` into the
    folder; or fill in the column ``relation`` of the table ("concrete", "abstract", "global", "none"), and save it as
    ``answers.csv``.  The same call again then has the verdicts.  A question counts as answered when one of its rows has
    a relation; its empty rows are then "none".  What is not answered yet is "unanswered", and in no share.

    Page and table tell nothing of lens, layer or null.

    Parameters
    ----------
    folder
        Of this person's page and answers; another one for each person.
    name
        Whose answers they are; by default the folder's name.

    Raises
    ------
    ReadingError
        For a table that cannot be understood, with the line.
    """

    kept = False  # the table is what is kept

    def __init__(self, folder: str | os.PathLike[str], name: str | None = None) -> None:
        self.folder = Path(folder)
        self.name = f"person: {name or self.folder.resolve().name}"
        self._answers: Answers = {}

    def check(self, questions: Sequence[Question]) -> None:
        """Read the answers that there are, and write page and table anew, with these filled in."""
        self._answers = self._read()
        # In an order that does not tell what belongs together.
        every = sorted(questions, key=lambda own: own.id)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ReadingError(f"{self.folder} cannot be made a folder: {error}.") from error
        atomic_write(self.folder / PAGE, page(every, self._answers, self.name))
        atomic_write(self.folder / TABLE, table(every, self._answers))

    def __call__(self, question: Question) -> Verdict:
        own = self._answers.get(question.id)
        if own is None:
            return Verdict(failed="unanswered")
        numbered = list(enumerate(listed(question), 1))
        named = (tuple(word for i, word in numbered if own.get(i) == name) for name in RELATIONS)
        return Verdict(*named)

    def _read(self) -> Answers:
        path = self.folder / ANSWERS
        if not path.exists():
            return {}
        found: Answers = {}
        # Spreadsheets of some countries separate by semicolons, and some begin a file with a mark.
        text = path.read_text("utf-8-sig")
        head = text.partition("\n")[0]
        rows = csv.DictReader(io.StringIO(text), delimiter=";" if head.count(";") > head.count(",") else ",")
        if lacks := [name for name in COLUMNS if name != "word" and name not in (rows.fieldnames or ())]:
            raise ReadingError(f"{path} has no column {lacks[0]!r}. It is {TABLE} with the column relation filled in.")
        for row in rows:
            relation = (row["relation"] or "").strip().lower()
            number = (row["candidate"] or "").strip()
            if not relation:
                continue
            if relation not in (*RELATIONS, NONE) or not number.isdigit():
                raise ReadingError(
                    f"{path}, line {rows.line_num}: relation {relation!r} of candidate {number!r} is not understood. A "
                    f"relation is one of {', '.join(RELATIONS)}, {NONE}; a candidate is a number."
                )
            found.setdefault((row["question"] or "").strip(), {})[int(number)] = relation
        return found


def listed(question: Question) -> list[str]:
    """The words in the order of page and table: of the alphabet, whatever the seed."""
    return sorted(question.words)


def table(questions: Sequence[Question], answers: Answers) -> str:
    """Questions as CSV, one row for each candidate."""
    kept = io.StringIO()
    rows = csv.writer(kept, lineterminator="\n")
    rows.writerow(COLUMNS)
    for question in questions:
        known = answers.get(question.id, {})
        rows.writerows((question.id, i, word, known.get(i, "")) for i, word in enumerate(listed(question), 1))
    return kept.getvalue()


def page(questions: Sequence[Question], answers: Answers, title: str) -> str:
    """Questions as one offline page; each picture is in it once, boxes are drawn over it."""
    pictures: dict[str, int] = {}
    asked: list[dict[str, Any]] = []
    for question in questions:
        picture = uri(question.bare, "JPEG", quality=85)
        number = pictures.setdefault(picture, len(pictures))
        box = [round(100 * v / SIZE, 3) for v in question.box]
        words, known = listed(question), answers.get(question.id)
        # A question with an answer is answered throughout.
        filled = known and {i: known.get(i, NONE) for i in range(1, len(words) + 1)}
        asked.append({"id": question.id, "words": words, "picture": number, "box": box, "known": filled or {}})
    # "</script>" may be a word.
    given = json.dumps({"pictures": list(pictures), "questions": asked}).replace("<", "\\u003c")
    meanings = "".join(f"<li><b>{name}</b>: {html.escape(what)}.</li>" for name, what in RELATIONS.items())
    line = f"{WIDTH}px solid rgb{RED}"
    return (
        Path(__file__).with_name("page.html").read_text("utf-8")
        .replace("TITLE", html.escape(title)).replace("MEANINGS", meanings).replace("LINE", line)
        .replace("COLUMNS", json.dumps(COLUMNS)).replace("RELATIONS", json.dumps([*RELATIONS, NONE]))
        .replace("ANSWERS", ANSWERS).replace("GIVEN", given)
    )  # fmt: skip
