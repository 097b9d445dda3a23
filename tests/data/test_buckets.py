import math

import numpy as np
import pytest
from PIL import Image, ImageOps

from cosdiff_jax.data import buckets
from cosdiff_jax.data.buckets import Bucket

S, STEP = 256, 16
SIZES = buckets.sizes(S, STEP)


def test_every_size_has_about_the_area_of_the_square():
    for bucket in SIZES:
        h, w = bucket.height, bucket.width
        assert h % STEP == 0 and w % STEP == 0
        assert abs(h * w - S * S) <= STEP / 2 * min(h, w)
        assert max(h, w) <= 2 * min(h, w)
    assert Bucket(S, S) in SIZES and len(set(SIZES)) == len(SIZES) > 6
    # Upright and lying, in the order of their shape.
    assert {Bucket(b.width, b.height) for b in SIZES} == set(SIZES)
    assert [b.log_aspect for b in SIZES] == sorted(b.log_aspect for b in SIZES)


def test_one_bucket_is_the_square():
    assert buckets.sizes(64, 16, longest=1.0) == (Bucket(64, 64),)


def test_a_known_list():
    found = [(b.height, b.width) for b in buckets.sizes(64, 16, longest=4.0)]
    assert found == [(128, 32), (80, 48), (64, 64), (48, 80), (32, 128)]


def test_the_nearest_shape_is_found_at_any_resolution():
    for number, bucket in enumerate(SIZES):
        for zoom in (1, 7):
            assert buckets.nearest(bucket.height * zoom, bucket.width * zoom, SIZES) == number
    rng = np.random.default_rng(0)
    for h, w in rng.integers(1, 3000, (50, 2)).tolist():
        chosen = SIZES[buckets.nearest(h, w, SIZES)]
        ratios = [max(b.width / b.height * h / w, b.height / b.width * w / h) for b in SIZES]
        mine = chosen.width / chosen.height * h / w
        assert max(mine, 1 / mine) == pytest.approx(min(ratios))
        # Turning a picture turns its bucket.
        turned = SIZES[buckets.nearest(w, h, SIZES)]
        assert turned.log_aspect == pytest.approx(-chosen.log_aspect)


@pytest.mark.parametrize(("h", "w"), [(30, 40), (40, 30), (10, 100), (7, 3), (64, 48)])
def test_covering_cuts_the_middle_and_leaves_no_border(h, w):
    pixels = np.full((h, w, 3), 200, np.uint8)
    pixels[: h // 2, :, 0], pixels[:, : w // 2, 1] = 50, 50
    bucket = Bucket(16, 24)
    found = buckets.cover(Image.fromarray(pixels), bucket)
    assert found.shape == (16, 24, 3) and found.min() >= 50
    if h % 2 == 0:  # the middle of the picture is the middle of what is cut
        assert found[:7, :, 0].max() < 125 < found[9:, :, 0].min()
    if w % 2 == 0:
        assert found[:, :11, 1].max() < 125 < found[:, 13:, 1].min()


def test_covering_the_square_is_what_pillow_calls_fitting():
    rng = np.random.default_rng(1)
    for shape in ((31, 50, 3), (50, 31, 3), (20, 20, 3), (5, 90, 3)):
        image = Image.fromarray(rng.integers(0, 256, shape, np.uint8))
        now = ImageOps.fit(image, (16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(buckets.cover(image, Bucket(16, 16)), now, atol=1)


def test_covering_is_resizing_and_cropping():
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.tile(ramp, (40, 1))[:, :, None], 3, axis=2))
    # 40 x 96 -> 20 x 48 covers 20 x 32; eight columns go on either side.
    whole = np.asarray(image.resize((48, 20), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(buckets.cover(image, Bucket(20, 32)), whole[:, 8:40], atol=1)


OF = np.random.default_rng(2).choice([0, 2, 3], 103, p=[0.6, 0.3, 0.1]).tolist() + [7] * 3


def shown(plan, epoch):
    return [plan[epoch * len(plan) + i] for i in range(len(plan))]


def test_every_batch_is_of_one_bucket_and_an_epoch_shows_an_item_once():
    plan = buckets.Plan(OF, rows=4, seed=5)
    for epoch in (0, 1, 30):
        batches = shown(plan, epoch)
        for bucket, items in batches:
            assert len(items) == 4 and {OF[i] for i in items} == {bucket}
        items = np.concatenate([items for _, items in batches])
        assert len(set(items.tolist())) == len(items)
        missing = set(range(len(OF))) - set(items.tolist())
        assert {b: sum(OF[i] == b for i in missing) for b in plan.counts} == plan.left_over


def test_the_counts_are_honest():
    plan = buckets.Plan(OF, rows=4)
    assert sum(plan.counts.values()) == len(OF) == 106
    assert len(plan) * 4 + sum(plan.left_over.values()) == 106
    assert plan.never == (7,) and plan.left_over[7] == 3
    left = sum(plan.left_over.values())
    assert plan.summary == (
        f"buckets: 106 items in 4 buckets, {len(plan)} batches of 4 an epoch; {left} items left "
        "over, of which 3 are never shown: their 1 bucket has fewer than 4"
    )


def test_what_is_left_over_is_shown_in_other_epochs():
    plan = buckets.Plan(OF, rows=4)
    seen = {int(i) for epoch in range(20) for _, items in shown(plan, epoch) for i in items}
    assert seen == {i for i, bucket in enumerate(OF) if bucket != 7}


def test_a_batch_is_a_function_of_its_number_and_the_seed():
    plan, again = (buckets.Plan(OF, rows=4, seed=5) for _ in range(2))
    whole = [plan[i] for i in range(60)]
    # A run that goes on asks for the later ones first.
    for i in reversed(range(60)):
        assert again[i][0] == whole[i][0]
        np.testing.assert_array_equal(again[i][1], whole[i][1])
    orders = [
        [items.tolist() for _, items in shown(buckets.Plan(OF, rows=4, seed=s), e)]
        for s, e in ((5, 0), (5, 1), (6, 0))
    ]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[1] != orders[2]
    # Buckets take turns instead of coming one after the other.
    kinds = [bucket for bucket, _ in shown(plan, 0)]
    assert kinds != sorted(kinds)
    assert math.isclose(kinds.count(0), plan.counts[0] // 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: buckets.sizes(60, 16), "no multiple of a step of 16"),
        (lambda: buckets.sizes(64, 16, longest=0.5), "at least 1, not 0.5"),
        (lambda: buckets.Plan([0, 1, 2], rows=2), "none of the 3 buckets has the 2 items"),
        (lambda: buckets.Plan([0], rows=0), "at least one row"),
        (lambda: buckets.Plan([], rows=1), "none of the 0 buckets"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
