"""A Semantic Variable as a Python string: a reference when it is pasted into a prompt, its text when it is read."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Self


class SemanticVariableError(RuntimeError):
    """The variable has no text: its call failed or was cancelled. `code`: error code of the server."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class SemanticVariable(str):
    """A text that the server generates, or has generated.

    Operations that insert it into a larger text (`format`, an f-string, `+`, `join`, a prompt template) insert its
    reference and fetch nothing: the server replaces the reference by the text. Operations that read the text (`str()`,
    `print`, `len`, `==`, `in`, indexing, all methods of strings) wait for it, once. `await variable` waits for it
    without blocking the event loop.
    """

    _fetch: Callable[[], str]
    _afetch: Callable[[], Awaitable[str]]
    _value: str | None

    def __new__(cls, reference: str, fetch: Callable[[], str], afetch: Callable[[], Awaitable[str]]) -> Self:
        """Create a variable. `fetch` and `afetch` wait for its text; they raise SemanticVariableError."""
        variable = super().__new__(cls, reference)
        variable._fetch, variable._afetch, variable._value = fetch, afetch, None
        return variable

    @property
    def reference(self) -> str:
        """Reference to the variable in prompts, `<<name>>`."""
        return str.__str__(self)

    @property
    def name(self) -> str:
        """Name of the variable in its session."""
        return self.reference.removeprefix("<<").removesuffix(">>")

    @property
    def value(self) -> str:
        """Text of the variable. Waits for it. Raises SemanticVariableError if the call failed."""
        if self._value is None:
            self._value = self._fetch()
        return self._value

    def __await__(self) -> Generator[Any, None, str]:
        return self._read_async().__await__()

    async def _read_async(self) -> str:
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
        return str, (self.value,)  # another process receives the text


def _reading(name: str) -> Callable[..., Any]:
    method = getattr(str, name)

    def read(self: SemanticVariable, *arguments: Any, **named: Any) -> Any:
        return method(self.value, *arguments, **named)

    read.__name__, read.__doc__ = name, method.__doc__
    return read


_OPERATORS = ["len", "getitem", "iter", "contains", "eq", "ne", "lt", "le", "gt", "ge", "hash", "mul", "rmul", "mod"]
for _name in (*(f"__{name}__" for name in _OPERATORS), *(name for name in vars(str) if not name.startswith("_"))):
    if _name != "maketrans":
        setattr(SemanticVariable, _name, _reading(_name))
