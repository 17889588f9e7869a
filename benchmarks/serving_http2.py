"""A gRPC call as prepared bytes over a plain socket, for benchmarks/serving.py.

grpcio's client takes longer in Python than the server that is measured. This client knows only what one unary call at
a time needs of HTTP/2 (RFC 9113) and of gRPC's protocol over it.
"""

from __future__ import annotations

import socket
import struct

from benchmarks.serving_load import PATIENCE_S

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_FIRST_WINDOW, _LARGEST_WINDOW = 65_535, 2**31 - 1
# A connection is replaced before its stream numbers or its window end.
_MOST_STREAMS, _MOST_BYTES = 2**30, 2**30


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _text(value: str) -> bytes:
    """A string of HPACK (RFC 7541), without Huffman's code."""
    data = value.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


class GrpcCall:
    """A connection that stays open, with one call at a time.

    Args:
        port: the server's port on this machine.
        method: the path of the method, such as "/inference.GRPCInferenceService/ModelInfer".
        message: the serialised request.
    """

    def __init__(self, port: int, method: str, message: bytes) -> None:
        self._port = port
        # Indexed names of the static table: 3 POST, 6 http, 4 :path, 1 :authority, 31 content-type. None is kept.
        self._headers = (
            b"\x83\x86\x04" + _text(method) + b"\x01" + _text(f"127.0.0.1:{port}") + b"\x0f\x10"
            + _text("application/grpc") + b"\x00" + _text("te") + _text("trailers")
        )  # fmt: skip
        self._body = b"\0" + struct.pack(">I", len(message)) + message
        self._socket: socket.socket | None = None

    def __call__(self) -> tuple[int, bytes]:
        """Make the call once, over a new connection after an error.

        Returns:
            200 and the serialised answer.

        Raises:
            ConnectionError: the server answered without a message, or closed the connection.
        """
        if self._socket is None or self._stream > _MOST_STREAMS or self._received > _MOST_BYTES:
            self._connect()
        assert self._socket is not None
        try:
            self._stream += 2
            request = _frame(_HEADERS, _END_HEADERS, self._stream, self._headers)
            while self._window < len(self._body):
                self._next()
            self._window -= len(self._body)
            self._socket.sendall(request + _frame(_DATA, _END_STREAM, self._stream, self._body))
            return 200, self._answer()
        except OSError:
            self._close()
            raise

    def _connect(self) -> None:
        self._close()
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer, self._stream, self._window, self._received = b"", -1, _FIRST_WINDOW, 0
        settings = struct.pack(">HI", 4, _LARGEST_WINDOW)  # SETTINGS_INITIAL_WINDOW_SIZE
        larger = struct.pack(">I", _LARGEST_WINDOW - _FIRST_WINDOW)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0, settings) + _frame(_WINDOW, 0, 0, larger))

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _answer(self) -> bytes:
        """The message of the stream."""
        data = trailers = b""
        while True:
            kind, flags, stream, payload = self._next()
            if stream != self._stream:
                continue
            if kind == _DATA:
                data += payload
            elif kind == _HEADERS:
                trailers = payload
            elif kind == _RESET:
                raise ConnectionError("the server reset the stream")
            if flags & _END_STREAM and kind in (_DATA, _HEADERS):
                if len(data) < 5:
                    raise ConnectionError(f"no message: {trailers!r}")
                return data[5:]

    def _next(self) -> tuple[int, int, int, bytes]:
        """Read a frame, and answer what the connection needs."""
        assert self._socket is not None
        head = self._read(9)
        size = int.from_bytes(head[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", head[3:])
        payload = self._read(size)
        self._received += size
        if kind == _SETTINGS and not flags & _ACK:
            self._socket.sendall(_frame(_SETTINGS, _ACK, 0))
        elif kind == _PING and not flags & _ACK:
            self._socket.sendall(_frame(_PING, _ACK, 0, payload))
        elif kind == _WINDOW and stream == 0:
            self._window += int.from_bytes(payload, "big")
        elif kind == _GO_AWAY:
            raise ConnectionError("the server closes the connection")
        return kind, flags, stream, payload

    def _read(self, size: int) -> bytes:
        assert self._socket is not None
        while len(self._buffer) < size:
            found = self._socket.recv(1 << 16)
            if not found:
                raise ConnectionError("the server closed the connection")
            self._buffer += found
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        return taken
