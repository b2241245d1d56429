"""Images and containers, in a store of their own, without any registry."""

import os
import platform
import shutil
import subprocess

from files import DOCKERFILE, REPOSITORY
from machine import PROGRAM

IMAGE = "localhost/events-backfill:latest"
# What a distroless image for C and C++ programs has of Debian's packages.
DISTROLESS = "base-files netbase tzdata ca-certificates libc6 libgcc-s1 libstdc++6 libssl3".split()
DISTROLESS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def run(command, **options):
    """Runs a command that must succeed, and gives what it prints."""
    done = subprocess.run(command, check=False, text=True, capture_output=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


class Store:
    """A store of images."""

    def __init__(self, directory):
        self.directory = directory
        self.options = ["--root", f"{directory}/root", "--runroot", f"{directory}/run"]
        self.options += ["--storage-driver", "vfs"]

    def podman(self, *words):
        """The command line of podman. Not every machine lets crun, or systemd, make its groups."""
        return ["podman", *self.options, "--runtime=runc", "--cgroup-manager=cgroupfs", *words]

    def make_bases(self):
        """Both images that the Dockerfile names, of Debian's packages."""
        debian = os.environ["DEBIAN_ROOT"]
        archive = f"{self.directory}/base.tar"
        run(["tar", "-C", debian, "--exclude=./var/cache/apt/*", "-cf", archive, "."])
        run(self.podman("import", archive, "localhost/debian"))
        listed = run(["dpkg", "--root", debian, "-L", *DISTROLESS])
        names = {line for line in listed.splitlines() if line.startswith("/") and line != "/."}
        names |= {"/etc/ssl/certs/ca-certificates.crt"}
        # /lib is a link to usr/lib, below which the files are.
        places = (os.path.split(debian + name) for name in names)
        paths = (os.path.join(os.path.realpath(folder), file) for folder, file in places)
        there = sorted({os.path.relpath(path, debian) for path in paths if os.path.lexists(path)})
        run(
            ["tar", "-C", debian, "--no-recursion", "-cf", archive, "-T", "-"],
            input="\n".join(there),
        )
        change = ["--change", f"ENV PATH={DISTROLESS_PATH}"]
        run(self.podman("import", *change, archive, "localhost/distroless"))
        os.remove(archive)

    def build(self):
        """The image, of the program under test, or of what `make dist` has made where DEPLOY_DIST says so."""
        context = os.environ.get("DEPLOY_DIST")
        if not context:
            context = f"{self.directory}/dist"
            self._pack(context, f"events-backfill-0-{platform.machine()}-unknown-linux-gnu")
        return run(
            ["buildah", *self.options, "bud", "--isolation=chroot", "--pull-never", "--tag", IMAGE]
            + ["--build-arg", "BASE=localhost/distroless", "--build-arg", "TOOLS=localhost/debian"]
            + ["--format=docker", "--file", str(DOCKERFILE), context]
        )

    def _pack(self, context, name):
        unpacked = f"{self.directory}/unpacked"
        os.makedirs(f"{unpacked}/{name}/bin")
        os.makedirs(f"{unpacked}/{name}/share/doc/events-backfill")
        os.makedirs(context)
        run(["strip", "-o", f"{unpacked}/{name}/bin/events-backfill", PROGRAM])
        shutil.copy(REPOSITORY / "LICENSE", f"{unpacked}/{name}/share/doc/events-backfill")
        run(["tar", "-C", unpacked, "-czf", f"{context}/{name}.tar.gz", name])


class Container:
    """How the program is run in the image, again and again with the same volume."""

    # The server is on this machine. Not every machine lets the limits be raised.
    ALWAYS = ["--network=host", "--pull=never", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"]

    def __init__(self, store, name, options, command, environment):
        self.store, self.name, self.command = store, name, command
        self.options = list(options)
        for variable in environment.items():
            self.options += ["--env", "=".join(variable)]

    def spawn(self):
        """Starts it; the process ends with the exit code of the program."""
        run(self.store.podman("rm", "--force", "--ignore", self.name))
        words = ["run", "--name", self.name, *self.ALWAYS, *self.options, IMAGE, *self.command]
        return subprocess.Popen(
            self.store.podman(*words), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def inside(self, *words):
        """What the program prints when it is run beside itself, in the same container."""
        return run(self.store.podman("exec", self.name, "events-backfill", *words))

    def stop(self, _process, grace):
        """Sends the image's signal, and SIGKILL after the grace period."""
        run(self.store.podman("stop", "--time", str(grace), self.name))

    def end(self):
        """Removes it with its volumes."""
        run(self.store.podman("rm", "--force", "--ignore", "--volumes", self.name))
