"""The agent: runs on foreign machines inside the engine's image. Standard library and aiohttp only; nothing of ours."""

VERSION = "0.1.0"
