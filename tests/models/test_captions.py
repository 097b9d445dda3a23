import jax
import jax.numpy as jnp
import numpy as np

from cosdiff_jax.data import tokenizer
from cosdiff_jax.models import captions
from cosdiff_jax.models.fuse_dit import FuseDiT
from cosdiff_jax.models.fusion import SelfAttention
from cosdiff_jax.models.gemma import Gemma
from cosdiff_jax.weights import EMBEDDED

WORDS = tokenizer.Tokenizer(EMBEDDED / "scenes_llm" / "tokenizer.json")
EQUALS = WORDS.encode([" ="], 2)[0][0, 1]
LLM = Gemma(vocab=WORDS.vocab, width=16, depth=2, heads=2, kv_heads=1, head_size=8, mlp=24)
SAID = ("a red circle left of a blue ring", "빨간 원", "红色圆形", "")


def backbone(**how) -> FuseDiT:
    sizes = {"width": 16, "depth": 2, "heads": 2, "kv_heads": 1, "head_size": 8, "mlp": 24}
    return FuseDiT(**sizes, attention=SelfAttention(**how))


def read(tokens, mask, **how):
    tokens, mask = jnp.asarray(tokens), jnp.asarray(mask)

    @jax.jit
    def streams(tokens, mask):
        params = LLM.init(jax.random.key(0), tokens, mask)["params"]
        return captions.read(LLM, params, backbone(**how), tokens, mask)

    return streams(tokens, mask)


def test_twice_is_what_the_tokenizer_makes_of_the_doubled_text():
    tokens, mask = WORDS.encode(SAID, 14)
    twice = [f"{text} = {text}" if text else "" for text in SAID]
    wanted, real = WORDS.encode(twice, 28)
    found, found_mask = captions.twice(jnp.asarray(tokens), jnp.asarray(mask), int(EQUALS))
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(found_mask, real)


def test_a_caption_that_fills_the_context_is_still_said_whole():
    tokens, mask = WORDS.encode(SAID[:1], WORDS.count(SAID[0]))
    assert mask.all()
    found, real = captions.twice(jnp.asarray(tokens), jnp.asarray(mask), int(EQUALS))
    assert real.all()
    np.testing.assert_array_equal(found[0, -8:], tokens[0, 1:])


def test_only_the_second_copy_knows_what_follows():
    one, other = "a red circle left of a blue ring", "a red circle left of a blue star"
    tokens, mask = WORDS.encode([one, other], 10)
    once, _ = read(tokens, mask)
    echoed, empty = read(tokens, mask, echo=int(EQUALS))
    assert echoed.keys.shape[2] == 2 * once.keys.shape[2] == empty.keys.shape[2]
    red, length = 2, int(mask[0].sum())
    np.testing.assert_array_equal(once.values[:, 0, red], once.values[:, 1, red])
    np.testing.assert_allclose(echoed.values[:, :, red], once.values[:, :, red], atol=1e-6)
    again = echoed.values[1, :, length + red]
    assert float(jnp.abs(again[0] - again[1]).max()) > 1e-4
    assert empty.mask.sum() == 1


def test_a_context_of_another_length_changes_nothing_that_is_read():
    short, long = (WORDS.encode(SAID[:3], length) for length in (10, 17))
    first, _ = read(*short, echo=int(EQUALS))
    second, _ = read(*long, echo=int(EQUALS))
    width = first.mask.shape[1]
    np.testing.assert_array_equal(second.mask[:, :width], first.mask)
    for a, b in ((first.keys, second.keys), (first.values, second.values)):
        a, b = (np.where(first.mask[None, :, :, None, None], x[:, :, :width], 0) for x in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-5)
