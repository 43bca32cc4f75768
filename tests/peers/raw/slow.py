"""A source that answers each call with `ready`, whatever it is, and hands over its answers an octet at a time: the next one when the client has
read the one before. So its client's receives end everywhere.

slow.py SOCKET: says when it listens, and ends with standard input. Of HTTP/2 it knows what this takes (RFC 9113 §4.1, §6).
"""

import fcntl
import os
import select
import socket
import struct
import sys
import termios

PREFACE = 24
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS, ACK = 1, 4, 1


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    """A field that no table has (RFC 7541 §6.2.2), in plain octets."""
    return bytes([0, len(name)]) + name + bytes([len(value)]) + value


def answer(stream):
    headers = b"\x88" + literal(b"content-type", b"application/grpc")
    return (
        frame(HEADERS, END_HEADERS, stream, headers)
        + frame(DATA, 0, stream, bytes([0, 0, 0, 0, 2, 8, 1]))
        + frame(HEADERS, END_HEADERS | END_STREAM, stream, literal(b"grpc-status", b"0"))
    )


def unread(connection):
    """Octets that the other end hasn't read."""
    return struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, bytes(4)))[0]


def hand_over(connection, data):
    for octet in data:
        connection.send(bytes([octet]))
        while unread(connection):
            # For as long as it takes: who waits for this has a limit.
            os.sched_yield()


def serve(connection):
    received = b""

    def take(count):
        nonlocal received
        while len(received) < count:
            more = connection.recv(1 << 16)
            if not more:
                raise EOFError
            received += more
        taken, received = received[:count], received[count:]
        return taken

    take(PREFACE)
    connection.sendall(frame(SETTINGS, 0, 0, b""))
    while True:
        head = take(9)
        length, kind, flags = int.from_bytes(head[:3], "big"), head[3], head[4]
        stream = int.from_bytes(head[5:], "big")
        payload = take(length)
        if kind in (SETTINGS, PING) and not flags & ACK:
            connection.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind in (DATA, HEADERS) and flags & END_STREAM:
            hand_over(connection, answer(stream))


def main():
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen()
    print("listening", flush=True)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in ready:
            return
        connection, _ = listener.accept()
        try:
            serve(connection)
        except (EOFError, ConnectionError):
            connection.close()


main()
