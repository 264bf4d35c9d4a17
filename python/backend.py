"""scikit-build-core, given the project's C sources as `native/`: they lie a folder above, and an sdist brings its own.

While a wheel is built from a checkout `native` is a link to the folder above; while an sdist is made, a copy of what it takes.
"""

import functools
import shutil
from contextlib import contextmanager
from pathlib import Path

from scikit_build_core import build as core

NATIVE = Path("native")
TAKEN = ("CMakeLists.txt", "LICENSE", "cmake", "include", "src")
HOOKS = (
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "get_requires_for_build_editable",
    "prepare_metadata_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "build_sdist",
    "build_wheel",
    "build_editable",
)


def copy_sources():
    NATIVE.mkdir()
    for name in TAKEN:
        above = Path("..", name)
        (shutil.copytree if above.is_dir() else shutil.copy)(above, NATIVE / name)


@contextmanager
def sources(copied):
    if NATIVE.is_dir() and not NATIVE.is_symlink():  # an sdist's
        yield
        return
    NATIVE.unlink(missing_ok=True)  # of a build that was killed
    try:
        copy_sources() if copied else NATIVE.symlink_to("..", target_is_directory=True)
        yield
    finally:
        shutil.rmtree(NATIVE) if copied else NATIVE.unlink()


def with_sources(hook):
    @functools.wraps(hook)
    def call(*arguments, **options):
        with sources(copied=hook.__name__ == "build_sdist"):
            return hook(*arguments, **options)

    return call


globals().update({name: with_sources(getattr(core, name)) for name in HOOKS if hasattr(core, name)})
