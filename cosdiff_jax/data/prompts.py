"""Files of prompts, in the forms their authors publish them in -> one list.

| form | file | a prompt's group |
|---|---|---|
| geneval | ``evaluation_metadata.jsonl``: ``tag``, ``include``, ``exclude``, ``prompt`` | tag |
| compbench | T2I-CompBench's ``color_val.txt`` and its like: a prompt a line | color ... |
| dpg_bench | a folder of ``KEY.txt``, or the csv with a row per question | |
| parti | ``PartiPrompts.tsv``: Prompt, Category, Challenge, Note | Category |
| mjhq | MJHQ-30K's ``meta_data.json``: id -> category, prompt | category |
| drawbench | csv: Prompts, Category | Category |
| text | any other ``.txt``: a prompt a line | |
| jsonl | our own: ``prompt``, ``text`` or ``caption``; ``key``, ``group``, more if wanted | group |

Sources: Ghosh et al., arXiv:2310.11513; Huang et al., arXiv:2307.06350; Hu et al.,
arXiv:2403.05135; Yu et al., arXiv:2206.10789; Li et al., arXiv:2402.17245; Saharia et al.,
arXiv:2205.11487; the columns are those of the files these papers point to.
"""

import csv
import dataclasses
import io
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from cosdiff_jax.data import files

TEXT_FIELDS = ("prompt", "text", "caption")
_GROUP_FIELDS = ("group", "category")
_PICTURE_FIELDS = ("picture", "file_name")
_COMPBENCH = re.compile(
    r"(color|shape|texture|(?:[23]d_|non_)?spatial|numeracy|complex)(_(train|val)(_.*)?)?"
)
# A file's name holds 255 bytes: 80 letters of any script, a picture's number and an ending.
_LONGEST_KEY = 80


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt of a set.

    Attributes:
      text: the prompt, without white space around it.
      key: names it and its pictures' files: letters, digits, - _ and . only, and no other
        prompt's, whatever the case of its letters. Where the author gives none, the number of
        its row, from 00000.
      group: what its author counts it among; "" where nothing is said.
      extra: everything else its author says about it.
      line: its line of JSON as it stands in a GenEval file; "" elsewhere.
    """

    text: str
    key: str = ""
    group: str = ""
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    line: str = ""


def read(path: str | pathlib.Path, form: str | None = None) -> list[Prompt]:
    """The prompts of a file (of a folder for DPG-Bench), in its order.

    Byte-order marks, either kind of line end and empty lines do no harm. A prompt that comes
    twice is kept twice, under two keys.

    Args:
      path: the file.
      form: one of ``FORMS``; None recognises it by its content and name.

    Raises:
      ValueError: no such file, no prompt in it, a form that cannot be told, or a line that is
        not of the form, with the file and the line.
    """
    path = pathlib.Path(path).expanduser()
    if form is not None and form not in FORMS:
        raise ValueError(f"prompt form {form!r} is not one of {', '.join(FORMS)}")
    if path.is_dir():
        if form not in (None, "dpg_bench"):
            raise ValueError(f"{path} is a folder, but {form} prompts are one file: name the file")
        found = list(_dpg_folder(path))
    else:
        text = _load(path)
        found = list(FORMS[form or _recognise(path, text)](path, text))
    if not found:
        raise ValueError(f"{path} has no prompts")
    return keyed(found)


def write(path: str | pathlib.Path, prompts: Iterable[Prompt]) -> None:
    """Prompts as lines of JSON, our own form, which ``read`` gives back.

    Raises:
      ValueError: there is such a file already, or it cannot be written.
    """
    path = pathlib.Path(path).expanduser()
    lines = []
    for prompt in prompts:
        group = {"group": prompt.group} if prompt.group else {}
        record = {"key": prompt.key, "prompt": prompt.text, **group, **prompt.extra}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            raise ValueError(f"{path} is there already: name another file or delete it")
        path.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from None


def texts_read(path: str | pathlib.Path) -> dict[str, str]:
    """What some reader of text found in pictures, by their paths as the file says them.

    Lines of JSON or a table (csv), each with "picture" or "file_name", and "text", which is empty
    where nothing was found.

    Raises:
      ValueError: no such file, no line in it, a line without the two, or a picture said twice.
    """
    path = pathlib.Path(path).expanduser()
    text = _load(path)
    if text.lstrip().startswith("{"):
        lines = ((place, record) for place, _, record in _records(path, text))
    else:
        lines = _table(path, text, _PICTURE_FIELDS)
    found: dict[str, str] = {}
    for place, record in lines:
        name = next((record[field] for field in _PICTURE_FIELDS if field in record), None)
        said = record.get("text", 0)
        if not isinstance(name, str) or not name or not isinstance(said, str | None):
            raise ValueError(f'{place} has no "picture" with the "text" that was read in it')
        if name in found:
            raise ValueError(f"{place} says a second time what {name} shows")
        found[name] = said or ""
    if not found:
        raise ValueError(f"{path} has no lines")
    return found


def keyed(prompts: Iterable[Prompt]) -> list[Prompt]:
    """The same prompts, each with a key that is its own and can name a file.

    A prompt without a key gets the number of its row; the second of a key ends in ``.2``. Keys
    that are all right already stay.
    """
    taken: set[str] = set()
    named = []
    for row, prompt in enumerate(prompts):
        key = re.sub(r"[^\w.-]+", "-", files.normal(prompt.key))[:_LONGEST_KEY].strip(".-")
        wanted = key = key or f"{row:05d}"
        count = 1
        # Folders of macOS and Windows do not tell capitals from small letters.
        while key.casefold() in taken:
            count += 1
            key = f"{wanted}.{count}"
        taken.add(key.casefold())
        named.append(dataclasses.replace(prompt, key=key))
    return named


def _load(path: pathlib.Path) -> str:
    if not path.is_file():
        raise ValueError(f"there is no file of prompts {path}")
    try:
        return files.decode(path.read_bytes())
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _recognise(path: pathlib.Path, text: str) -> str:
    """The form of a file, by what its first line says, then by its name."""
    first = next((line for _, line in _lines(text)), "")
    suffix = path.suffix.lower()
    if first.startswith("{"):
        record = _parsed(first)
        if isinstance(record, dict):
            if {"tag", "prompt"} <= record.keys():
                return "geneval"
            if any(isinstance(record.get(field), str) for field in TEXT_FIELDS):
                return "jsonl"
            if all(isinstance(value, dict) for value in record.values()):
                return "mjhq"
        elif suffix != ".txt":
            return "jsonl" if suffix == ".jsonl" else "mjhq"
    elif suffix == ".txt":
        return "compbench" if _COMPBENCH.fullmatch(path.stem.lower()) else "text"
    elif "\t" in first and "prompt" in _header(first, "\t"):
        return "parti"
    elif {"item_id", "text"} <= set(columns := _header(first, ",")):
        return "dpg_bench"
    elif {"prompts", "prompt"} & set(columns):
        return "drawbench"
    elif suffix == ".jsonl":
        return "jsonl"
    raise ValueError(
        f"{path} is none of the known prompt files: GenEval's jsonl (tag, include, prompt), "
        "T2I-CompBench's or any .txt (a prompt a line), DPG-Bench's folder or csv (item_id, text), "
        "PartiPrompts' tsv (Prompt, Category), MJHQ-30K's json (id: category, prompt), DrawBench's "
        'csv (Prompts, Category), or jsonl with "prompt", "text" or "caption"'
    )


def _geneval(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    for place, line, record in _records(path, text):
        tag = record.get("tag")
        if not isinstance(tag, str) or not isinstance(record.get("include", []), list):
            raise ValueError(f'{place} is not of GenEval: it wants "tag", "include" and "prompt"')
        extra = {field: value for field, value in record.items() if field != "prompt"}
        yield Prompt(text=_text(place, record, ("prompt",)), group=tag, extra=extra, line=line)


def _jsonl(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    for place, _, record in _records(path, text):
        said = next((field for field in TEXT_FIELDS if field in record), "prompt")
        group = next((field for field in _GROUP_FIELDS if field in record), "group")
        yield Prompt(
            text=_text(place, record, TEXT_FIELDS),
            key=_said(record.get("key")),
            group=_said(record.get(group)),
            extra={f: value for f, value in record.items() if f not in (said, "key", group)},
        )


def _mjhq(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not of MJHQ-30K: it wants id: {{category, prompt}}")
    for key, record in found.items():
        if not isinstance(record, dict):
            raise ValueError(f"{path}: {key!r} is not of MJHQ-30K: it wants category and prompt")
        extra = {f: value for f, value in record.items() if f not in ("prompt", "category")}
        yield Prompt(
            text=_text(f"{path}: {key!r}", record, ("prompt",)),
            key=key,
            group=_said(record.get("category")),
            extra=extra,
        )


def _plain(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    del path
    for _, line in _lines(text):
        yield Prompt(text=line)


def _compbench(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    named = _COMPBENCH.fullmatch(path.stem.lower())
    for prompt in _plain(path, text):
        yield dataclasses.replace(prompt, group=named[1] if named else "")


def _parti(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    # A prompt may begin with a quotation mark of its own: this file quotes nothing.
    for place, row in _table(path, text, ("prompt",), delimiter="\t", quoted=False):
        extra = {column: row[column] for column in row if column not in ("prompt", "category")}
        said = _text(place, row, ("prompt",))
        yield Prompt(text=said, group=row.get("category", ""), extra=extra)


def _drawbench(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    for place, row in _table(path, text, ("prompts", "prompt")):
        said = _text(place, row, ("prompts", "prompt"))
        known = ("prompts", "prompt", "category")
        extra = {column: row[column] for column in row if column not in known}
        yield Prompt(text=said, group=row.get("category", ""), extra=extra)


def _dpg_table(path: pathlib.Path, text: str) -> Iterator[Prompt]:
    """A row is a question about a prompt: rows of one item_id and text are one prompt."""
    questions: dict[tuple[str, str], list[dict[str, str]]] = {}
    for place, row in _table(path, text, ("item_id",)):
        asked = {column: row[column] for column in row if column not in ("item_id", "text")}
        key = row["item_id"].strip(), _text(place, row, ("text",))
        questions.setdefault(key, []).append(asked)
    for (key, said), asked in questions.items():
        yield Prompt(text=said, key=key, extra={"questions": asked})


def _dpg_folder(path: pathlib.Path) -> Iterator[Prompt]:
    """``KEY.txt`` is one prompt; line ends inside are white space."""
    found = [file for file in path.iterdir() if file.suffix.lower() == ".txt"]
    found = [file for file in found if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise ValueError(f"{path} has no KEY.txt, of DPG-Bench, and no other set is a folder")
    for file in sorted(found, key=lambda file: natural(file.stem)):
        if _COMPBENCH.fullmatch(file.stem.lower()):
            raise ValueError(f"{path} has T2I-CompBench's {file.name}: name one of its files")
        text = " ".join(_load(file).split())
        if not text:
            raise ValueError(f"{file} is empty")
        yield Prompt(text=text, key=file.stem)


FORMS: dict[str, Callable[[pathlib.Path, str], Iterator[Prompt]]] = {
    "geneval": _geneval,
    "compbench": _compbench,
    "dpg_bench": _dpg_table,
    "parti": _parti,
    "mjhq": _mjhq,
    "drawbench": _drawbench,
    "text": _plain,
    "jsonl": _jsonl,
}


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """To sort by: numbers inside a name count as numbers, 2 before 10."""
    return tuple((word, int(digits or 0)) for word, digits in re.findall(r"(\D*)(\d*)", name))


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of those that say something."""
    # str.splitlines would also break at U+2028, which JSON may hold as it is.
    for number, line in enumerate(re.split(r"\r\n|\n|\r", text), start=1):
        if line.strip():
            yield number, line.strip()


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _said(value: Any) -> str:
    return "" if value is None else str(value)


def _header(line: str, delimiter: str) -> list[str]:
    return [column.strip().strip('"').lower() for column in line.split(delimiter)]


def _records(path: pathlib.Path, text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(file and line for messages, the line, its object) of every line of JSON."""
    for number, line in _lines(text):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path} line {number} is not an object of JSON")
        yield f"{path} line {number}", line, record


def _table(
    path: pathlib.Path,
    text: str,
    wanted: tuple[str, ...],
    *,
    delimiter: str = ",",
    quoted: bool = True,
) -> Iterator[tuple[str, dict[str, str]]]:
    """(file and line for messages, the row by its columns' names in small letters)."""
    source = io.StringIO(text, newline="")
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    rows = csv.reader(source, delimiter=delimiter, quoting=quoting, strict=True)
    columns: list[str] = []
    try:
        for row in rows:
            if not any(cell.strip() for cell in row):
                continue
            if not columns:
                columns = [column.strip().lower() for column in row]
                if not set(wanted) & set(columns):
                    raise ValueError(f"{path}: its first line names no column {wanted[0]!r}")
                continue
            if len(row) > len(columns):
                raise ValueError(
                    f"{path} line {rows.line_num} has {len(row)} columns, the first line "
                    f"{len(columns)}"
                )
            cells = [*row, *[""] * (len(columns) - len(row))]
            yield f"{path} line {rows.line_num}", dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path} line {rows.line_num}: {error}") from None


def _text(place: str, record: Mapping[str, Any], fields: tuple[str, ...]) -> str:
    said = next((record[field] for field in fields if field in record), None)
    if not isinstance(said, str) or not said.strip():
        raise ValueError(f"{place} has no text in {' or '.join(map(repr, fields))}")
    return said.strip()
