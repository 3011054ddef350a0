"""engine/models/decoder.py; that it computes the right thing is tested in test_checkpoint.py and test_loop.py"""

import pytest
import torch

from engine import Engine, EngineConfig
from engine.models.decoder import rotary_table
from tests.checkpoints import write_tiny_llama


@pytest.mark.parametrize("length", [1, 5, 100])
def test_all_layers_in_one_call_are_the_layers_one_by_one(
    tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    folder = write_tiny_llama(tmp_path_factory.mktemp("tiny"), dtype=torch.bfloat16)
    logits = []
    for fused in (True, False):
        engine = Engine(EngineConfig(model=str(folder), kv_tokens=512))
        if engine.decoder._fused is None:
            pytest.skip("these kernels do not fuse")
        if not fused:
            engine.decoder._fused = None
        for context in (1, 2):
            engine.fill(context, [(context * 7 + at) % 250 for at in range(length)])
        plan = engine._planner.plan(engine._contexts.values())
        tokens, batch, _ = engine._gather(plan.chunks, plan.rows)
        logits.append(engine.decoder.forward(tokens, batch, torch.arange(len(tokens))))
    assert torch.equal(*logits), "bit for bit"


def test_rotary_tables_are_cosines_and_sines_by_position() -> None:
    table = rotary_table(8, 4, 100.0, None)
    angles = torch.tensor([[p * 1.0, p * 0.1] for p in range(8)])
    assert torch.allclose(table, torch.cat((angles.cos(), angles.sin()), 1), atol=1e-6)
