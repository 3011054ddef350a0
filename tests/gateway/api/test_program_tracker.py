"""gateway/api/program_tracker.py: messages of requests become facts about programs. test_programs.py tests the rest."""

from compat.openai import Message
from gateway.api.program_tracker import chat_messages, text_messages

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


def message(**fields: object) -> Message:
    return Message.model_validate(fields)


def test_messages_keep_their_texts_and_differ_in_what_the_model_reads() -> None:
    parts = [{"type": "text", "text": "a"}, IMAGE, {"type": "text", "text": "b"}]
    (mixed,) = chat_messages([message(role="user", content=parts)])
    assert list(mixed.texts) == ["a", "b"]
    (other,) = chat_messages([message(role="user", content=[parts[0], parts[2]])])
    assert mixed.key != other.key
    (again,) = chat_messages([message(role="user", content=parts)])
    assert mixed.key == again.key


def test_ids_of_tool_calls_and_reasoning_do_not_count() -> None:
    def assistant(id: str, arguments: str, **fields: object) -> Message:
        call = {"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}
        return message(role="assistant", content=None, tool_calls=[call], **fields)

    one, two, three = chat_messages(
        [
            assistant("a", '{"x": 1}'),
            assistant("b", '{"x":1}', reasoning_content="I think."),
            assistant("a", '{"x": 2}'),
        ]
    )
    assert one.key == two.key != three.key
    assert one.answer is not None
    assert one.answer == two.answer


def test_refusals_and_prompts_of_completions_are_texts() -> None:
    (refusal,) = chat_messages([message(role="assistant", refusal="no")])
    assert list(refusal.texts) == ["no"]
    assert text_messages("a")[0].texts == ["a"]
    assert text_messages([1, 2])[0].key == text_messages([1, 2])[0].key != text_messages([2, 1])[0].key
