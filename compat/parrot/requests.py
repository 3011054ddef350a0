"""Requests. Unknown fields are refused, and so are values that this server does not support."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from compat.bounds import MAX_STOP_TOKENS, BoundedModel, check_biases

_PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")
_MAX_STOP_LENGTH = 1_000
MAX_OUTPUTS = 1_000
"""Maximum number of outputs of a call."""
MAX_PLACEHOLDERS = 10_000
"""Maximum number of placeholders in a template."""
_SessionNumber = Annotated[int, Field(ge=-(2**65), le=2**65)]
_Penalty = Annotated[float, Field(ge=-2.0, le=2.0, allow_inf_nan=False)]

CRITERIA = {"latency": "latency", "throughput": "throughput", "ttft": "latency", "tpot": "latency"}
"""Criteria of a client for a value, in lower case, with the objective that each becomes."""


class _Request(BoundedModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def _criteria(value: Any) -> Any:
    if isinstance(value, str) and value.lower() not in CRITERIA:
        raise ValueError("must be one of latency, throughput, TTFT and TPOT")
    return value.lower() if isinstance(value, str) else value


class ProgramRequest(_Request):
    """POST /v1/session. `api_key`: API key of the client, if the server requires keys."""

    api_key: str = ""


class Program(_Request):
    """GET and DELETE of a session. `session_auth`: secret of the session."""

    session_auth: str


class SamplingConfig(_Request):
    """Sampling parameters of an output, with Parrot's defaults."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0, allow_inf_nan=False)] = 0.8
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 0.95
    max_gen_length: Annotated[int, Field(ge=1)] = 1024
    ignore_tokenizer_eos: bool = False
    stop_token_ids: list[Annotated[int, Field(ge=0)]] = Field(default_factory=list, max_length=MAX_STOP_TOKENS)
    stop_str: str | None = None
    presence_penalty: _Penalty = 0.0
    frequency_penalty: _Penalty = 0.0
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.0, le=10.0)] = 0.0
    """Repetition penalty. 0, Parrot's default, and 1 have no effect."""
    # only with the values that have no effect: an output is one text, without beam search
    n: Literal[1] = 1
    best_of: Literal[1] = 1
    length_penalty: float = 0.0

    @field_validator("length_penalty")
    @classmethod
    def _check_length_penalty(cls, penalty: float) -> float:
        if penalty not in (0.0, 1.0):
            raise ValueError("a length penalty has no effect without beam search, which is not supported")
        return penalty

    @field_validator("logit_bias")
    @classmethod
    def _bias_names_tokens(cls, bias: dict[str, float] | None) -> dict[str, float] | None:
        check_biases(bias)
        return bias

    @field_validator("stop_str")
    @classmethod
    def _check_stop(cls, stop: str | None) -> str | None:
        if stop == "":
            raise ValueError("a stop string must not be empty")
        if stop is not None and len(stop) > _MAX_STOP_LENGTH:
            raise ValueError(f"a stop string has at most {_MAX_STOP_LENGTH} characters")
        return stop


class Parameter(_Request):
    """The meaning of a placeholder: an output, or an input with a variable or a value."""

    name: str
    is_output: bool
    var_id: str | None = None
    value: JsonValue = None
    sampling_config: SamplingConfig | None = None

    @model_validator(mode="after")
    def _is_input_or_output(self) -> Self:
        if self.is_output and self.value is not None:
            raise ValueError("an output cannot have a value")
        if not self.is_output and self.sampling_config is not None:
            raise ValueError("an input is not generated; only an output can have sampling_config")
        if not self.is_output and (self.var_id is None) == (self.value is None):
            raise ValueError("an input needs either var_id or value")
        return self


class SemanticCall(_Request):
    """POST /v1/semantic_call. Parrot's client sends no `session_auth`. It is checked if another client sends it."""

    session_id: _SessionNumber
    session_auth: str | None = None
    func_name: str = ""
    template: str
    parameters: list[Parameter]
    models: list[str] = Field(default_factory=list)
    model_type: Literal["token_id", "text"] = "token_id"
    remove_pure_fill: bool = True
    cache_prefix: bool = True
    fuse_fill: bool = False
    output_criteria: str | None = None

    _known = field_validator("output_criteria")(_criteria)

    @model_validator(mode="after")
    def _template_and_parameters_agree(self) -> Self:
        names = Counter(parameter.name for parameter in self.parameters)
        repeated = next((name for name, count in names.items() if count > 1), None)
        if repeated is not None:
            raise ValueError(f"duplicate parameter {repeated!r}")
        outputs = sum(parameter.is_output for parameter in self.parameters)
        if outputs > MAX_OUTPUTS:
            raise ValueError(f"{outputs} outputs; at most {MAX_OUTPUTS} are allowed in one call")
        if next(islice(_PLACEHOLDER.finditer(self.template), MAX_PLACEHOLDERS, None), None) is not None:
            raise ValueError(f"a template has at most {MAX_PLACEHOLDERS} placeholders")
        placed = {piece.name for piece in pieces(self) if isinstance(piece, Parameter)}
        if missing := next((name for name in names if name not in placed), None):
            raise ValueError(f"the template has no placeholder {{{{{missing}}}}} for the parameter {missing!r}")
        return self


def pieces(call: SemanticCall) -> Iterator[str | Parameter]:
    """Yield the template's texts and parameters, in order. Raises ValueError for a placeholder without parameter."""
    parameters = {parameter.name: parameter for parameter in call.parameters}
    for index, piece in enumerate(_PLACEHOLDER.split(call.template)):
        if index % 2 and piece not in parameters:
            raise ValueError(f"the template has a placeholder {piece!r}, but there is no such parameter")
        if index % 2:
            yield parameters[piece]
        elif piece:
            yield piece


class NativeCall(BoundedModel):
    """POST /v1/py_native_call, which is always refused."""

    func_name: str = ""


class Register(_Request):
    """POST /v1/semantic_var."""

    session_id: _SessionNumber
    session_auth: str
    var_name: str


class Set(_Request):
    """POST /v1/semantic_var/{id}."""

    session_id: _SessionNumber
    session_auth: str
    content: str


class Read(_Request):
    """GET /v1/semantic_var/{id}, and GET of all variables. Parrot's client sends a body with GET."""

    session_id: _SessionNumber
    session_auth: str | None = None
    criteria: str = "latency"

    _known = field_validator("criteria")(_criteria)
