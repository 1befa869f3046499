"""A comparison from its `results.json`, with an error that says what is wrong with the file."""

import json
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from tapvideo.compare.results import ClipResult, Comparison, MethodSummary, PairedDifference

_NAME = "results.json"
_Part = TypeVar("_Part", ClipResult, MethodSummary, PairedDifference)


class ResultsError(ValueError):
    """A `results.json` that cannot be read as a comparison."""


def read_comparison(folder: Path) -> Comparison:
    """The comparison that a folder's `results.json` holds; keys this version does not know are ignored.

    Raises:
        ResultsError: if the file is not there, is no JSON, or lacks what a comparison has.
    """
    path = folder / _NAME
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ResultsError(f"{path}: no such file; allowed: a folder that a comparison wrote") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(f"{path}: cannot be read ({error})") from error
    try:
        raw = json.loads(text)
    except ValueError as error:
        raise ResultsError(f"{path}: no JSON ({error})") from error
    except RecursionError as error:
        raise ResultsError(f"{path}: nested too deeply") from error
    return _comparison(path, raw)


def _comparison(path: Path, raw: Any) -> Comparison:
    known = _known(Comparison, raw, str(path))
    return Comparison(
        **known
        | {
            "clips": _parts(ClipResult, known.get("clips", []), f"{path}: clips"),
            "table": _parts(MethodSummary, known.get("table", []), f"{path}: table"),
            "differences": _parts(PairedDifference, known.get("differences", []), f"{path}: differences"),
        }
    )


def _parts(kind: type[_Part], raw: Any, where: str) -> list[_Part]:
    if not isinstance(raw, list):
        raise ResultsError(f"{where} is {_named(raw)}; allowed: a list")
    return [kind(**_known(kind, item, f"{where}[{i}]")) for i, item in enumerate(raw)]


def _known(kind: type, raw: Any, where: str) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise ResultsError(f"{where} is {_named(raw)}; allowed: an object of {kind.__name__}")
    found = {}
    for field in fields(kind):
        if field.name in raw:
            found[field.name] = _checked(raw[field.name], _type_text(field.type), f"{where}.{field.name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ResultsError(f"{where} has no {field.name!r}; allowed: every key of {kind.__name__}")
    return found


def _checked(value: Any, annotation: str, where: str) -> Any:
    """The value, if it is of the kind that the page computes with; what lists and objects hold is looked at later."""
    kinds = _kinds(annotation)
    if (isinstance(value, bool) and bool not in kinds) or not isinstance(value, kinds):
        raise ResultsError(f"{where} is {_named(value)}; allowed: {annotation}")
    if "float | None" in annotation and isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        if any(isinstance(v, bool) or not isinstance(v, int | float | None) for v in inside):
            raise ResultsError(f"{where} holds something else than numbers and null")
    return value


def _kinds(annotation: str) -> tuple[type, ...]:
    for start, kind in (("dict", dict), ("list", list)):
        if start in annotation:
            return (kind,)
    kinds: list[type] = [type(None)] if "None" in annotation else []
    if "str" in annotation:
        kinds.append(str)
    if "int" in annotation:
        kinds.append(int)
    if "float" in annotation:
        kinds += [int, float]
    return tuple(kinds)


def _type_text(annotation: Any) -> str:
    return annotation.__name__ if type(annotation) is type else str(annotation).replace("typing.", "")


def _named(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
