"""The models' stand-in: OpenAI's wire for chat and embeddings, the same answer each time after a fixed wait.

python -m tests.benchmarks.gateway.upstream PORT CHAT_MS EMBEDDING_MS    # GET /chat-ms/1000 changes the first

A protocol on asyncio's transport, so that it takes as little of the machine as it can.
"""

import asyncio
import json
import random
import sys

DIMENSIONS = 1536
VECTOR = [round(number, 6) for number in random.Random(1536).choices([-0.03, -0.01, 0.02, 0.025], k=DIMENSIONS)]  # noqa: S311
ANSWER = "A swap of TON for USDT goes through a pool; the price moves with its size, and the fee stays in the pool."
TOKENS = {"prompt_tokens": 400, "completion_tokens": 30, "total_tokens": 430}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "stand-in",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}],
    "usage": TOKENS,
}
EMBEDDING = {
    "object": "list",
    "model": "stand-in",
    "data": [{"object": "embedding", "index": 0, "embedding": VECTOR}],
    "usage": {"prompt_tokens": 8, "total_tokens": 8},
}


def framed(body: object, status: str = "200 OK") -> bytes:
    """A whole HTTP answer with this JSON."""
    content = json.dumps(body, separators=(",", ":")).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


CHAT_PATH, EMBEDDINGS_PATH, CHANGE = b"/v1/chat/completions", b"/v1/embeddings", b"/chat-ms/"
ANSWERS = {
    CHAT_PATH: framed(CHAT),
    EMBEDDINGS_PATH: framed(EMBEDDING),
    b"/health": framed({"status": "ok"}),
}

NOT_FOUND = framed({}, "404 Not Found")


class Upstream(asyncio.Protocol):
    """One connection; its requests have a content-length and come one after the other."""

    def __init__(self, seconds: dict[bytes, float]) -> None:
        self.seconds = seconds  # all connections' own
        self.received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data
        head, blank, body = bytes(self.received).partition(b"\r\n\r\n")
        if not blank or len(body) < _content_length(head):
            return
        self.received.clear()
        path = head.split(b" ", 2)[1]
        if path.startswith(CHANGE):
            self.seconds[CHAT_PATH] = int(path.removeprefix(CHANGE)) / 1000
            path = b"/health"
        seconds, answer = self.seconds.get(path, 0), ANSWERS.get(path, NOT_FOUND)
        if seconds:
            asyncio.get_running_loop().call_later(seconds, self.transport.write, answer)
        else:
            self.transport.write(answer)


async def serve(port: int, chat_seconds: float, embedding_seconds: float) -> None:
    """Until the process is stopped."""
    loop = asyncio.get_running_loop()
    seconds = {CHAT_PATH: chat_seconds, EMBEDDINGS_PATH: embedding_seconds}
    server = await loop.create_server(lambda: Upstream(seconds), "127.0.0.1", port)
    await server.serve_forever()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]) / 1000, int(sys.argv[3]) / 1000))
