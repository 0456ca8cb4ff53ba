"""The server: a pure machine of messages, the journal under it, a socket around it."""
