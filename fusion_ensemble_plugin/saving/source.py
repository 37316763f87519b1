"""Where a saved ensemble comes from: a folder, or a repository on the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
DOWNLOADED = ["ensemble.json", "*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
"""What is fetched of a repository: data only, no code."""


def local_folder(source: str | Path, revision: str | None = None) -> Path:
    """Return the folder of a saved ensemble, fetched from the hub if need be.

    Raises:
        FileNotFoundError: If there is no such folder, and no such repository.
        NotADirectoryError: If it is a file.
        ConnectionError: If the hub can't be reached; says what to do.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise NotADirectoryError(f"{source} is a file; a saved ensemble is a folder")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise FileNotFoundError(f"there is no folder {source}")
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=DOWNLOADED))
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"there is neither a folder {source} here nor a repository on the hub") from None
    except (HfHubHTTPError, OSError) as error:
        raise ConnectionError(
            f"there is no folder {source} here, and the Hugging Face hub can't be reached to look for a repository of "
            f"that name ({type(error).__name__}). With a network: hf download {source} --local-dir FOLDER, "
            "then bring the folder here and give its path"
        ) from error
