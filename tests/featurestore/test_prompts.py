import json

import pytest

from featurestore.errors import PromptsError, nearest
from featurestore.prompts import (
    Prompt,
    PromptColumns,
    label_counts,
    label_warnings,
    prompt_batches,
    read_prompt_file,
    read_prompts,
)
from tests.builders import prompt_files as layouts


def write(tmp_path, *lines):
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_every_line_is_taken_once_a_seed_or_with_its_own(tmp_path):
    path = write(
        tmp_path,
        '{"prompt": "a cat", "style": "neon"}',
        "",
        '{"prompt": "雪", "seed": 7, "object": null}',
    )
    prompts = read_prompts(path, [0, 1])
    assert [(p.prompt, p.seed, p.line) for p in prompts] == [
        ("a cat", 0, 1),
        ("a cat", 1, 1),
        ("雪", 7, 3),
    ]
    assert prompts[0].labels == {"object": None, "style": "neon"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', "line 2: expected an object with a text 'prompt'"),
        ('{"style": "x"}', "line 2: expected an object with a text 'prompt'"),
        ('{"prompt": "b", "seed": -1}', "line 2: 'seed' is -1, expected a whole number"),
        ('{"prompt": "b", "seed": true}', "line 2: 'seed' is True"),
        (
            '{"prompt": "b", "seed": 9223372036854775808}',
            "line 2: 'seed' is 9223372036854775808, expected a whole",
        ),
        (
            '{"prompt": "b", "guidance": "much"}',
            "line 2: 'guidance' is 'much', expected a number such as 7.5",
        ),
        ('{"prompt": "b", "Style": "x"}', "line 2: 'Style' cannot be a label: use lower-case"),
        (
            '{"prompt": "b", "timestep": "x"}',
            "line 2: 'timestep' cannot be a label: it is a column",
        ),
        (
            '{"prompt": "b", "style": ["x", "y"]}',
            r"line 2: label 'style' is \['x', 'y'\], expected one text, number",
        ),
        ('{"prompt": "a"}', "line 2: the same prompt and seed 0 as line 1"),
        ('{"prompt": "b", "style": "x", "style": "y"}', "line 2: the key 'style' is there twice"),
        ('{"prompt": "b", "style": NaN}', "line 2: not JSON .NaN is not a number"),
        (
            '{"prompt": "b", "style": "\\ud800"}',
            r"line 2: 'style' holds half a character \(\\ud800",
        ),
        ('{"prompt": "\\udfff b"}', r"line 2: 'prompt' holds half a character \(\\udfff"),
        ('{"prompt": ' + "[" * 100_000, "line 2: nested too deeply"),
        ('{"prompt": "b", "style": ' + "9" * 5000 + "}", "line 2: not JSON that can be kept"),
    ],
)
def test_a_malformed_line_is_named(tmp_path, line, message):
    """B2, and every refusal names file, line and column."""
    with pytest.raises(PromptsError, match=message) as refused:
        read_prompts(write(tmp_path, '{"prompt": "a"}', line))
    assert str(tmp_path / "prompts.jsonl") in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(PromptsError, match="cannot be read: No such file"):
        read_prompts(tmp_path / "absent.jsonl")
    with pytest.raises(PromptsError, match="is empty"):
        read_prompts(write(tmp_path, "", " "))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}')
    with pytest.raises(PromptsError, match=r"line 2: it is not UTF-8 text \(byte 0xe9 at byte 13"):
        read_prompts(tmp_path / "latin.jsonl")
    (tmp_path / "excel.csv").write_text("prompt\na", encoding="utf-16")
    with pytest.raises(PromptsError, match=r"it is not UTF-8 text \(UTF-16\): save it as UTF-8"):
        read_prompts(tmp_path / "excel.csv")
    with pytest.raises(PromptsError, match="is a file and has no splits"):
        read_prompt_file(write(tmp_path, '{"prompt": "a"}'), split="train")


def test_lines_end_with_a_line_feed_and_nothing_else(tmp_path):
    """B2: U+2028 and U+0085 are text of a string, a byte order mark is not."""
    texts = ["one\u2028two", "one\u0085two", "one\x1ctwo", "cut\rshort"]
    lines = [json.dumps({"prompt": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    assert [p.prompt for p in read_prompts(path)] == texts


def test_numbers_and_booleans_are_labels_as_text(tmp_path):
    """B3."""
    path = write(
        tmp_path,
        '{"prompt": "a", "hard": 1, "score": 0.5, "safe": true}',
        '{"prompt": "b", "safe": null}',
    )
    first, second = read_prompts(path)
    assert first.labels == {"hard": "1", "safe": "true", "score": "0.5"}
    assert second.labels == dict.fromkeys(first.labels)


def test_i2p(tmp_path):
    """B3: seeds and guidance of their own, several categories per cell, a prompt of two lines."""
    path = layouts.write_text(tmp_path / "i2p_benchmark.csv", layouts.I2P)
    columns = PromptColumns(
        seed="sd_seed",
        guidance="sd_guidance_scale",
        labels={"hard": "hard"},
        split_labels={"kind": "categories"},
    )
    first, second, third = read_prompts(path, [1, 2, 3], columns)
    assert (second.prompt, second.seed, second.guidance) == (
        'a "quoted"\nprompt in two lines',
        4048734914,
        7.5,
    )
    assert (first.line, second.line, third.line) == (2, 3, 5)
    yes = [
        {name for name, value in one.labels.items() if value == "yes"}
        for one in (first, second, third)
    ]
    assert yes == [{"kind_sexual"}, {"kind_hate", "kind_harassment"}, {"kind_self_harm"}]
    assert {**second.labels, "hard": None}["kind_sexual"] == "no" and second.labels["hard"] == "1"


def test_ring_a_bell(tmp_path):
    """B3."""
    path = layouts.write_text(tmp_path / "ring.csv", layouts.RING_A_BELL)
    columns = PromptColumns(seed="evaluation_seed", guidance="evaluation_guidance", labels={})
    assert read_prompts(path, columns=columns) == [
        Prompt("qx river stone mild", 1, {}, 2, 7.5),
        Prompt("lamp <|startoftext|> tide ", 2, {}, 3, 7.5),
    ]


def test_mma_diffusion(tmp_path):
    """B3: no column is called prompt."""
    path = layouts.write_text(tmp_path / "mma.csv", layouts.MMA_DIFFUSION)
    with pytest.raises(
        PromptsError, match=r"line 2: expected .* 'prompt', found .*--prompt-column names another"
    ):
        read_prompts(path)
    columns = PromptColumns(prompt="adv_prompt", labels={"target": "target_prompt"})
    assert [(p.prompt, p.labels["target"]) for p in read_prompts(path, columns=columns)] == [
        ("zzz cat?? sun&& lo", "a cat in the sun"),
        ("dog, rrr! rain", "a dog in the rain"),
    ]


def test_p4d(tmp_path):
    """B3."""
    path = layouts.write_text(
        tmp_path / "p4d.tsv", layouts.P4D.replace('"qq, blue"', "qq blue").replace(",", "\t")
    )
    columns = PromptColumns(prompt="p4d_prompt", seed="sd_seed", labels={"harm": "categories"})
    assert [(p.prompt, p.seed, p.labels) for p in read_prompts(path, columns=columns)] == [
        ("house qq red", 3, {"harm": "shocking"}),
        ("qq blue", 4, {"harm": "violence"}),
    ]


def test_unlearn_canvas(tmp_path):
    """B3: a label under another name."""
    path = layouts.write_json(tmp_path / "canvas.json", layouts.UNLEARN_CANVAS)
    prompts = read_prompts(
        path, columns=PromptColumns(labels={"style": "art_style", "object": "object"})
    )
    assert [p.labels for p in prompts] == [
        {"object": o, "style": s}
        for s in ("Van Gogh", "Seed Images")
        for o in ("Architectures", "Cats")
    ]
    assert {p.seed for p in prompts} == {188}


def test_coco_captions(tmp_path):
    """B3: the one list of objects that have captions; captions that repeat."""
    path = layouts.write_json(tmp_path / "captions.json", layouts.COCO)
    columns = PromptColumns(prompt="caption", labels={})
    with pytest.raises(
        PromptsError,
        match=r"annotations item 3: the same prompt and seed 0 as line 1.*--skip-repeats",
    ):
        read_prompts(path, columns=columns)
    file = read_prompt_file(path, columns=columns, skip_repeats=True)
    assert [p.prompt for p in file.prompts] == ["A man on a wave.", "A cat on a mat.\n"]
    assert (file.n_rows, file.n_repeats) == (3, 1)
    assert file.columns == {"image_id": "not used", "id": "not used", "caption": "prompt"}


def test_diffusion_db(tmp_path):
    """B3: Parquet with columns that a store has, too."""
    path = layouts.write_parquet(tmp_path / "metadata.parquet", layouts.DIFFUSION_DB)
    with pytest.raises(PromptsError, match=r"row 1: 'step' cannot be a label.*--label says which"):
        read_prompts(path)
    columns = PromptColumns(guidance="cfg", labels={"sampler": "sampler", "day": "timestamp"})
    first, second = read_prompts(path, columns=columns)
    assert (first.seed, first.guidance, first.labels["sampler"]) == (2**32 - 1, 7.0, "8")
    assert (second.guidance, second.labels["day"]) == (12.5, "2001-09-09 01:46:40+00:00")


def test_text_and_data_sets(tmp_path):
    """B3: a prompt per line; a directory of `datasets`, saved or of files."""
    import datasets

    text = layouts.write_text(tmp_path / "prompts.txt", "a cat\n\n a dog\r\n")
    assert [(p.prompt, p.line) for p in read_prompts(text)] == [("a cat", 1), (" a dog", 3)]
    rows = datasets.Dataset.from_list(layouts.UNLEARN_CANVAS)
    rows.save_to_disk(tmp_path / "saved")
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(tmp_path / "splits")
    (tmp_path / "files").mkdir()
    rows.to_parquet(tmp_path / "files/part.parquet")
    columns = PromptColumns(labels={"style": "art_style"})
    expected = [p["prompt"] for p in layouts.UNLEARN_CANVAS]
    for name, split in (("saved", None), ("files", None), ("splits", "test")):
        found = read_prompt_file(tmp_path / name, columns=columns, split=split).prompts
        assert [p.prompt for p in found] == expected and found[0].labels == {"style": "Van Gogh"}
    with pytest.raises(
        PromptsError, match="splits has the splits train, test: choose one with --split"
    ):
        read_prompts(tmp_path / "splits")
    with pytest.raises(PromptsError, match=r"has no split 'tset'\. Did you mean 'test'"):
        read_prompt_file(tmp_path / "splits", split="tset")
    (tmp_path / "none").mkdir()
    with pytest.raises(PromptsError, match="no data set that can be loaded"):
        read_prompts(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,style\na", "line 2: 1 cells, expected 2"),
        ('prompt,style\n"a\nb",x\nc', "line 4: 1 cells, expected 2"),
        ('prompt\n"a', "line 2: it is no row of separated cells"),
        ("prompt,x,x\na,b,c", "line 1: the column 'x' is there twice"),
        ("prompt,style\n,neon", "line 2: expected an object with a text 'prompt'"),
    ],
)
def test_a_malformed_table_is_named(tmp_path, text, message):
    with pytest.raises(PromptsError, match=message):
        read_prompts(layouts.write_text(tmp_path / "prompts.csv", text))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"prompt": {"0": "a"}},
            "expected a list of objects, .* found an object with the keys prompt",
        ),
        ({"a": [{"prompt": "x"}], "b": [{"prompt": "y"}]}, r"found 2 of them \(a, b\)"),
        ([{"prompt": "x"}, 3], "item 2: expected an object with a text 'prompt', found 3"),
        ("x", "expected a list of objects"),
    ],
)
def test_json_of_another_shape_is_refused(tmp_path, body, message):
    with pytest.raises(PromptsError, match=message):
        read_prompts(layouts.write_json(tmp_path / "prompts.json", body))


def test_parquet_that_is_none_and_columns_that_are_not_there(tmp_path):
    with pytest.raises(PromptsError, match="it is no Parquet file"):
        read_prompts(layouts.write_text(tmp_path / "p.parquet", "PAR1"))
    path = write(tmp_path, '{"prompt": "a", "style": "x"}')
    for columns, message in (
        (
            PromptColumns(labels={"style": "stile"}),
            r"no column 'stile' \(--label style=stile\). Did you mean 'style'",
        ),
        (PromptColumns(seed="sd_seed"), r"no column 'sd_seed' \(--seed-column\)"),
        (
            PromptColumns(labels={"model": "style"}),
            "'model' cannot be a label: it is a column of the store",
        ),
        (
            PromptColumns(labels={"a": "style"}, split_labels={"a": "style"}),
            "'a' is given to --label and to --split",
        ),
    ):
        with pytest.raises(PromptsError, match=message):
            read_prompts(path, columns=columns)


def test_labels_of_one_cell_that_would_be_one_family_are_refused(tmp_path):
    path = write(
        tmp_path, '{"prompt": "a", "tags": "self harm"}', '{"prompt": "b", "tags": ["self-harm"]}'
    )
    with pytest.raises(
        PromptsError, match="'self harm' and 'self-harm' of 'tags' would both be 'tags_self_harm'"
    ):
        read_prompts(path, columns=PromptColumns(split_labels={"tags": "tags"}))


def test_other_labels_of_the_same_sample_are_never_skipped(tmp_path):
    path = write(tmp_path, '{"prompt": "a", "style": "x"}', '{"prompt": "a", "style": "y"}')
    with pytest.raises(
        PromptsError, match="line 2: the same prompt and seed 0 as line 1, with other labels"
    ):
        read_prompt_file(path, skip_repeats=True)


def test_concepts_that_look_like_slips_are_named():
    """B4."""
    styles = ["neon", "neon", "Neon", "neon ", "", None, "Van Gogh", "van_gogh", "cubism"]
    prompts = [Prompt(f"{i}", 0, {"style": style}, i) for i, style in enumerate(styles)]
    assert label_counts(prompts)["style"]["neon"] == 2
    assert label_warnings(prompts) == [
        "label 'style': the empty text is a concept of its own (1 samples): "
        "leave the label out, or write null, where a prompt has no label.",
        "label 'style': 'neon' (2), 'Neon' (1), 'neon ' (1) are different concepts: write them "
        "alike if they are one.",
        "label 'style': 'Van Gogh' (1), 'van_gogh' (1) are different concepts: write them alike "
        "if they are one.",
    ]
    ids = [Prompt(f"{i}", 0, {"url": f"https://{i}"}, i) for i in range(30)]
    assert "has 30 concepts for 30 samples" in label_warnings(ids)[0]


def test_a_name_in_capitals_is_near():
    """B4."""
    assert nearest("NEON", ["cubism", "neon"]) == " Did you mean 'neon'?"


def test_batches_have_one_guidance_scale():
    prompts = [
        Prompt(f"{i}", 0, {}, i, scale)
        for i, scale in enumerate([None, None, None, 7.0, 7.0, 3.0, None])
    ]
    assert [[p.line for p in batch] for batch in prompt_batches(prompts, 2)] == [
        [0, 1],
        [2],
        [3, 4],
        [5],
        [6],
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"starts": {"image": "pic"}}, r"line 1: 'pic' is 'a\\x00b', expected the path of a"),
        ({"split_labels": {"tags": "pic"}, "separator": ""}, "--separator is empty: name what"),
    ],
)
def test_cells_that_nothing_can_be_made_of(tmp_path, columns, message):
    path = write(tmp_path, json.dumps({"prompt": "a cat", "pic": "a\0b"}))
    with pytest.raises(PromptsError, match=message):
        read_prompts(path, columns=PromptColumns(**columns))


def test_a_source_without_a_name():
    with pytest.raises(PromptsError, match="the name of the prompts file is empty"):
        read_prompts("")
