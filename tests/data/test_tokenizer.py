import numpy as np
import pytest

from cosdiff_jax.data import tokenizer
from cosdiff_jax.data.scenes import grammar


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return tokenizer.train(grammar.corpus(0, 2000), 1024, path)


def test_every_string_round_trips(trained):
    rng = np.random.default_rng(0)
    texts = [
        *(grammar.caption(grammar.sample_spec(rng), name, rng) for name in grammar.LANGUAGES * 20),
        "a café ☂ in the rain, naïve 猫 고양이 \N{GRINNING FACE}",
        "it says <eos> and <pad>",
        "",
    ]
    for text in texts:
        tokens, mask = trained.encode([text], 160, eos=True)
        assert trained.decode(tokens[0]) == text
        assert tokens[0, 0] == tokenizer.BOS
        assert tokens[0, mask[0].sum() - 1] == tokenizer.EOS
        assert (tokens[0] == tokenizer.EOS).sum() == 1
        assert (tokens[0][~mask[0]] == tokenizer.PAD).all()
        assert not (tokens == tokenizer.UNKNOWN).any()
        assert trained.count(text) == mask.sum() - 1
        assert tokens.max() < trained.vocab <= 1024


def test_case_and_place_in_the_sentence_do_not_matter(trained):
    capital, _ = trained.encode(["A Red Circle"], 8)
    small, _ = trained.encode(["a red circle"], 8)
    np.testing.assert_array_equal(capital, small)
    longer, _ = trained.encode(["a star and a red circle"], 8)
    np.testing.assert_array_equal(longer[0, 4:7], small[0, 1:4])


def test_words_are_whole_and_captions_short(trained):
    rng = np.random.default_rng(1)
    for _ in range(150):
        spec = grammar.sample_spec(rng)
        for language in grammar.LANGUAGES:
            assert trained.count(grammar.caption(spec, language, rng)) <= 40
    # No token reaches from a colour into a shape: a new pair of words is two known tokens.
    assert trained.count("一个红色正方形") == trained.count("一个") + 2
    assert trained.count("a red square") == 4


def test_a_prompt_too_long_is_named(trained):
    with pytest.raises(ValueError, match="'a red circle' has 4 tokens, more than the context of 3"):
        trained.encode(["a star", "a red circle"], 3)


def test_the_same_lines_give_the_same_file(tmp_path):
    one, two = (
        tokenizer.train(grammar.corpus(0, 200), 400, tmp_path / name) for name in ("one", "two")
    )
    assert one.path.read_bytes() == two.path.read_bytes()
    again = tokenizer.load(one.path)
    np.testing.assert_array_equal(again.encode(["별"], 20)[0], two.encode(["별"], 20)[0])


def test_bad_requests_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        tokenizer.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match="no room"):
        tokenizer.train(["a"], 100, tmp_path / "small.json")
