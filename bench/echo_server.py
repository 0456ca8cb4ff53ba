"""A bare ROUTER that sends every message back: what a round trip costs without a service.

python bench/echo_server.py ADDRESS; prints the actual address, ends on SIGTERM.
"""

from __future__ import annotations

import sys

import zmq


def main(bind: str) -> None:
    sock = zmq.Context().socket(zmq.ROUTER)
    sock.linger = 0
    sock.bind(bind)
    print(sock.get_string(zmq.LAST_ENDPOINT), flush=True)
    while True:
        sock.send_multipart(sock.recv_multipart())


if __name__ == "__main__":
    main(sys.argv[1])
