"""A byte-level BPE tokenizer: every string has tokens, and short ones have few.

Text is brought to Unicode NFC and to lower case first, and its first word gets the space that the
others have, so that "A red circle" at the head of a sentence is made of the tokens the models know
from its middle.
"""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from cosdiff_jax.data.scenes import lexicon

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""The special tokens in the order of their ids."""


class Tokenizer:
    """Texts to right-padded token arrays, through ``transformers.PreTrainedTokenizerFast``."""

    def __init__(self, path: str | Path):
        """Reads a ``tokenizer.json``.

        Raises:
          ValueError: there is no such file, or its special tokens are not SPECIAL.
        """
        # It takes seconds to import, and most of this package never needs it. What it has to say
        # of absent deep-learning libraries would only startle.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import PreTrainedTokenizerFast

        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"no tokenizer at {self.path}")
        self.fast = PreTrainedTokenizerFast(
            tokenizer_file=str(self.path),
            pad_token=SPECIAL[PAD],
            eos_token=SPECIAL[EOS],
            bos_token=SPECIAL[BOS],
            unk_token=SPECIAL[UNKNOWN],
        )
        found = self.fast.convert_tokens_to_ids(list(SPECIAL))
        if found != list(range(len(SPECIAL))):
            raise ValueError(f"{self.path}: special tokens have ids {found}, not 0 to 3")

    @property
    def vocab(self) -> int:
        """How many tokens there are, special ones included."""
        return len(self.fast)

    def count(self, text: str) -> int:
        """How many tokens a text has, the first one (bos) included."""
        return 1 + len(self._ids([text])[0])

    def encode(
        self, texts: Sequence[str], length: int, eos: bool = False
    ) -> tuple[Int[np.ndarray, "P T"], Bool[np.ndarray, "P T"]]:
        """Tokens with bos in front, right-padded to the length, and the mask of real ones.

        Args:
          texts: P texts.
          length: T, the context: tokens per row.
          eos: whether a row ends with eos (language-model training wants it).

        Raises:
          ValueError: a text does not fit, naming it, its tokens and the context.
        """
        tokens = np.full((len(texts), length), PAD, np.int32)
        mask = np.zeros((len(texts), length), bool)
        for row, (text, ids) in enumerate(zip(texts, self._ids(texts), strict=True)):
            ids = [BOS, *ids, *([EOS] if eos else [])]
            if len(ids) > length:
                raise ValueError(
                    f"prompt {text!r} has {len(ids)} tokens, more than the context of {length}"
                )
            tokens[row, : len(ids)] = ids
            mask[row, : len(ids)] = True
        return tokens, mask

    def decode(self, tokens: Int[np.ndarray, " T"]) -> str:
        """The text of one row, special tokens left out."""
        text = self.fast.decode([int(token) for token in tokens if token >= len(SPECIAL)])
        # The first word was given the space that every other word has.
        return str(text).removeprefix(" ")

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        # A prompt that spells out "<eos>" means the five characters, not the end of the text.
        return self.fast(list(texts), add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]


def load(path: str | Path) -> Tokenizer:
    """Reads the tokenizer that `train` wrote.

    Raises:
      ValueError: there is no such file, or its special tokens are others.
    """
    return Tokenizer(path)


def train(
    corpus: Iterable[str],
    vocab_size: int,
    path: str | Path,
    words: Sequence[str] = lexicon.CHINESE_WORDS,
) -> Tokenizer:
    """Learns byte-level BPE merges from lines of text and writes ``tokenizer.json``.

    Args:
      corpus: lines of text.
      vocab_size: how many tokens, at least 260 (four special ones and every byte).
      path: the file to write.
      words: Chinese words that no token may reach beyond; other Chinese characters stand alone.
        Without this, merges run over a colour into half a shape, and a model meets a token it
        has never seen where it should meet a new combination of words it knows.

    Raises:
      ValueError: too small a vocabulary.
    """
    import tokenizers
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(SPECIAL) + len(alphabet):
        raise ValueError(f"a vocabulary of {vocab_size} has no room for the 256 bytes")
    bpe = tokenizers.Tokenizer(models.BPE(unk_token=SPECIAL[UNKNOWN]))
    bpe.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Lowercase(),
            normalizers.Strip(),
            normalizers.Prepend(" "),
        ]
    )
    longest_first = sorted(map(re.escape, words), key=len, reverse=True)
    chinese = "|".join([*longest_first, "[\u4e00-\u9fff]"])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(chinese), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        # BPE orders equals by the alphabet's order: sorted, the same lines give the same file.
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    bpe.save(str(partial))
    partial.replace(target)
    return Tokenizer(target)
