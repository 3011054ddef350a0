"""The applications. Each is an ordinary program: it sends calls, inserts answers into prompts, and reads a text."""

import asyncio
from collections.abc import Awaitable, Callable

from examples.workloads.client import App
from examples.workloads.texts import Texts

Workload = Callable[[App, Texts], Awaitable[None]]
OUT = 32
"""Length of most answers, in tokens."""


async def chain(app: App, texts: Texts) -> None:
    """Summarise a long text chunk by chunk; each summary is part of the next prompt."""
    summary = "Nothing has been read yet."
    for index in range(8):
        prompt = f"Text:\n{texts.chunk(index, 512)}\n\nSummary so far: {summary}\n\nSummarise all of it."
        summary = await app.ask(prompt, OUT, needs_text=index == 7, name=f"chunk {index}")


async def map_reduce(app: App, texts: Texts) -> None:
    """Summarise twelve chunks concurrently, and then their summaries."""
    prompts = [f"Summarise this text in one sentence:\n{texts.chunk(index, 512)}" for index in range(12)]
    summaries = await asyncio.gather(
        *(app.ask(prompt, OUT, name=f"map {index}") for index, prompt in enumerate(prompts))
    )
    await app.ask("Summarise these sentences:\n" + "\n".join(summaries), OUT, needs_text=True, name="reduce")


async def copilot(app: App, texts: Texts) -> None:
    """Answer 24 users' questions with one long system prompt, eight at a time."""
    await _assistant(app, texts, 0, questions=24, at_a_time=8)


async def gpts(app: App, texts: Texts) -> None:
    """Run four assistants with different long system prompts concurrently, with six questions each."""
    await asyncio.gather(*(_assistant(app, texts, number, questions=6, at_a_time=6) for number in range(4)))


_THINGS = ("rivers", "printers", "bread", "light", "cities", "bees", "bridges", "stars")


async def _assistant(app: App, texts: Texts, number: int, *, questions: int, at_a_time: int) -> None:
    system = {"role": "system", "content": f"You know this by heart:\n{texts.chunk(number, 1024)}"}
    gate = asyncio.Semaphore(at_a_time)

    async def user(index: int) -> None:
        async with gate:
            question = f"Question {index}: what does it say about {_THINGS[index % len(_THINGS)]}?"
            messages = [system, {"role": "user", "content": question}]
            await app.another_user().ask(messages, OUT, needs_text=True, name=f"gpt {number} user {index}")

    await asyncio.gather(*map(user, range(questions)))


async def agents(app: App, texts: Texts) -> None:
    """Run an architect and six coders, and then twice six reviewers and six revisers, whose prompts have all code."""
    task = texts.chunk(0, 256)
    design = await app.ask(f"Task:\n{task}\n\nYou are the architect. List the files.", 96, name="architect")
    files = await asyncio.gather(
        *(
            app.ask(
                f"Task:\n{task}\n\nDesign:\n{design}\n\nYou write file {index}. Write it.", 96, name=f"code {index}"
            )
            for index in range(6)
        )
    )
    for turn in range(2):
        code = "\n\n".join(f"File {index}:\n{file}" for index, file in enumerate(files))
        shared = f"Task:\n{task}\n\nDesign:\n{design}\n\nCode:\n{code}\n\n"
        reviews = await asyncio.gather(
            *(app.ask(f"{shared}Review file {index}.", OUT, name=f"review {turn}.{index}") for index in range(6))
        )
        files = await asyncio.gather(
            *(
                app.ask(
                    f"{shared}Review of file {index}: {reviews[index]}\nRewrite file {index}.",
                    96,
                    name=f"revise {turn}.{index}",
                )
                for index in range(6)
            )
        )
    await app.texts(*files)


async def thoughts(app: App, texts: Texts) -> None:
    """Run a tree of thought: three thoughts, three continuations of each, a verdict on each, and a last answer."""
    problem = f"Problem:\n{texts.chunk(0, 256)}\n\n"

    async def think(path: str, thought: str) -> str:
        return await app.ask(f"{problem}{thought}\nNext thought, the {path}:", 48, name=f"think {path}")

    async def branch(first: int) -> list[str]:
        begun = await think(f"{first}", "")
        leaves = await asyncio.gather(*(think(f"{first}.{second}", begun) for second in range(3)))
        judged = await asyncio.gather(
            *(
                app.ask(f"{problem}{begun}\n{leaf}\nHow good is this, and why?", OUT, name=f"judge {first}.{index}")
                for index, leaf in enumerate(leaves)
            )
        )
        return [f"{leaf}\nJudged: {verdict}" for leaf, verdict in zip(leaves, judged, strict=True)]

    found = [leaf for leaves in await asyncio.gather(*map(branch, range(3))) for leaf in leaves]
    await app.ask(f"{problem}" + "\n\n".join(found) + "\n\nThe answer is", OUT, needs_text=True, name="answer")


_TOOL_SECONDS = 0.3


async def react(app: App, texts: Texts) -> None:
    """Run an agent of six steps: generate an action, wait for the tool, and add the tool's result to the prompt."""
    messages = [
        {"role": "system", "content": f"You have tools. Their manual:\n{texts.chunk(0, 768)}"},
        {"role": "user", "content": "Find out what the manual leaves open."},
    ]
    for step in range(6):
        # the tool needs the text of the action, in every mode
        action = await app.ask(messages, OUT, needs_text=True, name=f"step {step}")
        await asyncio.sleep(_TOOL_SECONDS)
        messages += [
            {"role": "assistant", "content": action},
            {"role": "user", "content": f"The tool says: {texts.chunk(step + 1, 96)}"},
        ]
    await app.ask([*messages, {"role": "user", "content": "Conclude."}], OUT, needs_text=True, name="conclude")


WORKLOADS: dict[str, Workload] = {
    "chain": chain,
    "map_reduce": map_reduce,
    "copilot": copilot,
    "gpts": gpts,
    "agents": agents,
    "thoughts": thoughts,
    "react": react,
}
