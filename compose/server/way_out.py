"""The server's only way out: notifications and webhooks of its automations, through a socket of the host's.

The container has no network that leads anywhere. HTTP clients in it are told of a proxy on 127.0.0.1, and what they say to
it is carried, as it is, to a socket that the host listens on (systemd/prefect-automations.socket). What may pass is decided
there, by a proxy of Debian's that knows the hosts of the inventory (automations_allowed_hosts).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

#: In the container; compose.yml mounts its directory.
SOCKET = "/run/prefect-automations/way-out.sock"
#: Bytes that are carried at a time, and connections at a time: an automation that runs wild shall not end the server.
CHUNK, MOST = 65536, 64


def proxy(environment: Mapping[str, str]) -> str:
    """The address of the proxy that clients in this container are told of; empty where nothing may leave."""
    return environment.get("HTTPS_PROXY", "")


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        writer.write_eof()


async def open_way(address: str, socket: str = SOCKET) -> asyncio.Server:
    """Listen at the proxy's address, and carry each connection to the socket. Raises OSError.

    Args:
        address: such as http://127.0.0.1:3128.
        socket: of the host.
    """
    free = asyncio.Semaphore(MOST)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with free:
            try:
                there_reader, there_writer = await asyncio.open_unix_connection(socket)
            except OSError as error:
                # The client is told by the end of the connection; a person, here.
                print(f"way out: {socket} cannot be reached: {error}", flush=True)
            else:
                await asyncio.gather(_carry(reader, there_writer), _carry(there_reader, writer))
                there_writer.close()
            writer.close()

    parts = urlsplit(address)
    return await asyncio.start_server(connected, parts.hostname, parts.port)


def take_it() -> None:
    """Have Prefect's block Webhook take it. All else (apprise, Slack's client, httpx) reads the environment by itself.

    Private names of Prefect's: the block makes its transports when its module is imported, and httpx reads the environment only
    where no transport is given. To go, upstream would have to make a client without one. Those that guard against private
    addresses stay: they look names up themselves, which nothing here can.
    """
    address = proxy(os.environ)
    if not address:
        return
    import httpx
    from prefect.blocks import webhook

    webhook._http_transport = httpx.AsyncHTTPTransport(proxy=address)
    webhook._insecure_http_transport = httpx.AsyncHTTPTransport(verify=False, proxy=address)
