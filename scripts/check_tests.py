"""Reject modules without a test file of their name, and test files of no module.

`gateway/x/y.py` is tested in `tests/gateway/x/test_y.py`. `UNTESTED` lists the modules for which another test is
enough, `CROSS_MODULE` the test files that belong to no single module, each with the reason. Run it without arguments.
The exit status is 1 if a file breaks the rule.
"""

import ast
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
PACKAGES = ("compat", "engine", "gateway")
_TYPES = "only types of answers; every test of an endpoint reads them"
_RECORDS = "only records and protocols, without code"
UNTESTED: dict[str, str] = {
    "compat/anthropic/answers.py": _TYPES,
    "compat/openai/answers.py": _TYPES,
    "compat/openai/objects.py": _TYPES,
    "compat/openai/status.py": _TYPES,
    "compat/openai/responses/events.py": _TYPES,
    "compat/openai/responses/objects.py": _TYPES,
    "compat/parrot/answers.py": _TYPES,
    "engine/errors.py": _RECORDS,
    "engine/kernels/cpu/kernels.py": "tests/engine/kernels/test_kernels.py compares all kernels",
    "engine/kernels/reference.py": "tests/engine/kernels/test_kernels.py compares all kernels",
    "engine/kernels/triton/attention.py": "tests/interpreter/test_attention.py",
    "engine/kernels/triton/kernels.py": "tests/interpreter/test_engine.py",
    "engine/kernels/triton/layers.py": "tests/interpreter/test_layers.py",
    "engine/kernels/triton/paged.py": "tests/interpreter/test_attention.py",
    "engine/kernels/triton/sampling.py": "tests/interpreter/test_sampling.py",
    "engine/models/decoder.py": "tests/engine/models/test_families.py compares it with transformers",
    "engine/word_patterns.py": "patterns, which tests/engine/test_incremental_tokenizer.py tries",
    "gateway/__main__.py": "every test with a server runs it",
    "gateway/api/call_spec.py": _RECORDS,
    "gateway/api/services.py": _RECORDS,
    "gateway/cli/doctor.py": "tests/engine/test_doctor.py runs the command",
    "gateway/cli/engine.py": "tests/e2e/test_elsewhere.py runs the command",
    "gateway/cli/serve.py": "tests/e2e/test_lifecycle.py runs the command",
    "gateway/cluster/forwarding.py": "needs two gateways: tests/e2e/test_gateways.py",
    "gateway/api/semantic/agent_prompts.py": "tests/gateway/scheduler/forms/test_agent_run.py runs agents",
    "gateway/graph/forms/arguments.py": "tests/gateway/scheduler/forms/test_tool_run.py runs tools with references",
    "gateway/engines/local/ray.py": "needs a Ray cluster: tests/e2e/test_ray.py",
    "gateway/engines/protocol.py": _RECORDS,
    "gateway/graph/call_gate.py": _RECORDS,
    "gateway/graph/events.py": _RECORDS,
    "gateway/graph/transform.py": _RECORDS,
    "gateway/http_client/errors.py": "only classes of exceptions",
    "gateway/journal/storage.py": _RECORDS,
    "gateway/programs/program.py": _RECORDS,
    "gateway/server/lifespan.py": "the life of a process: tests/e2e/test_lifecycle.py",
    "gateway/simulator/agents/call.py": _RECORDS,
    "gateway/simulator/agents/policy.py": "tests/gateway/simulator/agents/policies/test_vllm.py: vLLM's is the default",
    "gateway/telemetry/engine_status.py": _RECORDS,
    "gateway/tools/protocol.py": _RECORDS,
}
"""Modules without a test file of their name, and the reason."""
CROSS_MODULE: dict[str, str] = {
    "tests/compat/langchain/test_standard.py": "LangChain's own suites",
    "tests/compat/openai/schemas/test_random_schemas.py": "schemas from the request to the finished answer",
    "tests/engine/kernels/test_kernels.py": "all kernels against one reference",
    "tests/engine/kernels/triton/test_compiled.py": "all kernels through Triton's compiler",
    "tests/engine/kernels/triton/test_interpreted.py": "runs tests/interpreter",
    "tests/engine/kernels/triton/test_scripts.py": "runs the scripts of bench/gpu",
    "tests/engine/models/test_broken.py": "broken checkpoints of every kind",
    "tests/engine/models/test_families.py": "every model family against transformers",
    "tests/gateway/test_open_routes.py": "every route without an API key",
    "tests/engine/test_schemas.py": "random schemas through grammar and sampler",
    "tests/engine/test_threads.py": "threads of the whole engine",
    "tests/engine/test_whole_engine.py": "random operations on the whole engine",
    "tests/gateway/api/responses/test_hostile.py": "wrong values of every item and tool, through all packages",
    "tests/gateway/api/responses/test_open_responses.py": "the compliance tests of Open Responses",
    "tests/gateway/api/test_garbage.py": "objects of a request, through all packages",
    "tests/gateway/api/test_media.py": "images, from the request to the upstream server",
    "tests/gateway/api/test_reasoning.py": "reasoning, from the upstream server to the answer",
    "tests/gateway/engines/openai/test_openai_types.py": "requests and answers against OpenAI's own types",
    "tests/gateway/engines/openai/test_sglang.py": "requests and answers against SGLang's own types",
    "tests/gateway/engines/test_conformance.py": "every kind of engine behaves the same",
    "tests/gateway/scheduler/test_every_load.py": "the scheduler as a whole",
    "tests/gateway/scheduler/test_whole_graph.py": "random operations on graph and scheduler",
    "tests/gateway/scheduler/test_whole_prompt.py": "prompts from the message to the engine's tokens",
    "tests/gateway/web/test_modules.py": "runs the tests of the live page's modules, which are JavaScript",
    "tests/gateway/test_compatibility.py": "docs/openai-compatibility.md against the schemas",
}
"""Test files that belong to no single module, and what they test."""


def test_file_of(module: str) -> str:
    """Return the test file of a module."""
    path = PurePosixPath(module)
    return str("tests" / path.with_name(f"test_{path.name}"))


def needs_tests(module: str, text: str) -> bool:
    """Return whether a module needs a test file. An `__init__.py` that only imports does not."""
    if not module.endswith("/__init__.py"):
        return True
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("__") for node in ast.parse(text).body)


def problems(
    modules: Collection[str],
    tests: Collection[str],
    untested: Mapping[str, str],
    cross_module: Mapping[str, str],
) -> Iterator[str]:
    """Yield a line for each file that breaks the rule. `modules`: those that need tests. `tests`: all test files."""
    expected = {test_file_of(module): module for module in modules}
    for test, module in sorted(expected.items()):
        if test not in tests and module not in untested:
            yield f"{module}: there is no {test}, and no reason in UNTESTED"
    for module, reason in sorted(untested.items()):
        if module not in modules:
            yield f"{module}: listed in UNTESTED, but there is no such module"
        elif test_file_of(module) in tests:
            yield f"{module}: listed in UNTESTED, but {test_file_of(module)} exists"
        elif not reason.strip():
            yield f"{module}: listed in UNTESTED without a reason"
    for test in sorted(tests):
        if test not in expected and test not in cross_module:
            yield f"{test}: tests no module of its name, and is not in CROSS_MODULE"
    for test, reason in sorted(cross_module.items()):
        if test not in tests:
            yield f"{test}: listed in CROSS_MODULE, but there is no such file"
        elif test in expected:
            yield f"{test}: listed in CROSS_MODULE, but it is the test file of {expected[test]}"
        elif not reason.strip():
            yield f"{test}: listed in CROSS_MODULE without a reason"


def main() -> int:
    """Print the problems of the repository. Return the exit status."""
    tracked = subprocess.check_output(["git", "ls-files", "*.py"], cwd=ROOT, text=True).split()
    modules = {
        file
        for file in tracked
        if file.startswith(tuple(f"{name}/" for name in PACKAGES)) and needs_tests(file, (ROOT / file).read_text())
    }
    mirrored = tuple(f"tests/{name}/" for name in PACKAGES)
    tests = {file for file in tracked if file.startswith(mirrored) and PurePosixPath(file).name.startswith("test_")}
    found = list(problems(modules, tests, UNTESTED, CROSS_MODULE))
    print(*found, sep="\n", end="\n" if found else "")
    print(f"{len(found)} problems of tests" if found else "The tests mirror the tree.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
