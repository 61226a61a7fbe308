# SPDX-License-Identifier: GPL-2.0-only
"""How the lab's kernels are configured, and how that differs from arm64's defconfig.

A kernel starts from what defconfig sets in the directories that KVM, memory
management and the scheduler are in; everything else has its default, which leaves
the drivers out. The fragments in config/ come on top.
"""

import fnmatch
import os
import pathlib
import re
import tempfile

from common import CACHE, LAB, LabError, output, say

FRAGMENTS = LAB / "config"
# A variant is named after its granule and what is different about it, such as
# 4k-norust, 64k-debug or 4k-trace-nohelper: "gcc" is the compiler, "norust" and
# "nohelper" leave something out, and any other word is a fragment.
WITHOUT = ("rust", "helper")
# Words of a variant that need no fragment.
NO_FRAGMENT = ("4k", "gcc", *(f"no{name}" for name in WITHOUT))

# Where the options are declared that defconfig decides about.
KCONFIG = [
    *("arch/Kconfig", "arch/arm64/Kconfig", "arch/arm64/Kconfig.debug"),
    *("arch/arm64/kvm/**/Kconfig", "init/Kconfig*", "kernel/**/Kconfig*"),
    *("mm/Kconfig*", "virt/**/Kconfig"),
]
# Sources whose options are compared with defconfig.
COMPARED = ["arch/arm64", "kernel", "mm", "virt/kvm"]
NOT_COMPARED = ["arch/arm64/boot", "arch/arm64/configs", "arch/arm64/crypto", "kernel/configs"]

OPTION = re.compile(r"(?:# )?CONFIG_(\w+)(?:=(.*)| is not set)")


def compiler(variant):
    """Returns the words for make that choose the compiler of a variant."""
    return ["CROSS_COMPILE=aarch64-linux-gnu-"] if variant.endswith("-gcc") else ["LLVM=1"]


def fragments(variant):
    """Returns the configuration fragments of a variant, in order."""
    words = variant.split("-")
    names = ["kernel", *(["rust"] if "norust" not in words else [])]
    names += ["helper"] if not {"norust", "nohelper"} & set(words) else []
    paths = [FRAGMENTS / f"{name}.config" for name in names]
    return paths + [FRAGMENTS / f"{word}.config" for word in words if word not in NO_FRAGMENT]


def kind(variant):
    """Returns what variants have in common that differ so little that one's build is a start for
    another."""
    return re.sub(rf"-no({'|'.join(WITHOUT)})$", "", variant)


def text(variant):
    """Returns the fragments of a variant as one."""
    return "".join(path.read_text() for path in fragments(variant))


def read(path):
    """Returns the options of a .config that are set, with their values."""
    lines = map(OPTION.fullmatch, path.read_text().splitlines())
    return {match[1]: match[2] for match in lines if match and match[2]}


def defaults(tree):
    """Returns the lines of arm64's defconfig that are about the kernel itself."""
    declared = set()
    for path in [path for pattern in KCONFIG for path in tree.glob(pattern)]:
        declared.update(re.findall(r"^\s*(?:menu)?config (\w+)", path.read_text(), re.MULTILINE))
    lines = (tree / "arch/arm64/configs/defconfig").read_text().splitlines()
    kept = [line for line in lines if (match := OPTION.fullmatch(line)) and match[1] in declared]
    return "".join(f"{line}\n" for line in kept)


def configure(tree, build, variant, target, text, **environment):
    """Has the tree configure a build by a target of make, and then by lines that come on top."""
    words = ["make", "-s", "-C", tree, "ARCH=arm64", *compiler(variant), f"O={build}"]
    output([*words, target], env=os.environ | environment)
    with open(build / ".config", "a", encoding="ascii") as file:
        file.write(text)
    output([*words, "olddefconfig"])


def write(tree, build, variant):
    """Writes .config, as far as the tree offers what the fragments ask for."""
    say(f"configuring the {variant} kernel")
    start = build / "kvm-userfault.defaults"
    start.write_text(defaults(tree))
    configure(tree, build, variant, "alldefconfig", text(variant), KCONFIG_ALLCONFIG=str(start))


def bring_up_to_date(tree, build, variant):
    """Writes .config if it is not up to date; fails if the tree does not offer something."""
    stamp = build / ".kvm-userfault-config"
    key = defaults(tree) + text(variant)
    if stamp.exists() and stamp.read_text() == key and (build / ".config").exists():
        return
    build.mkdir(parents=True, exist_ok=True)
    stamp.unlink(missing_ok=True)
    write(tree, build, variant)
    check(build, variant)
    stamp.write_text(key)


def check(build, variant):
    """Fails if the tree does not offer what a variant is to have."""
    lines = map(OPTION.fullmatch, text(variant).splitlines())
    # A later fragment overrides an earlier one.
    asked = {match[1]: match[2] for match in lines if match}
    have = read(build / ".config")
    missing = [name for name, value in asked.items() if value and have.get(name) != value]
    if missing:
        raise LabError(
            f"the tree does not offer what the {variant} kernel is to have: {', '.join(missing)}."
            " See scripts/lab/config, and 'make rustavailable' for CONFIG_RUST."
        )


def has(build, option):
    """Says whether a kernel was built with an option."""
    return read(build / ".config").get(option) == "y"


def looked_at(tree):
    """Returns the options that the compared sources look at."""
    paths = [*COMPARED, *(f":!{path}" for path in NOT_COMPARED)]
    words = ["git", "-C", tree, "grep", "-ohE", r"\bCONFIG_\w+", "--", *paths]
    names = output(words).split()
    return sorted({name.removeprefix("CONFIG_").removesuffix("_MODULE") for name in names})


def defconfig(tree, variant):
    """Returns the options of arm64's defconfig, with the granule of a variant."""
    granule = FRAGMENTS / f"{variant.partition('-')[0]}.config"
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        build = pathlib.Path(scratch)
        text = granule.read_text() if granule.exists() else ""
        configure(tree, build, variant, "defconfig", text)
        return read(build / ".config")


def differences(tree, build, variant):
    """Returns how a kernel that is configured differs from defconfig, as lists of the option, its
    value there and here, and the reason, which may be missing."""
    ours, theirs = read(build / ".config"), defconfig(tree, variant)
    reasons = re.findall(r"^# differs: ([^:]+): (.+)$", text(variant), re.MULTILINE)
    found = []
    for name in looked_at(tree):
        values = [one.get(name, "n") for one in (theirs, ours)]
        if values[0] != values[1]:
            because = (
                why
                for patterns, why in reasons
                if any(fnmatch.fnmatch(name, pattern) for pattern in patterns.split())
            )
            found.append((name, *values, next(because, "")))
    return found
