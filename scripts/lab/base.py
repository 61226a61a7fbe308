# SPDX-License-Identifier: GPL-2.0-only
"""The base: the kernel source that the series is on, as patches/base pins it."""

import hashlib
import os
import re
import shutil

from common import CACHE, PATCHES, LabError
from common import output, read_fields, say, step, succeeds, write_if_changed

SOURCES = CACHE / "sources"


def keys(fields):
    """Returns the keys of patches/base: where the source is from, its git tree, and where the
    series is meant to go."""
    source = ["commit"] if "commit" in fields else ["package", "version", "sha256"]
    return ["release", *source, "tree", "remote", "branch"]


def pinned():
    """Returns what patches/base says."""
    fields = read_fields(PATCHES / "base")
    for key in keys(fields):
        if key not in fields:
            raise LabError(f"{PATCHES / 'base'} has no line '{key}:'")
    return fields


def pin(fields, path=None):
    """Writes what describes a base, as patches/base by default."""
    lines = ["# The kernel source that this series is on, and where it is meant to go."]
    lines += [f"{key}: {fields[key]}" for key in keys(fields)]
    write_if_changed(path or PATCHES / "base", "\n".join(lines) + "\n")


def sha256(path):
    """Returns a file's checksum."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def development_archive():
    """Returns apt's options for unstable and experimental, of which the toolchain knows nothing."""
    targets = ["apt-get", "indextargets", "--format", "$(ORIGIN)/$(LABEL) $(REPO_URI)"]
    mirrors = re.findall(r"^Debian/Debian (\S+)$", output(targets), re.MULTILINE)
    if not mirrors:
        raise LabError("apt knows no mirror of Debian here; run without --host-tools")
    folder = CACHE / "apt"
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    suites = [f"deb {mirrors[0]} {suite} main\n" for suite in ("unstable", "experimental")]
    write_if_changed(folder / "sources.list", "".join(suites))
    lists = [f"-oDir::Etc::SourceList={folder}/sources.list", "-oDir::Etc::SourceParts=-"]
    return [*lists, f"-oDir::State::Lists={folder}/lists"]


def candidates(*options):
    """Returns the kernel source packages that the archive has today, as (name, version)."""
    update = ["apt-get", "-q", *options, "update"]
    step("reading the archive's package lists", update, "apt-update")
    search = ["apt-cache", *options, "search", "--names-only", r"^linux-source-[0-9.]+$"]
    names = [line.split()[0] for line in output(search).splitlines()]
    lines = output(["apt-cache", *options, "madison", *names]).splitlines() if names else []
    return list(dict.fromkeys(tuple(line.replace("|", " ").split()[:2]) for line in lines))


def nearest(base, found):
    """Returns the package nearest to the pinned one: the next newer, else the newest."""
    if not found:
        raise LabError("the archive has no linux-source package; is the network there?")
    names = {version: (name, version) for name, version in found}
    versions = "\n".join([base["version"], *names])
    order = output(["sort", "--version-sort", "--unique"], input=versions).split()
    newer = order[order.index(base["version"]) + 1 :]
    return names[newer[0] if newer else order[-2]]


def unpack(package, destination):
    """Unpacks the kernel tree of a source package into an empty directory."""
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir(parents=True)
    # The package holds an archive of the tree, which is not kept.
    script = (
        'dpkg --fsys-tarfile "$0" | tar -xO --wildcards "./usr/src/linux-source-*.tar.*" |'
        ' tar -C "$1" --strip-components=1 -xJf -'
    )
    command = ["bash", "-o", "pipefail", "-ec", script, package, destination]
    step("unpacking the kernel source", command, "unpack-source")
    # Debian's own rules hide every new file from 'git status'.
    ignore = destination / ".gitignore"
    text = ignore.read_text()
    ignore.write_text(re.sub(r"\n#\n# Debian packaging:.*", "\n", text, flags=re.DOTALL))


def fetch():
    """Downloads the base, or the nearest there is, and returns (package file, name, version)."""
    base = pinned()
    wanted = name, version = base["package"], base["version"]
    target = SOURCES / f"{name}_{version}.deb"
    if target.exists() and sha256(target) == base["sha256"]:
        return target, name, version
    found = candidates()
    if wanted not in found:
        name, version = nearest(base, found)
        say(f"{' '.join(wanted)} has left the archive; taking the nearest, {name} {version}")
        target = SOURCES / f"{name}_{version}.deb"
    download(name, version, target)
    if (name, version) == wanted and sha256(target) != base["sha256"]:
        target.unlink()
        raise LabError(
            f"{name} {version} does not have the checksum that patches/base states;"
            " the download is deleted. Check the mirror, then run this again."
        )
    return target, name, version


def find(release):
    """Returns Debian's source package of a release, as (name, version, apt's options)."""
    # apt knows the mirrors as soon as it has read the release's own lists.
    for archive in (tuple, development_archive):
        options = archive()
        for name, version in candidates(*options):
            if version.split("-")[0] == release.replace("-rc", "~rc"):
                return name, version, options
    raise LabError(f"Debian has no kernel source {release}.\nName one that it has, as 7.3-rc7.")


def download(name, version, target, *options):
    """Downloads a package; what an interruption leaves is started anew."""
    if target.exists() and succeeds(["dpkg", "-I", target]):
        return
    scratch = SOURCES / "download"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    # apt drops to its own user for downloads, who cannot write here.
    command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", *options, "download"]
    command.append(f"{name}={version}")
    step(f"downloading {name} {version}", command, "download", cwd=scratch)
    (package,) = scratch.glob("*.deb")
    os.replace(package, target)
    shutil.rmtree(scratch)
