"""A directory that all replicas of a server share: a mount of SeaweedFS's filer, where there is no NFS or Lustre."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from hpcstress.errors import Refusal
from hpcstress.servers.deployment import Deployment
from hpcstress.servers.objects import Objects
from hpcstress.servers.part import Recipe, inherited

_DEVICE = "/dev/fuse"
_NAME = "shared"
_INSTEAD = "or name a directory on the site's NFS or Lustre by shared=/path"


def lacking() -> str | None:
    """Return why nothing can be mounted on this machine, as a sentence; None if something can."""
    if not os.access(_DEVICE, os.R_OK | os.W_OK):
        what = "has no" if not Path(_DEVICE).exists() else "does not let this user open"
        return f"A directory cannot be mounted here because this machine {what} {_DEVICE}: load fuse, {_INSTEAD}."
    if shutil.which("fusermount3") is None:
        return (
            "A directory cannot be mounted here because fusermount3 is missing: "
            f"install it (apt-get install fuse3), {_INSTEAD}."
        )
    return None


def mount(site: Deployment, kept: Objects) -> Path:
    """Mount the filer of an object store; return the directory. Whatever ends it, nothing stays mounted."""
    if sentence := lacking():
        raise Refusal(sentence)
    place = site.folder / "mount" / _NAME
    site.add(
        "mount",
        Recipe(
            command=(
                *(str(kept.program), "-logtostderr=true", "mount", f"-filer={kept.filer}", f"-dir={_NAME}"),
                *("-filer.path=/shared", "-cacheDir=cache", "-allowOthers=false", "-localSocket=mount.sock"),
            ),
            before=(("mkdir", _NAME, "cache"),),
            ready=lambda _: place.is_mount(),
            environment={**inherited(os.environ), "HOME": str(site.folder)},
            # It unmounts itself if it is asked in time, and nobody has a file open. A mount without its program is an
            # error to everybody who looks there.
            after=(("fusermount3", "-u", "-z", "-q", str(place)),),
            stamp=f"SeaweedFS {kept.program.parent.parent.name}",
        ),
    )
    return place


def site_directory(path: str) -> Path:
    """Return a directory that a site shares among its nodes; refuse one that cannot be written."""
    directory = Path(path)
    if not directory.is_absolute():
        raise Refusal(f"shared={path} has to be the absolute path of a directory that all replicas see.")
    if not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        raise Refusal(f"shared={path} is no directory that can be written: make it, or give another one.")
    return directory.resolve()
