"""Documents into chunks: whole sentences and blocks, each under the titles it stands below, none too long to embed."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from shared.errors import InvalidRequest

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

Format = Literal["markdown", "text", "json"]
Kind = Literal["prose", "lines", "code", "table"]
Piece = tuple[str, float]  # with its tokens

# In tokens as `count_tokens` sees them, which may be a sixth too few: e5 cuts off after 512.
TARGET_TOKENS = 300
OVERLAP_TOKENS = 40  # from the chunk before, in whole sentences
TAIL_TOKENS = 40  # a last chunk under this joins the one before
TITLE_TOKENS = 48
MAXIMUM_TOKENS = TARGET_TOKENS + OVERLAP_TOKENS + TAIL_TOKENS + TITLE_TOKENS

# A word, capitals, digits, anything else. Letters beyond ASCII make words in the scripts up to Arabic.
RUNS = re.compile(r"([A-Z]?[a-z]+|[\u00c0-\u02ff\u0370-\u06ff]+)|([A-Z]+(?![a-z]))|(\d+)|(\S)")
# Each cuts a text into parts that hold all of it.
PARAGRAPH = re.compile(r".+?(?:\n[^\S\n]*\n\s*|\Z)", re.DOTALL)
ITEM = re.compile(r".+?(?:\n(?= {0,3}(?:[-*+]|\d{1,9}[.)])\s)|\Z)", re.DOTALL)
SENTENCE = re.compile(r".+?(?:[.!?…]{1,3}[\"'”’»)\]*_]{0,9}(?=\s)|[。！？]{1,9}[」』”’）】]{0,9}|\Z)\s*", re.DOTALL)
LINE = re.compile(r".*\n|.+")
WORD = re.compile(r"(?:\S{1,12}\s{1,4}){1,8}|\s*\S+\s*|\s+")
# What is never cut: an address or a hash, a character with its accents, an emoji of several.
ATOM = re.compile(
    r"[0-9A-Za-z_:+/=-]{1,128}"
    r"|(?:[^0-9A-Za-z_:+/=-](?:[\u0300-\u036f\u20d0-\u20ff\ufe00-\ufe0f\U0001f3fb-\U0001f3ff]|\u200d.){0,16}){1,16}",
    re.DOTALL,
)
PROSE = (PARAGRAPH, ITEM, SENTENCE, LINE, WORD, ATOM)
LINES = (LINE, SENTENCE, WORD, ATOM)
FRONT_MATTER = re.compile(  # a line "-a: b" matches two ways, of which only one may be tried
    r"---[^\S\n]*\n((?:[\w-]+[^\S\n]*:.*\n)(?:(?!---|\.\.\.)(?:[\w-]+[^\S\n]*:|[ \t-]|#).*\n|\n)*+)"
    r"(?:---|\.\.\.)[^\S\n]*(?:\n|\Z)"
)
FRONT_TITLE = re.compile(r"^title[^\S\n]*:[^\S\n]*(.+)$", re.MULTILINE)
# Blanks that align or fill, of which one is enough; indentation isn't among them up to 40. Lines that are empty, too.
GAP = re.compile(r"\n\s*\n")
FILLING = re.compile(r"(?:(?<=\S)|(?<=[^\S\n]{40}))[^\S\n]{2,}")
RULE = re.compile(r"(?<=-)-{3,}")  # under a table's head, as wide as its column
# Of the parser's blocks; the others are prose.
KINDS: dict[str, Kind] = {"fence": "code", "code_block": "code", "table_open": "table"}
NAMES = ("title", "name", "symbol", "id")  # what a JSON record may be called by

# CommonMark has too many corners (fences in lists, lazy quotes) for a parser of ours; blocks are all that is needed.


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document; `title` is the path of titles above it, "Document > Heading > Subheading"."""

    title: str
    content: str

    @property
    def text(self) -> str:
        """What is embedded: a passage is found better under its titles (the idea of contextual retrieval)."""
        return f"{self.title}\n{self.content}" if self.title else self.content


@dataclass(frozen=True, slots=True)
class Block:
    """Something that stays whole where it fits."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Section:
    """What stands under one heading, without that of its subsections."""

    headings: tuple[str, ...]
    blocks: list[Block] = field(default_factory=list)


def chunk(text: str, title: str | None, form: Format) -> list[Chunk]:
    """The document's chunks in its order, each once; of the embedded text none is over `MAXIMUM_TOKENS`.

    The same document always gives the same chunks. Raises `InvalidRequest` for one without any text, and for
    JSON that is none.
    """
    sections = READERS[form](_normal(text))
    chunks = [
        Chunk(_title_path([title or "", *section.headings]), content)
        for section in sections
        for content in _packed(section.blocks)
    ]
    if not chunks:
        raise InvalidRequest("content: there is no text in it.")
    return list({chunk.text: chunk for chunk in chunks}.values())


def find_title(text: str, form: Format) -> str | None:
    """What a document calls itself: Markdown's front matter or its first heading, JSON's title or name."""
    text = _normal(text)
    if form == "json":
        return _name_of(parse(text))
    if form == "markdown":
        front = FRONT_MATTER.match(text)
        named = FRONT_TITLE.search(front[1]) if front else None
        if named and (title := named[1].strip().strip("'\"").strip()):
            return _cut(title, TITLE_TOKENS)
        return next((section.headings[0] for section in _read_markdown(text) if section.headings), None)
    return None


def count_tokens(text: str) -> float:
    """About as many tokens as a multilingual model makes of it: at most a fifth fewer, for addresses, often more.

    Bytes alone would count an address at two fifths of its tokens. Measured with e5's tokenizer.
    """
    total = 0.0
    for word, capitals, digits, other in RUNS.findall(text):
        if word:
            total += 1 + max(0, len(word) - 4) * 0.25
        elif capitals:
            total += 0.5 + len(capitals) * 0.6
        elif digits:
            total += 0.5 + len(digits) * 0.5
        else:
            total += 0.75 if "\u0900" <= other <= "\ud7a3" else 1
    return total


@cache
def _markdown() -> "MarkdownIt":
    from markdown_it import MarkdownIt  # which no question needs

    return MarkdownIt("commonmark").enable("table").disable(["inline", "text_join"])


def _read_markdown(text: str) -> list[Section]:
    front = FRONT_MATTER.match(text)
    body = text[front.end() :] if front else text
    lines = body.splitlines(keepends=True)
    sections, stack, covered = [Section(())], list[tuple[int, str]](), 0
    tokens = _markdown().parse(body)
    for number, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        start, end = token.map
        between = "".join(lines[covered:start])  # link definitions, of which the parser makes no block
        sections[-1].blocks.extend(_blocks("prose", between))
        covered = end
        if token.type == "heading_open":
            heading = " ".join(tokens[number + 1].content.replace("**", "").replace("`", "").split())
            level = int(token.tag[1])
            stack = [*(entry for entry in stack if entry[0] < level), (level, _cut(heading, TITLE_TOKENS))]
            sections.append(Section(tuple(name for _, name in stack if name)))
            if sections[-1].headings and sections[-1].headings[-1] != heading:
                sections[-1].blocks.extend(_blocks("prose", heading))
        elif token.type != "hr":
            kind = KINDS.get(token.type, "prose")
            source = "".join(lines[start:end])
            sections[-1].blocks.extend(_blocks(kind, source if kind == "code" else _without_comments(source)))
    sections[-1].blocks.extend(_blocks("prose", "".join(lines[covered:])))
    for section, following in zip(sections, [*sections[1:], Section(())], strict=True):
        if section.headings and not section.blocks and following.headings[:-1] != section.headings:
            section.blocks.append(Block("prose", section.headings[-1]))  # all it says is its heading
    return sections


def _read_text(text: str) -> list[Section]:
    return [Section((), [block for part in PARAGRAPH.findall(text) for block in _blocks("prose", part)])]


def _read_json(text: str) -> list[Section]:
    """An array's records each for itself, under its name; an object's entries together where they fit."""
    value = parse(text)
    if isinstance(value, str):
        return _read_text(value)
    if isinstance(value, list) and any(isinstance(element, dict | list) for element in value):
        return [_record(element) for element in value]
    elements = value.items() if isinstance(value, dict) else [("", value)]
    return [Section((), [block for key, part in elements for block in _blocks("lines", "\n".join(_flat(key, part)))])]


READERS: dict[Format, Callable[[str], list[Section]]] = {
    "markdown": _read_markdown,
    "text": _read_text,
    "json": _read_json,
}


def _record(element: Any) -> Section:
    name = _name_of(element)
    return Section((name,) if name else (), _blocks("lines", "\n".join(_flat("", element))))


def parse(text: str) -> Any:
    """A JSON text's value. Raises `InvalidRequest` for what is none."""
    try:
        return json.loads(text)
    except RecursionError:
        raise InvalidRequest("content: nested too deeply.") from None
    except ValueError as error:
        raise InvalidRequest("content: not JSON, which its format says it is.") from error


def _name_of(value: Any) -> str | None:
    names = [value.get(key) for key in NAMES] if isinstance(value, dict) else []
    return next(
        (_cut(" ".join(name.split()), TITLE_TOKENS) for name in names if isinstance(name, str) and name.split()), None
    )


def _flat(path: str, value: Any) -> Iterator[str]:
    """Lines of "path: value"; what is null says nothing."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{path}.{key}" if path else key, part)
    elif isinstance(value, list) and any(isinstance(part, dict | list) for part in value):
        for number, part in enumerate(value):
            yield from _flat(f"{path}[{number}]", part)
    elif isinstance(value, list):
        yield from _flat(path, ", ".join(_said(part) for part in value if part is not None))
    elif value is not None and (said := _said(value)).strip():
        yield f"{path}: {said}" if path else said


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _packed(blocks: Sequence[Block]) -> list[str]:
    """The blocks' pieces joined up to the target, each chunk after the first opened by the last one's end."""
    chunks: list[str] = []
    opening, added, size = "", "", 0.0  # the current chunk: what it repeats, what is new, the tokens of both
    prose = ""  # what it ends with, as far as that is prose
    for block in blocks:
        for piece, cost in _pieces(block):
            if added and size + cost > TARGET_TOKENS:
                chunks.append(opening + added)
                opening, added = _overlap(prose) if block.kind == "prose" else "", ""
                size = count_tokens(opening)
            added, size = added + piece, size + cost
            prose = prose[-1000:] + piece if block.kind == "prose" else ""
    if chunks and count_tokens(added) < TAIL_TOKENS:
        chunks[-1] += added
    elif added:
        chunks.append(opening + added)
    return [content.strip() for content in chunks]


def _pieces(block: Block) -> Iterator[Piece]:
    """The block whole, or where it is too long its parts."""
    text = block.text + ("\n" if block.kind == "lines" else "\n\n")
    frame = _frame(block)
    cost = count_tokens(text)
    if frame and cost > TARGET_TOKENS:
        yield from _framed(*frame)
    else:
        yield from _split(text, cost, PROSE if block.kind == "prose" else LINES)


def _split(text: str, cost: float, ways: Sequence[re.Pattern[str]], room: float = TARGET_TOKENS) -> Iterator[Piece]:
    """The text in parts that fit, as large as the ways to cut it allow; what follows a part is still on it."""
    parts = [text]
    while cost > room and ways and len(parts) < 2:
        parts, ways = ways[0].findall(text), ways[1:]
    if len(parts) < 2:
        yield text, cost
        return
    for part in parts:
        yield from _split(part, count_tokens(part), ways, room)


def _frame(block: Block) -> tuple[str, str, str] | None:
    """A table's head or a code block's fences, to be repeated around each part, and the lines between."""
    lines = block.text.splitlines(keepends=True)
    if block.kind == "table" and len(lines) > 2:
        head, tail, inner = "".join(lines[:2]), "\n", lines[2:]
    elif block.kind == "code" and re.match(r" {0,3}(```|~~~)", lines[0]):
        closed = len(lines) > 1 and re.fullmatch(r" {0,3}(`{3,}|~{3,})\s*", lines[-1])
        head, tail, inner = lines[0], f"{lines[-1].strip() if closed else lines[0].strip()[:3]}\n\n", lines[1:]
        inner = inner[:-1] if closed else inner
    else:
        return None
    return (head, "".join(inner), tail) if count_tokens(head + tail) < TARGET_TOKENS / 4 else None


def _framed(head: str, inner: str, tail: str) -> Iterator[Piece]:
    frame = count_tokens(head + tail)
    room = TARGET_TOKENS - frame
    group, size = "", 0.0
    for part, cost in _split(inner, TARGET_TOKENS + 1, (LINE, WORD, ATOM), room):
        if group and size + cost > room:
            yield f"{head}{group.rstrip()}\n{tail}", size + frame
            group, size = "", 0.0
        group, size = group + part, size + cost
    if group:
        yield f"{head}{group.rstrip()}\n{tail}", size + frame


def _overlap(prose: str) -> str:
    """The last whole sentences of what came before, if they are short enough."""
    kept, size = "", 0.0
    for sentence in reversed(SENTENCE.findall(prose)):
        size += count_tokens(sentence)
        if size > OVERLAP_TOKENS:
            break
        kept = sentence + kept
    return kept


def _title_path(titles: Sequence[str]) -> str:
    """The titles joined, one that repeats the one above once; where they are too long, the middle ones go."""
    kept = [title for title in (" ".join(title.split()) for title in titles) if title]
    kept = [title for number, title in enumerate(kept) if not number or title.casefold() != kept[number - 1].casefold()]
    while len(kept) > 2 and count_tokens(" > ".join(kept)) > TITLE_TOKENS:
        del kept[1]
    if count_tokens(" > ".join(kept)) > TITLE_TOKENS:
        kept = [_cut(title, TITLE_TOKENS / len(kept) - 2) for title in kept]
    return " > ".join(kept)


def _without_comments(html: str) -> str:
    """A comment that isn't closed stays: the rest of the document would go with it."""
    *closed, rest = html.split("-->")
    parts = [part.partition("<!--") for part in closed]
    return "".join(before if opened else f"{before}-->" for before, opened, _ in parts) + rest


def _cut(text: str, tokens: float) -> str:
    """The text's beginning that fits, with an ellipsis where that isn't all of it."""
    if count_tokens(text) <= tokens:
        return text
    kept, size = "", 1.0
    for word in ATOM.findall(text[:1000]):
        size += count_tokens(word)
        if size > tokens:
            break
        kept += word
    return f"{kept.rstrip()}…"


def _blocks(kind: Kind, text: str) -> list[Block]:
    """The text as a block, if there is anything in it. Blanks count as no tokens, so only code keeps them all."""
    text = text.strip("\n").rstrip()
    if kind != "code":
        text = FILLING.sub(" ", GAP.sub("\n\n", text))
    if kind == "table":
        text = RULE.sub("--", text)
    return [Block(kind, text)] if text.strip() else []


def _normal(text: str) -> str:
    """One kind of line end, and no byte order mark."""
    return re.sub(r"\r\n?|[\f\v\u2028\u2029\x85]", "\n", text.removeprefix("\ufeff"))
