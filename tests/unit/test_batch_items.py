"""Lists of prompts, and names of files that are safe, different and reversible."""

import json
import os

import pytest

from tapvideo.batch.items import Item, index_text, read_index, read_items
from tapvideo.batch.naming import escape, file_stems, unescape
from tapvideo.checks import ConfigError

AWKWARD = [
    "a/b", "/etc/passwd", "..", ".", "../../x", "-rf", "--help", ".hidden", "~root", "nul\0byte", "two\nlines", "tab\t",
    "100% wool", "%2F", "%%2F/", "%2/", "a\\b", "一只猫 🐈", "x" * 300, "é" * 200, "\u202egpj.exe", "l\u2028s",
    'quote "d" \'s', "a; rm -rf $HOME", "CON", "a~0123456789ab", "%", " blank",
]  # fmt: skip


@pytest.fixture
def listed(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.mark.parametrize("prompt", AWKWARD)
def test_every_prompt_has_a_name_that_is_one_safe_part_of_a_path(prompt, tmp_path):
    (stem,) = file_stems([prompt], num_indices=5).values()
    name = f"{stem}-4.mp4"
    assert len(name.encode()) <= 255
    assert "/" not in name
    assert name[0] not in "-.~ "
    assert name.isprintable()
    (tmp_path / name).write_text("")
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("prompt", [p for p in AWKWARD if len(p) < 200])
def test_escape_has_a_way_back(prompt):
    assert unescape(escape(prompt)) == prompt


@pytest.mark.parametrize("prompt", ["A cat, in super slow motion", "Van Gogh's café: 100% art", "一只猫", "x" * 249])
def test_safe_prompts_stay_as_vbench_wants_them(prompt):
    assert file_stems([prompt], num_indices=5) == {prompt: prompt}


def test_names_differ_also_where_case_and_accents_do_not_count():
    prompts = ["A fantasy landscape", "a fantasy landscape", "A FANTASY landscape", "cafe\u0301", "caf\u00e9", *AWKWARD]
    prompts += ["y" * 300 + "1", "y" * 300 + "2", "straße", "STRASSE"]
    stems = file_stems(prompts, num_indices=5)
    assert stems["A fantasy landscape"] == "A fantasy landscape"
    assert stems["a fantasy landscape"].startswith("a fantasy landscape~")
    assert len({stem.casefold() for stem in stems.values()}) == len(prompts)


def test_a_prompt_that_looks_like_anothers_name_gets_its_own():
    taken = file_stems(["A", "a"], num_indices=1)["a"]
    stems = file_stems([taken, "A", "a"], num_indices=1)
    assert stems[taken] == taken
    assert len(set(stems.values())) == 3


def test_names_do_not_depend_on_what_comes_later():
    assert file_stems(["A", "b"], num_indices=1).items() <= file_stems(["A", "b", "a", "B"], num_indices=1).items()


def test_txt_takes_lines_with_every_seed_once(listed):
    path = listed("p.txt", "\ufeff a cat \r\n\n#not a comment\na cat\n")
    assert [(i.prompt, i.seed, i.index, i.file) for i in read_items(path, [7, 9])] == [
        ("a cat", 7, 0, "a cat-0.mp4"),
        ("a cat", 9, 1, "a cat-1.mp4"),
        ("#not a comment", 7, 0, "#not a comment-0.mp4"),
        ("#not a comment", 9, 1, "#not a comment-1.mp4"),
    ]


def test_jsonl_may_name_seeds(listed):
    rows = [{"prompt": "a", "seeds": [5, 6]}, "b", {"prompt": "a", "seeds": [6, 8]}, {"prompt_en": "two\nlines"}]
    items = read_items(listed("p.jsonl", "\n".join(map(json.dumps, rows))), [0])
    assert [(i.prompt, i.seed, i.index) for i in items] == [
        ("a", 5, 0), ("a", 6, 1), ("a", 8, 2), ("b", 0, 0), ("two\nlines", 0, 0),
    ]  # fmt: skip
    assert items[-1].file == "two%0Alines-0.mp4"


def test_full_info_json_of_vbench(listed):
    rows = [
        {"prompt_en": "A fantasy landscape", "dimension": ["scene"]},
        {"prompt_en": "a fantasy landscape", "dimension": ["overall_consistency"]},
        {"prompt_en": "a bird", "dimension": ["object_class"], "auxiliary_info": {"object": "bird"}},
        {"prompt_en": "a bird", "dimension": ["color"]},
    ]
    items = read_items(listed("VBench_full_info.json", json.dumps(rows)), [0, 1, 2, 3, 4])
    assert len(items) == 3 * 5
    assert len({i.file.casefold() for i in items}) == 15
    assert items[0].file == "A fantasy landscape-0.mp4"


def test_index_has_the_way_back(listed, tmp_path):
    items = read_items(listed("p.jsonl", "\n".join(map(json.dumps, AWKWARD))), [0, 3])
    path = tmp_path / "videos.jsonl"
    path.write_text(index_text(items), encoding="utf-8")
    assert read_index(path) == items
    assert {i.prompt for i in items} == set(AWKWARD)
    assert len({i.file for i in items}) == 2 * len(AWKWARD)
    path.write_text('{"file": "x"}\n')
    with pytest.raises(ValueError, match="not an index"):
        read_index(path)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", " \n", "has no prompt"),
        ("p.json", "{}", "not a list"),
        ("p.json", "[", "cannot be read"),
        ("p.jsonl", '{"text": "a"}', "line 1: prompt=None"),
        ("p.jsonl", '"a"\n3', "line 2: prompt=3"),
        ("p.jsonl", '{"prompt": "a", "seeds": [1, 1]}', "seeds"),
        ("p.jsonl", '{"prompt": "a", "seeds": [true]}', "seeds"),
        ("p.jsonl", '{"prompt": "a", "seed": 1}', "allowed: seeds="),
        ("p.jsonl", '"\\ud800"', "not valid Unicode"),
    ],
)
def test_bad_lists_are_refused_in_one_line(listed, name, text, told):
    with pytest.raises(ConfigError, match=told):
        read_items(listed(name, text), [0])


def test_no_list_is_refused():
    with pytest.raises(ConfigError, match="prompts=null"):
        read_items(None, [0])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_items("nowhere.txt", [0])


def test_item_is_what_an_index_line_has():
    assert index_text([Item("a-0.mp4", "a", 3, 0)]) == '{"file": "a-0.mp4", "prompt": "a", "seed": 3, "index": 0}\n'
