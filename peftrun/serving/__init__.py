"""The HTTP server of action=serve: OpenAI's API, continuous batching over many adapters."""
