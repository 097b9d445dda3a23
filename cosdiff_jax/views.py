"""How alike a prompt's pictures are in another view than CLIP's: more measures of an evaluation.

Cosines mean what their feature sees: ``latent`` where light and colour are, ``latent_clip`` what a
caption could tell apart, ``vgg`` how alike two pictures look, place by place, ``hidden`` what a
flow model's own middle layer makes of them beside their caption at t = 0.1, whatever its training
looked at (``cosdiff_jax/diversity/README.md`` has what each of them is blind to).
"""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from cosdiff_jax import build, networks, perceptual, trained, weights
from cosdiff_jax.data.groups import to_float
from cosdiff_jax.features.feature import Feature
from cosdiff_jax.features.latent import LatentFeature
from cosdiff_jax.features.latent_clip import LatentClipFeature
from cosdiff_jax.features.pictures import fit
from cosdiff_jax.features.vgg import VggFeature
from cosdiff_jax.metrics import cosine
from cosdiff_jax.shapes import Frozen, TextStream

_log = logging.getLogger("cosdiff_jax")
NAMES = ("latent", "latent_clip", "hidden", "vgg")


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Mean and top-k cosine of a prompt's pictures in one feature, and their Vendi score.

    Attributes:
      name: of the feature; the numbers are ``mean_cosine_NAME``, ``top_cosine_NAME`` and
        ``vendi_NAME``.
      feature: what is compared.
      frozen: weights of what it looks through.
      vae: encodes the pictures for a feature of latents; None for one of pictures.
      side: of the square in pixels that the middle of every picture is brought to.
      top_percent: share of the pairs, the most alike, in the top-k cosine.
      read: caption -> the stream "1 T" of a feature that reads it beside the pictures, None of one
        that is too long; None where the feature sees pictures alone.
    """

    name: str
    feature: Feature
    frozen: Frozen
    vae: Any
    side: int
    top_percent: float
    read: Callable[[str], TextStream | None] | None = None

    @functools.cached_property
    def digest(self) -> str:
        """What the numbers depend on."""
        return f"{self.name} {weights.digest(self.frozen)} at {self.side}"

    def __call__(
        self, images: UInt8[np.ndarray, "K X Y C"], group: Mapping[str, Any]
    ) -> dict[str, float]:
        """The three numbers; nothing of a single picture, or where a caption cannot be read."""
        if images.shape[-1] != 3:
            raise ValueError(f"--view={self.name} sees colours, and these pictures have none")
        if len(images) < 2:
            return {}
        text = () if self.read is None else (self.read(group["caption"]),)
        if any(stream is None for stream in text):
            return {}
        f = self._see(self.frozen, to_float(images), *text)
        found = cosine.result(cosine.update(cosine.init(), f[None], self.top_percent))
        return {f"{name}_{self.name}": found[name] for name in found}

    @functools.cached_property
    def _see(self) -> Callable[..., Float[jax.Array, "K F"]]:
        def see(frozen: Frozen, images: jax.Array, *text: TextStream) -> jax.Array:
            x: Any = fit(images, self.side)
            if self.vae is not None:
                x = self.vae.apply({"params": frozen["vae"]}, x, method="to_latents")
            return self.feature(frozen, x, *text)

        return jax.jit(see)


def load(said: Sequence[str], vgg: str | None, side: int, top_percent: float) -> list[View]:
    """The views that are asked for.

    Args:
      said: names, with =FOLDER where the networks are not the embedded ones: of ``latent`` an
        autoencoder's weights, of ``latent_clip`` a CLIP's of latents, whose recipe names its own,
        of ``hidden`` a flow model, by default the embedded base.
      vgg: folder of VGG16, as for ``perceptual.load``.
      side: of the pictures, as the eye sees them; ``latent`` takes the nearest that divides into
        latents, ``latent_clip`` and ``hidden`` what their network was trained on.
      top_percent: as for ``View``.

    Raises:
      ValueError: an unknown name, or one that is named twice; networks that are not there, that
        read other channels than the latents have, or that draw no colours.
    """
    views = []
    for each in said:
        name, _, folder = each.partition("=")
        if name not in NAMES or (name == "vgg" and folder):
            raise ValueError(
                f"--view={each}: there are {', '.join(NAMES)}, all but vgg with =FOLDER"
            )
        if name in {view.name for view in views}:
            raise ValueError(f"--view={each}: {name} is named twice")
        frozen: Frozen = {}
        feature: Feature = LatentFeature()
        vae: Any = None
        read, fits = None, side
        if name == "vgg":
            if vgg is None:
                raise ValueError("--view=vgg looks through VGG16: name its folder with --vgg")
            network, frozen["vgg"] = perceptual.network(vgg)
            feature = VggFeature(vgg=network, layers=perceptual.levels(network))
        elif name == "latent_clip":
            source = folder or networks.ASSETS["latent_clip"]
            clip, frozen["latent_clip"], _ = networks.network("latent_clip", source)
            vae, frozen["vae"], _ = networks.network("vae", _encoder(source))
            if clip.channels != vae.latent:
                raise ValueError(
                    f"--view={each}: {source} reads {clip.channels} channels, and latents have "
                    f"{vae.latent}"
                )
            feature, fits = LatentClipFeature(clip=clip), clip.size * _factor(vae)
        elif name == "hidden":
            feature, frozen, vae, read, fits = _hidden(folder or "fusion_base")
        else:
            vae, frozen["vae"], _ = networks.network("vae", folder or networks.ASSETS["vae"])
            fits = side - side % _factor(vae)
        views.append(
            View(
                name=name,
                feature=feature,
                frozen=frozen,
                vae=vae,
                side=fits,
                top_percent=top_percent,
                read=read,
            )
        )
    return views


def _hidden(source: str) -> tuple[Feature, Frozen, Any, Callable[[str], TextStream | None], int]:
    """Feature, weights, autoencoder, reader of captions and side of a flow model's pictures."""
    model = trained.load(source, ("llm", "vae"))
    if model.shape[2] != 3:
        raise ValueError(f"--view=hidden: {source} draws {model.shape[2]} channels, not colours")
    sampler = build.sampler(model.config, model.shape)
    unread: list[str] = []

    def read(caption: str) -> TextStream | None:
        try:
            tokens, mask, _ = model.read([caption])
        except ValueError as error:  # longer than the model's context
            if not unread:
                _log.warning("--view=hidden passes over what %s cannot read: %s", source, error)
                unread.append(caption)  # told of once
            return None
        return sampler.read(model.frozen, tokens, mask)[0]

    # What is looked through, the language model too: the digest is of it, and of no network that
    # the recipe draws with besides.
    frozen = {role: model.frozen[role] for role in ("llm", "vae") if role in model.frozen}
    frozen["anchor"] = model.params
    return build.hidden(model.config), frozen, sampler.vae, read, model.shape[0]


def _factor(vae: Any) -> int:
    """How many pixels a latent is wide."""
    return vae.patch * 2 ** (len(vae.widths) - 1)


def _encoder(source: str) -> str:
    """The autoencoder whose latents a CLIP was trained on, by its recipe."""
    recipe = weights.folder(source) / "recipe.json"
    if recipe.is_file():
        entry = json.loads(recipe.read_text())["vae"]
        if entry["name"] == "asset":
            return str(entry["asset"]["path"])
    raise ValueError(f"--view=latent_clip: the recipe of {source} names no autoencoder's weights")
