"""The applications. Each is an ordinary program: it asks, pastes answers into prompts, and in the end wants a text."""

import asyncio
from collections.abc import Awaitable, Callable

from examples.workloads.client import App
from examples.workloads.texts import Texts

Workload = Callable[[App, Texts], Awaitable[None]]
OUT = 32
"""Tokens of most answers."""


async def chain(app: App, texts: Texts) -> None:
    """A long text summarised chunk by chunk, each summary going into the next prompt."""
    summary = "Nothing has been read yet."
    for at in range(8):
        prompt = f"Text:\n{texts.chunk(at, 512)}\n\nSummary so far: {summary}\n\nSummarise all of it."
        summary = await app.ask(prompt, OUT, wanted=at == 7, name=f"chunk {at}")


async def map_reduce(app: App, texts: Texts) -> None:
    """Twelve chunks summarised side by side, and then their summaries."""
    prompts = [f"Summarise this text in one sentence:\n{texts.chunk(at, 512)}" for at in range(12)]
    summaries = await asyncio.gather(*(app.ask(prompt, OUT, name=f"map {at}") for at, prompt in enumerate(prompts)))
    await app.ask("Summarise these sentences:\n" + "\n".join(summaries), OUT, wanted=True, name="reduce")


async def copilot(app: App, texts: Texts) -> None:
    """One long system prompt, 24 questions of as many users, eight at a time."""
    await _assistant(app, texts, 0, questions=24, at_a_time=8)


async def gpts(app: App, texts: Texts) -> None:
    """Four assistants with long prompts of their own at once, six questions each."""
    await asyncio.gather(*(_assistant(app, texts, number, questions=6, at_a_time=6) for number in range(4)))


_THINGS = ("rivers", "printers", "bread", "light", "cities", "bees", "bridges", "stars")


async def _assistant(app: App, texts: Texts, number: int, *, questions: int, at_a_time: int) -> None:
    system = {"role": "system", "content": f"You know this by heart:\n{texts.chunk(number, 1024)}"}
    gate = asyncio.Semaphore(at_a_time)

    async def user(at: int) -> None:
        async with gate:
            question = f"Question {at}: what does it say about {_THINGS[at % len(_THINGS)]}?"
            messages = [system, {"role": "user", "content": question}]
            await app.another().ask(messages, OUT, wanted=True, name=f"gpt {number} user {at}")

    await asyncio.gather(*map(user, range(questions)))


async def agents(app: App, texts: Texts) -> None:
    """An architect, six coders, and then twice six reviewers and six revisers, each of whom sees all code."""
    task = texts.chunk(0, 256)
    design = await app.ask(f"Task:\n{task}\n\nYou are the architect. List the files.", 96, name="architect")
    files = await asyncio.gather(
        *(
            app.ask(f"Task:\n{task}\n\nDesign:\n{design}\n\nYou write file {at}. Write it.", 96, name=f"code {at}")
            for at in range(6)
        )
    )
    for turn in range(2):
        code = "\n\n".join(f"File {at}:\n{file}" for at, file in enumerate(files))
        shared = f"Task:\n{task}\n\nDesign:\n{design}\n\nCode:\n{code}\n\n"
        reviews = await asyncio.gather(
            *(app.ask(f"{shared}Review file {at}.", OUT, name=f"review {turn}.{at}") for at in range(6))
        )
        files = await asyncio.gather(
            *(
                app.ask(
                    f"{shared}Review of file {at}: {reviews[at]}\nRewrite file {at}.", 96, name=f"revise {turn}.{at}"
                )
                for at in range(6)
            )
        )
    await app.texts(*files)


async def thoughts(app: App, texts: Texts) -> None:
    """A tree of thought: three beginnings, each gone on with in three ways, each judged, and a last answer from all."""
    problem = f"Problem:\n{texts.chunk(0, 256)}\n\n"

    async def think(path: str, thought: str) -> str:
        return await app.ask(f"{problem}{thought}\nNext thought, the {path}:", 48, name=f"think {path}")

    async def branch(first: int) -> list[str]:
        begun = await think(f"{first}", "")
        leaves = await asyncio.gather(*(think(f"{first}.{second}", begun) for second in range(3)))
        judged = await asyncio.gather(
            *(
                app.ask(f"{problem}{begun}\n{leaf}\nHow good is this, and why?", OUT, name=f"judge {first}.{at}")
                for at, leaf in enumerate(leaves)
            )
        )
        return [f"{leaf}\nJudged: {verdict}" for leaf, verdict in zip(leaves, judged, strict=True)]

    found = [leaf for leaves in await asyncio.gather(*map(branch, range(3))) for leaf in leaves]
    await app.ask(f"{problem}" + "\n\n".join(found) + "\n\nThe answer is", OUT, wanted=True, name="answer")


_TOOL_SECONDS = 0.3


async def react(app: App, texts: Texts) -> None:
    """An agent that thinks, calls a tool, which takes its time, and goes on with what the tool said; six times."""
    messages = [
        {"role": "system", "content": f"You have tools. Their manual:\n{texts.chunk(0, 768)}"},
        {"role": "user", "content": "Find out what the manual leaves open."},
    ]
    for step in range(6):
        # what to do has to be known before it is done, whatever the mode
        action = await app.ask(messages, OUT, wanted=True, name=f"step {step}")
        await asyncio.sleep(_TOOL_SECONDS)
        messages += [
            {"role": "assistant", "content": action},
            {"role": "user", "content": f"The tool says: {texts.chunk(step + 1, 96)}"},
        ]
    await app.ask([*messages, {"role": "user", "content": "Conclude."}], OUT, wanted=True, name="conclude")


WORKLOADS: dict[str, Workload] = {
    "chain": chain,
    "map_reduce": map_reduce,
    "copilot": copilot,
    "gpts": gpts,
    "agents": agents,
    "thoughts": thoughts,
    "react": react,
}
