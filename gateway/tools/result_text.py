"""Turn the result of a tool into a text. The text is data: later code never searches it for references."""

from collections.abc import Iterator, Mapping
from typing import Any

from gateway.runtime.json_codec import encode_json

MAX_PARTS = 2_000
"""Maximum number of parts of a result."""
_MAX_NAME = 200
"""Length from which names and addresses of resources are shortened, in characters."""


class BadResult(ValueError):
    """The result violates the protocol. The message says why."""


def result_text(result: Mapping[str, Any]) -> str:
    """Return the text of a `tools/call` result as it was received.

    Text parts are joined by newlines. Images, sounds and resources become a line that describes them. Without any
    part, it is the structured content as compact JSON. Raises BadResult.
    """
    content = result.get("content", [])
    if not isinstance(content, list) or len(content) > MAX_PARTS:
        raise BadResult(f"content is not a list of at most {MAX_PARTS} parts")
    lines = list(_lines(content))
    structured = result.get("structuredContent")
    has_text = any(isinstance(part, dict) and part.get("type") == "text" for part in content)
    if not has_text and structured is not None:
        lines.append(encode_json(structured).decode("utf-8", "replace"))
    return as_unicode("\n".join(lines))


def as_unicode(text: str) -> str:
    """Return the text with U+FFFD for lone surrogates."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _lines(content: list[Any]) -> Iterator[str]:
    for part in content:
        if not isinstance(part, dict):
            raise BadResult("a part of content is not an object")
        match part.get("type"):
            case "text":
                if not isinstance(part.get("text"), str):
                    raise BadResult("a text part has no text")
                yield part["text"]
            case "image" | "audio" as kind:
                yield f"[{kind}: {_short(part.get('mimeType'))}, {_decoded_size(part.get('data'))} bytes]"
            case "resource_link":
                yield f"[resource: {_short(part.get('name'))}, {_short(part.get('uri'))}]"
            case "resource":
                resource = part.get("resource")
                if not isinstance(resource, dict):
                    raise BadResult("a resource part has no resource")
                yield f"[resource: {_short(resource.get('uri'))}, {_short(resource.get('mimeType'))}]"
            case _:
                yield "[a part of an unknown type]"


def _short(value: Any) -> str:
    if not isinstance(value, str) or not value:
        return "unnamed"
    text = "".join(character if character.isprintable() else " " for character in value[:_MAX_NAME])
    return text if len(value) <= _MAX_NAME else f"{text}…"


def _decoded_size(data: Any) -> int:
    """Return the number of bytes that a text in base64 stands for."""
    return len(data.rstrip("=")) * 3 // 4 if isinstance(data, str) else 0
