import pytest

from configs import fusion_base
from cosdiff_jax import job


def test_a_prompt_is_measured_against_as_many_real_pictures_as_are_drawn_of_it(tmp_path):
    config = fusion_base.get_config("tiny")
    config.data.scenes.folder = str(tmp_path)
    config.data.samples, config.sample.num = 1, 2
    judge = job.prepare(config).judge
    assert judge.groups.shape[:2] == (2, 2)


def test_more_pictures_than_are_stored_are_refused(tmp_path):
    config = fusion_base.get_config("tiny")
    config.data.scenes.folder = str(tmp_path)
    config.sample.num = 3
    with pytest.raises(ValueError, match="3 samples per prompt asked for, 2 are stored"):
        job.prepare(config)


@pytest.mark.parametrize(("prompts", "accumulate"), [(1, 1), (2, 2)])
def test_contrastive_alignment_of_one_prompt_is_refused(prompts, accumulate):
    config = fusion_base.get_config("tiny")
    config.data.prompts, config.optimizer.accumulate = prompts, accumulate
    term = config.objective.flow_matching.alignment
    term.name = "clip"
    job.check(config)
    term.clip.form.name = "contrastive"
    with pytest.raises(ValueError, match=r"at least 2.*alignment\.clip\.form\.name=cosine"):
        job.check(config)
