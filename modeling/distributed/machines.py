"""Several machines that run one command: they meet before their ranks start, and watch each other after.

OneFlow's collectives wait for ever for a rank that is gone. So the process that launched the ranks of a
machine, which runs no engine itself, keeps a connection to machine 0 beside them. Each side speaks over it
once a second. A machine that is silent for too long, or gone, ends the run on the others with a sentence.
Lines of JSON go over the connection; its port is the one above --master_port.
"""

import contextlib
import socket
import threading
import time

from modeling.distributed.peer import Peer, Waiting
from util import UserError

BEAT = 1.0  # seconds from one sign of life to the next
SILENT = 5.0  # seconds without one, after which nobody who was told to stop waits for the others
# Seconds that ranks have to end by themselves after another machine's did, by its exit code:
GRACE = {130: 60.0}


class Machines:
    """This machine among `nodes`, numbered from 0.

    Args:
        node: the number of this one.
        address, port: --master_addr and --master_port.
        timeout: seconds without a word from a machine after which it counts as lost.
        facts: {what: text}, which must be the same on all of them.
    """

    def __init__(self, node, nodes, address, port, timeout, facts):
        self.node, self.nodes, self.timeout, self.facts = node, nodes, timeout, facts
        self.address, self.port = address, port
        self.watch_port = port + 1 if port < 65535 else port - 1
        self.peers, self.loss = [], None  # why the run cannot go on, a sentence
        self._left, self._thread = threading.Event(), None

    # ----------------------------------------------------------------------------------- meeting

    def meet(self):
        """Waits until all machines are there, and compares what must be the same.

        Raises:
            UserError: one of them does not come, cannot be reached, or differs. The others are told so.
        """
        if self.node == 0:
            self._receive_all()
        else:
            self._join()

    def _receive_all(self):
        self._check_free(self.port)
        with self._listen(self.watch_port) as server:
            waiting = Waiting(self.timeout, self._absent)
            while len(self.peers) < self.nodes - 1:
                waiting.remind()
                with contextlib.suppress(socket.timeout):
                    self._welcome(server.accept()[0])
        for peer in self.peers:
            peer.heard = time.monotonic()
            peer.send(go=True)

    def _absent(self):
        missing = sorted({*range(1, self.nodes)} - {peer.number for peer in self.peers})
        return f"machine{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}, on port {self.watch_port}"

    def _check_free(self, port):
        self._listen(port).close()

    def _listen(self, port):
        """A socket that listens at this machine's address."""
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.settimeout(0.2)
        try:
            server.bind((self.address, port))
            server.listen(self.nodes + 8)
        except OSError as error:
            server.close()
            raise UserError(
                f"--master_addr {self.address} --master_port {self.port}: machine 0 cannot listen on port "
                f"{port} there ({error.strerror or error}): name an address of machine 0, and a port that is "
                "free with the next."
            ) from None
        return server

    def _welcome(self, connection):
        """Takes a machine in that says who it is; whoever else has called is not answered."""
        peer = Peer(connection, None)
        for _ in range(25):  # 5 s
            messages = peer.receive(0.2)
            if messages is None or messages:
                break
        hello = messages[0] if messages else {}
        if hello.get("suite") != "meta-kd" or not isinstance(hello.get("facts"), dict):
            connection.close()
            return
        peer.number = hello.get("node")
        fault = self._fault(peer, hello["facts"])
        if fault:
            for each in (*self.peers, peer):
                each.send(refuse=fault)
            raise UserError(fault)
        self.peers.append(peer)

    def _fault(self, peer, facts):
        """What is wrong with a machine that has called, a sentence; None when nothing is."""
        for what in sorted({*self.facts, *facts}):
            found, expected = facts.get(what, "nothing"), self.facts.get(what, "nothing")
            if found != expected:
                return (
                    f"{peer} differs from machine 0 in {what}: found {str(found):.200}, expected "
                    f"{str(expected):.200}: make them the same, and start all machines again."
                )
        if peer.number == 0 or peer.number in [each.number for each in self.peers]:
            return (
                f"{peer} has called with the --node_rank of another: number the machines from 0, each once."
            )
        return None

    def _join(self):
        waiting = Waiting(self.timeout, lambda: f"machine 0 at {self.address}, port {self.watch_port}")
        while True:
            waiting.remind()
            try:
                connection = socket.create_connection((self.address, self.watch_port), timeout=2)
            except socket.gaierror as error:
                raise UserError(
                    f"--master_addr {self.address}: no such address ({error.strerror}): name machine 0's."
                ) from None
            except OSError:
                time.sleep(0.1)
                continue
            if self._hear_verdict(Peer(connection, 0), waiting):
                return

    def _hear_verdict(self, peer, waiting):
        """True when machine 0 has said that all are there; False: it went away before."""
        peer.send(suite="meta-kd", node=self.node, facts=self.facts)
        while (messages := peer.receive(0.2)) is not None:
            waiting.remind()
            for message in messages:
                if "refuse" in message:
                    raise UserError(str(message["refuse"]))
                if "go" not in message:
                    raise UserError(
                        f"--master_addr {self.address}: something that is not machine 0 of this run answers "
                        f"on port {self.watch_port}: name another --master_port on all machines."
                    )
                self.peers = [peer]
                return True
        time.sleep(0.5)
        return False

    # ----------------------------------------------------------------------------------- watching

    def watch(self, on_loss):
        """From now on a thread speaks and listens.

        It calls `on_loss()`, once, when `loss` says why the run cannot go on.
        """
        self._on_loss = on_loss
        for peer in self.peers:
            peer.heard = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self):
        beat = 0.0
        while not self._left.is_set() and self.loss is None:
            if time.monotonic() - beat >= BEAT:
                beat = time.monotonic()
                for peer in self.peers:
                    peer.send(alive=True)
            open_peers = [peer for peer in self.peers if peer.ended is None]
            if not open_peers:
                self._left.wait(0.2)
            for peer in open_peers:
                self._listen_to(peer, 0.2 / len(open_peers))
            self.loss = self._find_loss()
        if self.loss is not None and not self._left.is_set():
            for peer in self.peers:
                peer.send(lost=self.loss)
            self._on_loss()

    def _listen_to(self, peer, seconds):
        messages = peer.receive(seconds)
        if messages is None:
            why = "its connection was closed without a word, as when it is switched off"
            peer.ended = (time.monotonic(), 1, why)
        for message in messages or ():
            if "lost" in message:
                peer.ended = (time.monotonic(), 1, str(message["lost"]))
            elif "end" in message:
                peer.ended = (time.monotonic(), message["end"], str(message.get("sentence")))

    def _find_loss(self):
        now = time.monotonic()
        for peer in self.peers:
            if peer.ended is None and now - peer.heard > self.timeout:
                return f"{peer} was not heard of for {self.timeout:g} seconds (--network_timeout)"
            if peer.ended and peer.ended[1] != 0:
                since, code, sentence = peer.ended
                if now - since > GRACE.get(code, 3.0):
                    return f"{peer} has ended: {sentence.removeprefix('error: ').rstrip('.')}"
        return None

    def silence(self):
        """Seconds since the machine that was silent for longest was heard of."""
        return max((time.monotonic() - peer.heard for peer in self.peers if peer.ended is None), default=0.0)

    def unreachable(self):
        """Whether ranks that wait for the others wait in vain."""
        return self.loss is not None or self.silence() > SILENT

    def words(self):
        """What is wrong between the machines, a sentence without its end."""
        if self.loss:
            return self.loss
        quiet = max(self.peers, key=lambda peer: time.monotonic() - peer.heard)
        return f"{quiet} was not heard of for {time.monotonic() - quiet.heard:.0f} seconds"

    def leave(self, code, sentence):
        """Tells the others how this machine's ranks have ended."""
        self._left.set()
        if self._thread:
            self._thread.join(2 * BEAT)
        for peer in self.peers:
            peer.send(end=code, sentence=sentence)
            peer.connection.close()
