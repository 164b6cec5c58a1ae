"""Which adapter a name means now, and who still answers with an earlier one."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME


@dataclass
class AdapterVersion:
    """One adapter as it was loaded once, or the base.

    Attributes:
        name: what clients call it.
        internal: what PEFT calls it: no two versions share that.
        alone: why its rows cannot share a batch with other adapters' rows; None if they can.
        users: requests that are answered by it.
    """

    name: str
    internal_name: str
    path: str | None = None
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    num_requests: int = 0


class AdapterRegistry:
    """Names of models to versions; used by the event loop and by the engine's thread."""

    def __init__(self, base_name: str, adapters: list[AdapterVersion]) -> None:
        self.base, self.base_names = (
            AdapterVersion(BASE_ADAPTER_NAME, BASE_ADAPTER_NAME),
            [BASE_ADAPTER_NAME, base_name],
        )
        self._active = {one.name: one for one in adapters}
        self._retired: list[AdapterVersion] = []
        self._lock, self._count = threading.Lock(), 0

    def list_names(self) -> list[str]:
        """What may stand under `model`: adapters, then the base's names."""
        with self._lock:
            return [*self._active, *dict.fromkeys(self.base_names)]

    def find_version(self, name: str) -> AdapterVersion | None:
        """The version that `name` means now."""
        with self._lock:
            return self._active.get(name) or (self.base if name in self.base_names else None)

    def list_adapters(self) -> list[AdapterVersion]:
        """All that are served under a name now."""
        with self._lock:
            return list(self._active.values())

    def acquire(self, name: str) -> AdapterVersion | None:
        """The version that `name` means now, which is kept until it is `left`."""
        with self._lock:
            found = self._active.get(name) or (self.base if name in self.base_names else None)
            if found:
                found.num_requests += 1
            return found

    def release_version(self, version: AdapterVersion) -> None:
        """One request fewer is answered by it."""
        with self._lock:
            version.num_requests -= 1

    def make_internal_name(self, name: str, known: Any) -> str:
        """A name for PEFT that is none of those it knows."""
        with self._lock:
            while True:
                self._count += 1
                found = f"{name.replace('.', '_')}__{self._count}"
                if found not in known:
                    return found

    def serve_adapter(self, version: AdapterVersion) -> None:
        """From now on its name means this version."""
        with self._lock:
            self._retire(self._active.get(version.name))
            self._active[version.name] = version

    def remove_adapter(self, name: str) -> AdapterVersion | None:
        """From now on the name means nothing; what it meant, if it meant an adapter."""
        with self._lock:
            found = self._active.pop(name, None)
            self._retire(found)
            return found

    def pop_evictable(self) -> list[AdapterVersion]:
        """Versions that no name means and nobody uses; each is told once."""
        with self._lock:
            found = [one for one in self._retired if one.num_requests == 0]
            self._retired = [one for one in self._retired if one.num_requests]
            return found

    def _retire(self, version: AdapterVersion | None) -> None:
        if version:
            self._retired.append(version)
