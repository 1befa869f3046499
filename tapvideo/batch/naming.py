"""Names of video files: VBench's `{prompt}-{i}.mp4` wherever that is a safe name, and a reversible one elsewhere."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from urllib.parse import quote, unquote

_LONGEST = 255  # bytes that file systems take for a name
_HASH = 12
_LEADING = "-.~ "  # an option, a hidden file, a home, and a blank that nobody sees
_CATEGORIES = {"Cc", "Zl", "Zp"}  # control characters and line breaks
_BIDI = {chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}  # show a name other than it is


def file_stems(prompts: Iterable[str], *, num_indices: int) -> dict[str, str]:
    """A stem for every prompt, so that `{stem}-{index}.mp4` is a safe name and different for different prompts.

    A slash, NUL, control characters, a leading dash, dot, tilde or blank are written as in URLs (`%2F`). A prompt that
    is too long is cut, and it and one that differs from an earlier one only in case (or in how accents are composed)
    get `~` and a hash of the prompt. Everything else stays as VBench wants it.

    Args:
        prompts: in an order that stays the same.
        num_indices: clips of each prompt.

    Returns:
        Stems by prompt.
    """
    room = _LONGEST - len(f"-{num_indices - 1}.mp4")
    stems: dict[str, str] = {}
    taken: set[str] = set()
    for prompt in dict.fromkeys(prompts):
        stem, length = escape(prompt), _HASH
        if len(stem.encode()) > room:
            stem = _with_hash(stem, prompt, room, length)
        while _folded(stem) in taken:  # longer hashes only for names made to collide
            stem = _with_hash(escape(prompt), prompt, room, length)
            length += 1
        taken.add(_folded(stem))
        stems[prompt] = stem
    return stems


def escape(prompt: str) -> str:
    """A prompt with every character that is not safe in a file name as `%XX`; `unescape` is the way back."""
    kept = re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", prompt)  # "100% wool" is no escape, and stays
    escaped = "".join(quote(c, safe="") if _is_unsafe(c) else c for c in kept)
    if escaped[:1] in _LEADING:
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}" if escaped else ""
    return escaped


def unescape(stem: str) -> str:
    """The prompt of a stem that has no hash."""
    return unquote(stem)


def _is_unsafe(character: str) -> bool:
    return character == "/" or character in _BIDI or unicodedata.category(character) in _CATEGORIES


def _with_hash(stem: str, prompt: str, room: int, length: int) -> str:
    end = f"~{hashlib.sha256(prompt.encode()).hexdigest()[:length]}"
    return stem.encode()[: room - len(end)].decode(errors="ignore") + end


def _folded(stem: str) -> str:
    """As file systems see a name that ignore case and compose accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
