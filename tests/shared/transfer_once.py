"""A transfer in a process of its own, which a test can kill; prints how many MB its memory grew by.

Arguments: the S3 server, the source, the destination's prefix, the file of the position, and after how many bytes of a
file it reads no further.
"""

import json
import resource
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from shared import sources, transfers
from shared.artifacts import Rules


def main(server: str, source: str, prefix: str, position: Path, hold_after: int) -> None:
    s3 = transfers.client(server, "us-east-1", ("local", "local"))
    s3.list_buckets()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = [held(remote, hold_after) for remote in sources.find(source, s3)]
    transfers.transfer_all(
        found,
        transfers.Destination(s3, "models", prefix),
        rules=Rules(),
        expected={},
        position=json.loads(position.read_text()) if position.exists() else None,
        stop_at=time.monotonic() + 600,
        keep=lambda at: keep(position, json.dumps(at)),
    )
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)


def held(remote: sources.Remote, hold_after: int) -> sources.Remote:
    def chunks(offset: int, length: int) -> Iterator[bytes]:
        for chunk in remote.chunks(offset, length):
            while offset >= hold_after:
                time.sleep(1)
            offset += len(chunk)
            yield chunk

    return replace(remote, chunks=chunks)


def keep(position: Path, text: str) -> None:
    half = position.with_suffix(".half")
    half.write_text(text)
    half.replace(position)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
