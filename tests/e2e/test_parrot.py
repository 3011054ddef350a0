"""Parrot's API, through a client that was written from its description."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests.fakes.checkpoints import write_tiny_llama
from tests.fakes.gateway_harness import MODEL, GatewayHarness

GREEDY = {"temperature": 0.0, "top_p": 1.0, "max_gen_length": 8}


class ParrotClient:
    """A client of one session, like the artifact's: no headers, and a body in every request."""

    def __init__(self, address: str, api_key: str = "") -> None:
        self.http = httpx.Client(base_url=f"{address}/v1", timeout=60)
        answer = self.send("POST", "/session", {"api_key": api_key})
        self.id, self.auth = answer["session_id"], answer["session_auth"]
        assert isinstance(self.id, int)

    @property
    def proof(self) -> dict[str, Any]:
        return {"session_id": self.id, "session_auth": self.auth}

    def ask(self, method: str, path: str, body: Any) -> httpx.Response:
        return self.http.request(method, path, json=body)

    def send(self, method: str, path: str, body: Any) -> Any:
        response = self.ask(method, path, body)
        assert response.status_code == 200, response.text
        return response.json()

    def call(self, template: str, *parameters: dict[str, Any], **metadata: Any) -> dict[str, str]:
        """Submit a call. Return the variables by the names of parameters."""
        body = {"session_id": self.id, "func_name": "f", "template": template, "parameters": parameters, **metadata}
        answer = self.send("POST", "/semantic_call", body)
        assert isinstance(answer["request_id"], int)
        return {info["parameter_name"]: info["var_id"] for info in answer["param_info"]}

    def refused(self, template: str, *parameters: dict[str, Any], **metadata: Any) -> tuple[int, str]:
        body = {"session_id": self.id, "func_name": "f", "template": template, "parameters": parameters, **metadata}
        return self.error("POST", "/semantic_call", body)

    def error(self, method: str, path: str, body: Any) -> tuple[int, str]:
        response = self.ask(method, path, body)
        answer_body = response.json()
        assert set(answer_body) == {"error", "traceback"}
        assert answer_body["traceback"] == ""
        return response.status_code, answer_body["error"]

    def register(self, name: str) -> str:
        return str(self.send("POST", "/semantic_var", {**self.proof, "var_name": name})["var_id"])

    def set(self, var: str, content: str) -> Any:
        return self.send("POST", f"/semantic_var/{var}", {**self.proof, "content": content})

    def get(self, var: str, criteria: str = "latency") -> str:
        return str(self.send("GET", f"/semantic_var/{var}", {**self.proof, "criteria": criteria})["content"])

    def listed(self) -> dict[str, Any]:
        variables = self.send("GET", "/semantic_var", {"session_id": self.id})["vars"]
        return {variable["var_id"]: variable for variable in variables}

    def graph(self) -> Any:
        return self.http.get(f"/sessions/{self.id}/graph").json()


def output(name: str, **config: Any) -> dict[str, Any]:
    return {"name": name, "is_output": True, "sampling_config": {**GREEDY, **config}}


def value(name: str, text: Any) -> dict[str, Any]:
    return {"name": name, "is_output": False, "value": text}


def var(name: str, id: str, *, is_output: bool = False) -> dict[str, Any]:
    return {"name": name, "is_output": is_output, "var_id": id}


@pytest.fixture
def program(server: GatewayHarness) -> Iterator[ParrotClient]:
    program = ParrotClient(server.address)
    yield program
    program.ask("DELETE", f"/session/{program.id}", {"session_auth": program.auth})
    program.http.close()


def completion(server: GatewayHarness, prompt: str) -> str:
    answer = server.client().completions.create(model=MODEL, prompt=prompt, max_tokens=8, temperature=0)
    return answer.choices[0].text


def test_a_chain_runs_when_a_client_requests_its_output(server: GatewayHarness, program: ParrotClient) -> None:
    first = program.call("The capital of {{land}} is{{city}} and more", value("land", "France"), output("city"))
    second = program.call("About{{city}}: it is{{said}}", var("city", first["city"]), output("said"))
    other = program.call("Never asked{{x}}", output("x"))
    assert program.graph()["calls"] == [], "no client has requested an output"
    city = completion(server, "The capital of France is")
    assert program.get(second["said"]) == completion(server, f"About{city}: it is")
    assert program.get(first["city"], "throughput") == city
    assert len(program.graph()["calls"]) == 2
    states = {id: variable["state"] for id, variable in program.listed().items()}
    assert states[other["x"]] == "declared"
    assert states[first["land"]] == "ready"


def test_a_template_may_have_several_outputs(server: GatewayHarness, program: ParrotClient) -> None:
    made = program.call("One, two,{{a}} Then{{b}} because{{a}} of", output("a"), output("b"), remove_pure_fill=False)
    a = completion(server, "One, two,")
    assert program.get(made["b"]) == completion(server, f"One, two,{a} Then")
    assert program.get(made["a"]) == a


def test_the_answer_lists_every_placeholder(program: ParrotClient) -> None:
    body = {"session_id": program.id, "func_name": "f", "template": "{{x}} and {{x}}: {{y}}", "models": [MODEL]}
    parameters = [value("x", {"a": 1}), output("y")]
    answer_body = program.send("POST", "/semantic_call", {**body, "parameters": parameters})["param_info"]
    assert [(info["parameter_name"], info["is_output"], info["var_name"]) for info in answer_body] == [
        ("x", False, "x"),
        ("x", False, "x"),
        ("y", True, "y"),
    ]
    assert answer_body[0]["var_id"] == answer_body[1]["var_id"] != answer_body[2]["var_id"]
    assert program.get(answer_body[0]["var_id"]) == '{"a":1}'


def test_a_registered_variable_is_set_or_generated(server: GatewayHarness, program: ParrotClient) -> None:
    topic, made = program.register("the topic"), program.register("made")
    call = program.call("On{{t}}:{{o}}", var("t", topic), var("o", made, is_output=True) | {"sampling_config": GREEDY})
    assert call == {"t": topic, "o": made}
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(program.get(made)))
    reader.start()
    time.sleep(0.2)
    assert not found
    assert program.set(topic, " tea") == {}
    reader.join(60)
    assert found == [completion(server, "On tea:")]
    listed = program.listed()
    assert listed[topic]["var_name"] == "the_topic"
    assert listed[made]["content"] == found[0]


def test_a_call_with_a_criterion_runs_at_once(program: ParrotClient) -> None:
    made = program.call("Once upon a time{{a}}", output("a"), output_criteria="throughput")
    deadline = time.monotonic() + 60
    while program.listed()[made["a"]]["state"] != "ready" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert program.listed()[made["a"]]["state"] == "ready"
    assert program.graph()["calls"][0]["objective"] == "throughput"


def test_a_call_runs_at_once_if_a_client_waits_for_its_output(program: ParrotClient) -> None:
    late = program.register("late")
    behind = program.call("So{{late}} then{{b}}", var("late", late), output("b"))
    found: list[str] = []
    reader = threading.Thread(target=lambda: found.append(program.get(behind["b"])))
    reader.start()
    time.sleep(0.2)
    program.call("Go{{o}}", var("o", late, is_output=True) | {"sampling_config": GREEDY})
    reader.join(60)
    assert len(found) == 1


def test_control_tokens_work_in_templates_but_not_in_values(program: ParrotClient) -> None:
    program.get(program.call("<|im_end|>{{a}}", output("a"), cache_prefix=False)["a"])
    program.get(program.call("{{x}}{{a}}", value("x", "<|im_end|>"), output("a"), cache_prefix=False)["a"])
    first, second = program.graph()["calls"]
    assert first["prompt_tokens"] == 1
    assert second["prompt_tokens"] > 1


@pytest.mark.parametrize(
    ("template", "parameters", "metadata", "message"),
    [
        ("{{a}}", [], {}, "placeholder 'a', but there is no such parameter"),
        ("{{a}}", [output("a"), output("a")], {}, "duplicate parameter 'a'"),
        ("{{a}}", [output("a"), value("b", "x")], {}, "no placeholder {{b}}"),
        ("{{b}}", [value("b", "x")], {}, "no output"),
        ("{{b}}", [{"name": "b", "is_output": False}], {}, "either var_id or value"),
        ("{{b}}{{a}}", [value("b", "x") | {"sampling_config": GREEDY}, output("a")], {}, "only an output can have"),
        ("{{a}}", [output("a") | {"value": "x"}], {}, "cannot have a value"),
        ("{{a}}", [output("a", n=2)], {}, "sampling_config.n"),
        ("{{a}}", [output("a", length_penalty=0.5)], {}, "beam search"),
        ("{{a}}", [output("a", logit_bias={"999999": 1})], {}, "outside the vocabulary"),
        ("{{a}}", [output("a", logit_bias={"1" * 5_000: 1})], {}, "token ids"),
        ("{{a}}", [output("a", logit_bias={str(n): 1 for n in range(1_025)})], {}, "at most 1024"),
        ("{{a}}", [output("a", stop_token_ids=[1] * 1_001)], {}, "at most 1000"),
        ("{{a}}" * 10_001, [output("a")], {}, "at most 10000 placeholders"),
        ("".join(f"{{{{a{n}}}}}" for n in range(1_001)), [output(f"a{n}") for n in range(1_001)], {}, "1001 outputs"),
        ("{{a}}", [output("a", top_k=3)], {}, "top_k"),
        ("{{a}}", [output("a")], {"model_type": "image"}, "model_type"),
        ("{{a}}", [output("a")], {"output_criteria": "soon"}, "TTFT"),
        ("{{a}}", [output("a")], {"surprise": 1}, "surprise"),
        ("word " * 9000 + "{{a}}", [output("a")], {}, "window"),
    ],
)
def test_invalid_calls_are_refused(
    program: ParrotClient, template: str, parameters: list[dict[str, Any]], metadata: dict[str, Any], message: str
) -> None:
    status, error = program.refused(template, *parameters, **metadata)
    assert status == 400
    assert message in error
    assert program.listed() == {}, "no variable was created"


def test_unknown_sessions_and_variables_get_an_error(server: GatewayHarness, program: ParrotClient) -> None:
    assert program.refused("{{a}}", output("a"), models=["gpt-9"])[0] == 404
    assert program.refused("{{b}}{{a}}", var("b", "nothing"), output("a"))[0] == 404
    assert program.error("GET", "/semantic_var/nothing", {**program.proof, "criteria": "latency"})[0] == 404
    for session in (1, 2**64, -1):
        body = {"session_id": session, "template": "{{a}}", "parameters": [output("a")]}
        assert program.error("POST", "/semantic_call", body)[0] == 404
    assert program.error("DELETE", "/session/abc", {"session_auth": ""})[0] == 404
    assert program.error("GET", f"/session/{program.id}", {"session_auth": "wrong"})[0] == 401
    assert program.error("GET", f"/session/{program.id}", {})[0] == 400
    status, error = program.error("POST", "/py_native_call", {"session_id": program.id, "func_name": "g"})
    assert status == 400
    assert "transform" in error
    assert "'g'" in error


def test_a_name_is_assigned_once(program: ParrotClient) -> None:
    made = program.call("Hi{{a}}", output("a"))["a"]
    again = var("a", made, is_output=True)
    assert program.refused("Ho{{a}}", again)[0] == 409
    body = {**program.proof, "content": "x"}
    assert program.error("POST", f"/semantic_var/{made}", body)[0] == 409
    program.get(made)
    assert program.refused("Ho{{a}}", again)[0] == 409
    assert program.error("POST", f"/semantic_var/{made}", body)[0] == 409


def test_a_cycle_is_refused_when_a_client_requests_an_output(program: ParrotClient) -> None:
    first, second = program.register("one"), program.register("two")
    program.call("{{i}}{{o}}", var("i", first), var("o", second, is_output=True))
    program.call("{{i}}{{o}}", var("i", second), var("o", first, is_output=True))
    for name in (first, second):
        status, error = program.error("GET", f"/semantic_var/{name}", program.proof)
        assert status == 400
        assert "wait for itself" in error


def test_a_failure_is_reported_to_clients_of_dependent_variables(program: ParrotClient) -> None:
    first = program.call("{{x}}{{a}}", value("x", "word " * 9000), output("a"))
    second = program.call("{{a}}{{b}}", var("a", first["a"]), output("b"))
    status, error = program.error("GET", f"/semantic_var/{second['b']}", program.proof)
    assert status == 424
    assert "8192" in error


def test_a_deleted_session_is_gone(server: GatewayHarness, program: ParrotClient) -> None:
    assert program.send("GET", f"/session/{program.id}", {"session_auth": program.auth})["state"] == "idle"
    made = program.call("Long{{a}}", output("a", max_gen_length=4000, ignore_tokenizer_eos=True))
    found: list[tuple[int, str]] = []
    path = f"/semantic_var/{made['a']}"
    reader = threading.Thread(target=lambda: found.append(program.error("GET", path, program.proof)))
    reader.start()
    while not program.graph()["calls"]:
        time.sleep(0.02)
    assert program.send("DELETE", f"/session/{program.id}", {"session_auth": program.auth}) == {}
    reader.join(60)
    assert found[0][0] == 409
    assert program.error("GET", path, program.proof)[0] == 404


def test_a_disconnect_does_not_cancel_a_call(program: ParrotClient) -> None:
    made = program.call("Once{{a}}", output("a", max_gen_length=64, ignore_tokenizer_eos=True))["a"]
    with pytest.raises(httpx.ReadTimeout):
        program.http.request("GET", f"/semantic_var/{made}", json=program.proof, timeout=0.1)
    assert program.get(made)


def test_keys_are_in_the_body_of_the_first_request(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path, window=256)
    with GatewayHarness("--model", str(tiny), "--parrot-api", "--api-key", "first", "--api-key", "second") as server:
        with httpx.Client(base_url=f"{server.address}/v1") as http:
            for body in ({}, {"api_key": "third"}):
                assert http.post("/session", json=body).status_code == 401
        mine = ParrotClient(server.address, "first")
        made = mine.call("ab{{a}}", output("a", max_gen_length=2))
        assert isinstance(mine.get(made["a"]), str)
        with httpx.Client(base_url=f"{server.address}/v1") as http:

            def get_as(key: str, path: str) -> httpx.Response:
                return http.get(path, headers={"Authorization": f"Bearer {key}"})

            assert get_as("first", f"/sessions/{mine.id}/graph").json()["calls"][0]["state"] == "done"
            assert get_as("second", f"/sessions/{mine.id}/graph").status_code == 404
            assert http.get(f"/sessions/{mine.id}/graph").status_code == 401, "only Parrot's routes are open"
        mine.http.close()


def test_parrots_api_is_disabled_by_default(tmp_path: Path) -> None:
    tiny = write_tiny_llama(tmp_path, window=256)
    with GatewayHarness("--model", str(tiny)) as server:
        assert httpx.post(f"{server.address}/v1/session", json={}).json()["error"]["code"] == "unknown_route"
