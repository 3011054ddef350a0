"""Tests of engine/protocol.py."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.protocol import (
    MAX_FRAME,
    Fill,
    FrameBuffer,
    FrameError,
    Generate,
    Retain,
    StepReport,
    TokenLogprob,
    Update,
    command_decoder,
    encode_frame,
    report_decoder,
)
from engine.sampling_params import SamplingParams


@given(data=st.data(), tokens=st.lists(st.lists(st.integers(0, 50_000)), min_size=1, max_size=5))
def test_frames_are_independent_of_chunking(data: st.DataObject, tokens: list[list[int]]) -> None:
    commands = [Fill(index, each, rank=0.5) for index, each in enumerate(tokens)]
    stream = b"".join(encode_frame(command) for command in commands)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    buffer = FrameBuffer()
    bodies: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        bodies.extend(buffer.feed(stream[start:end]))
    assert [command_decoder.decode(body) for body in bodies] == commands


def test_reports_round_trip() -> None:
    update = Update(
        3, tokens=[7], text="hé", finish="stop", filled=9, cached=4, logprobs=[TokenLogprob(7, -0.5, [(8, -1.0)])]
    )
    step = StepReport([update, Update(4, error=("bad_token", "no"))], running=2, free_tokens=160, commands=7)
    (body,) = FrameBuffer().feed(encode_frame(step))
    assert report_decoder.decode(body) == step


def test_sampling_parameters_round_trip() -> None:
    sampling = SamplingParams(max_tokens=5, seed=2**63, logit_bias={3: -1.5}, stop=("x", "y"), stop_token_ids=(1, 2))
    (body,) = FrameBuffer().feed(encode_frame(Generate(1, sampling)))
    assert command_decoder.decode(body) == Generate(1, sampling)


@given(st.integers(0, 2**40), st.lists(st.floats(allow_nan=False), max_size=130))
def test_expected_returns_round_trip(context: int, returns: list[float]) -> None:
    (body,) = FrameBuffer().feed(encode_frame(Retain(context, returns)))
    assert command_decoder.decode(body) == Retain(context, returns)


def test_impossible_length_raises() -> None:
    with pytest.raises(FrameError, match="the maximum is"):
        list(FrameBuffer().feed((MAX_FRAME + 1).to_bytes(4, "little")))


def test_gateway_imports_no_torch() -> None:
    script = "import sys, engine.protocol, engine.tokenizer, engine.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
