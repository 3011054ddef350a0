"""Programs: the applications behind requests of clients that declare nothing."""

from gateway.programs.facts import (
    NO_IDS,
    AnswerFacts,
    ClientIds,
    ProgramFacts,
    PromptMessage,
    client_ids,
    prompt_message,
)
from gateway.programs.program import CallRecord, Edge, Program, ProgramCall
from gateway.programs.program_index import ProgramIndex, ProgramLimits
from gateway.programs.text_links import TextLink, TextLinks

__all__ = [
    "NO_IDS",
    "AnswerFacts",
    "CallRecord",
    "ClientIds",
    "Edge",
    "Program",
    "ProgramCall",
    "ProgramFacts",
    "ProgramIndex",
    "ProgramLimits",
    "PromptMessage",
    "TextLink",
    "TextLinks",
    "client_ids",
    "prompt_message",
]
