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
from gateway.programs.program import CallRecord, Edge, LostPrefix, Program, ProgramCall
from gateway.programs.program_index import ProgramIndex, ProgramLimits
from gateway.programs.prompt_difference import Difference, Spoiler
from gateway.programs.prompt_memory import Comparison, HeldPrompt, compare_prompts, held_prompt
from gateway.programs.text_links import TextLink, TextLinks

__all__ = [
    "NO_IDS",
    "AnswerFacts",
    "CallRecord",
    "ClientIds",
    "Comparison",
    "Difference",
    "Edge",
    "HeldPrompt",
    "LostPrefix",
    "Program",
    "ProgramCall",
    "ProgramFacts",
    "ProgramIndex",
    "ProgramLimits",
    "PromptMessage",
    "Spoiler",
    "TextLink",
    "TextLinks",
    "client_ids",
    "compare_prompts",
    "held_prompt",
    "prompt_message",
]
