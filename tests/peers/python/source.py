"""A source on Numaflow's Python SDK, pynumaflow, whose gRPC server is the C core's.

Commands on standard input, one JSON line each on standard output: see ../README.md. Only the user code is here; the
server, its event loop (uvloop), its signal handlers and its server-info file are the SDK's.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
import warnings
import zlib
from collections import deque
from datetime import datetime, timezone
from hashlib import shake_128
from importlib.metadata import version

# Standard output belongs to the line protocol; the SDK logs there, so it gets standard error instead, before it looks.
OUT, sys.stdout = sys.stdout, sys.stderr

import grpc  # noqa: E402
from pynumaflow.info.types import EOF as INFO_END  # noqa: E402
from pynumaflow.sourcer import (  # noqa: E402
    Message,
    Offset,
    PartitionsResponse,
    PendingResponse,
    SourceAsyncServer,
    Sourcer,
    get_default_partitions,
)

SLOW = int(os.environ.get("PENDGUARD_TEST_SLOW", "1"))  # What limits are multiplied by on this machine.
START_LIMIT = 10.0 * SLOW  # Seconds that the SDK may take to listen.
LOOK = 0.01
SEQUENCE, SUM = 8, 4  # Octets of the parts of a payload: see tests/src/payload.rs.
NOT_KNOWN = -1  # What PendingFn answers then.


def emit(**line):
    """Prints one JSON line."""
    print(json.dumps(line), file=OUT, flush=True)


class Generator(Sourcer):
    """The user code: makes messages, checks acknowledgements, counts.

    Only the event loop's thread changes anything; the thread that reads commands only looks.
    """

    COUNTERS = (
        "pending",
        "read",
        "ack",
        "nack",
        "partitions",
        "messages",
        "bytes",
        "acked",
        "ack_mismatches",
        "abandoned",
    )

    def __init__(self, message_bytes, pending):
        self.message_bytes = max(message_bytes, SEQUENCE + 2 * SUM)
        self.pending = NOT_KNOWN if pending < 0 else pending
        self.stats = dict.fromkeys(self.COUNTERS, 0)
        self.made, self.last_sum = 0, 0
        self.unacked = deque()  # Offsets handed out and not acknowledged yet, in order.

    def next_message(self):
        """The next payload of the chain, and its offset."""
        sequence = self.made.to_bytes(SEQUENCE, "big")
        body = sequence + self.last_sum.to_bytes(SUM, "big")
        body += shake_128(sequence).digest(self.message_bytes - len(body) - SUM)
        self.made += 1
        self.last_sum = zlib.crc32(body)
        tail = self.last_sum.to_bytes(SUM, "big")
        return body + tail, sequence + tail

    async def read_handler(self, datum, output):
        self.stats["read"] += 1
        for _ in range(datum.num_records):
            payload, offset = self.next_message()
            self.unacked.append(offset)
            self.stats["messages"] += 1
            self.stats["bytes"] += len(payload)
            now = datetime.now(timezone.utc)
            await output.put(Message(payload=payload, offset=Offset(offset, 0), event_time=now))

    async def ack_handler(self, ack_request):
        self.stats["ack"] += 1
        for offset in ack_request.offsets:
            if offset.partition_id != 0 or offset.offset not in self.unacked:
                self.stats["ack_mismatches"] += 1
                continue
            while self.unacked.popleft() != offset.offset:
                self.stats["abandoned"] += 1
            self.stats["acked"] += 1

    async def pending_handler(self):
        self.stats["pending"] += 1
        return PendingResponse(count=self.pending)

    async def partitions_handler(self):
        self.stats["partitions"] += 1
        return PartitionsResponse(partitions=get_default_partitions())


def listening(info):
    """Waits for a complete server-info file, which the SDK writes once it listens; whether it came."""
    deadline = time.monotonic() + START_LIMIT
    while time.monotonic() < deadline:
        try:
            with open(info, encoding="utf-8") as file:
                if file.read().endswith(INFO_END):
                    return True
        except FileNotFoundError:
            pass
        time.sleep(LOOK)
    return False


def commands(generator, arguments, failures):
    """Answers the lines of standard input, on a thread of its own: the main one is the SDK's."""
    if not listening(arguments.server_info):
        failures.append(f"{arguments.server_info} did not appear")
    else:
        emit(
            event="listening",
            socket=arguments.socket,
            tcp=None,
            pid=os.getpid(),
            sdk=f"pynumaflow {version('pynumaflow')}, grpcio {grpc.__version__}",
        )
        for line in sys.stdin:
            if line.strip() == "stats":
                emit(event="stats", **generator.stats)
                continue
            if line.strip() != "quit":
                failures.append(f"unknown command: {line.rstrip()!r}")
            break
    # The SDK has no way to be stopped but a signal.
    os.kill(os.getpid(), signal.SIGTERM)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--socket", required=True, help="the Unix socket to listen on")
    parser.add_argument("--server-info", help="where the SDK announces itself (default: SOCKET.server-info)")
    parser.add_argument("--message-bytes", type=int, default=1024, help="bytes of a payload (default 1024)")
    parser.add_argument("--pending-value", type=int, default=NOT_KNOWN, help="what PendingFn answers")
    arguments = parser.parse_args()
    arguments.server_info = arguments.server_info or f"{arguments.socket}.server-info"
    # The C core takes over a socket that is left; a file that is left would announce a server that isn't there yet.
    if os.path.exists(arguments.server_info):
        os.remove(arguments.server_info)

    generator, failures = Generator(arguments.message_bytes, arguments.pending_value), []
    server = SourceAsyncServer(generator, sock_path=arguments.socket, server_info_file=arguments.server_info)
    threading.Thread(target=commands, args=(generator, arguments, failures), daemon=True).start()
    # The SDK makes a coroutine for a graceful end and then gives it to nobody.
    warnings.filterwarnings("ignore", message="coroutine .*server_graceful_shutdown", category=RuntimeWarning)
    server.start()
    if failures:
        emit(event="error", message=failures[0])
    else:
        emit(event="stats", **generator.stats)
    # What is left of the C core's threads isn't waited for.
    OUT.flush()
    os._exit(1 if failures else 0)


if __name__ == "__main__":
    main()
