"""POST /v1/completions: continue a text without a chat template."""

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass

from aiohttp import web

from compat.openai import CompletionRequest, TextCompletion
from gateway.api import pipeline
from gateway.api.call_spec import new_spec
from gateway.api.program_tracker import RequestFacts, text_messages
from gateway.api.sampling import answer_slot, check_tokens, request_sampling
from gateway.api.schema_checks import answer_checker_of
from gateway.api.semantic.extension import CALL_HEADERS, NO_EXTENSION
from gateway.api.serializers.completions import CompletionSerializer
from gateway.errors import RequestError
from gateway.graph.call import CallSpec
from gateway.graph.references import Reference, parse
from gateway.graph.segments import Input
from gateway.http.json_body import read_json
from gateway.http.openapi import EVENTS, operation
from gateway.prompts.served_models import ServedModel
from gateway.prompts.template_builder import TemplatePromptBuilder

routes = web.RouteTableDef()


@routes.post("/v1/completions")
@operation(
    TextCompletion,
    body=CompletionRequest,
    others={EVENTS: None},
    headers=CALL_HEADERS,
    errors=(404, 409, 410, 422, 424, 429, 503),
)
async def create(request: web.Request) -> web.StreamResponse:
    """Answer prompts with text, as a whole or as a stream.

    If the calls are deferred, answer immediately with references to their outputs.
    """
    body = await read_json(request, CompletionRequest)
    target = await pipeline.admit(request, body.model, body.semantic)
    model, fallbacks, scope = target.model, target.fallbacks, target.scope
    facts: RequestFacts | None = None

    def build() -> list[CallSpec]:
        nonlocal facts
        if target.services.programs is not None:
            facts = RequestFacts([text_messages(prompt) for prompt in body.prompts], user_id=body.user)
        return _specs(body, model, fallbacks, references=scope.references, deferred=scope.is_deferred)

    specs = await pipeline.offload_if_long(build, sum(map(len, body.prompts)), model, *fallbacks)
    checker = answer_checker_of(body, None, target.services.schema_check_gate, scope.session.tenant)
    serializer = CompletionSerializer(body, model, scope, checker)
    return await pipeline.respond(target, specs, serializer, streamed=body.is_streamed, facts=facts)


def _specs(
    body: CompletionRequest,
    model: ServedModel,
    fallbacks: Sequence[ServedModel],
    *,
    references: Container[str],
    deferred: bool,
) -> list[CallSpec]:
    """Return the calls of all prompts. Raises RequestError and GraphError; changes nothing."""
    if (body.semantic or NO_EXTENSION).each is not None:
        message = "semantic.each is supported by chat completions only"
        raise RequestError(400, message, code="unsupported_with_semantic", param="semantic.each")
    if (body.semantic or NO_EXTENSION).slots:
        message = "slots are parts of assistant messages; a completion has no messages"
        raise RequestError(400, message, code="unsupported_with_semantic", param="semantic.slots")
    read: set[str] = set()
    if body.semantic is not None and body.semantic.defaults:
        parts = [part for prompt in body.prompts if isinstance(prompt, str) for part in parse(prompt, references)]
        read = {part.name for part in parts if isinstance(part, Reference)}
    specs: list[CallSpec] = []
    for number, prompt in enumerate(body.prompts):
        where = f"prompt.{number}" if len(body.prompts) > 1 else "prompt"
        builder = CompletionSpecBuilder(body, prompt, where, references, deferred, read)
        spec = pipeline.with_fallbacks(builder, model, fallbacks if isinstance(prompt, str) else ())
        if specs:  # a name is assigned once
            spec = dataclasses.replace(spec, output=None, inputs={})
        specs += pipeline.repeat(spec, body.candidate_count)
    return specs


@dataclass(slots=True)
class CompletionSpecBuilder:
    """Builder of the call for one prompt of a completion. `where`: the prompt's path in the request. `read`: names of
    variables that the prompts read, if the request has defaults."""

    body: CompletionRequest
    prompt: str | list[int]
    where: str
    references: Container[str]
    deferred: bool
    read: Container[str]

    def build(self, model: ServedModel) -> CallSpec:
        """Return the call with the prompt for this model. Raises RequestError and GraphError; changes nothing."""
        body, prompt = self.body, self.prompt
        sampling = request_sampling(body, model)
        answer = answer_slot(body.semantic or NO_EXTENSION, sampling, heals=bool(self.references))
        if isinstance(prompt, str):
            built = model.prompts.completion(prompt, answer, references=self.references, where=self.where)
        elif not isinstance(model.prompts, TemplatePromptBuilder):
            message = f"{model.id} runs on an upstream server that receives text; its tokens are unknown to this server"
            raise RequestError(400, message, code="unsupported_by_engine", param=self.where)
        else:
            built = model.prompts.tokens(prompt, answer, where=self.where)
            check_tokens(model, prompt, self.where)
        if body.echo and any(isinstance(segment, Input) for segment in built.segments):
            message = "echo is not supported for prompts with references"
            raise RequestError(400, message, code="unsupported_with_semantic", param="echo")
        return new_spec(model, built, body, deferred=self.deferred, read_elsewhere=self.read)
