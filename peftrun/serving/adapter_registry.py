"""Which adapter a name means now, and who still answers with an earlier one."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any

from peftrun.artifacts.prompts_file import BASE


@dataclass
class Version:
    """One adapter as it was loaded once, or the base.

    Attributes:
        name: what clients call it.
        internal: what PEFT calls it: no two versions share that.
        alone: why its rows cannot share a batch with other adapters' rows; None if they can.
        users: requests that are answered by it.
    """

    name: str
    internal: str
    path: str | None = None
    alone: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    users: int = 0


class Versions:
    """Names of models to versions; used by the event loop and by the engine's thread."""

    def __init__(self, base_name: str, adapters: list[Version]) -> None:
        self.base, self.base_names = Version(BASE, BASE), [BASE, base_name]
        self._named = {one.name: one for one in adapters}
        self._retired: list[Version] = []
        self._lock, self._count = threading.Lock(), 0

    def names(self) -> list[str]:
        """What may stand under `model`: adapters, then the base's names."""
        with self._lock:
            return [*self._named, *dict.fromkeys(self.base_names)]

    def find(self, name: str) -> Version | None:
        """The version that `name` means now."""
        with self._lock:
            return self._named.get(name) or (self.base if name in self.base_names else None)

    def adapters(self) -> list[Version]:
        """All that are served under a name now."""
        with self._lock:
            return list(self._named.values())

    def taken(self, name: str) -> Version | None:
        """The version that `name` means now, which is kept until it is `left`."""
        with self._lock:
            found = self._named.get(name) or (self.base if name in self.base_names else None)
            if found:
                found.users += 1
            return found

    def left(self, version: Version) -> None:
        """One request fewer is answered by it."""
        with self._lock:
            version.users -= 1

    def internal_for(self, name: str, known: Any) -> str:
        """A name for PEFT that is none of those it knows."""
        with self._lock:
            while True:
                self._count += 1
                found = f"{name.replace('.', '_')}__{self._count}"
                if found not in known:
                    return found

    def put(self, version: Version) -> None:
        """From now on its name means this version."""
        with self._lock:
            self._retire(self._named.get(version.name))
            self._named[version.name] = version

    def removed(self, name: str) -> Version | None:
        """From now on the name means nothing; what it meant, if it meant an adapter."""
        with self._lock:
            found = self._named.pop(name, None)
            self._retire(found)
            return found

    def free(self) -> list[Version]:
        """Versions that no name means and nobody uses; each is told once."""
        with self._lock:
            found = [one for one in self._retired if one.users == 0]
            self._retired = [one for one in self._retired if one.users]
            return found

    def _retire(self, version: Version | None) -> None:
        if version:
            self._retired.append(version)
