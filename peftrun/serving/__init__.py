"""One base that answers over HTTP, each request by its own adapter."""
