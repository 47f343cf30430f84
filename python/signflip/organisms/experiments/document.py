"""The document that `report` writes: answers by question, then a section for each experiment, in a fixed order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from signflip.errors import OrganismError
from signflip.files import read_text

HEAD = "# What the experiments gave"


@dataclass
class Document:
    """What is told of experiments, by their titles.

    Attributes
    ----------
    answers
        By question and title: the plain sentence for the top.
    sections
        By title: Markdown from its heading on.
    """

    answers: dict[str, dict[str, str]] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def say(self, title: str, section: str, answers: Mapping[str, str]) -> None:
        """Tell of an experiment, in place of what was told of it before."""
        for lines in self.answers.values():
            lines.pop(title, None)
        self.sections[title] = section.strip()
        for question, plain in answers.items():
            self.answers.setdefault(question, {})[title] = plain

    def text(self, preface: str, questions: Sequence[str], titles: Sequence[str]) -> str:
        """All of it as Markdown, in the order of the questions and titles."""
        parts = [HEAD, preface]
        for question in questions:
            own = self.answers.get(question, {})
            lines = [f"- *{title}*: {own[title]}" for title in titles if title in own]
            if lines:
                parts.append(f"**{question}**\n\n" + "\n".join(lines))
        return "\n\n".join([*parts, *(self.sections[title] for title in titles if title in self.sections)]) + "\n"

    @classmethod
    def read(cls, path: Path, questions: Sequence[str]) -> Document:
        """Take up what was written before; nothing where there is no file.

        Raises
        ------
        FileError
            If it cannot be read.
        OrganismError
            If it is not such a document.
        """
        if not path.exists():
            return cls()
        text = read_text(path, "the results")
        top, *sections = re.split(r"(?m)^(?=## )", text)
        if not text.startswith(HEAD + "\n") or not sections:
            raise OrganismError(f"{path}: expected results as `report` writes them, found another; remove it")
        found = cls(sections={one.split("\n", 1)[0].removeprefix("## "): one.strip() for one in sections})
        for question in questions:
            _, _, after = top.partition(f"**{question}**\n\n")
            lines = re.findall(r"^- \*(.+?)\*: (.*)$", after.partition("\n\n")[0], re.MULTILINE)
            if lines:
                found.answers[question] = dict(lines)
        return found


__all__ = ["Document"]
