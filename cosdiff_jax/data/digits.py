"""Real handwriting: the 1,797 digits of 8x8 pixels that ship inside scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998 (CC BY 4.0), its test part. A pixel counts the ink in a 4x4 block of the
original bitmap, 0..16. The pictures stay 8x8: enlarging them would add no information, and at
patch 1 they are 64 image tokens, as many as 16x16 pixels would be at patch 2.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8

from cosdiff_jax.data.scenes import lexicon
from cosdiff_jax.data.scenes.grammar import LANGUAGES, digit_caption

SIZE = 8

# Fixed for ever: another split would make old and new numbers incomparable.
_SPLIT_SEED = 0


def load(
    split: str,
) -> tuple[UInt8[np.ndarray, "N 8 8 1"], Int[np.ndarray, " N"]]:
    """All pictures of "train" or "test" (ink is white, 0..255) and the digits they show.

    One in five pictures of each digit is held out, always the same ones: 1,442 to train with and
    355 to test.

    Raises:
        ValueError: an unknown split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"digits: split {split!r} is neither train nor test")
    images, digits, held_out = _all()
    chosen = held_out if split == "test" else ~held_out
    return images[chosen], digits[chosen]


@functools.cache
def _all() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    # Imported where it is used: it is a third of the time that a command takes to start.
    from sklearn.datasets import load_digits

    rows, digits = (np.asarray(part) for part in load_digits(return_X_y=True))
    images = np.round(rows * (255 / 16)).astype(np.uint8).reshape(-1, SIZE, SIZE, 1)
    digits = digits.astype(np.int32)
    rng = np.random.default_rng(_SPLIT_SEED)
    held_out = np.zeros(len(digits), bool)
    for digit in range(10):
        places = np.flatnonzero(digits == digit)
        held_out[rng.permutation(places)[: len(places) // 5]] = True
    return images, digits, held_out


@dataclasses.dataclass(frozen=True, kw_only=True)
class DigitGroups:
    """Groups of one caption and K different real pictures of the digit it asks for.

    Group ``i`` is a function of ``(seed, i)`` alone. Digits and languages come round in turn, so
    that every 10 L consecutive groups hold each digit in each of the L languages once; wording
    (training only; the test says the plainest) and pictures are drawn.

    Attributes:
        split: "train" or "test".
        samples: K, pictures a prompt; no picture comes twice in a group.
        languages: of the captions, from "en", "zh", "ko".
        number: groups an epoch.
        seed: of the draw.

    Raises:
        ValueError: on construction, for an unknown split or language, or a K that a digit has
            not enough pictures for.
    """

    split: str = "train"
    samples: int = 8
    languages: Sequence[str] = LANGUAGES
    number: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.languages or set(self.languages) - set(LANGUAGES):
            raise ValueError(
                f"digits: languages {list(self.languages)} must be some of {', '.join(LANGUAGES)}"
            )
        if self.number < 1:
            raise ValueError(f"digits: number is {self.number}, but an epoch needs a group")
        most = int(np.bincount(load(self.split)[1]).min())
        if not 1 <= self.samples <= most:
            raise ValueError(
                f"digits: samples is {self.samples}, but the {self.split} split has between 1 and "
                f"{most} different pictures for every digit"
            )

    def __len__(self) -> int:
        return self.number

    def digit(self, index: int) -> int:
        """The digit that group ``index`` asks for."""
        return self._place(index) % 10

    def caption(self, index: int) -> str:
        """The caption of group ``index``, without drawing its pictures."""
        language = self.languages[self._place(index) // 10 % len(self.languages)]
        words = self._rng(index, 0) if self.split == "train" else None
        return digit_caption(self.digit(index), language, words)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``{"caption": str, "images": uint8 [K 8 8 1], "digit": int}``."""
        digit = self.digit(index)
        images, digits = load(self.split)
        places = np.flatnonzero(digits == digit)
        chosen = self._rng(index, 1).choice(places, self.samples, replace=False)
        return {"caption": self.caption(index), "images": images[chosen], "digit": digit}

    def _place(self, index: int) -> int:
        if not 0 <= index < self.number:
            raise IndexError(f"group {index} of {self.number}")
        return int(index)

    def _rng(self, index: int, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.split == "test", stream, self._place(index)])


def digit_of(caption: str) -> int | None:
    """Which digit a caption asks for, in any of the languages and as word or numeral.

    None when it names none, or more than one.
    """
    found = set()
    words = caption.lower().replace("一个", " ").split()
    for part in words:
        found |= {int(numeral) for numeral in re.findall(r"\d+", part) if int(numeral) < 10}
        letters = re.sub(r"[^a-z]", "", part)
        for digit in range(10):
            english, chinese, korean = (lexicon.DIGIT[name][digit] for name in ("en", "zh", "ko"))
            # Chinese writes no spaces; 이 and 일 are numerals only as words of their own.
            if letters == english or chinese in part or part == korean:
                found.add(digit)
    return found.pop() if len(found) == 1 else None
