"""Programs: the applications behind requests of clients that declare nothing. Pure.

`program_index` finds the program of a request, and `text_links` the answers that its prompt contains, by the hashes of
`text_windows`. `tool_gaps` watches the gaps between its calls, from which `tool_times` learns how long tools run.
`service` orders programs by arrival, progress and engine time, for the server's queue and the simulator.
`prompt_difference` names what differs between two turns. `shared_table` gives each tenant its share of the tables.
"""

from gateway.programs.facts import (
    NO_IDS,
    AnswerFacts,
    ClientIds,
    ProgramFacts,
    PromptMessage,
    client_ids,
    prompt_message,
    text_message,
    token_message,
)
from gateway.programs.program import CallRecord, Edge, LostPrefix, Program, ProgramCall
from gateway.programs.program_index import ProgramIndex, ProgramLimits
from gateway.programs.prompt_difference import Difference, Spoiler
from gateway.programs.prompt_memory import Comparison, HeldPrompt, compare_prompts, held_prompt
from gateway.programs.text_links import TextLink, TextLinks
from gateway.programs.tool_gaps import EndedGap, ToolGaps

__all__ = [
    "NO_IDS",
    "AnswerFacts",
    "CallRecord",
    "ClientIds",
    "Comparison",
    "Difference",
    "Edge",
    "EndedGap",
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
    "ToolGaps",
    "client_ids",
    "compare_prompts",
    "held_prompt",
    "prompt_message",
    "text_message",
    "token_message",
]
