"""Posts from files and feeds: what is read, and how the reader says what it cannot read."""

import json
from pathlib import Path

import pytest
from outbox.demo.pipeline import Post
from outbox.demo.sources import FeedSource, FileSource, SourceError, bundled

RSS = """<?xml version="1.0" encoding="UTF-8"?>
<rss version="2.0"><channel><title>News</title>
<item><title>Bridge &amp; tunnel</title><guid>n-1</guid>
<description>&lt;p&gt;Open &lt;b&gt;again&lt;/b&gt;&lt;/p&gt;</description></item>
<item><title>No guid</title><link>https://example.org/2</link></item>
<item><guid>n-3</guid></item>
</channel></rss>"""


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def contents(source: FileSource | FeedSource) -> dict[str, str]:
    return {entity: post.content for entity, post in source}


def test_bundled_posts_are_many_different_and_readable_twice() -> None:
    posts = bundled()
    first, second = list(posts), list(posts)
    assert first == second
    assert len({entity for entity, _ in first}) == len(first) >= 100
    assert max(len(post.content) for _, post in first) > 1_000


def test_limit_takes_the_first_posts() -> None:
    assert [entity for entity, _ in bundled(limit=2)] == ["post_001", "post_002"]


def test_json_lines_are_read_with_id_author_and_text(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        '{"id": 7, "author": "ana", "content": "hé \\ud83d\\ude00"}\n\n{"content": "b"}\n',
    )
    assert list(FileSource(path)) == [
        ("7", Post(author="ana", content="hé 😀")),
        ("line-3", Post(author="unknown", content="b")),
    ]


def test_csv_columns_are_chosen_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", '\ufefftweet_id,text\r\n1,"a, ""quoted"" one\r\nin two lines"\r\n2,plain\r\n')
    source = FileSource(path, column="text", id_column="tweet_id")
    assert contents(source) == {"1": 'a, "quoted" one\r\nin two lines', "2": "plain"}


def test_tsv_takes_quotes_as_they_are(tmp_path: Path) -> None:
    path = write(tmp_path / "p.tsv", 'id\tcontent\n1\t"unclosed\n2\tit\'s "fine"\n')
    assert contents(FileSource(path)) == {"1": '"unclosed', "2": 'it\'s "fine"'}


def test_records_without_text_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"content": null}\n{"content": "  "}\n{"content": "x"}\n')
    assert contents(FileSource(path)) == {"line-3": "x"}


def test_a_file_is_read_lazily(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", '{"content": "x"}\nbroken\n')
    assert next(iter(FileSource(path))) == ("line-1", Post(author="unknown", content="x"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.csv", "id,text,likes\n1,x,3\n", ["line 2", "'content'", "id, text, likes"]),
        ("p.jsonl", '{"content": "x"}\n{"content": "y"\n', ["line 2", "not JSON"]),
        ("p.jsonl", '{"content": "x"}\n["y"]\n', ["line 2", "not a JSON object"]),
        ("p.jsonl", '{"content": ["y"]}\n', ["line 1", "'content' is not text"]),
        ("p.jsonl", '{"content": "a\\u0000b"}\n', ["line 1", "NUL"]),
        ("p.jsonl", '{"content": "\\ud800"}\n', ["line 1", "surrogate"]),
        ("p.jsonl", json.dumps({"id": "i" * 600, "content": "x"}), ["line 1", "600 characters"]),
        ("p.csv", "id,content\n1,x\n2,y,z\n", ["line 3", "3 fields", "header names 2"]),
        ("p.csv", 'id,content\n1,x\n2,"y\n', ["line 3", "unexpected end of data"]),
        ("p.txt", "x", ["must end in one of .jsonl"]),
    ],
)
def test_what_cannot_be_read_is_named_by_file_and_line(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    path = write(tmp_path / name, text)
    with pytest.raises(SourceError) as caught:
        list(FileSource(path))
    for word in [str(path), *words]:
        assert word in str(caught.value)


def test_a_missing_file_and_a_wrong_encoding_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"absent\.csv: No such file"):
        list(FileSource(tmp_path / "absent.csv"))
    path = tmp_path / "latin.csv"
    path.write_bytes("content\ncafé\n".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin\.csv.*not UTF-8"):
        list(FileSource(path))


def test_a_feed_gives_title_and_text_without_markup(tmp_path: Path) -> None:
    feed = FeedSource(str(write(tmp_path / "news.xml", RSS)))
    assert contents(feed) == {"n-1": "Bridge & tunnel\nOpen  again", "https://example.org/2": "No guid"}


def test_what_is_no_feed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a feed with posts"):
        list(FeedSource(str(write(tmp_path / "page.html", "<html>hello"))))
    with pytest.raises(SourceError, match="No such file"):
        list(FeedSource(str(tmp_path / "absent.xml")))
    with pytest.raises(SourceError, match=r"127\.0\.0\.1:1"):
        list(FeedSource("http://127.0.0.1:1/feed"))
