"""Check grammars in Lark before llguidance compiles them, and refuse grammars that its limits do not bound."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

MAX_DEFINITIONS = 1_000
"""Maximum number of rules and terminals. llguidance follows a chain of them recursively, on the thread's stack."""

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|\#[^\n]*)
    |(?P<string>"(?:[^"\\\n]|\\.)*"i?)
    |(?P<regex>/(?![*/])(?:[^/\\\n]|\\.)+/[imslux]*)
    |(?P<directive>%[a-z_]+)
    |(?P<name>[?!]?[A-Za-z_][A-Za-z0-9_]*(?:\.[0-9]+)?)
    |(?P<special><[^<>\s]+>)
    |(?P<number>-?[0-9]+)
    |(?P<mark>->|\.\.|[:|()\[\]{}?*+~,=&@.])
    """,
    re.VERBOSE,
)
_DECODER = json.JSONDecoder()


class BadGrammar(ValueError):
    """The grammar cannot be enforced."""


@dataclass
class _Rule:
    """One rule, terminal or group. Each alternative lists the names and groups that are required in it."""

    alternatives: list[list["str | _Rule"]] = field(default_factory=list)

    def symbols(self) -> set[str]:
        """Return all names in the rule and in its groups."""
        found: set[str] = set()
        for alternative in self.alternatives:
            for symbol in alternative:
                found |= symbol.symbols() if isinstance(symbol, _Rule) else {symbol}
        return found


def check_grammar(grammar: str, schema: Callable[[Any], dict[str, Any]]) -> str:
    """Return the grammar, with each of its JSON schemas replaced by what `schema` returns for it.

    Raises BadGrammar for intersections and complements, because the size of their automata has no useful bound; for
    too many definitions; and for a rule that no finite text matches.
    """
    tokens: list[tuple[str, str]] = []
    rewritten, position = "", 0
    while position < len(grammar):
        found = _TOKEN.match(grammar, position)
        if found is None:
            raise BadGrammar(f"unexpected {grammar[position : position + 20]!r}")
        position = found.end()
        kind, text = found.lastgroup or "", found[0]
        rewritten += text
        if kind == "directive" and text == "%json":
            value, position = _json(grammar, position)
            rewritten += f" {json.dumps(schema(value))}"
            tokens.append(("json", ""))
        elif kind == "directive" and text == "%llguidance":
            value, position = _json(grammar, position)
            if value:
                raise BadGrammar("%llguidance with options is not supported")
            rewritten += " {}"
        elif kind == "directive" and text not in ("%ignore", "%import", "%lark", "%declare"):
            raise BadGrammar(f"{text} is not supported")
        elif kind == "mark" and text in "&~":
            operator = "intersection (&)" if text == "&" else "complement or repetition (~)"
            raise BadGrammar(f"{operator} is not supported: its size has no bound; write {{m,n}} for a repetition")
        elif kind != "space":
            tokens.append((kind, text))
        elif "\n" in text:
            tokens.append(("line", ""))
    _check_rules(tokens)
    return rewritten


def _json(grammar: str, position: int) -> tuple[Any, int]:
    start = position + len(grammar[position:]) - len(grammar[position:].lstrip())
    try:
        return _DECODER.raw_decode(grammar, start)
    except (ValueError, RecursionError) as error:
        raise BadGrammar(f"JSON expected: {str(error).splitlines()[0]}") from None


def _check_rules(tokens: list[tuple[str, str]]) -> None:
    bodies = _bodies(tokens)
    if len(bodies) > MAX_DEFINITIONS:
        raise BadGrammar(f"it has more than {MAX_DEFINITIONS} rules and terminals")
    if ("directive", "%lark") in tokens:
        return  # a nested grammar has rules of its own, which are not parsed here
    try:
        rules = {name: _RuleParser(body).rule() for name, body in bodies}
    except _UnsupportedSyntax:
        return  # llguidance may support this syntax, although the parser here does not
    users: dict[str, list[str]] = {}
    for name, rule in rules.items():
        for symbol in rule.symbols():
            users.setdefault(symbol, []).append(name)
    finite: set[str] = set()
    queue = list(rules)
    while queue:
        name = queue.pop()
        if name not in finite and _is_finite(rules[name], rules, finite):
            finite.add(name)
            queue += users.get(name, ())
    endless = next((name for name in rules if name not in finite), None)
    if endless is not None:
        raise BadGrammar(f"unsatisfiable: no finite text matches the rule {endless!r}")


def _is_finite(rule: _Rule, rules: dict[str, _Rule], finite: set[str]) -> bool:
    """Return whether a finite text matches the rule. `finite`: rules for which that is known."""
    return any(
        all(
            _is_finite(symbol, rules, finite) if isinstance(symbol, _Rule) else symbol in finite or symbol not in rules
            for symbol in alternative
        )
        for alternative in rule.alternatives
    )


def _bodies(tokens: list[tuple[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the definitions as pairs of a name and the tokens after the colon."""
    definitions: list[tuple[str, list[tuple[str, str]]]] = []
    index, at_line_start = 0, True
    while index < len(tokens):
        kind, text = tokens[index]
        colon = _colon(tokens, index) if at_line_start and kind == "name" else None
        at_line_start = kind == "line"
        if colon is not None:
            definitions.append((text.lstrip("?!").split(".")[0], []))
            index = colon
        elif kind == "directive" and text != "%lark":
            while index < len(tokens) and tokens[index][0] != "line":
                index += 1
            continue
        elif kind != "line" and definitions:
            definitions[-1][1].append((kind, text))
        index += 1
    return definitions


def _colon(tokens: list[tuple[str, str]], name_index: int) -> int | None:
    """Return the index of the colon after a definition's name, or None. Attributes may be in between."""
    depth = 0
    for index in range(name_index + 1, len(tokens)):
        kind, text = tokens[index]
        if text in ("[", "{"):
            depth += 1
        elif text in ("]", "}"):
            depth -= 1
        elif not depth:
            return index if text == ":" else None
        if kind == "line":
            return None
    return None


class _UnsupportedSyntax(Exception):
    """This parser does not support the syntax of the rule."""


class _RuleParser:
    """Parser of the alternatives of one rule."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._position = 0

    def rule(self) -> _Rule:
        """Return the parsed rule. Raises _Unknown."""
        rule = self._alternatives(0)
        if self._position < len(self._tokens):
            raise _UnsupportedSyntax
        return rule

    def _next(self) -> str:
        return self._tokens[self._position][1] if self._position < len(self._tokens) else ""

    def _alternatives(self, depth: int) -> _Rule:
        if depth > 100:
            raise _UnsupportedSyntax
        rule = _Rule([[]])
        while self._position < len(self._tokens):
            kind, text = self._tokens[self._position]
            if kind == "mark" and text in ")]":
                break
            self._position += 1
            if kind == "mark" and text == "|":
                rule.alternatives.append([])
            elif kind == "mark" and text in "([":
                group = self._alternatives(depth + 1)
                if self._next() != ("]" if text == "[" else ")"):
                    raise _UnsupportedSyntax
                self._position += 1
                self._add(rule, group, optional=text == "[")
            elif kind == "name":
                self._add(rule, text)
            elif kind in ("string", "regex", "special", "json"):
                if kind == "string" and self._next() == "..":
                    self._position += 2
                self._add(rule, None)
            elif text == "->":
                self._position += 1  # a name for the alternative
            else:
                raise _UnsupportedSyntax
        return rule

    def _add(self, rule: _Rule, symbol: "str | _Rule | None", *, optional: bool = False) -> None:
        """Consume the quantifier of a symbol. Add the symbol to the last alternative, unless it is optional."""
        if self._position < len(self._tokens) and self._tokens[self._position] == ("mark", "{"):
            minimum = self._tokens[self._position + 1][1] if self._position + 1 < len(self._tokens) else ""
            while self._next() not in ("}", ""):
                self._position += 1
            self._position += 1
            optional = optional or not minimum.isdecimal() or int(minimum) == 0
        elif self._next() in ("?", "*", "+"):
            optional = optional or self._next() != "+"
            self._position += 1
        if not optional and symbol is not None:
            rule.alternatives[-1].append(symbol)
