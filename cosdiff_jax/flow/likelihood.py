"""Adaptive integration by diffrax: reference solutions, and how likely data are under a flow.

    ln p_0(x0) = ln N(z_1; 0, I) + integral from 0 to 1 of div v(z_t, t) dt,   dz/dt = v,  z_0 = x0

(Chen et al. 2018, eq. 8, with data at t = 0.) The prior is that of noise: a trajectory that ends
with a_1 above 0 is taken to end in pure noise all the same, as when it is sampled.
"""

import math
from collections.abc import Callable

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cosdiff_jax.flow.solver import Velocity


def solution(
    velocity: Velocity,
    z: Float[Array, "B *x"],
    *,
    start: float = 1.0,
    end: float = 0.0,
    tolerance: float = 1e-6,
    most: int = 4096,
) -> Float[Array, "B *x"]:
    """The flow from t = ``start`` to t = ``end`` by steps of adapted length (Tsitouras 5(4)).

    Args:
      velocity: the field, (z "B ...", t "B") -> v "B ...".
      z: the state at ``start``.
      start: 1 is noise.
      end: 0 is data; beyond ``start`` it inverts.
      tolerance: of a step's error, relative to z and absolute.
      most: steps; where they do not suffice it is an error at run time.
    """

    def field(t: Array, z: Array, _: None) -> Array:
        return velocity(z, _rows(z, t))

    return _integrate(field, z, start, end, tolerance, most)


def log_likelihood(
    velocity: Velocity,
    x0: Float[Array, "B *x"],
    *,
    key: jax.Array | None = None,
    probes: int = 0,
    tolerance: float = 1e-6,
    most: int = 4096,
) -> Float[Array, " B"]:
    """ln p(x0) in nats, one value per row.

    Rows must not see one another: a coupled field (repulsion) has no density of single rows.

    Args:
      velocity: the field; for a given scale of guidance it is the guided model's likelihood.
      x0: data.
      key: of the probes.
      probes: random signs n in the estimate div v ~ mean of n . dv/dz n (Hutchinson), unbiased at
        the cost of one derivative each; 0 takes all derivatives, one per value of a row.
      tolerance: see ``solution``.
      most: see ``solution``.

    Raises:
      ValueError: probes without a key.
    """
    if probes and key is None:
        raise ValueError("a likelihood by random probes needs a key")
    size = math.prod(x0.shape[1:])
    # The same for every row where all derivatives are taken; rows do not see one another.
    if probes:
        signs = jax.random.rademacher(key, (probes, *x0.shape), x0.dtype)  # pyright: ignore
        weight = 1 / probes
    else:
        unit = jnp.eye(size, dtype=x0.dtype).reshape(size, 1, *x0.shape[1:])
        signs = jnp.broadcast_to(unit, (size, *x0.shape))
        weight = 1.0

    def field(t: Array, state: tuple[Array, Array], _: None) -> tuple[Array, Array]:
        z, _total = state
        # Backwards, n . (dv/dz)^T n, for products in bfloat16 have no derivative forwards.
        v, pull = jax.vjp(lambda z: velocity(z, _rows(z, t)), z)

        def one(total: Array, n: Array) -> tuple[Array, None]:
            return total + jnp.sum((n * pull(n)[0]).reshape(z.shape[0], -1), axis=1), None

        total, _ = jax.lax.scan(one, jnp.zeros(z.shape[0], z.dtype), signs)
        return v, weight * total

    zero = jnp.zeros(x0.shape[0], x0.dtype)
    z, divergence = _integrate(field, (x0, zero), 0.0, 1.0, tolerance, most)
    square = jnp.sum(z.reshape(z.shape[0], -1) ** 2, axis=1)
    return divergence - 0.5 * (square + size * math.log(2 * math.pi))


def _integrate(field: Callable, state, start: float, end: float, tolerance: float, most: int):
    solved = diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        diffrax.Tsit5(),
        t0=start,
        t1=end,
        dt0=None,
        y0=state,
        stepsize_controller=diffrax.PIDController(rtol=tolerance, atol=tolerance),
        max_steps=most,
    )
    return jax.tree.map(lambda y: y[0], solved.ys)


def _rows(z: Array, t: Array) -> Array:
    return jnp.full(z.shape[:1], t, float)
