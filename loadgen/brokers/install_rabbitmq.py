"""RabbitMQ with its own Erlang and C library in one private folder, without root.

The packages come from a newer Debian suite than the machine's, by an apt configuration that reads and writes
only inside the folder. Each ELF program is moved to `.elf/` beside itself and replaced by a two-line script
that runs it with the dynamic loader and the libraries that were downloaded with it. All paths in these are
relative, so the folder can be renamed when it is finished.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from loadgen.brokers import install, process
from loadgen.errors import BrokerError, HostError

if TYPE_CHECKING:
    from loadgen.brokers.state import Progress

SUITE = "forky"  # the first Debian with RabbitMQ 4.3; what it had on the day is recorded as installed
VERSION_MIN = (4, 3)
NAME = f"rabbitmq-{SUITE}"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
APT_TIMEOUT_S = 900.0
# What is taken of the packages that apt would install. The rest (perl, systemd, python ...) serves maintainer
# scripts only; that no library is missing is checked at the end.
WANTED = re.compile(
    r"rabbitmq-server|erlang-.*|libc6|libgcc-s1|libstdc\+\+6|libtinfo6|zlib1g|libzstd1|libssl3t64|libsystemd0"
    r"|libcap2|liblzma5|libsctp1"
)
UNWANTED_DIRS = ("doc", "man", "lintian", "gdb", "locale")
ELF_64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
PT_INTERP = 3

APT_CONF = """\
Dir::State "{apt}/state";
Dir::State::lists "{apt}/lists";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}/cache";
Dir::Log "{apt}/log";
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "{apt}/sources";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::Retries "3";
APT::Sandbox::User "";
APT::Install-Recommends "0";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear APT::Default-Release;
"""

WRAPPER = """\
#!/bin/sh
d=${{0%/*}}
exec "$d/{libs}/{loader}" --inhibit-cache --library-path "$d/{libs}" --argv0 "$0" "$d/.elf/{name}" "$@"
"""

# Debian's own `erl` has /usr/lib/erlang written into it.
ERL = """\
#!/bin/sh
ROOTDIR=$(cd -P -- "${{0%/*}}/{up}" && pwd) || exit 1
BINDIR=$ROOTDIR/{erts}/bin EMU=beam PROGNAME=erl
export ROOTDIR BINDIR EMU PROGNAME
exec "$BINDIR/erlexec" "$@"
"""

EPMD = """\
#!/bin/sh
exec "${{0%/*}}/../{erts}/bin/epmd" "$@"
"""


def ensure(cache: Path, progress: Progress) -> install.Installation:
    """Finds RabbitMQ in the cache or installs it there."""
    if found := install.find(NAME, cache):
        return found
    check_path(cache)
    for program, package in (("apt-get", "apt"), ("dpkg-deb", "dpkg")):
        install.need_program(program, what="installing RabbitMQ", package=package)
    return install.ensure(NAME, cache, _build, progress)


def check_path(folder: Path) -> None:
    """Refuses a path that RabbitMQ's scripts cannot bear: they do not quote it, and `:` separates paths."""
    if not re.fullmatch(r"[\w./@%+,=-]+", str(folder)):
        raise HostError(
            f"RabbitMQ cannot run from {folder}: blanks and the characters : ; are not allowed in its path; "
            "set LOADGEN_BROKERS_DIR and LOADGEN_CACHE_DIR to others"
        )


def home(installation: Path) -> Path:
    """RABBITMQ_HOME: the folder with sbin, escript and plugins."""
    found = sorted((installation / "root/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"))
    if not found:
        raise BrokerError(f"no RabbitMQ in {installation}: delete that folder, and it is installed again")
    return found[-1]


def erlang_bin(installation: Path) -> Path:
    """The folder with erl and epmd."""
    return installation / "root/usr/lib/erlang/bin"


def _build(folder: Path, progress: Progress) -> dict[str, str]:
    apt = folder / "apt"
    packages = folder / "packages"
    packages.mkdir()
    progress(f"RabbitMQ: reading the package lists of Debian {SUITE} (apt, private to {folder.parent})")
    options = _private_apt(apt)
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    environment.pop("APT_CONFIG", None)

    def apt_get(*arguments: str) -> str:
        return process.run(
            ["apt-get", *options, *arguments],
            what=f"apt-get {arguments[0]} for RabbitMQ (Debian {SUITE})",
            timeout_s=APT_TIMEOUT_S,
            environment=environment,
            cwd=packages,
        )

    apt_get("update")
    simulated = apt_get("install", "--simulate", "rabbitmq-server")
    versions = {
        name: version
        for name, version in re.findall(r"^Inst (\S+) \((\S+)", simulated, re.MULTILINE)
        if WANTED.fullmatch(name)
    }
    progress(f"RabbitMQ: downloading {len(versions)} packages, about 53 MB")
    apt_get("download", *(f"{name}={version}" for name, version in versions.items()))
    _unpack(packages, folder / "root", wanted=len(versions), progress=progress)
    _make_runnable(folder / "root")
    shutil.rmtree(apt)
    shutil.rmtree(packages)
    version = home(folder).name.partition("-")[2]
    if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
        needed = ".".join(map(str, VERSION_MIN))
        raise BrokerError(f"Debian {SUITE} on this machine's mirror has RabbitMQ {version}, >= {needed} is needed")
    progress(f"RabbitMQ: {version}, Erlang {versions.get('erlang-base', '?')}")
    return {"rabbitmq": version, **versions}


def _debian_mirror() -> str:
    # Not `apt-get indextargets`, which says nothing before the machine's own `apt-get update` has run. This
    # prints addresses, fetches nothing and needs no root.
    printed = process.run(["apt-get", "update", "--print-uris"], what="reading apt's sources", timeout_s=60)
    # A codename without -updates or -security; other vendors' repositories rarely end in /debian.
    mirrors: list[str] = re.findall(r"^'(\S+)/dists/[a-z]+/main/binary-", printed, re.MULTILINE)
    mirrors.sort(key=lambda mirror: not mirror.endswith("/debian"))
    if not mirrors:
        raise HostError(
            "no Debian mirror among this machine's apt sources, so RabbitMQ cannot be installed: "
            "use --brokers docker, or the URL of a running broker"
        )
    return mirrors[0]


def _private_apt(apt: Path) -> list[str]:
    for name in ("lists/partial", "cache/archives/partial", "state", "sources", "log"):
        (apt / name).mkdir(parents=True)
    (apt / "status").write_text("", encoding="ascii")  # nothing is installed: apt resolves all that is needed
    source = f"Types: deb\nURIs: {_debian_mirror()}\nSuites: {SUITE}\nComponents: main\n"
    signed = f"Signed-By: {KEYRING}\n" if KEYRING.exists() else ""
    (apt / "sources/debian.sources").write_text(source + signed, encoding="utf-8")
    # Read after /etc/apt/apt.conf.d: the machine's proxy settings stay, these win.
    (apt / "apt.conf").write_text(APT_CONF.format(apt=apt), encoding="utf-8")
    return ["-q", "-c", str(apt / "apt.conf")]


def _unpack(packages: Path, root: Path, *, wanted: int, progress: Progress) -> None:
    files = sorted(packages.glob("*.deb"))
    if not files or len(files) != wanted:
        raise BrokerError(f"apt-get downloaded {len(files)} of {wanted} packages: try again")
    progress(f"RabbitMQ: unpacking {len(files)} packages")
    root.mkdir()
    for file in files:
        process.run(["dpkg-deb", "-x", file, root], what=f"unpacking {file.name}", timeout_s=120)
    for name in UNWANTED_DIRS:
        shutil.rmtree(root / "usr/share" / name, ignore_errors=True)


def _make_runnable(root: Path) -> None:
    loader = next((p for d in ("usr/lib", "lib") for p in root.glob(f"{d}/*/ld-linux-*.so.*")), None)
    if loader is None:
        raise BrokerError("the packages hold no dynamic loader for this machine's architecture")
    libraries, erlang = loader.parent, root / "usr/lib/erlang"
    erts = next(erlang.glob("erts-*"))
    programs = []
    for path in sorted(erlang.rglob("*")):
        if path.is_symlink() or not path.is_file() or not os.access(path, os.X_OK) or not _is_program(path):
            continue
        real = path.parent / ".elf" / path.name
        real.parent.mkdir(exist_ok=True)
        path.rename(real)
        relative = os.path.relpath(libraries, path.parent)
        _write_script(path, WRAPPER.format(libs=relative, loader=loader.name, name=path.name))
        programs.append(real)
    for folder, up in ((erlang / "bin", ".."), (erts / "bin", "../..")):
        _write_script(folder / "erl", ERL.format(up=up, erts=erts.name))
    _write_script(erlang / "bin/epmd", EPMD.format(erts=erts.name))
    _check_libraries(loader, [*programs, *(path for path in erlang.rglob("*.so") if path.is_file())])


def _check_libraries(loader: Path, files: list[Path]) -> None:
    for file in files:
        listed = process.run(
            [loader, "--inhibit-cache", "--library-path", loader.parent, "--list", file],
            what=f"looking for the libraries of {file.name}",
            timeout_s=30,
        )
        outside = [line.strip() for line in listed.splitlines() if "=>" in line and f"=> {loader.parent}/" not in line]
        if outside:
            raise BrokerError(f"{file.name} needs libraries that were not downloaded: {', '.join(outside)}")


def _is_program(path: Path) -> bool:
    # An ELF file with a dynamic loader named in it (64 bits, little-endian: every Debian that has RabbitMQ
    # 4).
    with path.open("rb") as file:
        head = file.read(4096)
    if not head.startswith(ELF_64_LITTLE_ENDIAN):
        return False
    table = int.from_bytes(head[32:40], "little")
    entry_bytes, entries = int.from_bytes(head[54:56], "little"), int.from_bytes(head[56:58], "little")
    offsets = range(table, table + entry_bytes * entries, entry_bytes)
    return any(int.from_bytes(head[offset : offset + 4], "little") == PT_INTERP for offset in offsets)


def _write_script(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="ascii")
    path.chmod(0o755)
