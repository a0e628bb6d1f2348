import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mental_r1_jax.training.completions_log import COLUMNS, console_table, write_completions


def row(**changes):
    fields = {
        "set_name": "Made-Up",
        "row": 7,
        "prompt": "the question and a made-up post",
        "completion": "an event</stimulus>",
        "label": "Yes",
        "answer": "Yes",
        "reward": 1.5,
        "rewards/format": 0.5,
        "rewards/answer": 1.0,
        "advantage": 0.25,
        "well_formed": True,
        "reason": None,
        "num_tokens": 12,
        "finished": True,
    }
    return fields | changes


def without(fields, *names):
    return {name: value for name, value in fields.items() if name not in names}


def test_file_reads_back(tmp_path):
    rows = [row(), row(answer=None, reward=-0.5, well_formed=False, reason="<answer> is missing")]
    path = write_completions(tmp_path, 10, rows)
    assert path == tmp_path / "completions" / "step_000010.parquet"
    table = pq.read_table(path)
    assert [without(one, "step") for one in table.to_pylist()] == rows
    assert table.column("step").to_pylist() == [10, 10]
    assert table.schema.field("rewards/format").type == pa.float64()
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_types_do_not_depend_on_the_values(tmp_path):
    """A step whose every answer is missing must still concatenate with the others."""
    some = pq.read_table(write_completions(tmp_path, 1, [row()]))
    none = pq.read_table(write_completions(tmp_path, 2, [row(answer=None, reward=1)]))
    assert some.schema == none.schema
    assert pa.concat_tables([some, none]).num_rows == 2


def test_redaction_leaves_out_the_prompts(tmp_path):
    path = write_completions(tmp_path, 1, [row()], redact=True)
    table = pq.read_table(path)
    assert "prompt" not in table.column_names
    assert b"made-up post" not in path.read_bytes()
    bare = write_completions(tmp_path, 2, [without(row(), "prompt")])
    assert pq.read_table(bare).column_names == table.column_names


def test_all_columns_are_there_in_a_fixed_order(tmp_path):
    names = pq.read_table(write_completions(tmp_path, 1, [row()])).column_names
    assert [name for name in names if not name.startswith("rewards/")] == ["step", *COLUMNS]
    assert names.index("rewards/format") == names.index("reward") + 1


def test_broken_utf8_is_written_as_replacement_characters(tmp_path):
    path = write_completions(
        tmp_path, 1, [row(completion="half \udce2\udc82 a sign", answer="\ud800")]
    )
    assert pq.read_table(path).column("completion").to_pylist() == ["half \ufffd\ufffd a sign"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "got none"),
        ([without(row(), "advantage")], "missing=.'advantage'"),
        ([row(extra=1)], "unknown=.'extra'"),
        ([row(), without(row(), "prompt")], "row 1 differs in .'prompt'"),
    ],
)
def test_wrong_rows_are_refused_and_nothing_is_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_completions(tmp_path, 1, rows)
    assert list(tmp_path.iterdir()) == []


def shown(rows, **options):
    file = io.StringIO()
    Console(file=file, width=100).print(console_table(rows, **options))
    return file.getvalue()


def test_console_shows_the_best_and_the_worst_without_prompts():
    rows = [
        row(reward=0.0, completion="ordinary"),
        row(reward=1.5, completion="[the] best"),
        row(reward=-1.5, completion="the worst", answer=None),
    ]
    text = shown(rows)
    assert "[the] best" in text and "the worst" in text and "ordinary" not in text
    assert "1.500" in text and "-1.500" in text
    assert "made-up post" not in text


def test_long_completions_lose_their_middle():
    text = shown([row(completion="a" * 50 + "m" * 500 + "z" * 50)], limit=20)
    assert "a" * 10 + " ... " + "z" * 10 in text
    assert "m" not in text.split("completion", 2)[-1]


def test_one_completion_is_shown_once():
    assert "worst" not in shown([row()]).split("\n", 1)[1]
