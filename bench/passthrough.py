"""Minimal proxy on aiohttp: it forwards each request unchanged, and its answer piece by piece.

`python -m bench.passthrough URL` prints its address and serves until its input closes. The cost of a gateway beyond
this is its own.
"""

import asyncio
import sys

import aiohttp
import uvloop
from aiohttp import web


async def _serve(url: str) -> None:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def pass_on(request: web.Request) -> web.StreamResponse:
            headers = {"Content-Type": "application/json"}
            async with http.post(url + request.path, data=await request.read(), headers=headers) as answer:
                kind = {"Content-Type": answer.headers["Content-Type"]}
                if answer.content_type == "application/json":
                    return web.Response(status=answer.status, body=await answer.read(), headers=kind)
                response = web.StreamResponse(status=answer.status, headers=kind)
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
                await response.write_eof()
                return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", pass_on)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        host, port = runner.addresses[0][:2]
        print(f"http://{host}:{port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await runner.cleanup()


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1]))  # the event loop of `myna serve`
