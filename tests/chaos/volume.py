"""Makes a small file system in a file, which can be filled: for a full disk."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path


class Volume:
    """A file system of `megabytes`, mounted at `path`. Needs root and a free loop device."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._image, self.path = folder / "image", folder / "volume"
        with self._image.open("wb") as image:
            image.truncate(megabytes * 2**20)
        self.path.mkdir()
        self._run("mkfs.ext4", "-q", str(self._image))
        self._run("mount", "-o", "loop", str(self._image), str(self.path))
        self.path.chmod(0o755)
        folder.chmod(0o755)

    def fill(self) -> None:
        """Fills it until no space is left."""
        with (self.path / "ballast").open("wb") as ballast:
            size = 0
            for step in (2**24, 2**20, 2**16, 2**12):
                with contextlib.suppress(OSError):
                    while True:
                        os.posix_fallocate(ballast.fileno(), size, step)
                        size += step

    def free(self) -> None:
        (self.path / "ballast").unlink()

    def remove(self) -> None:
        self._run("umount", "--lazy", str(self.path))

    def _run(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)
