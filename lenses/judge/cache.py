"""Verdicts that are kept: one file for each, so that a run that was cut short goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

from lenses.judge.questions import Question, Verdict, digest
from workbench.errors import ReadingError
from workbench.files import atomic_write


class Kept:
    """Verdicts of one judge in a folder, or in memory where there is none.

    A file is complete or not there; several runs may share the folder, and several judges.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, judge: str) -> None:
        self._memory: dict[str, Verdict] = {}
        self.folder = None
        if folder is not None:
            self.folder = Path(folder) / digest(judge)
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ReadingError(f"cache={os.fspath(folder)!r} cannot be made a folder: {error}.") from error
            if not (told := self.folder / "judge.json").exists():
                atomic_write(told, json.dumps({"judge": judge}))

    def get(self, question: Question) -> Verdict | None:
        """The verdict on a question; None where there is none."""
        if self.folder is None:
            return self._memory.get(question.key)
        path = self.folder / f"{question.key}.json"
        try:
            found = json.loads(path.read_text("utf-8"))
            lists = [tuple(map(str, found[name])) for name in ("concrete", "abstract", "elsewhere")]
            return Verdict(*lists, failed=str(found["failed"]), said=str(found["said"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ReadingError(
                f"{path} is no verdict ({error!r}): it was changed by something else. Delete it, and it is asked again."
            ) from error

    def put(self, question: Question, verdict: Verdict) -> None:
        if self.folder is None:
            self._memory[question.key] = verdict
            return
        found = {
            "concrete": verdict.concrete, "abstract": verdict.abstract, "elsewhere": verdict.elsewhere,
            "failed": verdict.failed, "said": verdict.said, "words": question.words,
        }  # fmt: skip
        atomic_write(self.folder / f"{question.key}.json", json.dumps(found))
