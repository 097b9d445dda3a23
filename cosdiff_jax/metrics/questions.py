"""Would whoever looks at the pictures say yes to what is asked of them?

    questions_yes = mean over prompts of mean over their questions and pictures of P(yes)

Questions that a faithful picture answers with yes, put to a network that sees: TIFA (Hu et al.
2023, https://arxiv.org/abs/2303.11897, section 3) and DPG-Bench (Hu et al. 2024,
https://arxiv.org/abs/2403.05135, section 4.2) count such answers. No such network is here: the
caller brings one. Which question depends on which, as DPG-Bench tells, is not looked at.
"""

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

# Where a prompt set's own records keep the words of a question.
FIELDS = ("question", "question_natural_language")


@runtime_checkable
class Answers(Protocol):
    """Looks at pictures and says how sure it is of yes."""

    def __call__(self, images: UInt8[np.ndarray, "K X Y C"], questions: Sequence[str]) -> Any:
        """Probabilities [K Q] of yes, in [0, 1]: of each picture, to each question."""
        ...


class Sums(NamedTuple):
    """State: sum of the prompts' mean probabilities, and number of prompts."""

    yes: float
    prompts: int


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The mean probability of yes.

    Attributes:
      answers: looks at the pictures.
      name: of it, for messages.
    """

    answers: Answers
    name: str = "answers"

    def init(self) -> Sums:
        """Nothing seen yet."""
        return Sums(0.0, 0)

    def update(
        self,
        state: Sums,
        images: UInt8[np.ndarray, "P K X Y C"],
        questions: Sequence[Sequence[str]],
    ) -> Sums:
        """Add P prompts: K pictures and some questions of each; without any it does not count.

        Raises:
          ValueError: numbers of prompts that differ, or answers that are not [K Q] in [0, 1].
        """
        if len(images) != len(questions):
            raise ValueError(f"{len(images)} groups of pictures, questions of {len(questions)}")
        for group, asked in zip(images, questions, strict=True):
            if asked:
                mean = float(self._told(group, asked).mean())
                state = Sums(state.yes + mean, state.prompts + 1)
        return state

    def merge(self, a: Sums, b: Sums) -> Sums:
        """The state of both together."""
        return Sums(a.yes + b.yes, a.prompts + b.prompts)

    def result(self, state: Sums) -> dict[str, float]:
        """``questions_yes``: the mean over prompts, in [0, 1]; NaN of nothing."""
        return {"questions_yes": state.yes / (state.prompts or math.nan)}

    def _told(self, images: np.ndarray, asked: Sequence[str]) -> np.ndarray:
        told, wanted = self.answers(images, asked), (len(images), len(asked))
        try:
            yes = np.asarray(told, np.float64)
        except (TypeError, ValueError):
            raise ValueError(f"{self.name} did not return numbers of shape {wanted}") from None
        if yes.shape != wanted:
            raise ValueError(
                f"{self.name} returned shape {yes.shape} for {wanted[0]} pictures and {wanted[1]} "
                f"questions: it should be {wanted}"
            )
        if not ((yes >= 0) & (yes <= 1)).all():
            raise ValueError(f"{self.name} returned what is no probability, outside [0, 1]")
        return yes


def asked(prompt: Mapping[str, Any]) -> list[str]:
    """The questions of a prompt, which stand in its ``questions`` as texts or as FIELDS of records.

    Raises:
      ValueError: a question that is neither.
    """
    found = []
    for question in prompt.get("questions") or ():
        if isinstance(question, Mapping):
            question = next((question[field] for field in FIELDS if field in question), None)
        if not isinstance(question, str) or not question.strip():
            raise ValueError(
                f"questions of {prompt.get('caption', 'a prompt')!r} are neither texts nor records "
                f"with {' or '.join(map(repr, FIELDS))}"
            )
        found.append(question.strip())
    return found


def load(name: str) -> Answers:
    """What MODULE:FUNCTION names.

    Raises:
      ValueError: it cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module does wrong
        said = " ".join(str(error).split())
        raise ValueError(f"{name}: no such MODULE:FUNCTION ({said})") from None
    if not callable(found):
        raise ValueError(f"{name}: this is no function")
    return found
