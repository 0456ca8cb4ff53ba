"""Sessions over ZeroMQ: the codec, and under it server and client, each a pure machine."""
