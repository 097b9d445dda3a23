"""Positions of pictures of other sizes and shapes than the first training's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cosdiff_jax.models import position, rope

E = 16
STARTS = jnp.array([0, 7, 3])


def places(kind, h, w, start=0):
    """Rows and columns of the tokens [h, w], read off the planes that turn by one a position."""
    angles = np.asarray(kind.angles(h, w, jnp.array([start]), E)).reshape(h, w, 2, E // 4)
    return angles[:, :, 0, 0], angles[:, :, 1, 0]


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_scaled_is_plain_at_the_reference_size(keep_aspect):
    scaled = position.ScaledRope2D(side=6, keep_aspect=keep_aspect, absolute=True, base=500.0)
    plain = position.Rope2D(absolute=True, base=500.0)
    np.testing.assert_array_equal(scaled.angles(6, 6, STARTS, E), plain.angles(6, 6, STARTS, E))
    np.testing.assert_array_equal(scaled.embedding(6, 6, 16), plain.embedding(6, 6, 16))
    assert position.ScaledRope2D(side=6).embedding(6, 6, 16) is None
    assert not np.allclose(scaled.angles(9, 9, STARTS, E), plain.angles(9, 9, STARTS, E))


def test_a_larger_picture_stays_in_the_trained_interval():
    # 512 pixels give 64 latents, 768 give 96: the direction is the inverse of the ratio of sizes.
    rows, columns = places(position.ScaledRope2D(side=64), 96, 96)
    assert rows[48, 0] == pytest.approx(32 - 1 / 6, abs=1e-4)
    assert columns[0, 0] == pytest.approx(-1 / 6, abs=1e-4)
    assert columns[0, 95] == pytest.approx(63 + 1 / 6, abs=1e-4)


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize(("h", "w"), [(4, 4), (5, 12), (12, 5), (24, 24), (1, 3)])
def test_scaled_positions_are_symmetric_about_one_centre(h, w, keep_aspect):
    scaled = position.ScaledRope2D(side=8, keep_aspect=keep_aspect)
    rows, columns = places(scaled, h, w, start=5)
    for p in (rows, columns):
        np.testing.assert_allclose(p + p[::-1, ::-1], 2 * (5 + 3.5), atol=1e-4)


@pytest.mark.parametrize(("h", "w"), [(4, 4), (5, 12), (12, 5), (24, 24), (2, 3)])
def test_corners_have_the_same_position_at_every_resolution(h, w):
    for p, n in zip(places(position.ScaledRope2D(side=8), h, w), (h, w), strict=True):
        half = 8 / n / 2
        assert p[0, 0] - half == pytest.approx(-0.5, abs=1e-5)
        assert p[-1, -1] + half == pytest.approx(7.5, abs=1e-5)


def test_a_kept_aspect_has_one_step_for_both_axes_and_the_area_of_the_square():
    scaled = position.ScaledRope2D(side=8, keep_aspect=True)
    rows, columns = places(scaled, 4, 16)
    np.testing.assert_allclose(np.diff(rows, axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(np.diff(columns, axis=1), 1, atol=1e-5)
    rows, columns = places(scaled, 8, 32)
    np.testing.assert_allclose(np.diff(rows, axis=0), 0.5, atol=1e-5)
    np.testing.assert_allclose(np.diff(columns, axis=1), 0.5, atol=1e-5)


def test_text_of_any_length_stands_before_the_picture_unscaled():
    scaled = position.ScaledRope2D(side=4)
    angles = scaled.angles(8, 6, STARTS, E)
    alone = scaled.angles(8, 6, jnp.array([0]), E)
    # Where the picture starts moves all of it by as many whole positions, never by scaled ones.
    f = jnp.tile(rope.frequencies(E // 2, scaled.base), 2)
    shift = STARTS[:, None, None] * f[None, None, :]
    np.testing.assert_allclose(angles, alone + shift, atol=1e-4)
    # So the last real text token is one position before the picture's border plus a half.
    for p, start in enumerate(STARTS):
        assert angles[p, 0, 0] + 0.5 - 4 / 8 / 2 == pytest.approx(float(start), abs=1e-4)


def test_attention_between_image_tokens_sees_the_factor_and_not_the_offset():
    q, k = (jax.random.normal(jax.random.key(i), (1, 24, 1, E)) for i in (0, 1))

    def logits(angles):
        return jnp.einsum("bnge,bmge->bnm", rope.rotate(q, angles), rope.rotate(k, angles))

    scaled = position.ScaledRope2D(side=3)
    near, far = (logits(scaled.angles(4, 6, jnp.array([s]), E)) for s in (0, 19))
    np.testing.assert_allclose(near, far, atol=1e-4)
    ratio = [jnp.repeat(jnp.arange(4), 6) * 3 / 4, jnp.tile(jnp.arange(6), 4) * 3 / 6]
    bare = rope.angles_2d(ratio[0][None], ratio[1][None], E, scaled.base)
    np.testing.assert_allclose(near, logits(bare), atol=1e-4)


def test_the_square_trained_on_spans_the_base_grid_and_all_share_a_middle():
    # SD3 at 1,024 pixels after 256: 64 tokens a side, 16 before, pictures up to 96 tokens long.
    ape = position.Ape(max_size=96, base_size=16, side=64)
    square = position.Ape(max_size=64, base_size=16)
    np.testing.assert_allclose(ape.embedding(64, 64, 16), square.embedding(64, 64, 16), atol=1e-6)
    # And the first training's own grid is every fourth token of it.
    first = position.Ape(max_size=16, base_size=16).embedding(16, 16, 16).reshape(16, 16, 16)
    now = ape.embedding(64, 64, 16).reshape(64, 64, 16)
    np.testing.assert_allclose(now[::4, ::4], first, atol=1e-6)
    tall, wide = (ape.embedding(h, w, 16).reshape(h, w, 16) for h, w in ((96, 40), (40, 96)))
    np.testing.assert_array_equal(tall[28:68], wide[:, 28:68])
    # A length that is odd where the table is even: whole places, as published, half a token early.
    odd = ape.embedding(5, 7, 16).reshape(5, 7, 16)
    whole = ape.embedding(96, 96, 16).reshape(96, 96, 16)
    np.testing.assert_array_equal(odd, whole[45:50, 44:51])
