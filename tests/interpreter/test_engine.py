"""The whole engine on Triton's kernels, interpreted, with a tiny model: the same greedy text as on the torch kernels."""

from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig, SamplingParams
from tests.checkpoints import write_tiny


def engine(folder: Path, kernels: str, *, kv_tokens: int = 2048, **other: Any) -> Engine:
    return Engine(
        EngineConfig(
            model=str(folder),
            dtype="float32",
            kernels=kernels,
            kv_tokens=kv_tokens,
            step_tokens=48,
            max_batch=8,
            **other,
        )
    )


def story(made: Engine, count: int) -> dict[int, list[int]]:
    """Prompts of which some are alike, at different times, one of them forked: what each is answered."""
    answers: dict[int, list[int]] = {}
    shared = list(range(20, 54))
    prompts = {1: [*shared, 70], 2: [*shared, *range(80, 96)], 3: [5, 6, 7], 4: [*shared, 70, 71]}
    waiting = dict(prompts)
    left: set[int] = set()
    for step in range(400):
        if step % 2 == 0 and waiting:
            context, tokens = waiting.popitem()
            made.fill(context, tokens)
            made.generate(context, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
            left.add(context)
            if context == 3:
                made.fork(9, 3)
                made.fill(9, [11, 12])
                made.generate(9, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
                left.add(9)
        for update in made.step():
            assert update.error is None
            answers.setdefault(update.context, []).extend(update.tokens)
            if update.finish:
                left.discard(update.context)
        made.check_integrity()
        if not left and not waiting:
            return answers
    raise AssertionError("the engine did not come to an end")


@pytest.mark.filterwarnings("ignore:overflow")  # numpy's, which the interpreter computes with
@pytest.mark.parametrize("family", ["Gemma 2", "Qwen3"])
def test_the_same_text_as_the_torch_kernels(tmp_path: Path, family: str) -> None:
    write_tiny(tmp_path, family)
    made = engine(tmp_path, "triton", overlap="on" if family == "Qwen3" else "off")
    assert made.info.kernels.startswith("Triton")
    assert story(made, 4) == story(engine(tmp_path, "torch"), 4)


def test_the_same_text_where_contexts_lose_their_blocks(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    small = engine(tmp_path, "triton", kv_tokens=80, overlap="on", host_kv_tokens=160)
    lost = []
    plan = small._planner.plan

    def interactive(*arguments: object) -> object:
        made = plan(*arguments)  # type: ignore[arg-type]
        lost.extend(made.preempted)
        return made

    small._planner.plan = interactive  # type: ignore[assignment]
    assert story(small, 7) == story(engine(tmp_path, "torch"), 7)
    assert lost, "the pool was too small for all at once"


def test_sampling_with_a_seed_is_the_same(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    said = []
    for kernels in ("triton", "torch"):
        sampling = SamplingParams(
            temperature=0.9, top_p=0.9, seed=3, max_tokens=5, ignore_eos=True, logprobs=True, top_logprobs=2
        )
        updates = list(engine(tmp_path, kernels).stream(list(range(30, 50)), sampling))
        said.append(
            [
                (token.token, round(token.logprob, 3), [id for id, _ in token.top])
                for update in updates
                for token in update.logprobs or ()
            ]
        )
    assert len(said[0]) == 5
    assert said[0] == said[1]
