"""The interface of prompt builders."""

from abc import ABC, abstractmethod
from collections.abc import Container, Sequence
from typing import Self

from gateway.graph.references import NO_NAME, Reference, parse
from gateway.graph.segments import Input, Segment, Slot
from gateway.prompts.prompt import ChatInput, Prompt
from gateway.prompts.tool_calls.formats import ToolCallFormat


class PromptBuilder(ABC):
    """Builds one model's prompts. Immutable; safe to use from several threads."""

    tool_call_format: ToolCallFormat
    """Format in which the model writes tool calls."""
    takes_late_system: bool = False
    """Whether a system message may follow other messages. It is false if only an upstream server knows the template."""

    @abstractmethod
    def unbounded(self) -> Self:
        """Return a builder of the same prompts without a limit of length."""

    @abstractmethod
    def chat(self, chat: ChatInput, answer: Slot) -> Prompt:
        """Return the prompt of a conversation, which ends with the place of the assistant's answer.

        Raises RequestError if the model does not support chat or the messages, and SlotWithoutPlace.
        """

    def completion(
        self,
        text: str,
        answer: Slot,
        *,
        references: Container[str] = NO_NAME,
        add_bos: bool = True,
        where: str = "prompt",
    ) -> Prompt:
        """Return the prompt of a completion: a text that the answer continues. `where`: path of the text.
        `references`: names for which `<<name>>` is a reference.

        The text is the client's own template: control tokens in it are control tokens, but those in values are not.
        `add_bos`: whether to put the model's BOS token in front.
        """
        parts = parse(text, references) if references else [text]
        pieces = [Input(piece, where) if isinstance(piece, Reference) else piece for piece in parts]
        return Prompt(self.template([*pieces, answer], add_bos=add_bos, where=where), field=where)

    @abstractmethod
    def template(
        self, pieces: Sequence[str | Input | Slot], *, add_bos: bool = True, where: str = "prompt"
    ) -> list[Segment]:
        """Return the segments of a client's own template, which is given in pieces; see `completion`. Raises
        RequestError if it cannot fit into the window. `where`: path of the template in the request."""
