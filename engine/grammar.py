"""Constrain texts to a regular expression, a JSON schema or a grammar, with llguidance.

Clients send the grammars. A thread compiles them, concurrently with the steps. The time that steps spend on a grammar
is bounded by llguidance's limits for each token, and by a CPU time budget for each scope.
"""

import json
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING

import llguidance.numpy
import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from engine.errors import ContextError
from engine.sampling_params import SamplingParams
from engine.tokenizer import Tokenizer

if TYPE_CHECKING:  # the module exists for type checkers only
    from llguidance._lib import JsonCompileOptions

_JSON: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""Compile options with one way to write each value: where white space is free, a small model generates it without
end."""
LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=100_000,
    step_max_items=20_000,
    max_lexer_states=20_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)
"""Bounds of compiling, about 0.1 s; of one step, about 0.1 s; and of memory, about 40 MB for the states of a lexer."""
_QUICK_SECONDS = 0.005
"""CPU time of one token that is not charged to the budget, in seconds. Ordinary grammars take less than a tenth of
it."""
_BUDGET_SECONDS = 2.0
"""CPU time budget of a scope beyond that, in seconds, for all its texts together: other sequences wait meanwhile."""
_OVERDRAFT_SECONDS = 1.0
"""CPU time that a scope can owe at most, in seconds. While it owes some, its next grammar waits to be compiled."""
_CHEAP_SECONDS = 0.1
"""CPU time up to which a text continues although the budget of its scope is used up, in seconds: other texts spent
it."""
_REFILL = 0.1
"""Refill rate of the budget, in seconds per second."""
_SCOPES = 1_000
"""Number of budgets above which full ones are dropped."""
_STACK_BYTES = 64 << 20
"""Stack size of the compiling thread: llguidance follows references recursively. Only the used part occupies memory."""
_MAX_MESSAGE = 200


class Grammars:
    """Shared state of all grammars over one vocabulary. It is created on first use."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._jobs = _CompileQueues()
        self._budgets: dict[str, _CpuBudget] = {}
        """Budgets by scope. Only the compiling thread uses them."""

    @cached_property
    def _vocabulary(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._tokenizer)))

    def compile(self, sampling: SamplingParams, scope: str = "", prefix: str = "") -> "Future[Matcher]":
        """Start to compile the grammar of a constrained request in a thread. The future may raise ContextError.

        `prefix`: text with which the generated text begins, before the constrained text.

        Scopes take turns: a scope with many large grammars delays those of another scope by only one grammar. The
        grammars of a scope that used up its CPU time budget wait until some of it is refilled.
        """
        future: Future[Matcher] = Future()
        self._jobs.put(scope, (future, sampling, prefix))
        _ = self._compiler
        return future

    @cached_property
    def _compiler(self) -> threading.Thread:
        before = threading.stack_size(_STACK_BYTES)
        thread = threading.Thread(target=self._serve, name="grammars", daemon=True)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
        return thread

    def _serve(self) -> None:
        while True:
            scope, (future, sampling, prefix) = self._jobs.get(lambda scope: self._budget(scope).seconds_until_positive)
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._compile(sampling, self._budget(scope), prefix))
            except Exception as error:  # the future's `result` raises it
                future.set_exception(error)

    def _budget(self, scope: str) -> "_CpuBudget":
        if len(self._budgets) >= _SCOPES:
            self._budgets = {known: budget for known, budget in self._budgets.items() if not budget.is_full}
        return self._budgets.setdefault(scope, _CpuBudget())

    def _compile(self, sampling: SamplingParams, budget: "_CpuBudget", prefix: str = "") -> "Matcher":
        try:
            grammar = _grammar(sampling, prefix)
        except (ValueError, RecursionError) as error:
            raise ContextError("bad_grammar", _client_message(str(error))) from error
        assert grammar is not None
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise ContextError("bad_grammar", _client_message(matcher.get_error()))
        ready = Matcher(matcher, self._vocabulary.vocab_size, budget)
        ready.allowed_mask()  # the first mask is the most expensive one; here no step waits for it
        if ready.failure is not None:
            raise ContextError(*ready.failure)
        return ready


_Job = tuple["Future[Matcher]", SamplingParams, str]


class _CompileQueues:
    """Queues of grammars to compile, one for each scope. Thread-safe."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[_Job]] = {}
        self._changed = threading.Condition()

    def put(self, scope: str, job: _Job) -> None:
        """Add a job at the end of the scope's queue."""
        with self._changed:
            self._queues.setdefault(scope, deque()).append(job)
            self._changed.notify()

    def get(self, delay: Callable[[str], float]) -> tuple[str, _Job]:
        """Wait for a job and return it with its scope. Scopes take turns; the scope that has waited longest is next.

        `delay` returns the time in seconds during which no job of a scope may begin.
        """
        with self._changed:
            while True:
                delays = {scope: delay(scope) for scope in self._queues}
                scope = next((scope for scope, seconds in delays.items() if seconds <= 0), None)
                if scope is not None:
                    break
                self._changed.wait(min(delays.values(), default=None))
            queue = self._queues.pop(scope)
            job = queue.popleft()
            if queue:
                self._queues[scope] = queue  # at the end
            return scope, job


class _CpuBudget:
    """CPU time that the grammars of one scope may still use. All texts of the scope share it."""

    def __init__(self) -> None:
        self._left = _BUDGET_SECONDS
        self._updated = time.monotonic()

    def spend(self, seconds: float) -> bool:
        """Subtract `seconds` of CPU time from the budget. Return False if less was left."""
        self._refill()
        left = self._left - seconds
        self._left = max(left, -_OVERDRAFT_SECONDS)
        return left >= 0

    @property
    def is_full(self) -> bool:
        """Whether the budget is refilled completely."""
        self._refill()
        return self._left >= _BUDGET_SECONDS

    @property
    def seconds_until_positive(self) -> float:
        """Time in seconds until the scope owes nothing."""
        self._refill()
        return -self._left / _REFILL if self._left < 0 else 0.0

    def _refill(self) -> None:
        now = time.monotonic()
        self._left = min(_BUDGET_SECONDS, self._left + _REFILL * (now - self._updated))
        self._updated = now


def _client_message(error: str) -> str:
    """Return the first line of an error of llguidance: the other lines show its inner state or a stack."""
    line = error.strip().split("\n", 1)[0].strip()
    if "NoExtension" in line:
        return "no text fits the grammar"
    if not line or line.startswith("panic"):
        return "the grammar is too large or too complex"
    return line[:_MAX_MESSAGE]


def _grammar(sampling: SamplingParams, prefix: str) -> str | None:
    """Return the grammar of a request in llguidance's format, or None. Raises ValueError if it is malformed."""
    if sampling.thinks is not None or prefix:
        return _with_text_before(sampling, prefix)
    if sampling.regex is not None:
        return LLMatcher.grammar_from_regex(sampling.regex)
    if sampling.json_schema is not None:
        schema = sampling.json_schema
        if schema.strip() == "true":  # any value; options go with objects only
            schema = "{}"
        return LLMatcher.grammar_from_json_schema(schema, overrides=_JSON)
    return None if sampling.grammar is None else LLMatcher.grammar_from_lark(sampling.grammar)


def _with_text_before(sampling: SamplingParams, prefix: str) -> str | None:
    """Return the grammar of a request whose text begins with a prefix or may begin with reasoning, or None. Raises
    ValueError if it is malformed."""
    if sampling.regex is not None:
        form = f"/{_escape_slashes(sampling.regex)}/"
    elif sampling.json_schema is not None:
        schema = json.loads(sampling.json_schema)
        if not isinstance(schema, dict) and schema is not True:
            raise ValueError("a JSON schema is an object")
        form = f"%json {json.dumps({**(schema if isinstance(schema, dict) else {}), 'x-guidance': _JSON})}"
    elif sampling.grammar is not None:
        form = f"%lark {{\n{sampling.grammar}\n}}"
    else:
        return None
    start = "form"
    if sampling.thinks is not None:
        start = "thoughts form" if sampling.thinks == "begun" else '("<think>" thoughts)? form'
    if prefix:
        start = f"{json.dumps(prefix, ensure_ascii=False)} {start}"
    template = _FORM if sampling.thinks is None else _THOUGHTS
    return LLMatcher.grammar_from_lark(template.format(start=start, form=form))


_FORM = """start: {start}
form: {form}
"""
_THOUGHTS = """start: {start}
thoughts: thought SPACE
thought[lazy]: /(?s:.*)<\\/think>/
SPACE: /\\s{{0,2}}/
form: {form}
"""


def _escape_slashes(regex: str) -> str:
    """Return a regular expression escaped for a place between slashes."""
    return _SLASH.sub(lambda found: _ESCAPED.get(found[0], found[0]), regex)


_SLASH = re.compile(r"\\.|[/\n]", re.DOTALL)
"""Pattern of characters that are escaped already, or that must be."""
_ESCAPED = {"/": "\\/", "\n": "\\n", "\\\n": "\\n"}


class Matcher:
    """Owner of one text's position in its grammar."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, budget: _CpuBudget) -> None:
        self._matcher = matcher
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary)
        self._budget = budget
        self._spent = 0.0
        self.failure: tuple[str, str] | None = None
        """Code and message of the reason why the text cannot be finished, or None."""

    def allowed_mask(self) -> NDArray[np.int32]:
        """Return the tokens that may follow as bits, shape (words,); no bit is set after a failure.

        The array is valid until this method runs again.
        """
        if self.failure is None:
            self._charge(lambda: llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0))
        mask: NDArray[np.int32] = self._mask[0]
        if self.failure is None and not mask.any():
            self._fail(*_DEAD_END)
        if self.failure is not None:
            mask[:] = 0
        return mask

    def _charge(self, work: Callable[[], object]) -> None:
        """Run an operation of the matcher, charge its time to the budget, and set `failure` if it failed."""
        began = time.thread_time()
        work()
        charged = max(0.0, time.thread_time() - began - _QUICK_SECONDS)
        self._spent += charged
        affordable = self._budget.spend(charged) or self._spent <= _CHEAP_SECONDS
        if self._matcher.is_error():
            if "NoExtension" in (error := self._matcher.get_error()):
                self._fail(*_DEAD_END)
            else:
                self._fail("grammar_too_complex", f"the grammar needs too much work: {_client_message(error)}")
        elif self._matcher.is_stopped() and not self._matcher.is_accepting():
            self._fail(*_DEAD_END)
        elif not affordable:
            message = f"this grammar and others of the same key need over {_BUDGET_SECONDS:g} s"
            self._fail("grammar_too_complex", message)

    def _fail(self, code: str, message: str) -> None:
        self.failure = self.failure or (code, message)

    def forced_tokens(self) -> list[int]:
        """Return the tokens that the grammar determines after the current position. They are not consumed yet.

        They encode the only text that can follow, and end before a token that later text could change.
        """
        tokens: list[int] = []
        self._charge(lambda: tokens.extend(self._matcher.compute_ff_tokens()))
        return tokens if self.failure is None else []

    def push(self, token: int) -> bool:
        """Consume the next token. Return whether the text ends there, because no token can follow.

        Such a text is complete, unless `failure` is set.
        """
        self._charge(lambda: self._matcher.consume_token(token))
        return self.failure is not None or bool(self._matcher.is_stopped())


_DEAD_END = ("grammar_dead_end", "the text is incomplete, and the grammar allows no further token")


class _Vocabulary:
    """Adapter that presents a tokenizer to llguidance."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.eos_token_id = tokenizer.eos_id
        self.bos_token_id = None
        self.tokens = [tokenizer.token_bytes(token) for token in range(tokenizer.vocabulary)]
        self.special_token_ids = list(tokenizer.control.values())
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        return self._encode(text.decode(errors="replace") if isinstance(text, bytes) else text)
