"""gateway/api/live_page.py: the files of the page, with headers that keep everything else out."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from yarl import URL

from gateway.api.live_page import static_files
from tests.fakes.in_process_gateway import ScriptedGateway, gateway_before
from tests.fakes.scripted_server import ScriptedServer

FOLDER = Path(__file__).parents[3] / "gateway" / "web"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
SERVED = sorted(path.name for path in FOLDER.iterdir() if path.suffix in TYPES)


@pytest.mark.parametrize("name", ["", *SERVED])
async def test_every_file_is_served_without_a_key_and_with_strict_headers(name: str) -> None:
    async with ScriptedServer() as server, gateway_before(server, api_key=["secret"]) as (client, _):
        path = f"/ui/{name}" if name else "/ui"
        async with client.get(path) as answer:
            assert answer.status == 200
            assert {header: answer.headers.get(header) for header in HEADERS} == HEADERS
            file = FOLDER / (name or "index.html")
            assert answer.headers["Content-Type"] == f"{TYPES[file.suffix]}; charset=utf-8"
            assert await answer.read() == file.read_bytes()
            tag = answer.headers["ETag"]
        async with client.get(path, headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
            assert answer.headers["Content-Security-Policy"] == POLICY
        async with client.get(path, headers={"If-None-Match": '"other"'}) as answer:
            assert answer.status == 200
        async with client.head(path) as answer:
            assert (answer.status, await answer.read()) == (200, b"")
            assert answer.headers["ETag"] == tag
        async with client.get("/v1/status") as answer:
            assert answer.status == 401, "the page's figures need a key"


async def test_an_address_with_a_slash_leads_to_the_page(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].get("/ui/", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (308, "../ui")
    async with scripted_gateway[0].get("/ui/") as answer:
        assert (answer.status, answer.url.path) == (200, "/ui")


@pytest.mark.parametrize(
    "path",
    [
        "/ui/nothing.js",
        "/ui/package.json",
        "/ui/..%2fapp.py",
        "/ui/..%2f..%2fpyproject.toml",
        "/ui/%2e%2e/app.py",
        "/ui/%2fetc%2fpasswd",
        "/ui/..%5capp.py",
        "/ui/main.js%00",
        "/ui/main.js/",
        "/ui/web/main.js",
    ],
)
async def test_other_files_are_not_served(scripted_gateway: ScriptedGateway, path: str) -> None:
    client = scripted_gateway[0]
    async with client.get(URL(path, encoded=True)) as answer:
        assert (answer.status, (await answer.json())["error"]["code"]) == (404, "unknown_route")


async def test_files_can_only_be_read(scripted_gateway: ScriptedGateway) -> None:
    async with scripted_gateway[0].post("/ui/main.js") as answer:
        assert answer.status == 405


def test_the_files_contain_nothing_inline_and_nothing_from_elsewhere() -> None:
    for name, file in static_files().items():
        text = file.content.decode()
        assert "innerHTML" not in text, name
        assert "https://" not in text, name
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", ""), f"{name}: only the namespace of SVG"
    page = static_files()["index.html"].content.decode()
    assert "style=" not in page
    assert page.count("<script") == page.count('<script type="module" src=') == 1


@pytest.mark.slow
def test_the_files_are_part_of_the_package(tmp_path: Path) -> None:
    source, root = tmp_path / "source", FOLDER.parents[1]
    for folder in ("gateway", "engine", "compat"):  # a copy: a build folder beside the sources may have older files
        shutil.copytree(root / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / file, source)
    options = ("--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path))
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert {f"gateway/web/{name}" for name in SERVED} <= packed
