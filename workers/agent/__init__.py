"""The agent: runs on foreign machines inside the engine's image. Standard library and aiohttp only; nothing of ours."""
