"""Run a tool as a call of a graph."""

import hashlib
import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from gateway.graph.call import Call, CallState
from gateway.graph.errors import UnresolvedPath
from gateway.graph.forms.arguments import Path, dotted_path, is_whole_reference, path_text, replace_strings
from gateway.graph.forms.form import ToolRun
from gateway.graph.references import EVERY_NAME, NO_NAME, Reference, parse, resolve
from gateway.graph.variable import Piece
from gateway.scheduler.coalescing import find_leader
from gateway.scheduler.forms.form_steps import FormSteps
from gateway.tools.protocol import BadArguments, ToolFailed, ToolRefused, Tools

Follow = Callable[[Call, Call], Awaitable[None]]
"""Lets the second call serve the first, see `CallExecutor`."""

_MAX_CONVERTED = 50
"""Maximum number of references in one run's arguments that stand for values other than strings. Each needs another
check of all arguments."""
_LONGEST_ERROR = 500
"""Maximum length of a tool's error text in a failure, in characters."""


class ToolRunner:
    """Runs tools. It has no state of its own."""

    def __init__(self, tools: Tools, follow: Follow) -> None:
        self._tools = tools
        self._follow = follow

    async def run(self, steps: FormSteps, form: ToolRun) -> None:
        """Run a tool, once its arguments are known, and make its result the call's output. Raises CallFailed.

        The journal knows that the run has begun before the tool does. After a restart, a run that had begun is repeated
        only if the tool is idempotent. Equal runs of a read-only and idempotent tool share one result if they run at
        the same time in a session: later, the tool may read something else.
        """
        call, label = steps.call, f"tool {form.server}/{form.name}"
        texts = {part.reference: await steps.value(part) for part in form.inputs}
        try:
            arguments = await self._arguments(steps, form, texts)
        except (ToolRefused, ToolFailed, UnresolvedPath) as error:
            await self._report(steps, form, error.code, f"{label}: {error}")
            return
        if call.was_running and not self._tools.is_idempotent(form.server, form.name):
            raise steps.failed(
                "interrupted",
                f"{label} was running when the server stopped. It may have ended, and it is not known to be idempotent",
            )
        if self._tools.is_pure(form.server, form.name):
            leader = find_leader(call, _identity(form, arguments), is_running=True)
            if leader is not None:
                await self._follow(call, leader)
                return
        call.times.started = call.session.clock()
        call.set_state(CallState.RUNNING)
        await call.session.event_log.flush()
        try:
            result = await self._tools.call(form.server, form.name, arguments, tenant=call.session.tenant)
        except (ToolRefused, ToolFailed) as error:
            await self._report(steps, form, error.code, f"{label}: {error}")
            return
        if result.is_error:
            text = result.text if len(result.text) <= _LONGEST_ERROR else f"{result.text[:_LONGEST_ERROR]}..."
            await self._report(steps, form, "tool_failed", f"{label} failed: {text}")
            return
        self._append(steps, result.text)

    def _append(self, steps: FormSteps, text: str) -> None:
        steps.check_size(len(text.encode(errors="surrogatepass")))
        steps.call.output.append(Piece(text))

    async def _report(self, steps: FormSteps, form: ToolRun, code: str, message: str) -> None:
        """Make an error the value, or raise it."""
        if not form.reports_errors:
            raise steps.failed(code, message)
        steps.call.finish_reason = code  # distinguishes the error from a result that begins like one
        self._append(steps, f"error: {message}")

    async def _arguments(self, steps: FormSteps, form: ToolRun, texts: dict[Reference, str]) -> dict[str, Any]:
        """Return the arguments, which satisfy the tool's schema. Raises ToolRefused, ToolFailed and UnresolvedPath.

        A string that is one reference stands for the text. If the schema accepts no string there, it stands for the
        JSON value of the text.
        """
        whole: dict[str, Path] = {}
        names = NO_NAME if form.reports_errors else EVERY_NAME  # a model's arguments hold no references

        def fill(text: str, path: Path) -> str:
            if is_whole_reference(text, names):
                whole[path_text(path)] = path
            return "".join([_text(part, form, texts) for part in parse(text, names)])

        try:
            arguments = replace_strings(json.loads(form.arguments), fill)
        except RecursionError:
            raise UnresolvedPath("the arguments are nested too deeply") from None
        for _ in range(_MAX_CONVERTED):
            try:
                await self._tools.check(form.server, form.name, arguments, tenant=steps.call.session.tenant)
                return dict(arguments)
            except BadArguments as error:
                path = whole.pop(dotted_path(error.where or ""), None)
                if path is None:
                    raise
                arguments = replace_strings(arguments, partial(_parse_at, path))
        raise BadArguments(f"more than {_MAX_CONVERTED} references stand for values other than strings")


def _text(part: str | Reference, form: ToolRun, texts: dict[Reference, str]) -> str:
    if isinstance(part, str):
        return part
    value = form.binding.values.get(part.name)
    if value is not None:
        return resolve(value, part)
    return texts[Reference(form.binding.names[part.name], part.path)]


def _parse_at(place: Path, text: str, path: Path) -> Any:
    """Return the JSON value of a text at a place; the text if it is not JSON, or elsewhere."""
    if path != place:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _identity(form: ToolRun, arguments: dict[str, Any]) -> bytes:
    """Return a digest that is equal for equal runs of a tool."""
    content = json.dumps([form.server, form.name, arguments, form.reports_errors], sort_keys=True)
    return hashlib.blake2b(b"\xfft" + content.encode(), digest_size=20).digest()
