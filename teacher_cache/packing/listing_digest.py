"""The digest of a listing of images, by which a rerun recognizes its source."""

import hashlib
import json


def listing_digest(listing: object) -> str:
    """Hexadecimal sha256 of a listing of JSON values."""
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()
