"""Links in sources: files that are reached by several paths, and links that cannot be followed."""

from collections.abc import Container, Hashable, Iterable, Mapping
from pathlib import Path

from teacher_cache.console import count_of, log_line
from teacher_cache.errors import ShardError
from teacher_cache.storage.file_name import escape


def linked_files(links: Mapping[str, str], files: Container[str], source: Path) -> dict[str, str]:
    """The path of the file that each link of an archive leads to, also through other links.

    links: target by path. Links to a folder above them are left out with a log line.
    Raises ShardError for every other link that does not lead to one of `files`.
    """
    found: dict[str, str] = {}
    circular: list[tuple[str, str]] = []
    for path, target in links.items():
        passed = {path}
        while target not in files and target in links and target not in passed:
            passed.add(target)
            target = links[target]
        if target in files:
            found[path] = target
        elif target == "." or path.startswith(f"{target}/"):
            circular.append((path, target))
        else:
            raise ShardError(
                f"link '{escape(path)}' in archive '{source}' leads to '{escape(links[path])}', which is not a "
                "file in the archive; store files instead of links (tar --dereference)"
            )
    log_not_followed(source, circular, "a folder that contains it")
    return found


def log_not_followed(source: Path, links: list[tuple[str, str]], kind: str) -> None:
    """Log in one line that links are not followed. links: (path, target). kind: of their target."""
    if links:
        path, target = map(escape, min(links))
        more = f"; {count_of(len(links), 'such link')} in total" if len(links) > 1 else ""
        log_line(f"link '{path}' in '{escape(str(source))}' is not followed: '{target}' is {kind}{more}")


def log_special(source: Path, names: list[str]) -> None:
    """Log in one line that FIFOs, sockets and devices are left out."""
    if names:
        log_line(
            f"'{escape(min(names))}' in '{escape(str(source))}' is a FIFO, socket or device: "
            f"{count_of(len(names), 'special file')} left out"
        )


def log_shared(source: Path, files: Iterable[tuple[str, Hashable]]) -> None:
    """Log in one line that files are reached in several folders. files: (path, identity)."""
    first: dict[Hashable, str] = {}
    shared = [
        (known, path)
        for path, identity in files
        if _folder(known := first.setdefault(identity, path)) != _folder(path)
    ]
    if shared:
        known, path = min(shared)
        log_line(
            f"'{known}' and '{path}' in '{escape(str(source))}' are links to the same file: "
            f"{count_of(len({known for known, _ in shared}), 'file')} may have two classes"
        )


def log_repeated(source: Path, names: list[str]) -> None:
    """Log in one line that the last of several members with one name counts."""
    if names:
        log_line(
            f"'{escape(names[0])}' occurs twice in archive '{source}': the last one is used for "
            f"{count_of(len(names), 'file')}"
        )


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
