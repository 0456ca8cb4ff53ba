"""Sessions over ZeroMQ: codec (wire), state machine (protocol, table), sockets (broker, client)."""
