"""Tests of engine/sampler.py and of the samplers in numpy and C, against slow versions with full sorts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.config import default_cache
from engine.generation import Generation, SampledToken
from engine.kernels import Kernels, LayerShape
from engine.kernels.cpu import CpuKernels
from engine.kernels.reference import TorchKernels
from engine.sampler import BadLogits, Sampler, collect
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer

VOCABULARY = 6000
_SHAPE = LayerShape(2, 1, 32, 32, 64, 64, "silu", 1.0, 0.0, 1e-5)
HANDS: dict[str, Kernels] = {
    "numpy": TorchKernels(_SHAPE, torch.bfloat16, 16),
    "C": CpuKernels(Path(default_cache()), _SHAPE, torch.bfloat16, 16),
    "C without AVX": CpuKernels(Path(default_cache()), _SHAPE, torch.bfloat16, 16, target=()),
}


@pytest.fixture(params=HANDS, autouse=True, scope="module")
def kernels_name(request: pytest.FixtureRequest) -> str:
    """Run every test here for every implementation."""
    global kernels
    kernels = HANDS[request.param]
    return str(request.param)


kernels = HANDS["numpy"]


def sample(
    logits: np.ndarray[Any, Any], generations: list[Generation], kernels_name: str = ""
) -> list[SampledToken | BadLogits]:
    sampler = Sampler(HANDS[kernels_name] if kernels_name else kernels)
    return collect(sampler.start(torch.from_numpy(logits.copy()), generations), generations)


def generation(tokenizer: Tokenizer, prompt: list[int] | None = None, **sampling: Any) -> Generation:
    return Generation(SamplingParams(**sampling), tokenizer, prompt or [], 1000)


def logits(seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(VOCABULARY) * 3).astype(np.float32)


def draw(row: np.ndarray[Any, Any], one: Generation) -> int:
    (choice,) = sample(row[None, :], [one])
    assert isinstance(choice, SampledToken)
    return choice.token


def expected_candidates(
    row: np.ndarray[Any, Any], temperature: float, top_k: int, top_p: float, min_p: float
) -> dict[int, float]:
    """Return candidates and probabilities by the definitions, in float64 and with a full sort."""
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    order = sorted(range(len(row)), key=lambda token: (-weights[token], token))
    order = [token for token in order if weights[token] >= min_p]
    if top_k:
        order = order[:top_k]
    total, running, nucleus = sum(weights[t] for t in order), 0.0, []
    for token in order:
        nucleus.append(token)
        running += weights[token]
        if running >= top_p * total:
            break
    chosen = nucleus if top_p < 1 else order
    mass = sum(weights[t] for t in chosen)
    return {token: weights[token] / mass for token in chosen}


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 5, 1.0, 0.0),
        (1.0, 0, 0.3, 0.0),
        (1.5, 40, 0.8, 0.0),
        (1.0, 0, 1.0, 0.2),
        (2, 0, 0.999, 0),
    ],
)
def test_tokens_have_the_right_frequency(
    tokenizer: Tokenizer, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    row = logits(1)
    one = generation(tokenizer, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=3, ignore_eos=True)
    wanted = expected_candidates(row, temperature, top_k, top_p, min_p)
    draws = 3000
    drawn = []
    for _ in range(draws):
        drawn.append(draw(row, one))
        one.push(drawn[-1])
    seen = np.bincount(drawn, minlength=VOCABULARY)
    assert set(np.flatnonzero(seen)) <= set(wanted)
    expected = np.array([wanted.get(token, 0.0) for token in range(VOCABULARY)]) * draws
    common = expected >= 5
    statistic = float((((seen - expected) ** 2)[common] / expected[common]).sum())
    freedom = max(1, int(common.sum()) - 1)
    assert statistic < freedom + 6 * (2 * freedom) ** 0.5, "chi-squared, six standard deviations"


@given(seed=st.integers(0, 10_000), top_k=st.integers(0, 300), top_p=st.floats(0.05, 1.0), min_p=st.floats(0, 0.5))
def test_only_candidates_are_drawn(tokenizer: Tokenizer, seed: int, top_k: int, top_p: float, min_p: float) -> None:
    row = logits(seed)
    one = generation(tokenizer, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    # slightly larger: float32 sums differ from float64 sums at the border
    wanted = expected_candidates(row, 1.0, top_k, min(1.0, top_p + 1e-5), min_p * (1 - 1e-5))
    for _ in range(5):
        token = draw(row, one)
        assert token in wanted
        one.push(token)


def test_seeded_tokens_do_not_depend_on_other_rows(tokenizer: Tokenizer) -> None:
    row, other = logits(1), logits(2)
    alone = generation(tokenizer, seed=7)
    together = generation(tokenizer, seed=7)
    noise = generation(tokenizer, seed=8)
    tokens, again = [], []
    for _ in range(20):
        tokens.append(draw(row, alone))
        alone.push(tokens[-1])
        choice = sample(np.stack([other, row]), [noise, together])[1]
        assert isinstance(choice, SampledToken)
        again.append(choice.token)
        together.push(choice.token)
    assert again == tokens
    assert len(set(tokens)) > 5


def test_repeated_sample_is_the_same(tokenizer: Tokenizer) -> None:
    """Check that a step that runs again, because another sequence failed, does not advance the random stream."""
    one = generation(tokenizer, seed=7)
    assert len({draw(logits(1), one) for _ in range(5)}) == 1


def test_zero_temperature_is_greedy(tokenizer: Tokenizer) -> None:
    row = logits(4)
    assert draw(row, generation(tokenizer, temperature=0.0)) == int(row.argmax())


def test_logit_bias_can_force_and_forbid(tokenizer: Tokenizer) -> None:
    row = logits(5)
    best = int(row.argmax())
    assert draw(row, generation(tokenizer, temperature=0.0, logit_bias={best: -100.0})) != best
    assert draw(row, generation(tokenizer, temperature=0.0, logit_bias={17: 100.0})) == 17


def test_penalties_follow_their_definitions(tokenizer: Tokenizer) -> None:
    row = np.zeros(VOCABULARY, dtype=np.float32)
    row[1], row[2], row[3] = 2.0, 1.9, -1.0
    one = generation(tokenizer, temperature=0.0, frequency_penalty=0.06, presence_penalty=0.06)
    one.push(1)
    assert draw(row, one) == 2, "2.0 - 0.06 - 0.06 is less than 1.9"
    one = generation(tokenizer, prompt=[1], temperature=0.0, presence_penalty=2.0)
    assert draw(row, one) == 1, "presence counts only what was generated"
    one = generation(tokenizer, prompt=[1], temperature=0.0, repetition_penalty=1.2)
    assert draw(row, one) == 2, "repetition counts the prompt: 2.0 / 1.2 is less than 1.9"


def test_no_end_token_before_min_tokens(tokenizer: Tokenizer) -> None:
    row = np.zeros(VOCABULARY, dtype=np.float32)
    end = next(iter(tokenizer.eos_ids))
    row[end], row[50] = 9.0, 1.0
    one = generation(tokenizer, temperature=0.0, min_tokens=2)
    for _ in range(2):
        token = draw(row, one)
        assert token == 50
        one.push(token)
    assert draw(row, one) == end


def test_logprobs_are_of_the_models_distribution(tokenizer: Tokenizer) -> None:
    row = logits(6)
    one = generation(tokenizer, temperature=0.0, logprobs=True, top_logprobs=3, logit_bias={5: 100.0})
    (choice,) = sample(row[None, :], [one])
    assert isinstance(choice, SampledToken)
    assert choice.logprob is not None
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    assert choice.logprob.token == 5
    assert choice.logprob.logprob == pytest.approx(exact[5], abs=1e-4)
    best = sorted(range(VOCABULARY), key=lambda token: -exact[token])[:3]
    assert [token for token, _ in choice.logprob.top] == best
    assert [value for _, value in choice.logprob.top] == pytest.approx([exact[token] for token in best], abs=1e-4)


def test_row_with_nan_affects_no_other(tokenizer: Tokenizer) -> None:
    bad, good = logits(7), logits(8)
    bad[100] = np.nan
    results = sample(np.stack([bad, good]), [generation(tokenizer), generation(tokenizer, temperature=0.0)])
    assert isinstance(results[0], BadLogits)
    assert results[1] == SampledToken(int(good.argmax()), None)


def test_tokens_of_zero_probability_are_not_drawn(tokenizer: Tokenizer) -> None:
    row = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    row[[7, 5000]] = 0.0
    for sampling in ({}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        one = generation(tokenizer, seed=1, **sampling)
        drawn = set()
        for _ in range(50):
            drawn.add(draw(row, one))
            one.push(0)
        assert drawn == {7, 5000}


def test_row_without_allowed_token_fails_alone(tokenizer: Tokenizer) -> None:
    row = np.full(VOCABULARY, -np.inf, dtype=np.float32)
    results = sample(np.stack([row, logits(9)]), [generation(tokenizer), generation(tokenizer, temperature=0.0)])
    assert isinstance(results[0], BadLogits)
    assert isinstance(results[1], SampledToken)


@given(
    seed=st.integers(0, 100_000),
    temperature=st.floats(0.05, 3.0),
    top_k=st.sampled_from([0, 1, 2, 40, 5999, 6000, 7000]),
    top_p=st.sampled_from([1.0, 0.999, 0.9, 0.1, 1e-6]),
    min_p=st.sampled_from([0.0, 0.0, 0.05, 1.0]),
    peak=st.floats(0, 40),
)
def test_c_and_numpy_sample_the_same(
    tokenizer: Tokenizer,
    kernels_name: str,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    peak: float,
) -> None:
    """Sums may differ in the last bits where two tokens meet: then the samplers may return neighbours."""
    row = np.round(logits(seed), 2)
    row[seed % VOCABULARY] += peak
    options: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seed": seed,
        "logprobs": True,
        "top_logprobs": 5,
    }
    batch = np.stack([row] * 3)
    results = []
    for name in ("numpy", kernels_name):
        ones = [generation(tokenizer, **options) for _ in range(3)]
        for index, one in enumerate(ones):
            one._uniforms.append((seed % 997 / 997 + index / 3) % 1.0)
        results.append(sample(batch, ones, name))
    for actual, wanted in zip(results[1], results[0], strict=True):
        assert isinstance(actual, SampledToken)
        assert isinstance(wanted, SampledToken)
        if actual.token != wanted.token:
            allowed = expected_candidates(row, temperature, top_k, min(1.0, top_p + 1e-4), min_p * (1 - 1e-4))
            between = [
                t for t in sorted(allowed) if min(actual.token, wanted.token) < t < max(actual.token, wanted.token)
            ]
            assert actual.token in allowed
            assert sum(allowed[t] for t in between) < 1e-3
            continue
        assert actual.logprob is not None
        assert wanted.logprob is not None
        assert actual.logprob.logprob == pytest.approx(wanted.logprob.logprob, abs=1e-4)
        assert [token for token, _ in actual.logprob.top] == [token for token, _ in wanted.logprob.top]
