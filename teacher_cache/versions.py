"""The libraries whose versions decide pixels."""

from importlib.metadata import version

PIXEL_LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "torch", "xxhash")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that shape pixels."""
    return {name: version(name) for name in PIXEL_LIBRARIES}
