"""What a frozen language model knows at a word: its own thing's attributes, or just anybody's?

    python benchmarks/reading.py [--llm=scenes_llm] [--pairs=3000]

Captions of two things in a stated relation, all shapes and colours said and different, in three
languages, each said twice as the diffusion transformer has them read (``models/captions.py``). At
the second copy's nouns and colours, a linear readout of the hidden state tells

    colour, shape     of the thing that the word belongs to
    other colour, ..  of the other thing: a model that only keeps a list of what was said reads
                      both equally well, and nobody can bind by it
    place             the side that the thing is on: left, right, above, below

Prints one JSON object: shares of held-out captions told right, [layer], embeddings first. Chance is
1 in 8 for colours, 1 in 6 for shapes, 1 in 4 for places.
"""

import argparse
import datetime
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax import modules, weights
from cosdiff_jax.data.scenes import grammar, lexicon
from cosdiff_jax.data.tokenizer import Tokenizer
from cosdiff_jax.models import captions
from cosdiff_jax.report import facts

RIDGE = 0.01  # as a share of the variance of each coordinate
TRAINED = 0.8  # share of the captions that the readout is fitted to


def related(number: int, rng: np.random.Generator) -> list[grammar.Spec]:
    """Specs of two things whose shapes, colours and relation are said, nothing shared."""
    found = []
    while len(found) < number:
        spec = grammar.sample_spec(rng)
        if spec.relation and spec.distinct:
            found.append(spec)
    return found


def ends(tokenizer: Tokenizer, caption: str, spellings: list[tuple[str, ...]]) -> list[int]:
    """Which token of a caption, bos first, is the last of each word, however that is spelt."""
    spans = tokenizer.fast(caption, return_offsets_mapping=True)["offset_mapping"]
    found, left = {}, caption
    # The longest first: one word may be a part of another (圆, 圆环).
    ways = [(spelt, which) for which, known in enumerate(spellings) for spelt in known]
    for spelt, which in sorted(ways, key=lambda way: -len(way[0])):
        if which not in found and spelt in left:
            last = left.index(spelt) + len(spelt) - 1
            left = left.replace(spelt, " " * len(spelt), 1)
            found[which] = 1 + max(i for i, (a, b) in enumerate(spans) if a <= last < b)
    return [found[which] for which in range(len(spellings))]


def told(x: np.ndarray, said: list[Any]) -> float:
    """How often a ridge regression on the classes' indicators picks the right one, held out."""
    names, label = np.unique(np.array([str(value) for value in said]), return_inverse=True)
    fitted = int(TRAINED * len(x))
    x = (x - x[:fitted].mean(axis=0)) / (x[:fitted].std(axis=0) + 1e-6)
    wanted = np.eye(len(names))[label]
    mean = wanted[:fitted].mean(axis=0)
    known = x[:fitted]
    normal = known.T @ known + RIDGE * fitted * np.eye(x.shape[1])
    w = np.linalg.solve(normal, known.T @ (wanted[:fitted] - mean))
    picked = np.argmax(x[fitted:] @ w + mean, axis=1)
    return round(float(np.mean(picked == label[fitted:])), 3)


def read(
    llm: tuple[Any, Any], tokenizer: Tokenizer, language: str, specs: list[grammar.Spec]
) -> dict[str, dict[str, list[float]]]:
    """Shares told right, by word and by what is asked, [layer]."""
    network, params = llm
    rng = np.random.default_rng(1)
    said = [grammar.caption(spec, language, rng) for spec in specs]
    tokens, mask = tokenizer.encode(said, max(map(tokenizer.count, said)))
    (equals,) = tokenizer.fast.encode(" =", add_special_tokens=False)
    twice, real = captions.twice(jnp.asarray(tokens), jnp.asarray(mask), equals)
    text = jax.jit(network.apply, static_argnames="layers")(
        {"params": params}, twice, real, layers=True
    )
    hidden = np.asarray(text.layers, np.float64)

    asked = {"place": [side for s in specs for side in (s.relation, grammar.OPPOSITE[s.relation])]}
    for name in ("colour", "shape"):
        asked[name] = [getattr(group, name) for spec in specs for group in spec.groups]
        asked[f"other {name}"] = [getattr(g, name) for spec in specs for g in spec.groups[::-1]]
    found: dict[str, dict[str, list[float]]] = {}
    for word, attribute in (("noun", "shape"), ("colour", "colour")):
        known = {"shape": lexicon.SHAPE, "colour": lexicon.COLOUR}[attribute][language]
        spellings = [[known[getattr(group, attribute)] for group in spec.groups] for spec in specs]
        rows = np.repeat(np.arange(len(specs)), 2)
        # The second copy's word stands as many places on as the first has tokens, bos included.
        places = [ends(tokenizer, *one) for one in zip(said, spellings, strict=True)]
        x = hidden[:, rows, np.ravel(places) + np.repeat(mask.sum(axis=1), 2)]
        found[word] = {
            name: [told(layer, values) for layer in x]
            for name, values in asked.items()
            if name != attribute
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llm", default="scenes_llm")
    parser.add_argument("--pairs", type=int, default=3000)
    args = parser.parse_args()
    entry = {"name": "asset", "asset": {"path": args.llm}}
    llm = modules.model("language_model", entry), modules.parameters(entry)
    tokenizer = Tokenizer(weights.folder(args.llm) / "tokenizer.json")
    specs = related(args.pairs, np.random.default_rng(0))
    print(
        json.dumps(
            {
                "llm": args.llm,
                "digest": weights.digest(llm[1]),
                "pairs": args.pairs,
                "date": datetime.date.today().isoformat(),
                **facts.machine(),
                "versions": facts.versions(),
                **{name: read(llm, tokenizer, name, specs) for name in grammar.LANGUAGES},
            }
        )
    )


if __name__ == "__main__":
    main()
