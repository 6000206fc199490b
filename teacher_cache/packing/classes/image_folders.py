"""The folders that contain images, as a tree."""

from collections import defaultdict
from collections.abc import Iterable


class ImageFolders:
    """Folders by prefix: "" is the source, "train/cat/" a folder in it. Folders without images do not exist."""

    def __init__(self, images: Iterable[str]) -> None:
        self._children: defaultdict[str, set[str]] = defaultdict(set)
        folders = {path.rpartition("/")[0] for path in images}
        self._with_images = {f"{folder}/" if folder else "" for folder in folders}
        for folder in folders:
            while folder:
                parent, _, name = folder.rpartition("/")
                self._children[f"{parent}/" if parent else ""].add(name)
                folder = parent

    def __contains__(self, prefix: str) -> bool:
        return prefix in self._with_images or prefix in self._children

    def children(self, prefix: str) -> list[str]:
        """The sorted names of the folders in a folder."""
        return sorted(self._children.get(prefix, ()))

    def has_images(self, prefix: str) -> bool:
        """Whether images are directly in a folder."""
        return prefix in self._with_images

    def below_wrappers(self, prefix: str, classes: frozenset[str] = frozenset()) -> str:
        """The first folder below that has several folders, or images; or the last one with a folder in it.

        A folder that has the name of a class is not a wrapper.
        """
        while not self.has_images(prefix) and len(children := self.children(prefix)) == 1:
            below = f"{prefix}{children[0]}/"
            if children[0] in classes or self.has_images(below):
                break
            prefix = below
        return prefix
