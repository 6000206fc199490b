"""The libraries whose versions decide pixels."""

from importlib.metadata import version

PIXEL_LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "simplejpeg", "torch", "xxhash")


def library_versions() -> dict[str, str]:
    """The versions of the libraries that shape pixels, without what names a build such as torch's "+cu130"."""
    return {name: version(name).partition("+")[0] for name in PIXEL_LIBRARIES}
