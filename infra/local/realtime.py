"""Supabase Realtime for the embedded stack: Phoenix channels with row changes and broadcasts.

Row changes come from a temporary replication slot, polled over an ordinary connection: no triggers, every writer
seen, and the slot goes with its connection. PostgreSQL itself is asked, as the subscriber, who may see a row.
Clients are told what hosted Realtime tells them.
"""

import asyncio
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, NoReturn

import anyio
import psycopg
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from infra.local import channel_authorization, pgoutput, presence, subscriptions
from infra.local.channel_authorization import EXTENSIONS, Unauthorized
from infra.local.keys import Keys
from infra.local.pgoutput import Change
from infra.local.presence import Present
from infra.local.subscriptions import Binding, Condition, Query

POLL_SECONDS, POLL_CHANGES = 0.05, 500
SKIP_SECONDS = 5  # PostgreSQL keeps what it has logged since
BATCH_CHANGES, BATCH_CLAIMS = 250, 50
RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.1, 5.0
CONNECT_SECONDS = 5
MAX_FRAME_BYTES, MAX_WAITING_BYTES = 5_000_000, 16_000_000
UNABLE = "Unable to subscribe to changes with given parameters."

Database = psycopg.AsyncConnection[Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """A client's frame."""

    topic: str
    event: str
    payload: dict[str, Any]
    ref: Any
    join_ref: Any


class Outgoing(BaseModel):
    """A broadcast that comes over REST."""

    topic: str
    event: str
    payload: dict[str, Any]
    private: bool = False


class Connection:
    """A websocket. Frames to it wait in a queue bounded in bytes: a slow reader is cut off and delays nobody else."""

    def __init__(self, socket: WebSocket, cut: Callable[[], None]) -> None:
        self.apikey = socket.query_params["apikey"]
        self._socket = socket
        self._cut = cut
        self._is_version_2 = socket.query_params.get("vsn", "").startswith("2")
        self._frames: asyncio.Queue[str] = asyncio.Queue()
        self._waiting_bytes = 0

    def send(self, topic: str, event: str, payload: Any, ref: str | None = None, join_ref: str | None = None) -> None:
        if self._is_version_2:
            frame = json.dumps([join_ref, ref, topic, event, payload])
        else:
            frame = json.dumps({"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": join_ref})
        self._frames.put_nowait(frame)
        self._waiting_bytes += len(frame)
        if self._waiting_bytes > MAX_WAITING_BYTES:
            self._cut()

    def reply(self, message: Message, status: str, **response: Any) -> None:
        payload = {"status": status, "response": response}
        self.send(message.topic, "phx_reply", payload, message.ref, message.join_ref)

    async def read(self) -> str | bytes | None:
        """The next frame; None at the end, and in the place of a frame that is too large."""
        event = await self._socket.receive()
        if event["type"] == "websocket.disconnect":
            return None
        frame: str | bytes = event["bytes"] if event.get("text") is None else event["text"]
        return frame if len(frame) <= MAX_FRAME_BYTES else None

    async def write(self) -> None:
        try:
            while (frame := await self._frames.get()) and self._socket.client_state is WebSocketState.CONNECTED:
                await self._socket.send_text(frame)
                self._waiting_bytes -= len(frame)
        except WebSocketDisconnect:
            self._cut()


@dataclass(eq=False, slots=True)
class Channel:
    """A topic that a connection has joined; `claims_json` says for whom, and is the same text for the same claims.

    `hears` and `sends` hold what they are allowed on it of broadcast and presence, the latter once it was asked.
    """

    connection: Connection
    topic: str
    join_ref: str | None
    broadcast: dict[str, Any]
    is_private: bool
    has_presence: bool
    presence_key: str
    present: Present | None = None
    bindings: tuple[Binding, ...] = ()
    claims_json: str = ""
    hears: frozenset[str] = frozenset()
    sends: dict[str, bool] = field(default_factory=dict)
    expiry: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        return self.topic.removeprefix("realtime:")

    def push(self, event: str, payload: dict[str, Any]) -> None:
        self.connection.send(self.topic, event, payload, join_ref=self.join_ref)

    def tell(self, extension: str, status: str, text: str) -> None:
        self.push("system", {"channel": self.name, "extension": extension, "message": text, "status": status})


Readers = dict[str, dict[Channel, list[int]]]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """The primary key of a table whose rows have changed, and its columns' types."""

    key: Sequence[str]
    types: subscriptions.Types


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """A change that somebody waits for; `readers` are, by their claims, the channels and the ids of their bindings."""

    place: int
    change: Change
    table: Table
    new: dict[str, Any]
    old: dict[str, Any]
    readers: Readers


class Realtime:
    """The routes and the change feed, tied together by the channels that are joined now."""

    def __init__(self, keys: Keys, database_url: str, pool: AsyncConnectionPool) -> None:
        self._keys = keys
        self._database_url = database_url
        self._pool = pool
        self._channels: dict[tuple[Connection, str], Channel] = {}
        self._ids = itertools.count(1)
        self._asking = 0  # channels that are about to have bindings
        self._asked = asyncio.Event()
        self._following = asyncio.Event()

    async def follow(self) -> None:
        """Deliver row changes until cancelled, from where the first channel asks for some.

        What changes while PostgreSQL is out of reach is not delivered later.
        """
        delay = RETRY_SECONDS
        while True:
            try:
                # Two connections: an error drops the temporary slots of its own.
                async with await self._connect() as log, await self._connect() as database:
                    await log.execute(pgoutput.CREATE_SLOT)
                    delay = RETRY_SECONDS
                    while True:
                        await self._deliver_what_comes(log, database)
                        self._asked.clear()
                        with suppress(TimeoutError):
                            await asyncio.wait_for(self._asked.wait(), SKIP_SECONDS)
                        await log.execute(pgoutput.ADVANCE_SLOT)
                        await log.execute(pgoutput.SKIP_SLOT)
            except psycopg.Error as lost:
                logger.warning("the change feed stopped and starts again in %.1f s: %s", delay, lost)
            self._following.clear()
            await asyncio.sleep(delay)
            delay = min(delay * 2, LONGEST_RETRY_SECONDS)

    async def websocket(self, socket: WebSocket) -> None:
        if self._claims(socket.query_params.get("apikey")) is None:
            await socket.close()  # before the handshake, so the client gets a 403
            return
        await socket.accept()
        async with anyio.create_task_group() as tasks:
            connection = Connection(socket, tasks.cancel_scope.cancel)
            tasks.start_soon(connection.write)
            try:
                while (frame := await connection.read()) is not None:
                    try:
                        await self._answer(connection, _message(frame))
                    except (ValueError, RecursionError) as malformed:
                        logger.info("a frame was ignored: %s", malformed)
            finally:
                for channel in [channel for channel in self._channels.values() if channel.connection is connection]:
                    self._leave(channel)
                tasks.cancel_scope.cancel()
        if WebSocketState.DISCONNECTED not in (socket.client_state, socket.application_state):
            await socket.close(1008)  # it sent too much, or read too little

    async def broadcast(self, request: Request) -> Response:
        """Messages for private channels go as far as their sender may send; the answer doesn't tell, as hosted."""
        claims = self._sender(request)
        if claims is None:
            return JSONResponse({"message": "Unauthorized"}, 401)
        body = await request.body()
        if len(body) > MAX_FRAME_BYTES:
            return JSONResponse({"message": "Payload size exceeds the limit"}, 413)
        try:
            messages = _outgoing(request, body)
            private = {message.topic for message in messages if message.private}
            allowed = {topic for topic in private if await self._may_send(topic, json.dumps(claims), "broadcast")}
            for outgoing in messages:
                if not outgoing.private or outgoing.topic in allowed:
                    message = {"type": "broadcast", "event": outgoing.event, "payload": outgoing.payload}
                    self._fan_out(f"realtime:{outgoing.topic}", outgoing.private, message)
        except ValidationError as invalid:
            return JSONResponse({"errors": invalid.errors(include_url=False, include_input=False)}, 422)
        except (ValueError, RecursionError) as malformed:
            return JSONResponse({"message": f"Malformed body: {malformed}"}, 400)
        return Response(status_code=202)

    async def _answer(self, connection: Connection, message: Message) -> None:
        channel = self._channels.get((connection, message.topic))
        if message.event == "heartbeat":
            connection.reply(message, "ok")
        elif message.event == "phx_join":
            await self._join(connection, message)
        elif channel is None:
            connection.reply(message, "error", reason="unmatched topic")
        elif message.event == "phx_leave":
            connection.reply(message, "ok")
            channel.push("phx_close", {})
            self._leave(channel)
        elif message.event == "access_token":
            await self._renew(channel, message.payload.get("access_token"))
        elif message.event == "presence":
            await self._note_presence(channel, message)
        elif message.event == "broadcast" and await self._is_allowed(channel, "broadcast"):
            skip = None if channel.broadcast.get("self") else connection
            self._fan_out(channel.topic, channel.is_private, message.payload, skip)
            if channel.broadcast.get("ack"):
                connection.reply(message, "ok")

    async def _join(self, connection: Connection, message: Message) -> None:
        claims = self._claims(message.payload.get("access_token") or connection.apikey)
        if claims is None:
            connection.reply(message, "error", reason="InvalidJWTToken: The token is not valid, or has expired")
            return
        config = _object(message.payload.get("config"))
        channel = _channel(connection, message, config)
        wanted = config.get("postgres_changes")
        echo = [{**_object(each), "id": next(self._ids)} for each in wanted] if isinstance(wanted, list) else []
        try:
            await self._admit(channel, claims)
            outcome = await self._bind(channel, echo, claims)
        except Unauthorized as refused:
            connection.reply(message, "error", reason=f"Unauthorized: {refused}")
            return
        except (psycopg.OperationalError, TimeoutError):
            connection.reply(message, "error", reason="UnableToConnectToProject: the database is out of reach")
            return
        if replaced := self._channels.get((connection, message.topic)):
            self._leave(replaced)
        self._channels[connection, message.topic] = channel
        self._act_for(channel, claims)
        connection.reply(message, "ok", postgres_changes=echo)
        if echo:
            channel.tell("postgres_changes", *outcome)
        self._show_presence(channel)

    async def _admit(self, channel: Channel, claims: dict[str, Any]) -> None:
        """Find out what is heard on the channel. Raises `Unauthorized` for nothing, and for less than before."""
        heard = EXTENSIONS
        if channel.is_private:
            asked = EXTENSIONS if channel.has_presence else {"broadcast"}
            heard = await channel_authorization.heard(self._pool, channel.name, json.dumps(claims), asked)
        if channel.hears - heard:
            raise Unauthorized(f"You no longer have permission to read from this Channel topic: {channel.name}")
        channel.hears, channel.sends = heard, {}

    async def _bind(
        self, channel: Channel, wanted: list[dict[str, Any]], claims: dict[str, Any]
    ) -> tuple[Literal["ok", "error"], str]:
        """Subscribe the channel to row changes; gives what its client is told of that."""
        try:
            channel.bindings = await self._bindings(wanted, claims)
        except ValueError as wrong:
            return "error", str(wrong)
        return "ok", "Subscribed to PostgreSQL"

    async def _bindings(self, wanted: list[dict[str, Any]], claims: dict[str, Any]) -> tuple[Binding, ...]:
        """ValueError, in hosted Realtime's words, for what can't be subscribed to."""
        bindings = tuple(subscriptions.binding(each) for each in wanted)
        if bindings:
            with self._asks():
                await asyncio.wait_for(self._following.wait(), CONNECT_SECONDS)
                async with self._pool.connection(CONNECT_SECONDS) as database:
                    for binding in bindings:
                        await _check(database, binding, json.dumps(claims))
        return bindings

    @contextmanager
    def _asks(self) -> Iterator[None]:
        """From here on changes are read, though no channel has bindings yet."""
        self._asking += 1
        self._asked.set()
        try:
            yield
        finally:
            self._asking -= 1

    async def _renew(self, channel: Channel, token: Any) -> None:
        """Go on with a new token. An API key changes nothing, as hosted: clients send theirs after signing out."""
        if not isinstance(token, str) or token.startswith("sb_"):
            return
        if channel.expiry:
            channel.expiry.cancel()  # or it could end the channel while PostgreSQL is asked
        claims = self._claims(token)
        if claims is None:
            self._end(channel, "The token is not valid, or has expired")
            return
        try:
            await self._admit(channel, claims)
        except Unauthorized as refused:
            self._end(channel, str(refused))
        except psycopg.OperationalError:
            self._end(channel, "Realtime was unable to connect to the project database")
        else:
            self._act_for(channel, claims)

    def _act_for(self, channel: Channel, claims: dict[str, Any]) -> None:
        channel.claims_json = json.dumps(claims, sort_keys=True)
        if "exp" in claims:
            seconds = float(claims["exp"]) - time.time()
            channel.expiry = asyncio.get_running_loop().call_later(seconds, self._end, channel, "Token has expired")

    def _end(self, channel: Channel, why: str) -> None:
        channel.tell("system", "error", why)
        channel.push("phx_close", {})
        self._leave(channel)

    def _leave(self, channel: Channel) -> None:
        del self._channels[channel.connection, channel.topic]
        self._set_presence(channel, None)
        channel.claims_json = ""
        if channel.expiry:
            channel.expiry.cancel()

    async def _is_allowed(self, channel: Channel, extension: str) -> bool:
        """Whether the channel's client may send; PostgreSQL is asked once for each token, as by hosted Realtime."""
        if channel.is_private and extension not in channel.sends:
            channel.sends[extension] = await self._may_send(channel.name, channel.claims_json, extension)
        return channel.sends.get(extension, True)

    async def _may_send(self, topic: str, claims_json: str, extension: str) -> bool:
        return await channel_authorization.may_send(self._pool, topic, claims_json, extension)

    async def _note_presence(self, channel: Channel, message: Message) -> None:
        event, says = message.payload.get("event"), message.payload.get("payload", {})
        status = "ok"
        if event == "untrack":
            self._set_presence(channel, None)
        elif event == "track" and isinstance(says, dict) and await self._is_allowed(channel, "presence"):
            await self._track(channel, says)
        else:
            status = "error"
        channel.connection.reply(message, status)

    async def _track(self, channel: Channel, says: dict[str, Any]) -> None:
        """Whoever is tracked hears of the others from then on, as hosted, whatever the channel was joined for."""
        if not channel.has_presence:
            await self._hear_presence(channel)
        is_joined = self._channels.get((channel.connection, channel.topic)) is channel  # PostgreSQL was asked meanwhile
        if is_joined and (channel.present is None or channel.present.says != says):
            self._set_presence(channel, presence.present(channel.presence_key, says, channel.present))

    async def _hear_presence(self, channel: Channel) -> None:
        channel.has_presence = True
        with suppress(Unauthorized, psycopg.OperationalError):
            if channel.is_private:
                asked = {"presence"}
                channel.hears |= await channel_authorization.heard(self._pool, channel.name, channel.claims_json, asked)
        self._show_presence(channel)

    def _show_presence(self, channel: Channel) -> None:
        if channel.has_presence and "presence" in channel.hears:
            there = self._joined(channel.topic, channel.is_private)
            channel.push("presence_state", presence.state(each.present for each in there))

    def _set_presence(self, channel: Channel, present: Present | None) -> None:
        left, channel.present = channel.present, present
        if left or present:
            diff = {"joins": presence.state([present]), "leaves": presence.state([left])}
            for each in self._joined(channel.topic, channel.is_private):
                if each.has_presence and "presence" in each.hears:
                    each.push("presence_diff", diff)

    def _fan_out(self, topic: str, is_private: bool, message: dict[str, Any], skip: Connection | None = None) -> None:
        """To whoever hears broadcasts."""
        for channel in self._joined(topic, is_private):
            if "broadcast" in channel.hears and channel.connection is not skip:
                channel.push("broadcast", message)

    def _joined(self, topic: str, is_private: bool) -> list[Channel]:
        """A private topic and a public one of the same name have nothing in common."""
        channels = self._channels.values()
        return [channel for channel in channels if channel.topic == topic and channel.is_private == is_private]

    def _sender(self, request: Request) -> dict[str, Any] | None:
        """The claims of the bearer token, or of the API key where there is none; both must hold."""
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        claims = [self._claims(token) for token in (bearer, request.headers.get("apikey")) if token]
        return claims[0] if claims and None not in claims else None

    def _claims(self, token: Any) -> dict[str, Any] | None:
        return self._keys.claims(token) if isinstance(token, str) and token.isascii() else None

    async def _connect(self) -> Database:
        connect = psycopg.AsyncConnection.connect
        return await connect(self._database_url, autocommit=True, connect_timeout=CONNECT_SECONDS)

    def _is_awaited(self) -> bool:
        return self._asking > 0 or any(channel.bindings for channel in self._channels.values())

    async def _deliver_what_comes(self, log: Database, database: Database) -> None:
        """Deliver what the slot has and what comes, for as long as anybody waits for it."""
        read_to, count = None, 0
        while self._is_awaited():
            self._following.set()
            end = await (await log.execute(pgoutput.END_OF_LOG)).fetchone()
            if end != read_to or count >= POLL_CHANGES:
                await log.execute(pgoutput.ADVANCE_SLOT)
                cursor = await log.execute(pgoutput.READ_SLOT, [POLL_CHANGES])
                messages = [message for (message,) in await cursor.fetchall()]
                read_to, count = end, len(messages)
                changes = list(pgoutput.changes(messages))
                for start in range(0, len(changes), BATCH_CHANGES):
                    await self._deliver(database, changes[start : start + BATCH_CHANGES])
            await asyncio.sleep(POLL_SECONDS)
        self._following.clear()

    async def _deliver(self, database: Database, changes: Sequence[Change]) -> None:
        """PostgreSQL is asked once about changes that are alike, and once for each set of claims, however many
        subscriptions have them."""
        alike = subscriptions.alike(changes)
        told = [each for places in alike for each in await self._told(database, changes, places)]
        told.sort(key=lambda each: each.place)
        claims = list(dict.fromkeys(claims_json for each in told for claims_json in each.readers))
        for start in range(0, len(claims), BATCH_CLAIMS):
            for claims_json, shown in (await _shown(database, told, claims[start : start + BATCH_CLAIMS])).items():
                self._tell(claims_json, [(each, shown[each.place]) for each in told if shown.get(each.place)])

    async def _told(self, database: Database, changes: Sequence[Change], places: Sequence[int]) -> list[Told]:
        """What there is to tell of changes that are alike. One that can't be read takes none of the others with it."""
        alike = [changes[place] for place in places]
        waiting = [(c, binding) for c in self._channels.values() for binding in c.bindings if binding.wants(alike[0])]
        if not waiting:
            return []
        try:
            return await _read(database, dict(zip(places, alike, strict=True)), waiting)
        except psycopg.OperationalError:
            raise
        except (psycopg.Error, LookupError, ValueError, RecursionError) as failed:
            if len(places) > 1:
                return [each for place in places for each in await self._told(database, changes, [place])]
            logger.warning("a change of %s was not delivered: %s", alike[0].relation.table, failed)
            return []

    def _tell(self, claims_json: str, shown: Sequence[tuple[Told, set[str]]]) -> None:
        for each, columns in shown:
            try:
                data = subscriptions.payload(each.change, each.table.types, columns, each.new, each.old)
                for channel, ids in each.readers[claims_json].items():
                    if channel.claims_json == claims_json:  # it may have left since, or have another token
                        channel.push("postgres_changes", {"ids": ids, "data": data})
            except (ValueError, RecursionError) as failed:
                logger.warning("a change of %s was not delivered: %s", each.change.relation.table, failed)


async def _check(database: Database, binding: Binding, claims_json: str) -> None:
    try:
        published = await database.execute(subscriptions.PUBLISHED, [binding.schema, binding.table])
        if not published.rowcount:
            raise ValueError(f"{UNABLE} Please check Realtime is enabled for the given connect parameters: {binding}")
        if binding.conditions:
            async with _acting_as(database, claims_json):
                await database.execute(*subscriptions.possible(binding))
    except psycopg.OperationalError:
        raise
    except psycopg.Error as refused:
        raise ValueError(f"{UNABLE} {str(refused).splitlines()[0]}: {binding}") from refused


async def _read(
    database: Database, alike: Mapping[int, Change], waiting: Sequence[tuple[Channel, Binding]]
) -> list[Told]:
    first = next(iter(alike.values()))
    key, types = await _row(database, subscriptions.describe(first.relation))
    if not key:
        logger.warning("%s has no primary key, so its changes reach nobody", first.relation.table)
        return []
    table = Table(key, types)
    conditions = list({c for _, binding in waiting for c in binding.conditions if c.column in first.row})
    cursor = await database.execute(*subscriptions.typed(list(alike.values()), types, conditions))
    readers = cache(
        lambda answers: _readers(waiting, {c for c, is_met in zip(conditions, answers, strict=True) if is_met})
    )
    return [
        Told(place, change, table, new, old, readers(tuple(answers)))
        for (place, change), (new, old, answers) in zip(alike.items(), await cursor.fetchall(), strict=True)
    ]


def _readers(waiting: Sequence[tuple[Channel, Binding]], met: set[Condition]) -> Readers:
    readers: Readers = defaultdict(lambda: defaultdict(list))
    for channel, binding in waiting:
        if channel.claims_json and binding.conditions <= met:  # it may have left meanwhile
            readers[channel.claims_json][channel].append(binding.id)
    return readers


async def _shown(database: Database, told: Sequence[Told], claims: Sequence[str]) -> dict[str, dict[int, set[str]]]:
    """For each of the claims, by its place what they may see of each change: the columns."""
    tables = dict.fromkeys(each.table for each in told)
    questions = [
        (claims_json, asked)
        for claims_json in claims
        for table in tables
        if (asked := tuple(each for each in told if each.table is table and claims_json in each.readers))
    ]
    shown: dict[str, dict[int, set[str]]] = {claims_json: {} for claims_json in claims}
    for (claims_json, alike), (columns, places) in zip(questions, await _seen(database, questions), strict=True):
        if alike[0].change.type == "DELETE" and json.loads(claims_json)["role"] != "service_role":
            columns &= set(alike[0].table.key)  # nobody can say whether a row that is gone was theirs to see
        shown[claims_json].update((alike[place].place, columns) for place in places)
    return shown


async def _seen(
    database: Database, questions: Sequence[tuple[str, tuple[Told, ...]]]
) -> list[tuple[set[str], Sequence[int]]]:
    """The answers of `subscriptions.seen`, all in one go: waiting for each would take longer than PostgreSQL does."""
    query = cache(
        lambda alike: subscriptions.seen([each.change for each in alike], alike[0].table.types, alike[0].table.key)
    )
    try:
        async with database.pipeline(), database.transaction(force_rollback=True):
            cursors = []
            for claims_json, alike in questions:
                await database.execute(subscriptions.ACT_AS, [claims_json])
                cursors.append(await database.execute(*query(alike)))
            rows = [await cursor.fetchall() for cursor in cursors]
    except psycopg.OperationalError:
        raise
    except psycopg.Error as refused:
        if len(questions) > 1:  # one that may not read takes none of the others with it
            return [answer for question in questions for answer in await _seen(database, [question])]
        logger.info("a subscriber may not read %s: %s", questions[0][1][0].change.relation.table, refused)
        return [(set(), [])]
    return [(set(columns), places) for ((columns, places),) in rows]


@asynccontextmanager
async def _acting_as(database: Database, claims_json: str) -> AsyncIterator[None]:
    async with database.pipeline(), database.transaction(force_rollback=True):
        await database.execute(subscriptions.ACT_AS, [claims_json])
        yield


async def _row(database: Database, query: Query) -> tuple[Any, ...]:
    cursor = await database.execute(*query)
    (row,) = await cursor.fetchall()
    return tuple(row)


def _message(frame: str | bytes) -> Message:
    """ValueError for what is a frame of neither version."""
    if isinstance(frame, bytes):
        return _binary_broadcast(frame)
    match _json(frame):
        case [join_ref, ref, str(topic), str(event), payload]:
            return Message(topic, event, _object(payload), ref, join_ref)
        case {"topic": str(topic), "event": str(event), **rest}:
            return Message(topic, event, _object(rest.get("payload")), rest.get("ref"), rest.get("join_ref"))
    raise ValueError("neither [join_ref, ref, topic, event, payload] nor an object of these")


def _binary_broadcast(frame: bytes) -> Message:
    """supabase-js's frame: kind 3, the lengths of five texts and an encoding, a byte each; the texts; the payload."""
    kind, *lengths, encoding = frame[:7].ljust(7, b"\0")
    if (kind, encoding) != (3, 1):
        raise ValueError("of binary frames, only broadcasts of JSON are understood")
    ends = list(itertools.accumulate(lengths, initial=7))
    join_ref, ref, topic, event, _ = (frame[start:end].decode() for start, end in itertools.pairwise(ends))
    payload = {"type": "broadcast", "event": event, "payload": _json(frame[ends[-1] :])}
    return Message(topic, "broadcast", payload, ref or None, join_ref or None)


def _channel(connection: Connection, message: Message, config: dict[str, Any]) -> Channel:
    """The channel that a client wants to join."""
    wanted = _object(config.get("presence"))
    return Channel(
        connection,
        message.topic,
        message.join_ref,
        broadcast=_object(config.get("broadcast")),
        is_private=bool(config.get("private")),
        has_presence=bool(wanted.get("enabled")),
        presence_key=presence.key(wanted.get("key")),
    )


def _outgoing(request: Request, body: bytes) -> list[Outgoing]:
    """What to broadcast."""
    content = _json(body)
    messages = _object(content).get("messages")
    if "topic" in request.path_params:
        is_private = request.query_params.get("private") == "true"
        messages = [{**request.path_params, "payload": content, "private": is_private}]
    return TypeAdapter(list[Outgoing]).validate_python(messages)


def _json(text: str | bytes) -> Any:
    """JSON without Python's NaN and Infinity, which other clients could not read."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
