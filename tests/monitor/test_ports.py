import os
import socket

from harness.monitor.ports import free_row, holder, is_free


def test_taken_and_by_whom() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
        owner = holder(port)
        assert owner is not None and f"(pid {os.getpid()})" in owner
    assert is_free(port)
    assert holder(port) is None


def test_an_address_of_all_interfaces_takes_loopback_too() -> None:
    with socket.socket() as server:
        server.bind(("0.0.0.0", 0))
        server.listen()
        assert not is_free(server.getsockname()[1])


def test_ended_connections_do_not_hold_a_port() -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            server.accept()[0].close()  # the side that closes first keeps the port in TIME_WAIT
    assert is_free(port)


def test_a_row_of_free_ports() -> None:
    first = free_row(4)
    assert all(is_free(port) for port in range(first, first + 4))
