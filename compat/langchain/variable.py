"""A Semantic Variable as a Python string: pasted into a prompt it is a reference; read, it is its text."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Self


class SemanticVariableError(RuntimeError):
    """There is no text: the call that would make it failed, or was cancelled. `code`: why, as the server has it."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class SemanticVariable(str):
    """A text that the server is making, or has made.

    Whatever puts it into a larger text (`format`, an f-string, `+`, `join`, a prompt template) puts in its reference,
    and fetches nothing: the server puts the text there. Whatever looks at the text (`str()`, `print`, `len`, `==`,
    `in`, indexing, every method of strings) waits for it, once; `await variable` does so without blocking the loop.
    """

    _fetch: Callable[[], str]
    _afetch: Callable[[], Awaitable[str]]
    _value: str | None

    def __new__(cls, reference: str, fetch: Callable[[], str], afetch: Callable[[], Awaitable[str]]) -> Self:
        """`fetch` and `afetch` wait for the text; they raise SemanticVariableError."""
        made = super().__new__(cls, reference)
        made._fetch, made._afetch, made._value = fetch, afetch, None
        return made

    @property
    def reference(self) -> str:
        """What stands for it in prompts, `<<name>>`."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """Of the variable, in its session."""
        return self.reference.removeprefix("<<").removesuffix(">>")

    @property
    def value(self) -> str:
        """The text, waited for. Raises SemanticVariableError."""
        if self._value is None:
            self._value = self._fetch()
        return self._value

    def __await__(self) -> Generator[Any, None, str]:
        return self._awaited().__await__()

    async def _awaited(self) -> str:
        if self._value is None:
            self._value = await self._afetch()
        return self._value

    def __str__(self) -> str:
        return self.value

    def __repr__(self) -> str:
        return f"SemanticVariable({self.name!r})"

    def __format__(self, spec: str) -> str:
        return format(self.value, spec) if spec else self.reference

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> Any:
        return str, (self.value,)  # another process has its text


def _reading(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def read(self: SemanticVariable, *arguments: Any, **named: Any) -> Any:
        return method(self.value, *arguments, **named)

    read.__name__, read.__doc__ = name, method.__doc__
    return read


_LOOKS = ["len", "getitem", "iter", "contains", "eq", "ne", "lt", "le", "gt", "ge", "hash", "mul", "rmul", "mod"]
for _name in (*(f"__{name}__" for name in _LOOKS), *(name for name in vars(str) if not name.startswith("_"))):
    if _name != "maketrans":
        setattr(SemanticVariable, _name, _reading(_name))
