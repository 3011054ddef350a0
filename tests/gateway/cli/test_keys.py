"""gateway/cli/keys.py: the command against a gateway."""

import asyncio
import json

import pytest

from gateway.cli.keys import key_as_text, keys
from tests.fakes.keyed_gateway import ADMIN_KEY, KeyedGateway, keyed_gateway


async def run(
    gateway: KeyedGateway, capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0, key: str = ADMIN_KEY
) -> str:
    """Run the command, and return what it prints: to stderr if it fails."""
    url = str(gateway.client.make_url("/"))
    assert await asyncio.to_thread(keys, [*arguments, "--url", url, "--admin-key", key]) == status
    printed = capsys.readouterr()
    assert (printed.err == "") == (status == 0)
    return printed.out if status == 0 else printed.err


async def test_the_life_of_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    async with keyed_gateway() as gateway:
        limits = ["--rpm", "60", "--tpm", "1000", "--budget-cost", "2.5", "--budget-period", "month", "--parallel", "4"]
        options = ["--name", "team", "--model", "fake", "--model", "b*", "--weight", "2", "--tag", "x", *limits]
        text = await run(gateway, capsys, "create", *options)
        secret = text.splitlines()[-1].split()[1]
        id = text.split()[1]
        assert secret.startswith("sk-myna-")
        assert id.startswith("key_")
        assert (await gateway.chat(secret))[0] == 200
        shown = json.loads(await run(gateway, capsys, "show", id, "--json"))
        assert (shown["models"], shown["weight"], shown["budget_cost"]) == (["fake", "b*"], 2, 2.5)
        assert (shown["rpm"], shown["tpm"], shown["parallel"], shown["tags"]) == (60, 1000, 4, ["x"])
        assert secret not in await run(gateway, capsys, "show", id)
        listed = await run(gateway, capsys, "list")
        assert id in listed
        assert "0 of 2.5" in listed
        assert "team" in listed
        assert secret not in listed
        await run(gateway, capsys, "update", id, "--rpm", "none", "--model", "none", "--expires-at", "2100-01-31")
        changed = json.loads(await run(gateway, capsys, "show", id, "--json"))
        assert (changed["rpm"], changed["models"], changed["expires_at"]) == (None, None, 4_105_036_800)
        assert changed["tpm"] == 1000
        assert "disabled" in await run(gateway, capsys, "disable", id)
        assert (await gateway.chat(secret))[0] == 401
        assert "enabled" in await run(gateway, capsys, "enable", id)
        rotated = (await run(gateway, capsys, "rotate", id, "--grace", "60")).splitlines()[-1].split()[1]
        for key in (secret, rotated):
            assert (await gateway.chat(key))[0] == 200
        assert await run(gateway, capsys, "delete", id) == f"{id} is deleted\n"
        assert (await gateway.chat(rotated))[0] == 401


async def test_all_pages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    async with keyed_gateway() as gateway:
        assert json.loads(await run(gateway, capsys, "list", "--json"))["data"] == []
        ids = {(await gateway.make_key())[0] for _ in range(205)}
        listed = json.loads(await run(gateway, capsys, "list", "--json"))
        assert {key["id"] for key in listed["data"]} == ids


async def test_errors_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async with keyed_gateway() as gateway:
        for key, problem in ("wrong", "Incorrect admin key"), ("", "Missing admin key"):
            printed = await run(gateway, capsys, "list", status=1, key=key)
            assert problem in printed
            assert "set --admin-key or MYNA_ADMIN_KEY" in printed
        assert "there is no key 'key_0'" in await run(gateway, capsys, "show", "key_0", status=1)
        assert "--rpm: 'many'" in await run(gateway, capsys, "create", "--rpm", "many", status=1)
        assert "2030-01-31" in await run(gateway, capsys, "create", "--expires-at", "soon", status=1)
        for amount in ("much", "1e400", "nan"):
            assert "is not a number" in await run(gateway, capsys, "create", "--budget-cost", amount, status=1)
        printed = await run(gateway, capsys, "create", "--budget-period", "fortnight", status=1)
        assert "budget_period: must be month, or a number of hours or days" in printed
        assert "nothing to change" in await run(gateway, capsys, "update", "key_0", status=1)
        assert "weight" in await run(gateway, capsys, "create", "--weight", "-1", status=1)


async def test_a_server_without_an_admin_key_has_no_keys(capsys: pytest.CaptureFixture[str]) -> None:
    async with keyed_gateway(admin_key=[]) as gateway:
        printed = await run(gateway, capsys, "list", status=1)
        assert "only on a server with an admin key (myna serve --admin-key)" in printed


async def test_options_may_be_before_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    async with keyed_gateway() as gateway:
        url = str(gateway.client.make_url("/"))
        assert await asyncio.to_thread(keys, ["--url", url, "--admin-key", ADMIN_KEY, "--json", "list"]) == 0
        assert json.loads(capsys.readouterr().out)["data"] == []


def test_a_url_needs_a_scheme(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys(["list", "--url", "localhost:8000"]) == 1
    assert "'localhost:8000' is not a URL such as http://" in capsys.readouterr().err


def test_a_table_says_that_an_expired_key_is_not_accepted() -> None:
    fields = dict.fromkeys(("parallel", "rpm", "tpm", "budget_cost", "budget_tokens", "budget_period", "models"))
    usage = {"tokens": None, "cost": None}
    key = {"id": "key_1", "name": "", "created_at": 0, "expires_at": 1, "disabled": False, "weight": 1.0, "tags": []}
    text = key_as_text({**fields, **key, "usage": usage})
    assert "expired" in text
    assert "1970-01-01 00:00:01 UTC" in text
