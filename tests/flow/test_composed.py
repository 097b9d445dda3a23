import dataclasses
import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.flow import grid
from cosdiff_jax.flow.composed import Composed, late, optimal_scale
from cosdiff_jax.flow.guidance import ClassifierFree, from_weight, to_weight
from cosdiff_jax.flow.solver import Euler, Heun, Midpoint, Remembering, RungeKutta4
from cosdiff_jax.flow.stochastic import Edm as EdmSolver
from cosdiff_jax.flow.trajectory import Cosine, DdpmLinear, Edm, LdmLinear, RectifiedFlow
from cosdiff_jax.flow.weaker import (
    Autoguidance,
    Given,
    PerturbedAttention,
    SkipLayer,
    check_interval,
)
from cosdiff_jax.shapes import TextStream

SIDE = (4, 3)
Z = jax.random.normal(jax.random.key(0), (6, *SIDE))
T = jnp.linspace(0.1, 1.0, 6)


def text(prompts, fill):
    kv = jnp.full((2, prompts, 3, 1, 4), fill)
    hidden = jnp.full((prompts, 3, 5), fill)
    return TextStream(keys=kv, values=kv, hidden=hidden, mask=jnp.ones((prompts, 3), bool))


TEXT, EMPTY = text(2, 0.7), text(1, 0.2)


def backbone(z, t, stream):
    said = jnp.repeat(stream.hidden.mean((1, 2)), z.shape[0] // stream.mask.shape[0])
    return jnp.sin(z + said[:, None, None] * jnp.arange(3.0)[None, None]) + t[:, None, None] * z


def weak(z, t, stream):
    return 0.8 * backbone(z, t, stream) + 0.1


def ask(guidance, z=Z, t=T, empty=EMPTY):
    return guidance(backbone, TEXT, empty)(z, t)


V_TEXT, V_EMPTY = backbone(Z, T, TEXT), backbone(Z, T, EMPTY)
FORMS = {
    "plain": {},
    "late": {"interval": (0.0, 0.6)},
    "optimal": {"optimal": True, "zero_start": True},
    "projected": {"parallel": 0.0, "radius": 1.5},
    "rescaled": {"rescale": 0.7},
    "weaker": {"weaker": (Given(backbone=weak, scale=1.0),)},
}


def flat(x):
    return np.asarray(x, np.float64).reshape(len(x), -1)


@pytest.mark.parametrize("form", FORMS)
def test_scale_one_is_no_guidance_whatever_the_form(form):
    out = ask(Composed(scale=1.0, **FORMS[form]), empty=None)
    np.testing.assert_array_equal(out, V_TEXT)


def test_every_form_does_something():
    plain = ask(Composed(scale=4.0))
    for form in ("late", "optimal", "projected", "rescaled"):
        assert np.abs(ask(Composed(scale=4.0, **FORMS[form])) - plain).max() > 0.05, form
    autoguided = Composed(scale=4.0, weaker=(Given(backbone=weak, scale=2.0),))
    assert np.abs(ask(autoguided) - plain).max() > 0.05


@pytest.mark.parametrize("knobs", [{}, {"interval": (0.2, 0.7)}, {"start": False}])
def test_without_corrections_it_is_classifier_free(knobs):
    free = ask(ClassifierFree(scale=4.0, **knobs))
    np.testing.assert_allclose(ask(Composed(scale=4.0, **knobs)), free, rtol=1e-5, atol=1e-5)
    # APG with eta = 1, no momentum and no bound; rescaling by nothing.
    loose = Composed(scale=4.0, parallel=1.0, momentum=0.0, radius=1e9, rescale=0.0, **knobs)
    np.testing.assert_allclose(ask(loose), free, rtol=1e-5, atol=1e-5)


def test_both_conventions_of_strength_are_one_guidance():
    w = 2.5
    assert to_weight(from_weight(w)) == w and from_weight(0.0) == 1
    published = (1 + w) * V_TEXT - w * V_EMPTY
    out = ask(ClassifierFree(scale=from_weight(w)))
    np.testing.assert_allclose(out, published, rtol=1e-5, atol=1e-5)


def test_an_array_of_a_scale_serves_every_scale_by_one_program():
    traced = []

    @jax.jit
    def run(scale):
        traced.append(scale)
        return [ask(form(scale=scale)) for form in (ClassifierFree, Composed)]

    for scale in (1.0, 4.0):
        for out in run(scale):
            np.testing.assert_allclose(out, ask(ClassifierFree(scale=scale)), rtol=1e-5, atol=1e-5)
    assert len(traced) == 1


def test_optimal_scale_is_the_least_squares_fit():
    k = flat(optimal_scale(V_TEXT, V_EMPTY))
    for row in range(len(T)):
        fit = np.linalg.lstsq(flat(V_EMPTY)[row][:, None], flat(V_TEXT)[row], rcond=None)[0]
        np.testing.assert_allclose(k[row], fit, rtol=1e-5)
    out = ask(Composed(scale=3.0, optimal=True))
    scaled = k[:, :, None] * np.asarray(V_EMPTY)
    np.testing.assert_allclose(out, scaled + 3 * (V_TEXT - scaled), rtol=1e-4, atol=1e-5)


def test_zero_start_stands_still_in_the_first_step_alone():
    out = ask(Composed(scale=3.0, zero_start=True))
    np.testing.assert_array_equal(out[T == 1], 0)
    np.testing.assert_array_equal(out[T < 1], ask(Composed(scale=3.0))[T < 1])


def test_rescaling_gives_the_std_of_the_captions_field():
    plain = flat(ask(Composed(scale=5.0)))
    for phi in (0.4, 1.0):
        out = flat(ask(Composed(scale=5.0, rescale=phi)))
        wanted = phi * flat(V_TEXT).std(axis=1) + (1 - phi) * plain.std(axis=1)
        np.testing.assert_allclose(out.std(axis=1), wanted, rtol=1e-5)
        cosine = (out * plain).sum(1) / np.linalg.norm(out, axis=1) / np.linalg.norm(plain, axis=1)
        np.testing.assert_allclose(cosine, 1, rtol=1e-5)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()])
def test_projection_leaves_the_part_along_the_clean_estimate_alone(path):
    guided = Composed(scale=5.0, parallel=0.0, trajectory=path)
    x0_text = flat(path.clean(Z, V_TEXT, T))
    x0 = flat(path.clean(Z, ask(guided), T))
    x0_free = flat(path.clean(Z, ask(ClassifierFree(scale=5.0)), T))
    unit = x0_text / np.linalg.norm(x0_text, axis=1, keepdims=True)
    along = lambda x: ((x - x0_text) * unit).sum(axis=1)  # noqa: E731
    np.testing.assert_allclose(along(x0), 0, atol=1e-4)
    assert np.abs(along(x0_free)).max() > 0.1
    # What is across it is classifier-free guidance's.
    across = x0_free - x0_text - along(x0_free)[:, None] * unit
    np.testing.assert_allclose(x0 - x0_text, across, atol=1e-4)


@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine()])
def test_the_radius_bounds_the_difference_of_clean_estimates(path):
    radius = 0.4
    guided = Composed(scale=5.0, radius=radius, trajectory=path)
    moved = flat(path.clean(Z, ask(guided), T)) - flat(path.clean(Z, V_TEXT, T))
    free = flat(path.clean(Z, ask(ClassifierFree(scale=5.0)), T)) - flat(path.clean(Z, V_TEXT, T))
    length, free_length = (np.linalg.norm(x, axis=1) for x in (moved, free))
    np.testing.assert_allclose(length, np.minimum(free_length, 4 * radius), rtol=1e-3)
    assert np.any(free_length > 4 * radius) and np.any(free_length < 4 * radius)


def test_momentum_is_a_running_sum_of_clean_differences():
    """Solved by hand beside the solver, in clean estimates, as the paper has it."""
    beta, scale, steps = -0.5, 3.0, 4
    guided = Composed(scale=scale, momentum=beta)
    field = guided(backbone, TEXT, EMPTY)
    assert isinstance(field, Remembering)
    out = jax.jit(lambda z: Euler()(field, z, steps))(Z)
    z, total = Z, 0.0
    for i in range(steps):
        t = jnp.full(6, 1 - i / steps)
        x_text, x_empty = (RectifiedFlow().clean(z, backbone(z, t, s), t) for s in (TEXT, EMPTY))
        total = (x_text - x_empty) + beta * total
        x0 = x_text + (scale - 1) * total
        z = z - (z - x0) / t[:, None, None] / steps
    np.testing.assert_allclose(out, z, rtol=1e-4, atol=1e-4)
    forgetful = Euler()(dataclasses.replace(guided, momentum=0.0)(backbone, TEXT, EMPTY), Z, steps)
    assert np.abs(out - forgetful).max() > 0.05
    at_zero, _ = field.ask(Z, jnp.zeros(6), jnp.zeros_like(Z))
    assert np.all(np.isfinite(at_zero))


def test_weaker_fields_are_moved_away_from():
    # Autoguidance alone: the weak field plus s times the difference, where s is above 1.
    alone = Composed(weaker=(Given(backbone=weak, scale=2.5),))
    v_weak = weak(Z, T, TEXT)
    out = ask(alone, empty=None)
    np.testing.assert_allclose(out, v_weak + 2.5 * (V_TEXT - v_weak), rtol=1e-4, atol=1e-5)
    # Skip-layer guidance over classifier-free guidance, added after it, in its own interval.
    skip = Given(backbone=weak, scale=from_weight(2.5), interval=(0.0, 0.5))
    both = ask(Composed(scale=4.0, weaker=(skip,)))
    added = np.where((T <= 0.5)[:, None, None], 2.5 * (V_TEXT - v_weak), 0)
    np.testing.assert_allclose(both, ask(ClassifierFree(scale=4.0)) + added, rtol=1e-4, atol=1e-5)


def test_the_order_is_the_stated_one():
    """Optimal scale, momentum, bound, projection, weaker fields, rescaling: each where it acts."""
    knobs = dict(optimal=True, momentum=-0.5, parallel=0.2, radius=0.8, rescale=0.6)
    everything = Composed(scale=4.0, weaker=(Given(backbone=weak, scale=1.5),), **knobs)
    before = jax.random.normal(jax.random.key(3), Z.shape)
    v, remembered = everything(backbone, TEXT, EMPTY).ask(Z, T, before)

    v_text, v_empty, v_weak = flat(V_TEXT), flat(V_EMPTY), flat(weak(Z, T, TEXT))
    t = flat(T)
    k = (v_text * v_empty).sum(1, keepdims=True) / (v_empty**2).sum(1, keepdims=True)
    m = -t * (v_text - k * v_empty) - 0.5 * flat(before)
    # What is remembered is not bounded yet.
    np.testing.assert_allclose(flat(remembered), m, rtol=1e-4, atol=1e-5)
    length = np.linalg.norm(m, axis=1, keepdims=True)
    assert (length > 0.8).sum() >= 3
    m = m * np.minimum(1, 0.8 / length)
    x0 = flat(Z) - t * v_text
    m = m - 0.8 * (m * x0).sum(1, keepdims=True) / (x0**2).sum(1, keepdims=True) * x0
    wanted = v_text - 3 * m / t + 0.5 * (v_text - v_weak)
    share = v_text.std(1, keepdims=True) / wanted.std(1, keepdims=True)
    wanted = 0.6 * share * wanted + 0.4 * wanted
    np.testing.assert_allclose(flat(v), wanted, rtol=1e-4, atol=1e-4)


def test_another_guidance_needs_no_more_than_its_call():
    class Twice:
        def __call__(self, backbone, text, empty):
            return lambda z, t: 2 * backbone(z, t, text)

    assert ask(late(Twice(), grid.Uniform()(4), 0)).shape == Z.shape
    with pytest.raises(ValueError, match="Twice has no interval"):
        late(Twice(), grid.Uniform()(4), 1)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: ClassifierFree(scale=float("nan")), "classifier_free.scale must be a finite"),
        (lambda: Composed(scale=float("inf")), "composed.scale must be a finite"),
        (lambda: Composed(momentum=float("nan")), "momentum must be a finite"),
        (lambda: Composed(parallel=float("inf")), "parallel must be a finite"),
        (lambda: Composed(radius=float("nan")), "radius must be at least 0"),
        (lambda: SkipLayer(scale=float("nan")), "weaker.skip_layer.scale must be a finite"),
        (lambda: SkipLayer(interval=(0.9, 0.2)), "skip_layer.interval must satisfy"),
        (lambda: Composed(zero_start=True, start=False), "choose one of them"),
    ],
)
def test_numbers_that_are_none_are_refused_by_name(made, said):
    with pytest.raises(ValueError, match=said):
        made()


@pytest.mark.parametrize("interval", [(0.1, 0.2, 0.9), ("a", "b"), (None, 1.0)])
def test_an_interval_of_no_two_numbers_is_refused(interval):
    # As a user writes it: under tests alone, types are checked before.
    check = inspect.unwrap(check_interval)
    with pytest.raises(ValueError, match=r"^guidance.x.interval must satisfy 0 <= lo <= hi <= 1"):
        check("guidance.x", interval)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_late_guidance_leaves_the_first_steps_of_any_grid_alone(first):
    spread = grid.Shifted(alpha=3.0)
    times = spread(6)
    for form in (
        ClassifierFree(scale=4.0),
        Composed(scale=4.0, weaker=(Given(backbone=weak, scale=2.0),)),
        Composed(scale=4.0, optimal=True),
    ):
        cut = late(form, times, first)
        for i in range(6):
            t = jnp.full(6, times[i], jnp.float32)
            plain, out = backbone(Z, t, TEXT), ask(cut, t=t)
            expected = plain if i < first else ask(form, t=t)
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="cannot leave 6 of 6 steps"):
        late(ClassifierFree(scale=4.0), times, 6)
    still = Composed(scale=4.0, zero_start=True)
    assert late(still, times, 0) is still
    with pytest.raises(ValueError, match=r"zero_start .* unguided=1 .* choose one of them"):
        late(still, times, 1)


LATE = [
    ClassifierFree(scale=4.0),
    Composed(scale=4.0),
    Composed(weaker=(Given(backbone=lambda z, t, stream: 0 * z, scale=4.0),)),
]
SPREADS = [grid.Uniform(), grid.Shifted(alpha=3.0), grid.Shifted(double=True), grid.Karras()]


def asked(method, guidance, steps, key=None):
    """The times that each step of a solver asks for, and the scales it is answered with.

    The caption's field is 1 and the other one 0, so that the guided one is the scale.
    """
    said = []

    def one(z, t, stream):
        full = jnp.repeat(stream.hidden.mean((1, 2)), z.shape[0] // stream.mask.shape[0])
        return jnp.ones_like(z) * (full > 0.5)[:, None]

    field = guidance(one, TEXT, EMPTY)

    def noted(z, t):
        v = field(z, t)
        note = lambda t, v: said.append((float(t[0]), float(v[0, 0])))  # noqa: E731
        jax.debug.callback(note, t, v, ordered=True)
        return v

    jax.block_until_ready(jax.jit(lambda z: method(noted, z, steps, key=key))(jnp.ones((2, 1))))
    jax.effects_barrier()
    said = np.array(said).reshape(steps, method.calls, 2)
    return said[..., 0], said[..., 1]


@pytest.mark.parametrize("method", [Euler, Heun, Midpoint, RungeKutta4])
@pytest.mark.parametrize("spread", SPREADS, ids=lambda spread: type(spread).__name__)
def test_all_that_a_solver_asks_for_in_the_first_steps_is_unguided(method, spread):
    method, steps = method(grid=spread), 25
    times = np.float32(spread(steps))
    for k in (1, 3, 7, 24):
        for form in (LATE[0], LATE[2]):
            t, scale = asked(method, late(form, spread(steps), k), steps)
            # What ends a step stands at t_k itself.
            free = t > times[k]
            assert free[:k].sum() == k * method.calls - isinstance(method, Heun | RungeKutta4)
            np.testing.assert_array_equal(scale, np.where(free, 1.0, 4.0))


@pytest.mark.parametrize("method", [Euler, Heun, Midpoint, RungeKutta4])
@pytest.mark.parametrize("steps", [1, 5, 25])
def test_without_its_start_the_whole_first_step_is_unguided(method, steps):
    times = np.float32(grid.Uniform()(steps))
    for form in (ClassifierFree, Composed):
        cut = late(form(scale=4.0, start=False), grid.Uniform()(steps), 0)
        t, scale = asked(method(), cut, steps)
        np.testing.assert_array_equal(scale, np.where(t > times[1], 1.0, 4.0))
        assert late(cut, grid.Uniform()(steps), 0) == cut
    # The start is classifier-free guidance's own: weaker fields act as they did.
    away = Composed(start=False, weaker=LATE[2].weaker)
    assert late(away, grid.Uniform()(steps), 0).weaker == away.weaker


@pytest.mark.parametrize("k", [1, 4, 9])
def test_noise_that_is_raised_before_a_step_asks_does_not_keep_it_unguided(k):
    method = EdmSolver(churn=2.0, corrected=False, grid=grid.Karras(largest=20.0))
    t, scale = asked(method, late(LATE[0], method.asked(25), k), 25, jax.random.key(0))
    np.testing.assert_allclose(t[:, 0], method.asked(25)[:-1], rtol=1e-6)
    assert t[k, 0] > grid.Karras(largest=20.0)(25)[k] + 1e-3
    np.testing.assert_array_equal(scale[:, 0], np.where(np.arange(25) < k, 1.0, 4.0))


def test_an_interval_that_ends_before_guidance_begins_leaves_none():
    cut = late(ClassifierFree(scale=4.0, interval=(0.8, 1.0)), grid.Uniform()(10), 5)
    assert np.all(asked(Midpoint(), cut, 10)[1] == 1)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("path", [RectifiedFlow(), Cosine(), Edm(), DdpmLinear(), LdmLinear()])
def test_nothing_is_nan_or_infinite_at_the_ends(path, dtype):
    z, t = Z.astype(dtype), jnp.array([0.0, 1e-30, 0.5, 1 - 2.0**-24, 1.0, 1.0], dtype)
    # A network that was not trained yet says nothing, or the same with every caption.
    networks = (backbone, lambda z, t, stream: jnp.sin(z), lambda z, t, stream: 0 * z)
    for network in networks:

        def narrow(z, t, stream, gain, network=network):
            return (gain * network(z, t, stream)).astype(dtype)

        def everything(z, gain, narrow=narrow):
            field = functools.partial(narrow, gain=gain)
            weaker = Given(backbone=lambda z, t, stream: 0.8 * field(z, t, stream), scale=2.0)
            knobs = dict(optimal=True, parallel=0.2, radius=1.5, rescale=0.7, weaker=(weaker,))
            composed = Composed(scale=4.0, trajectory=path, **knobs)
            free = ClassifierFree(scale=4.0)(field, TEXT, EMPTY)(z, t)
            still = isinstance(path, RectifiedFlow)
            remembering = dataclasses.replace(composed, momentum=-0.5, zero_start=still)
            remembering = remembering(field, TEXT, EMPTY).ask(z, t, jnp.ones_like(z))
            return free, composed(field, TEXT, EMPTY)(z, t), *remembering

        gain = jnp.ones((), dtype)
        made, back = jax.vjp(everything, z, gain)
        assert all(x.dtype == dtype for x in made)
        chex.assert_tree_all_finite((made, back(made)))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="needs the empty caption"):
        ask(Composed(scale=2.0), empty=None)
    with pytest.raises(ValueError, match=r"rescale must lie in 0\.\.1"):
        Composed(rescale=1.5)
    for radius in (-1.0, np.nan):
        with pytest.raises(ValueError, match="radius must be at least 0"):
            Composed(radius=radius)
    with pytest.raises(ValueError, match=r"guidance\.composed\.zero_start .* follows Cosine"):
        Composed(zero_start=True, trajectory=Cosine())


@pytest.mark.parametrize("interval", [(0.7, 0.3), (-0.1, 0.5), (0.5, 1.5), (np.nan, 1.0)])
def test_an_interval_that_is_none_is_refused(interval):
    for form, owner in (
        (ClassifierFree, r"guidance\.classifier_free"),
        (Composed, r"guidance\.composed"),
        (Autoguidance, r"guidance\.composed\.weaker\.autoguidance"),
        (SkipLayer, r"guidance\.composed\.weaker\.skip_layer"),
        (PerturbedAttention, r"guidance\.composed\.weaker\.perturbed_attention"),
    ):
        with pytest.raises(ValueError, match=rf"^{owner}\.interval must satisfy 0 <= lo <= hi"):
            form(interval=interval)
        assert form(interval=(0.3, 0.3)).interval == (0.3, 0.3)
