"""A network link that is slower than the loopback interface: a TCP proxy with a rate and a delay.

    python3 link.py PORT MEGABITS MILLISECONDS

listens on a free port of the loopback address, prints it, and passes everything on to PORT, at most so
many megabits per second each way, over all connections, and so many milliseconds later. When standard
input ends it prints how many bytes went each way, and ends. A process of its own, so that it takes no
time from the program that measures.
"""

import json
import queue
import socket
import sys
import threading
import time

CHUNK_BYTES = 64 * 1024


class Direction:
    """One direction of the link, which all connections share."""

    def __init__(self, bytes_per_second, delay_seconds):
        self.bytes_per_second = bytes_per_second
        self.delay_seconds = delay_seconds
        # What a link of this kind holds at any time, both ways, and a little more.
        self.most_chunks = max(8, int(bytes_per_second * delay_seconds * 2.5 / CHUNK_BYTES))
        self.free_at = 0.0
        self.total_bytes = 0
        self.lock = threading.Lock()

    def arrival(self, length):
        """When bytes that are sent now will have arrived at the other end."""
        with self.lock:
            self.total_bytes += length
            self.free_at = max(self.free_at, time.monotonic()) + length / self.bytes_per_second
            return self.free_at + self.delay_seconds


def carry(source, destination, direction):
    """Passes the bytes of one direction of one connection on."""
    on_the_way = queue.Queue(direction.most_chunks)

    def deliver():
        while (item := on_the_way.get()) is not None:
            arrival, data = item
            time.sleep(max(0.0, arrival - time.monotonic()))
            try:
                destination.sendall(data)
            except OSError:
                # Nobody listens any more; the sender is told by the end of its own connection.
                close(source)
        close(destination, socket.SHUT_WR)

    threading.Thread(target=deliver, daemon=True).start()
    try:
        while data := source.recv(CHUNK_BYTES):
            on_the_way.put((direction.arrival(len(data)), data))
    except OSError:
        pass
    on_the_way.put(None)


def close(connection, how=socket.SHUT_RDWR):
    """Ends a connection that may have ended already."""
    try:
        connection.shutdown(how)
    except OSError:
        pass


def accept(listener, port, there, back):
    """Takes connections for ever."""
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", port))
        for connection in (client, server):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=carry, args=(client, server, there), daemon=True).start()
        threading.Thread(target=carry, args=(server, client, back), daemon=True).start()


def main():
    """Is a link until standard input ends."""
    port, megabits, milliseconds = (int(argument) for argument in sys.argv[1:])
    there, back = (Direction(megabits * 1e6 / 8, milliseconds / 1000) for _ in range(2))
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    print(listener.getsockname()[1], flush=True)
    threading.Thread(target=accept, args=(listener, port, there, back), daemon=True).start()
    sys.stdin.read()
    print(json.dumps({"bytes_to_server": there.total_bytes, "bytes_from_server": back.total_bytes}))


if __name__ == "__main__":
    main()
