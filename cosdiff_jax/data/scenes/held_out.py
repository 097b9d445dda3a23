"""Held-out Scenes prompts with pictures from the true distribution, rendered when asked for."""

import dataclasses
from typing import Any

import numpy as np

from cosdiff_jax.data.scenes import grammar, prior, renderer


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A source of groups: one prompt that training never sees, and K true pictures of it.

    A group has "caption", "images" uint8 [K 64 64 3], "spec" (what the caption means, as JSON)
    and "key" (its number).

    Attributes:
      prompts: (caption, what it means, K scenes) of each; no meaning twice.
    """

    prompts: tuple[tuple[str, grammar.Spec, tuple[grammar.Scene, ...]], ...]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        caption, spec, scenes = self.prompts[index]
        shape = (len(scenes), prior.SIDE, prior.SIDE, 3)
        images = np.array([renderer.render(scene) for scene in scenes], np.uint8).reshape(shape)
        said = {"caption": caption, "spec": grammar.spec_to_json(spec), "key": f"{index:05d}"}
        return {**said, "images": images}

    def asked(self) -> list[dict[str, Any]]:
        """The groups without their pictures."""
        return [
            {"caption": caption, "spec": grammar.spec_to_json(spec), "key": f"{index:05d}"}
            for index, (caption, spec, _) in enumerate(self.prompts)
        ]

    def redrawn(self, samples: int, seed: int) -> "HeldOut":
        """Other true pictures of the same prompts."""
        rng = np.random.default_rng([0xD4A7, seed])
        return HeldOut(
            tuple(
                (caption, spec, tuple(grammar.sample_scene(spec, rng) for _ in range(samples)))
                for caption, spec, _ in self.prompts
            )
        )


def held_out(number: int, samples: int, seed: int, described: bool = False) -> HeldOut:
    """Prompts distinct in meaning, in English, Chinese and Korean by turns.

    Args:
      number: how many prompts.
      samples: K, pictures of each; 0 for captions alone.
      seed: of everything.
      described: captions that say everything about their one picture, for retrieval.
    """
    # Another stream than the one data sets are built from: theirs begins with the seed.
    rng = np.random.default_rng([0xE7A1, seed])
    seen, prompts = set(), []
    while len(prompts) < number:
        spec = grammar.sample_spec(rng, "test")
        scenes = tuple(grammar.sample_scene(spec, rng) for _ in range(samples))
        if described:
            spec = grammar.describe(scenes[0])
        if spec in seen or grammar.split_of(spec) != "test":
            continue
        seen.add(spec)
        language = grammar.LANGUAGES[len(prompts) % len(grammar.LANGUAGES)]
        prompts.append((grammar.caption(spec, language, rng), spec, scenes))
    return HeldOut(tuple(prompts))
