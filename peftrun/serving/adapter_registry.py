"""Which adapter version each served name refers to, and which versions still have requests."""

import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field

from peftrun.artifacts.prompts_file import BASE_ADAPTER_NAME


@dataclass
class AdapterVersion:
    """One load of an adapter, or the base model.

    Attributes:
        name: the model's name for clients.
        internal_name: the adapter's name in PEFT, different for every version.
        alone: why its rows cannot share a batch with rows of other adapters; None if they can.
        created: Unix time of the load, seconds.
        num_requests: requests that it is answering.
    """

    name: str
    internal_name: str
    path: str | None = None
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    num_requests: int = 0


class AdapterRegistry:
    """Served names → adapter versions. Safe to use from the event loop and from the engine's thread."""

    def __init__(self, base_name: str, adapters: list[AdapterVersion]) -> None:
        self.base = AdapterVersion(BASE_ADAPTER_NAME, BASE_ADAPTER_NAME)
        self.base_names = [BASE_ADAPTER_NAME, base_name]
        self._active = {version.name: version for version in adapters}
        self._retired: list[AdapterVersion] = []  # removed or replaced, but still in the model
        self._lock, self._count = threading.Lock(), 0

    def list_names(self) -> list[str]:
        """Valid values of `model` in a request: adapters, then the base model's names."""
        with self._lock:
            return [*self._active, *dict.fromkeys(self.base_names)]

    def find_version(self, name: str) -> AdapterVersion | None:
        """The version that `name` refers to now."""
        with self._lock:
            return self._active.get(name) or (self.base if name in self.base_names else None)

    def list_adapters(self) -> list[AdapterVersion]:
        """All adapters that are served now."""
        with self._lock:
            return list(self._active.values())

    def acquire(self, name: str) -> AdapterVersion | None:
        """The version that `name` refers to now; it stays in the model until `release_version` is called for it."""
        # Looked up and counted under one lock, so that the version cannot be evicted in between.
        with self._lock:
            version = self._active.get(name) or (self.base if name in self.base_names else None)
            if version:
                version.num_requests += 1
            return version

    def release_version(self, version: AdapterVersion) -> None:
        """Ends what `acquire` began."""
        with self._lock:
            version.num_requests -= 1

    def make_internal_name(self, name: str, used_names: Collection[str]) -> str:
        """A name for PEFT that is not among `used_names`."""
        with self._lock:
            while True:
                self._count += 1
                # PEFT makes a module of each name, and torch allows no dots in the names of modules.
                internal_name = f"{name.replace('.', '_')}__{self._count}"
                if internal_name not in used_names:
                    return internal_name

    def serve_adapter(self, version: AdapterVersion) -> None:
        """Makes the version's name refer to it; a version that it replaces is retired."""
        with self._lock:
            self._retire(self._active.get(version.name))
            self._active[version.name] = version

    def remove_adapter(self, name: str) -> AdapterVersion | None:
        """Retires the version that `name` refers to, and returns it; None if there is no adapter of this name."""
        with self._lock:
            version = self._active.pop(name, None)
            self._retire(version)
            return version

    def pop_evictable(self) -> list[AdapterVersion]:
        """Retired versions without requests; each is returned once."""
        with self._lock:
            evictable = [version for version in self._retired if version.num_requests == 0]
            self._retired = [version for version in self._retired if version.num_requests]
            return evictable

    def _retire(self, version: AdapterVersion | None) -> None:
        if version:
            self._retired.append(version)
