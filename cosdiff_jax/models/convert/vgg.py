"""torchvision's VGG <-> ``models.vgg.VGG``: the trunk, ``features.{n}.weight`` and ``.bias``.

The numbers n count ReLUs and pooling layers too, so they tell the levels apart, and no config.json
is needed: VGG11, 13, 16 and 19 are all recognised. The classifier is not read. torchvision itself
hands out pickles, which are not opened here; the same names stand in safetensors files of others.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cosdiff_jax.models.convert import layout
from cosdiff_jax.models.convert.layout import Entry
from cosdiff_jax.models.vgg import VGG
from cosdiff_jax.shapes import Params


def module(tensors: layout.Arrays) -> VGG:
    """The trunk that the names and shapes of published tensors describe.

    Raises:
      ValueError: they are not those of a VGG without batch normalisation.
    """
    found = {name: re.fullmatch(r"features\.(\d+)\.weight", name) for name in tensors}
    shapes = {int(hit[1]): tensors[name].shape for name, hit in found.items() if hit}
    if 0 not in shapes:
        raise ValueError(
            "no tensor features.0.weight: these are not the names of torchvision's VGG"
        )
    widths: list[int] = []
    convolutions: list[int] = []
    before = -3
    for place in sorted(shapes):
        if len(shapes[place]) != 4:
            raise ValueError(
                f"features.{place}.weight is no convolution: VGG with batch normalisation is not "
                "supported"
            )
        # A ReLU stands between two convolutions; between two levels also a pooling layer.
        if place == before + 3:
            widths.append(shapes[place][0])
            convolutions.append(0)
        elif place != before + 2:
            raise ValueError(f"features.{place}.weight stands where VGG has no convolution")
        convolutions[-1] += 1
        before = place
    return VGG(widths=tuple(widths), convolutions=tuple(convolutions))


def table(model: VGG) -> list[Entry]:
    """Every parameter of the trunk and the published tensors it is made of."""
    entries: list[Entry] = []
    place, inputs = 0, 3
    for level, (width, number) in enumerate(zip(model.widths, model.convolutions, strict=True), 1):
        for index in range(1, number + 1):
            ours, theirs = f"conv{level}_{index}", f"features.{place}"
            entries += [
                layout.convolution(f"{ours}/kernel", f"{theirs}.weight", 3, inputs, width),
                layout.vector(f"{ours}/bias", f"{theirs}.bias", width),
            ]
            place, inputs = place + 2, width
        place += 1
    return entries


@dataclasses.dataclass(frozen=True)
class Published:
    """A converted trunk: the module, and parameters under "vgg"."""

    vgg: VGG
    params: dict[str, Params]


def load(folder: str | Path) -> Published:
    """Read a folder's model.safetensors with torchvision's names.

    Raises:
      ValueError: the file is missing or broken, or a tensor missing, unknown or of a wrong shape.
    """
    published = layout.load_tensors(folder)
    model = module(published)
    trunk = {name: x for name, x in published.items() if name.startswith("features.")}
    return Published(model, {"vgg": layout.read(table(model), trunk)})


def export(
    networks: Mapping[str, VGG], params: Mapping[str, Params]
) -> tuple[dict[str, Any], layout.Arrays]:
    """Sizes and tensors of ``networks["vgg"]`` in the published layout."""
    model = networks["vgg"]
    config = {"widths": list(model.widths), "convolutions": list(model.convolutions)}
    return config, layout.write(table(model), params["vgg"])
