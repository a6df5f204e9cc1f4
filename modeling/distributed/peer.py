"""What Machines are made of: the connection to another machine, and a wait that says whom it is for."""

import contextlib
import json
import select
import socket
import sys
import time

from util import UserError

REMIND = 60.0  # seconds from one line about whom a machine waits for to the next
LONGEST = 1 << 20  # bytes of a line


class Peer:
    """Another machine and the connection to it."""

    def __init__(self, connection, number):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection, self.number, self.address = connection, number, connection.getpeername()[0]
        self.heard, self.ended, self._rest = time.monotonic(), None, b""

    def __str__(self):
        return f"machine {self.number} ({self.address})"

    def send(self, **message):
        """Sends a line, or nothing where the connection is full or broken: that shows by silence."""
        with contextlib.suppress(OSError):
            self.connection.settimeout(0.2)
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, seconds):
        """The messages that come within `seconds`, a list; None: the other side has closed the connection."""
        if not select.select([self.connection], [], [], seconds)[0]:
            return []
        try:
            data = self.connection.recv(1 << 16)
        except OSError:
            return None
        if not data or len(self._rest) > LONGEST:
            return None
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [_parse(line) for line in lines]


def _parse(line):
    """A message; {} for a line that is none."""
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


class Waiting:
    """Says for whom this machine waits, at once and once a minute, and ends the wait.

    Args:
        timeout: seconds.
        whom: returns for whom, in words.
    """

    def __init__(self, timeout, whom):
        self.timeout, self.whom, self.since, self.told = timeout, whom, time.monotonic(), -REMIND

    def remind(self):
        """UserError: the time is over."""
        waited = time.monotonic() - self.since
        if waited > self.timeout:
            raise UserError(
                f"waited {self.timeout:g} seconds (--network_timeout) for {self.whom()}, and none came: "
                "check --master_addr, --master_port, --node_rank, firewalls, and that the command runs on "
                "all machines."
            )
        if 0.2 < waited and waited - self.told >= REMIND:
            self.told = waited
            print(
                f"waiting for {self.whom()}, {self.timeout - waited:.0f} seconds at most",
                file=sys.stderr,
                flush=True,
            )
