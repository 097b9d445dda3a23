"""Do the measures see what they should? True pictures, spoilt in ways that are known.

    python benchmarks/sensitivity.py [--prompts=256] [--num=8] [--out=runs/sensitivity] [--nopage]

Held-out Scenes prompts. Every column is K true pictures of each prompt but for one thing:

    one colour     where the caption leaves a colour open, all pictures have the same one
    one place      the first object stands as near the middle as chance allows
    duplicates     one picture, K times
    wrong caption  the pictures of the next prompt
    noise          white noise of std 0.1 on a scale of 0 to 1

"true" is another draw of the same prompts, "reference" a third, which sets are held to. Writes
``metrics.json``, the figures and the page into ``--out``.
"""

import argparse
from pathlib import Path

import numpy as np

from cosdiff_jax import columns, comparison, weights
from cosdiff_jax.data.scenes import grammar, prior
from cosdiff_jax.data.scenes.held_out import HeldOut, held_out
from cosdiff_jax.entry import scenes_of
from cosdiff_jax.survey import Survey

# Scenes of a prompt among which those of one colour or place are looked for.
DRAWS = 64


def one_colour(scenes: list[prior.Scene], num: int) -> list[prior.Scene]:
    """The scenes that share the commonest colours."""
    looks = [tuple(item.colour for item in scene.objects) for scene in scenes]
    wanted = max(dict.fromkeys(looks), key=looks.count)
    order = sorted(range(len(scenes)), key=lambda i: -_shared(looks[i], wanted))
    return [scenes[i] for i in order[:num]]


def _shared(look: tuple, wanted: tuple) -> int:
    return sum(a == b for a, b in zip(look, wanted, strict=False))


def one_place(scenes: list[prior.Scene], num: int) -> list[prior.Scene]:
    """The scenes whose first object is nearest the middle."""

    def away(scene: prior.Scene) -> float:
        first = scene.objects[0]
        return (first.x - prior.SIDE / 2) ** 2 + (first.y - prior.SIDE / 2) ** 2

    return sorted(scenes, key=away)[:num]


class Changed:
    """A source whose groups are changed on the way."""

    def __init__(self, source, change):
        self.source, self.change = source, change

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        group = self.source[index]
        return {**group, "images": self.change(group["images"], index)}


def chosen(true: HeldOut, num: int, choose) -> HeldOut:
    """Scenes of the same prompts, chosen among more."""
    rng = np.random.default_rng([0x5E75, 1])
    return HeldOut(
        tuple(
            (
                said,
                spec,
                tuple(choose([grammar.sample_scene(spec, rng) for _ in range(DRAWS)], num)),
            )
            for said, spec, _ in true.prompts
        )
    )


def noisy(images: np.ndarray, index: int) -> np.ndarray:
    rng = np.random.default_rng([0x9015E, index])
    spoilt = images + 255 * 0.1 * rng.normal(size=images.shape)
    return np.clip(np.round(spoilt), 0, 255).astype(np.uint8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--num", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--nopage", action="store_true", help="the numbers alone")
    args = parser.parse_args()
    true = held_out(args.prompts, args.num, seed=0)
    sources = {
        "one colour": chosen(true, args.num, one_colour),
        "one place": chosen(true, args.num, one_place),
        "duplicates": Changed(true, lambda x, _: np.repeat(x[:1], len(x), axis=0)),
        "wrong caption": Changed(true, lambda x, i: true[(i + 1) % len(true)]["images"]),
        "noise": Changed(true, noisy),
        "true": true,
        "reference": true.redrawn(args.num, seed=1),
    }
    eye = columns.clip_eye("scenes_clip")
    # The name of a CLIP stays when its weights are replaced.
    seen_by = f"{eye.name} {weights.digest(eye.params)}"
    surveyed = {}
    for name, source in sources.items():
        survey = Survey(
            folder=args.out / "measured" / name.replace(" ", "_"),
            eye=eye,
            measures=[scenes_of],
            facts={"prompts": args.prompts, "num": args.num, "eye": seen_by},
            label=name,
        )
        survey.run(source)
        surveyed[name] = survey.result()
    drawn = [
        comparison.Column(
            name=name,
            surveyed=surveyed[name],
            pictures=lambda indices, source=source: [source[i]["images"] for i in indices],
        )
        for name, source in sources.items()
        if name != "reference"
    ]
    found = comparison.write(
        args.out,
        drawn,
        reference=surveyed["reference"],
        eye=eye.name,
        facts={"prompts": args.prompts, "num": args.num},
        page=not args.nopage,
    )
    print(comparison.text(found))


if __name__ == "__main__":
    main()
