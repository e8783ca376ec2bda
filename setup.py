"""Adds the studies and their schema to the wheel; everything else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithStudies(build_py):
    """Copies studies/ to mgdm_ray/studies in the build."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them beside the package
            return
        target = Path(self.build_lib, "mgdm_ray", "studies")
        self.mkpath(str(target))
        for path in sorted(Path("studies").glob("*.[yj]*")):
            self.copy_file(str(path), str(target / path.name))


setup(cmdclass={"build_py": BuildWithStudies})
