"""The client: the same protocol machine under a blocking and an asyncio face."""
