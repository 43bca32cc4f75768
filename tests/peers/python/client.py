"""A gRPC C-core client that behaves like Numaflow's data plane: one connection for everything.

Commands on standard input, one JSON line each on standard output: see ../README.md. It uses asyncio because that is
the fastest of grpcio's interfaces (measured, 16 calls in flight: 8,600 calls/s; threads 7,100; futures 4,300).
"""

import argparse
import asyncio
import json
import os
import sys
import time
import zlib
from collections import Counter

import grpc
from google.protobuf import empty_pb2
from pynumaflow.proto.sourcer import source_pb2 as pb
from pynumaflow.proto.sourcer import source_pb2_grpc

SLOW = int(os.environ.get("PENDGUARD_TEST_SLOW", "1"))  # What limits are multiplied by on this machine.
READY_LIMIT = 30.0 * SLOW  # Seconds that a source may take to answer IsReady.
RETRY = 0.1
MAX_MESSAGE = 64 << 20  # As in Numaflow's data plane.
READ_TIMEOUT_MS = 1000  # Likewise.
READS_PER_SECOND = 20  # When a rate is given: few messages each rather than few requests.
IS_READY_PERIOD = 0.05
MAX_ERRORS = 8  # The most errors that a report spells out.
EMPTY = empty_pb2.Empty()


class Refused(Exception):
    """A command that makes no sense, or a source that does not do what it must."""


def emit(**line):
    """Prints one JSON line."""
    print(json.dumps(line), flush=True)


def describe(error):
    """An error in one line, without the C core's trace."""
    return error.code().name if isinstance(error, grpc.RpcError) else str(error)


class Verifier:
    """Checks that each message is the one that had to come next (the format: tests/src/payload.rs)."""

    def __init__(self):
        self.last = None  # Sequence and sum of the last message.

    def check(self, payload, offset):
        """What is wrong with a message, or None. After a broken one the chain goes on from there."""
        if len(payload) < 16:
            return f"a payload of {len(payload)} bytes is too short"
        sequence = int.from_bytes(payload[:8], "big")
        follows = int.from_bytes(payload[8:12], "big")
        found = int.from_bytes(payload[-4:], "big")
        before, self.last = self.last, (sequence, found)

        expected = zlib.crc32(memoryview(payload)[:-4])
        if found != expected:
            return f"message {sequence}: sum {found:08x}, expected {expected:08x}"
        if before is not None and sequence != before[0] + 1:
            return f"message {sequence} came, expected {before[0] + 1}"
        # The very first message of all follows nothing.
        if before is None and sequence == 0:
            before = (None, 0)
        if before is not None and follows != before[1]:
            return f"message {sequence}: follows {follows:08x}, expected {before[1]:08x}"
        if offset != payload[:8] + payload[-4:]:
            return f"message {sequence}: its offset is another message's"
        return None


class Calls:
    """Unary calls, and a count of how they ended. They have no deadline, like those of Numaflow's data plane."""

    METHODS = ("PendingFn", "IsReady", "PartitionsFn")

    def __init__(self, channel):
        self.channel = channel
        self.stub = source_pb2_grpc.SourceStub(channel)

    def known(self, method):
        """Whether it can be called: a method of the service, or any path."""
        return method in self.METHODS or method.startswith("/")

    async def once(self, method):
        """One call; what the answer says, in the words of the line protocol."""
        if method.startswith("/"):
            await self.channel.unary_unary(method)(b"")
            return "answered"
        answer = await getattr(self.stub, method)(EMPTY)
        if method == "IsReady":
            return "true" if answer.ready else "false"
        if not answer.HasField("result"):
            return "absent"
        if method == "PendingFn":
            return str(answer.result.count)
        return ",".join(map(str, answer.result.partitions))

    async def repeat(self, method, turns):
        """One call per turn, one after the other."""
        errors, values = Counter(), Counter()
        for _ in turns:
            try:
                values[await self.once(method)] += 1
            except grpc.RpcError as error:
                errors[error.code().name] += 1
        return errors, values

    async def many(self, method, count, concurrency):
        """`count` calls, `concurrency` of them in flight."""
        start = time.monotonic()
        turns = iter(range(count))
        parts = await asyncio.gather(*(self.repeat(method, turns) for _ in range(concurrency)))
        errors = sum((part[0] for part in parts), Counter())
        values = sum((part[1] for part in parts), Counter())
        return {
            "event": "called",
            "method": method,
            "ok": values.total(),
            "errors": errors,
            "values": values,
            "seconds": time.monotonic() - start,
        }


class Ticker:
    """PendingFn at an interval."""

    def __init__(self, calls, period):
        self.calls = calls
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.run(period))

    async def run(self, period):
        errors, values = Counter(), Counter()
        while not await stopped_within(self.stop, period):
            one = await self.calls.repeat("PendingFn", range(1))
            errors += one[0]
            values += one[1]
        return errors, values

    async def finish(self):
        self.stop.set()
        errors, values = await self.task
        return {
            "event": "every",
            "count": values.total() + errors.total(),
            "ok": values.total(),
            "errors": errors,
            "values": values,
        }


async def stopped_within(stop, seconds):
    """Waits for the event, for so long; whether it is set."""
    try:
        await asyncio.wait_for(stop.wait(), seconds)
    except asyncio.TimeoutError:
        return False
    return True


class Background:
    """Reads and acknowledges, and asks IsReady beside it."""

    def __init__(self, calls, verifier, batch, rate):
        self.calls = calls
        self.verifier = verifier
        self.records, self.period = batch, None
        if rate:
            self.records = max(1, min(batch, rate // READS_PER_SECOND))
            self.period = self.records / rate
        self.stop = asyncio.Event()
        self.started = asyncio.Event()
        self.report = {
            "event": "background",
            "messages": 0,
            "bytes": 0,
            "acked": 0,
            "is_ready": 0,
            "errors": [],
            "intact": True,
        }
        self.reader = self.prober = None

    async def start(self):
        """Returns when the first batch has been read."""
        self.reader = asyncio.create_task(self.read())
        started = asyncio.create_task(self.started.wait())
        await asyncio.wait((self.reader, started), return_when=asyncio.FIRST_COMPLETED)
        if not self.started.is_set():
            started.cancel()
            raise Refused("reading did not start: " + "; ".join(self.report["errors"]))
        self.prober = asyncio.create_task(self.probe())

    async def finish(self):
        """Finishes the batch in hand and ends both streams."""
        self.stop.set()
        await asyncio.gather(self.reader, self.prober)
        return self.report

    def fail(self, error):
        if len(self.report["errors"]) < MAX_ERRORS:
            self.report["errors"].append(error)

    async def probe(self):
        while not await stopped_within(self.stop, IS_READY_PERIOD):
            try:
                if await self.calls.once("IsReady") == "true":
                    self.report["is_ready"] += 1
                else:
                    self.fail("IsReady: not ready")
            except grpc.RpcError as error:
                self.fail(f"IsReady: {describe(error)}")

    async def read(self):
        try:
            await self.read_batches()
        except (grpc.RpcError, asyncio.InvalidStateError, Refused) as error:
            self.fail(f"reading: {describe(error)}")

    async def read_batches(self):
        """Reads and acknowledges in turn, as Numaflow's data plane does."""
        sot = pb.Handshake(sot=True)
        reads, acks = self.calls.stub.ReadFn(), self.calls.stub.AckFn()
        for stream, first in ((reads, pb.ReadRequest(handshake=sot)), (acks, pb.AckRequest(handshake=sot))):
            await stream.write(first)
            answer = await next_of(stream)
            if not answer.handshake.sot:
                raise Refused("no handshake")

        next_time = time.monotonic()
        while not self.stop.is_set():
            offsets = await self.read_batch(reads)
            if offsets:
                await acks.write(pb.AckRequest(request=pb.AckRequest.Request(offsets=offsets)))
                if not (await next_of(acks)).HasField("result"):
                    raise Refused("AckFn: no result")
                self.report["acked"] += len(offsets)
            self.started.set()
            if self.period is not None:
                # Late requests are not made up for: the rate is an upper limit.
                next_time = max(next_time + self.period, time.monotonic())
                await stopped_within(self.stop, next_time - time.monotonic())
        for stream in (reads, acks):
            await stream.done_writing()
            if await stream.read() is not grpc.aio.EOF:
                raise Refused("a message after the end")

    async def read_batch(self, reads):
        """Reads one batch; the offsets of its messages."""
        request = pb.ReadRequest.Request(num_records=self.records, timeout_in_ms=READ_TIMEOUT_MS)
        await reads.write(pb.ReadRequest(request=request))
        offsets = []
        while True:
            response = await next_of(reads)
            if response.status.eot:
                return offsets
            result = response.result
            self.report["messages"] += 1
            self.report["bytes"] += len(result.payload)
            broken = self.verifier.check(result.payload, result.offset.offset)
            if broken:
                self.report["intact"] = False
                self.fail(broken)
            offsets.append(result.offset)


async def next_of(stream):
    """The next message of a stream that must not end here."""
    message = await stream.read()
    if message is grpc.aio.EOF:
        raise Refused("the stream ended")
    return message


class Session:
    """One client and what it does in the background."""

    def __init__(self, calls, concurrency, batch):
        self.calls = calls
        self.concurrency = concurrency
        self.batch = batch
        self.background = self.ticker = None
        self.verifier = Verifier()  # Where the last background stopped.

    async def run(self, line):
        """Does what a line says; None is the answer to "quit"."""
        match line.split():
            case ["call", method, count] if self.calls.known(method) and count.isdecimal():
                return await self.calls.many(method, int(count), self.concurrency)
            case ["background", "on", rate] if rate.isdecimal():
                if self.background:
                    raise Refused("the background is on already")
                background = Background(self.calls, self.verifier, self.batch, int(rate))
                await background.start()
                self.background = background
                return {"event": "reading"}
            case ["background", "off"]:
                if not self.background:
                    raise Refused("the background is off")
                background, self.background = self.background, None
                return await background.finish()
            case ["every", "off"]:
                if not self.ticker:
                    raise Refused("no interval is set")
                ticker, self.ticker = self.ticker, None
                return await ticker.finish()
            case ["every", millis] if millis.isdecimal():
                if self.ticker:
                    raise Refused("an interval is set already")
                self.ticker = Ticker(self.calls, max(1, int(millis)) / 1000)
                return {"event": "ticking"}
            case ["quit"]:
                return None
        raise Refused(f"unknown command: {line.rstrip()!r}")


async def wait_ready(calls):
    """Asks IsReady until the answer is OK, as the data plane does when it starts; how many calls that took."""
    start, attempts = time.monotonic(), 0
    while True:
        attempts += 1
        try:
            answer = await calls.once("IsReady")
            if answer == "true":
                return attempts
        except grpc.RpcError as error:
            answer = f"{describe(error)}: {error.details()}"
        if time.monotonic() - start > READY_LIMIT:
            raise Refused(f"the source was not ready in {READY_LIMIT} s: {answer}")
        await asyncio.sleep(RETRY)


async def run(arguments):
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE),
        ("grpc.max_send_message_length", MAX_MESSAGE),
    ]
    target = arguments.tcp
    if arguments.socket:
        target = f"unix:{arguments.socket}"
        # By default the C core sends the socket's path, percent-encoded, as :authority. Rust's h2 refuses that as
        # malformed and resets every stream; what other clients send is accepted everywhere.
        options.append(("grpc.default_authority", "localhost"))
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        calls = Calls(channel)
        attempts = await wait_ready(calls)
        emit(event="ready", client="grpc-c-core", version=grpc.__version__, pid=os.getpid(), attempts=attempts)
        session = Session(calls, arguments.concurrency, arguments.batch)
        while line := await asyncio.to_thread(sys.stdin.readline):
            answer = await session.run(line)
            if answer is None:
                break
            emit(**answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--socket", help="the source's Unix socket")
    target.add_argument("--tcp", metavar="HOST:PORT", help="the source's TCP address")
    parser.add_argument("--concurrency", type=int, default=16, help="unary calls in flight (default 16)")
    parser.add_argument("--batch", type=int, default=500, help="records of a read request (default 500)")
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments))
    except Refused as error:
        emit(event="error", message=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
