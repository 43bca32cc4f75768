"""A process that sends what it is told to, by the system call it is told to use.

For what no gRPC library does on demand: each send system call in each shape, partial sends, malformed HTTP/2,
descriptors that come back as something else, children without a program of their own. Commands come on standard
input, one a line, and each is answered by one line; an exception ends the process with its traceback.

The bytes are real and the kernel is real; only the HTTP/2 is written by hand, since it must be wrong on demand.
"""

import ctypes
import mmap
import os
import random
import resource
import socket
import struct
import sys
import threading

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PENDING = bytes.fromhex("6107b6c2157ee15f71edb08563596a90d54d86af")  # Huffman: /source.v1.Source/PendingFn
BLOCKED = bytes.fromhex("6107b6c2157ee15f71edb08563596a90d54d860f")  # Huffman: /source.v1.Source/PendingF=
LIBC = ctypes.CDLL(None, use_errno=True)
EXIT = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # `exit` of one thread, which libc has no function for

sockets = {}  # descriptor -> (socket, its peer's reader)
sent = {}  # descriptor -> what was sent
crowd = []  # the ends of the connections that `many` made
kept = []  # memory that must stay
people = []  # the processes that `gather` made, and the pipe that they wait for
stuck = []  # the threads that `stick` made, their connections, and what each sends


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def request(stream):
    """What tonic sends for PendingFn: HEADERS with a literal path, and two DATA frames."""
    block = bytes.fromhex("838604") + bytes([0x80 | len(PENDING)]) + PENDING
    return frame(1, 4, stream, block) + frame(0, 0, stream, bytes(5)) + frame(0, 1, stream, b"")


class Reader(threading.Thread):
    """Reads what arrives, as slowly as told."""

    def __init__(self, peer, size):
        super().__init__(daemon=True)
        self.peer, self.size, self.data = peer, size, bytearray()
        self.start()

    def run(self):
        while True:
            try:
                data = self.peer.recv(self.size)
            except OSError:
                return
            if not data:
                return
            self.data += data


def connected():
    """Both ends of a connection on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("")  # a name that the kernel finds
        server.listen()
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(server.getsockname())
        return ours, server.accept()[0]


def connect(kind, buffer):
    if kind == "pair":
        ours, theirs = socket.socketpair()
    elif kind == "unix":
        ours, theirs = connected()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours = socket.create_connection(server.getsockname())
            theirs = server.accept()[0]
    if buffer:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sockets[ours.fileno()] = (ours, Reader(theirs, buffer or 65536))
    sent[ours.fileno()] = bytearray()
    return ours.fileno()


def dial(path):
    """A connection to who listens there, and reads."""
    ours = socket.socket(socket.AF_UNIX)
    ours.connect(path)
    sockets[ours.fileno()] = (ours, None)
    sent[ours.fileno()] = bytearray()
    return ours.fileno()


def send(fd, call, pieces):
    """One system call; returns how many bytes it took. Whatever becomes of it, memory must be as it was."""
    if call in ("write", "sendto"):
        pieces = [b"".join(pieces)]
    before = [bytes(bytearray(piece)) for piece in pieces]
    try:
        n = send_pieces(fd, call, pieces)
    finally:
        if any(piece != was for piece, was in zip(pieces, before)):
            raise RuntimeError(f"memory has changed: {pieces} was {before}")
    sent.setdefault(fd, bytearray()).extend(b"".join(before)[:n])
    return n


def send_pieces(fd, call, pieces):
    if call == "write":
        return os.write(fd, pieces[0])
    if call == "writev":
        return os.writev(fd, pieces)
    if call == "sendto":
        return sockets[fd][0].send(pieces[0])
    if call == "sendmsg":
        return sockets[fd][0].sendmsg(pieces)
    raise ValueError(call)


def read_back(fd):
    """How often the peer has read each path, and whether all else is what was sent; "-" while it reads."""
    data = bytes(sockets[fd][1].data)
    if len(data) != len(sent[fd]):
        return "-"
    intact = data.replace(BLOCKED, PENDING) == bytes(sent[fd])
    return f"{data.count(PENDING)} {data.count(BLOCKED)} {int(intact)}"


def cut(data, random_, most):
    """`data` in pieces of random length."""
    pieces = []
    while data:
        n = random_.randint(1, most)
        pieces.append(data[:n])
        data = data[n:]
    return pieces


def pump(fd, call, first, count, seed):
    """`count` requests with bulk data between them, in sends of random size, not waiting for room: what the kernel
    doesn't take is sent again. Returns how often it took a part or nothing."""
    random_ = random.Random(seed)
    data = b"".join(
        request(first + 2 * i) + frame(0, 0, 1, random_.randbytes(random_.randint(0, 3000))) for i in range(count)
    )
    os.set_blocking(fd, False)
    partial = refused = 0
    at = 0
    while at < len(data):
        chunk = data[at : at + random_.randint(1, 9000)]
        pieces = cut(chunk, random_, 1500)[:64]
        offered = sum(map(len, pieces))
        try:
            n = send(fd, call, pieces)
        except BlockingIOError:
            refused += 1
            continue
        partial += n < offered
        at += n
    os.set_blocking(fd, True)
    return f"{partial} {refused}"


def moved(fd, call, first, count):
    """`count` requests from memory that the kernel moves all the time: it makes a huge page of small ones, as it does by itself for
    long-lived processes, and is made to split it. Returns how often it did, and how often a rejected path stayed."""
    huge = 2 << 20
    area = mmap.mmap(-1, 2 * huge, flags=mmap.MAP_PRIVATE)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(area))
    start = -begin % huge
    address = ctypes.c_void_p(begin + start)
    last = ctypes.c_void_p(begin + start + huge - mmap.PAGESIZE)
    size = len(request(first))
    ended = threading.Event()
    moves = left = 0

    def move():
        nonlocal moves
        while not ended.is_set():
            moves += LIBC.madvise(address, ctypes.c_size_t(huge), 25) == 0  # MADV_COLLAPSE, Linux 6.1
            LIBC.madvise(last, ctypes.c_size_t(mmap.PAGESIZE), mmap.MADV_DONTNEED)

    thread = threading.Thread(target=move)
    thread.start()
    view = memoryview(area)[start : start + size]
    try:
        for i in range(count):
            data = request(first + 2 * i)
            view[:] = data
            send_pieces(fd, call, [view] if call in ("write", "sendto") else [view[:20], view[20:]])
            if view == data.replace(PENDING, BLOCKED):
                left += 1
            elif view != data:
                raise RuntimeError(f"memory has changed: {bytes(view)} was {data}")
            sent[fd].extend(data)
    finally:
        ended.set()
        thread.join()
    return f"{moves} {left}"


def allow_descriptors():
    """As many as may be."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def many(count):
    """As many connections, each with one request, which stay. Returns on how many the peer has what was sent."""
    allow_descriptors()
    whole = 0
    for _ in range(count):
        ours, theirs = socket.socketpair()
        crowd.append((ours, theirs))
        begin = PREFACE + frame(4, 0, 0, b"")
        os.write(ours.fileno(), begin)
        os.write(ours.fileno(), request(1))
        whole += theirs.recv(4096) == begin + request(1)
    return whole


def again():
    """One request more on each of them."""
    whole = 0
    for ours, theirs in crowd:
        os.write(ours.fileno(), request(3))
        whole += theirs.recv(4096) == request(3)
    return whole


def leave():
    """Closes all of them, while their calls are under way."""
    count = len(crowd)
    for ours, theirs in crowd:
        ours.close()
        theirs.close()
    crowd.clear()
    return count


def answer(stream):
    """What a source answers to PendingFn: 7 are pending."""
    headers = frame(1, 4, stream, b"\x88")
    message = frame(0, 0, stream, bytes([0, 0, 0, 0, 4, 0x0A, 2, 8, 7]))
    trailers = frame(1, 5, stream, b"\x00\x0bgrpc-status\x010")
    return headers + message + trailers


def gather(count):
    """As many processes without a program of their own, each with a call that is answered, which stay. Returns for how many all that
    was sent arrived, in both directions."""
    begin = PREFACE + frame(4, 0, 0, b"")
    results, result = os.pipe()
    wait, gate = os.pipe()
    whole = 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os.close(gate)
            ours, theirs = socket.socketpair()
            os.write(ours.fileno(), begin)
            os.write(ours.fileno(), request(1))
            arrived = theirs.recv(4096) == begin + request(1)
            theirs.send(frame(4, 0, 0, b"") + answer(1))
            arrived &= ours.recv(4096) == frame(4, 0, 0, b"") + answer(1)
            os.write(result, b"1" if arrived else b"0")
            os.read(wait, 1)  # until its other end is closed
            os._exit(0)
        people.append(child)
        whole += os.read(results, 1) == b"1"
    for fd in (results, result, wait):
        os.close(fd)
    people.append(gate)
    return whole


def disperse():
    """Ends them."""
    os.close(people.pop())
    count = len(people)
    for child in people:
        os.waitpid(child, 0)
    people.clear()
    return count


def stick(count):
    """As many threads, each in a send that begins with a request and that nobody reads. Returns when all are."""
    allow_descriptors()
    # (The least that arm64 allows is 128 KiB.)
    threading.stack_size(128 << 10)
    for _ in range(count):
        ours, theirs = connected()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        begin = PREFACE + frame(4, 0, 0, b"")
        os.write(ours.fileno(), begin)
        if theirs.recv(4096) != begin:
            raise RuntimeError("the preface did not arrive")
        data = request(1) + b"".join(frame(0, 0, 3, bytes(16384)) for _ in range(2))
        thread = threading.Thread(target=lambda fd, data: os.write(fd, data), args=(ours.fileno(), data), daemon=True)
        thread.start()
        stuck.append((thread, ours, theirs, data))
        theirs.recv(1, socket.MSG_PEEK)  # it has begun
    return sum(thread.is_alive() for thread, *_ in stuck)


def free():
    """Reads what they send. Returns how many requests came with their path and with its substitute; all else must be as it was sent."""
    paths = [0, 0]
    for thread, ours, theirs, data in stuck:
        whole = bytearray()
        while len(whole) < len(data):
            whole += theirs.recv(1 << 20)
        thread.join()
        if whole.replace(BLOCKED, PENDING) != data:
            raise RuntimeError("something else has changed")
        paths[0] += whole.count(PENDING)
        paths[1] += whole.count(BLOCKED)
        ours.close()
        theirs.close()
    stuck.clear()
    return f"{paths[0]} {paths[1]}"


class Vector(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]


class Message(ctypes.Structure):
    """`struct mmsghdr`."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint),
        ("vectors", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("reserved", ctypes.c_int),
        ("sent", ctypes.c_uint),
    ]


def sendmmsg(fd, data):
    """One message by a system call that no hook is on."""
    buffer = ctypes.create_string_buffer(data, len(data))
    vector = Vector(ctypes.addressof(buffer), len(data))
    message = Message(vectors=ctypes.pointer(vector), count=1)
    if LIBC.sendmmsg(fd, ctypes.byref(message), 1, 0) != 1:
        raise OSError(ctypes.get_errno(), "sendmmsg")
    sent.setdefault(fd, bytearray()).extend(data[: message.sent])
    return message.sent


def messages(random_, most):
    """A few frames of another call, on stream 1: DATA of all sizes, and seldom another frame that ends nothing."""
    # Payload that would itself be frames: ends of calls.
    payload = (frame(3, 0, 3, bytes(4)) + frame(0, 1, 5, b"")) * 1000
    frames = []
    for _ in range(random_.randrange(most)):
        kind = random_.randrange(20)
        if kind == 0:
            padding = random_.randrange(256)
            frames.append(frame(0, 8, 1, bytes([padding]) + payload[: random_.randrange(50)] + bytes(padding)))
        elif kind == 1:
            frames.append(frame(8, 0, random_.choice([0, 1]), bytes([0, 0, 16, 0])))
        elif kind == 2:
            frames.append(frame(6, 0, 0, bytes(8)))
        else:
            length = random_.choice([0, 1, 8, 9, 10, 100, 1050, random_.randrange(300), 16384])
            frames.append(frame(0, 0, 1, payload[:length]))
    return b"".join(frames)


def ending(stream, how, value):
    """The frames of an answer to PendingFn: with the status `how`, or, above gRPC's 16, without one."""
    headers = frame(1, 4, stream, b"\x88")
    if how == 17:
        return [headers, frame(0, 1, stream, b"")]
    if how == 18:
        return [headers, frame(3, 0, stream, bytes(4))]
    status = str(how).encode()
    trailers = frame(1, 5, stream, b"\x00\x0bgrpc-status" + bytes([len(status)]) + status)
    if how != 0:
        return [headers, trailers]
    number = bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14])
    message = bytes([0, 0, 0, 0, 6, 0x0A, 4, 8]) + number
    return [headers, frame(0, 0, stream, message[:4]), frame(0, 0, stream, message[4:]), trailers]


def receive(connection, call, size):
    """One system call; returns how many bytes there were."""
    if call == "read":
        return len(os.read(connection.fileno(), size))
    if call == "recvfrom":
        return len(connection.recv(size))
    buffers = [bytearray(size // 2), bytearray(size - size // 2)]
    if call == "readv":
        return os.readv(connection.fileno(), buffers)
    return connection.recvmsg_into(buffers)[0]


def interleave(call, rounds, seed):
    """On a connection of its own, calls of PendingFn that end in each way `rounds` times, and once more with a number, which it returns.
    Between them and within their answers another call has messages, and the client receives as few octets at once as comes."""
    random_ = random.Random(seed)
    ours, theirs = connected()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    waiting = 0

    def say(data):
        # What a server sends isn't of interest.
        return sendmmsg(theirs.fileno(), data) if data else 0

    def hear(left):
        nonlocal waiting
        while waiting > left:
            most = random_.choice([12, 300, 4096, 65536])
            waiting -= receive(ours, call, random_.randrange(1, most))

    os.write(ours.fileno(), PREFACE + frame(4, 0, 0, b""))
    waiting += say(frame(4, 0, 0, b""))
    os.write(ours.fileno(), frame(1, 4, 1, b"\x83\x86\x84"))
    waiting += say(frame(1, 4, 1, b"\x88"))
    value = 1 << 20
    for i in range(19 * rounds + 1):
        waiting += say(messages(random_, 8))
        hear(random_.randrange(2000))
        stream, value = 3 + 2 * i, value + 1
        os.write(ours.fileno(), request(stream))
        theirs.recv(1 << 16)
        for part in ending(stream, i % 19, value):
            waiting += say(part + messages(random_, 3))
        hear(random_.randrange(2000))
    hear(0)
    ours.close()
    theirs.close()
    return value


def stat():
    """The fields of /proc/self/stat (proc(5)), by their numbers."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return {3 + i: field for i, field in enumerate(fields)}


def environ(name, value):
    """Overwrites a variable's value in the memory that /proc/self/environ shows."""
    fields = stat()
    start, end = int(fields[50]), int(fields[51])
    area = b"\0" + ctypes.string_at(start, end - start)
    at = start - 1 + area.index(f"\0{name}=".encode()) + len(name) + 2
    if ctypes.string_at(at, len(value) + 1) == value.encode() + b"\0":
        raise RuntimeError("it is that already")
    ctypes.memmove(at, value.encode(), len(value))
    with open("/proc/self/environ", "rb") as file:
        return int(f"{name}={value}".encode() in file.read().split(b"\0"))


def endless(mebibytes):
    """Makes /proc/self/environ as long, of memory that was never touched (prctl(2), PR_SET_MM_MAP)."""
    fields = stat()
    area = mmap.mmap(-1, mebibytes << 20, flags=mmap.MAP_PRIVATE)
    kept.append(area)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(area))
    LIBC.sbrk.restype = ctypes.c_void_p
    brk = LIBC.sbrk(0)
    order = [26, 27, 45, 46, 47, None, 28, 48, 49]
    words = [brk if number is None else int(fields[number]) for number in order]
    words += [begin, begin + (mebibytes << 20), 0]
    data = struct.pack("<12Q2I", *words, 0, 0xFFFFFFFF)
    if LIBC.prctl(35, 14, data, len(data), 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_MM_MAP")
    return int(stat()[51]) - int(stat()[50])


def scatter(count):
    """As many children without a program of their own that end at once."""
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
    return count


def storm(count):
    """As many processes that end at once."""
    for _ in range(count):
        child = os.posix_spawn("/bin/true", ["true"], os.environ)
        os.waitpid(child, 0)
    return count


def abdicate():
    """The process's first thread ends; another one goes on taking commands."""

    def go_on():
        print("ok", threading.get_native_id(), flush=True)
        serve()
        os._exit(0)

    threading.Thread(target=go_on).start()
    LIBC.syscall(EXIT, 0)


def serve():
    for line in sys.stdin:
        print("ok", execute(line.split()), flush=True)


def execute(words):
    command, rest = words[0], words[1:]
    if command == "connect":  # connect unix|tcp|pair [BUFFER]
        return connect(rest[0], int(rest[1]) if len(rest) > 1 else 0)
    if command == "dial":  # dial PATH
        return dial(rest[0])
    if command == "send":  # send FD CALL HEX...
        return send(int(rest[0]), rest[1], [bytes.fromhex(piece) for piece in rest[2:]])
    if command == "reply":  # reply FD HEX: the peer sends this, and it is received
        ours, reader = sockets[int(rest[0])]
        data = bytes.fromhex(rest[1])
        reader.peer.sendall(data)
        return len(ours.recv(len(data), socket.MSG_WAITALL))
    if command == "start":  # start FD: preface and SETTINGS
        return send(int(rest[0]), "write", [PREFACE + frame(4, 0, 0, b"")])
    if command == "call":  # call FD CALL STREAM: one request
        return send(int(rest[0]), rest[1], [request(int(rest[2]))])
    if command == "pump":  # pump FD CALL FIRST COUNT SEED
        return pump(int(rest[0]), rest[1], int(rest[2]), int(rest[3]), int(rest[4]))
    if command == "moved":  # moved FD CALL FIRST COUNT
        return moved(int(rest[0]), rest[1], int(rest[2]), int(rest[3]))
    if command == "headers":  # headers FD MEGABYTES: one endless header block in CONTINUATION frames
        fd, left = int(rest[0]), int(rest[1]) << 20
        os.write(fd, frame(1, 0, 99, bytes.fromhex("838604")))
        field = b"\x00\x01a\x7f\x81\x7f" + b"b" * 16512  # a literal of 16 KiB
        passed = 0
        while passed < left:
            data = memoryview(frame(9, 0, 99, field[:16384]))
            while data:
                data = data[os.write(fd, data) :]
            passed += 16384
        os.write(fd, frame(9, 4, 99, b""))
        return passed
    if command == "many":  # many N: `many`
        return many(int(rest[0]))
    if command == "again":  # again: `again`
        return again()
    if command == "leave":  # leave: `leave`
        return leave()
    if command == "gather":  # gather N: `gather`
        return gather(int(rest[0]))
    if command == "disperse":  # disperse: `disperse`
        return disperse()
    if command == "stick":  # stick N: `stick`
        return stick(int(rest[0]))
    if command == "free":  # free: `free`
        return free()
    if command == "unseen":  # unseen FD STREAM: one request, by a system call that no hook is on
        return sendmmsg(int(rest[0]), request(int(rest[1])))
    if command == "interleave":  # interleave CALL ROUNDS SEED: `interleave`
        return interleave(rest[0], int(rest[1]), int(rest[2]))
    if command == "environ":  # environ NAME VALUE: `environ`
        return environ(rest[0], rest[1])
    if command == "endless":  # endless MEBIBYTES: `endless`
        return endless(int(rest[0]))
    if command == "pass":  # pass FD: a copy of it that came in a message (SCM_RIGHTS)
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"."], [int(rest[0])])
        copy = socket.recv_fds(theirs, 1, 1)[1][0]
        sockets[copy] = (socket.socket(fileno=copy), sockets[int(rest[0])][1])
        sent[copy] = sent[int(rest[0])]
        return copy
    if command == "share":  # share FD CALL STREAM: a child without a program of its own makes one request on this connection
        child = os.fork()
        if child == 0:
            send(int(rest[0]), rest[1], [request(int(rest[2]))])
            os._exit(0)
        sent[int(rest[0])].extend(request(int(rest[2])))
        return os.waitpid(child, 0)[1]
    if command == "abdicate":  # abdicate: `abdicate`
        return abdicate()
    if command == "scatter":  # scatter N: `scatter`
        return scatter(int(rest[0]))
    if command == "storm":  # storm N: `storm`
        return storm(int(rest[0]))
    if command == "received":  # received FD: bytes that the peer read so far
        return len(sockets[int(rest[0])][1].data)
    if command == "read":  # read FD: `read_back`
        return read_back(int(rest[0]))
    if command == "close":
        fd = int(rest[0])
        os.close(fd)
        if fd in sockets:
            sockets.pop(fd)[0].detach()
        return 0
    if command == "dup2":  # dup2 OLD NEW (dup3 where Python keeps descriptors to itself)
        return os.dup2(int(rest[0]), int(rest[1]), inheritable=rest[2] == "dup2")
    if command == "close_range":
        first, last = int(rest[0]), int(rest[1])
        if LIBC.close_range(first, last, 0) != 0:
            raise OSError(ctypes.get_errno(), "close_range")
        for fd in [fd for fd in sockets if first <= fd <= last]:
            ours, reader = sockets.pop(fd)
            ours.detach()
            # Its number may be the next connection's before Python would close it.
            if first <= reader.peer.fileno() <= last:
                reader.peer.detach()
        return 0
    if command == "file":  # file PATH FD: opens a file as that descriptor
        opened = os.open(rest[0], os.O_WRONLY | os.O_CREAT)
        if opened != int(rest[1]):
            os.dup2(opened, int(rest[1]))
            os.close(opened)
        return rest[1]
    # fork CALL N: a child without a program of its own makes N calls on a connection of its own
    # leave_dead CALL N: the same, and nobody takes note of its end
    if command in ("fork", "leave_dead"):
        child = os.fork()
        if child == 0:
            ours, theirs = socket.socketpair()
            sockets[ours.fileno()] = (ours, Reader(theirs, 65536))
            send(ours.fileno(), "write", [PREFACE + frame(4, 0, 0, b"")])
            for i in range(int(rest[1])):
                send(ours.fileno(), rest[0], [request(2 * i + 1)])
            os._exit(0)
        if command == "leave_dead":
            return os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT).si_status
        return os.waitpid(child, 0)[1]
    if command == "exec":  # exec: the same program anew, in the same process
        os.execv(sys.executable, [sys.executable, __file__])
    raise ValueError(words)


def main():
    if sys.argv[1:2] == ["once"]:  # once CALL N: connect, call, end, as fast as can be
        fd = connect("unix", 0)
        execute(["start", str(fd)])
        for i in range(int(sys.argv[3])):
            execute(["call", str(fd), sys.argv[2], str(2 * i + 1)])
        return
    print("ready", os.getpid(), flush=True)
    serve()


main()
