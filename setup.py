"""Package layout. `kernels/` lives at the top level, so that `ls` is the index of the operations, and is
imported as `cinema_fast.kernels`, because a package named `kernels` already exists on the Python index."""

from setuptools import setup

setup(
    package_dir={"cinema_fast": "cinema_fast", "cinema_fast.kernels": "kernels"},
    packages=[
        "cinema_fast",
        "cinema_fast.data",
        "cinema_fast.kernels",
        "cinema_fast.models",
        "cinema_fast.train",
    ],
)
