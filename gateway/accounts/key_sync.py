"""Exchange keys and limits with the other gateways, about once a second."""

import asyncio
import logging
from contextlib import suppress

from gateway.accounts.accounts import Accounts
from gateway.accounts.errors import KeyStoreError
from gateway.accounts.keys.key_admin import KeyAdmin
from gateway.accounts.limits.shared_usage import SharedUsage
from gateway.journal import LeaseLost

log = logging.getLogger("myna.keys")

SYNC_SECONDS = 1.0
"""Interval in which a gateway learns about changes of keys, reports what was used, and returns allotments, in
seconds."""
_BATCH = 200
"""Number of keys whose amounts are exchanged together."""


class KeySync:
    """Owner of the task that keeps this gateway's keys and limits equal to those of the others."""

    def __init__(self, accounts: Accounts, admin: KeyAdmin, usage: SharedUsage) -> None:
        self._accounts = accounts
        self._admin = admin
        self._usage = usage
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. Call it once this gateway has joined the cluster."""
        self._task = asyncio.create_task(self._run(), name="keys")

    async def close(self) -> None:
        """End the task, report what was used, and return all allotments."""
        if self._task is None:
            return
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        for limits in self._accounts.keys_to_exchange():
            for meter in limits.shared_meters:
                meter.is_active = False
        with suppress(KeyStoreError, LeaseLost):  # a gateway that has left holds nothing: the others delete it
            await self.exchange()

    async def _run(self) -> None:
        is_failing = False
        while True:
            try:
                await self._admin.refresh()
                await self._usage.free_allotments()
                await self.exchange()
                if is_failing:
                    log.warning("API keys and their limits can be exchanged with other gateways again")
                is_failing = False
            except LeaseLost:
                return
            except KeyStoreError as error:
                if not is_failing:
                    log.error("%s", error)
                is_failing = True
            except Exception:
                log.exception("keys and limits cannot be exchanged; next attempt in %g s", SYNC_SECONDS)
            await asyncio.sleep(SYNC_SECONDS)

    async def exchange(self) -> None:
        """Report what keys have used, and return allotments. Raises KeyStoreError and LeaseLost."""
        keys = self._accounts.keys_to_exchange()
        for begin in range(0, len(keys), _BATCH):
            await self._accounts.exchange(*keys[begin : begin + _BATCH])
