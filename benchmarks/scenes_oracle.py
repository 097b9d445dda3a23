"""How often the oracle reads held-out renders right, and how fast: one JSON line.

python benchmarks/scenes_oracle.py [--number=2000]        30 s on one core
"""

import argparse
import json
import time

import numpy as np

from cosdiff_jax.data.scenes import grammar, oracle, renderer


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--number", type=int, default=2000, help="pictures")
    number = options.parse_args().number
    rows = {f"noise_{noise}": accuracy(number, noise) for noise in (0.0, 0.05, 0.1)}
    print(json.dumps({"benchmark": "scenes_oracle", "pictures": number, **rows}))


def accuracy(number: int, noise: float, seed: int = 0) -> dict[str, float]:
    """Shares of attributes read right; ``noise`` is a standard deviation for pixels in [0, 1]."""
    rng = np.random.default_rng(seed)
    right = dict.fromkeys(oracle.ATTRIBUTES, 0.0)
    asked = dict.fromkeys(oracle.ATTRIBUTES, 0)
    seconds = 0.0
    for _ in range(number):
        scene = grammar.sample_scene(grammar.sample_spec(rng, "test"), rng)
        image = renderer.render(scene) + 255 * noise * rng.normal(size=(64, 64, 3))
        pixels = np.clip(np.round(image), 0, 255).astype(np.uint8)
        start = time.process_time()
        reading = oracle.read(pixels)
        seconds += time.process_time() - start
        score = oracle.score_reading(reading, grammar.describe(scene))
        for name in oracle.ATTRIBUTES:
            value = score[name]
            if value is not None:
                # Every object has a colour, a shape and a size; a picture has one of the others.
                times = len(scene.objects) if name in ("colour", "shape", "size") else 1
                right[name] += times * value
                asked[name] += times
    result = {name: round(right[name] / asked[name], 5) for name in right}
    result["attributes"] = round(sum(right.values()) / sum(asked.values()), 5)
    result["cpu_ms_per_picture"] = round(seconds / number * 1000, 2)
    return result


if __name__ == "__main__":
    main()
