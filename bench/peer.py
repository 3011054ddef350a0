"""vLLM's CPU build on the default model, to compare with myna."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from bench.servers import started
from engine.config import EngineConfig, default_cache
from engine.models.fetch import checkpoint_folder

_EIGHT_BITS = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False},
            "input_activations": {
                "num_bits": 8,
                "type": "int",
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            },
        }
    },
}
"""`quantization_config` of a checkpoint whose linear layers vLLM multiplies in int8 on a CPU."""

_TEMPLATE = """\
{%- set described -%}
{%- if tools %}You can call functions. Each is described here as JSON:
<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
To call one, write its name and its arguments as JSON:
<tool_call>
{"name": <name>, "arguments": <arguments>}
</tool_call>{% endif -%}
{%- endset -%}
{%- if messages[0].role != 'system' -%}
<|im_start|>system
{{ described or 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' }}<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- set role = 'user' if message.role == 'tool' else message.role -%}
<|im_start|>{{ role }}
{% if message.role == 'tool' %}<tool_response>
{{ message.content }}
</tool_response>{% else %}{{ message.content or '' }}{% endif -%}
{%- if loop.first and message.role == 'system' and described -%}
{{ '\\n' + described }}{% endif -%}
{%- for call in message.tool_calls or [] %}
<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""
"""Chat template for vLLM that describes tools in the same words as myna. The default model's own template has none."""

_WINDOW = 8192
_BLOCK = 32
"""Size of a block of vLLM's KV pool, in tokens: the smallest that its CPU kernels accept."""


@contextmanager
def vllm(python: str, dtype: str, *, quantize: str = "none", kv_tokens: int | None = None) -> Iterator[tuple[str, str]]:
    """Start vLLM with tool calls enabled. Yield the base URL of its API and the model's name.

    `python`: interpreter of the environment that contains vLLM. `quantize`: `none`, or `int8` for linear layers in
    8 bits: weights have a scale for each output, inputs a scale for each token. `kv_tokens`: size of the KV pool, in
    tokens. None: 2 GiB.
    """
    own = checkpoint_folder(EngineConfig().model, Path(default_cache()), torch.bfloat16)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in own.iterdir():
            if quantize == "int8" and file.suffix == ".safetensors":
                save_file(_in_eight_bits(load_file(file)), folder / file.name)
            else:
                (folder / file.name).symlink_to(file)
        config = json.loads((own / "config.json").read_text())
        del config["partial_rotary_factor"]  # it is 1.0, but transformers then assumes another RoPE scaling
        if quantize == "int8":
            config["quantization_config"] = _EIGHT_BITS
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
        (folder / "template.jinja").write_text(_TEMPLATE)
        environment = {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENFORCE_STRICT_TOOL_CALLING": "0",  # otherwise it does not enforce the tool of tool_choice
        }
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", name, "--served-model-name", "peer"]
        window = _WINDOW if kv_tokens is None else min(_WINDOW, kv_tokens)
        command += ["--dtype", dtype, "--max-model-len", str(window), "--host", "127.0.0.1"]
        command += ["--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enable-prompt-tokens-details"]
        command += ["--chat-template", str(folder / "template.jinja")]
        if kv_tokens is not None:
            blocks = -(-kv_tokens // _BLOCK) + 1  # vLLM keeps one for itself
            command += ["--block-size", str(_BLOCK), "--num-gpu-blocks-override", str(blocks)]
        with started(command, port_option="--port", environment=environment, seconds=600) as address:
            yield f"{address}/v1", "peer"


def _in_eight_bits(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    quantized = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            quantized[name] = tensor
            continue
        scale = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        quantized[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
        quantized[f"{name.removesuffix('weight')}weight_scale"] = scale
    return quantized
