"""Exports adapters for other programs: the Hub, vLLM, llama.cpp. Light."""
