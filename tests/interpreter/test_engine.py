"""The whole engine on interpreted Triton kernels with a tiny model: the greedy text equals that of the torch
kernels."""

from pathlib import Path
from typing import Any

import pytest

from engine import Engine, EngineConfig, SamplingParams
from tests.fakes.checkpoints import write_tiny


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


def run_scenario(target: Engine, count: int) -> dict[int, list[int]]:
    """Run prompts, some of them alike, at different times, one of them forked. Return their answers."""
    answers: dict[int, list[int]] = {}
    shared = list(range(20, 54))
    prompts = {1: [*shared, 70], 2: [*shared, *range(80, 96)], 3: [5, 6, 7], 4: [*shared, 70, 71]}
    waiting = dict(prompts)
    left: set[int] = set()
    for step in range(400):
        if step % 2 == 0 and waiting:
            context, tokens = waiting.popitem()
            target.fill(context, tokens)
            target.generate(context, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
            left.add(context)
            if context == 3:
                target.fill(9, [], parent=3)
                target.fill(9, [11, 12])
                target.generate(9, SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True))
                left.add(9)
        for update in target.step():
            assert update.error is None
            answers.setdefault(update.context, []).extend(update.tokens)
            if update.finish:
                left.discard(update.context)
        target.check_integrity()
        if not left and not waiting:
            return answers
    raise AssertionError("the engine did not come to an end")


@pytest.mark.filterwarnings("ignore:overflow")  # from numpy, which the interpreter uses
@pytest.mark.parametrize("family", ["Gemma 2", "Qwen3"])
def test_text_equals_the_torch_kernels(tmp_path: Path, family: str) -> None:
    write_tiny(tmp_path, family)
    target = engine(tmp_path, "triton", overlap="on" if family == "Qwen3" else "off")
    assert target.info.kernels.startswith("Triton")
    assert run_scenario(target, 4) == run_scenario(engine(tmp_path, "torch"), 4)


def test_text_is_the_same_with_preemption(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    small = engine(tmp_path, "triton", kv_tokens=80, overlap="on", host_kv_tokens=160)
    lost = []
    plan = small._scheduler.plan

    def interactive(*arguments: object) -> object:
        target = plan(*arguments)  # type: ignore[arg-type]
        lost.extend(target.preempted)
        return target

    small._scheduler.plan = interactive  # type: ignore[assignment]
    assert run_scenario(small, 7) == run_scenario(engine(tmp_path, "torch"), 7)
    assert lost, "the pool is too small for all at once"


def test_seeded_sampling_is_the_same(tmp_path: Path) -> None:
    write_tiny(tmp_path)
    outputs = []
    for kernels in ("triton", "torch"):
        sampling = SamplingParams(
            temperature=0.9, top_p=0.9, seed=3, max_tokens=5, ignore_eos=True, logprobs=True, top_logprobs=2
        )
        updates = list(engine(tmp_path, kernels).stream(list(range(30, 50)), sampling))
        outputs.append(
            [
                (token.token, round(token.logprob, 3), [id for id, _ in token.top])
                for update in updates
                for token in update.logprobs or ()
            ]
        )
    assert len(outputs[0]) == 5
    assert outputs[0] == outputs[1]
