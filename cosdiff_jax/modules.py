"""The networks of a recipe, each by its role, and the weights of those that nobody trains."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp

from cosdiff_jax import tables, weights
from cosdiff_jax.shapes import Frozen, Params

_log = logging.getLogger(__name__)

# Key in Frozen -> role.
FROZEN = {
    "llm": "language_model",
    "vae": "vae",
    "clip": "clip",
    "latent_clip": "latent_clip",
    "vgg": "vgg",
    "anchor": "backbone",
}
# Objective -> the role it trains.
TRAINED = {
    "next_token": "language_model",
    "autoencoder": "vae",
    "contrastive": "clip",
    "contrastive_latents": "latent_clip",
    "flow_matching": "backbone",
}


def resolve(entry: tables.Entry) -> tables.Entry:
    """An entry that names an asset becomes the entry stored beside the asset's weights."""
    return weights.entry(entry["asset"]["path"]) if entry["name"] == "asset" else entry


def model(role: str, entry: tables.Entry) -> Any:
    """The module of one role.

    Raises:
      ValueError: no such model, or no such asset.
    """
    return tables.make(tables.MODELS[role], resolve(entry), role)


def parameters(entry: tables.Entry) -> Params | None:
    """The weights of an entry that names an asset; None for a model that starts from scratch."""
    return weights.load(entry["asset"]["path"]) if entry["name"] == "asset" else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The networks of a run; None where the config says "none" or nothing needs one."""

    language_model: Any = None
    vae: Any = None
    clip: Any = None
    latent_clip: Any = None
    vgg: Any = None
    backbone: Any = None


def models(config: Any, roles: tuple[str, ...] = tuple(tables.MODELS)) -> Models:
    """The modules of some roles."""
    return Models(**{role: model(role, config[role]) for role in roles})


def frozen(config: Any, roles: tuple[str, ...]) -> Frozen:
    """Weights nobody trains, as numpy; a frozen network without an asset is random.

    Args:
      config: the recipe.
      roles: keys of Frozen.
    """
    found: Frozen = {}
    for key in roles:
        entry = weaker(config.sample) if key == "weaker" else config[FROZEN[key]]
        if resolve(entry)["name"] == "none":
            continue
        stored = parameters(entry)
        found[key] = _random(config, key, model(FROZEN[key], entry)) if stored is None else stored
    return found


def _random(config: Any, key: str, network: Any) -> Params:
    """Untrained weights of a frozen network: for trying a recipe out, and for tests."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    if key == "llm":
        inputs = (tokens, tokens == 0)
    elif key == "vae":
        side = network.patch * 2 ** (len(network.widths) - 1)
        inputs = (jnp.zeros((1, side, side, network.channels)),)
    elif key in ("clip", "latent_clip"):
        shape = (1, network.size, network.size, network.channels)
        inputs = (jnp.zeros(shape), tokens, tokens == 0)
    elif key == "vgg":
        side = 2 ** len(network.widths)
        inputs = (jnp.zeros((1, side, side, 3)),)
    else:
        raise ValueError(
            "objective.flow_matching.anchor and feature=hidden compare with the weights the run "
            "starts from: set backbone.name=asset and backbone.asset.path"
        )
    _log.warning("%s: random weights, since no asset is named", FROZEN[key])
    return jax.jit(network.init)(jax.random.key(config.seed), *inputs)["params"]


def weaker(sample: Any) -> tables.Entry | None:
    """The network that autoguidance moves away from."""
    chosen = sample.guidance.get("composed", {}).get("weaker", {"name": "none"})
    if sample.guidance.name != "composed" or "autoguidance" not in chosen["name"].split("+"):
        return None
    path = chosen["autoguidance"]["path"]
    if not path:
        raise ValueError(
            "guidance.composed.weaker.autoguidance.path is empty: name a folder with the weights "
            "of a weaker network"
        )
    return {"name": "asset", "asset": {"path": path}}
