"""Do pictures show the text that was asked for, character by character?

    accuracy      1 - N_e / N    N_e: least edits that turn the text read into the text asked for
    hit rate      N_c / N        N_c: characters asked for that were read, in their order
    availability  share of pictures whose text is usable

N is the number of characters asked for; N_e, N_c and N are summed over pictures, so long texts
weigh more. Source: Gong et al. 2025, Seedream 2.0, https://arxiv.org/abs/2503.07703, section on
text rendering. It leaves open how N_c counts; here it is the longest common subsequence, so that
accuracy <= hit rate: what was read too much costs accuracy only, and may bring it below 0. Usable
is for people to say; without their word it is that the picture's own accuracy reaches ``enough``.

Reading pictures is not done here: texts come as strings, from whatever reader.
"""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WEIGHTS = {
    "text_accuracy": "text_characters",
    "text_hit_rate": "text_characters",
    "text_availability": "text_pictures",
}
"""Of each share the number that it is a share of: sums over prompts need both."""


class Counts(NamedTuple):
    """State: edits, hits and characters asked for, usable pictures and pictures."""

    edits: int
    hits: int
    characters: int
    usable: int
    pictures: int


@dataclass(frozen=True, kw_only=True)
class TextRendering:
    """Accuracy, hit rate and availability.

    Attributes:
      enough: from what accuracy on a picture's text is usable where nobody said; 1 is free of
        error.
      spaces: whether white space counts; readers are unsure of it, and Chinese has none.
      case: whether A and a differ.
    """

    enough: float = 1.0
    spaces: bool = False
    case: bool = True

    def init(self) -> Counts:
        """Nothing seen yet."""
        return Counts(0, 0, 0, 0, 0)

    def update(
        self,
        state: Counts,
        asked: Sequence[str],
        read: Sequence[str],
        usable: Sequence[bool] | None = None,
    ) -> Counts:
        """Add pictures: the text asked for, the text read, and whether people find it usable.

        Raises:
          ValueError: numbers of texts that differ, or nothing asked for in a picture.
        """
        if len(asked) != len(read) or (usable is not None and len(usable) != len(asked)):
            said = "" if usable is None else f" and {len(usable)} opinions"
            raise ValueError(f"{len(asked)} texts asked for, {len(read)} read{said}")
        for place, (wanted, found) in enumerate(zip(asked, read, strict=True)):
            wanted, found = self.characters(wanted), self.characters(found)
            if not wanted:
                raise ValueError(f"text {place} asked for has no characters")
            errors = edits(found, wanted)
            good = 1.0 - errors / len(wanted) >= self.enough if usable is None else usable[place]
            state = Counts(
                state.edits + errors,
                state.hits + hits(found, wanted),
                state.characters + len(wanted),
                state.usable + bool(good),
                state.pictures + 1,
            )
        return state

    def merge(self, a: Counts, b: Counts) -> Counts:
        """The state of both together."""
        return Counts(*(x + y for x, y in zip(a, b, strict=True)))

    def result(self, state: Counts) -> dict[str, float]:
        """``text_accuracy``, ``text_hit_rate``, ``text_availability``; NaN of nothing."""
        characters, pictures = state.characters or math.nan, state.pictures or math.nan
        return {
            "text_accuracy": 1.0 - state.edits / characters,
            "text_hit_rate": state.hits / characters,
            "text_availability": state.usable / pictures,
        }

    def counted(self, state: Counts) -> dict[str, float]:
        """``result``, and what its shares are of: ``text_characters`` and ``text_pictures``."""
        numbers = {"text_characters": state.characters, "text_pictures": state.pictures}
        return {**self.result(state), **{name: float(of) for name, of in numbers.items()}}

    def characters(self, text: str) -> str:
        """What counts of a text: composed (NFC), so a Korean syllable is one character."""
        # Folding case may take composed characters apart again, so it comes first.
        text = unicodedata.normalize("NFC", text if self.case else text.casefold())
        return text if self.spaces else "".join(text.split())


def edits(a: str, b: str) -> int:
    """Levenshtein's distance: insertions, deletions and replacements, each 1; O(|a| |b|)."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def hits(a: str, b: str) -> int:
    """Length of the longest common subsequence; O(|a| |b|)."""
    before = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b, start=1):
            row.append(before[j - 1] + 1 if x == y else max(before[j], row[j - 1]))
        before = row
    return before[-1]
