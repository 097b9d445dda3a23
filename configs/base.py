"""The menu: every knob with its default and unit, every alternative side by side.

Where there is a choice, ``name`` picks one of the entries beside it; the others keep their knobs
and are not read. A recipe starts from ``menu()``, makes its own changes and lays a preset over
them; the command line comes last:

    python -m cosdiff_jax.train --config=configs/fusion_div.py:tiny --config.steps=50 ...

The networks stand in ``networks.py``. A ``placeholder`` is None until the command line gives it a
value of its type.
"""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import networks


def menu() -> Any:
    """Everything that can be chosen."""
    return ConfigDict(
        dict(
            recipe="",  # filled in by the command line: the file this came from
            seed=0,
            steps=1000,  # optimizer steps
            log_every=1,  # steps between two lines of metrics.jsonl
            data=data(),
            tokenizer=dict(
                name="asset",
                asset=dict(path="scenes_llm"),  # asset name, or a folder with tokenizer.json
                bpe=dict(vocab=1024, captions=20_000),  # trained on captions at the start
            ),
            language_model=networks.language_model(),
            vae=networks.vae(),
            clip=networks.clip(),
            latent_clip=networks.latent_clip(),
            vgg=networks.vgg(),
            backbone=networks.backbone(),
            objective=objective(),
            optimizer=optimizer(),
            checkpoint=dict(every=200, keep=2),  # every: steps; keep: how many of the newest
            sample=sample(),
            mesh=dict(data=-1, fsdp=1, tensor=1),  # devices per axis; -1 takes what is left
            # JAX's default_matmul_precision: "" leaves it to JAX; float32; tensorfloat32; bfloat16
            # (bfloat16 factors, float32 sums: a sixth faster on CPUs that have them)
            matmul_precision="",
            export="float32",  # dtype of the weights left in workdir/model: float32, float16
            # Weights & Biases gets what TensorBoard gets, under this project; "" is off.
            # mode: online, offline (for `wandb sync`), disabled; run: its name there
            wandb=dict(project="", mode="offline", run=""),
        )
    )


def data() -> dict:
    """Where prompts and pictures come from."""
    return dict(
        name="scenes",
        prompts=8,  # P: prompts per step, over all devices
        samples=8,  # K: pictures per prompt
        context=40,  # T: tokens a caption is padded to
        threads=2,  # reading threads per host
        encoded=False,  # encode every picture once with the VAE and train on the kept latents
        # instead of the pictures what the starting weights draw of their captions, and the noise
        # it is drawn from; steps: of the drawing, 0: none; guidance: learnt with what it draws
        reflow=dict(steps=0, guidance=5.0, folder="datasets/reflow"),
        scenes=dict(
            folder="datasets/scenes",
            train=2000,  # prompts rendered for training
            test=512,  # prompts with captions that training never sees
            stored=8,  # pictures rendered per prompt, at least `samples`
            languages=("en", "zh", "ko"),
            focus=0.0,  # share of the training prompts drawn until they name different things
        ),
        scenes_pairs=dict(  # one picture and one caption at a time, half of them said in full
            folder="datasets/scenes",
            train=2000,
            test=512,
            stored=8,
            languages=("en", "zh", "ko"),
        ),
        # text alone, for the language model; shares of lines that name different things (focus),
        # of things of a relation that are said with their side as well (placed), of lines that
        # name things in one order both times (ordered)
        captions=dict(
            number=60_000,
            digits=True,
            focus=0.0,
            placed=0.0,
            ordered=0.0,
            languages=("en", "zh", "ko"),
        ),
        digits=dict(number=2000, languages=("en", "zh", "ko")),  # number: groups per epoch
        folder=dict(
            path="",  # your pictures
            size=64,  # side in pixels after the crop
            longest=1.0,  # long side / short side up to which pictures keep their shape; 1: squares
            step=16,  # pixels; what the sides of such shapes are multiples of
            test=0.0,  # share of the captions held out; at 0 the held-out ones are the same
            seed=0,  # of the draw
        ),
    )


def objective() -> dict:
    """What is minimised."""
    return dict(
        name="flow_matching",
        next_token={},
        autoencoder=dict(l2=1.0, l1=0.1, edges=0.0, kl=1e-4),
        contrastive={},
        contrastive_latents={},  # the same, of latent_clip on the latents of vae
        flow_matching=dict(
            trajectory=dict(  # the path from data to noise
                name="rectified_flow",
                rectified_flow={},
                cosine={},
                edm={},
                ddpm_linear=dict(steps=1000, first=1e-4, last=0.02),  # beta's ends
                ldm_linear=dict(steps=1000, first=0.00085, last=0.012),
            ),
            parameterization=dict(  # what the backbone predicts
                name="velocity",
                velocity={},
                eps=dict(smallest=5e-3),  # a_t below which the data's estimate fades to 0
                v={},
                x0=dict(smallest=5e-3),  # b_t below which the noise's estimate fades to 0
                score=dict(smallest=5e-3),  # the least that b_t counts as
                edm=dict(sigma_data=0.5),  # std of the data; 1.0 for latents of unit variance
            ),
            times=dict(
                name="logit_normal",
                uniform={},
                logit_normal=dict(mean=0.0, std=1.0),  # of ln(t / (1 - t))
                mode=dict(scale=1.29),  # -1 .. 1.7519; above 0 leans to the middle
                cos_map={},
                log_normal_sigma=dict(mean=-1.2, std=1.2),  # of ln(b_t / a_t)
            ),
            # alpha: of the times, 3.0 at 1024 pixels of side; double: as SD3's samplers do;
            # reference: side of the latents that alpha is for, scaled at another; 0: as it stands
            shift=dict(alpha=1.0, double=False, reference=0),
            spread=dict(  # of the times of a batch
                name="independent",
                independent={},
                stratified={},  # one in each of as many equal parts
                lattice={},  # and neighbours equally far apart
            ),
            weighting=dict(  # of the squared error of what is predicted
                name="constant",
                constant={},
                exponential={},
                sech={},
                sigmoid=dict(bias=-1.0),  # log-SNR of weight 1/2
                edm=dict(mean=-1.2, std=1.2, sigma_data=0.5),
            ),
            caption_dropout=0.1,  # share of prompts shown as the empty caption
            alignment=alignment(),
            anchor=0.0,  # nu: weight of |v - v of other weights|^2
            anchor_to="start",  # start: those the run started from; average: the EMA
            diversity=dict(name="none", none={}, cosine=cosine()),
            prediction=dict(
                name="one_step",
                one_step=dict(window=(0.0, 1.0), shared_time=True),  # window: times that count
                rollout=dict(
                    steps=6,
                    gradient_steps=2,  # the gradient passes through the last ones
                    detached=False,  # no gradient through what the network is shown
                    guidance=guidance(scale=1.0),
                ),
            ),
            feature=dict(
                name="clip",
                clip={},
                latent_clip={},
                vgg=perceptual(),
                hidden=dict(time=0.1, centre=False),
                latent=dict(centre=True),
                # weights of the cosines
                mix=dict(clip=0.5, latent_clip=0.0, vgg=0.0, hidden=0.0, latent=0.5),
            ),
        ),
    )


def alignment() -> dict:
    """How pictures are held to their captions."""

    def term(**knobs: Any) -> dict:
        form = dict(
            name="cosine",
            cosine={},  # 1 - cos(caption, picture)
            contrastive=dict(temperature=0.07),  # the right one among the captions of the batch
        )
        return dict(schedule=dict(name="constant", **by_step()), form=form, **knobs)  # mu(step)

    return dict(
        name="none",
        none={},
        clip=term(),  # CLIP's text and picture vectors
        latent_clip=term(),  # those of a CLIP that reads latents: nothing is decoded
        # the frozen language model's states, projected to `feature` by a running regression
        llm=term(
            layer=placeholder(int),  # 0: the embeddings, ... L: the last state; None: the middle
            ridge=0.01,  # share of the states' variance
            decay=0.99,  # share of the statistics that stays after a step
        ),
    )


def by_step() -> dict:
    """Weights of a loss term that depend on the step alone; warmup, ramp and until in steps."""
    return dict(
        constant=dict(value=0.02),
        linear=dict(end=0.02, warmup=0, ramp=0, until=placeholder(int)),
        cosine=dict(end=0.02, warmup=0, ramp=0, until=placeholder(int)),
    )


def cosine() -> dict:
    """The diversity term."""
    return dict(
        schedule=dict(  # lambda(step)
            name="linear",
            **by_step(),
            # finds the weight that holds the mean cosine at the one wanted; the target has to be
            # fixed, at most as high. gain: weight per step and unit of cosine too much. Weights up
            # to 0.05 moved nothing and 30 does (benchmarks/results/study): ten steps at a cosine
            # 0.1 too high make 30, and twice that is the most
            controller=dict(wanted=0.8, gain=30.0, largest=60.0, warmup=0),
        ),
        measure=dict(
            name="mean",
            mean={},
            top=dict(percent=20.0),
            sampled=dict(pairs=16),
            log_determinant=dict(ridge=1e-3),
            vendi=dict(ridge=1e-3),
        ),
        bank=dict(name="none", none={}, fifo=dict(slots=8)),  # slots: kept of each prompt
        target=dict(
            name="real", real=dict(margin=0.0), fixed=dict(cosine=-1.0)
        ),  # real: what the real pictures of the same prompt have
    )


def perceptual() -> dict:
    """What of VGG is compared."""
    return dict(
        layers=("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3"),
        pooled=False,  # average over places: shorter vectors, for a bank or large pictures
    )


def guidance(scale: float) -> dict:
    """How captions are followed while sampling."""
    return dict(
        name="classifier_free",
        classifier_free=dict(scale=scale, interval=(0.0, 1.0), start=True),  # interval: of t
        composed=dict(  # the same, with
            scale=scale,
            interval=(0.0, 1.0),
            start=True,
            optimal=False,  # CFG-zero*: v_empty scaled to fit
            zero_start=False,  # CFG-zero*: no velocity at t = 1, Euler's first step stands still
            parallel=1.0,  # APG: share kept of what is along the clean estimate
            momentum=0.0,  # APG: of the difference; -0.5 to 0
            radius=0.0,  # APG: bound on the difference of clean estimates; 0: none
            rescale=0.0,  # share of the way back to the std without guidance
        ),
    )


def weaker() -> dict:
    """A field that fails in the same way, only more: what composed guidance moves away from too."""
    acts = dict(scale=2.0, interval=(0.0, 1.0))  # scale: 1 is none; interval: of t
    return dict(
        name="none",  # or several joined by +
        none={},
        autoguidance=dict(path="", **acts),  # path: a folder with weights of a weaker network
        skip_layer=dict(layers=(), **acts),  # layers: left out, numbers from 0; (): the middle one
        # layers: an image token sees, of the image, itself alone there, and the caption as ever
        perturbed_attention=dict(layers=(), **acts),
    )


def optimizer() -> dict:
    """How the weights move."""
    return dict(
        name="adamw",
        adamw=dict(decay=1e-4, b1=0.9, b2=0.999, eps=1e-8),
        muon=dict(decay=1e-4, momentum=0.95, b2=0.99),
        rate=1e-4,  # peak learning rate
        warmup=0,  # steps of linear growth
        shape="constant",  # afterwards: constant, linear, cosine
        floor=0.0,  # where linear and cosine end, as a share of the peak
        clip=1.0,  # largest global gradient norm; 0 is off
        accumulate=1,  # parts that a batch is worked through in
        ema=dict(decay=0.99, every=100),  # every: steps
    )


def diversity() -> dict:
    """How samples of one prompt are kept apart while sampling; nothing by default."""
    low = dict(cutoff=0.25, base=dict(name="antithetic", orthogonal={}, antithetic={}))
    return dict(
        noise=dict(
            name="independent",
            independent={},
            orthogonal={},
            antithetic={},
            repelled=dict(cosine=-0.1),  # of every pair; -1 / (K - 1) where that is higher
            low_frequency=low,  # cutoff: share of the Nyquist frequency
            # K places on an arc between two samples; towards: number of the other, reach: share
            slerp=dict(towards=1, reach=1.0),
        ),
        descent=dict(
            name="none",
            none={},
            # moves: of the noise, each through a rollout of so many steps; rate: in lengths of it;
            # view: of the rollouts, by its name and with its knobs below
            cosine=dict(moves=8, rate=0.05, pull=0.0, rollout=4, view="none"),
        ),
        condition=dict(  # captions hidden in noise above t = tau2, clear below tau1
            name="none", none={}, cads=dict(tau1=0.6, tau2=0.9, scale=0.25, rescale=1.0)
        ),
        repulsion=dict(  # interval: of t; largest: bound on |change of v| / |v|
            name="none",
            none={},
            # weight: grows with the root of the number of latent values; 1,024 here
            particle=dict(weight=100.0, interval=(0.5, 0.99), largest=0.5),
            # drive: of the scores, 1 is the classical form; clean: it is the estimates that are
            # kept apart. --method=svgd takes 3e-4 and True, at a weight of 800.
            svgd=dict(weight=1.0, interval=(0.5, 0.99), largest=0.5, drive=1.0, clean=False),
            diverse_flow=dict(
                weight=100.0, interval=(0.5, 0.99), largest=0.5, spread=1.0, jitter=1e-3
            ),
        ),
        view=dict(  # of the repulsion
            name="none",
            none={},
            clip={},
            latent_clip={},
            vgg=perceptual(),
            latent=dict(centre=True),
        ),
        pruning=0.0,  # share of the candidates dropped after every step; 0: none
        pruned_from=1.0,  # t from which on they are dropped
        selection=dict(  # which candidates are kept, by CLIP's features and scores
            name="programme",
            max_min={},
            min_sum={},
            relevance=dict(balance=0.5),
            volume=dict(quality=1.0),
            medoids=dict(iterations=10),
            programme=dict(weight=1.5, restarts=32, exact_below=20),
        ),
    )


def sample() -> dict:
    """How a run is looked at: a grid every so often, numbers at the first and the last step."""
    guided = guidance(scale=5.0)
    guided["composed"]["weaker"] = weaker()
    return dict(
        every=100,  # steps between two grids
        measure=0,  # steps between measurements on the way; 0: only before and after; -1: epochs
        prompts=32,  # held-out prompts measured at the first and last step
        shown=8,  # of these, how many are rows of the grids
        num=8,  # K: samples of each
        steps=25,  # solver steps
        solver=dict(  # the rule of a step
            name="euler",
            euler={},
            heun={},
            midpoint={},
            runge_kutta_4={},
            dpm_solver=dict(order=2, published=False),  # DPM-Solver++ 2M; 3 is 3M
            unipc={},
            ddim=dict(eta=0.0),  # 0: deterministic; 1: ddpm
            ddpm=dict(large=False),  # noise of the forward step's std
            flow_sde=dict(level=0.7),  # of the noise
            # churn: noise over the whole way; smallest, largest: sigma between which it is added
            edm=dict(churn=0.0, smallest=0.05, largest=50.0, inflation=1.003, corrected=True),
        ),
        grid=dict(  # the times of the steps
            name="uniform",
            uniform={},
            shifted=dict(alpha=3.0, double=False, reference=0),  # as in flow_matching.shift
            karras=dict(rho=7.0, smallest=0.002, largest=80.0),  # sigma
            given=dict(times=(1.0, 0.5, 0.0)),  # one more than steps
        ),
        guidance=guided,
        unguided=0,  # first steps without guidance
        rows=64,  # pictures drawn at once
        matmul_precision="",  # of the backbone while it draws; "": as it is trained
        **diversity(),
        batches=8,  # held-out batches, for objectives that draw nothing
    )
