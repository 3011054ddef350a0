"""Forms of a graph, as parts of records."""

from typing import Literal

import msgspec

from gateway.graph.budget import Limits
from gateway.graph.call import CallSpec, Objective, Rendering
from gateway.graph.forms.form import Agent, AgentTool, Binding, Branch, Condition, Form, Map, Repeat, ToolRun
from gateway.graph.segments import Input
from gateway.journal.segment_records import (
    InputPart,
    Part,
    StoredRecord,
    input_of,
    input_record,
    segment_record,
    segments_of,
    template_of,
    template_record,
)


class ConditionRecord(StoredRecord, frozen=True):
    """A condition of a form."""

    value: list[str | InputPart]
    operator: Literal["equals", "in", "matches", "less_than", "json"]
    operand: str


class SpecRecord(StoredRecord, frozen=True):
    """A call that a form may add. The fields are those of a `CallRecord`."""

    model: str
    segments: list[Part]
    output: str | None
    parts: list[str | InputPart] | None
    objective: Objective | None
    share: bool
    salt: str
    fallbacks: list[tuple[str, list[Part]]]
    more_outputs: list[str]
    form: "FormRecord | None"
    where: str
    unresolved: str | None
    defaults: dict[str, str] = msgspec.field(default_factory=dict)


class MapRecord(StoredRecord, frozen=True, tag="map"):
    """See `gateway.graph.forms.form.Map`."""

    over: str | InputPart
    item: str
    call: SpecRecord
    max_items: int
    on_error: Literal["fail", "skip", "null"]
    has_json_results: bool


class BranchRecord(StoredRecord, frozen=True, tag="branch"):
    """See `gateway.graph.forms.form.Branch`."""

    condition: ConditionRecord
    then: list[SpecRecord]
    otherwise: list[SpecRecord]
    default: str | None


class RepeatRecord(StoredRecord, frozen=True, tag="repeat"):
    """See `gateway.graph.forms.form.Repeat`."""

    calls: list[SpecRecord]
    first: dict[str, list[str | InputPart]]
    carry: dict[str, list[str | InputPart]]
    until: ConditionRecord
    max_rounds: int
    exports: list[str]
    on_max: Literal["fail", "last"]


class ToolRecord(StoredRecord, frozen=True, tag="tool"):
    """See `gateway.graph.forms.form.ToolRun`."""

    server: str
    name: str
    arguments: str
    inputs: list[InputPart]
    names: dict[str, str]
    values: dict[str, str]
    reports_errors: bool


class AgentRecord(StoredRecord, frozen=True, tag="agent"):
    """See `gateway.graph.forms.form.Agent`."""

    model: str
    body: str
    prefix: str
    tools: list[tuple[str, str, str]]
    max_turns: int
    inputs: list[InputPart]
    names: dict[str, str]
    values: dict[str, str]
    on_max: Literal["fail", "answer"]
    limits: Limits | None = None
    first: tuple[tuple[str, str, str] | str, ...] = ()
    final: tuple[str, ...] = ()
    max_calls: int | None = None
    forces_each: bool = False


FormRecord = MapRecord | BranchRecord | RepeatRecord | ToolRecord | AgentRecord


def _spec_record(spec: CallSpec) -> SpecRecord:
    return SpecRecord(
        model=spec.model,
        segments=[segment_record(segment) for segment in spec.segments],
        output=spec.output,
        parts=None if spec.parts is None else template_record(spec.parts),
        objective=spec.objective,
        share=spec.share,
        salt=spec.salt,
        fallbacks=[
            (rendering.model, [segment_record(segment) for segment in rendering.segments])
            for rendering in spec.fallbacks
        ],
        more_outputs=list(spec.more_outputs),
        form=None if spec.form is None else form_record(spec.form),
        where=spec.where,
        unresolved=spec.unresolved,
        defaults=dict(spec.defaults),
    )


def form_record(form: Form) -> FormRecord:
    """Return the record of a form."""
    match form:
        case Map(over, item, call, max_items, on_error, has_json_results):
            source = input_record(over) if isinstance(over, Input) else over
            return MapRecord(source, item, _spec_record(call), max_items, on_error, has_json_results)
        case Branch(condition, then, otherwise, default):
            sides = [_spec_record(call) for call in then], [_spec_record(call) for call in otherwise]
            return BranchRecord(_condition_record(condition), *sides, default)
        case Repeat(calls, first, carry, until, max_rounds, exports, on_max):
            return RepeatRecord(
                [_spec_record(call) for call in calls],
                {name: template_record(template) for name, template in first.items()},
                {name: template_record(template) for name, template in carry.items()},
                _condition_record(until),
                max_rounds,
                list(exports),
                on_max,
            )
        case ToolRun(server, name, arguments, inputs, binding, reports_errors):
            parts = [input_record(part) for part in inputs]
            names, values = dict(binding.names), dict(binding.values)
            return ToolRecord(server, name, arguments, parts, names, values, reports_errors)
        case Agent():
            runs = [(run.server, run.name, run.arguments) if isinstance(run, ToolRun) else run for run in form.first]
            return AgentRecord(
                model=form.model,
                body=form.body,
                prefix=form.prefix,
                tools=[(tool.function, tool.server, tool.name) for tool in form.tools],
                max_turns=form.max_turns,
                inputs=[input_record(part) for part in form.inputs],
                names=dict(form.binding.names),
                values=dict(form.binding.values),
                on_max=form.on_max,
                limits=form.limits,
                first=tuple(runs),
                final=tuple(form.final),
                max_calls=form.max_calls,
                forces_each=form.forces_each,
            )


def _condition_record(condition: Condition) -> ConditionRecord:
    return ConditionRecord(template_record(condition.value), condition.operator, condition.operand)


def _spec(record: SpecRecord) -> CallSpec:
    return CallSpec(
        model=record.model,
        segments=segments_of(record.segments),
        output=record.output,
        parts=None if record.parts is None else template_of(record.parts),
        objective=record.objective,
        share=record.share,
        salt=record.salt,
        fallbacks=tuple(Rendering(model, segments_of(parts)) for model, parts in record.fallbacks),
        more_outputs=record.more_outputs,
        form=None if record.form is None else form_of(record.form),
        where=record.where,
        unresolved=record.unresolved,
        defaults=record.defaults,
    )


def form_of(record: FormRecord) -> Form:
    """Return a form."""
    match record:
        case MapRecord(over, item, call, max_items, on_error, has_json_results):
            source = over if isinstance(over, str) else input_of(over)
            return Map(source, item, _spec(call), max_items, on_error, has_json_results)
        case BranchRecord(condition, then, otherwise, default):
            sides = [_spec(call) for call in then], [_spec(call) for call in otherwise]
            return Branch(_condition(condition), *sides, default)
        case RepeatRecord(calls, first, carry, until, max_rounds, exports, on_max):
            return Repeat(
                [_spec(call) for call in calls],
                {name: template_of(template) for name, template in first.items()},
                {name: template_of(template) for name, template in carry.items()},
                _condition(until),
                max_rounds,
                exports,
                on_max,
            )
        case ToolRecord(server, name, arguments, inputs, names, values, reports_errors):
            parts = [input_of(part) for part in inputs]
            return ToolRun(server, name, arguments, parts, Binding(names, values), reports_errors)
        case AgentRecord():
            return Agent(
                model=record.model,
                body=record.body,
                prefix=record.prefix,
                tools=[AgentTool(*tool) for tool in record.tools],
                max_turns=record.max_turns,
                inputs=[input_of(part) for part in record.inputs],
                binding=Binding(record.names, record.values),
                on_max=record.on_max,
                limits=record.limits,
                first=tuple(run if isinstance(run, str) else _reporting_run(*run) for run in record.first),
                final=record.final,
                max_calls=record.max_calls,
                forces_each=record.forces_each,
            )


def _reporting_run(server: str, name: str, arguments: str) -> ToolRun:
    return ToolRun(server, name, arguments, [], reports_errors=True)


def _condition(record: ConditionRecord) -> Condition:
    return Condition(template_of(record.value), record.operator, record.operand)
